"""How much of its task a pretext has learned: 0 is the best constant answer, 1 a perfect one.

A skill is 1 − (sum of errors) / (sum of errors of the constant answer), so it is kept as these two
numbers for each example: they add up over micro-batches, devices and a whole split. The constant
answer is that of the examples at hand, made as if it did not know the one that it is measured on.
"""

import jax
import jax.numpy as jnp

Errors = tuple[jax.Array, jax.Array]  # the answer's and the constant's, each float32 [B]


def of_choices(logits_bkc: jax.Array, labels_bk: jax.Array) -> Errors:
    """Of classes that are equally likely: (accuracy − chance) / (1 − chance)."""
    wrong_bk = (jnp.argmax(logits_bkc, axis=-1) != labels_bk).astype(jnp.float32)
    by_chance = 1.0 - 1.0 / logits_bkc.shape[-1]
    error_b = jnp.mean(wrong_bk, axis=-1)
    return error_b, jnp.full_like(error_b, by_chance)


def of_values(found: jax.Array, wanted: jax.Array, hidden: jax.Array, mask_b: jax.Array) -> Errors:
    """Of numbers: their squared error against that of the mean of the place.

    found, wanted: [B, …]. hidden: of the same rank, 1 where it counts, and 0. mask_b: 1 for the
    examples that there are.
    """
    mask = mask_b.reshape(-1, *[1] * (wanted.ndim - 1))
    count = jnp.sum(mask_b)
    mean = jnp.sum(wanted * mask, axis=0, keepdims=True) / jnp.maximum(count, 1.0)
    # The mean knows the example itself, which makes it look better by (n − 1) / n.
    unseen = count / jnp.maximum(count - 1.0, 1.0)
    axes = tuple(range(1, wanted.ndim))
    error_b = jnp.sum(jnp.square(found - wanted) * hidden, axis=axes)
    return error_b, unseen * jnp.sum(jnp.square(wanted - mean) * hidden, axis=axes)


def of_distributions(log_p_bc: jax.Array, wanted_bc: jax.Array, mask_b: jax.Array) -> Errors:
    """Of distributions: their divergence from the wanted ones against that of the mean of these."""
    counted = mask_b[:, None]
    mean_1c = jnp.sum(wanted_bc * counted, axis=0, keepdims=True) / jnp.maximum(mask_b.sum(), 1.0)
    entropy_b = jnp.sum(jax.scipy.special.entr(wanted_bc), axis=-1)

    def divergence(log_p):
        return -jnp.sum(wanted_bc * log_p, axis=-1) - entropy_b

    return divergence(log_p_bc), divergence(jnp.log(jnp.maximum(mean_1c, 1e-12)))


def of_codes(
    error_bn: jax.Array, classes_bnp: jax.Array, count: int, hidden_bn: jax.Array, mask_b: jax.Array
) -> Errors:
    """Of codes: their cross-entropy against that of how often each occurs.

    error_bn: mean cross-entropy of a patch. classes_bnp: the codes, in [0, count).
    """
    counted = hidden_bn * mask_b[:, None]
    weight = jnp.broadcast_to(counted[..., None], classes_bnp.shape)
    frequency = jnp.zeros(count, jnp.float32).at[classes_bnp].add(weight)
    frequency = frequency / jnp.maximum(jnp.sum(frequency), 1.0)
    entropy = jnp.sum(jax.scipy.special.entr(frequency))
    patches_b = jnp.sum(hidden_bn, axis=1)
    return jnp.sum(error_bn * hidden_bn, axis=1), entropy * patches_b

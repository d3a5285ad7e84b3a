"""Mixup (Zhang 2018, arXiv 1710.09412) and CutMix (Yun 2019, arXiv 1905.04899), drawn per example.

The partner of an example is the one before it in the batch, of those with labels or of those
without: batches are shuffled, so it is as random as a permutation, and on a sharded batch only an
image or two per device cross to its neighbour, where a permutation would send nearly all of them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from hmtl_jax.data import order

BETA_LEVELS = 4096


def mix(
    rng: jax.Array,
    images_bhwc: jax.Array,
    mixup: float,
    cutmix: float,
    layout: order.Layout = order.WHOLE,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mixes each image with its partner.

    mixup, cutmix: alpha of Beta(alpha, alpha), from which each example draws its share; 0 is off.
    layout: which examples have labels.
    With both on, each example takes one of them, at even odds (timm draws once per batch).
    Returns (images of the same shape, partner int32 [B], share float32 [B]: the weight of the
    example's own label). For CutMix the share is the fraction of pixels that are really its own.
    With both off the partner is the example itself and the share is 1.
    """
    batch, height, width, _ = images_bhwc.shape
    own = jnp.arange(batch, dtype=jnp.int32)
    if not (mixup or cutmix):
        return images_bhwc, own, jnp.ones(batch, jnp.float32)
    keys = jax.random.split(rng, batch)
    draw = jax.vmap(lambda key: own_weight(key, height, width, mixup, cutmix))
    weight_bhw = draw(keys)
    weight_bhw1 = weight_bhw[..., None]
    others_bhwc = before(images_bhwc, layout)
    # In this form a weight of 0 or 1 copies pixels bit for bit.
    mixed_bhwc = weight_bhw1 * images_bhwc + (1.0 - weight_bhw1) * others_bhwc
    return mixed_bhwc, before(own, layout), weight_bhw.mean((1, 2))


def before(rows: jax.Array, layout: order.Layout) -> jax.Array:
    """[B, …] → for each row the one before it of its kind, with labels or without; cyclic."""
    found = jnp.roll(rows, 1, axis=0)
    if layout == order.WHOLE:
        return found
    place_b = jnp.arange(rows.shape[0], dtype=jnp.int32) % layout.unit
    place_b = place_b.reshape(-1, *(1,) * (rows.ndim - 1))
    # The first of its kind in a unit has its partner in the unit before.
    labelled, unit = layout
    for first, count in ((0, labelled), (labelled, unit - labelled)):
        found = jnp.where(place_b == first, jnp.roll(rows, unit - count + 1, axis=0), found)
    return found


def mix_target(target: jax.Array, partner: jax.Array, share: jax.Array) -> jax.Array:
    """share * target + (1 - share) * the partner's, for float targets [B, ...] or one-hot labels.

    Missing labels must be masked before: a partner's NaN would spread.
    """
    share = share.astype(target.dtype).reshape((-1,) + (1,) * (target.ndim - 1))
    return share * target + (1 - share) * target[partner]


def own_weight(rng: jax.Array, height: int, width: int, mixup: float, cutmix: float) -> jax.Array:
    """Draws one example's own weight [H, W]: the same everywhere for mixup, 0 or 1 for CutMix."""
    choice_key, share_key, box_key = jax.random.split(rng, 3)
    cuts = jax.random.uniform(choice_key) < (0.5 if mixup and cutmix else float(cutmix > 0))
    index = jax.random.randint(share_key, (), 0, BETA_LEVELS)
    share = jnp.where(cuts, beta_quantiles(cutmix)[index], beta_quantiles(mixup)[index])
    pasted_hw = cut_mask(box_key, height, width, 1.0 - share)
    return jnp.where(cuts, 1.0 - pasted_hw.astype(jnp.float32), share)


def beta_quantiles(alpha: float) -> jax.Array:
    """BETA_LEVELS equally likely values of Beta(alpha, alpha), made while tracing.

    jax.random.beta() draws by rejection: loops that cost seconds of compilation and, on a sharded
    batch, make all devices wait for each other at every turn.
    """
    levels = (np.arange(BETA_LEVELS) + 0.5) / BETA_LEVELS
    # An alpha of 0 is off and never read.
    return jnp.asarray(scipy.special.betaincinv(alpha or 1.0, alpha or 1.0, levels), jnp.float32)


def cut_mask(rng: jax.Array, height: int, width: int, area: jax.Array) -> jax.Array:
    """Draws a box of the image's shape that covers `area` (0 to 1) of it; bool [H, W].

    Less is covered where the border cuts it. Its centre is uniform over the image; a pixel belongs
    to the box if its own centre does.
    """
    centre_y, centre_x = jax.random.uniform(rng, (2,))
    half = jnp.sqrt(area) / 2
    y = (jnp.arange(height, dtype=jnp.float32) + 0.5) / height
    x = (jnp.arange(width, dtype=jnp.float32) + 0.5) / width
    return (jnp.abs(y - centre_y) < half)[:, None] & (jnp.abs(x - centre_x) < half)[None]

"""Optimizers and schedules by name, decay masks, and frozen parameters."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from hmtl_jax.errors import UserError, lookup

# Decay acts on matrices alone: neither on biases nor norms, as in SSAT's and MAE's code, nor on the
# cls and mask tokens, which their pretraining decays (ours).
DECAYED = r"(^|/)kernel$"


def paths(tree: Any) -> Any:
    """The tree with each leaf replaced by its path, such as `encoder/blocks/block00/qkv/kernel`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), tree
    )


def decay_mask(params: Any) -> Any:
    """True where weight decay acts."""
    return jax.tree.map(lambda path: re.search(DECAYED, path) is not None, paths(params))


def make_schedule(cfg: Any, steps: int, warmup: int) -> Callable:
    """`cosine` to `final_lr` or `constant`, each after a linear warm-up from zero."""
    if warmup >= steps > 0:
        raise UserError(
            f"The warm-up takes {warmup} of the run's {steps} steps; lower optim.warmup_epochs, or "
            "optim.warmup_steps where that is set."
        )
    schedules = {
        "cosine": lambda: optax.cosine_decay_schedule(
            cfg.lr, max(steps - warmup, 1), alpha=cfg.final_lr / cfg.lr
        ),
        "constant": lambda: optax.constant_schedule(cfg.lr),
    }
    after = lookup(schedules, cfg.schedule, "schedule")()
    return optax.join_schedules([optax.linear_schedule(0.0, cfg.lr, warmup), after], [warmup])


def adamw(cfg: Any, lr: Callable) -> optax.GradientTransformation:
    """AdamW (Loshchilov 2019)."""
    return optax.adamw(lr, b1=cfg.b1, b2=cfg.b2, weight_decay=cfg.weight_decay, mask=decay_mask)


def lion(cfg: Any, lr: Callable) -> optax.GradientTransformation:
    """Lion (Chen 2023)."""
    return optax.lion(lr, b1=cfg.b1, b2=cfg.b2, weight_decay=cfg.weight_decay, mask=decay_mask)


def sgd(cfg: Any, lr: Callable) -> optax.GradientTransformation:
    """SGD with Nesterov momentum `b1`, and L2 decay."""
    decay = optax.add_decayed_weights(cfg.weight_decay, decay_mask)
    return optax.chain(decay, optax.sgd(lr, momentum=cfg.b1, nesterov=True))


def muon(cfg: Any, lr: Callable) -> optax.GradientTransformation:
    """Muon (Jordan 2024) for the matrices between layers, NAdamW for all else, by one rate.

    Muon's steps are brought to the root mean square of AdamW's, 0.2 (Liu 2025, arXiv 2502.16982).
    Its momentum is 0.95; `b1` and `b2` are AdamW's. Both decay what decay_mask says.
    """
    return contrib.muon(
        lr,
        weight_decay=cfg.weight_decay,
        weight_decay_mask=decay_mask,
        adam_b1=cfg.b1,
        adam_b2=cfg.b2,
        adam_weight_decay=cfg.weight_decay,
        muon_weight_dimension_numbers=matrices,
        consistent_rms=0.2,
    )


# Kernels that are no matrices between layers: what reads pixels, and what predicts.
ENDS = re.compile(r"^heads_|/(embed|stem|predict\w*|pixels_\w+)/")


def matrices(params: Any) -> Any:
    """For each parameter the axes of the matrix that it is to Muon, or None.

    A convolution's kernel is a matrix of its places and channels; scanned blocks have one a layer.
    """

    def axes(path: str, leaf: Any) -> contrib.MuonDimensionNumbers | None:
        if not path.endswith("/kernel") or ENDS.search(path) or leaf.ndim < 2:
            return None
        first = 1 if SCANNED in path else 0
        return contrib.MuonDimensionNumbers(tuple(range(first, leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree.map(axes, paths(params), params)


def schedule_free(cfg: Any, lr: Callable) -> optax.GradientTransformation:
    """Schedule-free AdamW (Defazio 2024, arXiv 2405.15682): its average takes the decay's place.

    `b1` is the share of the average in the point where gradients are taken. What is evaluated is
    the average (see averaged_params); batch statistics are those of that point (ours).
    """
    base = optax.chain(
        optax.scale_by_rms(cfg.b2, eps=1e-8, eps_in_sqrt=False, bias_correction=True),
        optax.add_decayed_weights(cfg.weight_decay, decay_mask),
        optax.scale_by_learning_rate(lr),
    )
    return contrib.schedule_free(base, lr, b1=cfg.b1)


def averaged_params(opt_state: Any, params: Any) -> Any:
    """The average that schedule_free keeps, or None under another optimizer."""
    of_it = lambda node: isinstance(node, contrib.ScheduleFreeState)  # noqa: E731
    found = [node for node in jax.tree.leaves(opt_state, is_leaf=of_it) if of_it(node)]
    return contrib.schedule_free_eval_params(found[0], params) if found else None


OPTIMIZERS = {
    "adamw": adamw,
    "lion": lion,
    "muon": muon,
    "schedule_free": schedule_free,
    "sgd": sgd,
}


# Where in the encoder a parameter lies, from its path: below all layers, or in which of them.
BELOW = re.compile(r"^encoder/(cls|positions_table|embed/|stem/|stem_norm/)")
LAYER = re.compile(r"^encoder/(?:blocks/block(\d+)|stage(\d+)_block\d+)/")
SCANNED = "encoder/blocks/scanned/"


def layer_of(path: str, leaf: Any) -> Any:
    """The layer of a parameter: 0 for embeddings, positions and the stem, then 1, 2, …

    A layer is a block of a ViT or a stage of a convolutional encoder. Scanned blocks have one for
    each row of their stacked parameter: float32 [L, 1, …]. What lies above all layers (the last
    norm, heads, decoders) has None.
    """
    if BELOW.match(path):
        return 0
    if path.startswith(SCANNED):
        count = leaf.shape[0]
        return np.arange(1, count + 1, dtype=np.float32).reshape(count, *[1] * (leaf.ndim - 1))
    found = LAYER.match(path)
    if not found:
        return None
    block, stage = found.groups()
    return int(block) + 1 if block else int(stage)


def layer_scales(params: Any, decay: float) -> Any:
    """decay^(L + 1 - layer) for each parameter of an encoder of L layers; 1 above all layers."""
    layers = jax.tree.map(layer_of, paths(params), params)
    found = jax.tree.leaves(layers)  # leaves out None
    above = 1 + max((float(np.max(layer)) for layer in found), default=0.0)
    return jax.tree.map(
        lambda layer: 1.0 if layer is None else decay ** (above - layer),
        layers,
        is_leaf=lambda layer: layer is None,
    )


def scale_by_layer(decay: float) -> optax.GradientTransformation:
    """Scales each update by `decay` once for each layer above its parameter.

    To stand after the optimizer, so that steps and weight decay shrink alike: layer-wise decay of
    the learning rate (Clark 2020, ELECTRA), with the depths of BEiT's and MAE's fine-tuning.
    """

    def scaled(updates, params):
        del params
        scales = layer_scales(updates, decay)
        return jax.tree.map(lambda u, scale: u * jnp.asarray(scale, u.dtype), updates, scales)

    return optax.stateless(scaled)


def stopped(params: Any, frozen: str) -> Any:
    """`params` without a gradient for those whose path matches the regular expression."""
    return jax.tree.map(
        lambda path, x: jax.lax.stop_gradient(x) if re.search(frozen, path) else x,
        paths(params),
        params,
    )


def updates_applied(opt_state: Any) -> jax.Array:
    """How many updates the optimizer has made, int32 []: steps that were skipped do not count."""
    # Every part that counts, counts the same; the schedule of the learning rate is one of them.
    return optax.tree_utils.tree_get_all_with_path(opt_state, "count")[0][1]


def all_but(frozen: str, tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx`, but parameters whose path matches the regular expression stay, without moments."""
    try:
        re.compile(frozen)
    except re.error as error:
        raise UserError(f"optim.freeze {frozen!r} is no regular expression: {error}.") from error

    def labels(params):
        found = jax.tree.map(
            lambda path: "frozen" if re.search(frozen, path) else "trained", paths(params)
        )
        if len(set(jax.tree.leaves(found))) < 2:
            raise UserError(f"optim.freeze {frozen!r} matches no parameter, or all of them.")
        return found

    return optax.multi_transform({"trained": tx, "frozen": optax.set_to_zero()}, labels)


def make_optimizer(cfg: Any, schedule: Callable) -> optax.GradientTransformation:
    """Clips the global norm to `clip` (0: never), then optimizes all but what `freeze` matches.

    A `layer_decay` below 1 shortens the steps of the encoder's lower layers.
    """
    parts = [optax.clip_by_global_norm(cfg.clip)] if cfg.clip else []
    tx = optax.chain(*parts, lookup(OPTIMIZERS, cfg.name, "optimizer")(cfg, schedule))
    tx = all_but(cfg.freeze, tx) if cfg.freeze else tx
    if cfg.layer_decay == 1.0:
        return tx
    return optax.chain(tx, scale_by_layer(cfg.layer_decay))

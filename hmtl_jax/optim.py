"""Optimizers and schedules by name, decay masks, and frozen parameters."""

import re
from collections.abc import Callable
from typing import Any

import jax
import optax

from hmtl_jax.errors import UserError, lookup

# Decay acts on matrices alone: neither on biases, norms, nor tokens (SSAT's and MAE's recipe).
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
            f"optim.warmup_epochs takes {warmup} of the run's {steps} steps; shorten it."
        )
    if cfg.lr <= 0:
        raise UserError(f"optim.lr must be positive, not {cfg.lr}.")
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


OPTIMIZERS = {"adamw": adamw, "lion": lion, "sgd": sgd}


def make_optimizer(cfg: Any, schedule: Callable) -> optax.GradientTransformation:
    """Clips the global norm to `clip` (0: never), then optimizes all but what `freeze` matches."""
    parts = [optax.clip_by_global_norm(cfg.clip)] if cfg.clip else []
    tx = optax.chain(*parts, lookup(OPTIMIZERS, cfg.name, "optimizer")(cfg, schedule))
    if not cfg.freeze:
        return tx

    def labels(params):
        found = jax.tree.map(
            lambda path: "frozen" if re.search(cfg.freeze, path) else "trained", paths(params)
        )
        if len(set(jax.tree.leaves(found))) < 2:
            raise UserError(f"optim.freeze {cfg.freeze!r} matches no parameter, or all of them.")
        return found

    return optax.multi_transform({"trained": tx, "frozen": optax.set_to_zero()}, labels)

"""The heart: one training step and one evaluation step, pure functions of (state, batch).

    batch ─augment─▶ clean view ─each pretext─▶ its view and target
    views ─one encoder, heads, decoders─▶ outputs ─per-example losses─▶ one weighted total ─▶ state

The randomness of a step is derived from (seed, step) and from nothing else, and each loss is
divided by the number of examples of the whole batch that have it. So a run continues exactly, and
neither the number of devices nor of micro-batches changes what is computed.
"""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hmtl_jax import sharding
from hmtl_jax.data import augment
from hmtl_jax.pretext.view import View
from hmtl_jax.state import TrainState, evaluation_params


@dataclasses.dataclass(frozen=True)
class Program:
    """Everything a step needs that is not an array: built from a recipe by recipe.py.

    model: a Linen module that maps named views to named outputs. accumulate: micro-batches a step.
    ema: decay of the moving average, 0 for none. skip_nonfinite: leave the state as it was where
    the loss or a gradient is not finite.
    """

    model: Any
    tasks: Mapping[str, Any]
    pretexts: Mapping[str, Any]
    weights: Mapping[str, float]
    augment: augment.Augment
    tx: optax.GradientTransformation
    schedule: Callable
    seed: int = 0
    accumulate: int = 1
    ema: float = 0.0
    skip_nonfinite: bool = False

    def init_model(self, rng: jax.Array) -> Any:
        """Variables for one image of the recipe's size, every view included."""
        size = self.augment.image_size
        views, _ = make_views(
            self, jnp.zeros((1, size, size, 3)), dict.fromkeys(self.pretexts, rng[None])
        )
        return self.model.init({"params": rng, "dropout": rng}, views, train=False)


def streams(seed: int, step: jax.Array | int, *names: str) -> list[jax.Array]:
    """One key a name, from (seed, step) alone; a new name changes no other stream."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return [jax.random.fold_in(key, zlib.crc32(name.encode())) for name in names]


def augmented(program: Program, step: jax.Array, batch: Mapping[str, jax.Array]) -> dict:
    """The clean view with its targets, masks and keys: a tree whose leaves all lead with B."""
    crop, mix = streams(program.seed, step, "augment", "mix")
    images, flipped = augment.augment(crop, batch["image"], program.augment)
    valid = batch["valid"].astype(jnp.float32)
    targets, masks = {}, dict.fromkeys(program.pretexts, valid)
    for name, task in program.tasks.items():
        target, mask = task.target(batch)
        targets[name], masks[name] = task.flip(target, flipped), mask * valid
    if program.augment.mixup or program.augment.cutmix:
        images, partner, share = augment.mix(mix, images, program.augment)
        targets = {name: augment.mix_target(t, partner, share) for name, t in targets.items()}
        # A mixed example has a label, or an image, only if both of its sources have one.
        masks = {n: jnp.where(share < 1.0, m * m[partner], m) for n, m in masks.items()}
    views = streams(program.seed, step, *(f"view/{name}" for name in program.pretexts))
    keys = {
        name: jax.random.split(key, images.shape[0])
        for name, key in zip(program.pretexts, views, strict=True)
    }
    return {"images": images, "targets": targets, "masks": masks, "keys": keys}


def make_views(program: Program, images: jax.Array, keys: Mapping[str, jax.Array]):
    """Named views, and each pretext's target."""
    views, targets = {"clean": View(images)}, {}
    for name, pretext in program.pretexts.items():
        views[name], targets[name] = pretext.view(keys[name], images)
    return views, targets


def losses_of(program: Program, outputs: Mapping, targets: Mapping, pretext_targets: Mapping):
    """Per-example losses by name, each float32 [B]; the parts of a pretext are named NAME/PART."""
    losses, parts = {}, {}
    for name, task in program.tasks.items():
        losses[name] = task.loss(outputs[name], targets[name])
    for name, pretext in program.pretexts.items():
        found = pretext.losses(outputs[name], pretext_targets[name])
        losses[name] = sum(found.values())
        if len(found) > 1:
            parts |= {f"{name}/{part}": loss for part, loss in found.items()}
    return losses, parts


def train_step(program: Program, state: TrainState, batch: Mapping[str, jax.Array]):
    """One step of every loss together: (state, batch) → (state, metrics of float32 [])."""
    examples = sharding.over_batch(augmented(program, state.step, batch))
    divisors = {name: jnp.maximum(jnp.sum(m), 1.0) for name, m in examples["masks"].items()}
    (dropout,) = streams(program.seed, state.step, "dropout")

    def micro_loss(params, batch_stats, chunk, rng):
        views, pretext_targets = make_views(program, chunk["images"], chunk["keys"])
        outputs, updated = program.model.apply(
            {"params": params, "batch_stats": batch_stats},
            views, train=True, rngs={"dropout": rng}, mutable=["batch_stats"],
        )  # fmt: skip
        losses, parts = losses_of(program, outputs, chunk["targets"], pretext_targets)

        def reduced(name, loss_b):
            owner = name.partition("/")[0]
            return jnp.sum(loss_b * chunk["masks"][owner]) / divisors[owner]

        means = {name: reduced(name, loss) for name, loss in (losses | parts).items()}
        total = sum(weight * means[name] for name, weight in program.weights.items())
        return total, (means, updated.get("batch_stats", {}))

    grads, means, batch_stats = accumulated(program, micro_loss, state, examples, dropout)
    updates, opt_state = program.tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    grad_norm = optax.tree.norm(grads)
    total = sum(weight * means[name] for name, weight in program.weights.items())
    finite = jnp.isfinite(total) & jnp.isfinite(grad_norm)
    new = TrainState(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        ema=moving_average(program.ema, state, params),
        task_weights=state.task_weights,
    )
    if program.skip_nonfinite:
        kept = dataclasses.replace(state, step=state.step + 1)
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, kept)
    metrics = {f"loss/{name}": mean for name, mean in means.items()}
    metrics |= {f"weight/{name}": jnp.float32(w) for name, w in program.weights.items()}
    metrics |= {
        "loss/total": total,
        "lr": jnp.asarray(program.schedule(state.step), jnp.float32),
        "grad_norm": grad_norm,
        "nonfinite": 1.0 - finite.astype(jnp.float32),
        "skipped_images": jnp.sum(~batch["valid"]).astype(jnp.float32),
    }
    return new, metrics


def accumulated(program: Program, micro_loss, state: TrainState, examples, rng):
    """Gradients and losses of the batch, summed over micro-batches: (grads, means, batch_stats)."""
    grad = jax.grad(micro_loss, has_aux=True)
    if program.accumulate == 1:
        grads, (means, batch_stats) = grad(state.params, state.batch_stats, examples, rng)
        return grads, means, batch_stats
    count = program.accumulate

    # Row r goes to micro-batch r % count, so that each device keeps the rows that it has.
    def split(x):
        return jnp.moveaxis(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 1, 0)

    def body(carry, chunk_and_rng):
        sums, batch_stats = carry
        chunk, rng = chunk_and_rng
        grads, (means, batch_stats) = grad(
            state.params, batch_stats, sharding.over_batch(chunk), rng
        )
        return (jax.tree.map(jnp.add, sums, (grads, means)), batch_stats), None

    chunks = jax.tree.map(split, examples)
    first = jax.tree.map(lambda x: x[0], chunks)
    shapes = jax.eval_shape(grad, state.params, state.batch_stats, first, rng)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes[0], shapes[1][0]))
    carry, _ = jax.lax.scan(
        body, (zeros, state.batch_stats), (chunks, jax.random.split(rng, count))
    )
    (grads, means), batch_stats = carry
    return grads, means, batch_stats


def moving_average(decay: float, state: TrainState, params: Any) -> Any:
    """The average of the weights; its decay warms up as (1 + t) / (10 + t)."""
    if not decay:
        return {}
    step = state.step.astype(jnp.float32)
    decay_now = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, p: decay_now * a + (1.0 - decay_now) * p, state.ema, params)


def eval_step(program: Program, state: TrainState, batch: Mapping[str, jax.Array]) -> dict:
    """Predictions of every task on the clean view, with the labels and the mask beside them."""
    images = augment.to_float(batch["image"], program.augment.image_size)
    variables = {"params": evaluation_params(state), "batch_stats": state.batch_stats}
    outputs = program.model.apply(variables, {"clean": View(images)}, train=False)
    predictions = {name: task.predict(outputs[name]) for name, task in program.tasks.items()}
    labels = {name: value for name, value in batch.items() if name != "image"}
    return {"predictions": predictions, "labels": labels}


def pretext_step(program: Program, state: TrainState, batch: Mapping[str, jax.Array]) -> dict:
    """What the pretexts see, aim at and make of unaugmented images: for pictures."""
    images = augment.to_float(batch["image"], program.augment.image_size)
    (key,) = streams(program.seed, 0, "pictures")
    keys = {name: jax.random.split(key, images.shape[0]) for name in program.pretexts}
    views, targets = make_views(program, images, keys)
    variables = {"params": evaluation_params(state), "batch_stats": state.batch_stats}
    outputs = program.model.apply(variables, views, train=False)
    outputs = {name: outputs[name] for name in program.pretexts}
    return {"images": images, "views": views, "targets": targets, "outputs": outputs}

"""The heart: one training step and one evaluation step, pure functions of (state, batch).

    batch ─augment─▶ clean view ─each pretext─▶ its views and targets
    views ─one encoder, heads, decoders─▶ outputs ─per-example losses─▶ one weighted total ─▶ state

The randomness of a step is derived from (seed, step) and from nothing else, and each loss is
divided by the number of examples of the whole batch that have it. So a run continues exactly, and
neither the number of devices nor of micro-batches changes what is computed. (But for batch
statistics and the draws of dropout and drop path, which belong to the micro-batch.)

A loss's leaves are what is reduced: `expression`, or `expression/clean` and `expression/puzzle`
where a task reads several views; `mae`, or `mae/rgb` and `mae/lbp`. The first part owns the leaf.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hmtl_jax import sharding, textures, weighting
from hmtl_jax.data import augment
from hmtl_jax.pretext.view import View
from hmtl_jax.state import TrainState, evaluation_variables


@dataclasses.dataclass(frozen=True)
class Program:
    """Everything a step needs that is not an array: built from a recipe by recipe.py.

    model: a Linen module that maps named views to outputs. weighting: what each loss weighs.
    networks: by pretext, the imported encoder whose features it compares. input: what the clean
    view shows: `rgb` or a texture. accumulate: micro-batches a step.
    ema: decay of the moving average, 0 for none. skip_nonfinite: leave the state as it was where
    the loss or a gradient is not finite.
    """

    model: Any
    tasks: Mapping[str, Any]
    pretexts: Mapping[str, Any]
    weighting: weighting.Fixed
    augment: augment.Augment
    tx: optax.GradientTransformation
    schedule: Callable
    networks: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    input: str = "rgb"
    seed: int = 0
    accumulate: int = 1
    ema: float = 0.0
    skip_nonfinite: bool = False

    @property
    def separate(self) -> bool:
        """Whether each leaf's gradient is taken on its own, one backward pass a leaf.

        Weights that depend on the losses of the whole batch are not known in a micro-batch.
        """
        late = self.weighting.from_losses or self._averages_views()
        return self.weighting.separate or (self.accumulate > 1 and late)

    def _averages_views(self) -> bool:
        """Whether a task reads several views, which one pretext alone may make."""
        views = jax.eval_shape(lambda: self._views_of_one(jax.random.key(0)))
        return any(
            sum(owner(view) in reads for view in views) > 1 for reads in self.model.reads.values()
        )

    def _views_of_one(self, rng: jax.Array) -> dict[str, View]:
        """Every view of one black image of the recipe's size."""
        size, keys = self.augment.image_size, dict.fromkeys(self.pretexts, rng[None])
        return make_views(self, jnp.zeros((1, size, size, 3)), keys)[0]

    def init_model(self, rng: jax.Array) -> Any:
        """Variables for one image of the recipe's size, every view included."""
        views = self._views_of_one(rng)
        return self.model.init({"params": rng, "dropout": rng}, views, train=False)

    def init_networks(self, rng: jax.Array) -> dict[str, Any]:
        """Variables of the imported networks, in the shapes that their files must fill."""
        image = jnp.zeros((1, self.augment.image_size, self.augment.image_size, 3))
        return {
            name: net.init(rng, image, None, train=False) for name, net in self.networks.items()
        }


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
    """Named views: `clean`, and each pretext's as NAME, or NAME/0, NAME/1 …; and their targets.

    keys: one key an example for each pretext whose views are wanted.
    """
    views = {"clean": View(textures.as_input(program.input, images))}
    targets = {}
    for name in keys:
        pairs = program.pretexts[name].views(keys[name], images)
        for index, (view, target) in enumerate(pairs):
            key = name if len(pairs) == 1 else f"{name}/{index}"
            views[key], targets[key] = view, target
    return views, targets


def owner(name: str) -> str:
    """The task or pretext that a view or a leaf belongs to."""
    return name.partition("/")[0]


def leaf_losses(program: Program, outputs: Mapping, chunk: Mapping, targets: Mapping, features):
    """Every leaf's per-example loss, float32 [B], from the outputs by view."""
    losses = {}
    for name, task in program.tasks.items():
        reads = [view for view in outputs if owner(view) in program.model.reads[name]]
        for view in reads:
            leaf = name if len(reads) == 1 else f"{name}/{view}"
            target, mask = chunk["targets"][name], chunk["masks"][name]
            losses[leaf] = task.loss(outputs[view][name], target, mask)
    for view, target in targets.items():
        pretext = program.pretexts[owner(view)]
        found = pretext.losses(outputs[view][owner(view)], target, features[owner(view)])
        for part, loss in found.items():
            losses[view if len(found) == 1 else f"{view}/{part}"] = loss
    return losses


def merged(program: Program, means: Mapping[str, jax.Array]) -> tuple[dict, dict]:
    """Leaf means → (losses by owner, ∂ loss of its owner / ∂ leaf).

    A pretext's leaves are summed; a task's views give their geometric mean, as in HMTL's code.
    """
    losses, slopes = {}, {}
    for name in (*program.tasks, *program.pretexts):
        leaves = {leaf: mean for leaf, mean in means.items() if owner(leaf) == name}
        if name in program.tasks and len(leaves) > 1:
            found = weighting.geometric_weights(leaves, dict.fromkeys(leaves, 1 / len(leaves)))
        else:
            found = {leaf: jnp.ones((), jnp.float32) for leaf in leaves}
        losses[name] = sum(found[leaf] * mean for leaf, mean in leaves.items())
        slopes |= found
    return losses, slopes


def train_step(program: Program, state: TrainState, batch: Mapping[str, jax.Array]):
    """One step of every loss together: (state, batch) → (state, metrics of float32 [])."""
    examples = sharding.over_batch(augmented(program, state.step, batch))
    dropout, mixing = streams(program.seed, state.step, "dropout", "weighting")
    counts = {name: jnp.sum(mask) for name, mask in examples["masks"].items()}
    present = {name: count > 0 for name, count in counts.items()}
    grads, means, batch_stats = accumulated(program, state, examples, counts, dropout)
    losses, slopes = merged(program, means)
    weights = program.weighting.weights(state.task_weights, losses, present, state.step)
    by_owner = None
    if program.separate:
        by_owner = {
            name: weighting.weighted_sum(
                {leaf: g for leaf, g in grads.items() if owner(leaf) == name}, slopes
            )
            for name in losses
        }
        grads = program.weighting.combine(by_owner, weights, mixing)
    total = sum(weights[name] * loss for name, loss in losses.items())
    total += program.weighting.offset(state.task_weights, state.step)
    updates, opt_state = program.tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(total) & jnp.isfinite(grad_norm)
    new = TrainState(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        ema=moving_average(program.ema, state, params, batch_stats),
        task_weights=program.weighting.update(
            state.task_weights, losses, present, by_owner, state.step
        ),
        frozen=state.frozen,
    )
    if program.skip_nonfinite:
        kept = dataclasses.replace(state, step=state.step + 1)
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, kept)
    metrics = {f"loss/{name}": loss for name, loss in (means | losses).items()}
    metrics |= {f"weight/{name}": weight for name, weight in weights.items()}
    metrics |= {
        "loss/total": total,
        "lr": jnp.asarray(program.schedule(state.step), jnp.float32),
        "grad_norm": grad_norm,
        "nonfinite": 1.0 - finite.astype(jnp.float32),
        "skipped_images": jnp.sum(~batch["valid"]).astype(jnp.float32),
    }
    return new, metrics


def accumulated(program: Program, state: TrainState, examples: Mapping, counts: Mapping, rng):
    """Gradients and leaf means of the batch, over micro-batches: (grads, means, batch_stats).

    counts: by owner, the examples of the whole batch that have the loss. grads: of the weighted
    total; where the program separates them, of each leaf by name.
    """
    of_chunk = functools.partial(chunk_gradients, program, state, counts)
    if program.accumulate == 1:
        return of_chunk(state.batch_stats, examples, rng)
    count = program.accumulate

    # Row r goes to micro-batch r % count, so that each device keeps the rows that it has.
    def split(x):
        return jnp.moveaxis(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 1, 0)

    def body(carry, chunk_and_rng):
        sums, batch_stats = carry
        chunk, rng = chunk_and_rng
        grads, means, batch_stats = of_chunk(batch_stats, sharding.over_batch(chunk), rng)
        return (jax.tree.map(jnp.add, sums, (grads, means)), batch_stats), None

    chunks = jax.tree.map(split, examples)
    first = jax.tree.map(lambda x: x[0], chunks)
    shapes = jax.eval_shape(of_chunk, state.batch_stats, first, rng)[:2]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    carry, _ = jax.lax.scan(
        body, (zeros, state.batch_stats), (chunks, jax.random.split(rng, count))
    )
    (grads, means), batch_stats = carry
    return grads, means, batch_stats


def chunk_gradients(program: Program, state: TrainState, counts, batch_stats, chunk, rng):
    """Gradients, leaf means and batch statistics of one micro-batch."""
    divisors = {name: jnp.maximum(count, 1.0) for name, count in counts.items()}
    present = {name: count > 0 for name, count in counts.items()}

    def leaf_means(params):
        keys = chunk["keys"]
        views, targets = make_views(program, chunk["images"], keys)
        read = {name for names in program.model.reads.values() for name in names}
        if "clean" not in read:
            del views["clean"]
        outputs, updated = program.model.apply(
            {"params": params, "batch_stats": batch_stats},
            views, train=True, rngs={"dropout": rng}, mutable=["batch_stats"],
        )  # fmt: skip
        features = {name: frozen_features(program, state, name) for name in program.pretexts}
        losses = leaf_losses(program, outputs, chunk, targets, features)
        means = {
            leaf: jnp.sum(loss_b * chunk["masks"][owner(leaf)]) / divisors[owner(leaf)]
            for leaf, loss_b in losses.items()
        }
        return means, updated.get("batch_stats", {})

    if program.separate:
        means, pull, batch_stats = jax.vjp(leaf_means, state.params, has_aux=True)
        grads = {
            leaf: pull({name: jnp.float32(name == leaf) for name in means})[0] for leaf in means
        }
        return grads, means, batch_stats

    def total(params):
        means, batch_stats = leaf_means(params)
        losses, slopes = jax.lax.stop_gradient(merged(program, means))
        weights = program.weighting.weights(state.task_weights, losses, present, state.step)
        weights = jax.lax.stop_gradient(weights)
        parts = (weights[owner(leaf)] * slopes[leaf] * mean for leaf, mean in means.items())
        return sum(parts), (means, batch_stats)

    grads, (means, batch_stats) = jax.grad(total, has_aux=True)(state.params)
    return grads, means, batch_stats


def frozen_features(program: Program, state: TrainState, name: str) -> Callable:
    """Images [B, H, W, 3] in [0, 1] → stages of the network in which the pretext `name` compares
    features: its imported one, or the encoder's moving average. Gradients flow into the images,
    not into the weights.
    """

    def features(images_bhwc: jax.Array) -> dict:
        if name in program.networks:
            variables, images = state.frozen[name], augment.normalise(images_bhwc)
            return program.networks[name].apply(variables, images, None, train=False)
        variables = jax.lax.stop_gradient(evaluation_variables(state))
        return program.model.apply(variables, images_bhwc, method="features")

    return features


def moving_average(decay: float, state: TrainState, params: Any, batch_stats: Any) -> Any:
    """The average of weights and statistics; its decay warms up as (1 + t) / (10 + t)."""
    if not decay:
        return {}
    step = state.step.astype(jnp.float32)
    decay_now = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    new = {"params": params, "batch_stats": batch_stats}
    return jax.tree.map(lambda a, p: decay_now * a + (1.0 - decay_now) * p, state.ema, new)


def clean_outputs(program: Program, state: TrainState, images: jax.Array) -> dict:
    """Every head's output for unaugmented images, by task: what is evaluated and deployed."""
    keys = {}
    if program.model.fuse:
        # The view that is fused is part of the deployed model: the same draw for every image.
        (key,) = streams(program.seed, 0, "fusion")
        keys[program.model.fuse] = jnp.broadcast_to(key, (images.shape[0],))
    views, _ = make_views(program, images, keys)
    variables = evaluation_variables(state)
    return program.model.apply(variables, views, train=False, decode=False)["clean"]


def eval_step(program: Program, state: TrainState, batch: Mapping[str, jax.Array]) -> dict:
    """Predictions of every task on the clean view, with the labels and the mask beside them."""
    images = augment.to_float(batch["image"], program.augment.image_size)
    outputs = clean_outputs(program, state, images) if program.tasks else {}
    predictions = {name: task.predict(outputs[name]) for name, task in program.tasks.items()}
    labels = {name: value for name, value in batch.items() if name != "image"}
    return {"predictions": predictions, "labels": labels}


def encode_step(program: Program, state: TrainState, batch: Mapping[str, jax.Array]) -> dict:
    """The frozen feature of each image, float32 [B, D], in the place of predictions: for probes."""
    images = augment.to_float(batch["image"], program.augment.image_size)
    images = textures.as_input(program.input, images)
    stages = program.model.apply(evaluation_variables(state), images, method="features")
    labels = {name: value for name, value in batch.items() if name != "image"}
    return {"predictions": {"pooled": stages["pooled"]}, "labels": labels}


def pretext_step(program: Program, state: TrainState, batch: Mapping[str, jax.Array]) -> dict:
    """What the pretexts see, aim at and make of unaugmented images, by view: for pictures."""
    images = augment.to_float(batch["image"], program.augment.image_size)
    (key,) = streams(program.seed, 0, "pictures")
    keys = {name: jax.random.split(key, images.shape[0]) for name in program.pretexts}
    views, targets = make_views(program, images, keys)
    found = program.model.apply(evaluation_variables(state), views, train=False)
    outputs = {view: found[view][owner(view)] for view in targets}
    views = {view: views[view] for view in targets}
    return {"images": images, "views": views, "targets": targets, "outputs": outputs}

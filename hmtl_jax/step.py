"""The heart: one training step, a pure function of (state, batch).

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
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hmtl_jax import images, optim, sharding, weighting
from hmtl_jax.data import augment, order
from hmtl_jax.models import frozen
from hmtl_jax.program import Program, answers, make_views, skills, streams
from hmtl_jax.state import TrainState, evaluation_variables
from hmtl_jax.view import owner


@dataclasses.dataclass(frozen=True)
class Training:
    """What training adds to a program that is no array.

    weighting: what each loss weighs. tx: the optimizer, and schedule: its learning rate by update.
    accumulate: micro-batches a step. ema: decay of the moving average, 0 for none.
    freeze: regular expression of the parameters that stay as they are, and with them the running
    statistics beside them; "" for none. skip_nonfinite: leave the state as it was where the loss
    or a gradient is not finite. layout: which rows of a batch have labels, where a share of it is
    set aside for rows without.
    """

    program: Program
    weighting: weighting.Fixed
    augment: augment.Augment
    tx: optax.GradientTransformation
    schedule: Callable
    accumulate: int = 1
    ema: float = 0.0
    freeze: str = ""
    skip_nonfinite: bool = False
    layout: order.Layout = order.WHOLE

    def layout_of(self, rows: int) -> order.Layout:
        """The layout of a micro-batch of so many rows, whole where they make no whole units."""
        return order.WHOLE if rows % self.layout.unit else self.layout

    @property
    def separate(self) -> bool:
        """Whether each leaf's gradient is taken on its own, one backward pass a leaf.

        Weights that depend on the losses of the whole batch are not known in a micro-batch.
        """
        late = self.weighting.from_losses or self._averages_views()
        return self.weighting.separate or (self.accumulate > 1 and late)

    def _averages_views(self) -> bool:
        """Whether a task reads several views, which one pretext alone may make."""
        views = jax.eval_shape(lambda: self.program.views_of_one(jax.random.key(0)))
        return any(
            sum(owner(view) in reads for view in views) > 1
            for reads in self.program.model.reads.values()
        )


@jax.named_scope("augment")
def augmented(
    training: Training, seed: jax.Array, step: jax.Array, batch: Mapping[str, jax.Array]
) -> dict:
    """The clean view with its targets, masks and keys: a tree whose leaves all lead with B."""
    program, cfg = training.program, training.augment
    crop, mix = streams(seed, step, "augment", "mix")
    images, flipped = augment.augment(crop, batch["image"], cfg)
    valid = batch["valid"].astype(jnp.float32)
    labelled = valid * batch["labelled"].astype(jnp.float32) if "labelled" in batch else valid
    targets, masks = {}, dict.fromkeys(program.pretexts, valid)
    for name, task in program.tasks.items():
        target, mask = task.target(batch)
        targets[name], masks[name] = task.flip(target, flipped), mask * labelled
    if cfg.mixup or cfg.cutmix:
        images, partner, share = augment.mix(mix, images, cfg, training.layout)
        targets = {name: augment.mix_target(t, partner, share) for name, t in targets.items()}
        # A mixed example has a label, or an image, only if both of its sources have one.
        masks = {n: jnp.where(share < 1.0, m * m[partner], m) for n, m in masks.items()}
    views = streams(seed, step, *(f"view/{name}" for name in program.pretexts))
    keys = {
        name: jax.random.split(key, images.shape[0])
        for name, key in zip(program.pretexts, views, strict=True)
    }
    return {"images": images, "targets": targets, "masks": masks, "keys": keys}


@jax.named_scope("losses")
def leaf_losses(
    program: Program,
    outputs: Mapping,
    said: Mapping,
    chunk: Mapping,
    clean: order.Layout,
    targets: Mapping,
    features,
):
    """Every leaf's per-example loss, 0 where it does not count, float32 [B].

    outputs: by view. said: what of them answers each pretext's view, as program.answers has it.
    clean: whose labelled rows the clean view has; of the other views there are all.
    """
    losses = {}
    for name, task in program.tasks.items():
        reads = [view for view in outputs if owner(view) in program.model.reads[name]]
        for view in reads:
            leaf = name if len(reads) == 1 else f"{name}/{view}"
            target, mask = chunk["targets"][name], chunk["masks"][name]
            if view == "clean":
                target, mask = clean.known(target), clean.known(mask)
            losses[leaf] = task.loss(outputs[view][name], target, mask) * mask
    for view, target in targets.items():
        pretext, mask = program.pretexts[owner(view)], chunk["masks"][owner(view)]
        found = pretext.losses(said[view], target, features[owner(view)])
        for part, loss in found.items():
            losses[view if len(found) == 1 else f"{view}/{part}"] = loss * mask
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


def train_step(training: Training, state: TrainState, batch: Mapping[str, jax.Array]):
    """One step of every loss together: (state, batch) → (state, metrics of float32 []).

    Where the batch has `pictures`, uint8 [N, S, S, 3], its `image` is the row of each in them.
    """
    program, weigh = training.program, training.weighting
    if "pictures" in batch:
        batch = {**batch, "image": sharding.taken(batch["pictures"], batch["image"])}
    examples = sharding.over_batch(augmented(training, state.seed, state.step, batch))
    dropout, mixing = streams(state.seed, state.step, "dropout", "weighting")
    counts = {name: jnp.sum(mask) for name, mask in examples["masks"].items()}
    present = {name: count > 0 for name, count in counts.items()}

    def weighted(means):
        losses, slopes = merged(program, means)
        return losses, slopes, weigh.weights(state.task_weights, losses, present, state.step)

    def slopes_of(means):
        """∂ total / ∂ leaf: the weights are constants of the gradient, whatever they came from."""
        _, slopes, weights = weighted(means)
        return {leaf: weights[owner(leaf)] * slope for leaf, slope in slopes.items()}

    grads, means, errors, batch_stats = accumulated(
        training, state, examples, counts, slopes_of, dropout
    )
    # Once more, now from the means of the whole batch: a micro-batch knows its own alone.
    losses, slopes, weights = weighted(means)

    # Gradients by leaf become gradients by loss, which the weighting may project or rescale.
    by_owner = None
    if training.separate:
        by_owner = {
            name: weighting.weighted_sum(
                {leaf: g for leaf, g in grads.items() if owner(leaf) == name}, slopes
            )
            for name in losses
        }
        grads = weigh.combine(by_owner, weights, mixing)

    total = sum(weights[name] * loss for name, loss in losses.items())
    total += weigh.offset(state.task_weights, state.step)
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(total) & jnp.isfinite(grad_norm)

    with jax.named_scope("optimizer"):
        updates, opt_state = training.tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
    carried = weigh.update(state.task_weights, losses, present, by_owner, state.step)
    new = TrainState(
        seed=state.seed,
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        ema=evaluated(training.ema, state, params, batch_stats, opt_state),
        task_weights=carried,
        frozen=state.frozen,
    )
    if training.skip_nonfinite:
        # The step counts, so that the next one draws anew; the optimizer's own count does not.
        kept = dataclasses.replace(state, step=state.step + 1)
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, kept)

    metrics = {f"loss/{name}": loss for name, loss in (means | losses).items()}
    metrics |= {f"count/{name}": count for name, count in counts.items()}
    metrics |= {f"weight/{name}": weight for name, weight in weights.items()}
    metrics |= {f"skill/{leaf}": 1.0 - own / constant for leaf, (own, constant) in errors.items()}
    applied = optim.updates_applied(state.opt_state)
    metrics |= {
        "loss/total": total,
        "lr": jnp.asarray(training.schedule(applied), jnp.float32),
        "grad_norm": grad_norm,
        "nonfinite": 1.0 - finite.astype(jnp.float32),
        "skipped_images": jnp.sum(~batch["valid"]).astype(jnp.float32),
    }
    return new, metrics


def accumulated(training: Training, state: TrainState, examples, counts, slopes_of, rng):
    """Gradients, leaf means and errors of the batch, over micro-batches, and batch statistics.

    counts: by owner, the examples of the whole batch that have the loss. slopes_of: leaf means →
    ∂ total / ∂ leaf. grads: of the total; where they are taken separately, of each leaf by name.
    errors: float32 [2] of each pretext's leaf, summed, as program.skills has them.
    """
    of_chunk = functools.partial(chunk_gradients, training, state, counts, slopes_of)
    if training.accumulate == 1:
        return of_chunk(state.batch_stats, examples, rng)
    count = training.accumulate

    # Unit u goes to micro-batch u % count, so that each device keeps the rows that it has.
    def split(x):
        rows, rest = x.shape[0] // count, x.shape[1:]
        unit = training.layout_of(rows).unit
        parts = jnp.moveaxis(x.reshape(-1, count, unit, *rest), 1, 0)
        return parts.reshape(count, rows, *rest)

    def body(carry, chunk_and_rng):
        sums, batch_stats = carry
        chunk, rng = chunk_and_rng
        *found, batch_stats = of_chunk(batch_stats, sharding.over_batch(chunk), rng)
        return (jax.tree.map(jnp.add, sums, tuple(found)), batch_stats), None

    chunks = jax.tree.map(split, examples)
    first = jax.tree.map(lambda x: x[0], chunks)
    *shapes, _ = jax.eval_shape(of_chunk, state.batch_stats, first, rng)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tuple(shapes))
    carry, _ = jax.lax.scan(
        body, (zeros, state.batch_stats), (chunks, jax.random.split(rng, count))
    )
    (grads, means, errors), batch_stats = carry
    return grads, means, errors, batch_stats


def chunk_gradients(training: Training, state, counts, slopes_of, batch_stats, chunk, rng):
    """Gradients, leaf means, errors and batch statistics of one micro-batch.

    Pulled back once, with the slopes of the total, or once a leaf where they are wanted separately.
    """
    program = training.program
    rows = chunk["images"].shape[0]
    clean = training.layout_of(rows) if program.tasks_alone_read_clean else order.WHOLE
    divisors = {name: jnp.maximum(count, 1.0) for name, count in counts.items()}

    def leaf_means(params):
        if training.freeze:
            # No gradient flows to what stays, so that nobody computes it, nor counts it in a norm.
            params = optim.stopped(params, training.freeze)
        views, targets = make_views(program, chunk["images"], chunk["keys"])
        if not program.needs_clean:
            del views["clean"]
        else:
            views["clean"] = jax.tree.map(clean.known, views["clean"])
        with frozen.running_statistics(training.freeze):
            outputs, updated = program.model.apply(
                {"params": params, "batch_stats": batch_stats},
                views, train=True, rngs={"dropout": rng}, mutable=["batch_stats"],
            )  # fmt: skip
        features = {name: frozen_features(program, state, name) for name in program.pretexts}
        said = answers(program, outputs, targets)
        losses = leaf_losses(program, outputs, said, chunk, clean, targets, features)
        means = {leaf: jnp.sum(loss_b) / divisors[owner(leaf)] for leaf, loss_b in losses.items()}
        errors = skills(program, said, targets, chunk["masks"])
        errors = {leaf: jnp.sum(errors_b2, axis=0) for leaf, errors_b2 in errors.items()}
        return means, (errors, updated.get("batch_stats", {}))

    means, pull, (errors, batch_stats) = jax.vjp(leaf_means, state.params, has_aux=True)
    if training.separate:
        grads = {
            leaf: pull({name: jnp.float32(name == leaf) for name in means})[0] for leaf in means
        }
    else:
        (grads,) = pull(slopes_of(means))
    return grads, means, errors, batch_stats


def frozen_features(program: Program, state: TrainState, name: str) -> Callable:
    """Images [B, H, W, 3] in [0, 1] → stages of the network in which the pretext `name` compares
    features: its imported one, or the encoder's moving average. Gradients flow into the images,
    not into the weights.
    """

    def features(images_bhwc: jax.Array) -> dict:
        if name in program.networks:
            variables, normalised = state.frozen[name], images.normalise(images_bhwc)
            return program.networks[name].apply(variables, normalised, None, train=False)
        variables = jax.lax.stop_gradient(evaluation_variables(state))
        return program.model.apply(variables, images_bhwc, method="features")

    return features


def evaluated(decay: float, state: TrainState, params: Any, batch_stats: Any, opt_state: Any):
    """What is evaluated in the place of the weights, where the recipe keeps such a thing.

    The average of weights and statistics, whose decay warms up as (1 + t) / (10 + t); or the
    optimizer's own.
    """
    if not state.ema:
        return {}
    if not decay:
        return {"params": optim.averaged_params(opt_state, params), "batch_stats": batch_stats}
    step = state.step.astype(jnp.float32)
    decay_now = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    new = {"params": params, "batch_stats": batch_stats}
    return jax.tree.map(lambda a, p: decay_now * a + (1.0 - decay_now) * p, state.ema, new)

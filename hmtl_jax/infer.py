"""Forward passes without training, pure functions of (program, variables, batch).

variables: {"params": …, "batch_stats": …} as Linen takes them; a step reads only those of the
modules that it runs. A batch holds `image` uint8 [B, H, W, 3] and whatever labels there are.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from hmtl_jax import textures
from hmtl_jax.data import augment
from hmtl_jax.errors import UserError, lookup
from hmtl_jax.program import Program, answers, make_views, skills, streams


def clean_outputs(program: Program, variables: Mapping, images: jax.Array) -> dict:
    """Every head's output for unaugmented images, by task: what is evaluated and deployed."""
    if program.model.fuse:
        views = jax.vmap(lambda image: _with_fused(program, image))(images)
    else:
        views, _ = make_views(program, images, {})
    return program.model.apply(variables, views, train=False, decode=False)["clean"]


def _with_fused(program: Program, image: jax.Array) -> dict:
    """The clean view of one image, and the one that is fused: part of the deployed model.

    The same draw for every image, so that it is drawn once.
    """
    (key,) = streams(0, 0, "fusion")
    views, _ = make_views(program, image[None], {program.model.fuse: key[None]})
    return jax.tree.map(lambda array: array[0], views)


def predictions_of(program: Program, variables: Mapping, images: jax.Array) -> dict:
    """Every task's prediction for unaugmented images, in the form that it is measured in."""
    outputs = clean_outputs(program, variables, images)
    return {name: task.predict(outputs[name]) for name, task in program.tasks.items()}


def eval_step(program: Program, variables: Mapping, batch: Mapping[str, jax.Array]) -> dict:
    """Predictions of every task on the clean view, with the labels and the mask beside them.

    With `program.mirror` the mean of those for the picture and for its mirror image.
    """
    images = augment.to_float(batch["image"], program.image_size)
    predictions = predictions_of(program, variables, images) if program.tasks else {}
    if program.tasks and program.mirror:
        mirrored = predictions_of(program, variables, images[:, :, ::-1])
        for name, task in program.tasks.items():
            back = getattr(task, "mirrored", lambda predicted: predicted)(mirrored[name])
            predictions[name] = (predictions[name] + back) / 2
    labels = {name: value for name, value in batch.items() if name != "image"}
    return {"predictions": predictions, "labels": labels}


def measure_step(program: Program, variables: Mapping, batch: Mapping[str, jax.Array]) -> dict:
    """eval_step, and under `errors` what program.skills tells of each pretext, by leaf [B, 2]."""
    images = augment.to_float(batch["image"], program.image_size)
    _, targets, outputs = pretext_outputs(program, variables, images, batch["index"])
    masks = dict.fromkeys(program.pretexts, batch["valid"].astype(jnp.float32))
    errors = skills(program, outputs, targets, masks)
    return eval_step(program, variables, batch) | {"errors": errors}


def pretext_outputs(program: Program, variables: Mapping, images: jax.Array, index: jax.Array):
    """Views, targets and outputs of every pretext, by view; an image draws by its index."""
    (key,) = streams(0, 0, "pictures")
    keys_b = jax.vmap(lambda number: jax.random.fold_in(key, number))(jnp.maximum(index, 0))
    views, targets = make_views(program, images, dict.fromkeys(program.pretexts, keys_b))
    found = program.model.apply(variables, views, train=False)
    return views, targets, answers(program, found, targets)


def encode_step(
    program: Program, variables: Mapping, batch: Mapping[str, jax.Array],
    stage: str = "pooled", pool: str = "mean",
) -> dict:  # fmt: skip
    """The frozen feature of each image, float32 [B, D], in the place of predictions: for probes.

    stage: of the encoder, the one that heads read, or another; UserError for one that it lacks.
    pool: of a stage with places, their mean, or the cls token of a ViT's.
    """
    images = augment.to_float(batch["image"], program.image_size)
    images = textures.as_input(program.input, images)
    stages = program.model.apply(variables, images, method="features")
    labels = {name: value for name, value in batch.items() if name != "image"}
    return {"predictions": {"pooled": _of_stage(stages, stage, pool)}, "labels": labels}


def _of_stage(stages: Mapping[str, jax.Array], stage: str, pool: str) -> jax.Array:
    found = lookup(stages, stage, "probe.stage").astype(jnp.float32)
    if pool == "cls" and found.ndim != 3 and stage != "pooled":
        raise UserError(f"probe.stage {stage!r} has no cls token; set probe.pool to 'mean'.")
    if found.ndim == 3:  # tokens, the cls token first
        return found[:, 0] if pool == "cls" else found[:, 1:].mean(axis=1)
    return found.mean(axis=(1, 2)) if found.ndim == 4 else found


def pretext_step(program: Program, variables: Mapping, batch: Mapping[str, jax.Array]) -> dict:
    """What the pretexts see, aim at and make of unaugmented images, by view: for pictures."""
    images = augment.to_float(batch["image"], program.image_size)
    views, targets, outputs = pretext_outputs(program, variables, images, batch["index"])
    views = {view: views[view] for view in targets}
    return {"images": images, "views": views, "targets": targets, "outputs": outputs}


def attention_step(program: Program, variables: Mapping, batch: Mapping[str, jax.Array]) -> dict:
    """Where a model looks, by task: float32 [B, h, w] in [0, 1], 1 at the strongest place.

    Of a ViT attention rollout (Abnar and Zuidema 2020, arXiv 2005.00928: the product over blocks of
    half the heads' mean and half the identity), from what is pooled to the patches; the same for
    all tasks, under the name "rollout". Of a convolutional encoder Grad-CAM (Selvaraju 2017, arXiv
    1610.02391) on its last map, for the largest output of each task. A fused model raises
    UserError.
    """
    if program.model.fuse:
        raise UserError("A model that fuses views has no single place where it looks.")
    images = textures.as_input(program.input, augment.to_float(batch["image"], program.image_size))
    stages, seen = program.model.apply(
        variables, images, method="features", mutable=["intermediates"]
    )
    if "tokens" in stages:
        grid = stages["patches"].shape[1:3]
        return {"rollout": _rollout(seen["intermediates"], program.model.encoder.pool, grid)}
    return {name: _grad_cam(program, variables, stages, name) for name in program.tasks}


def _rollout(seen: Mapping, pool: str, grid: tuple[int, int]) -> jax.Array:
    weights = jax.tree.leaves(seen)  # by the blocks' names
    if weights[0].ndim == 5:  # scanned blocks hold one array of all
        weights = list(weights[0])
    count = weights[0].shape[-1]
    passed = jnp.eye(count)[None]
    for weights_bhnm in weights:
        mixed = 0.5 * weights_bhnm.astype(jnp.float32).mean(axis=1) + 0.5 * jnp.eye(count)[None]
        passed = jnp.einsum("bnm,bmk->bnk", mixed, passed)
    rows = passed[:, 0] if pool == "cls" else passed[:, 1:].mean(axis=1)
    return _to_one(rows[:, 1:].reshape(-1, *grid))


def _grad_cam(program: Program, variables: Mapping, stages: dict, task: str) -> jax.Array:
    patches_bhwc = stages["patches"].astype(jnp.float32)

    def strongest(patches_bhwc):
        answer = program.model.apply(
            variables, task, stages | {"pooled": patches_bhwc.mean(axis=(1, 2))}, method="answer"
        )
        return answer.max(axis=-1).sum()  # rows of a batch don't mix

    slope = jax.grad(strongest)(patches_bhwc).mean(axis=(1, 2))
    return _to_one(jax.nn.relu(jnp.einsum("bhwc,bc->bhw", patches_bhwc, slope)))


def _to_one(maps_bhw: jax.Array) -> jax.Array:
    return maps_bhw / jnp.maximum(maps_bhw.max(axis=(1, 2), keepdims=True), 1e-12)

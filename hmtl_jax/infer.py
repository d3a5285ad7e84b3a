"""Forward passes without training, pure functions of (program, variables, batch).

variables: {"params": …, "batch_stats": …} as Linen takes them; a step reads only those of the
modules that it runs. A batch holds `image` uint8 [B, H, W, 3] and whatever labels there are.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from hmtl_jax import textures
from hmtl_jax.data import augment
from hmtl_jax.program import Program, answers, make_views, skills, streams


def clean_outputs(program: Program, variables: Mapping, images: jax.Array) -> dict:
    """Every head's output for unaugmented images, by task: what is evaluated and deployed."""
    keys = {}
    if program.model.fuse:
        # The view that is fused is part of the deployed model: the same draw for every image.
        (key,) = streams(program.seed, 0, "fusion")
        keys[program.model.fuse] = jnp.broadcast_to(key, (images.shape[0],))
    views, _ = make_views(program, images, keys)
    return program.model.apply(variables, views, train=False, decode=False)["clean"]


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
    (key,) = streams(program.seed, 0, "pictures")
    keys_b = jax.vmap(lambda number: jax.random.fold_in(key, number))(jnp.maximum(index, 0))
    views, targets = make_views(program, images, dict.fromkeys(program.pretexts, keys_b))
    found = program.model.apply(variables, views, train=False)
    return views, targets, answers(program, found, targets)


def encode_step(program: Program, variables: Mapping, batch: Mapping[str, jax.Array]) -> dict:
    """The frozen feature of each image, float32 [B, D], in the place of predictions: for probes."""
    images = augment.to_float(batch["image"], program.image_size)
    images = textures.as_input(program.input, images)
    stages = program.model.apply(variables, images, method="features")
    labels = {name: value for name, value in batch.items() if name != "image"}
    return {"predictions": {"pooled": stages["pooled"]}, "labels": labels}


def pretext_step(program: Program, variables: Mapping, batch: Mapping[str, jax.Array]) -> dict:
    """What the pretexts see, aim at and make of unaugmented images, by view: for pictures."""
    images = augment.to_float(batch["image"], program.image_size)
    views, targets, outputs = pretext_outputs(program, variables, images, batch["index"])
    views = {view: views[view] for view in targets}
    return {"images": images, "views": views, "targets": targets, "outputs": outputs}

"""The pictures that a run leaves: reconstructions, curves, confusion matrices."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hmtl_jax import cluster, recipe, sharding, step
from hmtl_jax.data import augment, pipeline
from hmtl_jax.metrics import writer
from hmtl_jax.patches import patchify, unpatchify

ROWS = 8


def draw(run: Any, current: Any, found: Mapping[str, Mapping]) -> list[str]:
    """Draws all that the recipe gives reason for into the workdir; returns the files' names."""
    from hmtl_jax import figures

    grids = reconstructions(run, current) if "mae" in kinds(run.config) else {}
    if not cluster.lead():
        return []
    folder, drawn = run.workdir / "pictures", []
    folder.mkdir(exist_ok=True)
    for name, columns in grids.items():
        figures.reconstruction_grid(folder / f"{name}.png", columns)
        drawn.append(f"pictures/{name}.png")
    if (run.workdir / writer.FILE_NAME).exists():
        figures.training_curves(folder / "curves.png", run.workdir / writer.FILE_NAME)
        drawn.append("pictures/curves.png")
    for name, metrics in found.items():
        if "confusion" in metrics:
            path = folder / f"{name}_confusion.png"
            figures.confusion_matrix(path, metrics["confusion"], run.program.tasks[name].classes)
            drawn.append(f"pictures/{name}_confusion.png")
    return drawn


def kinds(config: Any) -> set[str]:
    """The kinds of the recipe's pretexts."""
    return {part.kind for part in config.pretexts.values()}


def reconstructions(run: Any, current: Any) -> dict[str, dict[str, np.ndarray]]:
    """For each masked auto-encoder of the run, the columns of its picture."""
    source = run.source
    count = max(ROWS, run.mesh.size) // run.mesh.size * run.mesh.size
    batches = pipeline.eval_batches(source, **run.loading(count))
    batch = sharding.to_devices(next(iter(batches)), run.mesh)
    pretext_step = recipe.jitted(
        step.pretext_step, run.program, out_shardings=sharding.replicated(run.mesh)
    )
    seen = jax.tree.map(lambda x: x[:ROWS], jax.device_get(pretext_step(current, batch)))
    return {
        name: mae_columns(pretext, seen["images"], seen["targets"][name], seen["outputs"][name])
        for name, pretext in run.program.pretexts.items()
        if run.config.pretexts[name].kind == "mae"
    }


def mae_columns(pretext: Any, images: np.ndarray, target: Mapping, outputs: Mapping) -> dict:
    """Input, masked input, and each target beside its reconstruction, all in [0, 1].

    A reconstruction shows the prediction where patches were masked, and the truth elsewhere.
    """
    grid = pretext.image_size // pretext.patch
    hidden = target["hidden"][:, :, None]
    masked = unpatchify(
        patchify(jnp.asarray(images), pretext.patch) * (1 - hidden), pretext.patch, grid
    )
    columns = {"input": images, "masked": np.asarray(masked)}
    for name in pretext.targets:
        rebuilt = hidden * outputs[name] + (1 - hidden) * target[name]
        for title, patches in ((name, target[name]), (f"{name} rebuilt", rebuilt)):
            maps = unpatchify(jnp.asarray(patches), pretext.patch, grid)
            if name == "rgb" and not pretext.norm_patch:
                maps = augment.denormalise(maps)
            columns[title] = np.clip(np.asarray(maps), 0.0, 1.0)
    return columns

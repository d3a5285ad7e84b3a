"""The pictures that a run leaves: reconstructions, curves, confusion matrices."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from hmtl_jax import build, cluster, infer, sharding, textures, trained
from hmtl_jax import images as image_ops
from hmtl_jax.data import pipeline, records
from hmtl_jax.metrics import writer
from hmtl_jax.patches import unpatchify
from hmtl_jax.pretext import inpaint, mae, puzzle
from hmtl_jax.view import View

ROWS = 8


def draw(
    run: trained.Trained, config: ConfigDict, mesh: Mesh, found: Mapping[str, Any]
) -> list[str]:
    """Draws all that the run gives reason for into its workdir; returns the files' names.

    The faces are those of a split that was not trained on, where `config.data` names one.
    """
    from hmtl_jax import figures

    grids = pretext_columns(run, config, mesh) if kinds(run.config) & set(PICTURES) else {}
    if not cluster.lead():
        return []
    folder, drawn = run.run / "pictures", []
    folder.mkdir(exist_ok=True)
    for name, columns in grids.items():
        file = name.replace("/", "_") + ".png"
        figures.reconstruction_grid(folder / file, columns)
        drawn.append(f"pictures/{file}")
    if (run.run / writer.FILE_NAME).exists():
        figures.training_curves(folder / "curves.png", run.run / writer.FILE_NAME)
        drawn.append("pictures/curves.png")
    for name, task in run.program.tasks.items():
        if "confusion" in found.get(name, {}):
            path = folder / f"{name}_confusion.png"
            figures.confusion_matrix(path, found[name]["confusion"], task.classes)
            drawn.append(f"pictures/{name}_confusion.png")
    return drawn


def kinds(config: ConfigDict) -> set[str]:
    """The kinds of the recipe's pretexts."""
    return {part.kind for part in config.pretexts.values()}


def pretext_columns(
    run: trained.Trained, config: ConfigDict, mesh: Mesh
) -> dict[str, dict[str, np.ndarray]]:
    """The columns of a picture of each pretext, NAME, or of each of its views, NAME/0 and so on."""
    data, program = config.data, run.program
    split = data.test or data.validation or data.train
    source = records.open_split(data.data_dir, data.name, split)
    batches = pipeline.eval_batches(
        source, **build.loading(config, [], sharding.divisible(ROWS, mesh))
    )
    batch = sharding.to_devices(next(iter(batches)), mesh)
    pretext_step = build.jitted(
        infer.pretext_step, program, out_shardings=sharding.replicated(mesh)
    )
    seen = jax.device_get(pretext_step(run.variables, batch))
    seen = jax.tree.map(lambda x: x[:ROWS], seen)
    grids = {}
    for view, output in seen["outputs"].items():
        name = view.partition("/")[0]
        columns_of = PICTURES.get(run.config.pretexts[name].kind)
        if columns_of is not None:
            made = (seen["images"], seen["views"][view], seen["targets"][view], output)
            grids[view] = columns_of(program.pretexts[name], *made)
    return grids


def mae_columns(
    pretext: mae.Mae, images: np.ndarray, view: View, target: Mapping, output: Mapping
) -> dict[str, np.ndarray]:
    """Input, what is seen of it, and each target beside its reconstruction, all in [0, 1].

    A reconstruction shows the prediction where patches were masked, and the truth elsewhere.
    """
    hidden = target["hidden"]
    masked = view.images * (1 - mae.hidden_map(hidden, pretext.patch, pretext.grid))
    columns = {"input": images, "masked": np.asarray(masked)}
    for name in pretext.targets:
        truth, predicted = target[name], output[name]
        if pretext.classified(name):
            predicted = predicted.reshape(*truth.shape, -1).argmax(-1)
        rebuilt = np.where(hidden[:, :, None] > 0, predicted, truth)
        columns[name] = _maps(pretext, name, truth)
        columns[f"{name} rebuilt"] = _maps(pretext, name, rebuilt)
    return columns


def _maps(pretext: mae.Mae, name: str, patches_bnp: np.ndarray) -> np.ndarray:
    """Patches of a target as what can be drawn: [B, H, W, 1 or 3] in [0, 1]."""
    if pretext.classified(name):
        codes = np.asarray(textures.TEXTURES[name].values, np.float32)
        patches_bnp = codes[patches_bnp] / codes[-1]
    maps = unpatchify(jnp.asarray(patches_bnp), pretext.patch, pretext.grid)
    if name == "rgb" and not pretext.norm_patch:
        maps = image_ops.denormalise(maps)
    if maps.shape[-1] not in (1, 3):
        maps = jnp.mean(maps, axis=-1, keepdims=True)
    return np.clip(np.asarray(maps), 0.0, 1.0)


def puzzle_columns(
    pretext: puzzle.Puzzle, images: np.ndarray, view: View, target: Mapping, output: Mapping
) -> dict[str, np.ndarray]:
    """Input, what the encoder sees, and that put back by the likeliest answer of each head.

    The last title tells which share of all tiles shown is where, and as, it was.
    """
    tiles = pretext.tiles
    answers = {name: np.argmax(logits, axis=-1) for name, logits in output.items()}
    right = np.all([answers[name] == truth for name, truth in target.items()], axis=0)
    back = puzzle.resized(jnp.asarray(view.images), puzzle.whole_size(view.images.shape[1], tiles))
    if "rotation" in answers:
        back = puzzle.turn(back, jnp.asarray(-answers["rotation"]), tiles)
    if "puzzle" in answers:
        back = puzzle.reassemble(back, jnp.asarray(answers["puzzle"]), tiles)
    title = f"put back, {right.mean():.0%} right"
    return {"input": images, pretext.kind: np.asarray(view.images), title: np.asarray(back)}


def inpaint_columns(
    pretext: inpaint.Inpaint, images: np.ndarray, view: View, target: Mapping, output: np.ndarray
) -> dict[str, np.ndarray]:
    """Input, input with holes, and the holes filled."""
    del pretext
    filled = np.clip(np.asarray(inpaint.filled(jnp.asarray(output), target)), 0.0, 1.0)
    return {"input": images, "holes": np.asarray(view.images), "filled": filled}


# Kind of pretext -> (pretext, images, view, target, output), all NumPy, to titled columns.
PICTURES: dict[str, Callable[..., dict[str, np.ndarray]]] = {
    "inpaint": inpaint_columns,
    "mae": mae_columns,
    "puzzle": puzzle_columns,
    "rotation": puzzle_columns,
}

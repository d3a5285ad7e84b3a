"""The pictures that a run leaves: reconstructions, attention, curves, confusion matrices."""

import pathlib
from collections.abc import Mapping
from typing import Any

import cv2
import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from hmtl_jax import build, cluster, infer, sharding, trained
from hmtl_jax.data import augment, pipeline, sources
from hmtl_jax.metrics import writer
from hmtl_jax.program import Program
from hmtl_jax.view import owner

ROWS = 8


def draw(
    run: trained.Trained, config: ConfigDict, mesh: Mesh, found: Mapping[str, Any]
) -> list[str]:
    """Draws all that the run gives reason for into its workdir; returns the files' names.

    The faces are those of a split that was not trained on, where `config.data` names one.
    """
    from hmtl_jax import figures  # half a second to import

    faces = Faces(run.program, config, mesh)
    grids = faces.columns(run.variables) | faces.attention(run.variables)
    if not cluster.lead():
        return []
    folder, drawn = run.run / "pictures", []
    folder.mkdir(exist_ok=True)
    for name, columns in grids.items():
        drawn.append(f"pictures/{_write(folder, name, columns)}")
    if (run.run / writer.FILE_NAME).exists():
        figures.training_curves(folder / "curves.png", run.run / writer.FILE_NAME)
        drawn.append("pictures/curves.png")
    for name, task in run.program.tasks.items():
        if "confusion" in found.get(name, {}):
            path = folder / f"{name}_confusion.png"
            figures.confusion_matrix(path, found[name]["confusion"], task.classes)
            drawn.append(f"pictures/{name}_confusion.png")
    return drawn


def progress(
    folder: pathlib.Path, at: int, columns: Mapping[str, Any], log: writer.Writer | None
) -> None:
    """Draws what `Faces.columns` told at a step into a workdir, and into its log."""
    if log is not None:
        (folder / "pictures").mkdir(exist_ok=True)
        for name, of in columns.items():
            file = _write(folder / "pictures", f"{name}-{at:06d}", of)
            log.picture(at, name, folder / "pictures" / file)


def _write(folder: pathlib.Path, name: str, columns: Mapping[str, np.ndarray]) -> str:
    from hmtl_jax import figures  # half a second to import

    file = name.replace("/", "_") + ".png"
    figures.reconstruction_grid(folder / file, columns)
    return file


class Faces:
    """The same few faces of a split, as the pretexts and the tasks of a program see them.

    split: the recipe's test split where it is empty, or the next that there is. Every process must
    take part in what it draws.
    """

    def __init__(self, program: Program, config: ConfigDict, mesh: Mesh, split: str = ""):
        data = config.data
        split = split or data.test or data.validation or data.train
        source = sources.open_split(data.data_dir, data.name, split)
        loading = build.loading(config, [], sharding.divisible(ROWS, mesh))
        batches = pipeline.eval_batches(source, **loading)
        self.program, everywhere = program, sharding.replicated(mesh)
        self.batch = sharding.to_devices(next(iter(batches)), mesh)
        self._pretexts = build.jitted(infer.pretext_step, program, out_shardings=everywhere)
        self._attention = build.jitted(_looked_at, program, out_shardings=everywhere)

    def columns(self, variables: Any) -> dict[str, dict[str, np.ndarray]]:
        """Of each pretext, NAME, or of each of its views, NAME/0 …: title → [N, H, W, C]."""
        if not self.program.pretexts:
            return {}
        seen = self._rows(self._pretexts(variables, self.batch))
        return {
            view: self.program.pretexts[owner(view)].columns(
                seen["images"], seen["views"][view], seen["targets"][view], output
            )
            for view, output in seen["outputs"].items()
        }

    def attention(self, variables: Any) -> dict[str, dict[str, np.ndarray]]:
        """Where the tasks look, as `columns`; {} where infer.attention_step can't tell."""
        if not self.program.tasks or self.program.model.fuse:
            return {}
        images, maps = self._rows(self._attention(variables, self.batch))
        columns = {name: heated(images, of) for name, of in maps.items()}
        return {"attention": {"input": images, **columns}}

    def _rows(self, found: Any) -> Any:
        return jax.tree.map(lambda of: of[:ROWS], jax.device_get(found))


def _looked_at(program: Program, variables: Any, batch: Mapping[str, jax.Array]) -> tuple:
    """Pictures in [0, 1], and where the tasks look in them."""
    images = augment.to_float(batch["image"], program.image_size)
    return images, infer.attention_step(program, variables, batch)


def heated(images: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Faces [N, H, W, 3] with maps [N, h, w] over them, both in [0, 1]: red is 1, blue is 0."""
    size, found = images.shape[2:0:-1], []
    for image, strength in zip(images, maps, strict=True):
        level = np.clip(255 * cv2.resize(strength, size), 0, 255).astype(np.uint8)
        heat = cv2.applyColorMap(level, cv2.COLORMAP_TURBO)[..., ::-1]
        found.append(0.55 * image + 0.45 / 255 * heat)
    return np.stack(found)

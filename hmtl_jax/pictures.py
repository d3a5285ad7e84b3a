"""The pictures that a run leaves: reconstructions, curves, confusion matrices."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from hmtl_jax import build, cluster, infer, sharding, trained
from hmtl_jax.data import pipeline, sources
from hmtl_jax.metrics import writer
from hmtl_jax.view import owner

ROWS = 8


def draw(
    run: trained.Trained, config: ConfigDict, mesh: Mesh, found: Mapping[str, Any]
) -> list[str]:
    """Draws all that the run gives reason for into its workdir; returns the files' names.

    The faces are those of a split that was not trained on, where `config.data` names one.
    """
    from hmtl_jax import figures

    grids = pretext_columns(run, config, mesh) if run.program.pretexts else {}
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


def pretext_columns(
    run: trained.Trained, config: ConfigDict, mesh: Mesh
) -> dict[str, dict[str, np.ndarray]]:
    """The columns of a picture of each pretext, NAME, or of each of its views, NAME/0 and so on."""
    data, program = config.data, run.program
    split = data.test or data.validation or data.train
    source = sources.open_split(data.data_dir, data.name, split)
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
        made = (seen["images"], seen["views"][view], seen["targets"][view], output)
        grids[view] = program.pretexts[owner(view)].columns(*made)
    return grids

"""The job `export`: the encoder of a finished run as a file for others."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from hmtl_jax import cluster, sharding, trained, workdir
from hmtl_jax.errors import UserError
from hmtl_jax.models import pretrained

SAID = ("hmtl_jax", "commit")  # of the versions


def classes_of(tasks: Mapping[str, Any]) -> dict[str, list[str]]:
    """The names of the classes, by task; for those that have some."""
    named = {name: getattr(task, "classes", ()) for name, task in tasks.items()}
    return {name: list(classes) for name, classes in named.items() if classes}


def run(config: ConfigDict, folder: pathlib.Path) -> None:
    """Writes the chosen encoder to encoder.safetensors in the workdir, in timm's naming."""
    mesh = sharding.make_mesh(**config.mesh)
    with jax.set_mesh(mesh):
        found = trained.load(folder, mesh)
        model = found.config.model
        if model.stem != "patch":
            raise UserError(
                f"The {model.encoder} of {found.run} has the stem {model.stem!r}, which timm's "
                "naming has no place for; only encoders with model.stem 'patch' are exported."
            )
        parts = {
            part: tree["encoder"] for part, tree in found.variables.items() if "encoder" in tree
        }
        gathered = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))(parts)
    name, path = model.encoder, found.run / "encoder.safetensors"
    if cluster.lead():
        size = found.config.data.image_size
        metadata = pretrained.about(name, size, model.pool, model.positions) | {
            "input": model.input,
            "classes": json.dumps(classes_of(found.program.tasks)),
            **{key: value for key, value in workdir.versions().items() if key in SAID},
        }
        pretrained.save(
            path,
            name,
            jax.device_get(gathered),
            image_size=size,
            positions=model.positions,
            metadata=metadata,
        )
        beside = ", but timm has no such network" if metadata["timm"].startswith("none") else ""
        cluster.say(
            f"the {name} of step {found.step} ({found.why}) is in {path}, in timm's naming{beside}"
        )

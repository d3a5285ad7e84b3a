"""The job `export`: the encoder of a finished run as a file for others."""

import pathlib

import jax
from ml_collections import ConfigDict

from hmtl_jax import cluster, sharding, trained
from hmtl_jax.models import pretrained


def run(config: ConfigDict, folder: pathlib.Path) -> None:
    """Writes the chosen encoder to encoder.safetensors in the workdir, in timm's naming."""
    mesh = sharding.make_mesh(**config.mesh)
    with jax.set_mesh(mesh):
        found = trained.load(folder, mesh)
        parts = {
            part: tree["encoder"] for part, tree in found.variables.items() if "encoder" in tree
        }
        gathered = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))(parts)
    name, path = found.config.model.encoder, found.run / "encoder.safetensors"
    if cluster.lead():
        size = found.config.data.image_size
        pretrained.save(path, name, jax.device_get(gathered), image_size=size)
    beside = ", but timm has no stem for small images" if name.endswith("-small") else ""
    cluster.say(
        f"the {name} of step {found.step} ({found.why}) is in {path}, in timm's naming{beside}"
    )

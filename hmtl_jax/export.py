"""The job `export`: the encoder and the whole model of a finished run as files for others."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import export
from ml_collections import ConfigDict

from hmtl_jax import cluster, files, infer, sharding, trained, workdir
from hmtl_jax.errors import UserError
from hmtl_jax.models import pretrained
from hmtl_jax.tasks import TASKS

PLATFORMS = ("cpu", "cuda", "tpu")
SAID = ("hmtl_jax", "commit")  # of the versions


def classes_of(tasks: Mapping[str, Any]) -> dict[str, list[str]]:
    """The names of the classes, by task; for those that have some."""
    named = {name: getattr(task, "classes", ()) for name, task in tasks.items()}
    return {name: list(classes) for name, classes in named.items() if classes}


def run(config: ConfigDict, folder: pathlib.Path) -> None:
    """Writes the chosen checkpoint for others, into the workdir, and says what is there.

    encoder.safetensors: the encoder in timm's naming. model.stablehlo: encoder and heads as one
    program, with model.json beside it, which says what goes in and comes out.
    """
    mesh = sharding.make_mesh(**config.mesh)
    with jax.set_mesh(mesh):
        found = trained.load(folder, mesh)
        everywhere = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))
        variables = jax.device_get(everywhere(found.variables))
    stem = found.config.model.stem
    if stem != "patch" and not found.program.tasks:
        raise UserError(
            f"The {found.config.model.encoder} of {found.run} has the stem {stem!r}, which timm's "
            "naming has no place for; only encoders with model.stem 'patch' are exported."
        )
    if not cluster.lead():
        return
    if stem == "patch":
        _write_encoder(found, variables)
    else:
        cluster.say(f"no encoder.safetensors: timm's naming has no place for the stem {stem!r}")
    if found.program.tasks:
        _write_program(found, variables)


def _write_encoder(found: trained.Trained, variables: Mapping[str, Any]) -> None:
    model, path = found.config.model, found.run / "encoder.safetensors"
    parts = {part: tree["encoder"] for part, tree in variables.items() if "encoder" in tree}
    size = found.config.data.image_size
    metadata = pretrained.about(model.encoder, size, model.pool, model.positions) | {
        "input": model.input,
        "classes": json.dumps(classes_of(found.program.tasks)),
        **{key: value for key, value in workdir.versions().items() if key in SAID},
    }
    pretrained.save(
        path, model.encoder, parts,
        image_size=size, positions=model.positions, metadata=metadata,
    )  # fmt: skip
    beside = ", but timm has no such network" if metadata["timm"].startswith("none") else ""
    cluster.say(
        f"the {model.encoder} of step {found.step} ({found.why}) is in {path}, in timm's naming"
        f"{beside}"
    )


def _write_program(found: trained.Trained, variables: Mapping[str, Any]) -> None:
    """The whole model by jax.export: any batch, on CPU, NVIDIA GPU and TPU, without this code."""
    data, program = found.config.data, found.program
    size = data.decode_size or data.image_size
    (batch,) = export.symbolic_shape("b")
    image = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)

    def predict(images: jax.Array) -> dict[str, jax.Array]:
        return infer.eval_step(program, variables, {"image": images})["predictions"]

    made = export.export(jax.jit(predict), platforms=PLATFORMS)(image)
    path = found.run / "model.stablehlo"
    path.write_bytes(made.serialize())
    files.write_json(path.with_suffix(".json"), _about(found, size))
    cluster.say(
        f"the whole model is in {path}, for any batch on {', '.join(PLATFORMS)}; model.json says "
        "what goes in and comes out"
    )


def _about(found: trained.Trained, size: int) -> dict[str, Any]:
    """What model.json says, so that nobody has to guess."""
    kinds = {cls: kind for kind, cls in TASKS.items()}
    return {
        "how": "jax.export.deserialize(open('model.stablehlo', 'rb').read()).call(images)",
        "input": {
            "shape": ["b", size, size, 3],
            "dtype": "uint8",
            "channels": "RGB",
            "resize": "the whole picture to this size, without regard to its aspect ratio: area "
            "averages along a side that shrinks, bicubic along one that grows",
            "normalisation": "inside the model",
        },
        "outputs": {
            name: {
                "kind": kinds[type(task)],
                "meaning": task.answer,
                "names": list(task.outputs),
            }
            for name, task in found.program.tasks.items()
        },
        "run": {"step": found.step, "why": found.why, "data": found.data["name"]},
        **{key: value for key, value in workdir.versions().items() if key in (*SAID, "jax")},
    }

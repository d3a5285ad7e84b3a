"""python -m hmtl_jax.export RUN: the encoder and the whole model of a run as files for others.

Leaves in the run encoder.safetensors, the encoder in timm's naming; and model.stablehlo, encoder
and heads as one program (jax.export), with model.json, which says what goes in and comes out; and
model_card.md: data, figures, groups and limits, from what was measured.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from hmtl_jax import cluster, compiled, files, infer, model_card, sharding, trained, workdir
from hmtl_jax.errors import UserError
from hmtl_jax.models import pretrained
from hmtl_jax.tasks import TASKS

PLATFORMS = ("cpu", "cuda", "tpu")
SAID = ("hmtl_jax", "commit")  # of the versions


def classes_of(tasks: Mapping[str, Any]) -> dict[str, list[str]]:
    """The names of the classes, by task; for those that have some."""
    named = {name: getattr(task, "classes", ()) for name, task in tasks.items()}
    return {name: list(classes) for name, classes in named.items() if classes}


def write(path: pathlib.Path) -> list[pathlib.Path]:
    """Writes the chosen checkpoint of a run, or the one that is named, and returns the files.

    A file that is there is replaced. Raises UserError for a path that `trained.load` refuses, and
    where nothing can be written: a run without tasks whose encoder has no name in timm.
    """
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
        found = trained.load(path, mesh)
        everywhere = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))
        variables = jax.device_get(everywhere(found.variables))
    stem, left = found.config.model.stem, []
    if stem == "patch":
        left += _write_encoder(found, variables)
    elif found.program.tasks:
        cluster.say(f"no encoder.safetensors: timm's naming has no place for the stem {stem!r}")
    else:
        raise UserError(
            f"The {found.config.model.encoder} of {found.run} has the stem {stem!r}, which timm's "
            "naming has no place for; only encoders with model.stem 'patch' are exported."
        )
    if found.program.tasks:
        left += _write_program(found, variables)
    card = found.run / "model_card.md"
    files.write_text(card, model_card.text(found.run))
    cluster.say(f"what may be said of it is in {card}")
    return [*left, card]


def _write_encoder(found: trained.Trained, variables: Mapping[str, Any]) -> list[pathlib.Path]:
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
    return [path]


def _write_program(found: trained.Trained, variables: Mapping[str, Any]) -> list[pathlib.Path]:
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
    return [path, path.with_suffix(".json")]


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


def main() -> None:
    """Exports a run."""
    parser = argparse.ArgumentParser(prog="python -m hmtl_jax.export", description=__doc__)
    parser.add_argument("run", type=pathlib.Path, help="a workdir, or a checkpoint in one")
    args = parser.parse_args()
    try:
        write(args.run)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    compiled.keep()
    main()

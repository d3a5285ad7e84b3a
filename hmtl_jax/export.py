"""python -m hmtl_jax.export RUN: the encoder and the whole model of a run as files for others.

Leaves in the run

    encoder.safetensors           the encoder, in timm's naming
    TASK.safetensors              encoder and head of a task, in timm's naming
    model.stablehlo               encoder and heads as one program, for JAX alone (jax.export)
    model.onnx                    the same for onnxruntime and others, with --onnx
    model.json                    what goes into these two, and what comes out
    model_card.md                 data, figures, groups and limits, from what was measured

What a program answers is held against what the run answers, on pictures of its test split where
they are at hand; model.json says how far it is apart.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from hmtl_jax import (
    as_onnx,
    build,
    cluster,
    compiled,
    files,
    infer,
    model_card,
    sharding,
    trained,
    workdir,
)
from hmtl_jax.data import decode, sources
from hmtl_jax.errors import UserError
from hmtl_jax.models import pretrained
from hmtl_jax.program import Program
from hmtl_jax.tasks import TASKS

PLATFORMS = ("cpu", "cuda", "tpu")
SAID = ("hmtl_jax", "commit")  # of the versions
# How a program is run.
HOW = {
    "model.stablehlo": "jax.export.deserialize(open('model.stablehlo', 'rb').read()).call(images)",
    "model.onnx": "onnxruntime.InferenceSession('model.onnx').run([TASK], {'images': images})",
}
PICTURES = 8  # that a program is tried on
# How far an answer may lie from the run's. A texture rounds grey levels; some lie at a half.
APART, APART_OF_TEXTURE = 1e-4, 1e-2


def classes_of(tasks: Mapping[str, Any]) -> dict[str, list[str]]:
    """The names of the classes, by task; for those that have some."""
    named = {name: getattr(task, "classes", ()) for name, task in tasks.items()}
    return {name: list(classes) for name, classes in named.items() if classes}


def write(path: pathlib.Path, onnx: bool = False) -> list[pathlib.Path]:
    """Writes the chosen checkpoint of a run, or the one that is named, and returns the files.

    onnx: model.onnx too. A file that is there is replaced. Raises UserError for a path that
    `trained.load` refuses, for a program that answers otherwise than the run, and where nothing can
    be written: a run without tasks whose encoder has no name in timm.
    """
    if onnx:
        as_onnx.check_installed()
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
        found = trained.load(path, mesh)
        everywhere = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))
        variables = jax.device_get(everywhere(found.variables))
    stem, left = found.config.model.stem, []
    if stem == "patch":
        left += _write_weights(found, variables)
    elif found.program.tasks:
        cluster.say(f"no encoder.safetensors: timm's naming has no place for the stem {stem!r}")
    else:
        raise UserError(
            f"The {found.config.model.encoder} of {found.run} has the stem {stem!r}, which timm's "
            "naming has no place for; only encoders with model.stem 'patch' are exported."
        )
    if found.program.tasks:
        left += _write_programs(found, variables, onnx)
    elif onnx:
        cluster.say("no model.onnx: the run has no task, and so nothing to answer")
    card = found.run / "model_card.md"
    files.write_text(card, model_card.text(found.run))
    cluster.say(f"what may be said of it is in {card}")
    return [*left, card]


def _write_weights(found: trained.Trained, variables: Mapping[str, Any]) -> list[pathlib.Path]:
    """The encoder, and the encoder with each head that is one linear layer on its feature."""
    model, size = found.config.model, found.config.data.image_size
    parts = {part: tree["encoder"] for part, tree in variables.items() if "encoder" in tree}
    shared = {
        "input": model.input,
        **{key: value for key, value in workdir.versions().items() if key in SAID},
    }

    def save(name: str, head: Mapping[str, Any] | None, said: dict[str, str]) -> pathlib.Path:
        path = found.run / f"{name}.safetensors"
        outputs = len(head["bias"]) if head else 0
        about = pretrained.about(model.encoder, size, model.pool, model.positions, outputs)
        pretrained.save(
            path, model.encoder, parts, head=head,
            image_size=size, positions=model.positions, metadata=about | shared | said,
        )  # fmt: skip
        beside = ", but timm has no such network" if about["timm"].startswith("none") else ""
        what = f"the {model.encoder} of step {found.step} ({found.why})"
        with_head = f" with the head of {name}" if head else ""
        cluster.say(f"{what}{with_head} is in {path}, in timm's naming{beside}")
        return path

    classes = classes_of(found.program.tasks)
    left = [save("encoder", None, {"classes": json.dumps(classes)})]
    for name, task in found.program.tasks.items():
        head = variables["params"][f"heads_{name}"].get("linear")
        if head is None or found.program.model.fuse:
            cluster.say(f"no {name}.safetensors: a head that fuses views is no linear layer")
            continue
        said = {"classes": json.dumps(classes.get(name, [])), "task": name, "raw": task.raw}
        left.append(save(name, head, said))
    return left


def _write_programs(
    found: trained.Trained, variables: Mapping[str, Any], onnx: bool
) -> list[pathlib.Path]:
    """The whole model, for a batch of any size: by jax.export, and as ONNX; and model.json."""
    data = found.config.data
    size = data.decode_size or data.image_size
    pictures, whose = _pictures(found, size)
    # A program for every platform has no kernel of one of them in it, nor a loop over layers, which
    # jax2onnx would not look into; and bfloat16 is known to few programs that run ONNX.
    variables = pretrained.plain_blocks(variables)
    with (plain := found.config.copy_and_resolve_references()).unlocked():
        plain.model.update(attention="plain", scan=False, remat=False)
    predict = _predict(build.program(plain, found.program.tasks), variables)
    stablehlo = _stablehlo(predict, size)
    answered: Any = export.deserialize(stablehlo).call(pictures)
    left: dict[str, tuple[Any, Any, Any]] = {"model.stablehlo": (stablehlo, answered, predict)}
    if onnx:
        with plain.unlocked():
            plain.model.dtype = "float32"
        predict = _predict(build.program(plain, found.program.tasks), variables)
        made = as_onnx.convert(predict, (size, size, 3), jnp.uint8)
        left["model.onnx"] = made, as_onnx.answers(made, pictures), predict
    apart = {}
    for name, (made, answered, predict) in left.items():
        apart[name] = _apart(found, name, answered, jax.jit(predict)(pictures))
        with files.replacing(found.run / name) as path:
            path.write_bytes(made)
        cluster.say(
            f"the whole model is in {found.run / name}, for any batch; its answers on {whose} lie "
            f"up to {apart[name]:.1g} from the run's"
        )
    about = found.run / "model.json"
    files.write_json(about, _about(found, size, list(left)) | {"tried_on": whose, "apart": apart})
    return [*(found.run / name for name in left), about]


def _predict(program: Program, variables: Mapping[str, Any]) -> Callable[[jax.Array], dict]:
    variables = jax.tree.map(jnp.asarray, variables)  # NumPy's do not take a traced index
    return lambda images: infer.eval_step(program, variables, {"image": images})["predictions"]


def _stablehlo(predict: Callable[[jax.Array], dict], size: int) -> bytearray:
    """By jax.export: any batch, on CPU, NVIDIA GPU and TPU, without this code."""
    (batch,) = export.symbolic_shape("b")
    image = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)
    return export.export(jax.jit(predict), platforms=PLATFORMS)(image).serialize()


def _pictures(found: trained.Trained, size: int) -> tuple[np.ndarray, str]:
    """A few test pictures, uint8 [n, size, size, 3], and what they are; noise without the data."""
    data = found.config.data
    try:
        source = sources.open_split(data.data_dir, data.name, data.test)
        taken = [source[row]["image"] for row in range(min(PICTURES, len(source)))]
        pictures = [decode.resize(decode.decode(one), size) for one in taken]
        return np.stack(pictures), f"{len(taken)} pictures of {data.name} {data.test}"
    except UserError:
        noise = np.random.default_rng(0).integers(0, 256, (PICTURES, size, size, 3), np.uint8)
        return noise, "noise, as the data are not at hand,"


def _apart(found: trained.Trained, name: str, answered: Mapping, wanted: Mapping) -> float:
    """The largest difference of two programs' answers, as a share of the largest answer over 1."""
    apart = max(
        float(np.max(np.abs(answered[task] - of) / max(1.0, np.max(np.abs(of)))))
        for task, of in jax.tree.map(np.asarray, dict(wanted)).items()
    )
    if not apart <= (APART if found.program.input == "rgb" else APART_OF_TEXTURE):
        raise UserError(
            f"{name} would answer otherwise than the run {found.run}, by {apart:.1g}; it is not "
            "written. Please report it, with the recipe."
        )
    return apart


def _about(found: trained.Trained, size: int, programs: Sequence[str]) -> dict[str, Any]:
    """What model.json says, so that nobody has to guess."""
    kinds = {cls: kind for kind, cls in TASKS.items()}
    return {
        "how": {name: HOW[name] for name in programs},
        "input": {
            "name": "images",
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
    parser = argparse.ArgumentParser(
        prog="python -m hmtl_jax.export", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("run", type=pathlib.Path, help="a workdir, or a checkpoint in one")
    parser.add_argument("--onnx", action="store_true", help=f"model.onnx too; {as_onnx.INSTALL}")
    args = parser.parse_args()
    try:
        write(args.run, args.onnx)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    compiled.keep()
    main()

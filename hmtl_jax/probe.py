"""The job `probe`: what frozen encoders know, each beside a random one of its shape.

Features of every split are extracted once and kept beside the reports, for another label, another
number of neighbours, another share of the labels.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from jax.sharding import Mesh
from ml_collections import ConfigDict

from hmtl_jax import (
    build,
    cluster,
    errors,
    evaluate,
    files,
    infer,
    initial,
    linear,
    recipe,
    sharding,
    state,
    trained,
)
from hmtl_jax.data import pipeline, sources
from hmtl_jax.data.subset import subset_indices
from hmtl_jax.metrics import names as metric_names
from hmtl_jax.program import Program

SPLITS = ("train", "validation", "test")
RANDOM = "random weights"


@dataclasses.dataclass(frozen=True)
class Frozen:
    """An encoder that is probed: its name in the table, and the recipe that builds and feeds it.

    Its `init_from` is a run, a checkpoint or a file; empty for one drawn at random.
    """

    name: str
    config: ConfigDict


def run(config: ConfigDict, folder: pathlib.Path) -> None:
    """Probes the encoders that `init_from` names, on the data of their runs or of the recipe.

    Leaves probe-LABEL.json and .md in `folder` for each label, and what it extracted in
    `folder`/features.
    """
    encoders, labels = probed(config)
    data = encoders[0].config.data
    source = {part: sources.open_split(data.data_dir, data.name, data[part]) for part in SPLITS}
    if not config.probe.label:  # of the runs' own labels those that the data have
        labels = [label for label in labels if label in source["train"].labels] or labels
    check_labels(labels, source["train"])
    mesh = sharding.make_mesh(**config.mesh)
    sharding.check_batch(config.batch_size, 1, mesh)
    with jax.set_mesh(mesh):
        extracted = {
            of.name: extract(of, source, labels, mesh, folder / "features")
            for of in [*encoders, *random_ones(encoders)]
        }
    if cluster.lead():
        for label in labels:
            report(config, label, extracted, source["train"].class_names(label), folder)


def probed(config: ConfigDict) -> tuple[list[Frozen], list[str]]:
    """The encoders that `init_from` names, `[NAME=]PATH,…`, and the labels that are read.

    These are `probe.label`, or those of the runs' tasks. The data are the runs', or the set that
    the recipe names, at each encoder's own image size. Raises UserError where runs have different
    data and the recipe names none.
    """
    if not config.init_from:
        raise errors.UserError("The job probe needs init_from: a run's workdir or its checkpoint.")
    given = [_named(text.strip()) for text in config.init_from.split(",")]
    if len({name for name, _ in given}) < len(given):
        given = [(path, path) for _, path in given]
    if len({name for name, _ in given}) < len(given):
        raise errors.UserError(f"init_from {config.init_from!r} names an encoder twice.")
    found = [_frozen(config, name, path) for name, path in given]
    sets = list(dict.fromkeys(of.config.data.name for of, _ in found))
    if len(sets) > 1:
        raise errors.UserError(
            f"The encoders were trained on different data, {' and '.join(sets)}; name the set to "
            f"probe them on, as --config.data.name={sets[0]}."
        )
    own = list(dict.fromkeys(label for _, labels in found for label in labels))
    return [of for of, _ in found], [config.probe.label] if config.probe.label else own


def _named(text: str) -> tuple[str, str]:
    name, path = files.named(text)
    return name or pathlib.Path(path).name, path


def _frozen(config: ConfigDict, name: str, path: str) -> tuple[Frozen, list[str]]:
    """One encoder on the data that are asked for, and its run's labels.

    A safetensors file has no recipe: encoder and image size are then those that `config` names.
    """
    theirs = config.copy_and_resolve_references()
    labels: list[str] = []
    with theirs.unlocked():
        theirs.init_from = path
        if not path.endswith(".safetensors"):
            kept = trained.recipe_of(files.local(path, "init_from"))
            theirs.model, theirs.data = kept.model, kept.data
            labels = _labels_of(kept)
        size, folder = theirs.data.image_size, theirs.data.data_dir
        if config.data.name:
            theirs.data = config.data.copy_and_resolve_references()
            theirs.data.image_size = size
        for part in ("validation", "test"):  # which a run without tasks leaves empty
            theirs.data[part] = theirs.data[part] or config.data[part]
        theirs.data.subset = config.data.subset
        theirs.data.data_dir = config.data.data_dir or folder
    return Frozen(name, theirs), labels


def _labels_of(kept: ConfigDict) -> list[str]:
    """The labels of the tasks of a recipe, each once."""
    found = []
    for part in kept.tasks.values():
        found += [part.label] if "label" in part else part.labels
    return list(dict.fromkeys(found))


def random_ones(encoders: Sequence[Frozen]) -> list[Frozen]:
    """A random encoder of each shape among those, as the control."""
    shapes: dict[str, Frozen] = {}
    for of in encoders:
        (alone := of.config.copy_and_resolve_references()).unlock()
        alone.init_from = ""
        shapes.setdefault(json.dumps(_shape(alone), default=str), Frozen(RANDOM, alone))
    several = len(shapes) > 1
    return [
        Frozen(f"{RANDOM}, {one.config.model.encoder}, {number}" if several else RANDOM, one.config)
        for number, one in enumerate(shapes.values(), 1)
    ]


def _shape(config: ConfigDict) -> dict[str, Any]:
    """What of a recipe bears on the features of given weights."""
    found = {key: config.data[key] for key in ("image_size", "decode_size")}
    return found | {"model": dict(recipe.leaves(config.model)), "probe": dict(config.probe)}


def check_labels(labels: Sequence[str], source: Any) -> None:
    """Raises UserError unless each label is in the data set and can be probed, and there is one."""
    if not labels:
        raise errors.UserError(
            "probe.label is empty, and no run of init_from has a task whose label to take; name "
            f"one of {', '.join(sorted(source.labels))}."
        )
    if set(labels) - set(source.labels):
        raise errors.UserError(
            f"probe.label {', '.join(labels)!r} is not in the data set; it has "
            f"{', '.join(sorted(source.labels))}."
        )
    for label in labels:
        value = np.asarray(source[0][label])
        if value.dtype.kind != "f" and not source.class_names(label):
            raise errors.UserError(
                f"probe.label {label!r} is neither a class nor a number; probe one that is."
            )


def extract(
    of: Frozen, source: Mapping[str, Any], labels: Sequence[str], mesh: Mesh, folder: pathlib.Path
) -> dict[str, tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Features and labels of each split under an encoder; what is in `folder` is not made again.

    Of the split for training `data.subset` is read, the same share of each class.
    """
    data, encode = of.config.data, None
    digest = sources.identity(data.data_dir, data.name)["digest"]
    found = {}
    for part, one in source.items():
        said = {
            "encoder": _identity(of), "shape": _shape(of.config), "data": digest,
            "split": data[part], "labels": sorted(labels),
        }  # fmt: skip
        told = json.dumps(said, sort_keys=True, default=str)
        name = hashlib.blake2b(told.encode(), digest_size=8).hexdigest()
        file = folder / f"{data[part]}-{name}.safetensors"
        kept = _read(file, told)
        if kept is None:
            encode = encode or encoder(of, mesh)
            loading = build.loading(of.config, labels, of.config.batch_size)
            kept = features(*encode, pipeline.eval_batches(one, **loading), mesh)
            _keep(file, told, kept)
        found[part] = _part(kept, labels, data.subset) if part == "train" else kept
    return found


def _identity(of: Frozen) -> dict[str, Any]:
    """Which weights an encoder has."""
    path = of.config.init_from
    if not path:
        return {"seed": of.config.seed}
    place = files.local(path, "init_from")
    if not path.endswith(".safetensors"):
        place, _ = trained.find(place)
    if not place.exists():
        return {"path": path}  # whoever reads it says that it isn't there
    return {"path": str(place.resolve()), "written": place.stat().st_mtime_ns}


def _read(file: pathlib.Path, told: str) -> tuple[np.ndarray, dict[str, np.ndarray]] | None:
    """What was kept; None in a cluster, whose processes need not see the same files."""
    if jax.process_count() > 1 or not file.is_file():
        return None
    try:
        with safetensors.safe_open(file, "numpy") as opened:
            if (opened.metadata() or {}).get("of") != told:
                return None
    except safetensors.SafetensorError:
        return None  # cut off
    arrays = safetensors.numpy.load_file(file)
    return arrays.pop("features"), {name.removeprefix("/"): of for name, of in arrays.items()}


def _keep(file: pathlib.Path, told: str, found: tuple[np.ndarray, Mapping]) -> None:
    if jax.process_count() == 1:
        file.parent.mkdir(parents=True, exist_ok=True)
        arrays = {"features": found[0], **{f"/{name}": of for name, of in found[1].items()}}
        with files.replacing(file) as partial:
            safetensors.numpy.save_file(
                {name: np.ascontiguousarray(of) for name, of in arrays.items()},
                partial, metadata={"of": told},
            )  # fmt: skip


def _part(
    found: tuple[np.ndarray, Mapping[str, np.ndarray]], labels: Sequence[str], share: float
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The draw of a run that trains on the same share of the first label."""
    features_nd, known = found
    if share >= 1:
        return features_nd, dict(known)
    classes = known[labels[0]]
    if classes.ndim > 1 or classes.dtype.kind == "f":
        classes = np.zeros(len(classes), int)
    rows = subset_indices(classes, share, 0)
    return features_nd[rows], {name: values[rows] for name, values in known.items()}


def encoder(of: Frozen, mesh: Mesh) -> tuple[Any, Any]:
    """An encoder compiled, and its variables."""
    config, path = of.config, of.config.init_from
    if path and not path.endswith(".safetensors"):
        run = trained.load(files.local(path, "init_from"), mesh)
        return _compiled(run.program, config, mesh), run.variables
    alone = build.encoder_alone(config)
    variables = state.init_variables(alone, mesh, config.seed)
    if path:
        ours = {part: tree["encoder"] for part, tree in variables.items()}
        found = initial.encoder(config, ours)
        variables = {part: {"encoder": tree} for part, tree in found.items()}
    return _compiled(alone, config, mesh), variables


def _compiled(program: Program, config: ConfigDict, mesh: Mesh) -> Any:
    step = functools.partial(infer.encode_step, stage=config.probe.stage, pool=config.probe.pool)
    return build.jitted(step, program, out_shardings=sharding.replicated(mesh))


def features(
    encode_step: Any, variables: Any, batches: Iterable, mesh: Any
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Features float32 [N, D] of a split, in its order, and its labels by name.

    encode_step: (variables, batch) -> {"predictions": {"pooled": [B, D]}, "labels": …}, as
    infer.encode_step jitted with replicated outputs.
    """
    found = evaluate.predictions(encode_step, variables, batches, mesh)
    return np.asarray(found["predictions"]["pooled"], np.float32), dict(found["labels"])


def report(
    config: ConfigDict,
    label: str,
    extracted: Mapping[str, Mapping[str, Any]],
    names: Sequence[str] | None,
    folder: pathlib.Path,
) -> None:
    """Probes one label with all encoders, writes probe-LABEL.json and .md, and says the result."""
    each = {}
    for encoder, of in extracted.items():
        train, validation, test = ((of[part][0], of[part][1][label]) for part in SPLITS)
        known, neighbours = names or (label,), config.probe.neighbours
        each[encoder] = measured(train, validation, test, known, neighbours)
    found = {
        "label": label, "init_from": config.init_from, "stage": config.probe.stage,
        "encoders": each,
    }  # fmt: skip
    files.write_json(folder / f"probe-{label}.json", found)
    path = folder / f"probe-{label}.md"
    files.write_text(path, markdown(found))
    heads, *rows = table(found)
    wide = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    cluster.say(f"{label}, test; see {path.with_suffix('.json')}, {path.name}")
    for row in (heads, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, wide, strict=True))
        cluster.say(f"  {'  '.join(cells)}".rstrip())


def measured(
    train: linear.Split, validation: linear.Split, test: linear.Split, names: Sequence[str], k: int
) -> dict[str, Any]:
    """Every probe of a label that its kind has: classes, attributes or numbers."""
    if train[1].dtype.kind == "f":
        parts = (_in_columns(*split) for split in (train, validation, test))
        found: dict[str, Any] = {"linear": linear.ridge(*parts, names=names)}
    elif train[1].ndim > 1:
        found = {"linear": linear.linear_attributes(train, validation, test, names)}
    else:
        found = {
            "linear": linear.linear_probe(train, validation, test, names),
            "neighbours": linear.knn(train, test, names, k),
            "few_shot": linear.few_shot(train, test, names),
        }
    return found | {"train_examples": len(train[1])}


def _in_columns(features_nd: np.ndarray, labels: np.ndarray) -> linear.Split:
    return features_nd, np.asarray(labels, np.float64).reshape(len(labels), -1)


def table(found: Mapping[str, Any]) -> list[list[str]]:
    """A report as rows of text, the first with what the columns are."""
    rows = []
    for encoder, of in found["encoders"].items():
        cells = {}
        for kind in ("linear", "neighbours"):
            if kind in of:
                key = metric_names.first_headline(of[kind])
                scale, unit = metric_names.shown_in(key)
                cells[f"{kind}, {key}"] = f"{scale * of[kind][key]:.2f}{unit}"
        for shots, one in of.get("few_shot", {}).items():
            spread = f"{100 * one['accuracy']:.2f} ± {100 * one['deviation']:.2f} %"
            cells[f"{shots} a class"] = spread
        rows.append({"encoder": encoder} | cells)
    return [list(rows[0]), *(list(row.values()) for row in rows)]


def markdown(found: Mapping[str, Any]) -> str:
    """A report as a table for a page; what it is of stands above."""
    heads, *rows = table(found)
    lines = [
        f"{found['label']}, test, of the frozen `{found['stage']}`; n a class: the mean of draws ± "
        "their deviation.", "",
        f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"

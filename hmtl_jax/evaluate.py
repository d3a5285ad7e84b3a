"""A split through measure_step to predictions on the host to metrics; each example counts once."""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from hmtl_jax import build, cluster, files, infer, pictures, sharding, trained, workdir
from hmtl_jax.data import pipeline, sources
from hmtl_jax.errors import UserError
from hmtl_jax.metrics.names import headlines
from hmtl_jax.program import Program


def run(config: ConfigDict, folder: pathlib.Path) -> None:
    """The job `evaluate`: a finished run on the test split that `config.data` names.

    That may be one of other data than the run's own: the report then says which, and has a name of
    its own.
    """
    mesh = sharding.make_mesh(**config.mesh)
    with jax.set_mesh(mesh):
        found = trained.load(folder, mesh)
        program = dataclasses.replace(found.program, mirror=config.eval_flip)
        found = dataclasses.replace(found, program=program)
        report(found, config, mesh, measure_step(program, mesh))


def report(run: trained.Trained, config: ConfigDict, mesh: Mesh, measure_step: Any) -> None:
    """Evaluates the test split that `config.data` names, draws the pictures, and says the result.

    measure_step: of the run's program; the one that training has compiled, where there is one.
    Leaves eval/SPLIT-STEP.json, or NAME-DIGEST-SPLIT-STEP.json for other data than the run's own.
    """
    split, found, left = config.data.test, {}, []
    own = True
    if split:
        identity = sources.identity(config.data.data_dir, config.data.name)
        own = identity["digest"] == run.data["digest"]
        source = sources.open_split(config.data.data_dir, config.data.name, split)
        found = of_split(measure_step, run.program, run.variables, source, config)
        other = "" if own else f"{identity['name']}-{identity['digest'][:8]}-"
        mirrored = "-mirrored" if run.program.mirror else ""
        file = f"eval/{other}{split}-{run.step}{mirrored}.json"
        said = about(run.config, run.step, split, identity) | {"mirrored": run.program.mirror}
        write(run.run / file, said | found)
        left.append(file)
    if (
        own and not run.program.mirror
    ):  # pictures have one place, and it is that of the run's own data
        left += pictures.draw(run, config, mesh, found)
    said = f"{split}: {headlines(scalars(found))}" if found else "trained"
    if run.program.mirror:
        said = f"with mirrored pictures, {said}"
    if not own:
        said = f"on other data, {workdir.described(identity)}, {said}"
    cluster.say(f"{said} at step {run.step} ({run.why}); see {run.run}: {', '.join(left)}")
    for name, of in found.get("sets", {}).items():
        cluster.say(f"  of {name}, {of['examples']:,} examples: {headlines(scalars(of))}")


def about(config: ConfigDict, step: int, split: str, identity: Mapping[str, Any]) -> dict[str, Any]:
    """What the report of an evaluation says of it, beside the metrics."""
    return {
        "step": step,
        "split": split,
        "data": {key: identity[key] for key in ("name", "version", "digest")},
        "weights": weights_of(config),
        "mirrored": config.eval_flip,
    }


def weights_of(config: ConfigDict) -> str:
    """Which weights a run is evaluated with."""
    own = config.optim.name == "schedule_free"
    return "the optimizer's average" if own else "moving average" if config.optim.ema else "last"


def measure_step(program: Program, mesh: Mesh) -> Any:
    """infer.measure_step compiled for a program, its outputs on every device."""
    return build.jitted(infer.measure_step, program, out_shardings=sharding.replicated(mesh))


def of_split(
    measure_step: Any, program: Program, variables: Any, source: sources.Opened, config: ConfigDict
) -> dict[str, Any]:
    """The metrics of each task on a split, and how many examples it has; equal on every process."""
    found = predictions_of(measure_step, program, variables, source, config)
    examples = len(found["labels"]["index"])
    counted = {"examples": examples, "skipped_images": len(source) - examples}
    of_sets = _of_sets(program, source, found)
    return counted | metrics(program.tasks, found) | skills(found["errors"]) | of_sets


def _of_sets(program: Program, source: sources.Opened, found: Mapping[str, Mapping]) -> dict:
    """Where a split is made of several sets, the metrics of each: {"sets": {NAME: …}}."""
    parts, index = getattr(source, "parts", {}), found["labels"]["index"]

    def of(rows: slice) -> dict[str, Any]:
        own = (index >= rows.start) & (index < rows.stop)
        part = {
            key: jax.tree.map(lambda of: of[own], found[key]) for key in ("predictions", "labels")
        }
        return {"examples": int(own.sum())} | metrics(program.tasks, part)

    return {"sets": {name: of(rows) for name, rows in parts.items()}} if parts else {}


def predictions_of(
    step: Any, program: Program, variables: Any, source: sources.Opened, config: ConfigDict
) -> dict[str, dict]:
    """`predictions` of a split, which is read as the recipe says, on the mesh that is set.

    step: infer.eval_step or measure_step of the program, its outputs on every device. Raises
    UserError for a split that lacks labels that the tasks read.
    """
    labels = build.labels_of(program.tasks)
    missing = set(labels) - set(source.labels)
    if missing:
        raise UserError(
            f"The data set {source.name} lacks the labels {', '.join(sorted(missing))} that the "
            f"run's tasks read; it has {', '.join(source.labels)}."
        )
    mesh = jax.sharding.get_mesh()
    size = sharding.divisible(config.eval_batch_size or config.batch_size, mesh)
    batches = pipeline.eval_batches(source, **build.loading(config, labels, size))
    return predictions(step, variables, batches, mesh)


def predictions(
    measure_step: Any, variables: Any, batches: Iterable, mesh: Mesh
) -> dict[str, dict]:
    """All valid rows of a split: `predictions`, `labels` and `errors` by name, NumPy [N, …].

    The same on every process: measure_step must return replicated arrays.
    """
    parts = []
    for batch in batches:
        found = jax.device_get(measure_step(variables, sharding.to_devices(batch, mesh)))
        valid = found["labels"].pop("valid")
        parts.append(jax.tree.map(lambda rows, valid=valid: rows[valid], found))
    joined = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
    # Processes read interleaved rows; the order of the split is restored, so that files are equal.
    order = np.argsort(joined["labels"]["index"], kind="stable")
    return jax.tree.map(lambda rows: rows[order], joined)


def metrics(tasks: Mapping[str, Any], found: Mapping[str, Mapping]) -> dict[str, dict]:
    """Each task's metrics by name; raises UserError for predictions that are not finite."""
    for name in tasks:
        if not np.isfinite(found["predictions"][name]).all():
            raise UserError(
                f"Predictions of the task {name} are not finite: the run has diverged. Lower "
                "optim.lr or set optim.clip, in another --workdir."
            )
    return {
        name: task.metrics(found["predictions"][name], found["labels"])
        for name, task in tasks.items()
    }


def skills(errors: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """Each pretext's skill on a split: {NAME: {"skill": …}}, or {NAME: {"PART/skill": …}}."""
    found: dict[str, dict[str, float | None]] = {}
    for leaf, errors_n2 in errors.items():
        name, _, part = leaf.partition("/")
        own, constant = errors_n2.sum(0, dtype=np.float64)
        key = f"{part}/skill" if part else "skill"
        found.setdefault(name, {})[key] = float(1.0 - own / constant) if constant else None
    return found


def scalars(found: Mapping[str, Any]) -> dict[str, float]:
    """`TASK/METRIC` → number, for logs and for choosing the best checkpoint."""
    return {
        f"{task}/{name}": float(value)
        for task, values in found.items()
        if isinstance(values, Mapping)
        for name, value in values.items()
        if isinstance(value, float)  # counts are no measures
    }


def write(path: pathlib.Path, found: Mapping[str, Any]) -> None:
    """Writes a report, whole or not at all, by the leading process."""
    if cluster.lead():
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, found)

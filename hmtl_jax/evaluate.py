"""python -m hmtl_jax.evaluate RUN: how good a finished run is, on its own test split or another.

    python -m hmtl_jax.evaluate runs/few --data rafdb --split test

Classes are matched by name with those of the run. Every headline has the 95 % percentile interval
of a bootstrap over the examples (over videos, where the set tells them apart). Leaves in the run's
folder `eval` a report, NAME.json, and every example's labels and answers, NAME.parquet.

As a library: a split through measure_step to predictions on the host to metrics; each example
counts once, on any number of processes.
"""

import argparse
import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from hmtl_jax import answers, build, cluster, compiled, files, infer, pictures, sharding, trained
from hmtl_jax.data import pipeline, sources
from hmtl_jax.errors import Unlabelled, UserError
from hmtl_jax.metrics import bootstrap, names
from hmtl_jax.metrics.names import headlines
from hmtl_jax.program import Program

RESAMPLES = 300
FRAMES_OF = ("video", "recording")  # labels that tell which pictures are frames of one film


def report(run: trained.Trained, config: ConfigDict, mesh: Mesh, measure_step: Any) -> None:
    """Evaluates a run on the test split of its own data, draws the pictures, and says the result.

    config: its recipe. measure_step: of the run's program, as training has compiled it. Leaves
    eval/SPLIT-STEP.json, and every example's answers in the table beside it.
    """
    split, found, left = config.data.test, {}, []
    if split:
        identity = sources.identity(config.data.data_dir, config.data.name)
        source = sources.open_split(config.data.data_dir, config.data.name, split)
        found, rows = of_split(measure_step, run.program, run.variables, source, config)
        left.append(f"eval/{split}-{run.step}.json")
        write(run.run / left[0], about(run.config, run.step, split, identity) | found)
        seen, _ = matched(run.program.tasks, source)
        write_answers(run, seen, rows, run.run / left[0])
    left += pictures.draw(run, config, mesh, found)
    said = f"{split}: {headlines(scalars(found))}" if found else "trained"
    cluster.say(f"{said} at step {run.step} ({run.why}); see {run.run}: {', '.join(left)}")
    for name, of in found.get("sets", {}).items():
        cluster.say(f"  of {name}, {of['examples']:,} examples: {headlines(scalars(of))}")


def about(
    config: ConfigDict, step: int, split: str, identity: Mapping[str, Any], mirrored: bool = False
) -> dict[str, Any]:
    """What the report of an evaluation says of it, beside the metrics."""
    return {
        "step": step,
        "split": split,
        "data": {key: identity[key] for key in ("name", "version", "digest")},
        "weights": weights_of(config),
        "mirrored": mirrored,
    }


def weights_of(config: ConfigDict) -> str:
    """Which weights a run is evaluated with."""
    own = config.optim.name == "schedule_free"
    return "the optimizer's average" if own else "moving average" if config.optim.ema else "last"


def measure_step(program: Program, mesh: Mesh) -> Any:
    """infer.measure_step compiled for a program, its outputs on every device."""
    return build.jitted(infer.measure_step, program, out_shardings=sharding.replicated(mesh))


def of_split(
    measure_step: Any, program: Program, variables: Any, source: sources.Opened, config: ConfigDict,
    batches: pipeline.EvalBatches | None = None,
) -> tuple[dict[str, Any], dict[str, dict]]:  # fmt: skip
    """The metrics of each task on a split, with its number of examples; and its predictions.

    batches: from `batches_of`, where they are read again and again. Equal on every process.
    """
    batches = batches_of(program, source, config) if batches is None else batches
    found = predictions(measure_step, variables, batches, jax.sharding.get_mesh())
    examples = len(found["labels"]["index"])
    counted = {"examples": examples, "skipped_images": len(source) - examples}
    measured = metrics(program.tasks, found, has_frames(source))
    if program.tasks and not measured:
        raise no_label(source, program.tasks)
    return counted | measured | skills(found["errors"]) | _of_sets(program, source, found), found


def _of_sets(program: Program, source: sources.Opened, found: Mapping[str, Mapping]) -> dict:
    """Where a split is made of several sets, the metrics of each: {"sets": {NAME: …}}."""
    parts, index = getattr(source, "parts", {}), found["labels"]["index"]

    def of(rows: slice) -> dict[str, Any]:
        own = (index >= rows.start) & (index < rows.stop)
        part = jax.tree.map(lambda of: of[own], found)
        return {"examples": int(own.sum())} | metrics(program.tasks, part, has_frames(source))

    return {"sets": {name: of(rows) for name, rows in parts.items()}} if parts else {}


def predictions_of(
    step: Any, program: Program, variables: Any, source: sources.Opened, config: ConfigDict
) -> dict[str, dict]:
    """`predictions` of a split, which is read as the recipe says, on the mesh that is set.

    step: infer.eval_step or measure_step of the program, its outputs on every device.
    """
    batches = batches_of(program, source, config)
    return predictions(step, variables, batches, jax.sharding.get_mesh())


def batches_of(
    program: Program, source: sources.Opened, config: ConfigDict, keep: bool = False
) -> pipeline.EvalBatches:
    """A split as a recipe reads it, for the mesh that is set.

    keep: what was read once stays in the host's memory, for a split that is read again and again.
    Raises UserError for a split that has the labels of no task.
    """
    source, labels = matched(program.tasks, source)
    size = config.eval_batch_size or config.batch_size
    size = sharding.divisible(size, jax.sharding.get_mesh())
    return pipeline.eval_batches(source, **build.loading(config, labels, size), keep=keep)


def matched(tasks: Mapping[str, Any], source: sources.Opened) -> tuple[sources.Matched, list[str]]:
    """A split with the classes and entries of a run's tasks, and the labels that metrics read.

    A task of whose labels the split lacks some is not measured; UserError if that is so of all.
    """
    wanted = {label for task in tasks.values() for label in build.measured(task)}
    having = {n: task for n, task in tasks.items() if _is_told(task, source.labels)}
    if tasks and not having:
        raise UserError(
            f"The data set {source.name} lacks the labels "
            f"{', '.join(sorted(wanted - set(source.labels)))} that the run's tasks read; it has "
            f"{', '.join(source.labels)}."
        )
    known, labels = {}, sorted({label for of in having.values() for label in build.measured(of)})
    for task in having.values():
        read = build.measured(task)
        names = getattr(task, "classes", ()) or getattr(task, "names", ())
        if len(read) == 1 and names and source.class_names(read[0]):
            known[read[0]] = names
    return sources.Matched(source, known), labels


def _is_told(task: Any, labels: Collection[str]) -> bool:
    """Whether these labels are all that a task is measured by."""
    return set(build.measured(task)) <= set(labels)


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


def metrics(
    tasks: Mapping[str, Any], found: Mapping[str, Mapping], frames: bool = False
) -> dict[str, dict]:
    """Metrics by name of each task that any example has a label of.

    UserError for predictions that are not finite. frames: whether some examples are frames of one
    film. These hang together, so that an interval that takes each for itself is left out; `assess`
    has those over films.
    """
    for name in tasks:
        if not np.isfinite(found["predictions"][name]).all():
            raise UserError(
                f"Predictions of the task {name} are not finite: the run has diverged. Lower "
                "optim.lr or set optim.clip, in another --workdir."
            )
    measured: dict[str, dict] = {}
    for name, task in tasks.items():
        if not _is_told(task, found["labels"]):
            continue
        with contextlib.suppress(Unlabelled):
            measured[name] = dict(task.metrics(found["predictions"][name], found["labels"]))
            if frames:
                measured[name].pop("accuracy_interval", None)
    return measured


def no_label(source: sources.Opened, tasks: Iterable[str]) -> Unlabelled:
    """What is said where a split has no label of tasks."""
    of = f"{source.name} {source.split}"
    return Unlabelled(f"No example of {of} has a label of {', '.join(tasks)}.")


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


def assess(
    path: pathlib.Path, *, data: str = "", data_dir: str = "", split: str = "",
    mirror: bool = False, resamples: int = RESAMPLES,
) -> tuple[dict[str, Any], pathlib.Path]:  # fmt: skip
    """A finished run on any prepared split: the report, and where it was left.

    path: a workdir, or a checkpoint in one. data, data_dir, split: instead of the run's own test
    split. mirror: take the mean of the answers for a picture and its mirror image; the report's
    name says so. resamples: of the bootstrap; 0: no intervals.

    A report holds what `about` and `of_split` tell; of each task, beside its metrics, `intervals`
    by headline and, of a task of two classes on frames of videos, `videos`: the metrics of the mean
    and of the largest logit of each video; `unlabelled`, the tasks that no example has a label of;
    `unmatched` as `sources.Matched` has it. Raises UserError for a run or a split that is not
    there, and for labels that do not fit.
    """
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
        run, data_dir, data, split, source = asked(path, mesh, data, data_dir, split)
        run = dataclasses.replace(run, program=dataclasses.replace(run.program, mirror=mirror))
        config, own = run.config, run.config.data
        identity = sources.identity(data_dir, data)
        step = measure_step(run.program, mesh)
        found, rows = of_split(step, run.program, run.variables, source, config)
        said = about(config, run.step, split, identity, mirror) | found
        same = identity["digest"] == run.data["digest"]
        place = run.run / "eval" / _file_name(said, identity, same)
        if same and not mirror and split == own.test:  # pictures are of the run's own test split
            with config.unlocked():
                config.data.data_dir = data_dir
            pictures.draw(run, config, mesh, found)
    videos = videos_of(source, rows["labels"]["index"])
    said["unlabelled"] = [name for name in run.program.tasks if name not in said]
    measured = {name: task for name, task in run.program.tasks.items() if name in said}
    for name, task in measured.items():
        predicted, labels = rows["predictions"][name], rows["labels"]
        said[name] = said[name] | {
            "intervals": _intervals(task, predicted, labels, said[name], videos, resamples)
        }
        if videos is not None:
            said[name] |= by_video(task, predicted, labels, videos)
    seen, _ = matched(run.program.tasks, source)
    said["unmatched"] = seen.unmatched
    write(place, said)
    write_answers(run, seen, rows, place)
    return said, place


class Asked(NamedTuple):
    """A run, and the split that it is asked about."""

    run: trained.Trained
    data_dir: str
    data: str
    split: str
    source: sources.Opened


def asked(path: pathlib.Path, mesh: Mesh, data: str, data_dir: str, split: str) -> Asked:
    """A run on a split, where nothing else is named on the test split of its own data; UserError.

    path: a workdir, or a checkpoint in one.
    """
    run = trained.load(path, mesh)
    if not run.program.tasks:
        raise UserError(f"The run {run.run} has no task to evaluate; probe its encoder instead.")
    own = run.config.data
    data_dir, data, split = data_dir or own.data_dir, data or own.name, split or own.test
    if not split:
        raise UserError(f"The run {run.run} has no test split (data.test is empty); give one.")
    return Asked(run, data_dir, data, split, sources.open_split(data_dir, data, split))


def write_answers(
    run: trained.Trained, seen: sources.Matched, rows: Mapping[str, dict], report: pathlib.Path
) -> None:
    """Every example's labels and answers, as a table of that name beside a report."""
    if run.program.tasks and cluster.lead():
        table = answers.table(run.program.tasks, seen, rows)
        files.write_parquet(report.with_suffix(".parquet"), table)


def _file_name(said: Mapping[str, Any], identity: Mapping[str, Any], same: bool) -> str:
    other = "" if same else f"{identity['name']}-{identity['digest'][:8]}-"
    mirrored = "-mirrored" if said["mirrored"] else ""
    return f"{other}{said['split']}-{said['step']}{mirrored}.json"


def has_frames(source: sources.Opened) -> bool:
    """Whether a set tells which pictures are frames of one film."""
    return any(label in source.labels for label in FRAMES_OF)


def videos_of(source: sources.Opened, index: np.ndarray) -> np.ndarray | None:
    """The video that each example is a frame of, int [n] from 0 on; None if no set tells.

    index: of the examples in the split, int [n]. A picture of no video stands for itself.
    """
    told = [pipeline.column(source, label)[index] for label in FRAMES_OF if label in source.labels]
    if not told:
        return None
    part = np.zeros(len(index), int)
    for number, rows in enumerate(getattr(source, "parts", {}).values()):
        part[(index >= rows.start) & (index < rows.stop)] = number
    alone = np.where(np.max(told, axis=0) < 0, np.arange(len(index)), -1)
    known = np.stack([part, alone, *told], axis=1)
    return np.unique(known, axis=0, return_inverse=True)[1].ravel()


def by_video(
    task: Any, predicted: np.ndarray, labels: Mapping[str, np.ndarray], videos: np.ndarray
) -> dict[str, Any]:
    """{"videos": {"mean": metrics, "max": metrics}} of a task of two classes; {} of others.

    predicted [N] or [N, 2]; videos int [N]. Over the frames of a video the logit's mean, or its
    largest value, is taken; the label is that of its frames.
    """
    two = predicted.ndim == 2 and predicted.shape[1] == 2 and hasattr(task, "classes")
    if predicted.ndim != 1 and not two:
        return {}
    yes = np.clip((predicted[:, 1] if two else predicted).astype(np.float64), 1e-12, 1 - 1e-12)
    logit = np.log(yes) - np.log1p(-yes)
    count = np.bincount(videos)
    first = np.unique(videos, return_index=True)[1]
    largest = np.full(len(count), -np.inf)
    np.maximum.at(largest, videos, logit)
    found = {}
    for name, of in (("mean", np.bincount(videos, logit) / count), ("max", largest)):
        share = 1 / (1 + np.exp(-of))
        share = np.stack([1 - share, share], axis=1) if two else share
        found[name] = task.metrics(share, {key: rows[first] for key, rows in labels.items()})
    return {"videos": found}


def _intervals(task, predicted, labels, found, clusters, resamples) -> dict[str, list[float]]:
    """The interval of each headline of a task, by its name."""
    wanted = [key for key, value in found.items() if isinstance(value, float)]
    wanted = [key for key in wanted if names.metric(key).headline]

    def measure(rows: np.ndarray) -> Mapping[str, Any]:
        return task.metrics(predicted[rows], {key: part[rows] for key, part in labels.items()})

    return bootstrap.intervals(measure, wanted, len(predicted), clusters, resamples)


def text(said: Mapping[str, Any]) -> str:
    """A report as lines for the screen."""
    data = said["data"]
    mirrored = ", mean with the mirrored pictures" if said["mirrored"] else ""
    lines = [
        f"{data['name']} {data['version']}, {said['split']}, {said['examples']:,} examples; step "
        f"{said['step']}, weights: {said['weights']}{mirrored}"
    ]
    for key, value in scalars(said).items():
        task, _, name = key.partition("/")  # of a pretext of several targets: TARGET/skill
        if not names.metric(name).headline:
            continue
        scale, unit = names.shown_in(name)
        lines.append(f"  {key:<36}{scale * value:8.2f}{unit}")
        if name in said[task].get("intervals", {}):
            low, high = said[task]["intervals"][name]
            lines[-1] += f"  ({scale * low:.2f}–{scale * high:.2f})"
    for task, part in said.items():
        for way, of in (part.get("videos", {}) if isinstance(part, Mapping) else {}).items():
            shown = headlines({key: of[key] for key in of if isinstance(of[key], float)})
            lines.append(f"  {task} by video, {way} of the logits, {of['n']:,} videos: {shown}")
    for name, of in said.get("sets", {}).items():
        lines.append(f"  of {name}, {of['examples']:,} examples: {headlines(scalars(of))}")
    for name in said["unlabelled"]:
        lines.append(f"  {name}: no example has a label of it")
    for label, apart in said["unmatched"].items():
        for whose, told in (("data", "the run does not know"), ("run", "the data do not have")):
            if apart[whose]:
                lines.append(f"  {label}: {told} {', '.join(apart[whose])}")
    if said["skipped_images"]:
        lines.append(f"  {said['skipped_images']:,} pictures could not be read, and count nowhere")
    return "\n".join(lines)


def ask_for_split(parser: argparse.ArgumentParser) -> None:
    """The flags of a command that measures a run on a split."""
    parser.add_argument("run", type=pathlib.Path, help="a workdir, or a checkpoint in one")
    parser.add_argument("--data", default="", help="another prepared set, or several: a,b")
    parser.add_argument("--data_dir", default="", help="instead of the folder that the run read")
    parser.add_argument("--split", default="", help="instead of the run's test split")
    parser.add_argument(
        "--resamples", type=int, default=RESAMPLES, help="of the bootstrap; 0: no intervals"
    )


def main() -> None:
    """Evaluates a run, and leaves the report and the answers in it."""
    parser = argparse.ArgumentParser(
        prog="python -m hmtl_jax.evaluate", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    ask_for_split(parser)
    parser.add_argument(
        "--mirror", action="store_true", help="mean of the answers for a picture and its mirror"
    )
    args = parser.parse_args()
    try:
        said, place = assess(
            args.run, data=args.data, data_dir=args.data_dir, split=args.split,
            mirror=args.mirror, resamples=args.resamples,
        )  # fmt: skip
    except UserError as error:
        sys.exit(f"error: {error}")
    print(text(said))
    print(f"see {place}, {place.with_suffix('.parquet').name}")


if __name__ == "__main__":
    compiled.keep()
    main()

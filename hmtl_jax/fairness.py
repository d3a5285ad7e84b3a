"""python -m hmtl_jax.fairness RUN --by race,gender: how a run serves groups of people.

Every task's first headline, or the metric that is named, over each group of a label of the data
(ground truth, as the data set has it) and over the intersection of several; the gap between groups
with its interval; and for decisions of two classes the differences of demographic parity, equal
opportunity and equalized odds. Leaves fairness/SPLIT-STEP.json and .md in the run.
"""

import argparse
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd

from hmtl_jax import build, compiled, evaluate, files, infer, sharding
from hmtl_jax.data import pipeline, sources
from hmtl_jax.errors import Unlabelled, UserError, lookup
from hmtl_jax.metrics import fairness, names


def assess(
    path: pathlib.Path,
    by: Sequence[str],
    *,
    data: str = "",
    data_dir: str = "",
    split: str = "",
    metric: str = "",
    resamples: int = evaluate.RESAMPLES,
) -> dict[str, Any]:
    """The fairness of a run on a split, as JSON of a few hundred lines.

    path: a workdir, or a checkpoint in one. by: class labels of the data. data, data_dir, split:
    instead of the run's own test split. metric: such as "accuracy", of the tasks that have it; "":
    each task's first headline. Tasks that no example with a group has a label of are left out.

    Returns `data`, `split`, `examples`, `by`, `left_out` (examples without a group), `over` (what
    the bootstrap draws: "examples", or "videos" where the set tells them apart), and under `tasks`,
    TASK → {`metric`, `columns`: GROUPING → what `fairness.by_group` tells, with `parity`
    and `deepfakes` where the task decides between two}. A GROUPING is a label, or several with `×`.
    Raises UserError for a run, a set or a label that is not there, and a run without tasks.
    """
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
        run, _, _, split, source = evaluate.asked(path, mesh, data, data_dir, split)
        columns = _columns(source, by)
        step = build.jitted(infer.eval_step, run.program, out_shardings=sharding.replicated(mesh))
        found = evaluate.predictions_of(step, run.program, run.variables, source, run.config)
    index = found["labels"]["index"]
    videos = evaluate.videos_of(source, index)
    columns = {name: column[index] for name, column in columns.items()}
    known = np.all([column != "" for column in columns.values()], axis=0)
    columns = {name: column[known] for name, column in columns.items()}
    groupings = {name: fairness.crossed({name: column}) for name, column in columns.items()}
    if len(columns) > 1:
        groupings[" × ".join(columns)] = fairness.crossed(columns)
    rows = jax.tree.map(lambda of: of[known], found)
    keys = _metrics(evaluate.metrics(run.program.tasks, rows), metric, by)
    clusters = None if videos is None else videos[known]
    return {
        "run": str(run.run), "step": run.step, "data": source.name, "split": split,
        "examples": int(known.sum()), "left_out": int((~known).sum()), "by": list(by),
        "over": "examples" if videos is None else "videos",
        "tasks": {
            name: {
                "metric": key,
                "columns": {
                    grouping: _of_groups(
                        run.program.tasks[name], key, rows["predictions"][name], rows["labels"],
                        groups, resamples, clusters,
                    )
                    for grouping, groups in groupings.items()
                },
            }
            for name, key in keys.items()
        },
    }  # fmt: skip


def _metrics(measured: Mapping[str, Mapping], metric: str, by: Sequence[str]) -> dict[str, str]:
    """Task → the metric that its groups are told by, of those that it has; UserError for none."""
    if not measured:
        raise UserError(
            f"No example with {' and '.join(by)} has a label of the run's tasks; take another "
            "label, or a set that has both."
        )
    has = {
        task: [key for key, value in of.items() if isinstance(value, float)]
        for task, of in measured.items()
    }
    keys = {task: metric or names.first_headline(known) for task, known in has.items()}
    found = {task: key for task, key in keys.items() if key in has[task]}
    if not found:
        lacking = (
            f"The task {task} has no metric {metric!r}; it has {', '.join(known)}."
            for task, known in has.items()
        )
        raise UserError(" ".join(lacking))
    return found


def _columns(source: sources.Opened, by: Sequence[str]) -> dict[str, np.ndarray]:
    """The group of each record, by its name; "" where the label is missing."""
    named = [label for label in source.labels if source.class_names(label)]
    classes = {label: source.class_names(label) or () for label in named}
    found = {}
    for label in by:
        known = lookup(classes, label, f"label of groups in {source.name}:")
        values = pipeline.column(source, label)
        if values.ndim != 1:
            raise UserError(f"The label {label} of {source.name} is a vector, and names no group.")
        found[label] = np.array([*known, ""], dtype=object)[values]
    return found


def _of_groups(
    task: Any, key: str, predicted: np.ndarray, labels: Mapping[str, np.ndarray],
    groups: pd.Series, resamples: int, clusters: np.ndarray | None,
) -> dict[str, Any]:  # fmt: skip
    """What is told of a task's metric over groups, and of its decisions, if it makes some."""

    def metrics(places: np.ndarray) -> dict:
        try:
            chosen = {label: rows[places] for label, rows in labels.items()}
            return task.metrics(predicted[places], chosen)
        except Unlabelled:
            return {"n": 0, key: None}

    found = fairness.by_group(
        lambda places: metrics(places)[key], groups, resamples, clusters=clusters,
        counted=lambda places: metrics(places)["n"],
    )  # fmt: skip
    decided = _decisions(task, predicted, labels)
    if decided is not None:
        truth, yes, rows = decided
        own = groups.loc[rows].reset_index(drop=True)
        found["parity"] = fairness.parity(truth, yes, own)
        found["deepfakes"] = fairness.of_deepfakes(truth, yes, own)
    return found


def _decisions(task: Any, predicted: np.ndarray, labels: Mapping[str, np.ndarray]) -> Any:
    """Truth and decision, 0 or 1, of the labelled rows, and these; None if it is no yes or no."""
    label = getattr(task, "label", None)
    if label is None:
        return None
    truth = np.asarray(labels[label])
    rows = truth >= 0
    if predicted.ndim == 1:
        yes = predicted >= 0.5
    elif predicted.shape[1] == 2:
        yes = predicted[:, 1] > predicted[:, 0]
    else:
        return None
    return truth[rows].astype(int), yes[rows].astype(int), rows


def text(found: Mapping[str, Any]) -> str:
    """An assessment in Markdown."""
    lines = [
        f"# {found['data']}, {found['split']}, {found['examples']:,} examples", "",
        f"Groups are labels of the data set: {', '.join(found['by'])}. Intervals: 95 %, a "
        f"bootstrap over {found['over']} within each group. (few): fewer than {fairness.SMALL} "
        "examples.",
    ]  # fmt: skip
    if found["left_out"]:
        lines[-1] += f" {found['left_out']:,} examples have no group."
    for name, task in found["tasks"].items():
        scale, unit = names.shown_in(task["metric"])
        for grouping, part in task["columns"].items():
            lines += ["", f"## {name}/{task['metric']} by {grouping}", ""]
            lines += _table(part, scale, unit)
    return "\n".join(lines) + "\n"


def _table(part: Mapping[str, Any], scale: float, unit: str) -> list[str]:
    def said(value: float | None, interval: Sequence[float] | None = None) -> str:
        if value is None:
            return "–"
        between = f" ({scale * interval[0]:.2f}–{scale * interval[1]:.2f})" if interval else ""
        return f"{scale * value:.2f}{unit}{between}"

    lines = ["| group | examples | value |", "|---|---|---|"]
    for group, row in part["groups"].items():
        few = " (few)" if row["small"] else ""
        value = said(row["value"], row["interval"])
        lines.append(f"| {group}{few} | {row['examples']:,} | {value} |")
    lines += [
        "",
        f"Overall {said(part['overall'])}; lowest {part['lowest']}, highest {part['highest']}; gap "
        f"{said(part['gap'], part['gap_interval'])}, ratio "
        f"{'–' if part['ratio'] is None else format(part['ratio'], '.3f')}, deviation "
        f"{said(part['deviation'])}.",
    ]
    for kind in ("parity", "deepfakes"):
        if kind in part:
            told = (
                f"{key} {'–' if value is None else format(value, '.4f')}"
                for key, value in part[kind].items()
            )
            lines.append(f"{'; '.join(told)}.")
    return lines


def main() -> None:
    """Assesses a run, and leaves the report in it."""
    parser = argparse.ArgumentParser(prog="python -m hmtl_jax.fairness", description=__doc__)
    evaluate.ask_for_split(parser)
    parser.add_argument("--by", required=True, help="class labels of the data, as race,gender")
    parser.add_argument("--metric", default="", help="instead of each task's first headline")
    args = parser.parse_args()
    try:
        found = assess(
            args.run, args.by.split(","), data=args.data, data_dir=args.data_dir,
            split=args.split, metric=args.metric, resamples=args.resamples,
        )  # fmt: skip
        folder = pathlib.Path(found["run"]) / "fairness"
        folder.mkdir(exist_ok=True)
        name = f"{found['data']}-{found['split']}-{found['step']}"
        files.write_json(folder / f"{name}.json", found)
        files.write_text(folder / f"{name}.md", text(found))
    except UserError as error:
        sys.exit(f"error: {error}")
    print(text(found))
    print(f"see {folder / name}.json, .md")


if __name__ == "__main__":
    compiled.keep()
    main()

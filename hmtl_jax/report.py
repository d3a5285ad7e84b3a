"""python -m hmtl_jax.report RUN [RUN …]: what runs became, as one page that needs no network.

    python -m hmtl_jax.evaluate runs/NAME      # intervals, calibration, the surest mistakes
    python -m hmtl_jax.fairness runs/NAME --by race,gender          # the groups
    python -m hmtl_jax.report runs/NAME --out report.html

The page holds what lies in the runs' folders, and so no pictures of faces, unless --pictures asks
for these. While a run trains, TensorBoard shows its log and pictures: tensorboard --logdir runs.
"""

import argparse
import base64
import dataclasses
import functools
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
from scipy import stats

from hmtl_jax import charts, files, probe, recipe, results, trained, workdir
from hmtl_jax.data import sources
from hmtl_jax.errors import UserError
from hmtl_jax.metrics import names

MISTAKES = 12
TEMPLATE = pathlib.Path(__file__).with_suffix(".html")
# Of the log, what is a curve, in the page's order: how a name begins → how its panel is called.
CURVES = {
    "loss/": "Training loss, ", "skill/": "Skill in training, ", "eval/": "", "weight/": "Weight, ",
    "lr": "Learning rate", "images_per_second": "Images per second",
}  # fmt: skip


def page(paths: Sequence[pathlib.Path], *, pictures: bool = False) -> str:
    """The page of one or more runs, as HTML.

    paths: workdirs. pictures: with the faces of the surest mistakes, and what lies in the runs'
    folders `pictures`. Raises UserError for a path that is no run.
    """
    runs = [results.opened(path) for path in paths]
    if len({run.name for run in runs}) < len(runs):
        runs = [dataclasses.replace(run, name=str(run.folder)) for run in runs]
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    tasks = dict.fromkeys(name for run in runs for name in _tasks(run))
    return environment.from_string(TEMPLATE.read_text()).render(
        title=" and ".join(run.name for run in runs),
        runs=runs,
        summary=_summary(runs),
        differences=[
            (run.name, recipe.differences(run.config, runs[0].config)) for run in runs[1:]
        ],
        curves=list(_curves(runs)),
        tasks=[_task(name, runs, pictures) for name in tasks],
        groups=list(_groups(runs)),
        probes=list(_probes(runs)),
        pictures=list(_pictures(runs)) if pictures else [],
    )


def _tasks(run: results.Run) -> list[str]:
    return [name for name in workdir.read(run.folder, workdir.TASKS) if name in run.test]


def _summary(runs: Sequence[results.Run]) -> Iterator[tuple[str, list[str]]]:
    data = [workdir.read(run.folder, workdir.DATA) for run in runs]
    versions = [workdir.read(run.folder, workdir.VERSIONS) for run in runs]
    yield "encoder", [run.config["model.encoder"] for run in runs]
    yield "data", [f"{of['name']} {of['version']}" for of in data]
    yield "step", [str(run.test.get("step") or _last(run)) for run in runs]
    yield "weights", [run.test.get("weights", "–") for run in runs]
    yield "test examples", [f"{run.test.get('examples', 0):,}" for run in runs]
    for key in dict.fromkeys(key for run in runs for key in _headlines(run)):
        yield key, [_headlines(run).get(key, "–") for run in runs]
    yield "commit", [of.get("commit", "")[:12] or "–" for of in versions]


def _last(run: results.Run) -> str:
    return str(run.log[-1]["step"]) if run.log else "–"


def _headlines(run: results.Run) -> dict[str, str]:
    return {
        f"{task}/{name}": said
        for task, part in run.test.items()
        if isinstance(part, Mapping)
        for name, said in results.measures(part).items()
        if names.metric(name).headline
    }


def _curves(runs: Sequence[results.Run]) -> Iterator[str]:
    logged = dict.fromkeys(key for run in runs for row in run.log for key in row)
    among = [run.name for run in runs]
    for start, title in CURVES.items():
        for key in (key for key in logged if key.startswith(start)):
            if start == "eval/" and not names.metric(key).headline:
                continue
            series = {}
            for run in runs:
                points = [(row["step"], row[key]) for row in run.log if row.get(key) is not None]
                if points:
                    series[run.name] = tuple(zip(*points, strict=True))
            changes = any(len(set(y)) > 1 for _, y in series.values())
            if changes or (series and start != "weight/"):  # a constant weight is in the recipe
                yield charts.lines(
                    title + key.removeprefix(start), series, among, log=start == "loss/"
                )


def _task(name: str, runs: Sequence[results.Run], pictures: bool) -> dict[str, Any]:
    having = [run for run in runs if name in run.test]
    found: dict[str, Any] = {"name": name, "charts": [], "confusions": [], "mistakes": []}
    measured = [results.measures(run.test.get(name, {})) for run in runs]
    rows = dict.fromkeys(key for of in measured for key in of)
    found["measures"] = [(key, [of.get(key, "–") for of in measured]) for key in rows]
    found["charts"] += _of_classes(name, having) + _of_numbers(name, having)
    answered = {run.name: of for run in having if (of := _answered(name, run))}
    if answered:
        sure = {run: _sureness(of) for run, of in answered.items()}
        found["charts"].append(charts.calibration("Calibration", sure))
    for run in having:
        if "confusion" in run.test[name]:
            found["confusions"].append(_confusion(run, run.test[name]))
        rows = _mistakes(answered.get(run.name, []), run, pictures)
        if rows:
            found["mistakes"].append({"run": run.name, "rows": rows, "pictures": pictures})
    return found


def _of_classes(task: str, runs: Sequence[results.Run]) -> list[str]:
    """Recall of each class, with Wilson's interval."""
    each = {run.name: run.test[task].get("per_class") for run in runs}
    classes = list(dict.fromkeys(name for of in each.values() for name in of or ()))
    if not classes:
        return []

    def cell(row: Mapping[str, Any] | None):
        if not row or row["recall"] is None:
            return None
        right = round(row["recall"] * row["n"])
        bounds = stats.binomtest(right, row["n"]).proportion_ci(method="wilson")
        return 100 * row["recall"], 100 * bounds.low, 100 * bounds.high

    series = {name: [cell((of or {}).get(one)) for one in classes] for name, of in each.items()}
    counts = next(of for of in each.values() if of)
    rows = [f"{one} ({counts.get(one, {'n': 0})['n']:,})" for one in classes]
    return [charts.dots("Recall by class", rows, series, "%")]


def _of_numbers(task: str, runs: Sequence[results.Run]) -> list[str]:
    """The measure of each attribute or number; without intervals, which reports do not have."""
    found = []
    for table, measure in (("per_attribute", "auc"), ("per_label", "mae")):
        each = {run.name: run.test[task].get(table, {}) for run in runs}
        rows = list(dict.fromkeys(name for of in each.values() for name in of))
        scale, unit = names.shown_in(measure)
        series = {
            name: [
                (scale * value,) * 3
                if (value := of.get(row, {}).get(measure)) is not None
                else None
                for row in rows
            ]
            for name, of in each.items()
        }
        if len(rows) > 1:
            found.append(charts.dots(f"{measure.upper()} of each", rows, series, unit.strip()))
    return found


def _sureness(read: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """The probability of the predicted class, and whether it is right."""
    return np.array([row["share"] for row in read]), np.array([row["right"] for row in read])


def _answered(task: str, run: results.Run) -> list[dict[str, Any]]:
    """Each labelled example of a classification; [] where there is none, or of another task.

    With key, truth, predicted, share (the probability of that) and right.
    """
    fields = workdir.read(run.folder, workdir.TASKS)[task]
    if fields["kind"] != "classification" or f"predicted/{task}" not in run.answers:
        return []
    answers, truths = run.answers, run.answers[fields["label"]]
    predicted = answers[f"predicted/{task}"]
    return [
        {
            "key": answers["key"][row], "truth": truth, "predicted": said,
            "share": answers[f"predicted/{task}/{said}"][row], "right": truth == said,
        }
        for row, (truth, said) in enumerate(zip(truths, predicted, strict=True))
        if truth is not None
    ]  # fmt: skip


def _mistakes(
    read: Sequence[Mapping[str, Any]], run: results.Run, pictures: bool
) -> list[Mapping[str, Any]]:
    wrong = [row for row in read if not row["right"]]
    wrong = sorted(wrong, key=lambda row: -row["share"])[:MISTAKES]
    if not pictures or not wrong:
        return wrong
    data = trained.recipe_of(run.folder).data
    source = sources.open_split(data.data_dir, data.name, data.test)
    wanted, found = {row["key"] for row in wrong}, {}
    for index in range(len(source)):
        record = source[index]
        if record["key"] in wanted:
            found[record["key"]] = _embedded(record["image"])
    return [{**row, "picture": found.get(row["key"], "")} for row in wrong]


def _confusion(run: results.Run, part: Mapping[str, Any]) -> dict[str, Any]:
    classes, counts = list(part["per_class"]), part["confusion"]
    rows = [
        (f"{name} ({sum(row):,})", [(count / max(1, sum(row)), count) for count in row])
        for name, row in zip(classes, counts, strict=True)
    ]
    return {"run": run.name, "names": classes, "rows": rows}


def _groups(runs: Sequence[results.Run]) -> Iterator[str]:
    """What `hmtl_jax.fairness` left, the newest of each run."""
    left: dict[tuple[str, str, str], dict[str, dict]] = {}
    for run in runs:
        whose, found = results.by_group(run)
        for task, of in found.items():
            for grouping, part in of["columns"].items():
                title = f"{task}/{of['metric']} by {grouping}"
                left.setdefault((title, of["metric"], whose), {})[run.name] = part["groups"]
    for (title, metric, whose), each in left.items():
        scale, unit = names.shown_in(metric)
        cell = functools.partial(_group, scale)
        groups = list(dict.fromkeys(group for of in each.values() for group in of))
        series = {name: [cell(of.get(group)) for group in groups] for name, of in each.items()}
        yield charts.dots(f"{title}, {whose}", groups, series, unit.strip())


def _probes(runs: Sequence[results.Run]) -> Iterator[tuple[str, list[list[str]]]]:
    """What the job `probe` left in the runs: whose and of what, and its table."""
    for run in runs:
        for file in sorted((run.folder / "probe").glob("probe-*.json")):
            found = files.read_json(file)
            yield f"{run.name}: {found['label']}", probe.table(found)


def _group(scale: float, row: Mapping[str, Any] | None) -> tuple[float, float, float] | None:
    if not row or row["value"] is None:
        return None
    low, high = row["interval"] or (row["value"],) * 2
    return scale * row["value"], scale * low, scale * high


def _pictures(runs: Sequence[results.Run]) -> Iterator[tuple[str, str, str]]:
    """What a run drew, but for what the page draws itself."""
    for run in runs:
        for file in sorted((run.folder / "pictures").rglob("*.png")):
            name = file.relative_to(run.folder / "pictures").with_suffix("").as_posix()
            if name != "curves" and not name.endswith("_confusion"):
                yield run.name, name, _embedded(file.read_bytes())


def _embedded(encoded: bytes) -> str:
    kind = "png" if encoded.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"


def main() -> None:
    """Writes the page of runs."""
    parser = argparse.ArgumentParser(
        prog="python -m hmtl_jax.report", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("runs", nargs="+", type=pathlib.Path, help="workdirs")
    parser.add_argument("--out", type=pathlib.Path, help="the page; report.html in the first run")
    parser.add_argument("--pictures", action="store_true", help="show faces of the data set")
    args = parser.parse_args()
    try:
        out = args.out or args.runs[0] / "report.html"
        made = page(args.runs, pictures=args.pictures)
        files.write_text(out, made)
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"see {out}, {len(made.encode()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

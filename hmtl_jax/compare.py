"""python -m hmtl_jax.compare METHOD METHOD …: runs on the same test examples, side by side.

    python -m hmtl_jax.compare runs/supervised runs/puzzle
    python -m hmtl_jax.compare supervised=runs/sl-0,runs/sl-1,runs/sl-2 'puzzle=runs/puzzle-*'
    python -m hmtl_jax.compare runs/supervised runs/puzzle --metrics deepfake/auc,deepfake/eer

A method is a run, or several with commas or as a pattern: seeds of the same recipe, whose figures
are a mean ± standard deviation. The first method is the one that the others are held against. Where
both have seeds, a difference has Welch's 95 % interval and p-value over these, which tell how other
seeds would end. Otherwise it is the percentile interval of a paired bootstrap over the examples
(over videos, where the set tells them apart; Efron 1993), of the mean over seeds: it tells how far
the test's sample could mislead.
"""

import argparse
import glob
import itertools
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from scipy import stats

from hmtl_jax import build, compiled, evaluate, figures, files, infer, sharding, trained, workdir
from hmtl_jax.data import sources
from hmtl_jax.errors import UserError, lookup
from hmtl_jax.metrics import bootstrap, names

RESAMPLES = 1000


def methods_of(given: Sequence[str]) -> dict[str, list[pathlib.Path]]:
    """`PATH`, `PATH,PATH`, `PATTERN` or `NAME=…` of each method → its name and its runs.

    Without a name it is that of the folder, or what the folders' names begin with; their whole
    paths where that leaves two methods with one name. UserError for fewer than two methods, a
    pattern of nothing, and names or runs that come twice.
    """
    if len(given) < 2:
        raise UserError("One run cannot be compared; name two or more.")
    named: list[tuple[str, list[pathlib.Path]]] = []
    for text in given:
        name, paths = files.named(text)
        found = [path for part in paths.split(",") for path in _runs_of(part.strip())]
        named.append((name or _short(found), found))
    if len({name for name, _ in named}) < len(named):
        named = [(",".join(map(str, found)), found) for _, found in named]
    every = [path.resolve() for _, found in named for path in found]
    if len(set(every)) < len(every):
        raise UserError("A run is named twice; a comparison needs different ones.")
    return dict(named)


def _runs_of(text: str) -> list[pathlib.Path]:
    if not glob.has_magic(text) or os.path.exists(text):
        return [pathlib.Path(text)]
    found = [path for path in map(pathlib.Path, sorted(glob.glob(text))) if path.is_dir()]
    if not found:
        raise UserError(f"There is no run {text}.")
    return found


def _short(runs: Sequence[pathlib.Path]) -> str:
    if len(runs) == 1:
        return runs[0].name
    letters = itertools.takewhile(
        lambda of: len(set(of)) == 1, zip(*(run.name for run in runs), strict=False)
    )
    shared = "".join(of[0] for of in letters).rstrip("-_.0123456789")
    return shared or ",".join(run.name for run in runs)


def compare(
    methods: Mapping[str, Sequence[pathlib.Path]],
    data_dir: str | None = None,
    resamples: int = RESAMPLES,
    metrics: Sequence[str] = (),
) -> dict[str, Any]:
    """What methods reach on the test split of the first run's data, and how far they are apart.

    methods: name → workdirs, or checkpoints in them; the first one is the baseline. data_dir: where
    the data lie, if no longer where the first run read them. metrics: TASK/METRIC of each that is
    wanted; none: of each task that all share and some example has a label of, the metric by which
    the first run chose its checkpoint, or the task's first headline.

    Returns `data`, `split`, `examples`, `methods` (names), `runs` (their number, by method), and
    under `metrics` TASK/METRIC → {`values`: of each method, one a run, `means`, `deviations` (None
    of a single run), and of each method but the first `differences`, `intervals` ([low, high]), `p`
    (two-sided) and `over`: "seeds", "examples" or "videos"}. Raises UserError for runs without a
    common task, for a metric that they lack, and where the data are not those of the runs.
    """
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
        runs = [trained.load(path, mesh) for paths in methods.values() for path in paths]
        wanted = _wanted(runs, metrics)
        source = _source(runs, data_dir)
        found = [_predictions(run, source, mesh) for run in runs]
    index = found[0]["labels"]["index"]
    videos = evaluate.videos_of(source, index)
    sizes = [len(paths) for paths in methods.values()]
    measured = evaluate.metrics({task: runs[0].program.tasks[task] for task in wanted}, found[0])
    unlabelled = wanted.keys() - measured.keys()
    if unlabelled and (metrics or not measured):
        raise evaluate.no_label(source, sorted(unlabelled))
    compared = {}
    for task in measured:
        keys, tasks = wanted[task], [run.program.tasks[task] for run in runs]
        compared.update(_of_task(task, tasks, found, resamples, sizes, keys, videos))
    return {
        "data": source.name,
        "split": runs[0].config.data.test,
        "examples": len(index),
        "methods": list(methods),
        "runs": sizes,
        "metrics": compared,
    }


def _wanted(runs: Sequence[trained.Trained], metrics: Sequence[str]) -> dict[str, list[str]]:
    """Task that all runs share → the metrics asked of it; [] for its first headline."""
    shared = [
        task for task in runs[0].program.tasks if all(task in run.program.tasks for run in runs[1:])
    ]
    if not shared:
        has = (f"{run.run} {', '.join(run.program.tasks) or 'none'}" for run in runs)
        raise UserError(f"No task is common to all runs; they have: {'; '.join(has)}.")
    wanted: dict[str, list[str]] = {task: [] for task in shared}
    known = {task: _measured(runs, task) for task in shared}
    for key in metrics or [runs[0].config.checkpoint.best]:
        task, _, metric = key.partition("/")
        if metrics:
            if not metric:
                raise UserError(f"{key!r} is no TASK/METRIC, such as expression/accuracy.")
            of_task = lookup(known, task, "task of all runs")
            lookup(dict.fromkeys(of_task), metric, f"metric of {task} in all runs")
        if metric in known.get(task, ()) and metric not in wanted[task]:
            wanted[task].append(metric)
    return {task: keys for task, keys in wanted.items() if keys or not metrics}


def _measured(runs: Sequence[trained.Trained], task: str) -> list[str]:
    of_each = [run.program.tasks[task].metric_names for run in runs]
    return [name for name in of_each[0] if all(name in names for names in of_each)]


def _source(runs: Sequence[trained.Trained], data_dir: str | None) -> sources.Opened:
    first = runs[0].config.data
    folder = data_dir or first.data_dir
    if not first.test:
        raise UserError(f"The run {runs[0].run} has no test split (data.test is empty).")
    digest = sources.identity(folder, first.name)["digest"]
    for run in runs:
        if run.data["digest"] != digest:
            raise UserError(
                f"The run {run.run} was trained on other data ({run.data['name']}) than those in "
                f"{pathlib.Path(folder) / first.name}; compare runs of the same data."
            )
    return sources.open_split(folder, first.name, first.test)


def _predictions(run: trained.Trained, source: sources.Opened, mesh: Any) -> dict[str, dict]:
    everywhere = sharding.replicated(mesh)
    step = build.jitted(infer.eval_step, run.program, out_shardings=everywhere)
    return evaluate.predictions_of(step, run.program, run.variables, source, run.config)


def _of_task(
    name: str,
    tasks: Sequence[Any],
    found: Sequence[Mapping],
    resamples: int,
    sizes: Sequence[int],
    keys: Sequence[str] = (),
    videos: np.ndarray | None = None,
) -> dict[str, dict]:
    rows = [
        (task, one["predictions"][name], one["labels"])
        for task, one in zip(tasks, found, strict=True)
    ]
    whole = [task.metrics(predicted, labels) for task, predicted, labels in rows]
    shared = {
        key: value
        for key, value in whole[0].items()
        if all(isinstance(one.get(key), float) for one in whole)
    }
    for key in keys:
        if key not in shared:
            raise UserError(
                f"The test split does not define {name}/{key}, as where it holds a single class; "
                f"ask for others by --metrics, of {', '.join(shared)}."
            )
    keys = keys or [names.first_headline(shared)]

    def measure(chosen: np.ndarray) -> dict[tuple[str, int], Any]:
        return {
            (key, run): value
            for run, (task, predicted, labels) in enumerate(rows)
            for key, value in task.metrics(
                predicted[chosen], {k: v[chosen] for k, v in labels.items()}
            ).items()
        }

    of_each = [(key, run) for key in keys for run in range(len(rows))]
    count = len(found[0]["labels"]["index"])
    drawn = bootstrap.draws(measure, of_each, count, videos, resamples)
    drawn = np.split(drawn, len(keys), axis=1)
    over = "examples" if videos is None else "videos"
    return {
        f"{name}/{key}": _summary(f"{name}/{key}", [one[key] for one in whole], draws, sizes, over)
        for key, draws in zip(keys, drawn, strict=True)
    }


def _summary(
    key: str, whole: Sequence[float], drawn: np.ndarray, sizes: Sequence[int], over: str
) -> dict[str, Any]:
    """What is said of a metric, from its values by run, and drawn [resamples, runs] of them.

    over: what was drawn.
    """
    defined = ~np.isnan(drawn).any(axis=1)  # a draw may lack a class, or labels at all
    if len(drawn) and not defined.any():
        raise UserError(f"The test split has too few labels to tell how sure {key} is.")
    drawn = drawn[defined]
    places = np.cumsum(sizes)[:-1]
    values = np.split(np.array(whole), places)
    means = [of.mean() for of in values]
    draws = [of.mean(axis=1) for of in np.split(drawn, places, axis=1)]
    apart = [
        _apart(values[0], draws[0], ours, drawn_ours, over)
        for ours, drawn_ours in zip(values[1:], draws[1:], strict=True)
    ]
    return {
        "values": [of.tolist() for of in values],
        "means": [float(mean) for mean in means],
        "deviations": [float(of.std(ddof=1)) if len(of) > 1 else None for of in values],
        "differences": [float(mean - means[0]) for mean in means[1:]],
        "intervals": [interval for interval, _, _ in apart],
        "p": [p for _, p, _ in apart],
        "over": [over for _, _, over in apart],
    }


def _apart(
    base: np.ndarray, base_drawn: np.ndarray, ours: np.ndarray, ours_drawn: np.ndarray, over: str
) -> tuple[list[float], float, str]:
    """Interval and p-value of a difference of means, and over what they were taken."""
    if min(len(base), len(ours)) > 1 and base.std() + ours.std() > 0:
        test: Any = stats.ttest_ind(ours, base, equal_var=False)
        interval = test.confidence_interval(0.95)
        return [float(interval.low), float(interval.high)], float(test.pvalue), "seeds"
    gaps = ours_drawn - base_drawn
    # The share of draws on the other side of 0, both ways; one more than none, as drawn.
    beyond = min((gaps <= 0).sum(), (gaps >= 0).sum()) + 1
    p = min(1.0, 2 * beyond / (len(gaps) + 1))
    return np.percentile(gaps, [2.5, 97.5]).tolist(), float(p), over


def table(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A comparison as rows, one a metric and method, in the metrics' own units."""
    rows = []
    for key, of in found["metrics"].items():
        for at, method in enumerate(found["methods"]):
            row = {
                "metric": key, "method": method, "runs": found["runs"][at],
                "mean": of["means"][at], "deviation": of["deviations"][at],
                "difference": None, "low": None, "high": None, "p": None, "over": None,
            }  # fmt: skip
            if at:
                low, high = of["intervals"][at - 1]
                row |= {"difference": of["differences"][at - 1], "low": low, "high": high}
                row |= {"p": of["p"][at - 1], "over": of["over"][at - 1]}
            rows.append(row)
    return rows


def _cells(row: Mapping[str, Any]) -> list[str]:
    """Method, value, difference and p as they are shown."""
    scale, unit = names.shown_in(row["metric"])
    spread = f" ± {scale * row['deviation']:.2f}" if row["deviation"] is not None else ""
    seeds = f" ({row['runs']} runs)" if row["runs"] > 1 else ""
    cells = [f"{row['method']}{seeds}", f"{scale * row['mean']:.2f}{spread}{unit}", "", ""]
    if row["difference"] is not None:
        gap, low, high = (scale * row[key] for key in ("difference", "low", "high"))
        cells[2:] = [f"{gap:+.2f} [{low:+.2f}, {high:+.2f}]", f"p {row['p']:.3f}"]
        if row["over"] != "examples":
            cells[3] += f" over {row['over']}"
    return cells


def text(found: Mapping[str, Any]) -> str:
    """A comparison as lines for the screen."""
    lines = [_title(found)]
    for key in found["metrics"]:
        lines.append(key)
        cells = [_cells(row) for row in table(found) if row["metric"] == key]
        wide = [max(len(row[column]) for row in cells) for column in range(3)]
        for row in cells:
            padded = [cell.ljust(width) for cell, width in zip(row, wide, strict=False)]
            lines.append(f"  {'  '.join([*padded, row[3]])}".rstrip())
    return "\n".join(lines)


def markdown(found: Mapping[str, Any]) -> str:
    """A comparison as a table for a paper's draft or a page."""
    lines = [f"{_title(found)}. Difference from the first, 95 % interval.", ""]
    lines += ["| metric | method | value | difference | p |", "|---|---|---|---|---|"]
    for row in table(found):
        lines.append(f"| {row['metric']} | {' | '.join(cell or '–' for cell in _cells(row))} |")
    return "\n".join(lines) + "\n"


def _title(found: Mapping[str, Any]) -> str:
    return f"{found['data']}, {found['split']}, {found['examples']:,} examples"


def main() -> None:
    """Compares runs; leaves compare.json, .md, .csv and .png in the folder that is named."""
    parser = argparse.ArgumentParser(
        prog="python -m hmtl_jax.compare", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("methods", nargs="+", help="[NAME=]RUN[,RUN…]; the first: baseline")
    parser.add_argument("--data_dir", help="instead of the folder that the first run read")
    parser.add_argument(
        "--metrics", default="", help="TASK/METRIC,… instead of what chose the first checkpoint"
    )
    parser.add_argument("--out", type=pathlib.Path, help="where to leave json, md, csv and png")
    args = parser.parse_args()
    try:
        methods = methods_of(args.methods)
        metrics = [key.strip() for key in args.metrics.split(",") if key.strip()]
        found = compare(methods, args.data_dir, metrics=metrics)
        if args.out:
            _leave(found, methods, args.out)
    except UserError as error:
        sys.exit(f"error: {error}")
    print(text(found))
    if args.out:
        print(f"see {args.out / 'compare.json'}, {args.out / 'compare.png'}")


def _leave(found: Mapping[str, Any], methods: Mapping[str, Sequence], out: pathlib.Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    files.write_json(out / "compare.json", found)
    files.write_text(out / "compare.md", markdown(found))
    files.write_text(out / "compare.csv", files.as_csv(table(found)))
    logs = {
        name if len(paths) == 1 else f"{name} {number}": (
            workdir.run_of(trained.find(path)[0]) / "metrics.jsonl"
        )
        for name, paths in methods.items()
        for number, path in enumerate(paths)
    }
    figures.compared_curves(out / "compare.png", logs, list(found["metrics"]))


if __name__ == "__main__":
    compiled.keep()
    main()

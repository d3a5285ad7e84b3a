"""python -m hmtl_jax.compare RUN RUN …: runs on the same test examples, side by side.

The first run is the one that the others are held against. A difference has the 95 % percentile
interval of a paired bootstrap over the examples (Efron 1993): it tells how far the test's sample
could mislead, not how another seed would end.
"""

import argparse
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from hmtl_jax import build, evaluate, figures, files, infer, sharding, trained, workdir
from hmtl_jax.data import sources
from hmtl_jax.errors import UserError
from hmtl_jax.metrics import names

RESAMPLES = 1000


def compare(
    paths: Sequence[pathlib.Path], data_dir: str | None = None, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """What runs reach on the test split of the first one's data, and how far they are apart.

    paths: workdirs, or checkpoints in them, all of other folders; the first one is the baseline.
    data_dir: where the data lie, if no longer where the first run read them.

    Returns `data`, `split`, `examples`, `runs` (names), and under `metrics`, for the first headline
    of each task that all share, TASK/METRIC → {`values`: one a run, `differences`: from the first,
    one for each other run, `intervals`: their [low, high]}. Raises UserError for fewer than two
    runs, for runs without a common task and metric, and where the data are not those of the runs.
    """
    if len(paths) < 2:
        raise UserError("One run cannot be compared; name two or more.")
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError("A run is named twice; a comparison needs different ones.")
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
        runs = [trained.load(path, mesh) for path in paths]
        source = _source(runs, data_dir)
        found = [_predictions(run, source, mesh) for run in runs]
    metrics = {}
    for task in runs[0].program.tasks:
        if all(task in run.program.tasks for run in runs[1:]):
            tasks = [run.program.tasks[task] for run in runs]
            metrics.update(_of_task(task, tasks, found, resamples))
    if not metrics:
        has = (f"{run.run} {', '.join(run.program.tasks) or 'none'}" for run in runs)
        raise UserError(f"No task is common to all runs; they have: {'; '.join(has)}.")
    return {
        "data": source.name,
        "split": runs[0].config.data.test,
        "examples": len(found[0]["labels"]["index"]),
        "runs": _names(paths),
        "metrics": metrics,
    }


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
    name: str, tasks: Sequence[Any], found: Sequence[Mapping], resamples: int
) -> dict[str, dict]:
    rows = [
        (task, one["predictions"][name], one["labels"])
        for task, one in zip(tasks, found, strict=True)
    ]
    whole = [task.metrics(predicted, labels) for task, predicted, labels in rows]
    shared = [key for key in whole[0] if all(key in other for other in whole[1:])]
    key = names.first_headline(shared)
    rng = np.random.default_rng(0)
    count = len(found[0]["labels"]["index"])
    drawn = np.empty((resamples, len(rows)))
    for resample in drawn:
        chosen = rng.integers(0, count, count)
        resample[:] = [_measured(row, key, chosen) for row in rows]
    values = np.array([one[key] for one in whole])
    apart = drawn[:, 1:] - drawn[:, :1]
    low, high = np.percentile(apart, [2.5, 97.5], axis=0)
    return {
        f"{name}/{key}": {
            "values": values.tolist(),
            "differences": (values[1:] - values[0]).tolist(),
            "intervals": np.stack([low, high], axis=1).tolist(),
        }
    }


def _measured(row: tuple, key: str, chosen: np.ndarray) -> float:
    task, predicted, labels = row
    return task.metrics(predicted[chosen], {k: v[chosen] for k, v in labels.items()})[key]


def _names(folders: Sequence[pathlib.Path]) -> list[str]:
    """The folders' own names, or their paths where two are called alike."""
    short = [folder.name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


def text(found: Mapping[str, Any]) -> str:
    """A comparison as lines for the screen."""
    lines = [f"{found['data']}, {found['split']}, {found['examples']:,} examples"]
    for key, row in found["metrics"].items():
        wide = max(map(len, found["runs"]))
        scale, unit = (100, " %") if names.metric(key).unit in ("share", "area") else (1, "")
        lines.append(key)
        for index, (name, value) in enumerate(zip(found["runs"], row["values"], strict=True)):
            line = f"  {name:<{wide}}  {scale * value:6.2f}{unit}"
            if index:
                gap, (low, high) = row["differences"][index - 1], row["intervals"][index - 1]
                line += f"  {scale * gap:+.2f} [{scale * low:+.2f}, {scale * high:+.2f}]"
            lines.append(line)
    return "\n".join(lines)


def main() -> None:
    """Compares runs, and leaves compare.json and compare.png in the folder that is named."""
    parser = argparse.ArgumentParser(prog="python -m hmtl_jax.compare", description=__doc__)
    parser.add_argument("runs", nargs="+", type=pathlib.Path, help="workdirs; the first: baseline")
    parser.add_argument("--data_dir", help="instead of the folder that the first run read")
    parser.add_argument("--out", type=pathlib.Path, help="where to leave compare.json and .png")
    args = parser.parse_args()
    try:
        found = compare(args.runs, args.data_dir)
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            files.write_json(args.out / "compare.json", found)
            logs = {
                name: workdir.run_of(trained.find(path)[0]) / "metrics.jsonl"
                for name, path in zip(found["runs"], args.runs, strict=True)
            }
            figures.compared_curves(args.out / "compare.png", logs, list(found["metrics"]))
    except UserError as error:
        sys.exit(f"error: {error}")
    print(text(found))
    if args.out:
        print(f"see {args.out / 'compare.json'}, {args.out / 'compare.png'}")


if __name__ == "__main__":
    main()

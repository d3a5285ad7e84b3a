"""Tables of methods × seeds, continued where they were left.

    python -m experiments.tables ferplus_targets_cpu --data_dir data --runs runs/tables --jobs 2
    python -m experiments.tables ferplus_targets_cpu --runs runs/tables --only_table

Every cell is `python -m hmtl_jax.main` with a recipe of configs/ and a seed, in its own workdir.
A cell that has its test result is not run again; one that was cut off goes on from its checkpoint.
What a cell came to is kept in experiments/cells/NAME.json, which is committed: another machine runs
what is missing there.
With `--jobs`, cells run side by side, each on its own share of the cores: small models use one core
better than two. The minutes of a run are those of its share.
The table has, for each method, mean ± standard deviation over seeds on the test split, the
difference from the first method with Welch's 95 % interval, and the wall time of a run. A part of
the labels is the same part for all seeds. It is written to experiments/NAME.md as far as cells are
there.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent import futures

import numpy as np
from scipy import stats

from hmtl_jax import results, train
from hmtl_jax.files import write_json
from hmtl_jax.metrics import names

HERE = pathlib.Path(__file__).parent
DONE = "seconds.json"  # what a finished stage leaves


@dataclasses.dataclass(frozen=True)
class Table:
    """methods: name → stages, each a recipe with its flags; the first method is the baseline.

    A later stage starts from the encoder of the one before it. metric: TASK/METRIC of the last
    stage's test report.
    """

    title: str
    metric: str
    methods: Mapping[str, Sequence[tuple[str, Sequence[str]]]]
    seeds: int = 3

    @property
    def percent(self) -> bool:
        """Whether the metric is a share, or an area that reads as one."""
        return names.shown_in(self.metric)[0] == 100


def one(recipe: str, *flags: str) -> list[tuple[str, tuple[str, ...]]]:
    """A method of one stage."""
    return [(recipe, flags)]


def few_labels(form: str, share: float, steps: int) -> dict:
    """FER+ with a share of the labels: alone, with masked views or a puzzle of all faces, and more.

    form: the recipe's argument. Batches, steps and warm-up are equal, but for `supervised_longer`,
    which has twice the steps, for what the puzzle costs in processor time.
    """

    def method(role: str, *flags: str, longer: int = 1) -> tuple[str, tuple[str, ...]]:
        words = ",".join(filter(None, (form, role)))
        size = (f"--config.steps={longer * steps}", f"--config.eval_every={longer * steps // 6}")
        return f"ferplus_few_labels{words and ':' + words}", (*size, *flags)

    few = f"--config.data.subset={share}"
    every = ("--config.data.labelled=1", "--config.data.unlabelled_share=0")
    return {
        "supervised": [method("supervised", few)],
        "masksub_all_faces": [method("masksub", f"--config.data.labelled={share}")],
        "puzzle_all_faces": [method("", f"--config.data.labelled={share}")],
        "puzzle_same_faces": [method("", few, *every)],
        "supervised_longer": [method("supervised", few, longer=2)],
        "puzzle_then_finetune": [method("pretrain"), method("finetune", few)],
    }


def few_pretexts(form: str, share: float, steps: int) -> dict:
    """FER+ with a share of the labels: alone, and with each pretext of all faces."""
    size = (f"--config.steps={steps}", f"--config.eval_every={steps // 6}")
    found = {
        "supervised": one(
            f"ferplus_few_labels:{form},supervised", *size, f"--config.data.subset={share}"
        )
    }
    for name in ("puzzle", "inpaint", "masksub", "drloc"):
        recipe = f"ferplus_few_labels:{form},{name}"
        found[name] = one(recipe, *size, f"--config.data.labelled={share}")
    return found


# Of every task on rendered faces, what is compared.
SYNTHETIC = {"pose": "mae", "attributes": "accuracy", "affect": "ccc", "deepfake": "auc"}
# Targets of the masked auto-encoder, each in the forms that it has.
FORMS = (
    "rgb", "rgb_patch",
    "lbp", "lbp_4", "lbp_patch", "lbp_bits", "lbp_bits_2", "lbp_bits_4", "lbp_bits_patch",
    "lbp_uniform", "lbp_uniform_histogram_4", "lbp_uniform_histogram",
    "ldp", "ldp_bits", "ldp_bits_4", "ldp_bits_patch", "ldp_histogram",
    "cs_lbp_bits_4", "ltp_bits_4", "sobel", "sobel_4", "hog",
)  # fmt: skip


def targets(recipe: str, *flags: str) -> dict:
    """A method for each target of a recipe with a masked auto-encoder."""
    return {name: one(recipe, *flags, f"--config.pretexts.mae.targets={name}") for name in FORMS}


TABLES = {
    "ferplus_targets_cpu": Table(
        "FER+: how much of each target a ViT-96x3x3/8 learns to foresee, 1,500 steps of 128",
        "mae/skill",
        targets(
            "ferplus_mae_rgb_pretrain:cpu",
            "--config.model.encoder=96x3x3/8",
            "--config.model.positions=centred",
            "--config.steps=1500",
            "--config.eval_every=1500",
            "--config.optim.lr=1e-3",
        ),
        seeds=1,
    ),
    "ferplus_5_cpu": Table(
        "FER+, 5 % of the labels, small CNN, 1,500 steps of 64",
        "expression/accuracy",
        few_labels("cpu", 0.05, 1500),
    ),
    "ferplus_20_cpu": Table(
        "FER+, 20 % of the labels, small CNN, 3,600 steps of 64",
        "expression/accuracy",
        few_labels("cpu", 0.2, 3600),
    ),
    "ferplus_20_pretexts_cpu": Table(
        "FER+, 20 % of the labels, small CNN, 3,600 steps of 64: another pretext each",
        "expression/accuracy",
        few_pretexts("cpu", 0.2, 3600),
        seeds=1,
    ),
    "fairface_10_cpu": Table(
        "FairFace, 10 % of the labels, small CNN at 64 px, 1,500 steps of 64: gender",
        "gender/accuracy",
        {
            "supervised": one("fairface_few_labels:cpu,supervised"),
            "puzzle": one("fairface_few_labels:cpu"),
        },
    ),
    "ferplus_5": Table(
        "FER+, 5 % of the labels, ResNet-18 for small pictures on one GPU, 6,000 steps of 64",
        "expression/accuracy",
        few_labels("", 0.05, 6000),
        seeds=5,
    ),
    "ferplus_20": Table(
        "FER+, 20 % of the labels, ResNet-18 for small pictures on one GPU, 12,000 steps of 64",
        "expression/accuracy",
        few_labels("", 0.2, 12000),
        seeds=5,
    ),
    "ferplus_100_cpu": Table(
        "FER+, all labels, small CNN, 40 epochs",
        "expression/accuracy",
        {
            "supervised": one("ferplus_supervised:cpu"),
            "puzzle": one("ferplus_puzzle:cpu"),
        },
        seeds=1,
    ),
    "synthetic_expression": Table(
        "The demo: rendered faces, eight expressions from 401 labels, with and without a puzzle",
        "expression/accuracy",
        {"supervised": one("synthetic:supervised"), "puzzle": one("synthetic")},
        seeds=5,
    ),
    "fairface_gender_cpu": Table(
        "FairFace, gender, small ViT, 5 epochs",
        "gender/accuracy",
        {
            "supervised": one("gender_supervised:cpu", "--config.epochs=5"),
            "puzzle": one("gender_puzzle:cpu", "--config.epochs=5"),
        },
    ),
} | {
    f"synthetic_{task}": Table(
        f"Rendered faces, {task}, one label in twenty, with and without a puzzle",
        f"{task}/{metric}",
        {
            "supervised": one(f"synthetic_{task}:supervised"),
            "puzzle": one(f"synthetic_{task}"),
        },
    )
    for task, metric in SYNTHETIC.items()
}


def main() -> None:
    """Runs what is missing of a table, and writes it."""
    parser = argparse.ArgumentParser(description="Runs a table of methods and seeds.")
    parser.add_argument("table", choices=sorted(TABLES))
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/tables"))
    parser.add_argument("--seeds", type=int, help="instead of the table's own number")
    parser.add_argument("--jobs", type=int, default=1, help="cells side by side")
    parser.add_argument("--only_table", action="store_true", help="run nothing")
    args = parser.parse_args()
    table, folder = TABLES[args.table], args.runs / args.table
    seeds, out = range(args.seeds or table.seeds), HERE / f"{args.table}.md"
    kept = Kept(HERE / "cells" / f"{args.table}.json", table)
    if not args.only_table:
        # Seed by seed: after the first round every method has a number.
        cells = [(seed, name) for seed in seeds for name in table.methods]
        shares = shares_of(args.jobs)
        if args.table.startswith("synthetic"):
            train.render_if_missing(pathlib.Path(args.data_dir))  # once, not in each cell

        def run(cell: tuple[int, str]) -> None:
            seed, name = cell
            if kept.score(name, seed):
                return
            cores = shares.get()
            try:
                run_cell(folder, name, seed, table.methods[name], args.data_dir, cores)
                kept.add(name, seed, score(folder, table, name, seed))
            except SystemExit as error:
                print(f"{error} The cells that run are waited for.", file=sys.stderr, flush=True)
                raise
            finally:
                shares.put(cores)

        with futures.ThreadPoolExecutor(args.jobs) as pool:
            running = [pool.submit(run, cell) for cell in cells]
            try:
                for cell in futures.as_completed(running):
                    cell.result()
                    out.write_text(render(table, kept, seeds))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    out.write_text(render(table, kept, seeds))
    print(out.read_text())


def shares_of(jobs: int) -> queue.Queue:
    """A queue of as many parts of the cores as there are jobs; for one job it is not told which."""
    shares: queue.Queue = queue.Queue()
    if jobs == 1:
        shares.put([])
        return shares
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= jobs <= len(cores):
        sys.exit(f"error: --jobs is {jobs}; give from 1 to {len(cores)}, the cores at hand.")
    for job in range(jobs):
        shares.put(cores[job::jobs])
    return shares


def stage_dir(folder: pathlib.Path, method: str, seed: int, stage: int) -> pathlib.Path:
    """The workdir of a stage."""
    return folder / f"{method}-{seed}" / f"stage{stage}"


def run_cell(
    folder: pathlib.Path,
    method: str,
    seed: int,
    stages: Sequence,
    data_dir: str,
    cores: Sequence[int],
) -> None:
    """Runs the stages of a cell that are not done, on these cores."""
    for index, (recipe, flags) in enumerate(stages):
        workdir = stage_dir(folder, method, seed, index)
        if done(workdir, recipe, flags):
            continue
        file, colon, argument = recipe.partition(":")
        command = [
            sys.executable, "-m", "hmtl_jax.main",
            f"--config=configs/{file}.py{colon}{argument}",
            f"--workdir={workdir}",
            f"--config.seed={seed}",
            f"--config.data.data_dir={data_dir}",
            *flags,
        ]  # fmt: skip
        if index:
            command.append(f"--config.init_from={stage_dir(folder, method, seed, index - 1)}")
        print(f"{method}, seed {seed}: {' '.join(command[1:])}", flush=True)
        workdir.mkdir(parents=True, exist_ok=True)
        code, seconds = timed(command, workdir, cores)
        if code:
            sys.exit(f"error: the run ended with status {code}; see {workdir / 'log.txt'}.")
        write_json(workdir / DONE, {"recipe": recipe, "flags": list(flags), "seconds": seconds})


def done(workdir: pathlib.Path, recipe: str, flags: Sequence[str]) -> bool:
    """Whether this stage has been run; exits if it was another recipe or had other flags."""
    if not (workdir / DONE).exists():
        return False
    found = json.loads((workdir / DONE).read_text())
    if (found["recipe"], found["flags"]) != (recipe, list(flags)):
        sys.exit(
            f"error: {workdir} was run as {found['recipe']} {' '.join(found['flags'])}, not as the "
            "table has it now; remove it, or choose another --runs."
        )
    return True


def timed(command: Sequence[str], workdir: pathlib.Path, cores: Sequence[int]) -> tuple[int, float]:
    """Runs a stage: its status, and its seconds with those of earlier processes of this stage."""
    spent, started = workdir / "spent.json", time.monotonic()
    before = json.loads(spent.read_text())["seconds"] if spent.exists() else 0.0
    try:
        with open(workdir / "log.txt", "a") as log:
            process = subprocess.Popen(command, cwd=HERE.parent, stdout=log, stderr=log)
            if cores:
                os.sched_setaffinity(process.pid, cores)  # before it starts threads
            code = process.wait()
    finally:
        seconds = before + time.monotonic() - started
        write_json(spent, {"seconds": seconds})
    return code, seconds


@dataclasses.dataclass(frozen=True)
class Score:
    """What a cell reached on test, the skill of each of its pretexts, and the seconds it took."""

    value: float
    skills: Mapping[str, float]
    seconds: float


def score(folder: pathlib.Path, table: Table, method: str, seed: int) -> Score | None:
    """What a cell says of itself; None where it is not done."""
    stages = table.methods[method]
    folders = [stage_dir(folder, method, seed, index) for index in range(len(stages))]
    if not all(done(path, *stage) for path, stage in zip(folders, stages, strict=True)):
        return None
    seconds = sum(json.loads((path / DONE).read_text())["seconds"] for path in folders)
    skills = {}
    for path in folders:
        newest = results.newest_report(path, "test")
        assert newest is not None  # a stage that is done has its report
        report = json.loads(newest.read_text())
        parts = {name: part for name, part in report.items() if isinstance(part, Mapping)}
        skills |= {name: part["skill"] for name, part in parts.items() if "skill" in part}
    task, metric = table.metric.split("/")
    return Score(report[task][metric], skills, seconds)


class Kept:
    """What the cells of a table came to, in a file that is committed; from any thread."""

    def __init__(self, path: pathlib.Path, table: Table):
        """Cells of a recipe or of flags that the table no longer has count as missing."""
        self._path, self._lock = path, threading.Lock()
        self._stages = {
            name: [[recipe, list(flags)] for recipe, flags in stages]
            for name, stages in table.methods.items()
        }
        found = json.loads(path.read_text()) if path.exists() else {}
        self._cells: dict[str, dict[str, dict]] = {
            name: {
                seed: cell for seed, cell in found.get(name, {}).items() if cell["stages"] == stages
            }
            for name, stages in self._stages.items()
        }

    def score(self, method: str, seed: int) -> Score | None:
        """What a cell came to; None where it is missing."""
        cell = self._cells[method].get(str(seed))
        return Score(cell["value"], cell["skills"], cell["seconds"]) if cell else None

    def add(self, method: str, seed: int, found: Score | None) -> None:
        """Keeps a cell, whole or not at all."""
        if found is None:
            return
        with self._lock:
            cell = {"stages": self._stages[method], **dataclasses.asdict(found)}
            self._cells[method][str(seed)] = cell
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, self._cells)


def render(table: Table, kept: Kept, seeds: Sequence[int]) -> str:
    """The table as Markdown."""
    unit = 100 if table.percent else 1
    found = {name: [kept.score(name, seed) for seed in seeds] for name in table.methods}
    cells = {name: [cell for cell in row if cell] for name, row in found.items()}
    base = next(iter(cells.values()))
    lines = [
        f"# {table.title}", "",
        f"Test {table.metric}{' in %' if table.percent else ''}, mean ± standard deviation over "
        "seeds; the difference from the first row with Welch's 95 % interval.", "",
        "| method | seeds | test | difference | skill of the pretext | minutes a run |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, row in cells.items():
        values = unit * np.array([cell.value for cell in row])
        if not len(values):
            lines.append(f"| {name} | 0 | – | – | – | – |")
            continue
        spread = f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else ""
        against = (
            "–"
            if row is base or not base
            else difference(values, unit * np.array([cell.value for cell in base]))
        )
        learnt = ", ".join(
            f"{pretext} {np.mean([cell.skills[pretext] for cell in row]):.2f}"
            for pretext in row[0].skills
        )
        minutes = np.mean([cell.seconds for cell in row]) / 60
        lines.append(
            f"| {name} | {len(values)} | {values.mean():.2f}{spread} | {against} | {learnt or '–'} "
            f"| {minutes:.1f} |"
        )
    return "\n".join(lines) + "\n"


def difference(ours: np.ndarray, base: np.ndarray) -> str:
    """The difference of means with Welch's interval, where there are seeds enough for one."""
    gap = f"{ours.mean() - base.mean():+.2f}"
    if min(len(ours), len(base)) < 2:
        return gap
    interval = stats.ttest_ind(ours, base, equal_var=False).confidence_interval(0.95)
    return f"{gap} [{interval.low:+.2f}, {interval.high:+.2f}]"


if __name__ == "__main__":
    main()

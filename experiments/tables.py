"""Tables of methods × seeds, continued where they were left.

    python -m experiments.tables ferplus_targets_cpu --data_dir data --runs runs/tables --jobs 2
    python -m experiments.tables ferplus_targets_cpu --runs runs/tables --only_table
    python -m experiments.tables ferplus_20 ferplus_5 ferplus_100 fairface_10 --jobs 8 --minutes 12

The last line is for a GPU: cells side by side on it, the most important ones first; what has not
come to its end by then goes on when the same command is given again.

Every cell is `python -m hmtl_jax.main` with a recipe of configs/ and a seed, in its own workdir.
A cell that has its test result is not run again; one that was cut off goes on from its checkpoint,
and one that another process runs is left to it: the command may be given twice.
What a cell came to is kept in experiments/cells/NAME.json, which is committed: another machine runs
what is missing there.
With `--jobs`, cells run side by side: on a CPU each on its own share of the cores, since small
models use one core better than two; on a GPU each with its share of the memory. The minutes of a
run are those of its share.
The table has, for each method, mean ± standard deviation over seeds on the test split, the
difference from the first method with Welch's 95 % interval, the best value on validation, and the
wall time of a run. A part of the labels is the same part for all seeds. It is written to
experiments/NAME.md as far as cells are there.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent import futures

import numpy as np
from scipy import stats

from hmtl_jax import errors, evaluate, lock, results, train
from hmtl_jax.files import write_json
from hmtl_jax.metrics import names

HERE = pathlib.Path(__file__).parent
DONE = "seconds.json"  # what a finished stage leaves


@dataclasses.dataclass(frozen=True)
class Table:
    """methods: name → stages, each a recipe with its flags; the first method is the baseline.

    A later stage starts from the encoder of the one before it. metric: TASK/METRIC of the last
    stage's test report. also: more of them. equal: method → the supervised one whose encoder sees
    as many pictures, every view counted, and which so costs about as much.
    """

    title: str
    metric: str
    methods: Mapping[str, Sequence[tuple[str, Sequence[str]]]]
    seeds: int = 3
    also: Sequence[str] = ()
    equal: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def percent(self) -> bool:
        """Whether the metric is a share, or an area that reads as one."""
        return names.shown_in(self.metric)[0] == 100


def one(recipe: str, *flags: str) -> list[tuple[str, tuple[str, ...]]]:
    """A method of one stage."""
    return [(recipe, flags)]


def lasting(steps: int, evaluations: int = 6) -> tuple[str, str]:
    """The flags of a run of so many steps, and so many evaluations in it."""
    return f"--config.steps={steps}", f"--config.eval_every={steps // evaluations}"


# The authors' heads, where a recipe has others.
POOLED = ("--config.pretexts.puzzle.heads=pooled", "--config.pretexts.puzzle.weight=1.0")
# A puzzle that needs heads of places to be solved at all.
HARDER = ("--config.pretexts.puzzle.tiles=3", "--config.pretexts.puzzle.heads=places")
# L-SSAT's target, where the recipe has one of which more can be foreseen.
CODES = ("--config.pretexts.mae.targets=lbp",)
# How many times the steps of the others a table of few labels has besides, and what costs as much.
LONGER = (1.25, 2, 3, 4, 6, 8)
EQUAL = {
    "puzzle_then_finetune": "supervised_2x",
    "puzzle_quarter_then_finetune": "supervised_1.25x",
    "puzzle_3x3_then_finetune": "supervised_2x",
    "puzzle_same_faces": "supervised_2x",
    "drloc_all_faces": "supervised_2x",  # reads the clean view
    "drloc_same_faces": "supervised",
    "puzzle_all_faces": "supervised_3x",  # a view of twice the faces, and those with labels whole
    "inpaint_all_faces": "supervised_3x",
    "mae_lbp_all_faces": "supervised_3x",
    "mae_lbp_bits_patch_all_faces": "supervised_3x",
    "puzzle_all_faces_pooled": "supervised_3x",
    "masksub_all_faces": "supervised_4x",  # reads all of them whole
    "puzzle_then_finetune_2x": "supervised_4x",
    "puzzle_then_finetune_4x": "supervised_8x",
    "puzzle_all_faces_2x": "supervised_6x",
}
# A recipe of FER+ with all labels, sized for an hour of one core.
SMALL = ("--config.epochs=30", "--config.model.encoder=cnn24")
MUON = ("--config.optim.name=muon",)


def few_labels(form: str, share: float, steps: int, rows: int) -> dict:
    """FER+ with a share of the labels: alone, with masked views or a puzzle of all faces, and more.
    form: the recipe's argument. rows: faces with labels in each batch. Steps, these and the warm-up
    are equal, but for the methods that say how many times the steps they have.
    """

    def method(role: str, *flags: str, times: float = 1) -> tuple[str, tuple[str, ...]]:
        words = ",".join(filter(None, (form, role)))
        size = lasting(round(times * steps))
        return f"ferplus_few_labels{words and ':' + words}", (*size, *flags)

    few, hidden = f"--config.data.subset={share}", f"--config.data.labelled={share}"
    same = ("--config.data.labelled=1", "--config.data.unlabelled_share=0")
    methods = {
        "supervised": [method("supervised", few)],
        "masksub_all_faces": [method("masksub", hidden)],
        "puzzle_all_faces": [method("", hidden)],
        "puzzle_then_finetune": [method("pretrain"), method("finetune", few)],
        "puzzle_quarter_then_finetune": [method("pretrain", times=0.25), method("finetune", few)],
        "puzzle_3x3_then_finetune": [method("pretrain", *HARDER), method("finetune", few)],
        "puzzle_same_faces": [method("", few, *same, f"--config.batch_size={rows}")],
        "inpaint_all_faces": [method("inpaint", hidden)],
        "drloc_all_faces": [method("drloc", hidden)],
        "drloc_same_faces": [method("drloc", few, *same, f"--config.batch_size={rows}")],
        "mae_lbp_all_faces": [method("mae", hidden, *CODES)],
        "mae_lbp_bits_patch_all_faces": [method("mae", hidden)],
    }
    for times in LONGER:
        methods[f"supervised_{times}x"] = [method("supervised", few, times=times)]
    for times in (2, 4):
        methods[f"puzzle_then_finetune_{times}x"] = [
            method("pretrain", times=times),
            method("finetune", few, times=times),
        ]
    methods["puzzle_all_faces_2x"] = [method("", hidden, times=2)]
    if form == "cpu":
        methods["puzzle_all_faces_pooled"] = [method("", hidden, *POOLED)]
    return methods


def fairface(form: str) -> dict:
    """FairFace with a share of the labels: alone, and with a pretext of all faces.

    On a CPU, where its steps are short, supervised also with as much work as beside a puzzle.
    """

    def method(*roles: str) -> list[tuple[str, tuple[str, ...]]]:
        words = [",".join(filter(None, (form, role))) for role in roles]
        return [(f"fairface_few_labels{said and ':' + said}", ()) for said in words]

    rows = {
        "supervised": method("supervised"),
        "masksub_all_faces": method("masksub"),
        "puzzle_all_faces": method(""),
        "puzzle_then_finetune": method("pretrain", "finetune"),
    }
    if form == "cpu":
        rows["puzzle_all_faces_pooled"] = one("fairface_few_labels:cpu", *POOLED)
        for times in (2, 3):
            size = lasting(times * 1500)
            rows[f"supervised_{times}x"] = one("fairface_few_labels:cpu,supervised", *size)
    return rows


# Of every task on rendered faces, what is compared, and how many have labels.
SYNTHETIC = {
    "pose": ("mae", "twenty"),
    "attributes": ("accuracy", "twenty"),
    "affect": ("ccc", "twenty"),
    "deepfake": ("auc", "five"),
}
# Targets of the masked auto-encoder, each in the forms that it has.
FORMS = (
    "rgb", "rgb_patch",
    "lbp", "lbp_patch", "lbp_bits", "lbp_bits_4", "lbp_bits_patch",
    "lbp_uniform", "lbp_uniform_histogram",
    "ldp", "ldp_bits_4", "ldp_bits_patch",
    "cs_lbp_bits_4", "ltp_bits_4", "sobel_4", "hog",
)  # fmt: skip
# Those among which the recipes' defaults are chosen.
CHOICES = ("rgb", "lbp", "lbp_bits_4", "lbp_bits_patch", "ldp", "ldp_bits_4", "ldp_bits_patch")


def targets(names: Sequence[str], *flags: str) -> dict:
    """A small masked auto-encoder of faces of 48 px, alone, for each target."""
    small = (
        "--config.model.encoder=96x3x3/8",
        "--config.model.positions=centred",
        "--config.pretexts.mae.decoder_depth=1",
        "--config.pretexts.mae.decoder_heads=4",
        "--config.steps=1000",
        "--config.eval_every=1000",
        "--config.optim.lr=1e-3",
        *flags,
    )
    recipe = "ferplus_mae_rgb_pretrain:cpu"
    return {name: one(recipe, *small, f"--config.pretexts.mae.targets={name}") for name in names}


def changes(recipe: str, *flags: str) -> dict:
    """A supervised recipe of a small CNN by AdamW, and what becomes of it with one thing else."""
    vit = (
        "--config.model.encoder=192x6x3/8",
        "--config.optim.lr=1e-3",
        "--config.model.dtype=bfloat16",  # a third faster, where the processor has it
    )
    centred = (*vit, "--config.model.positions=centred")
    still = ("rotation", "shear", "zoom", "shift")
    own_average = ("--config.optim.schedule=constant", "--config.optim.ema=0")
    others = {
        "majority_labels": ("--config.tasks.expression.soft=False",),
        "no_movement": tuple(f"--config.augment.{name}=0" for name in still),
        "no_average": ("--config.optim.ema=0",),
        "vit": vit,
        "vit_centred": centred,
        "vit_centred_hmlp": (*centred, "--config.model.stem=hmlp"),
        "vit_centred_conv": (*centred, "--config.model.stem=conv"),
    }
    schedule_free = ("--config.optim.name=schedule_free", *own_average)
    return (
        {"adamw": one(recipe, *flags)}
        | {name: one(recipe, *flags, *more) for name, more in others.items()}
        | {"muon": one(recipe, *flags, *MUON), "schedule_free": one(recipe, *flags, *schedule_free)}
    )


def puzzles() -> dict:
    """A puzzle alone: encoders, tiles along a side, and what the heads read.

    A ResNet-18 costs fifty times the CNN, and has fewer steps; an EfficientNet more than that.
    """

    def method(tiles: int, heads: str, steps: int, *flags: str) -> list:
        puzzle = (f"--config.pretexts.puzzle.{key}" for key in (f"tiles={tiles}", f"heads={heads}"))
        size = lasting(steps, evaluations=3)
        return one("ferplus_few_labels:cpu,pretrain", *size, *puzzle, *flags)

    vit = ("--config.model.encoder=192x6x3/8", "--config.optim.lr=1e-3")
    encoders = {
        "cnn24": (),
        "vit": (*vit, "--config.model.positions=centred"),
        "vit_sincos": vit,
    }
    resnet = ("--config.model.encoder=resnet18-small", "--config.optim.lr=1e-3")
    return {
        f"{encoder}_{tiles}x{tiles}_{heads}": method(tiles, heads, 1500, *flags)
        for tiles in (2, 3)
        for encoder, flags in encoders.items()
        for heads in ("pooled", "places")
    } | {"resnet18_small_2x2_places_450_steps": method(2, "places", 450, *resnet)}


TABLES = {
    "ferplus_puzzle_cpu": Table(
        "FER+: how much of a puzzle is solved after 1,500 steps of 64",
        "puzzle/skill",
        puzzles(),
        seeds=1,
    ),
    "ferplus_changes_cpu": Table(
        "FER+, all labels: the supervised recipe with a CNN of 0.27 M for 10 epochs, and changes",
        "expression/accuracy",
        changes("ferplus_supervised:cpu", "--config.epochs=10", "--config.model.encoder=cnn24"),
        seeds=1,
    ),
    "ferplus_targets_cpu": Table(
        "FER+: how much of each target a ViT-96x3x3/8 learns to foresee, 1,000 steps of 128",
        "mae/skill",
        targets(FORMS),
        seeds=1,
    ),
    "fairface_targets_cpu": Table(
        "FairFace at 48 px: how much of each target a ViT-96x3x3/8 learns to foresee, as on FER+",
        "mae/skill",
        targets(CHOICES, "--config.data.name=fairface"),
        seeds=1,
    ),
    "ferplus_1_cpu": Table(
        "FER+, 1 % of the labels, small CNN, 1,000 steps of 64",
        "expression/accuracy",
        few_labels("cpu", 0.01, 1000, 64),
        equal=EQUAL,
    ),
    "ferplus_5_cpu": Table(
        "FER+, 5 % of the labels, small CNN, 1,500 steps of 64",
        "expression/accuracy",
        few_labels("cpu", 0.05, 1500, 64),
        equal=EQUAL,
    ),
    "ferplus_20_cpu": Table(
        "FER+, 20 % of the labels, small CNN, 3,600 steps of 64",
        "expression/accuracy",
        few_labels("cpu", 0.2, 3600, 64),
        equal=EQUAL,
    ),
    "fairface_10_cpu": Table(
        "FairFace, 10 % of the labels, small CNN at 64 px, 1,500 steps of 64 with labels: gender",
        "gender/accuracy",
        fairface("cpu"),
        also=("race/accuracy", "age_group/accuracy"),
        equal={name: row for name, row in EQUAL.items() if {name, row} <= fairface("cpu").keys()},
    ),
    "ferplus_5": Table(
        "FER+, 5 % of the labels, CNN of 1.9 M, NVIDIA H200, 3,000 steps of 128 labelled faces",
        "expression/accuracy",
        few_labels("", 0.05, 3000, 128),
        seeds=5,
        equal=EQUAL,
    ),
    "ferplus_20": Table(
        "FER+, 20 % of the labels, CNN of 1.9 M, NVIDIA H200, 6,000 steps of 128 labelled faces",
        "expression/accuracy",
        few_labels("", 0.2, 6000, 128),
        seeds=5,
        equal=EQUAL,
    ),
    "fairface_10": Table(
        "FairFace, 10 % of the labels, CNN of 1.9 M at 96 px on a GPU, 3,000 steps of 128: gender",
        "gender/accuracy",
        fairface(""),
        seeds=5,
        also=("race/accuracy", "age_group/accuracy"),
    ),
    "ferplus_100": Table(
        "FER+, all labels, CNN of 1.9 M, NVIDIA H200, 200 epochs",
        "expression/accuracy",
        {
            "supervised": one("ferplus_supervised"),
            "masksub": one(
                "ferplus_few_labels:masksub",
                "--config.steps=19560",
                "--config.eval_every=978",
                "--config.batch_size=256",
                "--config.data.labelled=1",
                "--config.data.unlabelled_share=0",
                "--config.optim.lr=4e-3",
                "--config.optim.ema=0.998",
            ),
        },
    ),
    "ferplus_100_cpu": Table(
        "FER+, all labels, CNN of 0.27 M, 30 epochs",
        "expression/accuracy",
        {
            "supervised": one("ferplus_supervised:cpu", *SMALL),
            "supervised_muon": one("ferplus_supervised:cpu", *SMALL, *MUON),
            "puzzle": one("ferplus_puzzle:cpu", *SMALL),
        },
        seeds=1,
    ),
    "ferplus_recipe_cpu": Table(
        "FER+, all labels, ferplus_supervised:cpu, a CNN of 0.48 M: optimizer and length",
        "expression/accuracy",
        {
            f"{name}_{epochs}_epochs": one(
                "ferplus_supervised:cpu", f"--config.epochs={epochs}", f"--config.optim.name={name}"
            )
            for epochs in (50, 100)
            for name in ("adamw", "muon")
        },
        seeds=1,
    ),
    "synthetic_expression": Table(
        "The demo: rendered faces, eight expressions from 401 labels, with and without a puzzle",
        "expression/accuracy",
        {
            "supervised": one("synthetic:supervised"),
            "puzzle": one("synthetic"),
            "supervised_2x": one("synthetic:supervised", "--config.steps=800"),
        },
        seeds=5,
        equal={"puzzle": "supervised_2x"},
    ),
} | {
    f"synthetic_{task}": Table(
        f"Rendered faces, {task}, one label in {many}, with and without a puzzle",
        f"{task}/{metric}",
        {
            "supervised": one(f"synthetic_{task}:supervised"),
            "puzzle": one(f"synthetic_{task}"),
        },
    )
    for task, (metric, many) in SYNTHETIC.items()
}


def main() -> None:
    """Runs what is missing of some tables, and writes them."""
    parser = argparse.ArgumentParser(description="Runs tables of methods and seeds.")
    parser.add_argument("tables", nargs="+", choices=sorted(TABLES), metavar="TABLE")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/tables"))
    parser.add_argument("--seeds", type=int, help="instead of the tables' own numbers")
    parser.add_argument("--methods", default="", help="these alone, with commas")
    parser.add_argument("--jobs", type=int, default=1, help="cells side by side")
    parser.add_argument("--minutes", type=float, help="after which cells stop, to go on later")
    parser.add_argument("--only_table", action="store_true", help="run nothing")
    args = parser.parse_args()
    work = [Work(name, args) for name in args.tables]
    if not args.only_table:
        if any(name.startswith("synthetic") for name in args.tables):
            train.render_if_missing(pathlib.Path(args.data_dir))  # once, not in each cell
        run_all(work, args)
    for one_of in work:
        print(one_of.write())


class Work:
    """A table with its files."""

    def __init__(self, name: str, args: argparse.Namespace):
        self.table, self.folder = TABLES[name], args.runs / name
        self.seeds = range(args.seeds or self.table.seeds)
        self.kept = Kept(HERE / "cells" / f"{name}.json", self.table)
        self.out = HERE / f"{name}.md"

    def write(self) -> str:
        """Writes the table as far as cells are there."""
        text = render(self.table, self.kept, self.seeds)
        self.out.write_text(text)
        return text

    def run(self, method: str, seed: int, args: argparse.Namespace, place: "Place") -> None:
        """Runs a cell, and keeps what it came to; one that is stopped goes on another time.

        A cell that another process runs, or has run since, is left to it.
        """
        stages = self.table.methods[method]
        cell = self.folder / f"{method}-{seed}"
        cell.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lock.held(cell))
            except errors.UserError as error:
                print(f"{method}, seed {seed}, is left: {error}", flush=True)
                return
            if self.kept.score(method, seed):
                return
            if run_cell(self.folder, method, seed, stages, args.data_dir, place):
                self.kept.add(method, seed, score(self.folder, self.table, method, seed))


def run_all(work: Sequence[Work], args: argparse.Namespace) -> None:
    """Seed by seed over all tables: after the first round every method of each has a number."""
    most = max(len(one_of.seeds) for one_of in work)
    cells = [
        (one_of, name, seed)
        for seed in range(most)
        for one_of in work
        for name in one_of.table.methods
        if not args.methods or name in args.methods.split(",")
        if seed in one_of.seeds and not one_of.kept.score(name, seed)
    ]
    places = places_of(args.jobs, args.minutes)

    def run(one_of: Work, name: str, seed: int) -> None:
        place = places.get()
        try:
            one_of.run(name, seed, args, place)
        except SystemExit as error:
            print(f"{error} The cells that run are waited for.", file=sys.stderr, flush=True)
            raise
        finally:
            places.put(place)

    with futures.ThreadPoolExecutor(args.jobs) as pool:
        running = {pool.submit(run, *cell): cell[0] for cell in cells}
        try:
            for cell in futures.as_completed(running):
                cell.result()
                running[cell].write()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a cell runs: on these cores (none: on any), in this environment, until this time."""

    cores: Sequence[int]
    environment: Mapping[str, str]
    until: float = math.inf


def places_of(jobs: int, minutes: float | None) -> queue.Queue:
    """A queue of as many places as there are jobs.

    On a GPU each gets its part of the memory.
    """
    until = math.inf if minutes is None else time.monotonic() + 60 * minutes
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= jobs <= len(cores):
        sys.exit(f"error: --jobs is {jobs}; give from 1 to {len(cores)}, the cores at hand.")
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / jobs:.3f}", **os.environ}
    on_gpu = shutil.which("nvidia-smi") is not None
    places: queue.Queue = queue.Queue()
    for job in range(jobs):
        own = [] if jobs == 1 or on_gpu else cores[job::jobs]
        places.put(Place(own, environment, until))
    return places


def stage_dir(folder: pathlib.Path, method: str, seed: int, stage: int) -> pathlib.Path:
    """The workdir of a stage."""
    return folder / f"{method}-{seed}" / f"stage{stage}"


def run_cell(
    folder: pathlib.Path,
    method: str,
    seed: int,
    stages: Sequence,
    data_dir: str,
    place: Place,
) -> bool:
    """Runs the stages of a cell that are not done; whether all of them are now."""
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
        if time.monotonic() > place.until:
            return False
        print(f"{method}, seed {seed}: {' '.join(command[1:])}", flush=True)
        workdir.mkdir(parents=True, exist_ok=True)
        code, seconds = timed(command, workdir, place)
        stopped = not code or time.monotonic() > place.until  # at its checkpoint, if not done
        if stopped and not results.newest_report(workdir, "test"):
            print(
                f"{method}, seed {seed}, was stopped; the same command goes on with it", flush=True
            )
            return False
        if code:
            sys.exit(f"error: the run ended with status {code}; see {workdir / 'log.txt'}.")
        write_json(workdir / DONE, {"recipe": recipe, "flags": list(flags), "seconds": seconds})
    return True


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


def timed(command: Sequence[str], workdir: pathlib.Path, place: Place) -> tuple[int, float]:
    """Runs a stage: its status, and its seconds with those of earlier processes of this stage."""
    spent, started = workdir / "spent.json", time.monotonic()
    before = json.loads(spent.read_text())["seconds"] if spent.exists() else 0.0
    try:
        with open(workdir / "log.txt", "a") as log:
            process = subprocess.Popen(
                command, cwd=HERE.parent, env=dict(place.environment), stdout=log, stderr=log
            )
            if place.cores:
                os.sched_setaffinity(process.pid, place.cores)  # before it starts threads
            left = place.until - time.monotonic()
            try:
                code = process.wait(left if math.isfinite(left) else None)
            except subprocess.TimeoutExpired:
                process.terminate()  # it saves a checkpoint
                code = process.wait()
    finally:
        seconds = before + time.monotonic() - started
        write_json(spent, {"seconds": seconds})
    return code, seconds


@dataclasses.dataclass(frozen=True)
class Score:
    """What a cell reached on test, the skill of each of its pretexts, and the seconds it took.

    validation: the best value there, by which one of several methods may be chosen. also: further
    metrics of the table on test.
    """

    value: float
    skills: Mapping[str, float]
    seconds: float
    validation: float | None = None
    also: Mapping[str, float] = dataclasses.field(default_factory=dict)


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
        told = evaluate.scalars(parts).items()
        skills |= {key.removesuffix("/skill"): of for key, of in told if key.endswith("/skill")}
    task, metric = table.metric.split("/")
    return Score(
        value=report[task][metric],
        skills=skills,
        seconds=seconds,
        validation=validated(folders[-1], task, metric),
        also={name: report[name.split("/")[0]][name.split("/")[1]] for name in table.also},
    )


def validated(folder: pathlib.Path, task: str, metric: str) -> float | None:
    """The best value that validation had in a run."""
    reports = [json.loads(path.read_text()) for path in (folder / "eval").glob("validation-*.json")]
    found = [report[task][metric] for report in reports if task in report]
    return max(found, key=lambda value: names.score(metric, value)) if found else None


class Kept:
    """What the cells of a table came to, in a file that is committed; from any thread."""

    def __init__(self, path: pathlib.Path, table: Table):
        """Cells of a recipe or of flags that the table no longer has count as missing."""
        self._path, self._lock = path, threading.Lock()
        self._stages = {
            name: [[recipe, list(flags)] for recipe, flags in stages]
            for name, stages in table.methods.items()
        }

    def _read(self) -> dict[str, dict[str, dict]]:
        found = json.loads(self._path.read_text()) if self._path.exists() else {}
        return {
            name: {
                seed: cell for seed, cell in found.get(name, {}).items() if cell["stages"] == stages
            }
            for name, stages in self._stages.items()
        }

    def score(self, method: str, seed: int) -> Score | None:
        """What a cell came to, by whichever process; None where it is missing."""
        cell = self._read()[method].get(str(seed))
        if not cell:
            return None
        known = {field.name for field in dataclasses.fields(Score)}
        return Score(**{key: value for key, value in cell.items() if key in known})

    def add(self, method: str, seed: int, found: Score | None) -> None:
        """Keeps a cell, whole or not at all."""
        if found is None:
            return
        with self._lock:
            cells = self._read()  # another process may have added some
            cells[method][str(seed)] = {
                "stages": self._stages[method],
                **dataclasses.asdict(found),
            }
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, cells)


def render(table: Table, kept: Kept, seeds: Sequence[int]) -> str:
    """The table as Markdown."""
    found = {name: [kept.score(name, seed) for seed in seeds] for name in table.methods}
    cells = {name: [cell for cell in row if cell] for name, row in found.items()}
    base = [cell.value for cell in next(iter(cells.values()))]
    heads = (
        "method", "seeds", "validation", "test", "difference",
        *(["at equal cost"] if table.equal else []),
        *table.also, "skill of the pretext", "minutes a run",
    )  # fmt: skip
    lines = [
        f"# {table.title}", "",
        f"Test {table.metric}{' in %' if table.percent else ''}, mean ± standard deviation over "
        "seeds; the difference from the first row with Welch's 95 % interval."
        + (
            " At equal cost: from the supervised row whose encoder sees as many pictures, views "
            "counted."
            if table.equal else ""
        ), "",
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
    ]  # fmt: skip
    first = next(iter(cells))
    for name, row in cells.items():
        if not row:
            lines.append(f"| {name} | 0 {'| – ' * (len(heads) - 2)}|")
            continue
        values = [cell.value for cell in row]
        validation = [cell.validation for cell in row if cell.validation is not None]
        learnt = ", ".join(
            f"{pretext} {np.mean([cell.skills[pretext] for cell in row]):.2f}"
            for pretext in row[0].skills
        )
        columns = (
            name,
            str(len(row)),
            spread(table.metric, validation),
            spread(table.metric, values),
            difference(table.metric, values, base) if name != first and base else "–",
            *at_equal_cost(table, cells, name),
            *(
                spread(key, [cell.also[key] for cell in row if key in cell.also])
                for key in table.also
            ),
            learnt or "–",
            f"{np.mean([cell.seconds for cell in row]) / 60:.1f}",
        )
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"


def at_equal_cost(table: Table, cells: Mapping[str, Sequence[Score]], name: str) -> list[str]:
    """The column of a table that has one: how far a method is from what costs as much."""
    if not table.equal:
        return []
    other = cells[table.equal[name]] if name in table.equal else []
    if not other:
        return ["–"]
    ours, base = ([cell.value for cell in row] for row in (cells[name], other))
    return [difference(table.metric, ours, base)]


def spread(metric: str, values: Sequence[float]) -> str:
    """Mean ± standard deviation, in the unit in which people read the metric."""
    scaled = names.shown_in(metric)[0] * np.array(values)
    if not len(scaled):
        return "–"
    return f"{scaled.mean():.2f}" + (f" ± {scaled.std(ddof=1):.2f}" if len(scaled) > 1 else "")


def difference(metric: str, ours: Sequence[float], base: Sequence[float]) -> str:
    """The difference of means with Welch's interval, where there are seeds enough for one."""
    scale = names.shown_in(metric)[0]
    gap = f"{scale * (np.mean(ours) - np.mean(base)):+.2f}"
    if min(len(ours), len(base)) < 2:
        return gap
    test = stats.ttest_ind(scale * np.array(ours), scale * np.array(base), equal_var=False)
    interval = test.confidence_interval(0.95)
    return f"{gap} [{interval.low:+.2f}, {interval.high:+.2f}]"


if __name__ == "__main__":
    main()

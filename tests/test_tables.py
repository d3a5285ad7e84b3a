"""Tables of methods and seeds: numbers by hand, and no cell is run twice."""

import dataclasses
import json
import os
import sys
import time

import numpy as np
import pytest
from scipy import stats

from experiments import curve, tables
from hmtl_jax import lock
from hmtl_jax.files import write_json

TABLE = tables.Table(
    "Toy",
    "pose/mae",
    {"plain": tables.one("toy"), "two": [("toy", ()), ("toy:finetune", ())]},
)

HERE = tables.Place([], dict(os.environ))


def finish(folder, method, seed, values):
    """Leaves what the stages of a cell leave: their seconds and their test reports."""
    for stage, ((recipe, flags), value) in enumerate(
        zip(TABLE.methods[method], values, strict=False)
    ):
        path = tables.stage_dir(folder, method, seed, stage)
        (path / "eval").mkdir(parents=True)
        report = {"step": 7, "pose": {"mae": value}}
        if stage == 0 and len(TABLE.methods[method]) > 1:
            report["puzzle"] = {"skill": 0.5 + seed / 4}
        write_json(path / "eval" / "test-7.json", report)
        about = {"recipe": recipe, "flags": list(flags), "seconds": 60.0}
        write_json(path / "seconds.json", about)


def rendered(folder, seeds):
    """The table of the cells that a folder has."""
    kept = tables.Kept(folder / "cells.json", TABLE)
    for name in TABLE.methods:
        for seed in seeds:
            kept.add(name, seed, tables.score(folder, TABLE, name, seed))
    return tables.render(TABLE, kept, seeds)


def test_what_is_kept_is_not_run_again_unless_the_recipe_is_another(tmp_path):
    finish(tmp_path, "plain", 0, [5.0])
    before = rendered(tmp_path, range(1))
    kept = tables.Kept(tmp_path / "cells.json", TABLE)
    assert kept.score("plain", 0) == tables.score(tmp_path, TABLE, "plain", 0)
    assert kept.score("plain", 1) is None and kept.score("two", 0) is None
    assert tables.render(TABLE, kept, range(1)) == before
    other = dataclasses.replace(TABLE, methods={"plain": tables.one("toy", "--config.epochs=3")})
    assert tables.Kept(tmp_path / "cells.json", other).score("plain", 0) is None


def test_a_table_has_means_and_welchs_interval_of_the_cells_that_are_there(tmp_path):
    plain, two = np.array([5.0, 6.0, 7.0]), np.array([4.0, 4.5])
    for seed, value in enumerate(plain):
        finish(tmp_path, "plain", seed, [value])
    for seed, value in enumerate(two):
        finish(tmp_path, "two", seed, [9.9, value])
    finish(tmp_path, "two", 2, [9.9])  # its second stage is still to come
    parts = [x.var(ddof=1) / len(x) for x in (two, plain)]
    freedom = sum(parts) ** 2 / sum(p**2 / (n - 1) for p, n in zip(parts, (2, 3), strict=True))
    half = stats.t.ppf(0.975, freedom) * np.sqrt(sum(parts))
    gap = two.mean() - plain.mean()
    lines = rendered(tmp_path, range(3))
    assert "| plain | 3 | – | 6.00 ± 1.00 | – | – | 1.0 |" in lines
    wanted = f"{gap:+.2f} [{gap - half:+.2f}, {gap + half:+.2f}]"
    assert f"| two | 2 | – | 4.25 ± {two.std(ddof=1):.2f} | {wanted} | puzzle 0.62 | 2.0 |" in lines


def test_a_row_that_is_there_before_the_baseline_has_no_difference_yet(tmp_path):
    finish(tmp_path, "two", 0, [9.9, 4.0])
    lines = rendered(tmp_path, range(1))
    assert "| two | 1 | – | 4.00 | – | puzzle 0.50 | 2.0 |" in lines


def test_a_method_without_a_cell_has_a_row_of_dashes(tmp_path):
    finish(tmp_path, "plain", 0, [5.0])
    lines = rendered(tmp_path, range(1))
    assert "| plain | 1 | – | 5.00 | – | – | 1.0 |" in lines
    assert "| two | 0 | – | – | – | – | – |" in lines


def test_only_what_is_missing_is_run_and_a_failed_stage_is_not_done(tmp_path, monkeypatch):
    finish(tmp_path, "two", 0, [9.9])
    commands = []

    def timed(command, workdir, place):
        commands.append(command)
        if len(commands) == 1:
            write_json(workdir / "eval" / "test-7.json", {"step": 7, "pose": {"mae": 4.0}})
        return len(commands) - 1, 60.0

    monkeypatch.setattr(tables, "timed", timed)
    cell = (tmp_path, "two", 0, TABLE.methods["two"], "data", HERE)
    (tables.stage_dir(tmp_path, "two", 0, 1) / "eval").mkdir(parents=True)
    assert tables.run_cell(*cell)
    (command,) = commands
    assert "--config=configs/toy.py:finetune" in command
    assert f"--config.init_from={tables.stage_dir(tmp_path, 'two', 0, 0)}" in command
    tables.run_cell(*cell)
    assert len(commands) == 1
    with pytest.raises(SystemExit, match=r"ended with status 1; see .*log\.txt"):
        tables.run_cell(tmp_path, "two", 1, TABLE.methods["two"], "data", HERE)
    assert tables.score(tmp_path, TABLE, "two", 1) is None


def test_the_time_of_a_stage_holds_that_of_its_earlier_processes(tmp_path):
    (tmp_path / "spent.json").write_text(json.dumps({"seconds": 100.0}))
    code, seconds = tables.timed(["false"], tmp_path, HERE)
    assert code == 1 and 100 < seconds < 160
    assert json.loads((tmp_path / "spent.json").read_text())["seconds"] == seconds


def test_a_stage_keeps_to_its_cores(tmp_path):
    core = max(os.sched_getaffinity(0))
    command = [
        sys.executable,
        "-c",
        "import os, time; time.sleep(1); print(os.sched_getaffinity(0))",
    ]
    tables.timed(command, tmp_path, dataclasses.replace(HERE, cores=[core]))
    assert (tmp_path / "log.txt").read_text() == f"{{{core}}}\n"


def test_jobs_share_the_cores_and_run_every_cell_once(tmp_path, monkeypatch, capsys):
    ran, cores = [], sorted(os.sched_getaffinity(0))

    def run_cell(folder, name, seed, stages, data_dir, place):
        ran.append((name, seed, tuple(place.cores)))
        finish(folder, name, seed, [5.0 + seed] * len(stages))
        return True

    monkeypatch.setattr(tables, "run_cell", run_cell)
    monkeypatch.setattr(tables, "HERE", tmp_path)
    monkeypatch.setitem(tables.TABLES, "toy", TABLE)
    jobs = min(2, len(cores))
    arguments = ["tables", "toy", "--runs", str(tmp_path), "--jobs", str(jobs)]
    monkeypatch.setattr(sys, "argv", arguments)
    tables.main()
    assert sorted(cell[:2] for cell in ran) == [(n, s) for n in ("plain", "two") for s in range(3)]
    shares = {tuple(cores[job::jobs]) for job in range(jobs)} if jobs > 1 else {()}
    assert {cell[2] for cell in ran} <= shares
    assert "| plain | 3 | – | 6.00 ± 1.00 |" in (tmp_path / "toy.md").read_text()
    monkeypatch.setattr(sys, "argv", [*arguments[:-1], "999"])
    with pytest.raises(SystemExit, match="--jobs is 999; give from 1 to"):
        tables.main()


def test_a_cell_of_another_recipe_is_not_taken_for_this_one(tmp_path):
    finish(tmp_path, "plain", 0, [5.0])
    for changed in (tables.one("other"), tables.one("toy", "--config.epochs=3")):
        with pytest.raises(SystemExit, match=r"was run as toy .* remove it, or choose another"):
            tables.run_cell(tmp_path, "plain", 0, changed, "data", HERE)


def test_a_failed_cell_ends_the_table_and_what_is_there_is_written(tmp_path, monkeypatch):
    def run_cell(folder, name, seed, stages, data_dir, place):
        if (name, seed) == ("two", 0):
            sys.exit("error: the run ended with status 1")
        finish(folder, name, seed, [5.0])
        return True

    monkeypatch.setattr(tables, "run_cell", run_cell)
    monkeypatch.setattr(tables, "HERE", tmp_path)
    monkeypatch.setitem(tables.TABLES, "toy", TABLE)
    monkeypatch.setattr(sys, "argv", ["tables", "toy", "--seeds", "1", "--runs", str(tmp_path)])
    with pytest.raises(SystemExit, match="ended with status 1"):
        tables.main()
    assert "| plain | 1 | – | 5.00 |" in (tmp_path / "toy.md").read_text()


def test_a_cell_that_is_out_of_time_is_stopped_and_goes_on_another_time(tmp_path):
    """The command says that it was stopped, as a run does, and leaves no report."""
    code = (
        "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit('saved'))\ntime.sleep(60)"
    )
    stop = dataclasses.replace(HERE, until=time.monotonic() + 1.5)
    started = time.monotonic()
    status, _ = tables.timed([sys.executable, "-c", code], tmp_path, stop)
    assert status == 1 and time.monotonic() - started < 30
    assert (tmp_path / "log.txt").read_text() == "saved\n"
    late = dataclasses.replace(HERE, until=time.monotonic() - 1)
    assert not tables.run_cell(tmp_path, "plain", 0, TABLE.methods["plain"], "data", late)


def test_a_training_that_a_signal_stopped_is_not_done(tmp_path, monkeypatch, capsys):
    """It ends with status 0, at its checkpoint, and has no report."""
    monkeypatch.setattr(tables, "timed", lambda *_: (0, 60.0))
    assert not tables.run_cell(tmp_path, "plain", 0, TABLE.methods["plain"], "data", HERE)
    assert "plain, seed 0, was stopped" in capsys.readouterr().out
    assert tables.score(tmp_path, TABLE, "plain", 0) is None


def test_validation_and_more_metrics_have_a_column(tmp_path):
    table = dataclasses.replace(TABLE, methods={"plain": tables.one("toy")}, also=("pose/rmse",))
    finish(tmp_path, "plain", 0, [5.0])
    folder = tables.stage_dir(tmp_path, "plain", 0, 0) / "eval"
    for step, value in ((1, 6.0), (2, 4.5), (3, 5.5)):
        write_json(folder / f"validation-{step}.json", {"step": step, "pose": {"mae": value}})
    write_json(folder / "test-7.json", {"step": 7, "pose": {"mae": 5.0, "rmse": 7.0}})
    kept = tables.Kept(tmp_path / "cells.json", table)
    kept.add("plain", 0, tables.score(tmp_path, table, "plain", 0))
    assert "| plain | 1 | 4.50 | 5.00 | – | 7.00 | – | 1.0 |" in tables.render(
        table, kept, range(1)
    )


def test_a_method_stands_against_what_costs_as_much_once_that_is_there(tmp_path):
    table = dataclasses.replace(TABLE, equal={"two": "plain_2x"})
    table = dataclasses.replace(
        table, methods={**TABLE.methods, "plain_2x": tables.one("toy", "--config.steps=2")}
    )
    kept = tables.Kept(tmp_path / "cells.json", table)
    for name, value in (("plain", 8.0), ("two", 5.0)):
        kept.add(name, 0, tables.Score(value, {}, 60.0))
    assert "| two | 1 | – | 5.00 | -3.00 | – | – | 1.0 |" in tables.render(table, kept, range(1))
    kept.add("plain_2x", 0, tables.Score(6.0, {}, 120.0))
    lines = tables.render(table, kept, range(1)).splitlines()
    assert "| two | 1 | – | 5.00 | -3.00 | -1.00 | – | 1.0 |" in lines
    assert "| plain_2x | 1 | – | 6.00 | -2.00 | – | – | 2.0 |" in lines


def test_what_costs_as_much_is_a_method_of_its_table():
    for name, table in tables.TABLES.items():
        for method, other in table.equal.items():
            # The authors' heads have a row on a CPU alone.
            assert method in table.methods or method.endswith("pooled"), (name, method)
            assert other in table.methods, (name, other)


def test_cells_that_another_process_has_kept_stay(tmp_path):
    ours, theirs = (tables.Kept(tmp_path / "cells.json", TABLE) for _ in range(2))
    method = next(iter(TABLE.methods))
    theirs.add(method, 0, tables.Score(0.5, {}, 1.0))
    ours.add(method, 1, tables.Score(0.6, {}, 1.0))
    whole = tables.Kept(tmp_path / "cells.json", TABLE)
    assert [whole.score(method, seed).value for seed in (0, 1)] == [0.5, 0.6]


def test_a_cell_that_another_process_runs_is_left_to_it(tmp_path, monkeypatch, capsys):
    ran = []

    def run_cell(folder, name, seed, stages, data_dir, place):
        ran.append((name, seed))
        finish(folder, name, seed, [5.0] * len(stages))
        return True

    monkeypatch.setattr(tables, "run_cell", run_cell)
    monkeypatch.setattr(tables, "HERE", tmp_path)
    monkeypatch.setitem(tables.TABLES, "toy", TABLE)
    monkeypatch.setattr(sys, "argv", ["tables", "toy", "--seeds", "1", "--runs", str(tmp_path)])
    theirs = tmp_path / "toy" / "plain-0"
    theirs.mkdir(parents=True)
    with lock.held(theirs):
        tables.main()
    assert ran == [("two", 0)]
    assert "plain, seed 0, is left" in capsys.readouterr().out
    tables.main()
    assert ran == [("two", 0), ("plain", 0)]


def test_methods_stand_in_the_picture_at_what_they_cost(tmp_path):
    stages = {name: tables.one(name) for name in ("supervised", "joint", "supervised_1.25x", "odd")}
    table = tables.Table("toy", "pose/mae", stages, seeds=2, equal={"joint": "supervised_1.25x"})
    kept = tables.Kept(tmp_path / "cells.json", table)
    for name, seed, value in (("supervised", 0, 4.0), ("supervised", 1, 6.0), ("joint", 0, 3.0)):
        kept.add(name, seed, tables.Score(value, {}, 60.0))
    for name, value in (("supervised_1.25x", 3.5), ("odd", 9.0)):
        kept.add(name, 0, tables.Score(value, {}, 60.0))
    assert curve.points(table, kept) == {
        "supervised": [(1, [4.0, 6.0]), (1.25, [3.5])],
        "joint": [(1.25, [3.0])],  # nothing says what the odd one costs
    }
    curve.draw(tmp_path / "toy.png", table, kept)
    assert (tmp_path / "toy.png").read_bytes()[1:4] == b"PNG"

"""Two processes on loopback train as one: equal results, one set of logs, one common stop."""

import os
import pathlib
import signal
import sys

import pytest

from hmtl_jax.metrics import writer
from tests import runs

pytestmark = pytest.mark.slow

LAUNCHER = ("bash", "launch/local.sh", "--processes", "2", "--python", sys.executable)


def children(process):
    """The two processes that the launcher has started, in their order."""
    path = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
    pids = [int(pid) for pid in path.read_text().split()]
    commands = {pid: pathlib.Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids}
    return [pid for rank in (0, 1) for pid in pids if b"--process_id=%d" % rank in commands[pid]]


def checkpoints(command):
    return sorted(path.name for path in (command.workdir / "checkpoints").glob("*"))


def test_two_processes_are_one_run(whole_run, tmp_path):
    """Told to stop, then one of them killed, then left alone: equal to one process, undisturbed."""
    command = runs.Command(whole_run.data_dir, tmp_path / "run", whole_run.cache)

    # SIGTERM reaches one process alone: both save the same step, and end well.
    process = command.start(LAUNCHER)
    runs.wait_until(process, lambda: "the first step took" in command.log.read_text())
    os.kill(children(process)[1], signal.SIGTERM)
    assert process.wait(timeout=300) == 0, command.printed
    stop = max(runs.steps(command.workdir))  # on a slow machine an epoch's end came before it
    assert 0 < stop < runs.STEPS
    text = f"stopped by SIGTERM and saved step {stop}; the same command goes on from there"
    assert command.printed.count(text) == 1  # one voice
    assert "Traceback" not in command.log.read_text()

    # One is killed while the next checkpoint is written: the launcher ends the other.
    process = command.start(LAUNCHER)
    runs.wait_until(process, lambda: any("tmp" in name for name in checkpoints(command)))
    os.kill(children(process)[1], signal.SIGKILL)
    assert process.wait(timeout=300) != 0

    before = len(command.printed)
    assert command.finish(launcher=LAUNCHER) == 0, command.printed
    printed = command.printed[before:]
    (go_on,) = (line for line in printed if line.startswith("going on from step"))
    assert int(go_on.split()[4]) >= stop
    assert checkpoints(command) == checkpoints(whole_run)

    # One set of logs, with the numbers of one process.
    assert len([line for line in printed if line.startswith("test: ")]) == 1
    lines = writer.read(command.workdir / "metrics.jsonl")
    steps = [(line["step"], "loss/total" in line) for line in lines]
    assert len(steps) == len(set(steps))
    ours, theirs = (
        {line["step"]: line for line in runs.metrics(folder) if "loss/total" in line}
        for folder in (command.workdir, whole_run.workdir)
    )
    common = [step for step in theirs if step in ours and not stop <= step < stop + 2]
    assert len(common) >= 6
    for step in common:
        for name in ("loss/total", "loss/expression", "loss/mae", "grad_norm"):
            assert ours[step][name] == pytest.approx(theirs[step][name], rel=2e-4), (step, name)

    # Each example is evaluated once; the last batch of 24 is half padding, on one process alone.
    ours, theirs = runs.evaluations(command.workdir), runs.evaluations(whole_run.workdir)
    last = f"validation-{runs.STEPS}.json"
    for name in (last, *(name for name in ours if name.startswith("test"))):
        assert ours[name]["examples"] == runs.SIZES[ours[name]["split"]]
        assert ours[name]["expression"]["n"] == ours[name]["examples"]
    wanted = theirs[last]["expression"]["nll"]
    assert ours[last]["expression"]["nll"] == pytest.approx(wanted, rel=1e-4)

    # The weights themselves.
    mine, whole = (runs.arrays(c.workdir, runs.STEPS) for c in (command, whole_run))
    for name in whole:
        if name.startswith("ema/"):
            assert mine[name] == pytest.approx(whole[name], abs=2e-4), name


def test_a_mistake_ends_both_soon_in_one_sentence(whole_run, tmp_path):
    flags = ("--config.data.data_dir=/nowhere", "--config.data.name=ferplus")
    command = runs.Command(whole_run.data_dir, tmp_path / "run", whole_run.cache, flags)
    assert command.start(LAUNCHER).wait(timeout=120) == 1
    assert "error: data_dir /nowhere cannot be read" in command.log.read_text()
    assert "Traceback" not in command.log.read_text()

"""A run that is killed, told to stop, or moved, and then continued, equals one that never was.

The moments to kill are seen from outside, in the files and the output of the run.
"""

import os
import shutil
import signal

import pytest

from hmtl_jax.metrics import writer
from tests import runs

pytestmark = pytest.mark.slow


def kill_when(command, condition):
    """Starts the command, and kills it and its data workers with SIGKILL at that moment."""
    process = command.start()
    runs.wait_until(process, condition)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def said(command, text):
    """A moment: the run has printed this (again)."""
    before = len(command.printed) if command.log.exists() else 0
    return lambda: any(line.startswith(text) for line in command.printed[before:])


def logged(command, step):
    """A moment: metrics.jsonl holds a line of that step or a later one."""
    path = command.workdir / "metrics.jsonl"
    return lambda: path.exists() and any(line["step"] >= step for line in writer.read(path))


def saving(command, step):
    """A moment: the checkpoint of that step is being written."""
    folder = command.workdir / "checkpoints"
    return lambda: any(folder.glob(f"{step}.orbax-checkpoint-tmp*"))


def saved(command):
    folder = command.workdir / "checkpoints"
    return [int(path.name) for path in folder.glob("*") if path.name.isdigit()]


def assert_same_run(ours, whole):
    """All that a run computes is equal to the last bit; times are not compared."""
    assert runs.steps(ours.workdir) == runs.steps(whole.workdir)
    for step in runs.steps(whole.workdir):
        runs.assert_same_arrays(runs.arrays(ours.workdir, step), runs.arrays(whole.workdir, step))
    assert runs.metrics(ours.workdir) == runs.metrics(whole.workdir)
    assert runs.evaluations(ours.workdir) == runs.evaluations(whole.workdir)
    result = [c.printed[-1].partition("; see ")[0] for c in (ours, whole)]
    assert result[0] == result[1]


def test_killed_at_any_moment_it_ends_the_same(whole_run, tmp_path):
    command = runs.Command(whole_run.data_dir, tmp_path / "run", whole_run.cache)

    kill_when(command, said(command, "the first step took"))
    assert saved(command) == []

    # The evaluation begins once the lines of its epoch are written.
    kill_when(command, logged(command, runs.PER_EPOCH))
    assert not (command.workdir / "eval").exists()
    assert saved(command) == []

    kill_when(command, saving(command, runs.PER_EPOCH))
    assert saved(command) == []

    # Steps go on while a checkpoint is written, so this may be in any later interval.
    kill_when(command, lambda: saved(command))
    assert saved(command) == [runs.PER_EPOCH]

    # After training: the test split is evaluated and the pictures are drawn once more.
    kill_when(command, lambda: any((command.workdir / "eval").glob("test-*")))
    assert runs.STEPS in saved(command)

    assert command.finish() == 0, command.printed
    assert f"going on from step {runs.STEPS} of {runs.STEPS}" in command.printed
    assert_same_run(command, whole_run)


@pytest.mark.parametrize("name", ["uncertainty", "dwa", "gradnorm"])
def test_what_a_weighting_learns_is_resumed(tiny_data, compile_cache, tmp_path, name):
    """Two steps an epoch: dwa's pace counts from the fifth step."""
    config = runs.config(
        tiny_data, batch_size=48, steps=6, epochs=0.0, checkpoint__every=3, checkpoint__keep=9,
        weighting__name=name, weighting__lr=0.05, optim__warmup_epochs=0.0,
        data__validation="", data__test="", checkpoint__best="",
    )  # fmt: skip
    runs.run(config, tmp_path / "run")
    whole = runs.arrays(tmp_path / "run", 6)
    assert any(key.startswith("task_weights/") for key in whole)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    for later in (4, 5):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(later), ignore_errors=True)
    printed = runs.run(config, tmp_path / "run")
    assert "going on from step 3 of 6" in printed
    runs.assert_same_arrays(runs.arrays(tmp_path / "run", 6), whole)


def test_data_workers_change_nothing_nor_does_killing_them(whole_run, tmp_path):
    """With two data workers; compared with the run that had none."""
    command = runs.Command(
        whole_run.data_dir, tmp_path / "run", whole_run.cache, ("--config.data.workers=2",)
    )
    kill_when(command, saving(command, 2 * runs.PER_EPOCH))
    assert saved(command) == [runs.PER_EPOCH]
    assert command.finish() == 0, command.printed
    assert f"going on from step {runs.PER_EPOCH} of {runs.STEPS}" in command.printed
    assert_same_run(command, whole_run)


def test_sigterm_saves_and_other_devices_go_on(whole_run, tmp_path):
    """Told to stop on one device, continued on eight that share the weights four by four."""
    command = runs.Command(whole_run.data_dir, tmp_path / "run", whole_run.cache)
    process = command.start()
    runs.wait_until(process, said(command, "the first step took"))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 0, command.printed
    (stop,) = saved(command)
    assert stop < runs.STEPS
    assert command.printed[-1] == (
        f"stopped by SIGTERM and saved step {stop}; the same command goes on from there"
    )
    assert "Traceback" not in command.log.read_text()

    printed = runs.run(runs.config(whole_run.data_dir, mesh__fsdp=4), command.workdir)
    assert f"going on from step {stop} of {runs.STEPS}" in printed
    ours, theirs = (
        {line["step"]: line for line in runs.metrics(folder) if "loss/total" in line}
        for folder in (command.workdir, whole_run.workdir)
    )
    # Lines of an interval that the stop has cut in two are means over fewer steps.
    common = [step for step in theirs if step in ours and not stop <= step < stop + 2]
    assert len(common) >= 6
    for step in common:
        for name in ("loss/total", "loss/expression", "loss/mae", "grad_norm"):
            assert ours[step][name] == pytest.approx(theirs[step][name], rel=2e-4), (step, name)
    for name, report in runs.evaluations(whole_run.workdir).items():
        if name in runs.evaluations(command.workdir):
            again = runs.evaluations(command.workdir)[name]
            assert again["expression"]["nll"] == pytest.approx(
                report["expression"]["nll"], rel=1e-4
            )

"""Speeds are those of the devices, counts are sums, losses that are not finite are named."""

import numpy as np
import pytest

from hmtl_jax import errors
from hmtl_jax.log import Log, summary
from hmtl_jax.metrics import writer
from hmtl_jax.metrics.clock import Clock

BATCH = 10
TRY = {"mae": "another target", "puzzle": "fewer tiles"}


class Machine:
    """A host that dispatches steps at once, and a device that takes `seconds` for each."""

    def __init__(self, seconds):
        self.now, self.seconds, self.busy_until = 0.0, seconds, 0.0

    def dispatch(self, **values):
        self.busy_until = max(self.busy_until, self.now) + self.seconds
        usual = {"loss/total": 1.0, "lr": 0.1, "nonfinite": 0.0, "skipped_images": 0.0}
        return {k: Pending(self, self.busy_until, v) for k, v in (usual | values).items()}


class Pending:
    """A number that is on the device; to read it is to wait for it."""

    def __init__(self, machine, done, value):
        self.machine, self.done, self.value = machine, done, value

    def is_ready(self):
        return self.machine.now >= self.done

    def block_until_ready(self):
        self.machine.now = max(self.machine.now, self.done)
        return self

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.block_until_ready().value, dtype)


def train(tmp_path, machine, steps, interval, *, finish_every=None, wait=0.0, first=1.0, **options):
    """Steps through a loop as train.py does; returns the lines of metrics.jsonl."""
    with writer.Writer(tmp_path, resume_step=-1) as out:
        clock = Clock(now=lambda: machine.now)
        log = Log(out, clock, steps, BATCH, options.pop("stop_nonfinite", True), TRY)
        for at in range(1, steps + 1):
            machine.now += wait
            seconds, machine.seconds = machine.seconds, first if at == 1 else machine.seconds
            values = {name: found.get(at, 0.0) for name, found in options.items()}
            log.keep(at, machine.dispatch(**values), wait)
            machine.seconds = seconds
            if at % interval == 0:
                log.write()
            if finish_every and at % finish_every == 0:
                log.finish()
        log.finish()
    return writer.read(tmp_path / writer.FILE_NAME)


@pytest.mark.parametrize("finish_every", [None, 8])
def test_speed_of_a_busy_device_is_its_own(tmp_path, finish_every):
    lines = train(tmp_path, Machine(0.5), 24, 4, finish_every=finish_every, first=100.0)
    assert [line["step"] for line in lines] == [4, 8, 12, 16, 20, 24]
    assert [line["images_per_second"] for line in lines] == pytest.approx([BATCH / 0.5] * 6)
    assert {line["data_wait_fraction"] for line in lines} == {0.0}


@pytest.mark.parametrize("finish_every", [None, 8])
def test_speed_of_a_device_that_waits_for_data_is_that_of_the_data(tmp_path, finish_every):
    lines = train(tmp_path, Machine(0.01), 24, 4, finish_every=finish_every, wait=2.0)
    assert [line["images_per_second"] for line in lines] == pytest.approx([BATCH / 2] * 6, rel=0.01)
    assert [line["data_wait_fraction"] for line in lines] == pytest.approx([1.0] * 6, rel=0.01)


def test_compilation_spoils_neither_speed_nor_eta(tmp_path, capsys):
    train(tmp_path, Machine(1.0), 6, 2, first=60.0)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "the first step took 1 min 00 s, mostly to compile"
    assert printed[1].endswith("10 images/s  ETA 4 s")


def test_intervals_of_one_step_have_a_speed(tmp_path):
    lines = train(tmp_path, Machine(0.5), 3, 1, first=2.0)
    assert [line["images_per_second"] for line in lines] == pytest.approx([5.0, 20.0, 20.0])


def test_counts_are_sums_and_the_rest_means_of_what_is_finite():
    rows = [
        {"loss/total": 1.0, "lr": 0.1, "nonfinite": 0.0, "skipped_images": 2.0, "grad_norm": 1.0},
        {
            "loss/total": np.nan,
            "lr": 0.2,
            "nonfinite": 1.0,
            "skipped_images": 1.0,
            "grad_norm": 1.0,
        },
        {"loss/total": 3.0, "lr": 0.3, "nonfinite": 0.0, "skipped_images": 0.0, "grad_norm": 4.0},
    ]
    wanted = {
        "loss/total": 2.0,
        "lr": 0.3,
        "nonfinite": 1.0,
        "skipped_images": 3.0,
        "grad_norm": 2.0,
    }
    assert summary(rows) == wanted


def test_order_is_losses_weights_rate_norm():
    names = ["grad_norm", "loss/b", "loss/total", "lr", "nonfinite", "skipped_images", "weight/b"]
    order = list(summary([dict.fromkeys(names, 1.0)]))
    assert order[:5] == ["loss/total", "loss/b", "weight/b", "lr", "grad_norm"]


def test_a_loss_that_is_not_finite_names_its_steps_after_writing_them(tmp_path):
    with pytest.raises(errors.UserError, match=r"step 5–7 \(2 steps\); nothing was saved since"):
        train(tmp_path, Machine(1.0), 12, 4, nonfinite={5: 1.0, 7: 1.0})
    lines = writer.read(tmp_path / writer.FILE_NAME)
    assert [(line["step"], line["nonfinite"]) for line in lines] == [(4, 0.0), (8, 2.0)]


def test_a_loss_that_is_not_finite_may_be_skipped_and_counted(tmp_path, capsys):
    lines = train(tmp_path, Machine(1.0), 4, 2, nonfinite={3: 1.0}, stop_nonfinite=False)
    assert [line["nonfinite"] for line in lines] == [0.0, 1.0]
    printed = capsys.readouterr().out.splitlines()
    assert "not finite" not in printed[1]
    assert "1 steps not finite" in printed[2]


def test_steps_that_lack_a_loss_do_not_dilute_its_mean():
    usual = {"loss/total": 1.0, "lr": 0.1, "nonfinite": 0.0, "skipped_images": 0.0}
    both = {"loss/age": 2.0, "count/age": 3.0, "loss/age/clean": 4.0}
    none = {"loss/age": 0.0, "count/age": 0.0, "loss/age/clean": 0.0}
    one = {"loss/age": 6.0, "count/age": 1.0, "loss/age/clean": 8.0}
    found = summary([usual | row for row in (both, none, one)])
    assert (found["loss/age"], found["loss/age/clean"], found["count/age"]) == (3.0, 5.0, 4.0)
    assert np.isnan(summary([usual | none])["loss/age"])


def test_a_pretext_that_learns_nothing_is_named_once_with_what_to_try(tmp_path, capsys):
    skills = {
        "skill/mae/lbp": dict.fromkeys(range(1, 101), 0.01),
        "skill/mae/rgb": dict.fromkeys(range(1, 101), 0.4),
        "skill/puzzle": {at: at / 400 for at in range(1, 101)},
    }
    lines = train(tmp_path, Machine(0.1), 100, 5, **skills)
    printed = capsys.readouterr().out
    named = [line for line in printed.splitlines() if "tenth of the run" in line]
    assert len(named) == 1 and "mae/lbp has a skill of 0.010" in named[0]
    assert named[0].endswith("try another target")
    assert "skill/mae/rgb 0.400" in printed
    assert lines[0]["skill/mae/lbp"] == pytest.approx(0.01)


def test_a_host_that_runs_ahead_does_not_make_the_device_faster(tmp_path):
    """Its queue takes many steps; an interval does not end when the last one is handed over."""

    class Queue(Machine):
        depth = 30

        def dispatch(self, **values):
            # Blocks while the queue is full, as a CPU backend does.
            self.now = max(self.now, self.busy_until - self.depth * self.seconds)
            return super().dispatch(**values)

    lines = train(tmp_path, Queue(0.5), 200, 50, first=0.5)
    speeds = [line["images_per_second"] for line in lines]
    assert speeds == pytest.approx([BATCH / 0.5] * 4, rel=0.03)

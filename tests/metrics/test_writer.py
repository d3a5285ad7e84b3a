"""The log survives kills: a continued run's file equals that of an uninterrupted one."""

import json
import os
import struct

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from hmtl_jax import errors
from hmtl_jax.metrics import writer


def log(workdir):
    return (workdir / "metrics.jsonl").read_text()


def run(workdir, steps, resume_step=None):
    with writer.Writer(workdir, resume_step=resume_step) as out:
        for step in steps:
            out.write(step, {"loss/total": 1 / (step + 1), "lr": 1e-3})


# The module makes its classes when it is imported, where type checkers cannot see them.
Event = vars(event_pb2)["Event"]
START = vars(event_pb2)["SessionLog"].START


def events_of(workdir):
    return set(workdir.glob("events.out.tfevents.*"))


def parsed(path):
    """The events of a file of TFRecords: length, its checksum, content, its checksum."""
    content, start = path.read_bytes(), 0
    while start < len(content):
        (length,) = struct.unpack_from("<Q", content, start)
        yield Event.FromString(content[start + 12 : start + 12 + length])
        start += 12 + length + 4


def test_one_line_a_call_with_step_first(tmp_path):
    with writer.Writer(tmp_path / "new" / "run") as out:
        out.write(7, {"loss/total": np.float32(0.5), "lr": jnp.float32(0.25), "epochs": 3})
    text = log(tmp_path / "new" / "run")
    assert text == '{"step": 7, "loss/total": 0.5, "lr": 0.25, "epochs": 3.0}\n'


def test_every_line_is_flushed(tmp_path):
    with writer.Writer(tmp_path) as out:
        for step in range(3):
            out.write(step, {"a": 1.0})
            assert len(log(tmp_path).splitlines()) == step + 1


def test_a_picture_is_shown_in_tensorboard(tmp_path):
    figure = np.full((3, 5, 4), 200, np.uint8)
    cv2.imwrite(str(tmp_path / "one.png"), figure)
    with writer.Writer(tmp_path / "run") as out:
        out.picture(7, "mae", tmp_path / "one.png")
    (file,) = events_of(tmp_path / "run")
    ((step, value),) = [(e.step, v) for e in parsed(file) for v in e.summary.value]
    assert (step, value.tag, value.image.width, value.image.height) == (7, "mae", 5, 3)
    shown = np.frombuffer(value.image.encoded_image_string, np.uint8)
    np.testing.assert_array_equal(cv2.imdecode(shown, cv2.IMREAD_UNCHANGED), figure)


def test_non_finite_numbers_become_null(tmp_path):
    with writer.Writer(tmp_path) as out:
        out.write(1, {"a": float("nan"), "b": np.inf, "c": -np.inf, "d": 1.0})
    assert writer.read(tmp_path / "metrics.jsonl") == [
        {"step": 1, "a": None, "b": None, "c": None, "d": 1.0}
    ]


def test_without_resume_step_lines_are_kept(tmp_path):
    run(tmp_path, range(3))
    run(tmp_path, range(3, 6))
    assert [line["step"] for line in writer.read(tmp_path / "metrics.jsonl")] == list(range(6))


@pytest.mark.parametrize("checkpoint", [-1, 0, 4, 9])
def test_resumed_log_equals_an_uninterrupted_one(tmp_path, checkpoint):
    run(tmp_path / "whole", range(10))
    run(tmp_path / "killed", range(8))
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "loss/to')  # cut short by the kill
    run(tmp_path / "killed", range(checkpoint + 1, 8), resume_step=checkpoint)
    run(tmp_path / "killed", range(8, 10))
    if checkpoint == 9:  # nothing lies behind the checkpoint, so nothing is dropped
        assert log(tmp_path / "killed").count("\n") == 10
    assert log(tmp_path / "killed") == log(tmp_path / "whole")


def test_line_cut_short_is_dropped_without_resume_too(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 1.0}\n{"step": 2, "a"')
    run(tmp_path, [2])
    assert [line["step"] for line in writer.read(tmp_path / "metrics.jsonl")] == [1, 2]


def test_tensorboard_events_lie_beside(tmp_path):
    run(tmp_path, range(3))
    (path,) = events_of(tmp_path)
    points = [(event.step, value.tag) for event in parsed(path) for value in event.summary.value]
    assert points == [(step, tag) for step in range(3) for tag in ("loss/total", "lr")]


def test_tensorboard_hides_what_the_resumed_run_writes_again(tmp_path):
    run(tmp_path / "killed", range(8))
    (before,) = events_of(tmp_path / "killed")
    run(tmp_path / "killed", range(5, 8), resume_step=4)
    (after,) = events_of(tmp_path / "killed") - {before}
    starts = [event for event in parsed(after) if event.HasField("session_log")]
    assert [(event.step, event.session_log.status) for event in starts] == [(5, START)]


def test_step_is_no_name_of_a_metric(tmp_path):
    with writer.Writer(tmp_path) as out, pytest.raises(errors.UserError, match="'step'"):
        out.write(1, {"step": 2.0})


def test_workdir_that_is_a_file_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(errors.UserError, match=r"Cannot write .*run.*--workdir"):
        writer.Writer(tmp_path / "run")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk_is_named(tmp_path):
    with writer.Writer(tmp_path) as out, open("/dev/full", "ab", buffering=0) as full:
        out._file.close()
        out._file = full
        with pytest.raises(errors.UserError, match="No space left on device"):
            out.write(1, {"a": 1.0})


def test_every_line_is_json_that_a_strict_parser_reads(tmp_path):
    with writer.Writer(tmp_path) as out:
        out.write(1, {"a": 0.1, "b": np.nan, "é": 1e-30})

    def refuse(word):
        raise AssertionError(word)

    assert json.loads(log(tmp_path), parse_constant=refuse)["a"] == 0.1

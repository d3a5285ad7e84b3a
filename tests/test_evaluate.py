"""Each example of a split counts once, in the split's order, whatever the batches were."""

import dataclasses
import json
import pathlib
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from hmtl_jax import evaluate, infer, program, sharding
from hmtl_jax.metrics import bootstrap
from hmtl_jax.tasks.binary import Binary
from hmtl_jax.tasks.classification import Classification
from tests import tiny


def batches(rows, size, invalid=()):
    """Rows in batches; the last is padded with rows that look real but are not valid."""
    rows = list(rows)
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        index = np.array(part + [part[0]] * (size - len(part)), np.int32)
        valid = (np.arange(size) < len(part)) & ~np.isin(index, invalid)
        yield {"image": index[:, None] * 10, "index": index, "label": index % 3, "valid": valid}


def eval_step(state, batch):
    """A model that knows what it is shown."""
    labels = {name: rows for name, rows in batch.items() if name != "image"}
    return {"predictions": {"task": batch["image"] * state}, "labels": labels}


def found_of(batches):
    with jax.set_mesh(sharding.make_mesh()):
        return evaluate.predictions(eval_step, 2, batches, jax.sharding.get_mesh())


@pytest.mark.parametrize("rows", [range(21), [*range(0, 21, 2), *range(1, 21, 2)]])
def test_each_example_counts_once_in_the_splits_order(rows):
    """In the second order two processes have read every other row."""
    found = found_of(batches(rows, 8))
    np.testing.assert_array_equal(found["labels"]["index"], np.arange(21))
    np.testing.assert_array_equal(found["labels"]["label"], np.arange(21) % 3)
    np.testing.assert_array_equal(found["predictions"]["task"][:, 0], np.arange(21) * 20)
    assert set(found["labels"]) == {"index", "label"}


def test_a_corrupt_example_is_left_out():
    found = found_of(batches(range(16), 8, invalid=(3, 9)))
    assert len(found["labels"]["index"]) == 14
    assert not {3, 9} & set(found["labels"]["index"].tolist())


def test_metrics_by_task_become_scalars_for_the_log():
    found = {
        "predictions": {"expression": np.eye(2)[[0, 1, 1, 0]]},
        "labels": {"expression": np.array([0, 1, 0, -1])},
    }
    tasks = {"expression": Classification("expression", ("calm", "glad"))}
    metrics = evaluate.metrics(tasks, found)
    scalars = evaluate.scalars(metrics)
    assert scalars["expression/accuracy"] == pytest.approx(2 / 3)
    assert "expression/n" not in scalars  # a count would flatten every curve
    assert not any("confusion" in name or "interval" in name for name in scalars)
    # Frames of a film are no independent examples.
    assert "accuracy_interval" in metrics["expression"]
    frames = evaluate.metrics(tasks, found, frames=True)["expression"]
    assert metrics["expression"].keys() - frames.keys() == {"accuracy_interval"}


def test_a_report_on_the_screen_has_intervals_and_the_skill_of_every_target():
    said = {
        "data": {"name": "faces", "version": "1.0.0"}, "split": "test", "examples": 40, "step": 7,
        "weights": "as trained", "mirrored": False, "unmatched": {}, "skipped_images": 0,
        "unlabelled": ["pose"],
        "expression": {"accuracy": 0.5, "intervals": {"accuracy": [0.25, 0.75]}},
        **evaluate.skills(
            {"mae/rgb": np.array([[1.0, 4.0]]), "mae/lbp_bits_4": np.array([[4.0, 4.0]])}
        ),
        "puzzle": {"skill": 0.125},
    }  # fmt: skip
    assert [line.split() for line in evaluate.text(said).splitlines()[1:]] == [
        ["expression/accuracy", "50.00", "%", "(25.00–75.00)"],
        ["mae/rgb/skill", "75.00", "%"],
        ["mae/lbp_bits_4/skill", "0.00", "%"],
        ["puzzle/skill", "12.50", "%"],
        ["pose:", "no", "example", "has", "a", "label", "of", "it"],
    ]


def test_a_report_is_written_whole(tmp_path):
    path = tmp_path / "eval" / "test-40.json"
    evaluate.write(path, {"step": 40, "expression": {"accuracy": 0.5}})
    assert json.loads(path.read_text()) == {"step": 40, "expression": {"accuracy": 0.5}}
    with pytest.raises(TypeError):
        evaluate.write(path, {"step": object()})
    assert json.loads(path.read_text())["step"] == 40


def test_answers_of_a_picture_and_its_mirror_image_are_averaged():
    """A task whose answer a mirror changes is told what it says of the picture itself."""

    class Sided:
        """Where the light is: -1 left, 1 right; a mirror changes the side."""

        def predict(self, outputs):
            return outputs

        def mirrored(self, predicted):
            return -predicted

    class Light:
        """How light it is, whatever the side."""

        def predict(self, outputs):
            return outputs

    class Model:
        fuse = ""

        def apply(self, variables, views, train, decode):
            (images,) = (view.images for view in views.values())
            left, right = images[:, :, :4].mean((1, 2, 3)), images[:, :, 4:].mean((1, 2, 3))
            return {"clean": {"side": right - left, "light": (left + 3 * right) / 4}}

    tasks = {"side": Sided(), "light": Light()}
    plain = program.Program(Model(), tasks, {}, 8)
    images = np.zeros((2, 8, 8, 3), np.uint8)
    images[0, :, 4:] = 255
    found = infer.eval_step(plain, {}, {"image": images})["predictions"]
    both = infer.eval_step(dataclasses.replace(plain, mirror=True), {}, {"image": images})
    both = both["predictions"]
    np.testing.assert_allclose(found["side"], both["side"], atol=1e-6)
    assert found["light"][0] == pytest.approx(0.75) and both["light"][0] == pytest.approx(0.5)


@pytest.mark.parametrize("two", [False, True])
def test_frames_are_measured_by_their_videos(two):
    """Video 0 is real with one suspicious frame, video 1 is fake with one clear frame."""
    logit = np.array([-2.0, 1.0, -3.0, 3.0, -1.0])
    videos, fake = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 1])
    share = 1 / (1 + np.exp(-logit))
    task = Classification("fake", ("real", "fake")) if two else Binary("fake")
    predicted = np.stack([1 - share, share], axis=1) if two else share
    found = evaluate.by_video(task, predicted, {"fake": fake}, videos)["videos"]
    assert found["mean"]["n"] == found["max"]["n"] == 2
    assert found["mean"]["accuracy"] == 1.0  # means of -4/3 and 1
    assert found["max"]["accuracy"] == 0.5  # the largest are 1 and 3
    wrong = np.log1p(np.exp(-4 / 3)) / 2 + np.log1p(np.exp(-1.0)) / 2
    assert found["mean"]["nll"] == pytest.approx(wrong)


def test_what_cannot_be_asked_of_a_run_is_said(monkeypatch):
    data = ConfigDict({"data": {"data_dir": "data", "name": "synthetic", "test": ""}})
    run = SimpleNamespace(run="runs/a", config=data, program=SimpleNamespace(tasks={}))
    monkeypatch.setattr(evaluate.trained, "load", lambda path, mesh: run)
    nothing = (pathlib.Path("runs/a"), None, "", "", "")
    assert "has no task to evaluate; probe" in tiny.refused(evaluate.asked, *nothing)
    run.program.tasks["fake"] = Binary("fake")
    assert "has no test split (data.test is empty)" in tiny.refused(evaluate.asked, *nothing)


class Films:
    """Two sets of four and of two pictures."""

    def __init__(self, **labels):
        self.labels, self._columns = tuple(labels), labels
        self.parts = {"a": slice(0, 4), "b": slice(4, 6)}

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return {label: np.int32(column[index]) for label, column in self._columns.items()}


def test_frames_are_of_the_videos_that_a_set_tells():
    index, none = np.arange(6), [-1] * 6
    assert evaluate.videos_of(Films(expression=none), index) is None
    # Of the first set some pictures are of no video; of the second all are recordings.
    films = Films(video=[7, -1, 7, -1, -1, -1], recording=[-1, -1, -1, -1, 7, 7])
    found = evaluate.videos_of(films, index)
    same = found[:, None] == found
    wanted = np.eye(6, dtype=bool)
    wanted[0, 2] = wanted[2, 0] = wanted[4, 5] = wanted[5, 4] = True
    assert (same == wanted).all() and sorted(set(found)) == [0, 1, 2, 3]
    # Video 7 of one set is not that of the other.
    films = Films(video=[7, -1, 7, -1, 7, -1])
    assert len(set(evaluate.videos_of(films, index[[0, 2, 4]]))) == 2


def test_other_tasks_have_no_videos():
    task = Classification("expression", ("calm", "glad", "sad"))
    videos = np.zeros(2, int)
    assert evaluate.by_video(task, np.eye(3)[:2], {"expression": np.arange(2)}, videos) == {}


def test_an_interval_is_that_of_the_normal_law_and_wider_by_clusters():
    rng = np.random.default_rng(1)
    values = rng.normal(size=400)

    def measure(rows):
        return {"mean": float(values[rows].mean()), "none": None}

    low, high = bootstrap.intervals(measure, ["mean", "none"], 400, resamples=2000)["mean"]
    half = 1.96 * values.std() / 20
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
    assert (high + low) / 2 == pytest.approx(values.mean(), abs=half / 5)
    values = np.repeat(values[:100], 4)  # four equal frames a video
    clusters = np.repeat(np.arange(100), 4)
    low, high = bootstrap.intervals(measure, ["mean"], 400, clusters, resamples=2000)["mean"]
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 10, rel=0.1)

"""Each example of a split counts once, in the split's order, whatever the batches were."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from hmtl_jax import evaluate, infer, program, sharding
from hmtl_jax.tasks.classification import Classification


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

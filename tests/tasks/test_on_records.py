"""Each kind of task reads the labels of a prepared set: records, batches, target, loss, metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hmtl_jax import errors
from hmtl_jax.data import pipeline, records, synthetic
from hmtl_jax.tasks import TASKS

SETTINGS = {
    "binary": {"label": "fake"},
    "classification": {"label": "expression", "classes": synthetic.CLASS_NAMES["expression"]},
    "multilabel": {"labels": ("attributes",)},
    "pose": {"labels": ("pose",)},
    "regression": {"labels": ("valence", "arousal"), "objective": "ccc"},
}


@pytest.fixture(scope="module")
def source(tiny_data):
    return records.open_split(tiny_data, "synthetic", "test")


def made(kind, source):
    settings = dict(SETTINGS[kind])
    if "labels" in settings:
        settings["names"] = pipeline.entry_names(source, settings["labels"])
    return TASKS[kind](**settings)


@pytest.mark.parametrize("kind", sorted(TASKS))
def test_a_task_runs_on_the_labels_of_the_synthetic_set(kind, source):
    task = made(kind, source)
    batches = pipeline.eval_batches(
        source, labels=task.labels, image_size=32, batch_size=8, threads=1
    )
    batch = next(iter(batches))
    outputs = jnp.asarray(np.random.default_rng(0).normal(size=(8, task.num_outputs)), jnp.float32)

    @jax.jit
    def step(batch, outputs):
        target, mask = task.target(batch)
        flipped = task.flip(target, jnp.arange(8) % 2 == 0)
        return task.loss(outputs, flipped, mask), mask, task.predict(outputs)

    losses, mask, predicted = step({label: batch[label] for label in task.labels}, outputs)
    assert losses.shape == mask.shape == (8,) and losses.dtype == mask.dtype == jnp.float32
    assert np.isfinite(losses).all() and mask.tolist() == batch["valid"].tolist()
    found = task.metrics(np.asarray(predicted), {label: batch[label] for label in task.labels})
    assert found["n"] == 8
    assert any(isinstance(value, float) and np.isfinite(value) for value in found.values())


def test_names_of_columns(source):
    assert pipeline.entry_names(source, ("attributes",)) == tuple(synthetic.ATTRIBUTES)
    assert pipeline.entry_names(source, ("pose", "gender")) == ("yaw", "pitch", "roll", "gender")
    with pytest.raises(errors.UserError, match=r"'valance'; known: .*valence.*Did you mean"):
        pipeline.entry_names(source, ("valance",))

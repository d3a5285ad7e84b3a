"""Classification's loss equals scikit-learn's and PyTorch's; missing labels are masked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import log_loss

from hmtl_jax.tasks.classification import Classification

CLASSES = ("calm", "glad", "grim", "wry")
LABELS = np.array([0, 1, 2, 3, 3, 1], np.int32)
WEIGHTS = (1.0, 2.5, 4.0, 0.5)


def logits_bc(seed=0):
    return np.random.default_rng(seed).normal(scale=3, size=(6, 4)).astype(np.float32)


def loss_of(task, logits, label=LABELS, **batch):
    target, mask = task.target({"expression": jnp.asarray(label), **batch})
    return np.asarray(task.loss(jnp.asarray(logits), target)), np.asarray(mask)


def test_loss_is_the_log_loss_of_the_predictions():
    task = Classification("expression", CLASSES)
    losses, mask = loss_of(task, logits_bc())
    probabilities = np.asarray(task.predict(jnp.asarray(logits_bc())), np.float64)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    assert losses.mean() == pytest.approx(log_loss(LABELS, probabilities), rel=1e-5)
    assert mask.tolist() == [1.0] * 6


@pytest.mark.parametrize("weights", [(), WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smoothing_and_class_weights_are_pytorchs(weights, smoothing):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference here; not installed")
    task = Classification("expression", CLASSES, weights, smoothing)
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(logits_bc()),
        torch.tensor(LABELS, dtype=torch.long),
        weight=torch.tensor(weights) if weights else None,
        label_smoothing=smoothing,
        reduction="none",
    )
    np.testing.assert_allclose(loss_of(task, logits_bc())[0], theirs.numpy(), rtol=2e-6)


def test_class_weights_multiply_without_changing_the_divisor():
    """HMTL divides the weighted losses by the number of examples, not by the sum of weights."""
    plain, _ = loss_of(Classification("expression", CLASSES), logits_bc())
    weighted, mask = loss_of(Classification("expression", CLASSES, WEIGHTS), logits_bc())
    np.testing.assert_allclose(weighted, np.array(WEIGHTS)[LABELS] * plain, rtol=1e-6)
    assert mask.tolist() == [1.0] * 6


def test_soft_labels_are_the_expectation_over_hard_ones():
    soft = np.random.default_rng(1).dirichlet(np.ones(4), 6).astype(np.float32)
    task = Classification("expression", CLASSES, WEIGHTS, 0.1, soft=True)
    losses, _ = loss_of(task, logits_bc(), expression_soft=jnp.asarray(soft))
    hard = Classification("expression", CLASSES, WEIGHTS, 0.1)
    each = [loss_of(hard, logits_bc(), np.full(6, c, np.int32))[0] for c in range(4)]
    np.testing.assert_allclose(losses, np.sum(soft * np.stack(each, 1), 1), rtol=1e-5)
    assert task.labels == ("expression", "expression_soft") and hard.labels == ("expression",)


def test_missing_labels_are_masked_and_finite():
    task = Classification("expression", CLASSES, label_smoothing=0.1)
    losses, mask = loss_of(task, logits_bc(), np.array([0, -1, 3, 4, -1, 2], np.int32))
    assert mask.tolist() == [1, 0, 1, 0, 0, 1]
    assert np.isfinite(losses).all()


def test_missing_soft_labels_are_rows_of_zeros():
    soft = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0, 1]]
    soft[[1, 4]] = 0
    task = Classification("expression", CLASSES, soft=True)
    _, mask = loss_of(task, logits_bc(), expression_soft=jnp.asarray(soft))
    assert mask.tolist() == [1, 0, 1, 1, 0, 1]


def test_bf16_logits_are_reduced_in_f32():
    task = Classification("expression", CLASSES, label_smoothing=0.1)
    logits = jnp.asarray(logits_bc(), jnp.bfloat16)
    target, _ = task.target({"expression": jnp.asarray(LABELS)})
    loss, predicted = task.loss(logits, target), task.predict(logits)
    assert loss.dtype == predicted.dtype == jnp.float32
    np.testing.assert_array_equal(loss, task.loss(logits.astype(jnp.float32), target))
    np.testing.assert_allclose(np.sum(predicted, 1), 1, rtol=1e-6)


def test_huge_logits_stay_finite():
    task = Classification("expression", CLASSES)
    target, _ = task.target({"expression": jnp.zeros(1, jnp.int32)})
    logits = jnp.array([[-1e4, 1e4, 0.0, 0.0]])
    loss, gradient = jax.value_and_grad(lambda x: task.loss(x, target)[0])(logits)
    assert float(loss) == pytest.approx(2e4) and np.isfinite(gradient).all()


def test_a_mirrored_face_keeps_its_class():
    task = Classification("expression", CLASSES)
    target, _ = task.target({"expression": jnp.asarray(LABELS)})
    np.testing.assert_array_equal(task.flip(target, jnp.ones(6, bool)), target)


def test_metrics_leave_out_rows_without_a_label():
    task = Classification("expression", CLASSES)
    predicted = np.eye(4)[[0, 1, 2, 0, 0]]
    found = task.metrics(predicted, {"expression": np.array([0, 1, 0, -1, -1])})
    assert found["n"] == 3 and found["accuracy"] == pytest.approx(2 / 3)

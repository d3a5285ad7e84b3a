"""Classification's loss equals scikit-learn's and PyTorch's; missing labels are masked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import log_loss

from hmtl_jax import errors
from hmtl_jax.tasks.classification import Classification

CLASSES = ("calm", "glad", "grim", "wry")
LABELS = np.array([0, 1, 2, 3, 3, 1], np.int32)
WEIGHTS = (1.0, 2.5, 4.0, 0.5)


def logits_bc(seed=0):
    return np.random.default_rng(seed).normal(scale=3, size=(6, 4)).astype(np.float32)


def loss_of(task, logits, label=LABELS, **batch):
    target, mask = task.target({"expression": jnp.asarray(label), **batch})
    return np.asarray(task.loss(jnp.asarray(logits), target, mask)), np.asarray(mask)


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
    target, mask = task.target({"expression": jnp.asarray(LABELS)})
    loss, predicted = task.loss(logits, target, mask), task.predict(logits)
    assert loss.dtype == predicted.dtype == jnp.float32
    np.testing.assert_array_equal(loss, task.loss(logits.astype(jnp.float32), target, mask))
    np.testing.assert_allclose(np.sum(predicted, 1), 1, rtol=1e-6)


def test_huge_logits_stay_finite():
    task = Classification("expression", CLASSES)
    target, mask = task.target({"expression": jnp.zeros(1, jnp.int32)})
    logits = jnp.array([[-1e4, 1e4, 0.0, 0.0]])
    loss, gradient = jax.value_and_grad(lambda x: task.loss(x, target, mask)[0])(logits)
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


def test_focal_loss_is_the_papers():
    """-(1 - p)^gamma log p of the true class, in float64."""
    logits = logits_bc().astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    p = p[np.arange(6), LABELS]
    losses, _ = loss_of(Classification("expression", CLASSES, focal=2.0), logits_bc())
    np.testing.assert_allclose(losses, -((1 - p) ** 2) * np.log(p), rtol=1e-4, atol=1e-9)
    weighted, _ = loss_of(Classification("expression", CLASSES, WEIGHTS, focal=2.0), logits_bc())
    np.testing.assert_allclose(weighted, np.array(WEIGHTS)[LABELS] * losses, rtol=1e-6)


@pytest.mark.parametrize("focal", [0.5, 1.0, 2.0])
def test_focal_gradient_is_finite_where_the_truth_is_certain(focal):
    task = Classification("expression", CLASSES, focal=focal)
    target, mask = task.target({"expression": jnp.zeros(1, jnp.int32)})
    gradient = jax.grad(lambda x: task.loss(x, target, mask)[0])(jnp.array([[1e3, 0.0, 0, 0]]))
    assert np.isfinite(gradient).all()


def test_logit_adjustment_is_the_papers():
    """log(1 + sum over others of (prior' / prior)^tau e^(f' - f)): Menon 2021, equation 10."""
    priors, tau = np.array([0.4, 0.3, 0.2, 0.1]), 0.7
    task = Classification("expression", CLASSES, logit_adjustment=tau, priors=tuple(priors))
    losses, _ = loss_of(task, logits_bc())
    f = logits_bc().astype(np.float64)
    for row, y in enumerate(LABELS):
        others = [c for c in range(4) if c != y]
        inner = sum((priors[c] / priors[y]) ** tau * np.exp(f[row, c] - f[row, y]) for c in others)
        assert losses[row] == pytest.approx(np.log1p(inner), rel=1e-4)
    plain = Classification("expression", CLASSES)
    np.testing.assert_array_equal(task.predict(logits_bc()), plain.predict(logits_bc()))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"logit_adjustment": 1.0}, "share of each of the 4 classes"),
        ({"logit_adjustment": 1.0, "priors": (0.5, 0.5, 0.0, 0.0)}, "above 0"),
        ({"focal": -1.0}, "focal is -1.0"),
        (
            {"class_weights": (0.0,) * 4},
            r"class_weights is .* give numbers of 0 or more, not all 0",
        ),
        (
            {"class_weights": (1.0, 1.0, 1.0, -1.0)},
            r"class_weights is .*-1.0.* give numbers of 0 or more",
        ),
        (
            {"class_weights": (1.0, 1.0, 1.0, float("nan"))},
            r"class_weights is .*nan.* give numbers of 0 or more",
        ),
        ({"label_smoothing": 1.5}, r"label_smoothing is 1.5; give a share in \[0, 1\)"),
    ],
)
def test_unusable_settings_are_named(settings, words):
    with pytest.raises(errors.UserError, match=words):
        Classification("expression", CLASSES, **settings)

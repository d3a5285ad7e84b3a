"""The binary loss is scikit-learn's; missing labels are masked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import log_loss

from hmtl_jax import errors
from hmtl_jax.tasks.binary import Binary

LABELS = np.array([1, 0, 1, 0, -1], np.int32)
LOGITS = np.array([[2.0], [-1.0], [-3.0], [0.5], [4.0]], np.float32)


def losses_of(task, logits=LOGITS):
    target, mask = task.target({"fake": jnp.asarray(LABELS)})
    return np.asarray(task.loss(jnp.asarray(logits), target, mask)), np.asarray(mask)


def test_loss_is_the_log_loss_of_the_predictions():
    task = Binary("fake")
    losses, mask = losses_of(task)
    predicted = np.asarray(task.predict(jnp.asarray(LOGITS)), np.float64)
    assert predicted.shape == (5,) and mask.tolist() == [1, 1, 1, 1, 0]
    assert losses[:4].mean() == pytest.approx(log_loss(LABELS[:4], predicted[:4]), rel=1e-6)
    assert np.isfinite(losses).all() and task.labels == ("fake",)


def test_positive_weight_and_smoothing():
    plain, _ = losses_of(Binary("fake"))
    weighted, _ = losses_of(Binary("fake", positive_weight=4.0))
    np.testing.assert_allclose(weighted[:4], plain[:4] * [4, 1, 4, 1], rtol=1e-6)
    smoothed, _ = losses_of(Binary("fake", label_smoothing=0.2))
    x = LOGITS[:4, 0].astype(np.float64)
    t = np.array([0.9, 0.1, 0.9, 0.1])
    expected = t * np.log1p(np.exp(-x)) + (1 - t) * np.log1p(np.exp(x))
    np.testing.assert_allclose(smoothed[:4], expected, rtol=1e-6)


def test_huge_logits_stay_finite():
    task = Binary("fake")
    target, mask = task.target({"fake": jnp.asarray(LABELS)})
    loss, gradient = jax.value_and_grad(lambda x: jnp.sum(task.loss(x, target, mask)))(
        jnp.asarray(LOGITS) * 1e4
    )
    assert np.isfinite(loss) and np.isfinite(gradient).all()


def test_a_mirror_changes_nothing_and_metrics_leave_out_the_unlabelled():
    task = Binary("fake")
    target, _ = task.target({"fake": jnp.asarray(LABELS)})
    np.testing.assert_array_equal(task.flip(target, jnp.ones(5, bool)), target)
    found = task.metrics(np.asarray(task.predict(jnp.asarray(LOGITS))), {"fake": LABELS})
    assert found["n"] == 4 and found["accuracy"] == 0.5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"positive_weight": 0.0}, r"positive_weight is 0.0; give a weight above 0"),
        ({"label_smoothing": -1.0}, r"label_smoothing is -1.0; give a share in \[0, 1\)"),
    ],
)
def test_unusable_settings_are_named(settings, words):
    with pytest.raises(errors.UserError, match=words):
        Binary("fake", **settings)

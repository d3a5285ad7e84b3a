"""The multi-label loss is scikit-learn's, entry by entry; missing entries and mirrors are right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import log_loss

from hmtl_jax import errors
from hmtl_jax.tasks.multilabel import Multilabel, balanced_positive_weights

NAMES = ("smiling", "left_earring", "right_earring", "young")
LABELS = np.array([[1, 0, 1, 0], [0, 1, 0, -1], [-1, -1, -1, -1], [1, 1, -1, 0]], np.int32)


def task(**settings):
    return Multilabel(("attributes",), NAMES, **settings)


def logits_bk(seed=0):
    return np.random.default_rng(seed).normal(scale=3, size=(4, 4)).astype(np.float32)


def target_of(made, labels=LABELS):
    return made.target({"attributes": jnp.asarray(labels)})


def test_loss_is_the_mean_log_loss_of_the_known_entries():
    made = task()
    target, mask = target_of(made)
    losses = np.asarray(made.loss(jnp.asarray(logits_bk()), target, mask))
    probability = np.asarray(made.predict(jnp.asarray(logits_bk())), np.float64)
    for row in (0, 1, 3):
        known = LABELS[row] >= 0
        theirs = log_loss(LABELS[row][known], probability[row][known], labels=[0, 1])
        assert losses[row] == pytest.approx(theirs, rel=1e-5)
    assert mask.tolist() == [1, 1, 0, 1] and losses[2] == 0


def test_positive_weights_multiply_positives_alone():
    weights = (3.0, 1.0, 0.5, 2.0)
    made = task(positive_weights=weights)
    labels = np.array([[1, 1, 1, 1], [0, 0, 0, 0]], np.int32)
    target, mask = target_of(made, labels)
    x = logits_bk()[:2].astype(np.float64)
    expected = [np.mean(weights * np.log1p(np.exp(-x[0]))), np.mean(np.log1p(np.exp(x[1])))]
    np.testing.assert_allclose(made.loss(jnp.asarray(x, jnp.float32), target, mask), expected, 1e-5)


def test_scalar_labels_stand_side_by_side_with_vectors():
    made = Multilabel(("fake", "attributes"), ("fake", *NAMES))
    batch = {"fake": jnp.array([1, 0, -1, 1], jnp.int32), "attributes": jnp.asarray(LABELS)}
    target, mask = made.target(batch)
    assert target.shape == (4, 5, 2) and made.num_outputs == 5
    np.testing.assert_array_equal(target[:, 0, 0], [1, 0, 0, 1])
    np.testing.assert_array_equal(target[:, 1:], target_of(task())[0])
    assert mask.tolist() == [1, 1, 0, 1]
    assert Multilabel(("fake", "young")).columns == ("fake", "young")


def test_loss_of_mixed_targets_is_the_mix_of_their_losses():
    """Also where one of both lacks an entry, up to the divisor: entries weigh by what is known."""
    made = task(positive_weights=(2.0, 1.0, 1.0, 1.0))
    whole = np.array([[1, 0, 1, 0], [0, 1, 1, 1]], np.int32)
    target, mask = target_of(made, whole)
    mixed = 0.3 * target[:1] + 0.7 * target[1:]
    logits = jnp.asarray(logits_bk()[:1])
    one, two = (made.loss(logits, target[i : i + 1], mask[:1]) for i in (0, 1))
    np.testing.assert_allclose(made.loss(logits, mixed, mask[:1]), 0.3 * one + 0.7 * two, rtol=1e-5)


def test_a_mirror_swaps_the_pairs_and_nothing_else():
    made = task(swaps=(("left_earring", "right_earring"),))
    target, _ = target_of(made)
    flipped = np.asarray(made.flip(target, jnp.array([True, False, True, True])))
    np.testing.assert_array_equal(
        flipped[[0, 2, 3]], np.asarray(target)[[0, 2, 3]][:, [0, 2, 1, 3]]
    )
    np.testing.assert_array_equal(flipped[1], target[1])
    again = made.flip(jnp.asarray(flipped), jnp.array([True, False, True, True]))
    np.testing.assert_array_equal(again, target)
    np.testing.assert_array_equal(task().flip(target, jnp.ones(4, bool)), target)


def test_huge_logits_have_finite_losses_and_gradients():
    made = task()
    target, mask = target_of(made)
    gradient = jax.grad(lambda x: jnp.sum(made.loss(x, target, mask)))(
        jnp.full((4, 4), -1e4, jnp.bfloat16)
    )
    assert np.isfinite(np.asarray(gradient, np.float32)).all()


def test_balanced_weights_are_negatives_over_positives():
    assert balanced_positive_weights(LABELS) == (0.5, 0.5, 1.0, 1.0)


def test_metrics_leave_out_missing_entries():
    found = task().metrics(np.where(LABELS == 1, 0.9, 0.1), {"attributes": LABELS})
    assert found["n"] == 3 and found["accuracy"] == 1
    assert found["per_attribute"]["young"]["n"] == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"positive_weights": (1.0,)}, "positive_weights has 1 numbers for 4 attributes"),
        (
            {"positive_weights": (0.0,) * 4},
            r"positive_weights is .* give numbers of 0 or more, not all 0",
        ),
        ({"swaps": (("left_earring", "young"), ("young", "right_earring"))}, "each name once"),
        ({"swaps": (("young",),)}, "must be pairs of names"),
        ({"swaps": (("left_earing", "right_earring"),)}, "Did you mean 'left_earring'"),
    ],
)
def test_unusable_settings_are_named(settings, words):
    with pytest.raises(errors.UserError, match=words):
        task(**settings)


def test_a_bare_string_is_no_tuple_of_labels():
    with pytest.raises(errors.UserError, match="give a tuple of names"):
        Multilabel("attributes")  # pyright: ignore[reportArgumentType]

"""Binary metrics equal scikit-learn's; the equal error rate is where both error rates meet."""

import json
import math

import numpy as np
import pytest
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn import metrics

from hmtl_jax import errors
from hmtl_jax.metrics.ranking import binary_metrics


def predictions(n=400, seed=0, share=0.3):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < share).astype(np.int32)
    logits = rng.normal(size=n) + 1.5 * labels - 0.5
    return (1 / (1 + np.exp(-logits))).astype(np.float32), labels


def test_equals_scikit_learn():
    probabilities, labels = predictions()
    ours = binary_metrics(probabilities, labels)
    decided = probabilities >= 0.5
    exact = probabilities.astype(np.float64)
    assert (ours["n"], ours["positives"]) == (400, int(labels.sum()))
    expected = {
        "accuracy": metrics.accuracy_score(labels, decided),
        "balanced_accuracy": metrics.balanced_accuracy_score(labels, decided),
        "auc": metrics.roc_auc_score(labels, probabilities),
        "average_precision": metrics.average_precision_score(labels, probabilities),
        "nll": metrics.log_loss(labels, exact),
    }
    assert {name: ours[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("levels", [None, 7])  # with seven different scores there are many ties
def test_eer_is_where_the_interpolated_error_rates_meet(levels):
    probabilities, labels = predictions(seed=1)
    if levels:
        probabilities = np.round(probabilities * levels) / levels
    fpr, tpr, _ = metrics.roc_curve(labels, probabilities, drop_intermediate=False)
    expected = brentq(lambda x: 1 - x - interp1d(fpr, tpr)(x), 0, 1)
    assert binary_metrics(probabilities, labels)["eer"] == pytest.approx(expected)
    assert 0.1 < expected < 0.4


def test_eer_by_hand():
    # One of four negatives above one of four positives: each threshold between errs on both.
    found = binary_metrics(np.array([0.1, 0.2, 0.3, 0.6, 0.4, 0.7, 0.8, 0.9]), np.repeat([0, 1], 4))
    assert found["eer"] == pytest.approx(0.25)
    perfect = binary_metrics(np.array([0.1, 0.9]), np.array([0, 1]))
    assert perfect["eer"] == 0 and perfect["auc"] == 1
    wrong = binary_metrics(np.array([0.9, 0.1]), np.array([0, 1]))
    assert wrong["eer"] == 1 and wrong["auc"] == 0


@pytest.mark.parametrize("only", [0, 1])
def test_a_split_of_one_class_has_what_is_defined(only):
    ours = binary_metrics(np.array([0.2, 0.7, 0.9]), np.full(3, only))
    assert ours["accuracy"] == pytest.approx(2 / 3 if only else 1 / 3)
    assert ours["auc"] is ours["eer"] is ours["average_precision"] is None
    assert ours["balanced_accuracy"] is None
    json.dumps(ours, allow_nan=False)


def test_missing_labels_are_left_out_and_certain_errors_are_finite():
    probabilities, labels = predictions()
    some = np.where(np.arange(400) % 3 == 0, -1, labels)
    kept = some >= 0
    assert binary_metrics(probabilities, some) == binary_metrics(probabilities[kept], labels[kept])
    certain = binary_metrics(np.array([0.0, 1.0]), np.array([1, 0]))
    assert certain["nll"] == pytest.approx(-math.log(np.finfo(np.float64).eps))


@pytest.mark.parametrize(
    ("probabilities", "labels", "words"),
    [
        ([0.5, 0.5], [0, 2], "Label 2 of example 1"),
        ([0.5], [0, 1], r"must be \[2\]"),
        ([0.5, np.nan], [0, 1], "not finite"),
        ([0.5, 1.5], [0, 1], "from 0 to 1"),
        ([0.5, 0.5], [-1, -1], "No example"),
    ],
)
def test_bad_input_is_named(probabilities, labels, words):
    with pytest.raises(errors.UserError, match=words):
        binary_metrics(np.array(probabilities), np.array(labels))

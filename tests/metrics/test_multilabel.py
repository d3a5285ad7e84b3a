"""Multi-label metrics are means over attributes of scikit-learn's."""

import json

import numpy as np
import pytest
from sklearn import metrics

from hmtl_jax import errors
from hmtl_jax.metrics.multilabel import multilabel_metrics

NAMES = ("smiling", "young", "hat")


def predictions(n=200, seed=0):
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, 3)) < [0.5, 0.2, 0.8]).astype(np.int32)
    return np.clip(0.5 * labels + 0.6 * rng.random((n, 3)) - 0.05, 0, 1), labels


def test_means_over_attributes_of_scikit_learn():
    probabilities, labels = predictions()
    ours = multilabel_metrics(probabilities, labels, NAMES)
    decided = probabilities >= 0.5
    assert ours["accuracy"] == pytest.approx((decided == labels).mean())
    assert ours["average_precision"] == pytest.approx(
        metrics.average_precision_score(labels, probabilities, average="macro")
    )
    assert ours["auc"] == pytest.approx(metrics.roc_auc_score(labels, probabilities))
    balanced = [metrics.balanced_accuracy_score(labels[:, k], decided[:, k]) for k in range(3)]
    assert ours["balanced_accuracy"] == pytest.approx(np.mean(balanced))
    assert [ours["per_attribute"][name]["balanced_accuracy"] for name in NAMES] == balanced
    assert ours["n"] == 200


def test_missing_entries_and_attributes_of_one_class_are_left_out():
    probabilities, labels = predictions()
    labels[:150, 0], labels[:, 1], labels[:, 2] = -1, -1, 1
    ours = multilabel_metrics(probabilities, labels, NAMES)
    assert set(ours["per_attribute"]) == {"smiling", "hat"}
    assert ours["per_attribute"]["smiling"]["n"] == 50 and ours["n"] == 200
    assert ours["auc"] == pytest.approx(
        metrics.roc_auc_score(labels[150:, 0], probabilities[150:, 0])
    )
    assert ours["accuracy"] == pytest.approx(
        np.mean([ours["per_attribute"][name]["accuracy"] for name in ("smiling", "hat")])
    )
    json.dumps(ours, allow_nan=False)


def test_nothing_defined_is_none():
    ours = multilabel_metrics(np.full((4, 3), 0.7), np.ones((4, 3), int), NAMES)
    assert ours["auc"] is None and ours["accuracy"] == 1


def test_bad_input_is_named():
    probabilities, labels = predictions()
    with pytest.raises(errors.UserError, match=r"must be \[N, 2\]"):
        multilabel_metrics(probabilities, labels, NAMES[:2])
    with pytest.raises(errors.UserError, match="No example"):
        multilabel_metrics(probabilities, np.full_like(labels, -1), NAMES)

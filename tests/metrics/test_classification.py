"""Classification metrics equal scikit-learn's, and those it has not equal their definitions."""

import json
import math

import numpy as np
import pytest
from sklearn import metrics

from hmtl_jax import errors
from hmtl_jax.metrics.classification import classification_metrics

NAMES = ["neutral", "happiness", "surprise", "sadness"]


def predictions(n=500, num_classes=4, seed=0):
    """Probabilities that know something of the labels, and the labels, unevenly distributed."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(num_classes, n, p=np.arange(1, num_classes + 1) / 10)
    logits = rng.normal(size=(n, num_classes)) + 1.5 * np.eye(num_classes)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities.astype(np.float32), labels


def slow_ece(probabilities, labels, bins=15):
    """Guo et al. 2017, equation 3, one bin after the other."""
    confidence, predicted = probabilities.max(axis=1), probabilities.argmax(axis=1)
    total = 0.0
    for index in range(bins):
        inside = (confidence > index / bins) & (confidence <= (index + 1) / bins)
        if inside.any():
            accuracy = (predicted == labels)[inside].mean()
            total += inside.mean() * abs(accuracy - confidence[inside].mean())
    return total


def test_equals_scikit_learn():
    probabilities, labels = predictions()
    ours = classification_metrics(probabilities, labels, NAMES)
    predicted = probabilities.argmax(axis=1)
    assert ours["n"] == 500
    assert ours["accuracy"] == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert ours["balanced_accuracy"] == pytest.approx(
        metrics.balanced_accuracy_score(labels, predicted)
    )
    assert ours["macro_f1"] == pytest.approx(metrics.f1_score(labels, predicted, average="macro"))
    exact = probabilities.astype(np.float64)
    exact /= exact.sum(axis=1, keepdims=True)
    assert ours["nll"] == pytest.approx(metrics.log_loss(labels, exact), rel=1e-6)
    assert ours["confusion"] == metrics.confusion_matrix(labels, predicted).tolist()


def test_confusion_has_truth_in_rows():
    probabilities = np.eye(4)[[1, 1, 1]]
    ours = classification_metrics(probabilities, np.array([0, 0, 1]), NAMES)
    assert ours["confusion"] == [[0, 2, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_ece_equals_its_definition():
    probabilities, labels = predictions(seed=3)
    ours = classification_metrics(probabilities, labels, NAMES)["ece"]
    assert ours == pytest.approx(slow_ece(probabilities.astype(np.float64), labels))
    assert 0.01 < ours < 0.5


def test_ece_of_the_perfect_and_of_the_surely_wrong():
    truth = np.array([0, 1, 2, 3])
    assert classification_metrics(np.eye(4)[truth], truth, NAMES)["ece"] == 0
    assert classification_metrics(np.eye(4)[(truth + 1) % 4], truth, NAMES)["ece"] == 1


def test_absent_classes_are_null_and_left_out_of_the_means():
    # surprise: predicted once, never true. sadness: neither.
    predicted, labels = np.array([0, 1, 2, 1]), np.array([0, 1, 1, 0])
    ours = classification_metrics(np.eye(4)[predicted], labels, NAMES)
    assert ours["per_class"]["surprise"] == {"precision": 0, "recall": None, "f1": 0, "n": 0}
    assert ours["per_class"]["sadness"] == {"precision": None, "recall": None, "f1": None, "n": 0}
    assert ours["balanced_accuracy"] == 0.5
    assert ours["macro_f1"] == pytest.approx(metrics.f1_score(labels, predicted, average="macro"))


def test_class_that_is_never_predicted_has_no_precision():
    ours = classification_metrics(np.eye(4)[[0, 0]], np.array([0, 3]), NAMES)
    assert ours["per_class"]["sadness"] == {"precision": None, "recall": 0, "f1": 0, "n": 1}


def test_result_is_strict_json_and_equal_each_time():
    probabilities, labels = predictions(n=20)
    first = json.dumps(classification_metrics(probabilities, labels, NAMES), allow_nan=False)
    assert first == json.dumps(classification_metrics(probabilities, labels, NAMES))


def test_bootstrap_interval_is_the_one_that_resampling_indices_gives():
    probabilities, labels = predictions(n=400)
    ours = classification_metrics(probabilities, labels, NAMES)
    correct = probabilities.argmax(axis=1) == labels
    draws = np.random.default_rng(1).integers(0, 400, (4000, 400))
    theirs = np.percentile(correct[draws].mean(axis=1), [2.5, 97.5])
    np.testing.assert_allclose(ours["accuracy_interval"], theirs, atol=0.01)
    low, high = ours["accuracy_interval"]
    normal = 2 * 1.96 * math.sqrt(ours["accuracy"] * (1 - ours["accuracy"]) / 400)
    assert low < ours["accuracy"] < high and high - low == pytest.approx(normal, rel=0.1)


def test_missing_labels_are_left_out():
    probabilities, labels = predictions()
    some = np.where(np.arange(500) % 5 == 0, -1, labels)
    kept = some >= 0
    assert classification_metrics(probabilities, some, NAMES) == classification_metrics(
        probabilities[kept], labels[kept], NAMES
    )


def test_zero_probability_of_the_truth_stays_finite():
    nll = classification_metrics(np.eye(4)[[0]], np.array([1]), NAMES)["nll"]
    assert nll == pytest.approx(-math.log(np.finfo(np.float64).eps))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p, y: (p, np.where(y == 0, 4, y), NAMES), "Label 4 .*out of range"),
        (lambda p, y: (p, np.where(y == 0, -2, y), NAMES), "Label -2 .*out of range"),
        (lambda p, y: (p, y.astype(float), NAMES), "integers, not float64"),
        (lambda p, y: (p[:, :3], y, NAMES), r"must be \[500, 4\]"),
        (lambda p, y: (p[1:], y, NAMES), r"not \[499, 4\]"),
        (lambda p, y: (np.log(p), y, NAMES), "softmax"),
        (lambda p, y: (p * np.nan, y, NAMES), "not finite"),
        (lambda p, y: (p, np.full_like(y, -1), NAMES), "No example"),
        (lambda p, y: (p, y, ["a", "a", "b", "c"]), "must differ"),
    ],
)
def test_bad_input_is_named(change, words):
    with pytest.raises(errors.UserError, match=words):
        classification_metrics(*change(*predictions()))

"""Metrics of a softmax classifier, computed on the host from all predictions of a split."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hmtl_jax import errors

# The measures; what else is returned are counts and tables.
NAMES = ("accuracy", "balanced_accuracy", "macro_f1", "nll", "ece")
_ECE_BINS = 15
_BOOTSTRAP_RESAMPLES = 1000


def classification_metrics(
    probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """Metrics of predictions against labels, as plain JSON values.

    Args:
      probabilities: [N, C], rows sum to 1.
      labels: int [N] in 0..C-1; examples with -1 (missing) are left out.
      class_names: C different names.
      seed: of the bootstrap.

    Returns:
      n: examples counted.
      accuracy, accuracy_interval: the latter [low, high], the 95 % percentile interval of 1000
        bootstrap resamples.
      balanced_accuracy: mean recall over the classes that occur in the labels.
      macro_f1: mean F1 over the classes that occur in the labels or in the predictions.
      nll: mean negative log likelihood in nats; a probability of 0 counts as float64's epsilon.
      ece: expected calibration error, 15 bins of equal width (Guo et al. 2017), in [0, 1].
      per_class: name -> {precision, recall, f1, n}; null where nothing defines the number:
        precision of a class that is never predicted, recall of one that does not occur, F1 of one
        that does neither.
      confusion: C lists of C counts, rows = truth, columns = prediction.

    Wrong shapes, labels out of range, rows that are no distributions, and no labelled example at
    all raise UserError.
    """
    probabilities, labels = _checked(probabilities, labels, class_names)
    predicted = probabilities.argmax(axis=1)
    n = len(labels)
    correct = int((predicted == labels).sum())
    confusion = _confusion(labels, predicted, len(class_names))
    per_class = _per_class(confusion)
    return {
        "n": n,
        "accuracy": correct / n,
        "accuracy_interval": _accuracy_interval(correct, n, seed),
        "balanced_accuracy": float(np.nanmean(per_class["recall"])),
        "macro_f1": float(np.nanmean(per_class["f1"])),
        "nll": _nll(probabilities, labels),
        "ece": _ece(probabilities.max(axis=1), predicted == labels),
        "per_class": {
            name: {score: _json(values[index]) for score, values in per_class.items()}
            for index, name in enumerate(class_names)
        },
        "confusion": confusion.tolist(),
    }


def _confusion(labels, predicted, num_classes) -> np.ndarray:
    """int [C, C]: rows are the truth, columns what was predicted."""
    pairs = labels * num_classes + predicted
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def _per_class(confusion_cc) -> dict[str, np.ndarray]:
    """Each score of each class, NaN where nothing defines it."""
    hits, n, named = np.diag(confusion_cc), confusion_cc.sum(axis=1), confusion_cc.sum(axis=0)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN that is wanted
        return {
            "precision": hits / named,
            "recall": hits / n,
            "f1": 2 * hits / (n + named),
            "n": n,
        }


def _accuracy_interval(correct, n, seed):
    # A resample of n zeros and ones, drawn with replacement, has a binomial sum: drawing that is
    # the bootstrap itself, without the [1000, n] indices.
    sums = np.random.default_rng(seed).binomial(n, correct / n, _BOOTSTRAP_RESAMPLES)
    return [float(bound) for bound in np.percentile(sums / n, [2.5, 97.5])]


def _nll(probabilities, labels):
    of_truth = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(of_truth, np.finfo(np.float64).eps)).mean())


def _ece(confidence, correct):
    """Sum over bins ((m-1)/15, m/15] of |correct - confidence|, each summed over its examples."""
    bins = np.clip(np.ceil(confidence * _ECE_BINS).astype(int) - 1, 0, _ECE_BINS - 1)
    gaps = np.bincount(bins, weights=correct - confidence, minlength=_ECE_BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def _json(number):
    return None if np.isnan(number) else number.item()


def _checked(probabilities, labels, class_names):
    """The labelled examples as float64 [N, C] and int [N]; raises UserError on anything else."""
    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    if len(set(class_names)) != len(class_names):
        raise errors.UserError(f"Class names must differ, not {list(class_names)}.")
    if labels.ndim != 1 or probabilities.shape != (len(labels), len(class_names)):
        raise errors.UserError(
            f"Probabilities must be [{len(labels)}, {len(class_names)}] for {len(labels)} labels"
            f" and {len(class_names)} class names, not {list(probabilities.shape)}."
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise errors.UserError(f"Labels must be integers, not {labels.dtype}.")
    wrong = np.flatnonzero((labels < -1) | (labels >= len(class_names)))
    if wrong.size:
        raise errors.UserError(
            f"Label {labels[wrong[0]]} of example {wrong[0]} is out of range: it must be 0 to"
            f" {len(class_names) - 1}, or -1 where missing."
        )
    probabilities, labels = probabilities[labels >= 0], labels[labels >= 0]
    if not len(labels):
        raise errors.Unlabelled("No example has a label, so there is nothing to measure.")
    # A negated comparison, so that NaN is refused as well.
    if not np.all(np.abs(probabilities.sum(axis=1) - 1) < 1e-2) or probabilities.min() < 0:
        raise errors.UserError(
            "Probabilities must be non-negative rows that sum to 1; pass softmax of the logits"
            " (NaN here means that the model's output is not finite)."
        )
    return probabilities, labels

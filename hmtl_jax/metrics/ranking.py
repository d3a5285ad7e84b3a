"""Metrics of a yes-or-no classifier, computed on the host from all predictions of a split."""

from typing import Any

import numpy as np

from hmtl_jax import errors

# The measures; what else is returned are counts.
NAMES = ("accuracy", "balanced_accuracy", "auc", "average_precision", "eer", "nll")


def binary_metrics(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Metrics of probabilities of 1 against labels, as plain JSON values.

    Args:
      probabilities: [N] in [0, 1].
      labels: int [N] of 0 and 1; examples with -1 (missing) are left out.

    Returns:
      n, positives: examples counted, and those of them with label 1.
      accuracy, balanced_accuracy: of the decision "1 from probability 0.5 on"; the latter is the
        mean of both classes' recall.
      auc: area under the ROC curve. average_precision: as scikit-learn sums it.
      eer: equal error rate, where the false positive rate is the false negative rate, linear
        between the points of the ROC curve.
      nll: mean negative log likelihood in nats; a probability of 0 counts as float64's epsilon.
      Where the labels hold only one class, balanced_accuracy, auc, average_precision and eer are
      None.

    Wrong shapes, labels or probabilities out of range, and no labelled example raise UserError.
    """
    probabilities, labels = _checked(probabilities, labels)
    decided = probabilities >= 0.5
    of_truth = np.where(labels == 1, probabilities, 1 - probabilities)
    return {
        "n": len(labels),
        "positives": int(labels.sum()),
        "accuracy": float(np.mean(decided == labels)),
        **_of_two_classes(probabilities, decided, labels),
        "nll": float(-np.log(np.maximum(of_truth, np.finfo(np.float64).eps)).mean()),
    }


def _of_two_classes(probabilities, decided, labels) -> dict[str, float | None]:
    if len(np.unique(labels)) < 2:
        return dict.fromkeys(("balanced_accuracy", "auc", "average_precision", "eer"))
    from sklearn import metrics  # here, because it takes a second to import

    return {
        "balanced_accuracy": float(metrics.balanced_accuracy_score(labels, decided)),
        "auc": float(metrics.roc_auc_score(labels, probabilities)),
        "average_precision": float(metrics.average_precision_score(labels, probabilities)),
        "eer": _eer(*metrics.roc_curve(labels, probabilities)[:2]),
    }


def _eer(false_positive, true_positive) -> float:
    # Their sum grows from 0 to 2 along the curve, and is 1 where both errors are equal.
    return float(np.interp(1.0, false_positive + true_positive, false_positive))


def _checked(probabilities, labels):
    """The labelled examples as float64 [N] and int [N]; raises UserError on anything else."""
    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    if labels.ndim != 1 or probabilities.shape != labels.shape:
        raise errors.UserError(
            f"Probabilities must be [{len(labels)}] for {len(labels)} labels, not "
            f"{list(probabilities.shape)}."
        )
    wrong = np.flatnonzero(~np.isin(labels, (-1, 0, 1)))
    if wrong.size:
        raise errors.UserError(
            f"Label {labels[wrong[0]]} of example {wrong[0]} is out of range: it must be 0 or 1, "
            "or -1 where missing."
        )
    probabilities, labels = probabilities[labels >= 0], labels[labels >= 0].astype(int)
    if not len(labels):
        raise errors.Unlabelled("No example has a label, so there is nothing to measure.")
    if not np.all((probabilities >= 0) & (probabilities <= 1)):  # NaN is refused as well
        raise errors.UserError(
            "Probabilities must be from 0 to 1; pass sigmoid of the logits (NaN here means that "
            "the model's output is not finite)."
        )
    return probabilities, labels

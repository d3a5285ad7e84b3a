"""Metrics of regression, computed on the host from all predictions of a split."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hmtl_jax import errors

# The measures; what else is returned are counts and tables.
NAMES = ("rmse", "mae", "pearson", "ccc", "sagr", "within")


def regression_metrics(
    predictions: np.ndarray, labels: np.ndarray, names: Sequence[str], tolerance: float = 0.0
) -> dict[str, Any]:
    """Metrics of K numbers, as plain JSON values.

    Args:
      predictions: [N, K].
      labels: [N, K], NaN where missing.
      names: of the K numbers.
      tolerance: where above 0, `within` is measured.

    Returns:
      n: examples with any label.
      rmse, mae: root mean squared and mean absolute error. pearson: correlation. ccc: concordance
        correlation (Lin 1989), by population variances. sagr: share of predictions with the label's
        sign (AffectNet's measure), where all labels are in [-1, 1]. within: share of errors up to
        `tolerance` (the cumulative score of age estimation). Each is the mean over the numbers
        that have it, None where none has.
      per_label: name -> the same of one number, with its own n; a correlation with a constant is
        None, and so is all of a number without labels.

    Wrong shapes, predictions that are not finite, and no label at all raise UserError.
    """
    predictions, labels = np.asarray(predictions, np.float64), np.asarray(labels, np.float64)
    if labels.ndim != 2 or not predictions.shape == labels.shape == (len(labels), len(names)):
        raise errors.UserError(
            f"Predictions and labels must be [N, {len(names)}] for {len(names)} numbers, not "
            f"{list(predictions.shape)} and {list(labels.shape)}."
        )
    known = np.isfinite(labels)
    if not known.any():
        raise errors.Unlabelled("No example has a label, so there is nothing to measure.")
    if not np.isfinite(predictions[known]).all():
        raise errors.UserError("Some predictions are not finite, so there is nothing to measure.")
    each = {
        name: _of_one(predictions[rows, column], labels[rows, column], tolerance)
        for column, (name, rows) in enumerate(zip(names, known.T, strict=True))
    }
    scores = [score for score in next(iter(each.values())) if score != "n"]
    means = {score: _mean([found[score] for found in each.values()]) for score in scores}
    return {"n": int(known.any(axis=1).sum()), **means, "per_label": each}


def _of_one(predicted, label, tolerance) -> dict[str, Any]:
    error, scores = predicted - label, {}
    if len(label):
        scores = {
            "rmse": float(np.sqrt(np.mean(error**2))),
            "mae": float(np.mean(np.abs(error))),
            **_correlations(predicted, label),
        }
        if np.abs(label).max() <= 1:
            scores["sagr"] = float(np.mean(np.sign(predicted) == np.sign(label)))
        scores["within"] = float(np.mean(np.abs(error) <= tolerance))
    wanted = ["rmse", "mae", "pearson", "ccc", "sagr"] + ["within"] * (tolerance > 0)
    return {"n": len(label)} | {score: scores.get(score) for score in wanted}


def _correlations(predicted, label) -> dict[str, float]:
    """Pearson's and Lin's, where they are defined."""
    covariance = np.mean((predicted - predicted.mean()) * (label - label.mean()))
    spread, found = predicted.std() * label.std(), {}
    if spread > 0:
        found["pearson"] = float(covariance / spread)
    whole = predicted.var() + label.var() + (predicted.mean() - label.mean()) ** 2
    if whole > 0:
        found["ccc"] = float(2 * covariance / whole)
    return found


def _mean(values):
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None

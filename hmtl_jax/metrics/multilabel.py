"""Metrics of several yes-or-no attributes, computed on the host from all predictions of a split."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hmtl_jax import errors
from hmtl_jax.metrics.ranking import binary_metrics

MEANS = ("accuracy", "balanced_accuracy", "average_precision", "auc", "nll")


def multilabel_metrics(
    probabilities: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> dict[str, Any]:
    """Metrics of K attributes, as plain JSON values.

    Args:
      probabilities: [N, K] in [0, 1].
      labels: int [N, K] of 0 and 1, -1 where missing.
      names: of the K attributes.

    Returns:
      n: examples with any label.
      accuracy (CelebA's mean accuracy), balanced_accuracy, average_precision, auc, nll: means over
        the attributes that have them; None where no attribute has.
      per_attribute: name -> what `binary_metrics` says of it; attributes without any label are
        left out.

    Wrong shapes or values, and no label at all, raise UserError.
    """
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    if labels.ndim != 2 or not probabilities.shape == labels.shape == (len(labels), len(names)):
        raise errors.UserError(
            f"Probabilities and labels must be [N, {len(names)}] for {len(names)} attributes, not "
            f"{list(probabilities.shape)} and {list(labels.shape)}."
        )
    if not np.any(labels >= 0):
        raise errors.Unlabelled("No example has a label, so there is nothing to measure.")
    each = {
        name: binary_metrics(probabilities[:, column], labels[:, column])
        for column, name in enumerate(names)
        if np.any(labels[:, column] >= 0)
    }
    means = {score: _mean([found[score] for found in each.values()]) for score in MEANS}
    return {"n": int(np.any(labels >= 0, axis=1).sum()), **means, "per_attribute": each}


def _mean(values):
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None

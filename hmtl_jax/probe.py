"""What a frozen encoder's features hold: linear, nearest-neighbour and ridge probes on the host.

A split is a pair (features float [N, D], labels). All probes are deterministic: the same arrays
give the same metrics.
"""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hmtl_jax import errors, evaluate
from hmtl_jax.metrics.classification import classification_metrics
from hmtl_jax.metrics.regression import regression_metrics

Split = tuple[np.ndarray, np.ndarray]

# Inverse strength of the classifier's L2 penalty, and strength of ridge's; ours.
CS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
ALPHAS = (1e-1, 1.0, 1e1, 1e2, 1e3, 1e4)
# Of the votes of near neighbours, as in Wu 2018 (arXiv 1805.01978).
TEMPERATURE = 0.07


def features(
    encode_step: Any, state: Any, batches: Iterable, mesh: Any
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Pooled features float32 [N, D] of a split, in its order, and its labels by name.

    encode_step: (state, batch) -> {"predictions": {"pooled": [B, D]}, "labels": …}, as
    step.encode_step jitted with replicated outputs.
    """
    found = evaluate.predictions(encode_step, state, batches, mesh)
    return np.asarray(found["predictions"]["pooled"], np.float32), dict(found["labels"])


def linear_probe(
    train: Split, validation: Split, test: Split, class_names: Sequence[str]
) -> dict[str, Any]:
    """Metrics on test of a logistic regression on standardised features.

    Its C is the one of CS that is most accurate on validation, the smallest of equals. With it the
    regression is fitted again, on train and validation together.

    Args:
      train, validation, test: labels int [N], -1 where missing: those rows are left out.
      class_names: of the C classes.

    Returns:
      what `classification_metrics` says, and `setting`: {"C": …, "validation_accuracy": …}.

    Features that are not finite, a split without labels, and training labels of fewer than two
    classes raise UserError.
    """
    fitted, held_out, tested = (_labelled(*split) for split in (train, validation, test))
    if len(np.unique(fitted[1])) < 2:
        raise errors.UserError("A linear probe needs training labels of at least two classes.")
    scores = {
        c: float(np.mean(_logistic(fitted, c).predict(held_out[0]) == held_out[1])) for c in CS
    }
    best = max(CS, key=lambda c: (scores[c], -c))
    model = _logistic(_joined(fitted, held_out), best)
    probabilities = np.zeros((len(tested[1]), len(class_names)))
    probabilities[:, model.classes_] = model.predict_proba(tested[0])
    found = classification_metrics(probabilities, tested[1], class_names)
    return found | {"setting": {"C": best, "validation_accuracy": scores[best]}}


def knn(train: Split, test: Split, class_names: Sequence[str], k: int = 20) -> dict[str, Any]:
    """Metrics on test of the k nearest training examples by the cosine of their features.

    Each neighbour votes for its class with weight exp(cosine / 0.07) (Wu 2018); where train has
    fewer than k labelled examples, all vote. Arguments, returns and errors as in `linear_probe`,
    without `setting`.
    """
    if k < 1:
        raise errors.UserError(f"knn needs at least one neighbour, not {k}.")
    (known, labels), (asked, truth) = (_labelled(*split) for split in (train, test))
    known, asked, k = _unit(known), _unit(asked), min(k, len(labels))
    votes = np.zeros((len(asked), len(class_names)))
    for start in range(0, len(asked), 1024):  # all at once would need [N, M] numbers
        rows = slice(start, start + 1024)
        cosine = asked[rows] @ known.T
        nearest = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        weight = np.exp((np.take_along_axis(cosine, nearest, axis=1) - 1) / TEMPERATURE)
        for column in range(k):
            places = (np.arange(start, start + len(weight)), labels[nearest[:, column]])
            np.add.at(votes, places, weight[:, column])
    return classification_metrics(votes / votes.sum(axis=1, keepdims=True), truth, class_names)


def ridge(
    train: Split, validation: Split, test: Split, names: Sequence[str], tolerance: float = 0.0
) -> dict[str, Any]:
    """Metrics on test of a ridge regression of each number on standardised features.

    The strength is the one of ALPHAS with the least squared error on validation, for each number by
    itself; with it the regression is fitted again, on train and validation together.

    Args:
      train, validation, test: labels float [N, K], NaN where missing.
      names: of the K numbers.
      tolerance: as in `regression_metrics`.

    Returns:
      what `regression_metrics` says, and `setting`: name -> alpha.

    Features that are not finite, and a number that a split has no label of, raise UserError.
    """
    predicted, setting = np.zeros(test[1].shape), {}
    for column, name in enumerate(names):
        fitted, held_out = (_labelled(x, labels[:, column]) for x, labels in (train, validation))
        errors_of = {
            alpha: np.mean((_ridge(fitted, alpha).predict(held_out[0]) - held_out[1]) ** 2)
            for alpha in ALPHAS
        }
        setting[name] = min(ALPHAS, key=lambda alpha, found=errors_of: found[alpha])
        model = _ridge(_joined(fitted, held_out), setting[name])
        predicted[:, column] = model.predict(_finite(test[0]))
    return regression_metrics(predicted, test[1], names, tolerance) | {"setting": setting}


def _labelled(features_nd: np.ndarray, labels_n: np.ndarray) -> Split:
    """The rows with a label, features in float64: rounding then plays no part in the fit."""
    labels_n = np.asarray(labels_n)
    known = labels_n >= 0 if labels_n.dtype.kind in "iu" else np.isfinite(labels_n)
    if not known.any():
        raise errors.UserError("A split has no example with this label, so nothing can be probed.")
    return _finite(features_nd)[known], labels_n[known]


def _finite(features_nd):
    if not np.isfinite(features_nd).all():
        raise errors.UserError("Some features are not finite; the encoder's weights are broken.")
    return np.asarray(features_nd, np.float64)


def _joined(one: Split, other: Split) -> Split:
    return np.concatenate([one[0], other[0]]), np.concatenate([one[1], other[1]])


def _unit(features_nd):
    length = np.linalg.norm(features_nd, axis=1, keepdims=True)
    return features_nd / np.maximum(length, np.finfo(np.float64).tiny)


def _logistic(split: Split, c: float) -> Any:
    from sklearn import exceptions, linear_model, pipeline, preprocessing  # a second to import

    model = linear_model.LogisticRegression(C=c, max_iter=1000)
    with warnings.catch_warnings():
        # With the weakest penalty a separable set has its optimum far out; where the iterations
        # end is as good a classifier as any.
        warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
        return pipeline.make_pipeline(preprocessing.StandardScaler(), model).fit(*split)


def _ridge(split: Split, alpha: float) -> Any:
    from sklearn import linear_model, pipeline, preprocessing

    return pipeline.make_pipeline(
        preprocessing.StandardScaler(), linear_model.Ridge(alpha=alpha)
    ).fit(*split)

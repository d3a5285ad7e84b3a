"""Regression metrics equal SciPy's and scikit-learn's, and hand-computed values."""

import json

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from hmtl_jax import errors
from hmtl_jax.metrics.regression import regression_metrics

NAMES = ("valence", "arousal")


def predictions(n=300, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.uniform(-1, 1, (n, 2))
    return (0.7 * labels + 0.3 * rng.normal(size=(n, 2)) + 0.1), labels


def test_equals_scipy_and_scikit_learn():
    predicted, labels = predictions()
    ours = regression_metrics(predicted, labels, NAMES)
    for column, name in enumerate(NAMES):
        x, y = predicted[:, column], labels[:, column]
        found = ours["per_label"][name]
        assert found["rmse"] == pytest.approx(metrics.root_mean_squared_error(y, x))
        assert found["mae"] == pytest.approx(metrics.mean_absolute_error(y, x))
        assert found["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic)
        # Lin's is Pearson's times what the differences of scale and place leave of it.
        scale = x.std() / y.std()
        place = (x.mean() - y.mean()) ** 2 / (x.std() * y.std())
        bias = 2 / (scale + 1 / scale + place)
        assert found["ccc"] == pytest.approx(stats.pearsonr(x, y).statistic * bias)
        assert found["sagr"] == pytest.approx(np.mean((x > 0) == (y > 0)))
    for score in ("rmse", "mae", "pearson", "ccc", "sagr"):
        each = [ours["per_label"][name][score] for name in NAMES]
        assert ours[score] == pytest.approx(np.mean(each))


def test_by_hand():
    ours = regression_metrics(np.array([[1.0], [2], [3]]), np.array([[2.0], [4], [6]]), ["x"])
    # Means 2 and 4, variances 2/3 and 8/3, covariance 4/3.
    assert ours["ccc"] == pytest.approx(2 * (4 / 3) / (2 / 3 + 8 / 3 + 4))
    assert ours["pearson"] == pytest.approx(1) and ours["mae"] == 2
    assert ours["rmse"] == pytest.approx(np.sqrt(14 / 3)) and ours["sagr"] is None


def test_missing_numbers_are_left_out_of_their_label_alone():
    predicted, labels = predictions()
    labels[:100, 0] = np.nan
    ours = regression_metrics(predicted, labels, NAMES)
    alone = regression_metrics(predicted[100:, :1], labels[100:, :1], NAMES[:1])
    assert ours["per_label"]["valence"] == alone["per_label"]["valence"]
    assert ours["per_label"]["valence"]["n"] == 200 and ours["n"] == 300


def test_constants_have_no_correlation_and_absent_labels_nothing():
    labels = np.stack([np.full(5, 0.5), np.full(5, np.nan)], axis=1)
    ours = regression_metrics(np.full((5, 2), 0.5), labels, NAMES)
    assert ours["pearson"] is ours["ccc"] is None and ours["rmse"] == 0
    assert ours["per_label"]["arousal"]["rmse"] is None
    json.dumps(ours, allow_nan=False)


def test_cumulative_score_of_ages():
    ages = np.array([[20.0], [30], [40], [50]])
    ours = regression_metrics(
        ages + np.array([[5.0], [-5.1], [0], [9]]), ages, ["age"], tolerance=5
    )
    assert ours["within"] == 0.5
    assert "within" not in regression_metrics(ages, ages, ["age"])


def test_bad_input_is_named():
    predicted, labels = predictions()
    with pytest.raises(errors.UserError, match=r"must be \[N, 1\]"):
        regression_metrics(predicted, labels, NAMES[:1])
    with pytest.raises(errors.UserError, match="not finite"):
        regression_metrics(predicted * np.nan, labels, NAMES)
    with pytest.raises(errors.UserError, match="No example"):
        regression_metrics(predicted, labels * np.nan, NAMES)

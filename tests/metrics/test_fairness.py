"""Metrics of groups: by hand, and as fairlearn has them."""

import numpy as np
import pandas as pd
import pytest
from fairlearn import metrics as fairlearn

from hmtl_jax.metrics import fairness

# Eight women of whom six are judged rightly, four men of whom one is.
GROUPS = pd.Series(["woman"] * 8 + ["man"] * 4, dtype=object)
RIGHT = np.array([1] * 6 + [0] * 2 + [1] + [0] * 3)


def accuracy(places):
    return float(RIGHT[places].mean())


def test_groups_have_their_figures_and_what_lies_between_them():
    found = fairness.by_group(accuracy, GROUPS, resamples=0)
    assert found["groups"]["woman"] == {
        "examples": 8, "value": 0.75, "interval": None, "small": True,
    }  # fmt: skip
    assert found["groups"]["man"]["value"] == 0.25
    assert found["overall"] == pytest.approx(7 / 12)
    assert (found["lowest"], found["highest"]) == ("man", "woman")
    assert found["gap"] == 0.5 and found["ratio"] == pytest.approx(1 / 3)
    assert found["deviation"] == pytest.approx(0.25)
    assert found["gap_interval"] is None


def test_intervals_are_those_of_a_bootstrap_within_each_group():
    """Of a share p of n its deviation is √(p (1 - p) / n); a gap's are those of both, squared."""
    rng = np.random.default_rng(0)
    groups = pd.Series(["a"] * 800 + ["b"] * 200, dtype=object)
    right = np.concatenate([rng.permutation([1] * 640 + [0] * 160), rng.permutation([1, 0] * 100)])
    found = fairness.by_group(lambda places: float(right[places].mean()), groups, 1000)
    spread_a, spread_b = np.sqrt(0.8 * 0.2 / 800), np.sqrt(0.25 / 200)
    low, high = found["groups"]["a"]["interval"]
    np.testing.assert_allclose((high - low) / 2, 1.96 * spread_a, rtol=0.1)
    low, high = found["gap_interval"]
    np.testing.assert_allclose((high - low) / 2, 1.96 * np.hypot(spread_a, spread_b), rtol=0.1)
    assert low < 0.3 < high and not found["groups"]["a"]["small"]


def test_examples_of_a_cluster_are_drawn_together():
    rng = np.random.default_rng(0)
    right = np.repeat(rng.permutation([1] * 160 + [0] * 40), 4)  # 200 videos of four equal frames
    groups, videos = pd.Series(["a"] * 800, dtype=object), np.repeat(np.arange(200), 4)
    found = fairness.by_group(lambda places: float(right[places].mean()), groups, 1000, 0, videos)
    low, high = found["groups"]["a"]["interval"]
    np.testing.assert_allclose((high - low) / 2, 1.96 * np.sqrt(0.8 * 0.2 / 200), rtol=0.1)


def test_a_metric_that_nothing_defines_in_a_group_is_none_there():
    found = fairness.by_group(lambda places: None if places.max() > 7 else 0.5, GROUPS, 5)
    assert found["groups"]["man"]["value"] is None and found["groups"]["woman"]["value"] == 0.5
    assert found["groups"]["man"]["interval"] is None


def drawn():
    rng = np.random.default_rng(1)
    truth, decided = rng.integers(0, 2, (2, 600))
    return truth, decided, pd.Series(np.array(["x", "y", "z"], object)[rng.integers(0, 3, 600)])


def rates(truth, decided, rows):
    positive, negative = truth[rows] == 1, truth[rows] == 0
    return decided[rows][positive].mean(), decided[rows][negative].mean(), decided[rows].mean()


def test_differences_of_decisions_are_those_by_hand():
    truth, decided, groups = drawn()
    of = {name: rates(truth, decided, groups == name) for name in "xyz"}
    tpr, fpr, yes = (np.ptp([one[at] for one in of.values()]) for at in range(3))
    found = fairness.parity(truth, decided, groups)
    assert found == {
        "demographic_parity_difference": pytest.approx(yes),
        "equal_opportunity_difference": pytest.approx(tpr),
        "equalized_odds_difference": pytest.approx(max(tpr, fpr)),
    }
    assert found["demographic_parity_difference"] == fairlearn.demographic_parity_difference(
        truth, decided, sensitive_features=groups
    )
    truth[groups == "x"] = 1  # no real one there: its false-positive rate is of nobody
    found = fairness.parity(truth, decided, groups)
    assert found["equalized_odds_difference"] is None
    assert found["demographic_parity_difference"] == pytest.approx(yes)


def test_the_deepfake_figures_are_those_by_hand():
    truth, decided, groups = drawn()
    tpr, fpr, _ = rates(truth, decided, np.ones(600, bool))
    of = {name: rates(truth, decided, groups == name) for name in "xyz"}
    right = [np.mean((truth == decided)[groups == name]) for name in "xyz"]
    tprs, fprs, yes = (np.array([one[at] for one in of.values()]) for at in range(3))
    assert fairness.of_deepfakes(truth, decided, groups) == {
        "F_EO": pytest.approx(np.abs(fprs - fpr).sum() + np.abs(tprs - tpr).sum()),
        "F_MEO": pytest.approx(max(np.ptp(tprs), np.ptp(fprs))),
        "F_DP": pytest.approx(np.ptp(yes)),
        "F_OAE": pytest.approx(np.ptp(right)),
    }


def test_rates_of_a_group_of_one_kind_are_none():
    truth, decided, groups = drawn()
    truth[groups == "y"] = 0
    found = fairness.of_deepfakes(truth, decided, groups)
    assert found["F_EO"] is None and found["F_MEO"] is None
    assert found["F_DP"] > 0 and found["F_OAE"] > 0
    assert fairness.parity(truth, decided, groups)["equalized_odds_difference"] is None


def test_groups_cross_by_their_names():
    crossed = fairness.crossed({"race": ["Black", "White"], "gender": ["female", "male"]})
    assert crossed.tolist() == ["Black × female", "White × male"]

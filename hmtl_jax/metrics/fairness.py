"""How a model serves groups of people: by fairlearn's MetricFrame, with bootstrap intervals.

Points are fairlearn's own; intervals (95 %, percentiles) are of a bootstrap within each group, so
that a group's size stays what it is, or where whole videos are drawn the number of its videos.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from fairlearn import metrics as fairlearn

from hmtl_jax.metrics import bootstrap

SMALL = 30  # examples below which a group's figure says little
LEVELS = (2.5, 97.5)

# An example's numbers → the metric of those examples, or None where nothing defines it.
Measure = Callable[[np.ndarray], float | None]


def by_group(
    measure: Measure,
    groups: pd.Series,
    resamples: int,
    seed: int = 0,
    clusters: np.ndarray | None = None,
    counted: Callable[[np.ndarray], int] = len,
) -> dict[str, Any]:
    """A metric over each group, and what lies between them.

    Args:
      measure: the metric of the examples with these places [m], ints below n.
      groups: the name of each example's group [n].
      resamples: of the bootstrap; 0 for no interval.
      seed: of the bootstrap.
      clusters: int [n]; examples of a cluster, such as the frames of a video, are drawn together.
      counted: the number of examples at places [m] of which the metric tells.

    Returns `groups`: NAME → {`examples`, `value`, `interval`, `small`}, and `overall`, `lowest`,
    `highest` (names), `gap` (largest less smallest) with `gap_interval`, `ratio` (smallest by
    largest), `deviation` (over groups, each once).
    """
    places = np.arange(len(groups))
    frame: Any = fairlearn.MetricFrame(
        metrics=lambda truth, predicted: _or_nan(measure(np.asarray(truth))),
        y_true=places, y_pred=places, sensitive_features=groups.rename("group"),
    )  # fmt: skip
    values = frame.by_group
    rng, members = np.random.default_rng(seed), groups.groupby(groups).indices
    together = {
        name: bootstrap.members_of(None if clusters is None else clusters[rows])
        for name, rows in members.items()
    }

    def once(name: Any) -> float:
        rows = members[name]
        return _or_nan(measure(rows[bootstrap.drawn(rng, len(rows), together[name])]))

    drawn = np.array([[once(name) for name in values.index] for _ in range(resamples)])
    drawn = drawn.reshape(resamples, len(values))
    examples = {name: counted(rows) for name, rows in members.items()}
    found = {
        str(name): {
            "examples": examples[name],
            "value": _json(value),
            "interval": _interval(drawn[:, at]),
            "small": examples[name] < SMALL,
        }
        for at, (name, value) in enumerate(values.items())
    }
    spread = drawn.max(1) - drawn.min(1) if resamples else np.empty(0)
    return {
        "groups": found,
        "overall": _json(frame.overall),
        "lowest": str(values.idxmin()) if values.notna().any() else None,
        "highest": str(values.idxmax()) if values.notna().any() else None,
        "gap": _json(frame.difference(method="between_groups")),
        "gap_interval": _interval(spread),
        "ratio": _json(frame.ratio(method="between_groups")),
        "deviation": _json(values.std(ddof=0)),
    }


def parity(truth: np.ndarray, decided: np.ndarray, groups: pd.Series) -> dict[str, float | None]:
    """Differences between groups of a yes-or-no decision (Hardt 2016, and fairlearn's names).

    truth, decided: 0 or 1 [n]. Demographic parity: of the rate of yes. Equal opportunity: of the
    true-positive rate. Equalized odds: the larger one of those of the true- and the false-positive
    rate. 0 is equal. None where a rate is of no example in some group.
    """
    known = {"y_true": truth, "y_pred": decided, "sensitive_features": groups}
    odds = (fairlearn.equal_opportunity_difference, fairlearn.equalized_odds_difference)
    opportunity, both = (_json(of(**known)) if _has_both(truth, groups) else None for of in odds)
    return {
        "demographic_parity_difference": _json(fairlearn.demographic_parity_difference(**known)),
        "equal_opportunity_difference": opportunity,
        "equalized_odds_difference": both,
    }


def _has_both(truth: np.ndarray, groups: pd.Series) -> bool:
    """Whether each group has examples of 0 and of 1, so that its rates are defined."""
    return all(0 < truth[rows].mean() < 1 for rows in groups.groupby(groups).indices.values())


def of_deepfakes(
    truth: np.ndarray, decided: np.ndarray, groups: pd.Series
) -> dict[str, float | None]:
    """The four figures of the deepfake field, of real (0) and fake (1) at a threshold of 0.5.

    F_EO = Σ_g |FPR_g - FPR| + |TPR_g - TPR|; F_MEO = the largest of max_g - min_g over FPR, FNR,
    TNR, TPR; F_DP = the larger of the gaps of the rates of predicted fakes and of predicted reals;
    F_OAE = max_g - min_g of the accuracy (Ju 2024, arXiv 2306.16635, and those it compares with).
    F_EO and F_MEO are None where some group is all real or all fake.
    """
    frame: Any = fairlearn.MetricFrame(
        metrics={
            "fpr": fairlearn.false_positive_rate, "fnr": fairlearn.false_negative_rate,
            "tnr": fairlearn.true_negative_rate, "tpr": fairlearn.true_positive_rate,
            "yes": fairlearn.selection_rate, "accuracy": lambda t, p: float(np.mean(t == p)),
        },
        y_true=truth, y_pred=decided, sensitive_features=groups,
    )  # fmt: skip
    gaps = frame.by_group.max() - frame.by_group.min()
    off = (frame.by_group[["fpr", "tpr"]] - frame.overall[["fpr", "tpr"]]).abs()
    defined = _has_both(truth, groups)
    return {
        "F_EO": float(off.sum().sum()) if defined else None,
        "F_MEO": float(gaps[["fpr", "fnr", "tnr", "tpr"]].max()) if defined else None,
        # The rate of predicted reals is 1 less the other: its gap is the same.
        "F_DP": float(gaps["yes"]),
        "F_OAE": float(gaps["accuracy"]),
    }


def crossed(columns: Mapping[str, Sequence[str] | np.ndarray]) -> pd.Series:
    """The intersection of group columns: `Black × female`, in the order of the columns."""
    parts = [pd.Series(list(names), dtype=object) for names in columns.values()]
    joined = parts[0]
    for part in parts[1:]:
        joined = joined + " × " + part
    return joined


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else float(value)


def _json(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)


def _interval(drawn: np.ndarray) -> list[float] | None:
    finite = drawn[np.isfinite(drawn)]
    return np.percentile(finite, LEVELS).tolist() if len(finite) else None

"""Which metrics there are, in one table: what logs, plots, probes and the best checkpoint read."""

import dataclasses
from collections.abc import Iterable, Mapping

from hmtl_jax.errors import lookup


@dataclasses.dataclass(frozen=True)
class Metric:
    """higher: whether more is better. unit: of the number. headline: whether a line shows it."""

    higher: bool
    unit: str
    headline: bool = False


METRICS = {
    "accuracy": Metric(True, "share", headline=True),
    "balanced_accuracy": Metric(True, "share", headline=True),
    "macro_f1": Metric(True, "share", headline=True),
    "auc": Metric(True, "area", headline=True),
    "average_precision": Metric(True, "area"),
    "eer": Metric(False, "share"),
    "nll": Metric(False, "nats", headline=True),
    "ece": Metric(False, "share"),
    "mae": Metric(False, "the label's", headline=True),
    "mae_yaw": Metric(False, "degrees"),
    "mae_pitch": Metric(False, "degrees"),
    "mae_roll": Metric(False, "degrees"),
    "geodesic": Metric(False, "degrees"),
    "rmse": Metric(False, "the label's"),
    "pearson": Metric(True, "correlation"),
    "ccc": Metric(True, "correlation", headline=True),
    "sagr": Metric(True, "share"),
    "within": Metric(True, "share"),
    "skill": Metric(True, "share", headline=True),
}


def metric(key: str) -> Metric:
    """The row of `accuracy`, or of a key that ends in it, as `expression/accuracy`."""
    return lookup(METRICS, key.rpartition("/")[2], "metric")


def shown_in(key: str) -> tuple[float, str]:
    """What a metric is multiplied by where people read it, and its unit there."""
    return (100, " %") if metric(key).unit in ("share", "area") else (1, "")


def score(key: str, value: float) -> float:
    """The value of a metric as a number of which more is better."""
    return value if metric(key).higher else -value


def headlines(found: Mapping[str, float]) -> str:
    """The metrics that belong into a line on the screen."""
    shown = ((key, value) for key, value in found.items() if metric(key).headline)
    return ", ".join(f"{key} {value:.4f}" for key, value in shown)


def first_headline(names: Iterable[str]) -> str:
    """The one that stands for the others: the first headline, in the order of the table."""
    known = list(names)
    return next(name for name, row in METRICS.items() if row.headline and name in known)

"""Intervals of any metric by resampling the examples (Efron 1993), on the host."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hmtl_jax.errors import UserError


def intervals(
    measure: Callable[[np.ndarray], Mapping[str, Any]],
    wanted: Sequence[str],
    count: int,
    clusters: np.ndarray | None = None,
    resamples: int = 300,
    seed: int = 0,
) -> dict[str, list[float]]:
    """The 95 % percentile interval [low, high] of each metric that is wanted.

    Args:
      measure: the metrics of the examples of these row numbers int [n], in which a row may stand
        more than once.
      wanted: names in what `measure` returns; one that is None in half of the resamples or more has
        no interval.
      count: of the examples.
      clusters: int [count] from 0 on; rows of a cluster, such as the frames of a video, are drawn
        together. None: each row by itself.
      resamples: 0 for no intervals at all.
      seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    members = None
    if clusters is not None:
        order = np.argsort(clusters, kind="stable")
        members = np.split(order, np.cumsum(np.bincount(clusters))[:-1])
    found: dict[str, list[float]] = {name: [] for name in wanted}
    for _ in range(resamples):
        if members is None:
            rows = rng.integers(0, count, count)
        else:
            drawn = rng.integers(0, len(members), len(members))
            rows = np.concatenate([members[one] for one in drawn])
        try:
            values = measure(rows)
        except UserError:  # a draw without a single label
            continue
        for name in wanted:
            if values.get(name) is not None:
                found[name].append(values[name])
    return {
        name: [float(bound) for bound in np.percentile(drawn, [2.5, 97.5])]
        for name, drawn in found.items()
        if len(drawn) > resamples / 2
    }

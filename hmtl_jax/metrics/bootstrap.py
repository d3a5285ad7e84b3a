"""Intervals of any metric by resampling the examples (Efron 1993), on the host."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from hmtl_jax.errors import UserError


def draws(
    measure: Callable[[np.ndarray], Mapping[Any, Any]],
    wanted: Sequence[Hashable],
    count: int,
    clusters: np.ndarray | None = None,
    resamples: int = 300,
    seed: int = 0,
) -> np.ndarray:
    """The metrics of examples drawn again and again: float64 [resamples, wanted].

    NaN where `measure` says None, or a UserError: as a draw may lack a class, or labels at all.

    Args:
      measure: the metrics of the examples of these row numbers int [n], in which a row may stand
        more than once.
      wanted: names in what `measure` returns.
      count: of the examples.
      clusters: int [count] from 0 on; rows of a cluster, such as the frames of a video, are drawn
        together. None: each row by itself.
      resamples: 0 for none, and so no intervals.
      seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    members = None
    if clusters is not None:
        order = np.argsort(clusters, kind="stable")
        members = np.split(order, np.cumsum(np.bincount(clusters))[:-1])
    found = np.full((resamples, len(wanted)), np.nan)
    for values_of in found:
        if members is None:
            rows = rng.integers(0, count, count)
        else:
            drawn = rng.integers(0, len(members), len(members))
            rows = np.concatenate([members[one] for one in drawn])
        try:
            values = measure(rows)
        except UserError:  # a draw without a single label
            continue
        values_of[:] = [values.get(name) for name in wanted]
    return found


def intervals(
    measure: Callable[[np.ndarray], Mapping[str, Any]],
    wanted: Sequence[str],
    count: int,
    clusters: np.ndarray | None = None,
    resamples: int = 300,
    seed: int = 0,
) -> dict[str, list[float]]:
    """The 95 % percentile interval [low, high] of each metric that is wanted.

    Arguments as in `draws`. A metric that is undefined in half of the resamples or more has no
    interval.
    """
    drawn = draws(measure, wanted, count, clusters, resamples, seed)
    known = {name: of[~np.isnan(of)] for name, of in zip(wanted, drawn.T, strict=True)}
    return {
        name: [float(bound) for bound in np.percentile(of, [2.5, 97.5])]
        for name, of in known.items()
        if len(of) > resamples / 2
    }

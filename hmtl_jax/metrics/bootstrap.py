"""Intervals of any metric by resampling the examples (Efron 1993), on the host."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from hmtl_jax.errors import Unlabelled


def draws(
    measure: Callable[[np.ndarray], Mapping[Any, Any]],
    wanted: Sequence[Hashable],
    count: int,
    clusters: np.ndarray | None = None,
    resamples: int = 300,
    seed: int = 0,
) -> np.ndarray:
    """The metrics of examples drawn again and again: float64 [resamples, wanted].

    NaN where `measure` says None, or raises Unlabelled: a draw may lack a class, or labels at all.

    Args:
      measure: the metrics of the examples of these row numbers int [n], in which a row may stand
        more than once.
      wanted: names in what `measure` returns.
      count: of the examples.
      clusters: int [count]; rows of a cluster, such as the frames of a video, are drawn together.
        None: each row by itself.
      resamples: 0 for none, and so no intervals.
      seed: of the draws.
    """
    rng, members = np.random.default_rng(seed), members_of(clusters)
    found = np.full((resamples, len(wanted)), np.nan)
    for values_of in found:
        try:
            values = measure(drawn(rng, count, members))
        except Unlabelled:
            continue
        values_of[:] = [values.get(name) for name in wanted]
    return found


def members_of(clusters: np.ndarray | None) -> list[np.ndarray] | None:
    """The rows of each cluster int [n]; None where each row stands for itself."""
    if clusters is None:
        return None
    _, numbers, counts = np.unique(clusters, return_inverse=True, return_counts=True)
    return np.split(np.argsort(numbers, kind="stable"), np.cumsum(counts)[:-1])


def drawn(rng: np.random.Generator, count: int, members: list[np.ndarray] | None) -> np.ndarray:
    """Rows drawn anew from `count` of them, int [n]; whole clusters where they have members."""
    if members is None:
        return rng.integers(0, count, count)
    return np.concatenate([members[one] for one in rng.integers(0, len(members), len(members))])


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
    found = draws(measure, wanted, count, clusters, resamples, seed)
    known = {name: of[~np.isnan(of)] for name, of in zip(wanted, found.T, strict=True)}
    return {
        name: [float(bound) for bound in np.percentile(of, [2.5, 97.5])]
        for name, of in known.items()
        if len(of) > resamples / 2
    }

"""Which records training reads, and which of them are in batch t: functions of seeds alone."""

import functools
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hmtl_jax.data.subset import subset_indices


class Rows(NamedTuple):
    """The records of a split that take part.

    numbers: int64 [n], ascending. labelled: bool [n], whether tasks see the labels of each.
    """

    numbers: np.ndarray
    labelled: np.ndarray


def choose(classes: np.ndarray, subset: float, labelled: float, seed: int) -> Rows:
    """A share `subset` of each class takes part, and of these a share `labelled` has labels.

    classes: integers [n]; one value for all draws regardless of class. The draw is that of
    subset_indices: the labels that `labelled` leaves are those of the examples that an equal
    `subset` would leave.
    """
    numbers = np.arange(len(classes))
    if subset != 1.0:
        numbers = subset_indices(classes, subset, seed)
    known = np.ones(len(numbers), bool)
    if labelled != 1.0:
        known[:] = False
        known[subset_indices(classes[numbers], labelled, seed)] = True
    return Rows(numbers, known)


class Steps:
    """A process's rows of each training batch: step -> record numbers int32 [b], without end.

    pools: (record numbers, how many of them are in each batch). A single one is shuffled anew each
    epoch, and what fills no batch is left out of it; of several, each is gone through again and
    again, to its last record. share: the rows of the whole batch that are this process's.
    """

    def __init__(self, pools: Sequence[tuple[np.ndarray, int]], seed: int, share: slice):
        self._pools, self._seed, self._share = pools, seed % 2**32, share

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> np.ndarray:
        if len(self._pools) == 1:
            (numbers, count), *_ = self._pools
            epoch, step = divmod(index, len(numbers) // count)
            order = _permutation(len(numbers), self._seed, epoch)
            rows = numbers[order[step * count : (step + 1) * count]]
        else:
            rows = np.concatenate([self._of_pool(pool, index) for pool in range(len(self._pools))])
        return rows[self._share].astype(np.int32)

    def _of_pool(self, pool: int, index: int) -> np.ndarray:
        numbers, count = self._pools[pool]
        places = np.arange(index * count, (index + 1) * count)
        epochs, places = np.divmod(places, len(numbers))
        found = np.empty(count, np.int64)
        for epoch in np.unique(epochs):
            order = _permutation(len(numbers), self._seed, int(epoch), pool)
            found[epochs == epoch] = order[places[epochs == epoch]]
        return numbers[found]


@functools.lru_cache(maxsize=4)  # two a pool, because threads read ahead over the end of an epoch
def _permutation(n: int, *seeds: int) -> np.ndarray:
    # NumPy's legacy stream is frozen: a run can be continued under another version. It takes 20 ms
    # for 300,000 examples; grain's shuffle, index by index, takes a quarter as long as decoding.
    return np.random.RandomState(seeds).permutation(n)

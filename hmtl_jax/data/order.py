"""Which records training reads, and which of them are in batch t: functions of seeds alone."""

import functools
import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

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


def quotas(classes: np.ndarray, power: float) -> np.ndarray:
    """How often an epoch of n draws has each class: its share is as its count to this power.

    power: 1 as they are, 0.5 the square root (Mahajan 2018), 0 all equal (Kang 2020). Rows that
    have no class (below 0) keep their own share. Returns int64, for the sorted values of `classes`,
    that sum to n.
    """
    values, counts = np.unique(classes, return_counts=True)
    known = values >= 0
    wanted = counts.astype(float)
    drawn = counts[known].astype(float) ** power
    wanted[known] = drawn / drawn.sum() * counts[known].sum() if known.any() else 0
    found = np.floor(wanted).astype(np.int64)
    rest = len(classes) - found.sum()
    found[np.argsort(found - wanted, kind="stable")[:rest]] += 1
    return found


def shared(weights: Sequence[float], count: int) -> list[int]:
    """Parts of `count` in proportion to weights: whole numbers, none of a positive weight 0."""
    wanted = np.array(weights, float) / sum(weights) * count
    found = np.maximum(np.floor(wanted), np.array(weights) > 0).astype(int)
    while found.sum() != count:  # the one that is farthest off gives or takes
        step = 1 if found.sum() < count else -1
        off = np.where((found > 1) | (step > 0), step * (wanted - found), -np.inf)
        found[int(np.argmax(off))] += step
    return found.tolist()


class Layout(NamedTuple):
    """Where in a batch the rows with labels lie: of every `unit` rows the first `labelled`.

    So each device, however many there are, has its part of both kinds, and a step can take those
    with labels without asking another device. (1, 1): no row is set aside for what has none.
    """

    labelled: int = 1
    unit: int = 1

    @classmethod
    def of(cls, batch_size: int, unlabelled_share: float) -> "Layout":
        """As a share of each batch without labels asks; at least one row of either kind."""
        if not unlabelled_share:
            return cls()
        without = min(max(round(unlabelled_share * batch_size), 1), batch_size - 1)
        units = math.gcd(batch_size, without)
        return cls((batch_size - without) // units, batch_size // units)

    def count(self, batch_size: int) -> int:
        """How many rows of a batch have labels."""
        return batch_size // self.unit * self.labelled

    def known(self, rows: Any) -> Any:
        """Of an array [B, …] of NumPy or JAX the rows with labels, in their order."""
        if self.labelled == self.unit:
            return rows
        rest = rows.shape[1:]
        return rows.reshape(-1, self.unit, *rest)[:, : self.labelled].reshape(-1, *rest)

    def laid(self, rows: np.ndarray) -> np.ndarray:
        """[B], those with labels before all others → as they lie in a batch."""
        units, count = len(rows) // self.unit, self.count(len(rows))
        parts = (rows[:count].reshape(units, -1), rows[count:].reshape(units, -1))
        return np.concatenate(parts, axis=1).reshape(-1)


class Pool(NamedTuple):
    """Records that share a part of every batch.

    numbers: of the records. count: how many of them are in each batch. classes: of each record,
    where an epoch draws by them, as `quotas` says; None: each record once.
    """

    numbers: np.ndarray
    count: int
    classes: np.ndarray | None = None
    power: float = 1.0


WHOLE = Layout()


class Steps:
    """A process's rows of each training batch: step -> record numbers int32 [b], without end.

    A single pool is shuffled anew each epoch, and what fills no batch is left out of it; of
    several, or of one that is smaller than a batch, each is gone through again and again, to its
    last record. share: the rows of the whole batch that are this process's. layout: where the rows
    of pools with labels lie, which come before those without.
    """

    def __init__(self, pools: Sequence[Pool], seed: int, share: slice, layout: Layout = WHOLE):
        self._pools, self._seed, self._share = pools, seed % 2**32, share
        self._layout = layout
        self._memo: dict[tuple, np.ndarray] = {}

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> np.ndarray:
        pool = self._pools[0]
        if len(self._pools) == 1 and pool.count <= len(pool.numbers):
            epoch, step = divmod(index, len(pool.numbers) // pool.count)
            order = self._order(pool, epoch)
            rows = pool.numbers[order[step * pool.count : (step + 1) * pool.count]]
        else:
            parts = [self._of_pool(pool, index) for pool in range(len(self._pools))]
            rows = self._layout.laid(np.concatenate(parts))
        return rows[self._share].astype(np.int32)

    def _of_pool(self, number: int, index: int) -> np.ndarray:
        pool = self._pools[number]
        places = np.arange(index * pool.count, (index + 1) * pool.count)
        epochs, places = np.divmod(places, len(pool.numbers))
        found = np.empty(pool.count, np.int64)
        for epoch in np.unique(epochs):
            order = self._order(pool, int(epoch), number)
            found[epochs == epoch] = order[places[epochs == epoch]]
        return pool.numbers[found]

    def _order(self, pool: Pool, *epoch: int) -> np.ndarray:
        """The places in a pool that an epoch goes through, one after the other."""
        if pool.classes is None:
            return _permutation(len(pool.numbers), self._seed, *epoch)
        memo = self._memo
        if epoch not in memo:
            while len(memo) >= 4:  # as of _permutation; several threads may do so at once
                memo.pop(next(iter(memo)), None)
            memo[epoch] = self._drawn(pool, *epoch)
        return memo[epoch]

    def _drawn(self, pool: Pool, *epoch: int) -> np.ndarray:
        """Each class as often as its quota: all of it so many times, and a part; shuffled."""
        assert pool.classes is not None
        rng, parts = np.random.RandomState((self._seed, *epoch)), []
        wanted = quotas(pool.classes, pool.power)
        for value, quota in zip(np.unique(pool.classes), wanted, strict=True):
            members = np.flatnonzero(pool.classes == value)
            whole, rest = divmod(int(quota), len(members))
            parts += [np.tile(members, whole), rng.permutation(members)[:rest]]
        return rng.permutation(np.concatenate(parts))


@functools.lru_cache(maxsize=4)  # two a pool, because threads read ahead over the end of an epoch
def _permutation(n: int, *seeds: int) -> np.ndarray:
    # NumPy's legacy stream is frozen: a run can be continued under another version. It takes 20 ms
    # for 300,000 examples; grain's shuffle, index by index, takes a quarter as long as decoding.
    return np.random.RandomState(seeds).permutation(n)

"""Which training examples become validation, where a data set has no official one."""

import collections
import hashlib
import math
from collections.abc import Iterable, Sequence

from hmtl_jax.data.readers.reader import Row


def held_out(rows: Iterable[Row], share: float, seed: int, labels: Sequence[str]) -> set[str]:
    """Keys of that share of each combination of `labels`, rounded up: whose hash comes first.

    The hash is of the seed and the key alone: it hangs neither on the order of the rows nor, but
    for where a class ends, on which others there are.
    """
    classes = collections.defaultdict(list)
    for row in rows:
        if row.labels is None:
            continue
        digest = hashlib.blake2b(f"{seed}/{row.key}".encode(), digest_size=8).digest()
        classes[tuple(row.labels[label] for label in labels)].append((digest, row.key))
    return {
        key
        for members in classes.values()
        for _, key in sorted(members)[: math.ceil(share * len(members))]
    }

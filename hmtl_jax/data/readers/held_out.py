"""Which examples are held out, where a data set has no official split: by the hash of a name."""

import collections
import hashlib
import math
from collections.abc import Callable, Iterable, Sequence

from hmtl_jax.data.readers.reader import Row
from hmtl_jax.errors import UserError


def check_share(share: float, flag: str = "--validation") -> None:
    """UserError unless it is a share from 0 to below 1."""
    if not 0 <= share < 1:
        raise UserError(f"{flag} {share} is no share from 0 to below 1.")


def held_out(
    rows: Iterable[Row], share: float, seed: int, labels: Sequence[str]
) -> tuple[list[Row], list[Row]]:
    """What stays and what is held out: that share of each combination of `labels`, rounded up.

    Those whose hash comes first. The hash is of the seed and the key alone: it hangs neither on
    the order of the rows nor, but for where a class ends, on which others there are.
    """
    rows = list(rows)
    classes = collections.defaultdict(list)
    for row in rows:
        if row.labels is not None:
            members = classes[tuple(row.labels[label] for label in labels)]
            members.append((digest(seed, row.key), row.key))
    chosen = {
        key
        for members in classes.values()
        for _, key in sorted(members)[: math.ceil(share * len(members))]
    }
    return _parted(rows, lambda row: row.key in chosen)


def held_out_groups(
    rows: Iterable[Row], share: float, seed: int, group: Callable[[Row], str]
) -> tuple[list[Row], list[Row]]:
    """As `held_out`, by whole groups, such as all pictures of a person: that share of the groups.

    A group of its own is what `group` names "".
    """
    rows = list(rows)
    names = {row.key: group(row) or f"\0{row.key}" for row in rows}
    ordered = sorted({(digest(seed, name), name) for name in names.values()})
    chosen = {name for _, name in ordered[: math.ceil(share * len(ordered))]}
    return _parted(rows, lambda row: names[row.key] in chosen)


def digest(seed: int, name: str) -> bytes:
    """Eight bytes that look drawn, and are the same wherever they are asked for."""
    return hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()


def _parted(rows: list[Row], chosen: Callable[[Row], bool]) -> tuple[list[Row], list[Row]]:
    return [row for row in rows if not chosen(row)], [row for row in rows if chosen(row)]

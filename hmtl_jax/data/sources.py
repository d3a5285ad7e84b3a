"""What `data.name` opens: one prepared set, or several, with commas between, as if they were one.

    --config.data.name=affectnet,ferplus,rafdb

Labels of the same name are one label. Classes, and the entries of vectors, are matched by their
names, upper and lower case alike; those of the first set come first, as it spells them. What a set
lacks is missing in its rows: -1, NaN, and for shares of votes (LABEL_soft) the class itself, with a
share of 1.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np

from hmtl_jax import errors
from hmtl_jax.data import records

SOFT = "_soft"


def open_split(data_dir: str | os.PathLike[str], name: str, split: str) -> "Opened":
    """One split of a set, or of several sets; UserError as `records.open_split`."""
    names = _names(name)
    opened = [records.open_split(data_dir, one, split) for one in names]
    return opened[0] if len(opened) == 1 else Mixture(opened)


def identity(data_dir: str | os.PathLike[str], name: str) -> dict[str, Any]:
    """What sets say of themselves, as `records.identity`; of several, joined."""
    found = [records.identity(data_dir, one) for one in _names(name)]
    if len(found) == 1:
        return found[0]
    joined: dict[str, Any] = {
        key: ",".join(one[key] for one in found) for key in ("name", "version", "reader")
    }
    joined["options"] = {one["name"]: one["options"] for one in found}
    splits = {split: None for one in found for split in one["counts"]}
    joined["counts"] = {
        split: {one["name"]: one["counts"].get(split, {}) for one in found} for split in splits
    }
    digest = hashlib.blake2b(" ".join(one["digest"] for one in found).encode(), digest_size=16)
    return joined | {"digest": digest.hexdigest()}


def _names(name: str) -> list[str]:
    names = [one.strip() for one in name.split(",")]
    if len(set(names)) < len(names) or not all(names):
        raise errors.UserError(
            f"data.name is {name!r}; name each set once, with commas between and none at the end."
        )
    return names


class Mixture:
    """The same split of several sets, one after the other: a source as `records.Source` is.

    `parts`: the name of each set → its rows, as a slice. Safe to read from many threads.
    """

    def __init__(self, sources: Sequence[records.Source]):
        """UserError for labels of one name that do not go together."""
        self._sources = tuple(sources)
        self._starts = np.cumsum([0, *map(len, sources)])
        self.split = sources[0].split
        self.name = ",".join(source.name for source in sources)
        self.parts = {
            source.name: slice(int(self._starts[at]), int(self._starts[at + 1]))
            for at, source in enumerate(sources)
        }
        self.labels = tuple(sorted({label for source in sources for label in source.labels}))
        self._joined = {label: _joined(label, sources) for label in self.labels}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        at = index.__index__()
        part = int(np.searchsorted(self._starts, at, "right")) - 1
        if not 0 <= at < len(self):
            raise IndexError(f"record {at} of {len(self)}")
        record = self._sources[part][at - int(self._starts[part])]
        found = {"image": record["image"], "key": f"{self._sources[part].name}/{record['key']}"}
        for label, joined in self._joined.items():
            found[label] = joined.of(part, record)
        return found

    def __repr__(self) -> str:
        return f"Mixture({self.name!r}, {self.split!r}, {len(self)} examples)"

    def class_names(self, label: str) -> tuple[str, ...] | None:
        """Names of the classes, or entries, of a label; None where it has none."""
        return self._joined[label].names or None


class Matched:
    """A set as a run knows it: classes and entries of labels are matched by their names.

    Upper and lower case are one. A class that the run does not know is a missing label, and so is
    an entry that the set lacks. `unmatched`: label → {"data": names that the run does not know,
    "run": names that the set lacks}, for labels where there are any.
    """

    def __init__(self, source: "Opened", known: Mapping[str, Sequence[str]]):
        """known: the names of labels in the run. UserError for a label without a common one."""
        self._source = source
        self.name, self.split, self.labels = source.name, source.split, source.labels
        self._known = {
            label: tuple(names)
            for label, names in known.items()
            if label in source.labels and tuple(names) != (source.class_names(label) or ())
        }
        self._places: dict[str, np.ndarray] = {}
        self.unmatched: dict[str, dict[str, list[str]]] = {}
        for label, names in self._known.items():
            self._match(label, names)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        record = dict(self._source[index])
        for label in self._known:
            record[label] = self._of(label, record[label])
        return record

    def __repr__(self) -> str:
        return f"Matched({self._source!r})"

    def class_names(self, label: str) -> tuple[str, ...] | None:
        """As the run has them."""
        return self._known.get(label) or self._source.class_names(label)

    def _match(self, label: str, names: tuple[str, ...]) -> None:
        own = self._source.class_names(label) or ()
        found = _places(own, names)
        if not (found >= 0).any():
            raise errors.UserError(
                f"None of the names of {label!r} in {self.name} ({', '.join(own) or 'it has none'})"
                f" is known to the run ({', '.join(names)}); prepare the set with the run's names."
            )
        self._places[label] = found
        lacking = sorted(set(range(len(names))) - set(found.tolist()))
        unknown = [name for name, place in zip(own, found, strict=True) if place < 0]
        if unknown or lacking:
            self.unmatched[label] = {"data": unknown, "run": [names[place] for place in lacking]}

    def _of(self, label: str, value: Any) -> Any:
        places = self._places[label]
        if not np.ndim(value):
            return np.int32(places[value] if value >= 0 else -1)
        missing = 0 if label.endswith(SOFT) else -1 if value.dtype.kind == "i" else np.nan
        found = np.full((len(self._known[label]), *value.shape[1:]), missing, value.dtype)
        found[places[places >= 0]] = value[places >= 0]
        return found


class _Label:
    """One label of several sets: its names, and how each set's values become those."""

    def __init__(self, label: str, sources: Sequence[records.Source], names: tuple[str, ...] = ()):
        """names: in the order that they are to have; () for that in which they are met."""
        having = [source for source in sources if label in source.labels]
        fields = [source.fields[label] for source in having]
        self.label = label
        self.names = names or _union([source.class_names(label) for source in having], label)
        self.dtype, shape = fields[0].dtype, fields[0].shape
        if any((field.dtype, len(field.shape)) != (self.dtype, len(shape)) for field in fields):
            raise errors.UserError(
                f"Label {label!r} is not of one kind in {', '.join(one.name for one in having)}; "
                "prepare one of them under another label."
            )
        self._is_class = bool(self.names) and shape == ()
        if self.names and shape:
            shape = (len(self.names), *shape[1:])
        elif any(field.shape != shape for field in fields):
            raise errors.UserError(
                f"Label {label!r} has different shapes in "
                f"{', '.join(one.name for one in having)}, and no names to match its entries by."
            )
        self.shape = shape
        self._places = [
            _places(source.class_names(label) or (), self.names) if label in source.labels else None
            for source in sources
        ]

    def of(self, part: int, record: Mapping[str, Any]) -> Any:
        """The label of a record of one of the sets."""
        places = self._places[part]
        if places is None:
            return self._missing()
        value = record[self.label]
        if self._is_class:
            return np.int32(places[value] if value >= 0 else -1)
        if not self.names or not self.shape:
            return value
        found = self._missing()
        if self.label.endswith(SOFT):
            found = np.zeros(self.shape, self.dtype)
        found[places] = value
        return found

    def _missing(self) -> Any:
        gone = np.full(self.shape, -1 if self.dtype is np.int32 else np.nan, self.dtype)
        return gone if self.shape else gone[()]


class _Soft(_Label):
    """Shares of votes; of a set without votes all of them are those of its class."""

    def __init__(self, label: str, sources: Sequence[records.Source]):
        self._classes = _Label(label.removesuffix(SOFT), sources)
        super().__init__(label, sources, self._classes.names)

    def of(self, part: int, record: Mapping[str, Any]) -> Any:
        if self._places[part] is not None:
            return super().of(part, record)
        found = np.zeros(self.shape, self.dtype)
        value = int(self._classes.of(part, record))
        if value >= 0:
            found[value] = 1
        return found


def _joined(label: str, sources: Sequence[records.Source]) -> _Label:
    hard = label.removesuffix(SOFT)
    soft = label != hard and any(hard in source.labels for source in sources)
    return (_Soft if soft else _Label)(label, sources)


def _places(own: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Where each of a set's own names stands among these, int64; -1 where it is not one of them."""
    places = {name.casefold(): place for place, name in enumerate(names)}
    return np.array([places.get(name.casefold(), -1) for name in own], np.int64)


def _union(named: Sequence[Sequence[str] | None], label: str) -> tuple[str, ...]:
    """All names, in the order in which they are met; () where no set has names."""
    if any(bool(names) != bool(named[0]) for names in named):
        raise errors.UserError(
            f"Label {label!r} has names in some sets and none in others; prepare one of them under "
            "another label."
        )
    met: dict[str, str] = {}
    for name in (name for names in named for name in names or ()):
        met.setdefault(name.casefold(), name)
    return tuple(met.values())


Opened = records.Source | Mixture | Matched

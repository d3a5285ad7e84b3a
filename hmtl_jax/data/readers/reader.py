"""What a reader is: one official layout, turned into rows that `prepare` can write.

A reader is a frozen dataclass; its fields are the options of `python -m hmtl_jax.prepare NAME`
(give each a default and say with `option` what it does). A new one is one file in this folder and
one line in the registry of `readers/__init__.py`.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Protocol

from hmtl_jax.data.labels import Label

# Shows progress: `track(iterable, "what it is")` yields the same items.
Track = Callable[[Iterable[Any], str], Iterable[Any]]


@dataclasses.dataclass(frozen=True)
class Row:
    """One example that is not read yet: its labels are checked, its image loads on demand."""

    key: str  # unique within the split
    labels: Mapping[str, Any] | None  # None: not written, yet its image counts as a duplicate
    image: Callable[[], bytes]  # encoded bytes to store; called from several threads
    where: str  # file and line that name the example in an error


class Rows(Protocol):
    """The rows of a split: a list, or something that makes them as it is iterated."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Row]: ...


@dataclasses.dataclass(frozen=True)
class Survey:
    """All rows of a source, by split, and what was left out on the way."""

    splits: Mapping[str, Rows]  # by any names; see `is_trained_on`
    labels: Mapping[str, Label]  # of every row, beside its image and its key
    left_out: Mapping[str, int]  # how many, by a name to print: "rows without an image name"


def is_trained_on(split: str) -> bool:
    """Whether a split of this name is one to train on; all others are held out.

    What stands in a held-out split is removed from those: train, train_small, unlabeled.
    """
    return split.startswith(("train", "unlabel"))


class Reader(Protocol):
    """The members that `prepare` uses."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    name: ClassVar[str]
    version: ClassVar[str]
    needs_source: ClassVar[bool]
    obtain: ClassVar[str]  # what to fetch, where, under which terms

    @property
    def label_rule(self) -> str:
        """One or two sentences: how the stored labels came from the official ones."""
        ...

    def survey(self, source: Any, track: Track) -> Survey:
        """Reads all labels of a folder or zip (None if the reader needs no source).

        UserError names the file and line of what is wrong; no image is decoded yet.
        """
        ...

    def check(self, survey: Survey) -> list[str]:
        """One clause for every count that differs from the published one; empty if none does."""
        ...


def option(default: Any, help: str, choices: Collection[Any] | None = None) -> Any:
    """A dataclass field that is an option on the command line too; a tuple is a list there."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})

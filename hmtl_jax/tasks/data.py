"""What a task may ask of the data that it is made for, and what it makes of the answers."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from hmtl_jax import limits
from hmtl_jax.errors import UserError


class Data(Protocol):
    """The training split, as tasks see it; they know no files."""

    def classes(self, label: str) -> tuple[str, ...]:
        """Names of a label's classes; empty where it is no class label."""
        ...

    def has(self, label: str) -> bool:
        """Whether the examples have this label."""
        ...

    def entries(self, labels: Sequence[str]) -> tuple[str, ...]:
        """Names of the columns that these labels make side by side."""
        ...

    def column(self, label: str) -> np.ndarray:
        """One label of all examples [N, …]."""
        ...


def shares(labels: np.ndarray, classes: int) -> tuple[float, ...]:
    """The share of each class among the labelled examples."""
    counts = np.bincount(labels[labels >= 0], minlength=classes)
    return tuple(float(count / max(counts.sum(), 1)) for count in counts)


def balanced_weights(labels: np.ndarray, classes: int) -> tuple[float, ...]:
    """Count of the majority class / count of the class (HMTL); a class without examples gets 1."""
    counts = np.bincount(labels[labels >= 0], minlength=classes)
    return tuple(float(counts.max() / count) if count else 1.0 for count in counts)


def given_weights(key: str, given: Any, count: int) -> tuple[float, ...] | None:
    """The weights that a recipe gives: () for "none", None for "balanced", else `count` numbers.

    They may be a tuple, or text such as "1,2,3", as a command line holds it.
    """
    if given in ("none", ()):
        return ()
    if given == "balanced":
        return None
    try:
        numbers = given.strip("()[] ,").split(",") if isinstance(given, str) else given
        found = tuple(float(number) for number in numbers)
    except (TypeError, ValueError):
        found = ()
    if len(found) != count:
        raise UserError(f"{key} is {given!r}; it must be 'none', 'balanced' or {count} numbers.")
    limits.check("", {key: found}, {key: limits.weights()})
    return found

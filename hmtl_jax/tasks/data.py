"""What a task may ask of the data that it is made for, and what it makes of the answers."""

from collections.abc import Callable, Sequence
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


def effective_weights(labels: np.ndarray, classes: int, beta: float) -> tuple[float, ...]:
    """(1 - β) / (1 - β^n) of each class of n examples, their mean over these 1 (Cui 2019, eq. 2).

    β = 0 weighs all alike, β near 1 by 1 / n. A class without examples gets 1.
    """
    counts = np.bincount(labels[labels >= 0], minlength=classes)
    known = counts > 0
    weights = (1.0 - beta) / (1.0 - beta ** np.maximum(counts, 1))
    weights = np.where(known, weights / weights[known].mean() if known.any() else 1.0, 1.0)
    return tuple(float(weight) for weight in weights)


def class_weights(
    key: str, given: Any, labels: Callable[[], np.ndarray], classes: int
) -> tuple[float, ...]:
    """What a recipe means by weights of classes, one a class; () for none.

    given: "none"; "balanced"; "effective", or "effective_0.99" with another β than 0.999; or the
    numbers. labels: reads those of all examples, which is asked for only where they count.
    """
    if isinstance(given, str) and given.startswith("effective"):
        try:
            beta = float(given.removeprefix("effective").removeprefix("_") or 0.999)
        except ValueError:
            beta = -1.0
        limits.check("", {key: beta}, {key: limits.share("'effective_' and a number β")})
        return effective_weights(labels(), classes, beta)
    weights = given_weights(key, given, classes)
    return balanced_weights(labels(), classes) if weights is None else weights


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

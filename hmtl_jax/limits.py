"""What a setting may be, as rows of a table: (what must hold, how to say it).

A table stands beside what it governs, with a row for each of its numbers; rules that join two
settings are code, at the foot of their class.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from hmtl_jax.errors import UserError

Row = tuple[Callable[[Any], bool], str]


def check(prefix: str, values: Mapping[str, Any], limits: Mapping[str, Row]) -> None:
    """Raises UserError for the first value that its row refuses.

    prefix: stands before the name of a value, as `augment.`.
    """
    for name, (holds, wanted) in limits.items():
        value = values[name]
        try:
            good = holds(value)
        except (TypeError, ValueError, IndexError):  # a number where a pair belongs, or the reverse
            good = False
        if not good:
            raise UserError(f"{prefix}{name} is {value!r}; give {wanted}.")


def is_number(value: Any) -> bool:
    """Whether it is a finite number, and no yes or no."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: Any) -> bool:
    """Whether it is an integer, and no yes or no."""
    return isinstance(value, int) and not isinstance(value, bool)


def whole(least: int, most: int | None = None, instead: str = "") -> Row:
    """A whole number; `instead`: what the least one stands for."""
    note = f" ({least}: {instead})" if instead else ""
    if most is not None:
        return (
            lambda value: is_whole(value) and least <= value <= most,
            f"a whole number from {least} to {most}{note}",
        )
    return (
        lambda value: is_whole(value) and value >= least,
        f"a whole number, {least} or more{note}",
    )


def number(least: float, most: float = math.inf, what: str = "a number") -> Row:
    """A number between two, both of which it may be."""
    span = f"from {least:g} to {most:g}" if math.isfinite(most) else f"of {least:g} or more"
    return lambda value: is_number(value) and least <= value <= most, f"{what} {span}"


def above(least: float, what: str = "a number") -> Row:
    """A number above another."""
    return lambda value: is_number(value) and value > least, f"{what} above {least:g}"


def share(what: str = "a share") -> Row:
    """A number in [0, 1)."""
    return lambda value: is_number(value) and 0 <= value < 1, f"{what} in [0, 1)"


def open_share(what: str) -> Row:
    """A number in (0, 1)."""
    return lambda value: is_number(value) and 0 < value < 1, f"{what}, in (0, 1)"


def up_to_one(what: str) -> Row:
    """A number in (0, 1]."""
    return lambda value: is_number(value) and 0 < value <= 1, what


def any_number() -> Row:
    """Any finite number."""
    return is_number, "a finite number"


def flag() -> Row:
    """True or False."""
    return lambda value: isinstance(value, bool), "True or False"


def weights(what: str = "numbers of 0 or more, not all 0") -> Row:
    """A tuple of weights, or an empty one."""

    def holds(value: Any) -> bool:
        good = all(is_number(one) and one >= 0 for one in value)
        return isinstance(value, tuple) and good and (not value or any(value))

    return holds, what


def pair(low: float, high: float, what: str) -> Row:
    """Two numbers, low to high, between two others."""

    def holds(value: Any) -> bool:
        first, second = value
        return is_number(first) and is_number(second) and low < first <= second <= high

    return holds, what


def names(example: str) -> Row:
    """A tuple of at least one name."""

    def holds(value: Any) -> bool:
        return isinstance(value, tuple) and bool(value) and all(isinstance(n, str) for n in value)

    return holds, f"a tuple of names, such as {example}"

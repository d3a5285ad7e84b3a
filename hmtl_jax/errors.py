"""Errors that speak: one sentence that names what was wrong, where, and the mend."""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """A mistake in the recipe, the data or the workdir; entries print it without a traceback."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?` for the nearest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def lookup(registry: Mapping[str, T], name: str, kind: str) -> T:
    """Returns `registry[name]`; raises UserError that lists the known names if there is none."""
    if name not in registry:
        known = ", ".join(sorted(registry))
        raise UserError(f"Unknown {kind} {name!r}; known: {known}.{nearest(str(name), registry)}")
    return registry[name]


def check_weights(name: str, weights: Sequence[float]) -> None:
    """Raises UserError unless weights are numbers of 0 or more, and not all 0."""
    if weights and not (all(0 <= weight < math.inf for weight in weights) and any(weights)):
        raise UserError(
            f"{name} {tuple(weights)} must not be negative nor all 0; give numbers, at least one "
            "of them above 0."
        )

"""Errors that speak: one sentence that names what was wrong, where, and the mend."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """A mistake in the recipe, the data or the workdir; entries print it without a traceback."""


class Unlabelled(UserError):
    """Of the examples that are to be measured none has a label."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?` for the nearest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def suggestion(key: str, known: Iterable[str]) -> str:
    """The most similar dotted key, before others one of the same last name; else its neighbours."""
    group, _, name = key.rpartition(".")
    same = [k for k in known if k.rpartition(".")[2] == name]
    if same:
        alike = max(same, key=lambda k: difflib.SequenceMatcher(None, key, k).ratio())
        return f" Did you mean {alike!r}?"
    beside = [k.removeprefix(f"{group}.") for k in known if k.startswith(f"{group}.") or not group]
    if not beside:
        return nearest(key, known)
    # The last name alone: what stands before it is the same for all, and would count as alike.
    for close in difflib.get_close_matches(name, beside, n=1, cutoff=0.5):
        return f" Did you mean {key.removesuffix(name) + close!r}?"
    names = sorted({k.partition(".")[0] for k in beside})
    return f" Known{f' in {group}' if group else ''}: {', '.join(names)}."


def lookup(registry: Mapping[str, T], name: str, kind: str) -> T:
    """Returns `registry[name]`; raises UserError that lists the known names if there is none."""
    if name not in registry:
        known = ", ".join(sorted(registry))
        raise UserError(f"Unknown {kind} {name!r}; known: {known}.{nearest(str(name), registry)}")
    return registry[name]

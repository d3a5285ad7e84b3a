"""Reads the flags of the commands that take a recipe; a mistake in them is one sentence."""

import difflib
import inspect
import pathlib
import re
import runpy
import sys
from collections.abc import Iterable

from absl import flags

from hmtl_jax.errors import UserError, nearest


def parse(argv: list[str]) -> list[str]:
    """Parses absl's flags and returns what is no flag; ends the program where one is wrong."""
    try:
        check_keys(argv)
        return flags.FLAGS(argv)
    except (UserError, flags.Error) as error:
        sys.exit(f"error: {error}")


def check_keys(argv: list[str]) -> None:
    """Raises UserError for a recipe that is not there, and for an override of a key it lacks.

    Before absl does, which would end in a traceback without a suggestion.
    """
    text = "\n".join(argv)
    named = re.search(r"^--?config(?:=|\n)(.*)$", text, re.MULTILINE)
    if named is None:
        return
    path, colon, argument = named[1].partition(":")
    if not pathlib.Path(path).is_file():
        raise UserError(f"There is no recipe {path}; --config names its file, as configs/NAME.py.")
    from hmtl_jax import recipe

    found = runpy.run_path(path)
    if "get_config" not in found:
        raise UserError(f"{path} is no recipe: it lacks get_config(), which returns the keys.")
    if colon and not inspect.signature(found["get_config"]).parameters:
        raise UserError(f"The recipe {path} takes no argument; leave out ':{argument}'.")
    config = found["get_config"](*[argument] if colon else [])
    known = recipe.flat(config)
    for key in re.findall(r"^--?(?:no)?config\.([\w.]+)", text, re.MULTILINE):
        if key not in known:
            raise UserError(f"The recipe {path} has no key {key!r}.{_suggestion(key, known)}")


def _suggestion(key: str, known: Iterable[str]) -> str:
    """The most similar key, before others one of the same last name; else all that stand beside."""
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

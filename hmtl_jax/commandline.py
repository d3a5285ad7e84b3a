"""Reads the flags of the commands that take a recipe; a mistake in them is one sentence."""

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

    config = runpy.run_path(path)["get_config"](*[argument] if colon else [])
    known = recipe.flat(config)
    for key in re.findall(r"^--?(?:no)?config\.([\w.]+)", text, re.MULTILINE):
        if key not in known:
            raise UserError(f"The recipe {path} has no key {key!r}.{_suggestion(key, known)}")


def _suggestion(key: str, known: Iterable[str]) -> str:
    """The key of the same last name, or the most similar one; else all that stand beside it."""
    group, _, name = key.rpartition(".")
    for same in (k for k in known if k.rpartition(".")[2] == name):
        return f" Did you mean {same!r}?"
    beside = [k.removeprefix(f"{group}.") for k in known if k.startswith(f"{group}.") or not group]
    names = sorted({k.partition(".")[0] for k in beside})
    return nearest(key, known) or f" Known{f' in {group}' if group else ''}: {', '.join(names)}."

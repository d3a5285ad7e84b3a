"""Reads the flags of the commands that take a recipe; a mistake in them is one sentence."""

import ast
import inspect
import os
import pathlib
import re
import runpy
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from hmtl_jax.errors import UserError, suggestion

OVERRIDE = re.compile(r"^--?(?:no)?config\.([\w.]+)")


def with_huge_pages() -> None:
    """Starts the program once more, with huge pages for its memory, where GLIBC_TUNABLES is silent.

    glibc reads that before a program's first line. A step on a CPU touches hundreds of megabytes
    of fresh memory, and without them a third of a small network's time goes into page faults
    (benchmarks/RESULTS.md).
    """
    told, flag = os.environ.get("GLIBC_TUNABLES", ""), "glibc.malloc.hugetlb"
    if sys.platform == "linux" and flag not in told:
        os.environ["GLIBC_TUNABLES"] = f"{told}:{flag}=1".lstrip(":")
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def parse(argv: list[str]) -> list[str]:
    """Parses absl's flags and returns what is no flag; ends the program where one is wrong."""
    try:
        return flags.FLAGS(checked(argv))
    except (UserError, flags.Error) as error:
        sys.exit(f"error: {error}")


def checked(argv: Sequence[str]) -> list[str]:
    """The arguments, with lists such as `a,b` as Python's; before absl reads them.

    Raises UserError for a recipe that is not there or fails, for a key that it sets and nothing
    reads, and for an override of a key it lacks: absl would make a traceback of these, or nothing.
    """
    found = re.search(r"^--?config(?:=|\n)(.*)$", "\n".join(argv), re.MULTILINE)
    if found is None:
        return list(argv)
    path, colon, argument = found[1].partition(":")
    config = loaded(path, argument if colon else None)
    from hmtl_jax import recipe, rules

    rules.check_keys(config)
    known = recipe.leaves(config)
    for key in filter(None, map(_key, argv)):
        if key not in known:
            raise UserError(f"The recipe {path} has no key {key!r}.{suggestion(key, known)}")
    return _with_lists(argv, known)


def loaded(path: str, argument: str | None) -> Any:
    """What the get_config of a recipe file returns; raises UserError where there is none."""
    if not pathlib.Path(path).is_file():
        raise UserError(f"There is no recipe {path}; --config names its file, as configs/NAME.py.")
    try:
        found = runpy.run_path(path)
        if "get_config" not in found:
            raise UserError(f"{path} is no recipe: it lacks get_config(), which returns the keys.")
        if argument is None:
            return found["get_config"]()
        if not inspect.signature(found["get_config"]).parameters:
            raise UserError(f"The recipe {path} takes no argument; leave out ':{argument}'.")
        return found["get_config"](argument)
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == path]
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"The recipe {path} fails in line {(lines or ['?'])[-1]}: {said}"
        ) from error


def _key(argument: str) -> str | None:
    found = OVERRIDE.match(argument)
    return found[1] if found else None


def _with_lists(argv: Sequence[str], known: Mapping[str, Any]) -> list[str]:
    """Values of keys that hold a list, `lbp,rgb` or `0.5,1`, as `('lbp', 'rgb')` and `(0.5, 1)`."""
    out, pending = [], None
    for argument in argv:
        key, (flag, equals, value) = _key(argument), argument.partition("=")
        if pending is not None:
            out.append(as_tuple(argument))
            pending = None
        elif key and isinstance(known.get(key), tuple):
            pending = None if equals else key
            out.append(f"{flag}={as_tuple(value)}" if equals else argument)
        else:
            out.append(argument)
    return out


def as_tuple(text: str) -> str:
    """`a`, `a,b`, `(1, 2)` or `('a',)` as Python's own form of that tuple."""
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        parts = [part.strip() for part in text.strip("()[] ").split(",")]
        found = tuple(_element(part) for part in parts if part)
    return repr(tuple(found) if isinstance(found, (tuple, list)) else (found,))


def _element(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text

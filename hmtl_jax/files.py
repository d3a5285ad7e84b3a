"""Paths as users write them, and small files, whole or not at all."""

import contextlib
import csv
import io
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hmtl_jax.errors import UserError


def local(path: str | os.PathLike[str], key: str) -> pathlib.Path:
    """The path with `~` for the home folder; raises UserError for an address such as gs://….

    key: the flag or key of the recipe that holds it.
    """
    text = os.fspath(path)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        raise UserError(
            f"{key} {text!r} is an address, and hmtl_jax reads and writes folders; mount that "
            "place, as gcsfuse does with gs://, and give the folder's path."
        )
    return pathlib.Path(text).expanduser()


def named(text: str) -> tuple[str, str]:
    """`NAME=PATH` → both; no name, "", for a path alone, which may hold the sign if it is there."""
    name, equals, path = text.partition("=")
    return (name, path) if equals and not os.path.exists(text) else ("", text)


def is_alive(pid: int) -> bool:
    """Whether a process of that number runs on this machine, other than this one."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid != os.getpid()


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object that a JSON file holds; raises UserError for anything else in it."""
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}); put back a copy, or choose another --workdir."
        ) from error
    if not isinstance(found, dict):
        raise UserError(
            f"{path} holds no JSON object; put back a copy, or choose another --workdir."
        )
    return found


def write_json(path: pathlib.Path, found: Mapping[str, Any]) -> None:
    """As `write_text`."""
    write_text(path, json.dumps(found, indent=1) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """As `replacing`."""
    with replacing(path) as partial:
        partial.write_text(text)


def write_parquet(path: pathlib.Path, columns: Mapping[str, Any]) -> None:
    """Columns by name, lists or arrays, masked ones with nulls; as `replacing`."""
    import pyarrow  # here, because training starts without it
    import pyarrow.parquet

    made = {
        name: pyarrow.array(of.data, mask=of.mask) if np.ma.isMaskedArray(of) else of
        for name, of in columns.items()
    }
    with replacing(path) as partial:
        pyarrow.parquet.write_table(pyarrow.table(made), partial)


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file to write, which takes the place of `path` at the end of the block.

    Whole or not at all: a process may be killed here.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table with a header; what is None is an empty cell."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]) if rows else ["input"], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()

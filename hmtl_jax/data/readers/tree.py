"""A source of files, be it a folder or a zip: both are read by the same calls."""

import contextlib
import csv
import io
import os
import pathlib
import zipfile
import zlib
from collections.abc import Collection, Generator, Iterator
from typing import IO

from hmtl_jax import errors

DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError)


class Tree:
    """Files below a folder or in a zip, named by their path relative to `root`, with `/`."""

    def __init__(self, source: str | os.PathLike[str]):
        """Raises UserError if `source` is missing, is no zip, or is a zip that was cut short."""
        self.source = pathlib.Path(source)
        self.root = ""  # what stands before every name; see `enter`
        self._zip: zipfile.ZipFile | None = None
        if not self.source.exists():
            raise errors.UserError(f"--source {self.source} does not exist.")
        if not self.source.is_dir():
            self._zip = _open_zip(self.source)
            self._members = set(self._zip.namelist())

    def enter(self, *layouts: tuple[str, ...]) -> int:
        """Moves `root` to the outermost folder that holds all files of a layout.

        A name that ends with `/` stands for a folder. The outermost folder is the source itself
        or one of those directly in it, because a zip often wraps everything in one folder. Returns
        the index of the layout found; the UserError of none says what was expected and what is
        there.
        """
        for root in ["", *(f"{name}/" for name in self.list(""))]:
            for index, layout in enumerate(layouts):
                if all(self._stands(root + name) for name in layout):
                    self.root = root
                    return index
        wanted = " or ".join(" + ".join(layout) for layout in layouts)
        there = ", ".join(self.list("")[:8]) or "nothing"
        raise errors.UserError(f"{self.source} should hold {wanted}; found there: {there}.")

    def read(self, name: str) -> bytes:
        """Returns the bytes of a file; UserError if it is missing or damaged."""
        if not self.exists(name):
            raise errors.UserError(f"{name} is missing in {self.source}.")
        try:
            with self._open(self.root + name) as file:
                return file.read()
        except DAMAGE as error:
            raise self._damaged(name, error) from error

    def lines(self, name: str) -> Generator[str, None, None]:
        """Yields the lines of a text file, without the byte-order mark that spreadsheets write."""
        if not self.exists(name):
            raise errors.UserError(f"{name} is missing in {self.source}.")
        try:
            file = self._open(self.root + name)
            with io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
                yield from text
        except UnicodeDecodeError as error:
            raise errors.UserError(
                f"{name} in {self.source} is not UTF-8 text: {error}."
            ) from error
        except DAMAGE as error:
            raise self._damaged(name, error) from error

    def table(self, name: str, columns: Collection[str]) -> Iterator[tuple[int, dict[str, str]]]:
        """Yields (line, row) of a csv with a header that must have these columns, among others.

        It is read as it is iterated: some official files hold hundreds of megabytes of text.
        """
        # Closed here and now, also where a row is refused.
        with contextlib.closing(self.lines(name)) as lines:
            rows = csv.DictReader(lines)
            header = rows.fieldnames or ["nothing"]
            missing = [column for column in columns if column not in header]
            if missing:
                raise errors.UserError(
                    f"{name} in {self.source} lacks the column {', '.join(map(repr, missing))}; "
                    f"its first line is: {', '.join(header)[:200]}."
                )
            for line, row in enumerate(rows, start=2):
                if any(row[column] is None for column in columns):
                    raise errors.UserError(
                        f"{name}, line {line}: fewer columns than the header has."
                    )
                yield line, row

    def exists(self, name: str) -> bool:
        """Whether a file of this name is below `root`."""
        return self._exists(self.root + name)

    def list(self, folder: str) -> list[str]:
        """Returns the sorted names directly in a folder below `root` (`""`: `root` itself)."""
        inside = f"{self.root}{folder}/" if folder else self.root
        if self._zip is not None:
            below = (name[len(inside) :] for name in self._members if name.startswith(inside))
            return sorted({name.split("/")[0] for name in below} - {""})
        path = self.source / inside
        return sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []

    def _stands(self, name: str) -> bool:
        if not name.endswith("/"):
            return self._exists(name)
        if self._zip is None:
            return (self.source / name).is_dir()
        return any(member.startswith(name) for member in self._members)

    def _open(self, name: str) -> IO[bytes]:
        return self._zip.open(name) if self._zip is not None else open(self.source / name, "rb")

    def _damaged(self, name: str, error: Exception) -> errors.UserError:
        return errors.UserError(
            f"{name} in {self.source} is damaged ({error}); fetch the source again."
        )

    def _exists(self, name: str) -> bool:
        return name in self._members if self._zip is not None else (self.source / name).is_file()


def _open_zip(path: pathlib.Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise errors.UserError(
            f"{path} is neither a folder nor a whole zip ({error}); if it is a zip it was cut "
            "short: fetch it again."
        ) from error

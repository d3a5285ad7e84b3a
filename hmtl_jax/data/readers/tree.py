"""A source of files, be it a folder or a zip: both are read by the same calls."""

import contextlib
import csv
import io
import os
import pathlib
import re
import stat
import zipfile
import zlib
from collections.abc import Collection, Generator, Iterator, Sequence
from typing import IO

from hmtl_jax import errors

# A file that unpacks to more bytes, and to so many times its own, is a bomb.
MOST_BYTES, BOMB = 2**28, 100
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError)
# What systems leave beside the files of a data set: no part of it.
JUNK = re.compile(r"(^|/)(\._[^/]*|\.DS_Store|Thumbs\.db|desktop\.ini|__MACOSX(/.*)?)$")
# A cell may hold the pixels of a picture; Python's own limit is for cells of text.
csv.field_size_limit(2**24)


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
            for member in self._zip.infolist():
                _check_member(member, self.source)
            self._members = {name for name in self._zip.namelist() if not JUNK.search(name)}

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
        except PermissionError as error:
            raise self._forbidden(name) from error
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
            utf_16 = error.object[:2] in (b"\xff\xfe", b"\xfe\xff")
            raise errors.UserError(
                f"{name} in {self.source} is {'UTF-16' if utf_16 else 'not UTF-8'} text; save it "
                "as UTF-8."
            ) from error
        except PermissionError as error:
            raise self._forbidden(name) from error
        except DAMAGE as error:
            raise self._damaged(name, error) from error

    def table(self, name: str, columns: Collection[str]) -> Iterator[tuple[int, dict[str, str]]]:
        """Yields (line, row) of a csv with a header that must have these columns, among others.

        It is read as it is iterated: some official files hold hundreds of megabytes of text.
        """
        # Closed here and now, also where a row is refused.
        with contextlib.closing(self.lines(name)) as lines:
            rows = csv.DictReader(lines, strict=True)
            try:
                header = [cell.strip() for cell in rows.fieldnames or ["nothing"]]
                rows.fieldnames = header
                self._check_header(name, header, columns)
                for row in rows:
                    if not any(cell and cell.strip() for cell in row.values() if cell):
                        continue  # such as a last line of commas
                    if any(row[column] is None for column in columns):
                        raise errors.UserError(
                            f"{name}, line {rows.line_num}: fewer columns than the header has."
                        )
                    yield rows.line_num, row
            except csv.Error as error:
                raise errors.UserError(
                    f"{name} in {self.source}, line {rows.reader.line_num}, is no csv ({error}); "
                    "fetch the file again."
                ) from error

    def _check_header(self, name: str, header: list[str], columns: Collection[str]) -> None:
        missing = [column for column in columns if column not in header]
        if missing:
            other = "; it is separated by ';'" if ";" in header[0] else ""
            raise errors.UserError(
                f"{name} in {self.source} lacks the column {', '.join(map(repr, missing))}; "
                f"its first line is: {', '.join(header)[:200]}{other}."
            )
        twice = [column for column in columns if header.count(column) > 1]
        if twice:
            raise errors.UserError(
                f"{name} in {self.source} has the column {twice[0]!r} twice; keep one of them."
            )

    def exists(self, name: str) -> bool:
        """Whether a file of this name is below `root`; UserError for one that leads out of it."""
        if ".." in name.split("/") or name.startswith("/"):
            raise errors.UserError(f"The name {name!r} leads out of {self.source}; mend it there.")
        return self._exists(self.root + name)

    def find(self, name: str) -> str | None:
        """The name as the file has it, where a list writes backslashes, or .jpg for .JPG."""
        name = name.replace("\\", "/")
        stem, dot, suffix = name.rpartition(".")
        written = [name] + [f"{stem}{dot}{s}" for s in (suffix.lower(), suffix.upper()) if dot]
        return next((one for one in written if self.exists(one)), None)

    def list(self, folder: str) -> list[str]:
        """Returns the sorted names directly in a folder below `root` (`""`: `root` itself)."""
        inside = f"{self.root}{folder}/" if folder else self.root
        if self._zip is not None:
            below = (name[len(inside) :] for name in self._members if name.startswith(inside))
            return sorted({name.split("/")[0] for name in below} - {""})
        path = self.source / inside
        if not path.is_dir():
            return []
        try:
            return sorted(entry.name for entry in path.iterdir() if not JUNK.search(entry.name))
        except PermissionError as error:
            raise self._forbidden(inside.rstrip("/")) from error

    def folders(self, folder: str) -> Sequence[str]:
        """The sorted names of the folders directly in a folder."""
        inside = f"{self.root}{folder}/" if folder else self.root
        if self._zip is not None:
            below = (name[len(inside) :] for name in self._members if name.startswith(inside))
            return sorted({name.split("/")[0] for name in below if "/" in name})
        return [name for name in self.list(folder) if (self.source / inside / name).is_dir()]

    def walk(self, folder: str) -> Iterator[str]:
        """Yields the names of all files in a folder, however deep, sorted folder by folder.

        A link to a folder is followed, unless it leads to one that it lies in.
        """
        inside = f"{folder}/" if folder else ""
        if self._zip is not None:
            whole = self.root + inside
            below = (name for name in self._members if name.startswith(whole))
            yield from sorted(name[len(self.root) :] for name in below if not name.endswith("/"))
            return
        for name in self.list(folder):
            path = self.source / self.root / inside / name
            if not path.is_dir():
                yield inside + name
            elif not (path.is_symlink() and path.parent.resolve().is_relative_to(path.resolve())):
                yield from self.walk(inside + name)

    def _stands(self, name: str) -> bool:
        if not name.endswith("/"):
            return self._exists(name)
        if self._zip is None:
            return (self.source / name).is_dir()
        return any(member.startswith(name) for member in self._members)

    def _open(self, name: str) -> IO[bytes]:
        return self._zip.open(name) if self._zip is not None else open(self.source / name, "rb")

    def _forbidden(self, name: str) -> errors.UserError:
        return errors.UserError(f"{self.source / name} may not be read; mend its permissions.")

    def _damaged(self, name: str, error: Exception) -> errors.UserError:
        return errors.UserError(
            f"{name} in {self.source} is damaged ({error}); fetch the source again."
        )

    def _exists(self, name: str) -> bool:
        return name in self._members if self._zip is not None else (self.source / name).is_file()


def _check_member(member: zipfile.ZipInfo, source: pathlib.Path) -> None:
    """Refuses what no archive of pictures holds: a link, a way out, and what fills the memory."""
    where = f"{member.filename!r} in {source}"
    if stat.S_ISLNK(member.external_attr >> 16):
        raise errors.UserError(f"{where} is a link, and not a file; pack the file itself.")
    if ".." in member.filename.split("/"):
        raise errors.UserError(f"{where} leads out of the archive; pack it without such paths.")
    if member.file_size > MOST_BYTES and member.file_size > BOMB * member.compress_size:
        raise errors.UserError(
            f"{where} unpacks to {member.file_size:,} bytes from {member.compress_size:,}; if that "
            "is no mistake, unpack the archive and name its folder."
        )


def _open_zip(path: pathlib.Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise errors.UserError(
            f"{path} is neither a folder nor a whole zip ({error}); if it is a zip it was cut "
            "short: fetch it again."
        ) from error

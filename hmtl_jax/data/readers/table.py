"""One's own pictures listed in a table: csv, tsv or parquet, with any columns of labels.

A parquet file may hold the pictures themselves, as hubs publish them. What a column is, a class, a
number, yes and no, or several tags, is said by --labels or inferred, and printed.
"""

import collections
import csv
import dataclasses
import functools
import math
import os
import pathlib
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow
import pyarrow.parquet

from hmtl_jax import files
from hmtl_jax.data import detect
from hmtl_jax.data.labels import Label
from hmtl_jax.data.readers import own
from hmtl_jax.data.readers.reader import Row, Rows, Survey, Track, option
from hmtl_jax.data.readers.tree import Tree
from hmtl_jax.errors import UserError, lookup

PATHS = ("path", "file", "image", "filename", "file_name", "image_path", "img", "img_path", "name")
SPLIT = ("split", "usage", "partition", "fold", "set")
KINDS = ("class", "number", "yesno", "tags")
MISSING = ("", "nan", "na", "n/a", "none", "null", "?")
YES, NO = ("1", "true", "yes", "y", "1.0"), ("0", "false", "no", "n", "-1", "0.0", "-1.0")
# A column of text with more values than this is no class, but a name, a date or a remark.
MOST_CLASSES = 200
# A column of whole numbers with more values than this is a number, such as an age.
MOST_CODES = 20
TAG = re.compile(r"[|;,]")


@dataclasses.dataclass(frozen=True)
class Column:
    """A label: the columns that it is made of, and their kind."""

    name: str
    columns: tuple[str, ...]
    kind: str  # one of KINDS, or "" to be inferred


@dataclasses.dataclass(frozen=True)
class Table:
    """Your own pictures in a csv, tsv or parquet: a column of paths, or of the pictures' bytes.

    Labels: those of --labels, each NAME[=COLUMN[+COLUMN…]][:KIND], or every column that looks like
    one. Kinds: class; number; yesno; tags (several in a cell, such as a|b, or | for none of them;
    or a parquet's list). Columns that are joined become one vector. An empty cell is a missing
    label. A folder of parquet files named SPLIT-… has these splits.
    """

    name: ClassVar[str] = "table"
    version: ClassVar[str] = "1.0.0"
    needs_source: ClassVar[bool] = True
    obtain: ClassVar[str] = "your own pictures"

    labels: str = option("", "such as age:number,smile:class,pose=yaw+pitch+roll:number")
    images: str = option("", "the folder or zip that paths start from, if not the table's own")
    path: str = option("", "the column of paths or of bytes, if it has an unusual name")
    split: str = option("", "the column that says train, validation or test; none: not drawn so")
    group: str = option("", "a column, such as a person: rows that share its value stay together")
    image_size: int = option(
        0, "longest side of a stored image; larger ones shrink, 0 keeps all bytes"
    )
    detector: str = option(
        "", "weights of YuNet (data/detect.py): the largest face alone is stored"
    )
    align: bool = option(False, "turn each face upright by the detector's points, to image_size")
    validation: float = option(0.1, "share of train that is validation, if none is there")
    test: float = option(0.1, "share of train that is test, if none is there")
    seed: int = option(0, "another seed draws other splits")

    @property
    def label_rule(self) -> str:
        """As in `Reader`."""
        return (
            f"labels are the table's columns ({self.labels or 'inferred'}); splits are its own, or "
            f"those whose key's hash comes first (test {self.test:.0%}, validation "
            f"{self.validation:.0%}, seed {self.seed})."
        )

    def survey(self, source: str | os.PathLike[str], track: Track) -> Survey:
        """As in `Reader`."""
        sheet = _open(files.local(source, "--source"))
        path = self._path(sheet)
        split = self._column(sheet, self.split, SPLIT, "--split")
        taken = {path, split, self.group} - {""}
        if self.group:
            sheet.check((self.group,), "--group")
        columns = _parse(self.labels) if self.labels else _guess(sheet, taken)
        sheet.check([one for column in columns for one in column.columns], "--labels")
        made = [_Made(column, sheet, bool(self.labels)) for column in columns]
        made = [one for one in made if one.kind]
        left_out = collections.Counter()
        rows = self._rows(sheet, path, made, track, left_out)
        labels = {one.name: one.label for one in made}
        for one in made:
            print(one.said)
        print("In a recipe, such as configs/own.py, these are tasks:")
        own.suggest(labels, rows)
        return Survey(self._split(sheet, rows, split, labels), labels, left_out)

    def check(self, survey: Survey) -> list[str]:
        """As in `Reader`: nothing is published of it."""
        del survey
        return []

    def _path(self, sheet: "_Sheet") -> str:
        found = self._column(sheet, self.path, PATHS, "--path")
        if not found:
            raise UserError(
                f"{sheet.file} has no column of pictures among {', '.join(sheet.names)}; name it "
                "by --path."
            )
        return found

    def _column(self, sheet: "_Sheet", given: str, usual: Sequence[str], flag: str) -> str:
        if given:
            sheet.check((given,), flag)
            return given
        known = {name.lower(): name for name in sheet.names}
        return next((known[name] for name in usual if name in known), "")

    def _rows(self, sheet, path, made, track, left_out) -> list[Row]:
        """All rows, their pictures by reference."""
        values = [one.values for one in made]
        seen: set[str] = set()
        cutter = detect.cutter(self.detector, self.image_size, self.align)
        images = sheet.images(path, self.images, cutter)
        found = []
        for index, (key, image, where) in enumerate(track(images, "rows")):
            own.check_text(key, where)
            if key in seen:
                raise UserError(
                    f"{where}: {key!r} has a row already; keep one row for each picture."
                )
            seen.add(key)
            labels = {one.name: of[index] for one, of in zip(made, values, strict=True)}
            found.append(Row(key, labels, image, where))
        return found

    def _split(self, sheet, rows: list[Row], split: str, labels) -> dict[str, Rows]:
        found: dict[str, list[Row]] = {"train": rows}
        said = sheet.splits or (sheet.text(split) if split else None)
        if said is not None:
            named = own.named_splits(sorted(set(said)))
            if named is None:
                raise UserError(
                    f"{sheet.file} names the splits {', '.join(sorted(set(said)))[:100]}; they "
                    "must be train, validation and test, train among them; or pass --split with "
                    "another column."
                )
            found = collections.defaultdict(list)
            for name, row in zip(said, rows, strict=True):
                found[named[name]].append(row)
        groups = None
        if self.group:
            of = sheet.text(self.group)
            groups = {row.key: name for row, name in zip(rows, of, strict=True)}
        shares = {"test": self.test, "validation": self.validation}
        first = [name for name, label in labels.items() if label.kind == "class"][:1]
        classes = {name: labels[name].names for name in first}
        return dict(own.completed(found, shares, self.seed, classes, groups))


class _Sheet:
    """The columns of a table: names, and each as text."""

    file: pathlib.Path
    names: list[str]
    splits: list[str] | None = None  # of each row, where files say them

    def check(self, columns: Collection[str], flag: str) -> None:
        for column in columns:
            lookup(dict.fromkeys(self.names), column, f"column of {flag} in {self.file.name}:")

    def text(self, column: str) -> list[str]:
        """A cell of each row, "" where it is empty."""
        raise NotImplementedError

    def images(self, column: str, place: str, cutter: detect.Cutter) -> Iterator[tuple]:
        """Yields (key, image, where) of each row."""
        raise NotImplementedError

    def where(self, index: int) -> str:
        """What names a row in an error."""
        raise NotImplementedError


class _Text(_Sheet):
    """A csv or tsv, in memory: a million rows of ten columns are about a gigabyte."""

    def __init__(self, file: pathlib.Path):
        self.file = file
        delimiter = "\t" if file.suffix.lower() in (".tsv", ".tab") else ","
        lines = Tree(file.parent).lines(file.name)
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
        self._rows, self._lines = [], []
        try:
            self.names = [name.strip() for name in next(rows, [])]
            for cells in rows:
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(self.names):
                    raise UserError(
                        f"{file.name}, line {rows.line_num}: {len(cells)} cells instead of the "
                        f"header's {len(self.names)}."
                    )
                self._rows.append(cells)
                self._lines.append(rows.line_num)
        except csv.Error as error:
            raise UserError(f"{file}, line {rows.line_num}, is no csv ({error}).") from error
        if len(self.names) == 1 and ";" in self.names[0]:
            raise UserError(f"{file} is separated by ';'; save it with commas, or as .tsv.")
        if not self._rows:
            raise UserError(f"{file} has no row below its header.")
        twice = [name for name, n in collections.Counter(self.names).items() if n > 1]
        if twice:
            raise UserError(f"{file} has the column {twice[0]!r} twice; rename one of them.")

    def where(self, index: int) -> str:
        return f"{self.file.name}, line {self._lines[index]}"

    def text(self, column: str) -> list[str]:
        at = self.names.index(column)
        return [cells[at].strip() for cells in self._rows]

    def images(self, column: str, place: str, cutter: detect.Cutter) -> Iterator[tuple]:
        tree = Tree(files.local(place, "--images") if place else self.file.parent)
        for index, name in enumerate(self.text(column)):
            where = self.where(index)
            if not name:
                raise UserError(f"{where}: {column} is empty.")
            yield name, _by_path(tree, name, cutter), where


class _Parquet(_Sheet):
    """One parquet file or several. Labels are read at once, pictures as they are asked for."""

    def __init__(self, parts: Sequence[pathlib.Path], splits: Sequence[str] | None):
        self.file = parts[0]
        self._parts = [_opened(part) for part in parts]
        self.names = list(self._parts[0].schema_arrow.names)
        for part, opened in zip(parts, self._parts, strict=True):
            if list(opened.schema_arrow.names) != self.names:
                raise UserError(f"{part.name} and {self.file.name} have different columns.")
        sizes = [opened.metadata.num_rows for opened in self._parts]
        self._starts = np.cumsum([0, *sizes])
        if splits is not None:
            self.splits = [name for name, n in zip(splits, sizes, strict=True) for _ in range(n)]
        self._named = [part.name for part in parts]
        self._groups: dict[tuple[int, int], Any] = {}
        self._lock = threading.Lock()  # a file of pyarrow is read by one thread at a time

    def where(self, index: int) -> str:
        part = int(np.searchsorted(self._starts, index, "right")) - 1
        return f"{self._named[part]}, row {index - self._starts[part]}"

    def is_bytes(self, column: str) -> bool:
        """Whether a column holds pictures: bytes, or a struct with a field of them."""
        kind = self._parts[0].schema_arrow.field(column).type
        if pyarrow.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0
        return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)

    def text(self, column: str) -> list[str]:
        found = []
        for part in self._parts:
            for cell in part.read(columns=[column]).column(column).to_pylist():
                found.append(_cell(cell))
        return found

    def images(self, column: str, place: str, cutter: detect.Cutter) -> Iterator[tuple]:
        if not self.is_bytes(column):
            tree = Tree(files.local(place, "--images") if place else self.file.parent)
            for index, name in enumerate(self.text(column)):
                where = self.where(index)
                yield name, _by_path(tree, name, cutter), where
            return
        for part, opened in enumerate(self._parts):
            first = 0
            for group in range(opened.num_row_groups):
                for index in range(opened.metadata.row_group(group).num_rows):
                    where = f"{self._named[part]}, row {first + index}"
                    at = (part, group, index)
                    image = functools.partial(self._bytes, column, at, cutter, where)
                    yield f"{pathlib.Path(self._named[part]).stem}/{first + index}", image, where
                first += opened.metadata.row_group(group).num_rows

    def _bytes(self, column: str, at: tuple[int, int, int], cutter, where: str) -> bytes:
        """The picture of a row; a few row groups are kept, for rows are asked for in order."""
        part, group, index = at
        with self._lock:
            cells = self._groups.get((part, group))
            if cells is None:
                while len(self._groups) >= 3:
                    self._groups.pop(next(iter(self._groups)))
                cells = self._parts[part].read_row_group(group, columns=[column]).column(column)
                self._groups[part, group] = cells
        cell = cells[index].as_py()
        encoded = cell.get("bytes") if isinstance(cell, dict) else cell
        if not encoded:
            raise UserError(f"{where}: {column} holds no picture.")
        return cutter.stored(encoded)


def _open(source: pathlib.Path) -> _Sheet:
    if source.is_dir():
        return _folder(source)
    if not source.is_file():
        raise UserError(f"--source {source} does not exist.")
    suffix = source.suffix.lower()
    if suffix == ".parquet":
        return _Parquet([source], None)
    if suffix in (".csv", ".tsv", ".tab", ".txt"):
        return _Text(source)
    raise UserError(f"--source {source} is no table; give a .csv, .tsv or .parquet.")


def _folder(source: pathlib.Path) -> _Sheet:
    """Parquet files side by side, named SPLIT-00000-of-00002.parquet, as hubs publish them."""
    for folder in (source, source / "data"):
        parts = sorted(folder.glob("*.parquet"))
        if parts:
            names = [re.split(r"[-_.]", part.name)[0] for part in parts]
            known = own.named_splits(sorted(set(names))) is not None
            return _Parquet(parts, names if known else None)
    raise UserError(f"--source {source} holds no parquet file; name the csv or tsv itself.")


def _opened(part: pathlib.Path) -> Any:
    try:
        return pyarrow.parquet.ParquetFile(part)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{part} is damaged, or no parquet file; fetch it again.") from error


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, (list, tuple)):  # tags; an empty list is none of them, and not missing
        return "|" + "|".join(map(str, value))
    return str(value).strip()


def _by_path(tree: Tree, name: str, cutter: detect.Cutter) -> Callable[[], bytes]:
    """A picture that the table names by its path; it may be an absolute one."""
    if pathlib.PurePath(name).is_absolute():
        file = pathlib.Path(name)
        return functools.partial(own.stored, Tree(file.parent), file.name, cutter)
    name = name.replace("\\", "/").removeprefix("./")
    return functools.partial(own.stored, tree, tree.find(name) or name, cutter)


def _parse(text: str) -> list[Column]:
    """`age:number,pose=yaw+pitch+roll:number` → its columns."""
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\w+)(?:=([^:]+))?(?::(\w+))?\s*", part)
        if not match:
            raise UserError(
                f"--labels has {part!r}; write NAME, NAME:KIND or NAME=COLUMN+COLUMN:KIND, with "
                "commas between."
            )
        name, columns, kind = match.groups()
        if kind:
            lookup(dict.fromkeys(KINDS), kind, f"kind of {name} in --labels:")
        names = tuple(one.strip() for one in (columns or name).split("+"))
        found.append(Column(name, names, kind or ""))
    return found


def _guess(sheet: _Sheet, taken: Collection[str]) -> list[Column]:
    """A label of each other column; its kind is told later, and some have none."""
    names = [name for name in sheet.names if name not in taken]
    if isinstance(sheet, _Parquet):
        names = [name for name in names if not sheet.is_bytes(name)]
    return [Column(re.sub(r"\W+", "_", name).strip("_"), (name,), "") for name in names]


class _Made:
    """A label as it is stored: what it is, and its value of each row."""

    def __init__(self, column: Column, sheet: _Sheet, asked: bool):
        self.name, self._sheet, self._column = column.name, sheet, column
        texts = [sheet.text(name) for name in column.columns]
        known = [[None if cell.lower() in MISSING else cell for cell in cells] for cells in texts]
        self.kind = column.kind or _kind(known)
        if not self.kind and asked:
            raise UserError(
                f"{column.name} has too many values to be a class; say {column.name}:class or "
                f"another of {', '.join(KINDS)}."
            )
        if len(known) > 1 and self.kind in ("class", "tags"):
            raise UserError(f"{column.name} joins columns; its kind must be number or yesno.")
        make: Mapping[str, Callable] = {
            "class": self._class, "number": self._number, "yesno": self._yesno, "tags": self._tags,
        }  # fmt: skip
        if not self.kind:
            texts = len(set(known[0]))
            print(f"left out: {column.name}, with {texts:,} texts in {len(known[0]):,} rows")
            return
        self.label, self.values = make[self.kind](known)
        lacking = sum(all(cells[row] is None for cells in known) for row in range(len(known[0])))
        names = f" ({', '.join(self.label.names)[:80]})" if self.label.names else ""
        gone = f", {lacking:,} missing" if lacking else ""
        self.said = f"label {self.name}: {self.kind}{names}{gone}"

    def _class(self, known: list[list]) -> tuple[Label, Any]:
        (cells,) = known
        names = sorted({cell for cell in cells if cell is not None}, key=_in_order)
        if not names:
            raise UserError(f"{self.name} is empty in every row; leave it out of --labels.")
        index = {name: number for number, name in enumerate(names)} | {None: -1}
        return Label("class", tuple(names)), [index[cell] for cell in cells]

    def _number(self, known: list[list]) -> tuple[Label, Any]:
        values = np.array(
            [[self._float(cell, row) for row, cell in enumerate(cells)] for cells in known],
            np.float32,
        )
        return self._shaped("float", values)

    def _float(self, cell: str | None, row: int) -> float:
        if cell is None:
            return math.nan
        try:
            value = float(cell)
        except ValueError:
            value = math.inf
        if math.isinf(value):
            date = re.search(r"[a-z]{3}", cell, re.I) and re.search(r"\d", cell)
            hint = "; a spreadsheet may have made a date of it" if date else ""
            raise UserError(f"{self._sheet.where(row)}: {self.name} is {cell!r}, no number{hint}.")
        return value

    def _yesno(self, known: list[list]) -> tuple[Label, Any]:
        meaning = {None: -1} | dict.fromkeys(YES, 1) | dict.fromkeys(NO, 0)
        values = np.full((len(known), len(known[0])), -1, np.int32)
        for column, cells in enumerate(known):
            for row, cell in enumerate(cells):
                low = None if cell is None else cell.lower()
                if low not in meaning:
                    raise UserError(
                        f"{self._sheet.where(row)}: {self.name} is {cell!r}, neither yes nor no."
                    )
                values[column, row] = meaning[low]
        if len(values) == 1:
            return Label("class", ("no", "yes")), values[0]
        return self._shaped("int", values)

    def _shaped(self, kind: str, values: np.ndarray) -> tuple[Label, Any]:
        if len(values) == 1:
            return Label(kind), values[0]
        return Label(kind, self._column.columns, (len(values),)), np.ascontiguousarray(values.T)

    def _tags(self, known: list[list]) -> tuple[Label, Any]:
        (cells,) = known
        sets = [_tags_of(cell) for cell in cells]
        names = sorted(set().union(*(tags for tags in sets if tags is not None)), key=_in_order)
        if not names:
            raise UserError(f"{self.name} is empty in every row; leave it out of --labels.")
        missing = [-1] * len(names)
        rows = [missing if of is None else [name in of for name in names] for of in sets]
        values = np.array(rows, np.int32)
        return Label("int", tuple(names), (len(names),)), values


def _tags_of(cell: str | None) -> set[str] | None:
    return None if cell is None else {one.strip() for one in TAG.split(cell)} - {""}


def _kind(known: list[list]) -> str:
    """What columns look like; "" if like no label."""
    cells = [cell for column in known for cell in column if cell is not None]
    values = set(cells)
    if not values:
        return ""
    if len(known) == 1 and any("|" in cell for cell in values):
        return "tags"
    if all(re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", cell, re.I) for cell in values):
        whole = all(re.fullmatch(r"[+-]?\d+", cell) for cell in values)
        if whole and len(known) == 1 and len(values) <= min(MOST_CODES, len(cells) // 2):
            return "class"
        return "number"
    if len(known) > 1:
        low = {cell.lower() for cell in values}
        return "yesno" if low <= {*YES, *NO} else ""
    if len(values) <= min(MOST_CLASSES, max(2, len(cells) // 2)):
        return "class"
    return ""


def _in_order(name: str) -> tuple:
    """2 before 10, and then by the letters."""
    number = re.match(r"\d+", name)
    return (0, int(number[0]), name) if number else (1, 0, name)

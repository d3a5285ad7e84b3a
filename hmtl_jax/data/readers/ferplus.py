"""FER+ (Barsoum et al. 2016): ten crowd votes for every 48x48 grey face of FER2013."""

import collections
import csv
import dataclasses
import functools
import itertools
import os
import re
from collections.abc import Callable, Iterator
from typing import ClassVar

import cv2
import numpy as np

from hmtl_jax import errors
from hmtl_jax.data.labels import Label
from hmtl_jax.data.readers.reader import Row, Survey, Track, option
from hmtl_jax.data.readers.tree import Tree

EXPRESSIONS = (
    "neutral",
    "happiness",
    "surprise",
    "sadness",
    "anger",
    "disgust",
    "fear",
    "contempt",
)
VOTES = (*EXPRESSIONS, "unknown", "NF")  # NF: not a face
# FER2013 itself under either of the names that it goes by, with its columns in whatever order.
PIXELS = ("fer2013.csv", "icml_face_data.csv")

# Folder of the official tool's output, and `Usage` in the two csv files.
SPLITS = {
    "train": ("FER2013Train", "Training"),
    "validation": ("FER2013Valid", "PublicTest"),
    "test": ("FER2013Test", "PrivateTest"),
}
# What the majority rule keeps of train, validation and test, and the classes of train. Both label
# files are official, yet their votes differ in 1,601 rows. Counted from the files as published;
# a name that occurs twice counts once.
PUBLISHED = {
    "label.csv": ((25_045, 3_191, 3_137), (8_733, 7_284, 3_136, 3_022, 2_098, 116, 536, 120)),
    "fer2013new.csv": ((25_057, 3_199, 3_153), (8_739, 7_287, 3_149, 3_013, 2_099, 119, 532, 119)),
}

LABELS = {
    "votes": Label("int", VOTES, (len(VOTES),)),
    "expression": Label("class", EXPRESSIONS),
    "expression_soft": Label("float", EXPRESSIONS, (len(EXPRESSIONS),)),
}

RULES = {
    "majority": "expression = the emotion with more than half of the votes; rows without are out",
    "probability": "rows whose eight emotions hold more than half of the votes stay; "
    "expression = the emotion with more than half of all votes, else -1",
}


@dataclasses.dataclass(frozen=True)
class FerPlus:
    """Folders `FER2013{Train,Valid,Test}` with label.csv and png, or the two official csv files.

    Labels: votes int32[10], expression (-1: no majority), expression_soft float32[8] (votes over
    the eight emotions, without single votes, summing to 1).
    """

    name: ClassVar[str] = "ferplus"
    version: ClassVar[str] = "1.0.0"
    needs_source: ClassVar[bool] = True
    obtain: ClassVar[str] = (
        "fer2013.csv (see fer2013) and fer2013new.csv of Microsoft's FERPlus repository, or what "
        "that one's tool makes of them; the labels under MIT"
    )

    rule: str = option("majority", "how ten votes become a label", tuple(RULES))

    @property
    def label_rule(self) -> str:
        """As in `Reader`. Single votes count as slips, as in the authors' tool."""
        return (
            f"{self.rule}: single votes are dropped; {RULES[self.rule]}; unknown and NF are no "
            "emotions; expression_soft = the emotions' votes without single ones, normalised."
        )

    def survey(self, source: str | os.PathLike[str], track: Track) -> Survey:
        """As in `Reader`."""
        del track  # all labels are read in a second
        tree = Tree(source)
        folders = tuple(f"{folder}/label.csv" for folder, _ in SPLITS.values())
        layout = tree.enter(folders, *(("fer2013new.csv", file) for file in PIXELS))
        entries = _from_folders(tree) if layout == 0 else _from_csv(tree, PIXELS[layout - 1])
        return self._rows(entries)

    def _rows(self, entries: Iterator["_Entry"]) -> Survey:
        splits: dict[str, dict[str, Row]] = {split: {} for split in SPLITS}
        left_out = collections.Counter()
        for entry in entries:
            rows, key = splits[entry.split], entry.name.removesuffix(".png")
            if not key:
                left_out["rows without an image name"] += 1
            elif key in rows:  # four in fer2013new.csv; the first one stays
                left_out["rows of a name seen before"] += 1
            else:
                labels = label(entry.votes, self.rule)
                rows[key] = Row(key, labels, entry.image, entry.where)
                left_out[f"rows by rule {self.rule}"] += labels is None
        found = {split: list(rows.values()) for split, rows in splits.items()}
        return Survey(found, LABELS, left_out)

    def check(self, survey: Survey) -> list[str]:
        """The published counts are known for the majority rule alone."""
        if self.rule != "majority":
            return []
        usable = {
            split: [row.labels["expression"] for row in rows if row.labels]
            for split, rows in survey.splits.items()
        }
        return min((_mismatches(usable, *published) for published in PUBLISHED.values()), key=len)


def _mismatches(usable: dict[str, list[int]], sizes, train_classes) -> list[str]:
    wrong = [
        f"{split} has {len(usable[split]):,} usable rows instead of {size:,}"
        for split, size in zip(SPLITS, sizes, strict=True)
        if len(usable[split]) != size
    ]
    if wrong:
        return wrong
    classes = np.bincount(np.array(usable["train"], int), minlength=len(EXPRESSIONS))
    return [
        f"train has {n:,} of {name} instead of {size:,}"
        for name, n, size in zip(EXPRESSIONS, classes, train_classes, strict=True)
        if n != size
    ]


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One line of a label file."""

    split: str
    name: str
    votes: np.ndarray
    image: Callable[[], bytes]
    where: str


def label(votes: np.ndarray, rule: str) -> dict | None:
    """Returns the labels of one row under a rule of RULES; None if the rule leaves it out.

    Args:
      votes: int [10] in the order of VOTES.
      rule: a key of RULES.
    """
    counted = np.where(votes > 1, votes, 0)
    emotions = counted[: len(EXPRESSIONS)]
    winner = int(np.argmax(counted))
    clear = winner < len(EXPRESSIONS) and 2 * counted[winner] > counted.sum()
    usable = clear if rule == "majority" else 2 * emotions.sum() > counted.sum()
    if not usable:
        return None
    return {
        "votes": votes.astype(np.int32),
        "expression": winner if clear else -1,
        "expression_soft": (emotions / emotions.sum()).astype(np.float32),
    }


def _from_folders(tree: Tree) -> Iterator[_Entry]:
    """The official tool's output; its label.csv has no header: name, box, ten vote counts."""
    for split, (folder, _) in SPLITS.items():
        path = f"{folder}/label.csv"
        for line, cells in enumerate(csv.reader(tree.lines(path)), start=1):
            where = f"{path}, line {line}"
            if len(cells) != 2 + len(VOTES):
                raise errors.UserError(
                    f"{where}: {len(cells)} columns instead of {2 + len(VOTES)} (image name, "
                    f"box, and the votes for {', '.join(VOTES)})."
                )
            name, votes = cells[0].strip(), _votes(cells[2:], where)
            image = functools.partial(
                tree.read, tree.find(f"{folder}/{name}") or f"{folder}/{name}"
            )
            yield _Entry(split, name, votes, image, where)


def _from_csv(tree: Tree, file: str) -> Iterator[_Entry]:
    """`file` holds the pixels of row i, fer2013new.csv its name and votes."""
    names = {usage: split for split, (_, usage) in SPLITS.items()}
    voted = tree.table("fer2013new.csv", ("Usage", "Image name", *VOTES))
    drawn = tree.table(file, ("pixels", "Usage"))
    for (line, row), (drawn_line, pixels) in _in_step(voted, drawn, file, names):
        where = f"fer2013new.csv, line {line}"
        usage, drawn_usage = row["Usage"].strip(), pixels["Usage"].strip()
        if usage != drawn_usage:
            raise errors.UserError(f"{where}: Usage is {usage!r}, but {drawn_usage!r} in {file}.")
        split = errors.lookup(names, usage, f"Usage in {where}:")
        votes = _votes([row[name] for name in VOTES], where)
        image = functools.partial(encode, pixels["pixels"], f"{file}, line {drawn_line}")
        yield _Entry(split, row["Image name"].strip(), votes, image, where)


def _in_step(voted: Iterator, drawn: Iterator, file: str, usages) -> Iterator[tuple]:
    """Pairs the rows of both csv files, which describe the same images in the same order.

    Behind the last pair, rows of no known usage are nobody's image.
    """
    for voted_row, drawn_row in itertools.zip_longest(voted, drawn):
        if voted_row is None or drawn_row is None:
            left = drawn_row or voted_row
            if left and left[1]["Usage"].strip() not in usages:
                continue
            raise errors.UserError(
                f"fer2013new.csv and {file} have different numbers of rows, so one of them is cut "
                "short; both should have 35,887."
            )
        yield voted_row, drawn_row


def _votes(cells: list[str], where: str) -> np.ndarray:
    votes = []
    for name, cell in zip(VOTES, cells, strict=True):
        whole = re.fullmatch(r"(\d+)(\.0*)?", cell.strip())  # a spreadsheet makes 10.0 of 10
        if not whole:
            raise errors.UserError(f"{where}: the vote for {name} is {cell!r}, no whole number.")
        votes.append(int(whole[1]))
        if votes[-1] > 10:  # ten people voted
            raise errors.UserError(f"{where}: the vote for {name} is {cell}, out of range 0 to 10.")
    return np.array(votes, np.int32)


def encode(pixels: str, where: str) -> bytes:
    """2,304 numbers as text -> a lossless 48x48 grey PNG."""
    try:
        values = np.array(pixels.split(), np.int64)
    except ValueError as error:
        raise errors.UserError(f"{where}: a pixel is not a number ({error}).") from error
    if values.size != 48 * 48 or values.min() < 0 or values.max() > 255:
        raise errors.UserError(
            f"{where}: {values.size} pixels instead of 2304 numbers from 0 to 255."
        )
    return cv2.imencode(".png", values.reshape(48, 48).astype(np.uint8))[1].tobytes()

"""CelebA (Liu et al. 2015): forty attributes of 202,599 aligned faces of celebrities."""

import collections
import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from hmtl_jax import errors
from hmtl_jax.data import detect
from hmtl_jax.data.labels import Label
from hmtl_jax.data.readers import own
from hmtl_jax.data.readers.held_out import digest
from hmtl_jax.data.readers.reader import Row, Survey, Track, option
from hmtl_jax.data.readers.tree import Tree

SPLITS = ("train", "validation", "test")  # 0, 1, 2 of the partition
# Side by side, as in the authors' drive, or as csv files, as they circulate.
LISTS = (
    ("list_attr_celeba.txt", "list_eval_partition.txt", "identity_CelebA.txt"),
    ("Anno/list_attr_celeba.txt", "Eval/list_eval_partition.txt", "Anno/identity_CelebA.txt"),
    ("list_attr_celeba.csv", "list_eval_partition.csv", "identity_CelebA.txt"),
)
IMAGES = (
    "img_align_celeba/img_align_celeba",
    "img_align_celeba",
    "Img/img_align_celeba",
)
ZIPS = ("img_align_celeba.zip", "Img/img_align_celeba.zip")
PUBLISHED = {"train": 162_770, "validation": 19_867, "test": 19_962}
ATTRIBUTES = 40


@dataclasses.dataclass(frozen=True)
class CelebA:
    """The folder of the aligned faces (or their zip) and the lists of attributes and partition.

    Labels: attributes int32[40] (1 or 0), gender (that of the attribute Male), and identity int32
    where identity_CelebA.txt is there.
    """

    name: ClassVar[str] = "celeba"
    version: ClassVar[str] = "1.0.0"
    needs_source: ClassVar[bool] = True
    obtain: ClassVar[str] = (
        "img_align_celeba.zip, list_attr_celeba.txt, list_eval_partition.txt, and for subsets "
        "identity_CelebA.txt, in one folder; for research, non-commercial"
    )

    image_size: int = option(0, "longest side of a stored image; larger ones shrink, 0 keeps all")
    people: float = option(1.0, "share of each split's people, all faces of each; needs the file")
    seed: int = option(0, "another seed takes other people")

    @property
    def label_rule(self) -> str:
        """As in `Reader`."""
        some = f"; {self.people:.2%} of the people, drawn by seed {self.seed}"
        return f"official attributes and partition{some if self.people < 1 else ''}."

    def survey(self, source: str | os.PathLike[str], track: Track) -> Survey:
        """As in `Reader`."""
        if not 0 < self.people <= 1:
            raise errors.UserError(f"--people {self.people} is no share above 0 and up to 1.")
        tree, left_out = Tree(source), collections.Counter()
        attributes, partition, identity = LISTS[tree.enter(*(pair[:2] for pair in LISTS))]
        place, folder = _images(tree)
        parts = _numbers(tree, partition, range(len(SPLITS)))
        people = _numbers(tree, identity, None) if tree.exists(identity) else {}
        if self.people < 1 and not people:
            raise errors.UserError(f"--people needs {identity}, which {tree.source} lacks.")
        chosen = self._chosen(parts, people)
        lines, cutter = _table(tree, attributes), detect.cutter("", self.image_size)
        _, names = next(lines, ("", []))
        if "Male" not in names:
            raise errors.UserError(
                f"{attributes} does not name its attributes, Male among them; fetch it again."
            )
        label = {
            "attributes": Label("int", tuple(names), (len(names),)),
            "gender": Label("class", ("male", "female")),
        } | ({"identity": Label("int")} if people else {})
        splits: dict[str, list[Row]] = {split: [] for split in SPLITS}
        for where, (image, *cells) in track(lines, f"{attributes} labels"):
            if image not in parts:
                raise errors.UserError(f"{where}: {image} is not in {partition}.")
            values = _values(cells, names, where)
            if people and image not in people:
                raise errors.UserError(f"{where}: {image} is not in {identity}.")
            if chosen is not None and people[image] not in chosen:
                left_out["faces of other people"] += 1
                continue
            labels: dict[str, Any] = {"attributes": values}
            labels["gender"] = 1 - values[names.index("Male")]
            labels |= {"identity": people[image]} if people else {}
            path = f"{folder}/{image}" if folder else image
            read = functools.partial(own.stored, place, place.find(path) or path, cutter)
            row = Row(image.removesuffix(".jpg"), labels, read, where)
            splits[SPLITS[parts[image]]].append(row)
        return Survey({split: rows for split, rows in splits.items() if rows}, label, left_out)

    def check(self, survey: Survey) -> list[str]:
        """The published counts are those of all people."""
        if self.people < 1:
            return []
        found = {split: len(survey.splits.get(split, ())) for split in SPLITS}
        wrong = [
            f"{split} has {found[split]:,} faces instead of {size:,}"
            for split, size in PUBLISHED.items()
            if found[split] != size
        ]
        length = survey.labels["attributes"].shape[0]
        if length != ATTRIBUTES:
            wrong.append(f"there are {length} attributes instead of {ATTRIBUTES}")
        return wrong

    def _chosen(self, parts: dict[str, int], people: dict[str, int]) -> set[int] | None:
        """The people to keep: of each split that share, rounded up; None: all of them."""
        if self.people == 1:
            return None
        of_split = collections.defaultdict(set)
        for image, person in people.items():
            if image in parts:
                of_split[parts[image]].add(person)
        chosen = set()
        for members in of_split.values():
            ordered = sorted(members, key=lambda person: digest(self.seed, str(person)))
            chosen |= set(ordered[: int(np.ceil(self.people * len(ordered)))])
        return chosen


def _images(tree: Tree) -> tuple[Tree, str]:
    """Where the faces are: a folder of the source, or a zip that lies in it."""
    for folder in IMAGES:
        if any(name.lower().endswith(".jpg") for name in tree.list(folder)):
            return tree, folder
    for name in ZIPS:
        if tree.exists(name) and tree.source.is_dir():
            inner = Tree(tree.source / tree.root / name)
            return inner, "img_align_celeba" if inner.list("img_align_celeba") else ""
    raise errors.UserError(
        f"{tree.source} should hold the faces, in img_align_celeba or in img_align_celeba.zip; "
        f"found there: {', '.join(tree.list('')[:8]) or 'nothing'}."
    )


def _table(tree: Tree, path: str) -> Iterator[tuple[str, list[str]]]:
    """Yields (where, words): first the attributes' names, then a face's name and its values."""
    comma = path.endswith(".csv")
    lines = enumerate(tree.lines(path), start=1)
    if not comma:
        next(lines, None)  # how many there are
    for line, text in lines:
        words = [word.strip() for word in text.split(",")] if comma else text.split()
        if not any(words):
            continue
        if words[0] == "image_id":
            words = words[1:]
        yield f"{path}, line {line}", words


def _numbers(tree: Tree, path: str, known: range | None) -> dict[str, int]:
    """A whole number by the name of each face."""
    found = {}
    for line, text in enumerate(tree.lines(path), start=1):
        words = text.replace(",", " ").split()
        if not words or words[0] == "image_id":
            continue
        if len(words) != 2 or not words[1].isdecimal() or (known and int(words[1]) not in known):
            what = f"a number from 0 to {known[-1]}" if known else "a number"
            raise errors.UserError(
                f"{path}, line {line}: {text.strip()!r} is not a face's name and {what}."
            )
        found[words[0]] = int(words[1])
    return found


def _values(cells: list[str], names: list[str], where: str) -> np.ndarray:
    if len(cells) != len(names):
        raise errors.UserError(f"{where}: {len(cells)} values instead of {len(names)}.")
    known = {"1": 1, "-1": 0}  # -1 says no
    found = [
        errors.lookup(known, cell, f"{name} in {where}:")
        for cell, name in zip(cells, names, strict=True)
    ]
    return np.array(found, np.int32)

"""RAF-DB (Li et al. 2017): seven basic expressions of aligned faces from the web."""

import collections
import csv
import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import ClassVar

from hmtl_jax import errors
from hmtl_jax.data import detect
from hmtl_jax.data.labels import Label
from hmtl_jax.data.readers import own
from hmtl_jax.data.readers.held_out import check_share, held_out
from hmtl_jax.data.readers.reader import Row, Survey, Track, option
from hmtl_jax.data.readers.tree import Tree

# Officially 1 to 7.
EXPRESSIONS = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
LIST = "EmoLabel/list_patition_label.txt"  # sic
IMAGES = "Image/aligned"
ATTRIBUTES = "Annotation/manual"
# Of each attribute its line in a face's own file, behind five of landmarks.
GROUPS = {
    "gender": Label("class", ("male", "female")),  # 2, unsure, is missing
    "race": Label("class", ("Caucasian", "African-American", "Asian")),
    "age_group": Label("class", ("0-3", "4-19", "20-39", "40-69", "70+")),
}
PUBLISHED = {
    "train": (1_290, 281, 717, 4_772, 1_982, 705, 2_524),
    "test": (329, 74, 160, 1_185, 478, 162, 680),
}


@dataclasses.dataclass(frozen=True)
class RafDb:
    """The folder `basic`, or a zip of it: the aligned faces of 100x100 pixels and their list.

    Labels: expression; and gender, race, age_group where Annotation/manual is there too. There is
    no official validation set: it is drawn from train.
    """

    name: ClassVar[str] = "rafdb"
    version: ClassVar[str] = "1.0.0"
    needs_source: ClassVar[bool] = True
    obtain: ClassVar[str] = (
        "Image/aligned, EmoLabel and, for groups, Annotation/manual, as the authors hand them out "
        "on a signed request; for research"
    )

    validation: float = option(0.1, "share of each class of train held out as validation")
    image_size: int = option(0, "longest side of a stored image; larger ones shrink, 0 keeps all")
    seed: int = option(0, "another seed holds out other images")

    @property
    def label_rule(self) -> str:
        """As in `Reader`."""
        return (
            f"official labels and test set; validation is {self.validation:.0%} of each class of "
            f"train, those whose key's hash comes first (seed {self.seed})."
        )

    def survey(self, source: str | os.PathLike[str], track: Track) -> Survey:
        """As in `Reader`."""
        check_share(self.validation)
        tree, left_out = Tree(source), collections.Counter()
        tree.enter((LIST, f"{IMAGES}/"))
        groups = GROUPS if tree.list(ATTRIBUTES) else {}
        cutter = detect.cutter("", self.image_size)
        splits: dict[str, list[Row]] = {"train": [], "test": []}
        for split, row in track(_rows(tree, groups, cutter, left_out), f"{LIST} labels"):
            splits[split].append(row)
        splits["train"], splits["validation"] = held_out(
            splits["train"], self.validation, self.seed, ("expression",)
        )
        labels = {"expression": Label("class", EXPRESSIONS)} | groups
        return Survey({split: rows for split, rows in splits.items() if rows}, labels, left_out)

    def check(self, survey: Survey) -> list[str]:
        """Train and validation are counted together, for they were one."""
        wrong = []
        for split, published in PUBLISHED.items():
            parts = ("train", "validation") if split == "train" else (split,)
            rows = [row for part in parts for row in survey.splits.get(part, ())]
            found = collections.Counter(row.labels["expression"] for row in rows if row.labels)
            for index, size in enumerate(published):
                if found[index] != size:
                    wrong.append(
                        f"{split} has {found[index]:,} of {EXPRESSIONS[index]} instead of {size:,}"
                    )
        return wrong


def _rows(tree: Tree, groups, cutter, left_out) -> Iterator[tuple[str, Row]]:
    seen = set()
    lines = csv.reader(tree.lines(LIST), delimiter=" ", skipinitialspace=True)
    for line, cells in enumerate(lines, start=1):
        where, cells = f"{LIST}, line {line}", [cell for cell in cells if cell]
        if not cells:
            continue
        if len(cells) != 2:
            raise errors.UserError(f"{where}: {len(cells)} words instead of a name and a number.")
        key = cells[0].removesuffix(".jpg").removesuffix("_aligned")
        split = key.split("_")[0]
        if split not in ("train", "test"):
            raise errors.UserError(f"{where}: {cells[0]!r} begins with neither train nor test.")
        if key in seen:
            left_out["rows of a name seen before"] += 1
            continue
        seen.add(key)
        numbers = {str(index + 1): index for index in range(len(EXPRESSIONS))}
        labels = {"expression": errors.lookup(numbers, cells[1], f"expression in {where}:")}
        path = f"{IMAGES}/{key}_aligned.jpg"
        image = functools.partial(own.stored, tree, tree.find(path) or path, cutter)
        yield split, Row(key, labels | _groups(tree, key, groups), image, where)


def _groups(tree: Tree, key: str, groups) -> dict[str, int]:
    """Gender, race and age group of a face; -1 where the annotators were unsure."""
    if not groups:
        return {}
    path = f"{ATTRIBUTES}/{key}_manu_attri.txt"
    lines = [line.strip() for line in tree.lines(path) if line.strip()]
    if len(lines) != 8:
        raise errors.UserError(
            f"{path} has {len(lines)} lines instead of 8: five landmarks, gender, race and age."
        )
    found = {}
    for cell, (name, label) in zip(lines[5:], groups.items(), strict=True):
        numbers = {str(index): index for index in range(len(label.names))}
        numbers |= {"2": -1} if name == "gender" else {}
        found[name] = errors.lookup(numbers, cell, f"{name} in {path}:")
    return found

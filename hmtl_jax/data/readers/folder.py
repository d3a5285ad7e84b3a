"""One's own pictures, a folder for each class, with or without a folder for each split."""

import collections
import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import ClassVar

from hmtl_jax.data import detect
from hmtl_jax.data.labels import Label
from hmtl_jax.data.readers import own
from hmtl_jax.data.readers.reader import Row, Survey, Track, option
from hmtl_jax.data.readers.tree import Tree
from hmtl_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Folder:
    """Your own pictures, a folder for each class: SOURCE/CLASS/… or SOURCE/train/CLASS/….

    Labels: one of kind class, whose names are those of the folders, sorted. Pictures may lie deeper
    in a class's folder. Validation and test are drawn from train where they are not there.
    """

    name: ClassVar[str] = "folder"
    version: ClassVar[str] = "1.0.0"
    needs_source: ClassVar[bool] = True
    obtain: ClassVar[str] = "your own pictures"

    label: str = option("label", "what the class is called in recipes, such as expression")
    image_size: int = option(
        0, "longest side of a stored image; larger ones shrink, 0 keeps all bytes"
    )
    detector: str = option(
        "", "weights of YuNet (data/detect.py): the largest face alone is stored"
    )
    align: bool = option(False, "turn each face upright by the detector's points, to image_size")
    validation: float = option(
        0.1, "share of each class of train that is validation, if none is there"
    )
    test: float = option(0.1, "share of each class of train that is test, if none is there")
    seed: int = option(0, "another seed draws other splits")

    @property
    def label_rule(self) -> str:
        """As in `Reader`."""
        return (
            f"{self.label} is the folder's name; splits are the source's own, and where it has "
            "none those whose key's hash comes first in each class "
            f"(test {self.test:.0%}, validation {self.validation:.0%}, seed {self.seed})."
        )

    def survey(self, source: str | os.PathLike[str], track: Track) -> Survey:
        """As in `Reader`."""
        tree, left_out = Tree(source), collections.Counter()
        cutter = detect.cutter(self.detector, self.image_size, self.align)
        if tree.source.is_file() or len(tree.folders("")) == 1:  # a zip often wraps all in one
            top = tree.folders("")
            tree.root = f"{top[0]}/" if len(top) == 1 and tree.folders(top[0]) else ""
        splits = own.named_splits(tree.folders("")) if tree.folders("") else None
        places = {f"{one}/": split for one, split in splits.items()} if splits else {"": "train"}
        classes = sorted({one for place in places for one in tree.folders(place.rstrip("/"))})
        if not classes:
            raise UserError(
                f"{source} should hold a folder for each class, or train, validation and test with "
                f"these in them; found there: {', '.join(tree.list('')[:8]) or 'nothing'}."
            )
        labels = {self.label: Label("class", tuple(classes))}
        rows: dict[str, list[Row]] = collections.defaultdict(list)
        for place, split in places.items():
            for name in tree.list(place.rstrip("/")):
                if name not in classes:
                    left_out["files outside of a class's folder"] += 1
            for index, name in enumerate(classes):
                walk = self._rows(tree, f"{place}{name}", len(place), index, cutter, left_out)
                rows[split].extend(track(walk, f"{place}{name}"))
        print("In a recipe, such as configs/own.py, this is a task:")
        own.suggest(labels, ())
        shares, names = {"test": self.test, "validation": self.validation}, {self.label: classes}
        return Survey(own.completed(rows, shares, self.seed, names), labels, left_out)

    def check(self, survey: Survey) -> list[str]:
        """As in `Reader`: nothing is published of it."""
        del survey
        return []

    def _rows(
        self, tree: Tree, folder: str, place: int, index: int, cutter, left_out
    ) -> Iterator[Row]:
        for path in tree.walk(folder):
            own.check_text(path, str(tree.source))
            if not own.is_picture(path):
                left_out["files that are no pictures by their name"] += 1
                continue
            image = functools.partial(own.stored, tree, path, cutter)
            yield Row(path[place:], {self.label: index}, image, path)

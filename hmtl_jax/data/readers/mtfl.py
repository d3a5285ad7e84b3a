"""MTFL (Zhang et al. 2014): gender, smile, glasses and pose of 12,995 faces from the web.

The lists hold a picture and five landmarks a line; the face is cut out of the picture by these.
"""

import collections
import dataclasses
import functools
import math
import os
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from hmtl_jax import errors
from hmtl_jax.data import decode, faces
from hmtl_jax.data.labels import Label
from hmtl_jax.data.readers.held_out import check_share, held_out
from hmtl_jax.data.readers.reader import Row, Survey, Track, option
from hmtl_jax.data.readers.tree import Tree

LISTS = {"train": "training.txt", "test": "testing.txt"}
PUBLISHED = {"train": 10_000, "test": 2_995}
POINTS = ("left eye", "right eye", "nose", "left mouth corner", "right mouth corner")
# In the order of a line, behind the landmarks; the lists count from 1.
ATTRIBUTES = {
    "gender": ("male", "female"),
    "smile": ("no", "yes"),
    "glasses": ("no", "yes"),
    "pose_class": ("left profile", "left", "frontal", "right", "right profile"),
}
YES_IS_FIRST = ("smile", "glasses")  # 1 is yes there, and 2 no
LABELS = {name: Label("class", names) for name, names in ATTRIBUTES.items()} | {
    "landmarks": Label("float", (), (5, 2))
}
WORDS = 1 + 2 * len(POINTS) + len(ATTRIBUTES)


@dataclasses.dataclass(frozen=True)
class Mtfl:
    """training.txt, testing.txt and the folders AFLW, lfw_5590 and net_7876, or a zip of them.

    Labels: gender, smile, glasses, pose_class, and landmarks float32[5,2], x and y in pixels of the
    stored image: both eyes, nose, both corners of the mouth.
    """

    name: ClassVar[str] = "mtfl"
    version: ClassVar[str] = "1.0.0"
    needs_source: ClassVar[bool] = True
    obtain: ClassVar[str] = "MTFL.zip of the authors' page, as it is or unpacked; for research"

    scale: float = option(2.5, "side of the square, unless aligned, in sides of the landmarks' box")
    image_size: int = option(128, "longest side of a stored image; larger ones shrink, 0 keeps all")
    align: bool = option(False, "turn each face upright by its landmarks, to image_size")
    validation: float = option(0.1, "share of each gender and pose of train: validation")
    seed: int = option(0, "another seed holds out other images")

    @property
    def label_rule(self) -> str:
        """As in `Reader`."""
        face = f"the square around its landmarks, {self.scale:g} times as large"
        if self.align:
            face = "turned upright by its landmarks to ArcFace's template"
        return (
            f"official labels and test set; a face is {face}; validation is {self.validation:.0%} "
            "of each gender and pose of train, those whose key's hash comes first "
            f"(seed {self.seed})."
        )

    def survey(self, source: str | os.PathLike[str], track: Track) -> Survey:
        """As in `Reader`."""
        check_share(self.validation)
        if self.align and not self.image_size:
            raise errors.UserError("--align needs an --image_size; turned faces all have one size.")
        tree, left_out, splits = Tree(source), collections.Counter(), {}
        tree.enter(tuple(LISTS.values()))
        for split, path in LISTS.items():
            splits[split] = list(track(self._rows(tree, path, left_out), f"{path} labels"))
        splits["train"], splits["validation"] = held_out(
            splits["train"], self.validation, self.seed, ("gender", "pose_class")
        )
        return Survey({split: rows for split, rows in splits.items() if rows}, LABELS, left_out)

    def check(self, survey: Survey) -> list[str]:
        """Train and validation are counted together, for they were one."""
        found = {split: len(rows) for split, rows in survey.splits.items()}
        found["train"] += found.pop("validation", 0)
        return [
            f"{split} has {found.get(split, 0):,} faces instead of {size:,}"
            for split, size in PUBLISHED.items()
            if found.get(split, 0) != size
        ]

    def _rows(self, tree: Tree, path: str, left_out: collections.Counter) -> Iterator[Row]:
        seen = set()
        for line, text in enumerate(tree.lines(path), start=1):
            where, words = f"{path}, line {line}", text.split()
            if not words:
                continue
            if len(words) != WORDS:
                raise errors.UserError(
                    f"{where}: {len(words)} words instead of {WORDS} (a picture, five x, five y, "
                    f"{', '.join(ATTRIBUTES)})."
                )
            name, cells = words[0].replace("\\", "/"), words[1:]
            if name in seen:
                left_out["rows of a name seen before"] += 1
                continue
            seen.add(name)
            points = _points(cells[:10], where)
            labels = _attributes(cells[10:], where)
            try:
                labels["landmarks"] = self._placed(points).astype(np.float32)
            except errors.UserError as error:
                raise errors.UserError(f"{where}: {error}") from error
            image = functools.partial(self._face, tree, tree.find(name) or name, points)
            yield Row(name.rpartition(".")[0], labels, image, where)

    def _square(self, points: np.ndarray) -> tuple[int, int, int]:
        """Around the landmarks' middle: a profile's box is narrow, and yet as high (ours)."""
        (left, top), (right, bottom) = points.min(0), points.max(0)
        return faces.square(left, top, right, bottom, self.scale)

    def _placed(self, points: np.ndarray) -> np.ndarray:
        """Where the landmarks are in the stored face."""
        if self.align:
            turn, shift = faces.upright(points, self.image_size)
            return points @ turn.T + shift
        left, top, side = self._square(points)
        return (points - [left, top]) * faces.scale_of(side, self.image_size)

    def _face(self, tree: Tree, path: str, points: np.ndarray) -> bytes:
        image_hwc = decode.decode(tree.read(path))
        if self.align:
            return faces.jpeg(faces.align(image_hwc, points, self.image_size))
        face_hwc = faces.cut(image_hwc, *self._square(points))
        return faces.jpeg(faces.shrink(face_hwc, self.image_size))


def _points(cells: list[str], where: str) -> np.ndarray:
    """Five x and then five y → float [5, 2]."""
    try:
        values = [float(cell) for cell in cells]
    except ValueError as error:
        raise errors.UserError(f"{where}: a landmark is no number ({error}).") from error
    if not all(map(math.isfinite, values)):
        raise errors.UserError(f"{where}: a landmark is not finite.")
    return np.array(values).reshape(2, 5).T


def _attributes(cells: list[str], where: str) -> dict[str, Any]:
    found = {}
    for cell, (name, names) in zip(cells, ATTRIBUTES.items(), strict=True):
        numbers = {str(index + 1): index for index in range(len(names))}
        index = errors.lookup(numbers, cell, f"{name} in {where}:")
        found[name] = 1 - index if name in YES_IS_FIRST else index
    return found

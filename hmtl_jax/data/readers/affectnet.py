"""AffectNet (Mollahosseini et al. 2017): expression, valence and arousal of faces in the wild.

Two releases, told apart by their files: that of 2017 (csv lists, whole photographs, a face box)
and that of 2021 (cropped faces, four npy files each). Neither has a public test set: the official
validation set is `test` here, and `validation` is drawn from train, so that no choice sees it.
"""

import collections
import dataclasses
import functools
import io
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

EXPRESSIONS = (
    "neutral",
    "happiness",
    "sadness",
    "surprise",
    "fear",
    "disgust",
    "anger",
    "contempt",
)
OTHERS = ("none", "uncertain", "no face")  # 8, 9, 10: no expression to learn, left out

# The published counts (both releases); the current download of val lacks one image.
TRAIN_CLASSES = (74_874, 134_415, 25_459, 14_090, 6_378, 3_803, 24_882, 3_750)
TEST_PER_CLASS = 500

COLUMNS_2017 = (
    "subDirectory_filePath",
    "face_x",
    "face_y",
    "face_width",
    "face_height",
    "facial_landmarks",
    "expression",
    "valence",
    "arousal",
)
LISTS_2017 = "Manually_Annotated_file_lists"
IMAGES_2017 = ("Manually_Annotated_Images", "Manually_Annotated/Manually_Annotated_Images", "")
LAYOUTS = (
    ("train_set/annotations/", "train_set/images/", "val_set/annotations/", "val_set/images/"),
    ("training.csv", "validation.csv"),
    (f"{LISTS_2017}/training.csv", f"{LISTS_2017}/validation.csv"),
)


@dataclasses.dataclass(frozen=True)
class AffectNet:
    """The official folder or zip of the 2017 or the 2021 release.

    Labels: expression, valence and arousal float32 (NaN where not annotated, officially -2), and on
    demand landmarks float32[68,2], x and y in pixels of the stored image.
    """

    name: ClassVar[str] = "affectnet"
    version: ClassVar[str] = "1.1.0"  # since 1.1.0 missing numbers are NaN
    needs_source: ClassVar[bool] = True
    obtain: ClassVar[str] = (
        "the authors' archives of either release, unpacked; on request, for research"
    )

    classes: int = option(8, "7 leaves out contempt", (8, 7))
    image_size: int = option(256, "longest side of a stored image; larger ones shrink, 0 keeps all")
    margin: float = option(0.1, "2017: added around the face box on each side, in box sides")
    validation: float = option(0.05, "share of each class of train held out as validation")
    seed: int = option(0, "another seed holds out other images")
    landmarks: bool = option(False, "store the 68 landmarks too")

    @property
    def label_rule(self) -> str:
        """As in `Reader`."""
        return (
            f"official labels, {self.classes} expressions; the official validation set is test; "
            f"validation is {self.validation:.0%} of each class of train, those whose key's hash "
            f"comes first (seed {self.seed})."
        )

    @property
    def labels(self) -> dict[str, Label]:
        """What is stored of each face."""
        found = {
            "expression": Label("class", EXPRESSIONS[: self.classes]),
            "valence": Label("float"),
            "arousal": Label("float"),
        }
        return found | ({"landmarks": Label("float", (), (68, 2))} if self.landmarks else {})

    def survey(self, source: str | os.PathLike[str], track: Track) -> Survey:
        """As in `Reader`."""
        check_share(self.validation)
        tree = Tree(source)
        layout = tree.enter(*LAYOUTS)
        splits, left_out = {}, collections.Counter()
        for split, official in (("train", "train"), ("test", "val")):
            if layout == 0:
                rows = self._rows_2021(tree, f"{official}_set", track, left_out)
            else:
                folder = f"{LISTS_2017}/" if layout == 2 else ""
                file = {"train": "training.csv", "val": "validation.csv"}[official]
                rows = self._rows_2017(tree, folder + file, track, left_out)
            splits[split] = list(rows)
        splits["train"], splits["validation"] = held_out(
            splits["train"], self.validation, self.seed, ("expression",)
        )
        found = {split: rows for split, rows in splits.items() if rows}
        return Survey(found, self.labels, left_out)

    def check(self, survey: Survey) -> list[str]:
        """Train and validation are counted together, for they were one."""
        rows = [*survey.splits.get("train", ()), *survey.splits.get("validation", ())]
        labels = [row.labels["expression"] for row in rows if row.labels]
        test, wrong = len(survey.splits.get("test", ())), []
        published = TRAIN_CLASSES[: self.classes]
        if len(labels) != sum(published):
            wrong.append(f"train has {len(labels):,} images instead of {sum(published):,}")
        if test not in (TEST_PER_CLASS * self.classes, TEST_PER_CLASS * self.classes - 1):
            wrong.append(f"test has {test:,} images instead of {TEST_PER_CLASS * self.classes:,}")
        if wrong:
            return wrong
        found = np.bincount(np.array(labels, int), minlength=self.classes)
        return [
            f"train has {n:,} of {name} instead of {expected:,}"
            for name, n, expected in zip(EXPRESSIONS, found, published, strict=False)
            if n != expected
        ]

    def _rows_2021(self, tree: Tree, folder: str, track: Track, left_out) -> Iterator[Row]:
        """`images/N.jpg` and `annotations/N_{exp,val,aro,lnd}.npy`."""
        files = tree.list(f"{folder}/annotations")
        names = [file.removesuffix("_exp.npy") for file in files if file.endswith("_exp.npy")]
        images = set(tree.list(f"{folder}/images"))
        for name in track(sorted(names, key=lambda name: (len(name), name)), f"{folder} labels"):
            where = f"{folder}/annotations/{name}_exp.npy"
            stem = where.removesuffix("_exp.npy")
            expression = _npy(tree, f"{stem}_exp.npy", 1)[0]
            valence, arousal = (_npy(tree, f"{stem}_{kind}.npy", 1)[0] for kind in ("val", "aro"))
            labels = self._labels(expression, valence, arousal, where, left_out)
            if labels is None:
                continue
            path = f"{folder}/images/{name}.jpg"
            if f"{name}.jpg" not in images:
                path = tree.find(path) or path
            if self.landmarks:
                labels["landmarks"] = _npy(tree, f"{stem}_lnd.npy", 136).reshape(68, 2)
                labels["landmarks"] *= faces.scale_of(
                    max(_size(tree.read(path), where)), self.image_size
                )
            yield Row(name, labels, functools.partial(self._copy, tree, path), where)

    def _rows_2017(self, tree: Tree, path: str, track: Track, left_out) -> Iterator[Row]:
        """A csv of photographs, each with one face box."""
        images = next(folder for folder in IMAGES_2017 if not folder or tree.list(folder))
        keys = collections.Counter()
        for line, cells in track(tree.table(path, COLUMNS_2017), f"{path} labels"):
            where = f"{path}, line {line}"
            expression = _number(cells["expression"], "expression", where)
            valence = _number(cells["valence"], "valence", where)
            arousal = _number(cells["arousal"], "arousal", where)
            labels = self._labels(expression, valence, arousal, where, left_out)
            if labels is None:
                continue
            name = cells["subDirectory_filePath"]
            photograph = f"{images}/{name}" if images else name
            photograph = tree.find(photograph) or photograph
            square = self._square(cells, where)
            if self.landmarks:
                labels["landmarks"] = self._landmarks_2017(cells, square, where)
            keys[name] += 1  # several faces of one photograph have several lines
            key = name if keys[name] == 1 else f"{name}#{keys[name]}"
            yield Row(key, labels, functools.partial(self._crop, tree, photograph, square), where)

    def _labels(
        self, expression: float, valence: float, arousal: float, where: str, left_out
    ) -> dict[str, Any] | None:
        """Checks ranges; None for what has no expression (counted in `left_out`)."""
        if expression not in range(len(EXPRESSIONS) + len(OTHERS)):
            raise errors.UserError(f"{where}: expression {expression:g} is out of range 0 to 10.")
        for name, value in (("valence", valence), ("arousal", arousal)):
            if not (-1 <= value <= 1 or value == -2):
                raise errors.UserError(
                    f"{where}: {name} {value:g} is out of range -1 to 1 (-2: not annotated)."
                )
        index = int(expression)
        if index >= self.classes:
            left_out[f"faces labelled {(EXPRESSIONS + OTHERS)[index]}"] += 1
            return None
        # Either is missing by itself; a task masks NaN, as it does in every data set.
        valence, arousal = (math.nan if value == -2 else value for value in (valence, arousal))
        return {"expression": index, "valence": valence, "arousal": arousal}

    def _square(self, cells: dict[str, str], where: str) -> tuple[int, int, int]:
        """Left, top and side of the square around the face box and its margin (ours)."""
        names = ("face_x", "face_y", "face_width", "face_height")
        x, y, width, height = (_number(cells[name], name, where) for name in names)
        if not (width > 0 and height > 0):
            raise errors.UserError(f"{where}: the face box is {width:g} x {height:g} pixels.")
        return faces.square(x, y, x + width, y + height, 1 + 2 * self.margin)

    def _landmarks_2017(self, cells, square, where: str) -> np.ndarray:
        left, top, side = square
        numbers = cells["facial_landmarks"].split(";")
        if len(numbers) != 136:
            raise errors.UserError(
                f"{where}: facial_landmarks has {len(numbers)} numbers instead of 68 pairs."
            )
        points = [_number(number, "facial_landmarks", where) for number in numbers]
        points = np.array(points, np.float32).reshape(68, 2)
        return (points - np.array([[left, top]], np.float32)) * np.float32(
            faces.scale_of(side, self.image_size)
        )

    def _copy(self, tree: Tree, path: str) -> bytes:
        """An image that is small enough keeps its very bytes."""
        encoded = tree.read(path)
        image_hwc = decode.decode(encoded)
        shrunk = faces.shrink(image_hwc, self.image_size)
        return encoded if shrunk is image_hwc else faces.jpeg(shrunk)

    def _crop(self, tree: Tree, path: str, square: tuple[int, int, int]) -> bytes:
        face_hwc = faces.cut(decode.decode(tree.read(path)), *square)
        return faces.jpeg(faces.shrink(face_hwc, self.image_size))


def _npy(tree: Tree, path: str, length: int) -> np.ndarray:
    """Returns float32 [length]; the release holds 0-d arrays, some of them of strings."""
    encoded = tree.read(path)
    try:
        values = np.load(io.BytesIO(encoded), allow_pickle=False)
        values = values.astype(np.float32).reshape(-1)
    except (ValueError, EOFError) as error:
        # NumPy's own words advise to load pickles, which run whatever they hold.
        kind = "holds Python objects" if b"|O" in encoded[:128] else "is damaged"
        raise errors.UserError(
            f"{path} {kind}, and is no npy file of numbers; fetch it again."
        ) from error
    if values.size != length:
        raise errors.UserError(f"{path} holds {values.size} numbers instead of {length}.")
    return values


def _number(cell: str | None, name: str, where: str) -> float:
    try:
        return float(cell or "")
    except ValueError:
        raise errors.UserError(f"{where}: {name} is {cell!r}, not a number.") from None


def _size(encoded: bytes, where: str) -> tuple[int, int]:
    try:
        return decode.decode(encoded).shape[:2]
    except errors.UserError as error:
        raise errors.UserError(f"{where}: {error}") from error

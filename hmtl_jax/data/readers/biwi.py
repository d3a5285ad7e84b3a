"""BIWI Kinect Head Pose (Fanelli et al. 2011): 24 recordings of people who turn their heads.

There are no boxes: the face is cut out around the head's centre, which the pose files tell in
millimetres, by the colour camera's own matrix (rgb.cal), at a size that its distance gives.
"""

import collections
import dataclasses
import functools
import math
import os
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from hmtl_jax import errors
from hmtl_jax.data import decode, faces
from hmtl_jax.data.labels import Label
from hmtl_jax.data.readers.held_out import check_share, held_out_groups
from hmtl_jax.data.readers.reader import Row, Survey, Track, option
from hmtl_jax.data.readers.tree import Tree

RECORDINGS = tuple(f"{number:02d}" for number in range(1, 25))
PUBLISHED = 15_678
LABELS = {"pose": Label("float", ("yaw", "pitch", "roll"), (3,)), "recording": Label("int")}


@dataclasses.dataclass(frozen=True)
class Biwi:
    """The folders 01 to 24, each of frame_NNNNN_rgb.png, frame_NNNNN_pose.txt and rgb.cal.

    Labels: pose float32[3], yaw, pitch and roll in degrees, and recording int32. Whole recordings
    are held out; four of the twenty people have two, and the files don't tell whose they are.
    """

    name: ClassVar[str] = "biwi"
    version: ClassVar[str] = "1.0.0"
    needs_source: ClassVar[bool] = True
    obtain: ClassVar[str] = "kinect_head_pose_db.tgz of the authors' page, unpacked; for research"

    side: float = option(300.0, "of the square that is cut out, in millimetres at the head")
    image_size: int = option(256, "longest side of a stored image; larger ones shrink, 0 keeps all")
    test: float = option(0.3, "share of the recordings that is test")
    validation: float = option(0.1, "share of the other recordings that is validation")
    seed: int = option(0, "another seed draws other splits; papers should say which, if not 0")

    @property
    def label_rule(self) -> str:
        """As in `Reader`."""
        return (
            "yaw, pitch and roll of the transposed official matrix, in degrees; a face is a square "
            f"of {self.side:g} mm around the head's centre; test is {self.test:.0%} of the "
            f"recordings, validation {self.validation:.0%} of the others, those whose number's "
            f"hash comes first (seed {self.seed})."
        )

    def survey(self, source: str | os.PathLike[str], track: Track) -> Survey:
        """As in `Reader`."""
        check_share(self.test, "--test")
        check_share(self.validation)
        tree = Tree(source)
        for root in ("", *(f"{name}/" for name in tree.list(""))):
            tree.root = root
            found = [folder for folder in RECORDINGS if tree.exists(f"{folder}/rgb.cal")]
            if found:
                break
        else:
            tree.root = ""
            raise errors.UserError(
                f"{source} should hold the folders 01 to 24, each with rgb.cal; found there: "
                f"{', '.join(tree.list('')[:8]) or 'nothing'}."
            )
        left_out = collections.Counter()
        rows = [row for folder in track(found, "recordings") for row in self._rows(tree, folder)]
        rest, test = held_out_groups(rows, self.test, self.seed, _recording)
        train, validation = held_out_groups(rest, self.validation, self.seed + 1, _recording)
        splits = {"train": train, "validation": validation, "test": test}
        return Survey({split: rows for split, rows in splits.items() if rows}, LABELS, left_out)

    def check(self, survey: Survey) -> list[str]:
        """All splits are counted together, for they were one."""
        found = sum(map(len, survey.splits.values()))
        return [] if found == PUBLISHED else [f"it has {found:,} frames instead of {PUBLISHED:,}"]

    def _rows(self, tree: Tree, folder: str) -> Iterator[Row]:
        camera = _numbers(tree, f"{folder}/rgb.cal", 9).reshape(3, 3)
        for name in tree.list(folder):
            stem, matched, suffix = name.partition("_rgb.")
            if not matched or suffix not in ("png", "jpg"):
                continue
            path = f"{folder}/{stem}_pose.txt"
            values = _numbers(tree, path, 12)
            pose = euler(values[:9].reshape(3, 3))
            square = self._square(camera, values[9:], path)
            labels = {"pose": np.array(pose, np.float32), "recording": int(folder)}
            image = functools.partial(self._face, tree, f"{folder}/{name}", square)
            yield Row(f"{folder}/{stem}", labels, image, path)

    def _square(self, camera: np.ndarray, centre: np.ndarray, path: str) -> tuple[int, int, int]:
        x, y, distance = centre
        if not distance > 0:
            raise errors.UserError(f"{path}: the head is {distance:g} mm before the camera.")
        u = camera[0, 0] * x / distance + camera[0, 2]
        v = camera[1, 1] * y / distance + camera[1, 2]
        half = camera[0, 0] * self.side / distance / 2
        return faces.square(u - half, v - half, u + half, v + half)

    def _face(self, tree: Tree, path: str, square: tuple[int, int, int]) -> bytes:
        face_hwc = faces.cut(decode.decode(tree.read(path)), *square)
        return faces.jpeg(faces.shrink(face_hwc, self.image_size))


def euler(rotation: np.ndarray) -> tuple[float, float, float]:
    """Yaw, pitch and roll in degrees of a pose file's matrix, as HopeNet (Ruiz 2018) has them."""
    r = rotation.T
    roll = -math.atan2(r[1, 0], r[0, 0])
    yaw = -math.atan2(-r[2, 0], math.hypot(r[2, 1], r[2, 2]))
    pitch = math.atan2(r[2, 1], r[2, 2])
    return math.degrees(yaw), math.degrees(pitch), math.degrees(roll)


def _recording(row: Row) -> str:
    return row.key.partition("/")[0]


def _numbers(tree: Tree, path: str, count: int) -> np.ndarray:
    """The first numbers of a text file, float64 [count]."""
    words = " ".join(tree.lines(path)).split()
    try:
        values = np.array([float(word) for word in words[:count]])
    except ValueError as error:
        raise errors.UserError(f"{path}: a value is no number ({error}).") from error
    if values.size != count or not np.isfinite(values).all():
        raise errors.UserError(f"{path} should begin with {count} numbers; it has {values.size}.")
    return values

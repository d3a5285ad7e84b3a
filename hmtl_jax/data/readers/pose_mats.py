"""Pictures with a MATLAB file of head pose and landmarks each: 300W-LP and AFLW2000 (Zhu 2016)."""

import functools
import io
import math
from collections.abc import Iterable, Iterator

import numpy as np
import scipy.io

from hmtl_jax import errors
from hmtl_jax.data import decode, faces
from hmtl_jax.data.labels import Label
from hmtl_jax.data.readers.reader import Row
from hmtl_jax.data.readers.tree import Tree

LABELS = {"pose": Label("float", ("yaw", "pitch", "roll"), (3,))}
LIMIT = 99.0  # degrees: a face with a larger angle is left out, as by all who report on these sets
TOO_FAR = f"faces with an angle beyond {LIMIT:g} degrees"


def rows(
    tree: Tree, paths: Iterable[str], points: str, margins: "Margins", size: int, left_out
) -> Iterator[Row]:
    """The faces of pictures whose path ends with .jpg and has a .mat beside it.

    points: the landmarks that the square is drawn around. What is beyond LIMIT is counted.
    """
    for path in paths:
        stem = path.rpartition(".")[0]
        mat = f"{stem}.mat"
        stored = _mat(tree, mat)
        pose = _pose(stored, mat)
        if max(map(abs, pose)) > LIMIT:
            left_out[TOO_FAR] += 1
            continue
        square = faces.square(*margins.around(_box(stored, mat, points), stem))
        image = functools.partial(_face, tree, path, square, size)
        yield Row(stem, {"pose": np.array(pose, np.float32)}, image, mat)


class Margins:
    """How much of a picture around the landmarks' box belongs to the face.

    As HopeNet (Ruiz 2018) and 6DRepNet (Hempel 2022) have it, with w and h of the box: `sides` k w
    on the left, 2 k h above, and then, of what is w and h by now, `sides` k w on the right and
    0.6 k h below. Theirs is a rectangle, ours the square around it.
    """

    def __init__(self, sides: float, low: float, high: float, draw):
        """draw: a name → a number from 0 to 1, that says where k lies between low and high."""
        self._sides, self._low, self._high, self._draw = sides, low, high, draw

    def around(self, box: tuple[float, ...], name: str) -> tuple[float, float, float, float]:
        left, top, right, bottom = box
        k = self._low + (self._high - self._low) * self._draw(name)
        left -= self._sides * k * (right - left)
        top -= 2 * k * (bottom - top)
        right += self._sides * k * (right - left)
        bottom += 0.6 * k * (bottom - top)
        return left, top, right, bottom


def _face(tree: Tree, path: str, square: tuple[int, int, int], size: int) -> bytes:
    face_hwc = faces.cut(decode.decode(tree.read(tree.find(path) or path)), *square)
    return faces.jpeg(faces.shrink(face_hwc, size))


def _mat(tree: Tree, path: str) -> dict[str, np.ndarray]:
    encoded = tree.read(path)
    try:
        return scipy.io.loadmat(io.BytesIO(encoded))
    except Exception as error:  # scipy has no type of its own for what is no MATLAB file
        raise errors.UserError(f"{path} is damaged, or no MATLAB file; fetch it again.") from error


def _pose(stored: dict[str, np.ndarray], path: str) -> tuple[float, float, float]:
    """Yaw, pitch and roll in degrees, of pitch, yaw and roll in radians."""
    values = _array(stored, "Pose_Para", path).reshape(-1)
    if values.size < 3 or not np.isfinite(values[:3]).all():
        raise errors.UserError(f"{path}: Pose_Para does not begin with three angles.")
    pitch, yaw, roll = (math.degrees(float(value)) for value in values[:3])
    return yaw, pitch, roll


def _box(stored: dict[str, np.ndarray], path: str, name: str) -> tuple[float, ...]:
    """Left, top, right and bottom of the landmarks."""
    points = _array(stored, name, path)
    if points.ndim != 2 or points.shape[0] < 2 or not np.isfinite(points).all():
        raise errors.UserError(f"{path}: {name} holds no points.")
    (left, top), (right, bottom) = points[:2].min(1), points[:2].max(1)
    return float(left), float(top), float(right), float(bottom)


def _array(stored: dict[str, np.ndarray], name: str, path: str) -> np.ndarray:
    values = stored.get(name)
    if values is None or not np.issubdtype(np.asarray(values).dtype, np.number):
        there = ", ".join(key for key in stored if not key.startswith("__"))
        raise errors.UserError(f"{path} lacks {name}, as numbers; it holds {there or 'nothing'}.")
    return np.asarray(values, np.float64)

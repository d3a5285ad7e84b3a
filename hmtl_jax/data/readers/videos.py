"""Rows of videos: some frames of each, and of each frame its largest face."""

import functools
import pathlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from hmtl_jax.data import faces, video
from hmtl_jax.data.readers.reader import NoFace, Row

Detector = Callable[[np.ndarray], tuple[float, float, float, float] | None]
SCALE = 1.3  # of a face's box, as all who report on FaceForensics++ have it


def rows(
    path: pathlib.Path,
    key: str,
    labels: Mapping[str, Any],
    count: int,
    detector: Detector | None,
    size: int,
) -> Iterator[Row]:
    """Yields `count` rows, `KEY/00` on, of one video; it is decoded once, for the first of them.

    detector: None stores whole frames. size: the longest side of what is stored.
    """  # fmt: skip
    frames = _Frames(path, count, detector, size)
    for part in range(count):
        yield Row(
            f"{key}/{part:02d}", dict(labels), functools.partial(frames.image, part), str(path)
        )


class _Frames:
    """The frames of a video as JPEG; each is handed out once."""

    def __init__(self, path: pathlib.Path, count: int, detector: Detector | None, size: int):
        self._path, self._count, self._detector, self._size = path, count, detector, size
        self._lock = threading.Lock()
        self._found: dict[int, bytes | None] | None = None
        self._error: Exception | None = None

    def image(self, part: int) -> bytes:
        with self._lock:
            if self._found is None:
                self._found = {}
                try:
                    decoded = video.frames(self._path, self._count)
                    self._found = {at: self._face(image) for at, (_, image) in enumerate(decoded)}
                except Exception as error:
                    self._error = error
            if self._error is not None:
                raise self._error
            if part not in self._found:
                raise NoFace(f"{self._path} has only {len(self._found)} frames.")
            encoded, self._found[part] = self._found[part], None
        if encoded is None:
            raise NoFace(f"{self._path}: no face in this frame.")
        return encoded

    def _face(self, image_hwc: np.ndarray) -> bytes | None:
        if self._detector is None:
            return faces.jpeg(faces.shrink(image_hwc, self._size))
        box = self._detector(image_hwc)
        if box is None:
            return None
        face_hwc = faces.cut(image_hwc, *faces.square(*box, SCALE))
        return faces.jpeg(faces.shrink(face_hwc, self._size))

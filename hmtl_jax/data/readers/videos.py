"""Rows of videos: some frames of each, and of each frame its largest face."""

import functools
import pathlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from hmtl_jax.data import detect, faces, video
from hmtl_jax.data.readers.reader import Row


def rows(
    path: pathlib.Path, key: str, labels: Mapping[str, Any], count: int, cutter: detect.Cutter
) -> Iterator[Row]:
    """Yields `count` rows, `KEY/00` on, of one video; it is decoded once, for the first of them."""
    frames = _Frames(path, count, cutter)
    for part in range(count):
        yield Row(
            f"{key}/{part:02d}", dict(labels), functools.partial(frames.image, part), str(path)
        )


class _Frames:
    """The frames of a video as JPEG; each is handed out once."""

    def __init__(self, path: pathlib.Path, count: int, cutter: detect.Cutter):
        self._path, self._count, self._cutter = path, count, cutter
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
                raise detect.NoFace(f"{self._path} has only {len(self._found)} frames.")
            encoded, self._found[part] = self._found[part], None
        if encoded is None:
            raise detect.NoFace(f"{self._path}: no face in this frame.")
        return encoded

    def _face(self, image_hwc: np.ndarray) -> bytes | None:
        try:
            return faces.jpeg(self._cutter(image_hwc))
        except detect.NoFace:
            return None

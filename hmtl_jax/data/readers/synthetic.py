"""Synthetic faces, rendered once and stored as PNG with the labels of every task."""

import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import ClassVar

import cv2
import numpy as np

from hmtl_jax import errors
from hmtl_jax.data import synthetic
from hmtl_jax.data.labels import Label
from hmtl_jax.data.readers.reader import Row, Survey, Track, option

_CHUNK = 64  # images rendered in one call
CLASSES = ("expression", "gender", "skin_tone", "fake")
ATTRIBUTES = tuple(synthetic.CLASS_NAMES["attributes"])
LABELS = {
    **{label: Label("class", tuple(synthetic.CLASS_NAMES[label])) for label in CLASSES},
    **{label: Label("float") for label in ("valence", "arousal", "age")},
    "pose": Label("float", ("yaw", "pitch", "roll"), (3,)),
    "attributes": Label("int", ATTRIBUTES, (len(ATTRIBUTES),)),
    "identity": Label("int"),
}


@dataclasses.dataclass(frozen=True)
class Synthetic:
    """Faces that `data/synthetic.py` renders; needs no source."""

    name: ClassVar[str] = "synthetic"
    version: ClassVar[str] = "1.1.0"  # of the pictures: another renderer, another version
    needs_source: ClassVar[bool] = False
    obtain: ClassVar[str] = "nothing: they are rendered"

    size: int = option(64, "side of the images in pixels")
    train: int = option(synthetic.SPLIT_SIZES["train"], "images in train")
    validation: int = option(synthetic.SPLIT_SIZES["validation"], "images in validation")
    test: int = option(synthetic.SPLIT_SIZES["test"], "images in test")
    seed: int = option(0, "another seed draws other people")

    @property
    def label_rule(self) -> str:
        """As in `Reader`."""
        return (
            "rendered: labels are the renderer's own parameters, so they hold no annotator noise."
        )

    def survey(self, source: str | os.PathLike[str] | None, track: Track) -> Survey:
        """As in `Reader`."""
        del track
        if source is not None:
            raise errors.UserError(f"synthetic is rendered; leave out --source {source}.")
        sizes = {"train": self.train, "validation": self.validation, "test": self.test}
        for split, size in sizes.items():
            if size < 1:
                raise errors.UserError(f"--{split} {size}: every split needs at least one image.")
        splits = {split: _Rendered(split, n, self.size, self.seed) for split, n in sizes.items()}
        return Survey(splits, LABELS, {})

    def check(self, survey: Survey) -> list[str]:
        """As in `Reader`; the renderer draws as many as it is asked for."""
        del survey
        return []


@dataclasses.dataclass(frozen=True)
class _Rendered:
    """Rows of a split, rendered in chunks as they are iterated."""

    split: str
    length: int
    size: int
    seed: int

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Row]:
        for start in range(0, self.length, _CHUNK):
            indices = np.arange(start, min(start + _CHUNK, self.length))
            columns = synthetic.render(indices, split=self.split, size=self.size, seed=self.seed)
            images = columns.pop("image")
            for position, index in enumerate(indices):
                labels = {label: values[position] for label, values in columns.items()}
                image = functools.partial(_encode, images[position])
                yield Row(f"{index:06d}", labels, image, f"{self.split} {index}")


def _encode(image_hwc: np.ndarray) -> bytes:
    return cv2.imencode(".png", cv2.cvtColor(image_hwc, cv2.COLOR_RGB2BGR))[1].tobytes()

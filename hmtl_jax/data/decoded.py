"""A split decoded once and kept, so that each epoch costs no more than a copy."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from hmtl_jax import errors
from hmtl_jax.data import parallel

Batch = dict[str, np.ndarray]
CHUNK = 256  # pictures that a thread decodes at a time


class Decoded:
    """The records that take part, as arrays.

    Attributes:
      images: uint8 [n, S, S, 3], in the order of their numbers; zeros where one can't be decoded.
        None when they were taken.
      labels: by name [n, …].
      valid: bool [n], whether the picture could be decoded.
    """

    def __init__(
        self, load: Callable[[np.ndarray], Batch], numbers: np.ndarray, nbytes: int,
        threads: int | None,
    ):  # fmt: skip
        """load: record numbers int32 [b] → a batch; numbers: ascending, of the records to keep;
        nbytes: of a picture. UserError where the memory has no room for them.
        """
        _check_memory(len(numbers) * nbytes)
        self._places = np.full(numbers[-1] + 1, -1, np.int32)
        self._places[numbers] = np.arange(len(numbers))
        chunks = [numbers[at : at + CHUNK].astype(np.int32) for at in range(0, len(numbers), CHUNK)]
        running = parallel.Running(
            grain.MapDataset.source(chunks).map(load), CHUNK * nbytes, threads, workers=0
        )
        kept: dict[str, np.ndarray] = {}
        try:
            for at, batch in enumerate(running):
                for name, rows in batch.items():
                    if not at:
                        kept[name] = np.zeros((len(numbers), *rows.shape[1:]), rows.dtype)
                    kept[name][at * CHUNK : at * CHUNK + len(rows)] = rows
        finally:
            running.close()
        self.valid, self.images = kept.pop("valid"), kept.pop("image")
        self.images[~self.valid] = 0
        del kept["index"]
        self.labels: Mapping[str, np.ndarray] = kept

    def take_images(self) -> np.ndarray:
        """Hands the pictures over, and keeps them no longer; `batch` still says where each is."""
        images, self.images = self.images, None
        assert images is not None, "they were taken already"
        return images

    def batch(self, index_b: np.ndarray) -> Batch:
        """Record numbers int32 [b] → the batch that `load` makes of them.

        A picture that can't be decoded is the first of the batch that can, as when it is read anew.
        Where the pictures were taken, `image` is the row of each one, int32 [b].
        """
        places = self._places[index_b]
        valid, shown = self.valid[places], places
        if not valid.all() and valid.any():
            shown = np.where(valid, places, places[valid.argmax()])
        image = shown if self.images is None else self.images[shown]
        labels = {name: of[places] for name, of in self.labels.items()}
        return {"image": image, "index": index_b, "valid": valid} | labels


def check_room(needed: int, free: int, of: str, instead: Sequence[str]) -> None:
    """Raises UserError unless four fifths of what is free hold the pictures: a step needs some."""
    if needed > 0.8 * free:
        choice = " or ".join(f"data.cache={one!r}" for one in instead)
        raise errors.UserError(
            f"The decoded pictures take {needed / 1e9:.1f} GB, and the {of} has {free / 1e9:.1f} "
            f"GB free; set {choice}, or lower data.decode_size or data.image_size."
        )


def _check_memory(needed: int) -> None:
    free = free_memory()
    if free is not None:
        check_room(needed, free, "host's memory", ("none",))


def free_memory() -> int | None:
    """Bytes that the host can still give; None where it does not tell."""
    try:
        with open("/proc/meminfo") as lines:
            found: dict[str, Any] = dict(line.split(":", 1) for line in lines)
        return 1024 * int(found["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None

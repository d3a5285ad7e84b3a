"""What a pretext hands to the encoder."""

from typing import NamedTuple

import jax


class View(NamedTuple):
    """A batch of images made from the batch, and which of its patches the encoder may read.

    images: float32 [B, H, W, 3] in [0, 1]. keep: int32 [B, K], ids of the kept patches, each once,
    in any order (a patch's id is its place in the grid's raster), or None where all are read.
    """

    images: jax.Array
    keep: jax.Array | None = None


def owner(name: str) -> str:
    """The task or pretext that a view or a leaf belongs to."""
    return name.partition("/")[0]

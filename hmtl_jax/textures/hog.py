"""Histograms of oriented gradients (Dalal and Triggs, CVPR 2005), one a cell, as a dense map."""

import math

import jax
import jax.numpy as jnp

from hmtl_jax import errors

# scikit-image's, which keeps the norm of a flat cell off 0.
_TINY = 1e-5


def hog(gray_bhw: jax.Array, cell: int = 8, bins: int = 9) -> jax.Array:
    """The histogram of the cell that a pixel lies in, at each pixel.

    A pixel's gradient is the difference of its neighbours on either side (0 at the border); its
    length counts for one of `bins` equal orientations of 180 degrees, from horizontal gradients on
    towards those to the lower right. Each cell's histogram is divided by its Euclidean length,
    without larger blocks, as MaskFeat's target is (Wei 2022, arXiv 2112.09133: 9 bins, cells of 8).

    Args:
      gray_bhw: levels 0..255, integer or floating point.
      cell: side in pixels, of which H and W must be multiples.
      bins: number of orientations.

    Returns:
      float32 [B, H, W, bins] in [0, 1], constant over each cell (ours, so that it is a map like the
      others): its cells are `skimage.feature.hog` with cells_per_block (1, 1) and block norm L2.
    """
    batch, height, width = gray_bhw.shape
    if cell < 1 or height % cell or width % cell:
        raise errors.UserError(
            f"hog needs an image whose sides are multiples of its cell of {cell} pixels, not "
            f"{height}x{width}; choose another data.image_size, or another texture."
        )
    down, across = _gradient(gray_bhw)
    length = jnp.hypot(down, across)
    counted = _orientation(down, across, bins) * length[..., None]
    rows, columns = height // cell, width // cell
    cells = counted.reshape(batch, rows, cell, columns, cell, bins).sum((2, 4)) / cell**2
    lengths = jnp.sqrt(jnp.sum(cells**2, axis=-1, keepdims=True) + _TINY**2)
    cells = jnp.minimum(cells / lengths, 1)  # rounding may lift one orientation alone above 1
    return jnp.repeat(jnp.repeat(cells, cell, axis=1), cell, axis=2)


def _gradient(gray_bhw):
    """Downwards and to the right, each float32 [B, H, W]."""
    gray_bhw = gray_bhw.astype(jnp.float32)
    down = jnp.pad(gray_bhw[:, 2:] - gray_bhw[:, :-2], ((0, 0), (1, 1), (0, 0)))
    across = jnp.pad(gray_bhw[:, :, 2:] - gray_bhw[:, :, :-2], ((0, 0), (0, 0), (1, 1)))
    return down, across


def _orientation(down, across, bins):
    """One-hot float32 [B, H, W, bins] of the angle in [0, 180), without computing the angle."""
    # A gradient and its opposite have one orientation: take the one that points down, or right.
    turn = (down < 0) | ((down == 0) & (across < 0))
    down, across = (jnp.where(turn, -part, part) for part in (down, across))
    angles = [math.pi * index / bins for index in range(1, bins)]
    passed = sum(
        (down * math.cos(angle) >= across * math.sin(angle)).astype(jnp.int32) for angle in angles
    )
    return jax.nn.one_hot(passed, bins, dtype=jnp.float32)

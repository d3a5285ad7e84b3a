"""Sobel's gradient magnitude: where edges are and how strong."""

import math

import jax
import jax.numpy as jnp

from hmtl_jax.textures.ring import neighbours

# Squared length of the longest gradient that levels 0..255 can have, its masks weighing 1, 2, 1:
# one side of the ring at 255 and a corner with it.
_LONGEST = 20 * 255**2


def sobel(gray_bhw: jax.Array) -> jax.Array:
    """Length of the gradient by Sobel's 3x3 masks, scaled by the longest possible one.

    Args:
      gray_bhw: levels 0..255, integer (exact masks) or floating point.

    Returns:
      float32 [B, H, W] in [0, 1]: `skimage.filters.sobel` of levels / 255, times sqrt(8 / 5) (ours:
      scikit-image's scale ends at 0.79).

    Outside the image its nearest pixel counts, as in scikit-image.
    """
    east, north_east, north, north_west, west, south_west, south, south_east = neighbours(gray_bhw)
    across = north_east + 2 * east + south_east - north_west - 2 * west - south_west
    down = south_west + 2 * south + south_east - north_west - 2 * north - north_east
    square = across.astype(jnp.float32) ** 2 + down.astype(jnp.float32) ** 2
    return jnp.sqrt(square) * (1 / math.sqrt(_LONGEST))

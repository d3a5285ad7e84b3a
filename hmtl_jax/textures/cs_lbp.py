"""Centre-symmetric local binary patterns (Heikkilä, Pietikäinen, Schmid, 2009)."""

import functools
import operator

import jax
import jax.numpy as jnp

from hmtl_jax import errors
from hmtl_jax.textures.ring import neighbours


def cs_lbp(gray_bhw: jax.Array, threshold: float = 0.01 * 255) -> jax.Array:
    """Codes of the four pairs of opposite neighbours: 16 instead of LBP's 256.

    Bit i (0..3) is set where neighbour i, at i * 45 degrees anticlockwise from the right, exceeds
    the opposite one by more than `threshold`.

    Args:
      gray_bhw: integer levels, or floating point.
      threshold: T >= 0 in levels; the paper's 0.01 is of grey values in [0, 1].

    Returns:
      int32 [B, H, W] in 0..15.

    Neighbours are the 3x3 ring (ours; the paper's best descriptor samples a circle of radius 2
    bilinearly). Outside the image its nearest pixel counts (ours).
    """
    if threshold < 0:
        raise errors.UserError(f"cs_lbp needs a threshold of 0 or more, not {threshold}.")
    ring = neighbours(gray_bhw)
    bits = [
        jnp.greater((ring[index] - ring[index + 4]).astype(jnp.float32), threshold)
        for index in range(4)
    ]
    return functools.reduce(
        operator.or_, (bit.astype(jnp.int32) << i for i, bit in enumerate(bits))
    )

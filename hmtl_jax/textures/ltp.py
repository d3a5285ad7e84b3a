"""Local ternary patterns (Tan and Triggs, IEEE TIP 2010), split into an upper and a lower one."""

import jax
import jax.numpy as jnp

from hmtl_jax import errors
from hmtl_jax.textures.ring import neighbours


def ltp(gray_bhw: jax.Array, threshold: int = 5) -> jax.Array:
    """Codes of the neighbours that are clearly brighter, and of those that are clearly darker.

    In the upper pattern bit i is set where neighbour i (at i * 45 degrees, anticlockwise from the
    right) is at least `threshold` above the centre, in the lower one where it is at least as much
    below. No bit is set in both, and noise below the threshold sets none.

    Args:
      gray_bhw: integer levels, or floating point.
      threshold: t > 0 in levels; 5 in the paper's experiments.

    Returns:
      int32 [B, H, W, 2] in 0..255: upper, lower.

    Outside the image its nearest pixel counts (ours; the paper does not say).
    """
    if threshold <= 0:
        raise errors.UserError(f"ltp needs a threshold above 0, not {threshold}.")
    ring = neighbours(gray_bhw)
    centre = gray_bhw.astype(ring[0].dtype)
    upper = [jnp.greater_equal(value - centre, threshold) for value in ring]
    lower = [jnp.greater_equal(centre - value, threshold) for value in ring]
    return jnp.stack([_code(upper), _code(lower)], axis=-1)


def _code(bits):
    return sum(bit.astype(jnp.int32) << index for index, bit in enumerate(bits))

"""Local directional pattern (Jabid, Kabir, Chae, 2010): which edges are strongest at a pixel."""

import jax
import jax.numpy as jnp

from hmtl_jax import errors
from hmtl_jax.textures.ring import neighbours


def ldp(gray_bhw: jax.Array, k: int = 3) -> jax.Array:
    """Codes whose set bits are the `k` directions with the largest absolute Kirsch response.

    Direction i is i * 45 degrees, anticlockwise from the right. Its 3x3 Kirsch mask, laid on the
    image without a flip, weighs the three neighbours around that direction with 5 and the other
    five with -3.

    Args:
      gray_bhw: integer levels (exact responses), or floating point (float32 responses).
      k: number of set bits, 1 to 7.

    Returns:
      int32 [B, H, W] in 0..255 with exactly k bits set: C(8, k) distinct codes, 56 for k = 3.

    Ties go to the lower direction (ours; the paper's threshold would set more than k bits, and a
    flat region all eight). Outside the image its nearest pixel counts (ours; the paper does not
    say): a zero border would show as an edge.
    """
    if not 1 <= k <= 7:
        raise errors.UserError(f"ldp needs k from 1 to 7 set bits, not {k}.")
    strength = [jnp.abs(response) for response in _kirsch(gray_bhw)]
    code = jnp.zeros(gray_bhw.shape, jnp.int32)
    for index, own in enumerate(strength):
        stronger = jnp.zeros_like(code)
        for rival, other in enumerate(strength):
            wins = jnp.greater_equal if rival < index else jnp.greater
            if rival != index:
                stronger += wins(other, own).astype(jnp.int32)
        code |= (stronger < k).astype(jnp.int32) << index
    return code


def _kirsch(gray_bhw):
    """The eight responses, in the order of the directions, each [B, H, W]."""
    around = neighbours(gray_bhw)
    ring = [value - gray_bhw.astype(value.dtype) for value in around]
    # 5 on three and -3 on five is 8 on the three less 3 on all eight; a mask sums to zero, so the
    # centre may be subtracted, which keeps flat regions exact in floating point too.
    all_eight = 3 * sum(ring)
    return [
        8 * (ring[index - 1] + ring[index] + ring[(index + 1) % 8]) - all_eight
        for index in range(8)
    ]

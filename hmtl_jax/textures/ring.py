"""The eight neighbours of each pixel."""

import jax
import jax.numpy as jnp

# (dy, dx), anticlockwise from the right: east, north-east, north, ...
RING = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))


def neighbours(gray_bhw: jax.Array) -> list[jax.Array]:
    """The neighbours in the order of RING, each [B, H, W], int32 or float32 as the levels are.

    Outside the image its nearest pixel counts.
    """
    exact = jnp.issubdtype(gray_bhw.dtype, jnp.integer)
    gray_bhw = gray_bhw.astype(jnp.int32 if exact else jnp.float32)
    padded = jnp.pad(gray_bhw, ((0, 0), (1, 1), (1, 1)), mode="edge")
    # Computed once: XLA would fold this padding, and all before it, into each of the slices below,
    # which makes the whole three to seven times slower on CPU.
    padded = jax.lax.optimization_barrier(padded)
    _, height, width = gray_bhw.shape
    return [padded[:, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width] for dy, dx in RING]

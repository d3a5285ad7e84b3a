"""Images to patches and back; the one place that fixes the order of patches and of their pixels."""

import jax
from einops import rearrange


def patchify(images_bhwc: jax.Array, patch: int) -> jax.Array:
    """[B, H, W, C] → [B, (H/p)(W/p), p*p*C]: patches in raster order, pixels by row, column, C."""
    return rearrange(images_bhwc, "b (h p) (w q) c -> b (h w) (p q c)", p=patch, q=patch)


def unpatchify(patches_bnp: jax.Array, patch: int, grid_h: int) -> jax.Array:
    """The inverse of `patchify`, for an image of `grid_h` patches in a column."""
    return rearrange(patches_bnp, "b (h w) (p q c) -> b (h p) (w q) c", p=patch, q=patch, h=grid_h)

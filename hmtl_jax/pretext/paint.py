"""Painting over what an encoder must not see."""

import jax
import jax.numpy as jnp

from hmtl_jax.data.augment import IMAGENET_MEAN


def paint(images_bhwc: jax.Array, hole_bhw1: jax.Array) -> jax.Array:
    """The images with the data's mean colour, which is 0 after normalising, where the hole is 1."""
    colour = jnp.asarray(IMAGENET_MEAN, images_bhwc.dtype)[None, None, None]
    return jnp.where(hole_bhw1 > 0, colour, images_bhwc)

"""Images in [0, 1] and what the encoder reads of them."""

import jax
import jax.numpy as jnp

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# What evaluation does to a picture of another size (augment.to_float), in words.
RESIZE = "the whole picture squeezed to a square, bilinear with antialiasing"


def normalise(images_bhwc: jax.Array) -> jax.Array:
    """Returns (images - mean) / std, per channel; the last step before the encoder."""
    mean, std = (_per_channel(values, images_bhwc) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (images_bhwc - mean) / std


def denormalise(images_bhwc: jax.Array) -> jax.Array:
    """Undoes normalise(), for pictures; values are not clipped."""
    mean, std = (_per_channel(values, images_bhwc) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return images_bhwc * std + mean


def paint(images_bhwc: jax.Array, hole_bhw1: jax.Array) -> jax.Array:
    """The images with the data's mean colour, which is 0 after normalising, where the hole is 1."""
    colour = jnp.asarray(IMAGENET_MEAN, images_bhwc.dtype)[None, None, None]
    return jnp.where(hole_bhw1 > 0, colour, images_bhwc)


def _per_channel(values, images: jax.Array) -> jax.Array:
    return jnp.asarray(values, images.dtype).reshape((1,) * (images.ndim - 1) + (-1,))

"""Images in [0, 1] and what the encoder reads of them."""

import jax
import jax.numpy as jnp
import numpy as np

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


def coloured(truth_bhwc: np.ndarray, other_bhwc: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as what can be drawn, [B, H, W, 1 or 3] in [0, 1], alike; other numbers are clipped.

    Maps of more channels have the first three principal components of the truth as colours, grey
    where they are its mean, full where they are two and a half deviations of the first from it:
    a mean of channels would hide comparisons, of which as many hold as do not.
    """
    channels = truth_bhwc.shape[-1]
    if channels not in (1, 3):
        flat_nc = truth_bhwc.reshape(-1, channels).astype(np.float64)
        mean_c = flat_nc.mean(0)
        variances, axes = np.linalg.eigh(np.cov(flat_nc, rowvar=False, bias=True))
        axes = axes[:, :-4:-1]
        axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
        axes = np.pad(axes, ((0, 0), (0, 3 - axes.shape[1])))
        reach = 5 * np.sqrt(max(variances[-1], 1e-12))
        truth_bhwc = 0.5 + (truth_bhwc - mean_c) @ axes / reach
        other_bhwc = 0.5 + (other_bhwc - mean_c) @ axes / reach
    shown, beside = np.clip(truth_bhwc, 0.0, 1.0), np.clip(other_bhwc, 0.0, 1.0)
    return shown.astype(np.float32), beside.astype(np.float32)


def _per_channel(values, images: jax.Array) -> jax.Array:
    return jnp.asarray(values, images.dtype).reshape((1,) * (images.ndim - 1) + (-1,))

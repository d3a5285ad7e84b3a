"""Colour adjustments of one RGB image in [0, 1], and the jitter that draws their strengths.

Brightness, contrast and saturation are Pillow's enhancers: the image is blended with a degenerate
one (black, its mean grey, its grey version), and a factor above 1 goes beyond the image. Hue turns
the HSV circle. All are in float, so they differ from Pillow by its rounding to 8 bits and by
nothing else.
"""

import jax
import jax.numpy as jnp

# BT.601, as in Pillow's conversion to "L".
LUMA = (0.299, 0.587, 0.114)


def brightness(image_hwc: jax.Array, factor: jax.Array | float) -> jax.Array:
    """factor 0 is black, 1 the image."""
    return blend(jnp.zeros_like(image_hwc), image_hwc, factor)


def contrast(image_hwc: jax.Array, factor: jax.Array | float) -> jax.Array:
    """factor 0 is the image's mean grey, 1 the image."""
    return blend(jnp.full_like(image_hwc, jnp.mean(grey(image_hwc))), image_hwc, factor)


def saturation(image_hwc: jax.Array, factor: jax.Array | float) -> jax.Array:
    """factor 0 is the grey image, 1 the image."""
    return blend(grey(image_hwc), image_hwc, factor)


def hue(image_hwc: jax.Array, turn: jax.Array | float) -> jax.Array:
    """Turns colours by `turn` of the hue circle (-0.5 and 0.5: the opposite); grey stays grey."""
    high = jnp.max(image_hwc, axis=-1)
    chroma = high - jnp.min(image_hwc, axis=-1)
    red, green, blue = (image_hwc[..., channel] for channel in range(3))
    safe = jnp.where(chroma > 0, chroma, 1.0)
    # Channels are compared with each other, never with `high`: XLA may compute the two uses of a
    # channel with different rounding, and then none would equal the maximum.
    sixths_hw = jnp.where(
        (red >= green) & (red >= blue),
        (green - blue) / safe,
        jnp.where(green >= blue, 2.0 + (blue - red) / safe, 4.0 + (red - green) / safe),
    )
    # Each channel falls from the maximum by the chroma times its distance from where it would lead.
    phase_hwc = (sixths_hw + 6.0 * turn)[..., None] + jnp.array([[[5.0, 3.0, 1.0]]])
    phase_hwc = phase_hwc - 6.0 * jnp.floor(phase_hwc / 6.0)
    fall_hwc = jnp.clip(jnp.minimum(phase_hwc, 4.0 - phase_hwc), 0.0, 1.0)
    return high[..., None] - chroma[..., None] * fall_hwc


def color_jitter(rng: jax.Array, image_hwc: jax.Array, strengths: tuple[float, ...]) -> jax.Array:
    """Draws and applies torchvision's ColorJitter to one image.

    strengths = (brightness, contrast, saturation, hue): the first three draw a factor uniformly
    from [max(0, 1 - s), 1 + s], hue a turn from [-s, s], s at most 0.5. A strength of 0 does
    nothing.
    Ours: the order is fixed, as listed, where torchvision shuffles it.
    """
    *factors, turn = strengths
    *factor_keys, turn_key = jax.random.split(rng, 4)
    adjustments = (brightness, contrast, saturation)
    for adjust, strength, key in zip(adjustments, factors, factor_keys, strict=True):
        if strength:
            low, high = max(0.0, 1.0 - strength), 1.0 + strength
            image_hwc = adjust(image_hwc, jax.random.uniform(key, minval=low, maxval=high))
    if turn:
        image_hwc = hue(image_hwc, jax.random.uniform(turn_key, minval=-turn, maxval=turn))
    return image_hwc


def grey(image_hwc: jax.Array) -> jax.Array:
    """Luma, [H, W, 1]."""
    red, green, blue = (image_hwc[..., channel, None] for channel in range(3))
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def blend(degenerate: jax.Array, image: jax.Array, factor: jax.Array | float) -> jax.Array:
    """factor * image + (1 - factor) * degenerate, clipped; factor 1 is the image bit for bit."""
    return jnp.clip(factor * image + (1.0 - factor) * degenerate, 0.0, 1.0)

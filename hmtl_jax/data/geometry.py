"""Rotation, shear, zoom and shift of a crop: one affine map a picture, sampled once.

A map takes each place of the output to one of the picture. It is composed of the crop's box, the
mirror and the drawn movements, so that a picture is interpolated once, whatever is switched on.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Indices are inside by construction; without the promise each gather also masks and fills.
INSIDE = "promise_in_bounds"


class Movement(NamedTuple):
    """How a crop is moved.

    matrix: float32 [2, 2], output (y, x) to source, about the centre. shift: float32 [2], of the
    centre, in sides of the box.
    """

    matrix: jax.Array
    shift: jax.Array


def draw(rng: jax.Array, cfg: Any) -> Movement:
    """One picture's movement: each strength uniform up to what `cfg` (an Augment) says."""
    angle_key, shear_key, zoom_key, shift_key = jax.random.split(rng, 4)

    def uniform(key, largest, shape=()):
        return jax.random.uniform(key, shape, minval=-largest, maxval=largest)

    angle = uniform(angle_key, math.radians(cfg.rotation))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    turn = jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])])
    slant = jnp.eye(2).at[1, 0].set(uniform(shear_key, cfg.shear))
    factor = 1.0 + uniform(zoom_key, cfg.zoom)
    matrix = factor * jnp.matmul(turn, slant, precision="highest")
    return Movement(matrix, uniform(shift_key, cfg.shift, (2,)))


def samples_a_side(largest_shrink: float) -> int:
    """How many samples of the picture a pixel of the output averages along each axis.

    Two where the picture shrinks to a half, and so on: bilinear sampling alone would alias.
    """
    return max(1, round(largest_shrink))


def sample(
    image_hwc: jax.Array,
    box: jax.Array,
    flipped: jax.Array,
    movement: Movement,
    size: int,
    samples: int,
) -> jax.Array:
    """A moved box of one picture, float32 [size, size, C] in [0, 1]; made for vmap.

    image_hwc: float in [0, 1]. box: [top, left, height, width] in pixels. flipped: bool, mirrors
    the result. Bilinear; beyond its border a picture goes on as its outermost pixels.
    """
    count = size * samples
    middle = (count - 1) / 2
    place = (jnp.arange(count, dtype=jnp.float32) - middle) / count  # in sides, from the centre
    y, x = place[:, None], jnp.where(flipped, -place, place)[None]
    (yy, yx), (xy, xx) = movement.matrix
    moved_y = yy * y + yx * x + movement.shift[0]
    moved_x = xy * y + xx * x + movement.shift[1]
    # From sides of the box to pixels, of which the first has its middle at 0.
    source_y = box[0] + box[2] * (0.5 + moved_y) - 0.5
    source_x = box[1] + box[3] * (0.5 + moved_x) - 0.5
    found = bilinear(image_hwc, source_y, source_x)
    if samples > 1:
        found = found.reshape(size, samples, size, samples, -1).mean((1, 3))
    return found


def bilinear(image_hwc: jax.Array, y_hw: jax.Array, x_hw: jax.Array) -> jax.Array:
    """The image at real coordinates, clamped to its outermost pixels; at least 2 x 2 of them."""
    height, width, channels = image_hwc.shape
    y_hw, x_hw = jnp.clip(y_hw, 0.0, height - 1.0), jnp.clip(x_hw, 0.0, width - 1.0)
    top_hw = jnp.minimum(jnp.floor(y_hw), height - 2)
    left_hw = jnp.minimum(jnp.floor(x_hw), width - 2)
    down_hw1, right_hw1 = (y_hw - top_hw)[..., None], (x_hw - left_hw)[..., None]
    index_hw = (top_hw * width + left_hw).astype(jnp.int32)
    flat_nc = image_hwc.reshape(-1, channels)
    upper, upper_right, lower, lower_right = (
        flat_nc.at[index_hw + offset].get(mode=INSIDE) for offset in (0, 1, width, width + 1)
    )
    upper = upper + right_hw1 * (upper_right - upper)
    lower = lower + right_hw1 * (lower_right - lower)
    return upper + down_hw1 * (lower - upper)

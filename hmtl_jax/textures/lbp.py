"""Local binary patterns (Ojala, Pietikainen, Maenpaa, TPAMI 2002), equal to scikit-image's."""

import functools
import math

import jax
import jax.numpy as jnp

from hmtl_jax import errors

# scikit-image rounds the circle's coordinates to five decimals. So a sample lies at a whole number
# of these units, and its four bilinear weights are whole numbers of 1 / UNIT**2.
_UNIT = 100_000
# Those weights have 34 bits; in int32 they are summed as a high and a low part of this many bits.
_LOW_BITS = 16


def lbp(
    gray_bhw: jax.Array, points: int = 8, radius: float = 1, method: str = "default"
) -> jax.Array:
    """Codes of the `points` samples on a circle of `radius` pixels around each pixel.

    Bit p is set where sample p, at angle 2 pi p / points from the right, anticlockwise, is not
    darker than the centre. Samples between pixels are interpolated bilinearly; outside the image
    all is 0, as in `skimage.feature.local_binary_pattern`.

    Args:
      gray_bhw: integer levels (0..255, or any that span at most 8191), or floating point.
      points: P, 1 to 30.
      radius: R > 0, in pixels.
      method: "default": all P bits, codes 0..2**P - 1. "ror": the smallest code that a rotation
        of the bits gives. "uniform": the number of set bits where they change at most twice
        around the circle, P + 1 elsewhere. "var": variance of the samples in squared grey levels.

    Returns:
      int32 [B, H, W]; for "var" float32 [B, H, W].

    Ties: integer levels are compared in exact integer arithmetic, so a sample that equals the
    centre sets its bit, always. scikit-image decides such ties by float64 rounding where the
    sample is interpolated, and differs from the definition in some of them; nowhere else do the
    codes differ. Floating point is compared in float32. In "var", a flat circle gives 0 (in
    scikit-image NaN).
    """
    if not 1 <= points <= 30 or radius <= 0:
        raise errors.UserError(
            f"lbp needs 1 to 30 points and a positive radius, not P={points}, R={radius}."
        )
    combine = errors.lookup(_METHODS, method, "lbp method")
    exact = jnp.issubdtype(gray_bhw.dtype, jnp.integer)
    neighbours = _neighbours(gray_bhw.astype(jnp.int32 if exact else jnp.float32), points, radius)
    if method == "var":
        return combine([_weighted_sum(neighbour) for neighbour in neighbours])
    not_darker = _exact_sign if exact else _float_sign
    return combine([not_darker(neighbour).astype(jnp.int32) for neighbour in neighbours])


def _neighbours(gray_bhw, points, radius):
    """For each sample, its bilinear [(weight in units, pixel minus centre as [B, H, W])].

    The centre is subtracted before weighting: a flat surrounding gives 0 without rounding.
    """
    margin = math.ceil(radius) + 1
    padded = jnp.pad(gray_bhw, ((0, 0), (margin, margin), (margin, margin)))
    _, height, width = gray_bhw.shape

    def shifted(dy, dx):
        y, x = margin + dy, margin + dx
        return padded[:, y : y + height, x : x + width] - gray_bhw

    return [
        [(weight, shifted(dy, dx)) for dy, dx, weight in _corners(index, points, radius)]
        for index in range(points)
    ]


def _corners(index, points, radius):
    """The pixels around one sample: (dy, dx, weight), without those of weight 0."""
    angle = 2 * math.pi * index / points
    y, y_part = divmod(round(-radius * math.sin(angle) * _UNIT), _UNIT)
    x, x_part = divmod(round(radius * math.cos(angle) * _UNIT), _UNIT)
    corners = [
        (y + below, x + right, y_weight * x_weight)
        for below, y_weight in ((0, _UNIT - y_part), (1, y_part))
        for right, x_weight in ((0, _UNIT - x_part), (1, x_part))
    ]
    return [corner for corner in corners if corner[2]]


def _weighted_sum(neighbour):
    """The interpolated sample minus the centre, float32."""
    return sum((weight / _UNIT**2) * value.astype(jnp.float32) for weight, value in neighbour)


def _float_sign(neighbour):
    return jnp.greater_equal(_weighted_sum(neighbour), 0)


def _exact_sign(neighbour):
    """Whether the interpolated sample is at least the centre, in int32 without overflow."""
    if len(neighbour) == 1:
        return jnp.greater_equal(neighbour[0][1], 0)
    low_mask = (1 << _LOW_BITS) - 1
    high = sum((weight >> _LOW_BITS) * value for weight, value in neighbour)
    low = sum((weight & low_mask) * value for weight, value in neighbour)
    # sum = high * 2**16 + low; the shift rounds down, so what it drops cannot change the sign.
    return jnp.greater_equal(high + (low >> _LOW_BITS), 0)


def _default(bits):
    return sum(bit << index for index, bit in enumerate(bits))


def _ror(bits):
    points, code = len(bits), _default(bits)
    low_bits = [code & ((1 << shift) - 1) for shift in range(points)]
    turned = [(code >> shift) | (low_bits[shift] << (points - shift)) for shift in range(points)]
    return functools.reduce(jnp.minimum, turned)


def _uniform(bits):
    changes = sum(bits[index - 1] ^ bits[index] for index in range(len(bits)))
    return jnp.where(changes <= 2, sum(bits), len(bits) + 1)


def _var(samples):
    # The samples are differences from the centre, which leaves the variance as it is and loses
    # less to float32 rounding than grey levels would.
    mean = sum(samples) / len(samples)
    return sum((sample - mean) ** 2 for sample in samples) / len(samples)


_METHODS = {"default": _default, "ror": _ror, "uniform": _uniform, "var": _var}

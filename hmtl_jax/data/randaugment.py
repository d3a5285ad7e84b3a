"""RandAugment (Cubuk 2020, arXiv 1909.13719) with timm's `rand-mM-inc1` operations and strengths.

Each of n layers draws one operation, uniformly and with replacement, and applies it with
probability 0.5 (timm's). Strengths grow with the magnitude m of 0 to 10; at 9: rotation 27°, shear
0.27, shift 0.405 of the side, colour factors 1.81 or 0.19, posterise to 1 bit, solarise from 26,
solarise-add 99.

Ours, and not timm's:
- The magnitude has no noise (timm: `mstd`), and bilinear is the only interpolation.
- An example's geometric operations are composed into one warp, which comes first: the image is
  interpolated once, whatever n is. Shears are about the centre, so that the face stays in view.
- Colour operations work on the image rounded to 8 bits, as in Pillow, but do not round their
  result.
- What is computed: on a device all lanes run the same program, so per layer every image gets all
  that any operation needs. Hence eight operations are tables over the 256 codes of a channel, made
  from the channel's histogram and applied by one gather, and two are blends. A switch that really
  branched would run the examples one after another; selecting among ten finished images costs three
  times more.
"""

import jax
import jax.numpy as jnp
import numpy as np

from hmtl_jax.data import colour
from hmtl_jax.data.geometry import INSIDE, bilinear

APPLY_PROBABILITY = 0.5
MAX_MAGNITUDE = 10.0


def randaugment(
    rng: jax.Array,
    image_hwc: jax.Array,
    layers: int,
    magnitude: float,
    geometric: bool,
    fill: tuple[float, float, float],
) -> jax.Array:
    """Draws and applies `layers` operations to one float image in [0, 1]; made for vmap.

    geometric=False draws among the colour operations only, for labels that a warp would falsify.
    fill is the colour that a warp moves in from outside.
    """
    choices = len(OPS) if geometric else len(OPS) - len(GEOMETRIC)
    op_key, apply_key, sign_key = jax.random.split(rng, 3)
    ops_n = jax.random.randint(op_key, (layers,), 0, choices)
    applied_n = jax.random.bernoulli(apply_key, APPLY_PROBABILITY, (layers,))
    signs_n = jnp.where(jax.random.bernoulli(sign_key, 0.5, (layers,)), 1.0, -1.0)
    ops_n = jnp.where(applied_n, ops_n, len(OPS))
    level = magnitude / MAX_MAGNITUDE
    if geometric:
        matrix = jnp.eye(3)
        for op, sign in zip(ops_n, signs_n, strict=True):
            # Matrices map output to source, so the later operation stands on the right.
            matrix = jnp.matmul(matrix, geometric_matrix(op, sign * level), precision="highest")
        image_hwc = warp(image_hwc, matrix, fill)
    for op, sign in zip(ops_n, signs_n, strict=True):
        # Each stage reads its input many times (counts, codes, 3x3 neighbours); unless a barrier
        # makes it lie in memory, XLA computes the stage before anew for each reading.
        image_hwc = jax.lax.optimization_barrier(image_hwc)
        image_hwc = colour_op(image_hwc, op, level, sign)
    return image_hwc


def colour_op(image_hwc: jax.Array, op: jax.Array, level: float, sign: jax.Array) -> jax.Array:
    """The colour operation that `op` numbers among OPS; the image itself for any other number."""
    codes_hwc = jnp.round(image_hwc * 255.0).astype(jnp.int32) + 256 * jnp.arange(3)[None, None]
    counts_n = jnp.zeros(3 * 256, jnp.int32).at[codes_hwc].add(1, mode=INSIDE)
    counts_c256 = counts_n.reshape(3, 256)
    tables = [table(counts_c256, level, sign).reshape(-1) for table in TABLES.values()]
    # Chosen by a product, because XLA would fuse a select into the gather below, and make all the
    # tables anew for each pixel.
    chosen = jax.nn.one_hot(op, len(tables))[None]
    table_n = jnp.matmul(chosen, jnp.stack(tables), precision="highest")[0]
    table_n = jnp.clip(table_n * (1 / 255), 0.0, 1.0)
    looked_up_hwc = table_n.at[codes_hwc].get(mode=INSIDE)

    is_color, is_sharpness = op == OPS.index("color"), op == OPS.index("sharpness")
    factor = jnp.where(is_color | is_sharpness, enhance_factor(level, sign), 1.0)
    base_hwc = jnp.where(is_color, colour.grey(image_hwc), smooth(image_hwc))
    return jnp.where(op < len(tables), looked_up_hwc, colour.blend(base_hwc, image_hwc, factor))


def enhance_factor(level: float, sign: jax.Array) -> jax.Array:
    """The factor of color, contrast, brightness and sharpness: 1 ± 0.9 * level."""
    return 1.0 + sign * (0.9 * level)


def autocontrast(counts_c256: jax.Array, level: float, sign: jax.Array) -> jax.Array:
    """Stretches each channel to 0..255; a constant channel stays."""
    codes = _codes()
    low = jnp.min(jnp.where(counts_c256 > 0, codes, 255.0), axis=1, keepdims=True)
    high = _brightest(counts_c256)
    return jnp.where(high > low, (codes - low) * (255.0 / jnp.maximum(high - low, 1.0)), codes)


def equalize(counts_c256: jax.Array, level: float, sign: jax.Array) -> jax.Array:
    """Makes each channel's histogram flat, with the integer arithmetic of Pillow's equalize."""
    # A sum over "codes up to mine", as a product: XLA's cumsum is quadratic and slow on CPU. Exact
    # below 2**24 pixels.
    up_to = jnp.asarray(np.triu(np.ones((256, 256), np.float32)))
    ends = jnp.matmul(counts_c256.astype(jnp.float32), up_to, precision="highest").astype(jnp.int32)
    at_top = jnp.max(jnp.where(_codes() == _brightest(counts_c256), counts_c256, 0), axis=1)
    step = (ends[:, -1:] - at_top[:, None]) // 255
    table = (step // 2 + ends - counts_c256) // jnp.maximum(step, 1)
    # Too few pixels below the brightest code to spread: Pillow leaves the channel alone.
    return jnp.where(step > 0, table.astype(jnp.float32), _codes())


def invert(counts_c256: jax.Array, level: float, sign: jax.Array) -> jax.Array:
    """Every code c becomes 255 - c."""
    return 255.0 - _codes()


def posterize(counts_c256: jax.Array, level: float, sign: jax.Array) -> jax.Array:
    """Keeps 4 - int(4 * level) high bits."""
    unit = 2.0 ** (4 + int(4 * level))
    return jnp.floor(_codes() / unit) * unit


def solarize(counts_c256: jax.Array, level: float, sign: jax.Array) -> jax.Array:
    """Inverts from code 256 - int(256 * level) up."""
    codes = _codes()
    return jnp.where(codes < 256 - int(256 * level), codes, 255.0 - codes)


def solarize_add(counts_c256: jax.Array, level: float, sign: jax.Array) -> jax.Array:
    """Adds int(110 * level) to codes below 128."""
    codes = _codes()
    return jnp.where(codes < 128, codes + int(110 * level), codes)


def contrast(counts_c256: jax.Array, level: float, sign: jax.Array) -> jax.Array:
    """Away from the image's mean grey, or towards it."""
    sums_c = jnp.sum(counts_c256.astype(jnp.float32) * _codes(), axis=1)
    pixels = jnp.sum(counts_c256[0]).astype(jnp.float32)
    mean_grey = jnp.sum(sums_c * jnp.array(colour.LUMA)) / pixels
    return mean_grey + enhance_factor(level, sign) * (_codes() - mean_grey)


def brightness(counts_c256: jax.Array, level: float, sign: jax.Array) -> jax.Array:
    """Away from black, or towards it."""
    return enhance_factor(level, sign) * _codes()


def smooth(image_hwc: jax.Array) -> jax.Array:
    """Pillow's SMOOTH: 3x3 weights 1, in the middle 5, of 13; the outermost pixels stay."""
    inner_hwc = image_hwc[1:-1, 1:-1]
    sums_hwc = jax.lax.reduce_window(image_hwc, 0.0, jax.lax.add, (3, 3, 1), (1, 1, 1), "VALID")
    return image_hwc.at[1:-1, 1:-1].set((sums_hwc + 4.0 * inner_hwc) * (1 / 13))


def _codes() -> jax.Array:
    return jnp.broadcast_to(jnp.arange(256, dtype=jnp.float32)[None], (3, 256))


def _brightest(counts_c256: jax.Array) -> jax.Array:
    return jnp.max(jnp.where(counts_c256 > 0, _codes(), 0.0), axis=1, keepdims=True)


def geometric_matrix(op: jax.Array, signed_level: jax.Array) -> jax.Array:
    """The 3x3 matrix, output (y, x, 1) to source, in units of half sides about the centre.

    The identity when `op` numbers none of GEOMETRIC.
    """
    zero, one = jnp.zeros(()), jnp.ones(())
    angle, shear_x, shear_y, move_x, move_y = (
        jnp.where(op == OPS.index(name), signed_level * largest, 0.0)
        for name, largest in GEOMETRIC.items()
    )
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    rows = [[cos, -sin + shear_y, move_y], [sin + shear_x, cos, move_x], [zero, zero, one]]
    return jnp.stack([jnp.stack(row) for row in rows])


def warp(image_hwc: jax.Array, matrix: jax.Array, fill: tuple[float, float, float]) -> jax.Array:
    """Samples the image bilinearly where `matrix` sends each output pixel; outside it is `fill`.

    matrix: as from geometric_matrix. Between the outermost pixels and the outside, colours blend
    over one pixel. The identity matrix returns the image bit for bit.
    """
    height, width, _ = image_hwc.shape
    ring_hwc = jnp.broadcast_to(jnp.array([[fill]], jnp.float32), (height + 2, width + 2, 3))
    padded_hwc = ring_hwc.at[1:-1, 1:-1].set(image_hwc)
    # Square units: an oblong image must turn without shearing.
    half = max(height, width) / 2
    centre_y, centre_x = (height - 1) / 2, (width - 1) / 2
    y = jnp.arange(height, dtype=jnp.float32)[:, None] - centre_y
    x = jnp.arange(width, dtype=jnp.float32)[None] - centre_x
    source_y = matrix[0, 0] * y + matrix[0, 1] * x + (matrix[0, 2] * half + (centre_y + 1))
    source_x = matrix[1, 0] * y + matrix[1, 1] * x + (matrix[1, 2] * half + (centre_x + 1))
    return bilinear(padded_hwc, source_y, source_x)


# Each: (counts_c256 of the image's codes, level = magnitude / 10, sign ±1) -> float32 [3, 256], the
# new values on the scale of 0 to 255, clipped later.
TABLES = {
    "autocontrast": autocontrast,
    "equalize": equalize,
    "invert": invert,
    "posterize": posterize,
    "solarize": solarize,
    "solarize_add": solarize_add,
    "contrast": contrast,
    "brightness": brightness,
}
BLENDS = ("color", "sharpness")
# The largest angle in radians, slopes, and shifts in half sides, at level 1.
GEOMETRIC = {
    "rotate": np.pi / 6,
    "shear_x": 0.3,
    "shear_y": 0.3,
    "translate_x": 0.9,
    "translate_y": 0.9,
}
OPS = (*TABLES, *BLENDS, *GEOMETRIC)

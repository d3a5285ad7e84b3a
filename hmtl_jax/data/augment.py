"""Augmentation on the device: uint8 images in, float views in [0, 1] out, inside the jitted step.

Every example draws from its own key, split from the step's key by its place in the global batch.
So the values depend on that key and place, not on how the batch is sharded.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from hmtl_jax import limits
from hmtl_jax.data import geometry, mixing, order
from hmtl_jax.data.colour import color_jitter
from hmtl_jax.data.mixing import mix_target
from hmtl_jax.data.randaugment import MAX_MAGNITUDE, randaugment
from hmtl_jax.images import IMAGENET_MEAN, denormalise

__all__ = [
    "Augment",
    "augment",
    "mix",
    "mix_target",
    "to_float",
]

# Full float32 products: TF32 or bf16 passes would move 8-bit values by up to half a grey level.
EXACT = jax.lax.Precision.HIGHEST
# How often a box is drawn until one fits into the image, in torchvision and timm.
BOX_TRIES = 10
ERASED_AREA = (0.02, 1 / 3)
ERASED_RATIO = (0.3, 1 / 0.3)

LIMITS = {
    "image_size": limits.whole(1),
    "crop_scale": limits.pair(0, 1, "two fractions of the area, low to high"),
    "crop_ratio": limits.pair(0, math.inf, "two numbers over 0, low to high"),
    "flip": limits.number(0, 1, "a probability"),
    "rotation": limits.number(0, 180, "degrees"),
    "shear": limits.number(0, 1, "a slope"),
    "zoom": limits.share("a part of the side"),
    "shift": limits.share("a part of the side"),
    "color_jitter": (
        lambda s: len(s) == 4 and all(map(limits.is_number, s)) and min(s) >= 0 and s[3] <= 0.5,
        "brightness, contrast, saturation of 0 or more, and hue from 0 to 0.5",
    ),
    "randaugment": (
        lambda pair: (
            len(pair) == 2
            and limits.is_whole(pair[0])
            and pair[0] >= 0
            and limits.is_number(pair[1])
            and 0 <= pair[1] <= MAX_MAGNITUDE
        ),
        "(a whole number of operations, a magnitude from 0 to 10)",
    ),
    "randaugment_geometric": limits.flag(),
    "erasing": limits.number(0, 1, "a probability"),
    "mixup": limits.number(0, what="an alpha, 0 for off,"),
    "cutmix": limits.number(0, what="an alpha, 0 for off,"),
}


@dataclasses.dataclass(frozen=True)
class Augment:
    """What augment() and mix() do; every default is "off": `Augment(image_size=S)` is to_float().

    image_size: side S of the square output.
    crop_scale: range of the crop's area as a fraction of the image's; (1, 1) is off.
    crop_ratio: range of the crop's width / height, log-uniform; unread while the crop is off.
    flip: probability of a horizontal flip.
    rotation, shear, zoom, shift: how far the crop is moved at most, each way: degrees; columns a
    row; the part of its side by which the crop grows or shrinks; and by which it moves, on either
    axis. Each is drawn uniformly. They and the crop are one resampling.
    color_jitter: strengths of brightness, contrast, saturation (0 or more) and hue (0 to 0.5).
    randaugment: (n, m): n operations of magnitude m, 0 to 10; timm's `rand-m9-inc1` is (2, 9).
    randaugment_geometric: False leaves out rotation, shear and shift, for labels that they falsify.
    erasing: probability that a rectangle is replaced by noise.
    mixup, cutmix: alpha of the Beta(alpha, alpha) that draws the share; 0 is off.
    Hashable, so it can be a static argument of jit. Raises UserError for a value out of its range.
    """

    image_size: int
    crop_scale: tuple[float, float] = (1.0, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    rotation: float = 0.0
    shear: float = 0.0
    zoom: float = 0.0
    shift: float = 0.0
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    randaugment: tuple[int, float] = (0, 0.0)
    randaugment_geometric: bool = True
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):  # a recipe that went through JSON
                object.__setattr__(self, field.name, tuple(value))
        limits.check("augment.", vars(self), LIMITS)

    @property
    def slants(self) -> bool:
        """Whether a picture may be turned or sheared, which falsifies some labels."""
        drawn = self.randaugment[0] and self.randaugment_geometric
        return bool(self.rotation or self.shear or drawn)

    @property
    def moves(self) -> bool:
        """Whether a crop is moved, beside being cut out."""
        return bool(self.rotation or self.shear or self.zoom or self.shift)


def augment(rng: jax.Array, images_bhwc: jax.Array, cfg: Augment) -> tuple[jax.Array, jax.Array]:
    """Draws one view of each image: crop, flip and movement, RandAugment, colour jitter, erasing.

    rng: one key. images_bhwc: uint8 [B, H, W, 3], RGB, of any H and W.
    Returns (float32 [B, S, S, 3] in [0, 1], bool [B]: which examples were flipped). Tasks read the
    second to mend labels that a mirror changes.
    """
    batch, height, width, _ = images_bhwc.shape
    # One stream per part, whether it is on or not: switching one on leaves the others' draws alone.
    keys = jax.vmap(lambda key: jax.random.split(key, 5))(jax.random.split(rng, batch))
    flip_keys, crop_keys, rand_keys, jitter_keys, erase_keys = (keys[:, part] for part in range(5))
    flipped = jax.vmap(lambda key: jax.random.uniform(key) < cfg.flip)(flip_keys)
    boxes = jnp.array([[0.0, 0.0, height, width]], jnp.float32)
    cropped = cfg.crop_scale != (1.0, 1.0)
    if cropped:
        draw = functools.partial(
            crop_box, size=(height, width), scale=cfg.crop_scale, ratio=cfg.crop_ratio
        )
        boxes = jax.vmap(draw)(crop_keys)
    if cfg.moves:
        moving = jax.vmap(lambda key: geometry.draw(jax.random.fold_in(key, 1), cfg))(crop_keys)
        boxes = jnp.broadcast_to(boxes, (batch, 4))
        images = moved(images_bhwc, boxes, flipped, moving, cfg)
    elif cropped:
        images = resample(images_bhwc, boxes, flipped, cfg.image_size)
    else:
        images = to_float(images_bhwc, cfg.image_size)
        if cfg.flip:
            images = jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)
    if cfg.randaugment[0]:
        layers, magnitude = cfg.randaugment
        settings = (layers, magnitude, cfg.randaugment_geometric, IMAGENET_MEAN)
        images = jax.vmap(lambda key, image: randaugment(key, image, *settings))(rand_keys, images)
    if any(cfg.color_jitter):
        jitter = functools.partial(color_jitter, strengths=cfg.color_jitter)
        images = jax.vmap(jitter)(jitter_keys, images)
    if cfg.erasing:
        erasing = functools.partial(erase, probability=cfg.erasing)
        images = jax.vmap(erasing)(erase_keys, images)
    return images, flipped


def mix(
    rng: jax.Array, images_bhwc: jax.Array, cfg: Augment, layout: order.Layout = order.WHOLE
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mixup and CutMix as `cfg` says: mixing.mix(), with its returns (images, partner, share)."""
    return mixing.mix(rng, images_bhwc, cfg.mixup, cfg.cutmix, layout)


def to_float(images_bhwc: jax.Array, size: int) -> jax.Array:
    """The evaluation transform: uint8 [B, H, W, 3] to float32 [B, size, size, 3] in [0, 1].

    Another size is reached by antialiased bilinear resampling (Pillow's BILINEAR); an oblong image
    is squeezed to the square, not cut.
    """
    height, width = images_bhwc.shape[1:3]
    if (height, width) == (size, size):
        return _unit(images_bhwc)
    whole = jnp.array([[0.0, 0.0, height, width]], jnp.float32)
    return resample(images_bhwc, whole, jnp.zeros(1, bool), size)


def crop_box(
    rng: jax.Array, size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> jax.Array:
    """Draws one box as torchvision's RandomResizedCrop does.

    size: the image's height and width. Returns float32 [top, left, height, width] in pixels: area
    uniform in `scale`, width / height log-uniform in `ratio`; the first of ten boxes that fits,
    else the largest central box whose ratio is allowed. Ours: edges are real numbers, not whole
    pixels, so that small images have as many crops as large ones.
    """
    sides_key, place_key = jax.random.split(rng)
    sides, fits = _draw_sides(sides_key, size, scale, ratio)
    height, width = size
    image = jnp.array([height, width], jnp.float32)
    central = jnp.minimum(image, jnp.array([width / ratio[0], height * ratio[1]], jnp.float32))
    sides = jnp.where(fits, sides, central)
    place = jnp.where(fits, jax.random.uniform(place_key, (2,)), 0.5)
    return jnp.concatenate([place * (image - sides), sides])


def _draw_sides(rng, size, area, ratio) -> tuple[jax.Array, jax.Array]:
    """The first of ten drawn [height, width] that fits in `size`, and whether any did."""
    area_key, ratio_key = jax.random.split(rng)
    areas_t = jax.random.uniform(area_key, (BOX_TRIES,), minval=area[0], maxval=area[1])
    areas_t = areas_t * (size[0] * size[1])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    ratios_t = jnp.exp(jax.random.uniform(ratio_key, (BOX_TRIES,), minval=low, maxval=high))
    sides_t2 = jnp.sqrt(jnp.stack([areas_t / ratios_t, areas_t * ratios_t], axis=1))
    fits_t = jnp.all(sides_t2 <= jnp.array([size], jnp.float32), axis=1)
    return sides_t2[jnp.argmax(fits_t)], jnp.any(fits_t)


def resample(
    images_bhwc: jax.Array, boxes_b4: jax.Array, flipped_b: jax.Array, size: int
) -> jax.Array:
    """Resamples a box of each image to [size, size] and mirrors it where told.

    uint8 [B, H, W, 3] in, float32 in [0, 1] out. boxes_b4 holds [top, left, height, width] in
    pixels; boxes and flags may have a batch of one. Bilinear with antialiasing: the triangle filter
    widens by the factor of shrinking, as in Pillow's resize(box=...). It is separable, so the work
    is two small matrix products per image; the mirror is folded into one, and costs nothing.
    """
    batch, height, width, channels = images_bhwc.shape
    never = jnp.zeros_like(flipped_b)
    filter_v = jax.vmap(_filter, in_axes=(0, 0, 0, None, None))
    rows_bsh = filter_v(boxes_b4[:, 0], boxes_b4[:, 2], never, height, size)
    columns_bsw = filter_v(boxes_b4[:, 1], boxes_b4[:, 3], flipped_b, width, size)
    # Channels go to the front for the products: last, they would make an inner axis of only 3.
    x = _unit(images_bhwc.transpose(0, 3, 1, 2)).reshape(batch, channels * height, width)
    x = jnp.matmul(x, columns_bsw.transpose(0, 2, 1), precision=EXACT)
    x = jnp.matmul(rows_bsh[:, None], x.reshape(batch, channels, height, size), precision=EXACT)
    # Weights sum to 1 only up to rounding.
    return jnp.minimum(x, 1.0).transpose(0, 2, 3, 1)


def moved(
    images_bhwc: jax.Array,
    boxes_b4: jax.Array,
    flipped_b: jax.Array,
    moving: geometry.Movement,
    cfg: Augment,
) -> jax.Array:
    """Resamples a moved box of each image: uint8 [B, H, W, 3] in, float32 in [0, 1] out."""
    largest_box = max(images_bhwc.shape[1:3]) * cfg.crop_scale[1] ** 0.5 * (1 + cfg.zoom)
    shrink = largest_box / cfg.image_size
    sample = functools.partial(
        geometry.sample, size=cfg.image_size, samples=geometry.samples_a_side(shrink)
    )
    return jax.vmap(sample)(_unit(images_bhwc), boxes_b4, flipped_b, moving)


def erase(rng: jax.Array, image_hwc: jax.Array, probability: float) -> jax.Array:
    """Random erasing (Zhong 2017, arXiv 1708.04896) as timm's "pixel" mode does it.

    Replaces one rectangle, of 2 to 33 % of the area and an aspect of 0.3 to 3.3, by Gaussian noise
    of its own at each pixel and channel. timm draws N(0, 1) after normalising; on images in [0, 1]
    that is ImageNet's mean and deviation. Ours: clipped to [0, 1], and of 256 levels.
    """
    height, width, _ = image_hwc.shape
    apply_key, sides_key, place_key, noise_key = jax.random.split(rng, 4)
    sides, fits = _draw_sides(sides_key, (height, width), ERASED_AREA, ERASED_RATIO)
    sides = jnp.round(sides).astype(jnp.int32)
    room = jnp.array([height, width]) - sides
    start = jax.random.randint(place_key, (2,), 0, room + 1)
    past_h, past_w = jnp.arange(height) - start[0], jnp.arange(width) - start[1]
    inside_h, inside_w = (past_h >= 0) & (past_h < sides[0]), (past_w >= 0) & (past_w < sides[1])
    on = fits & (jax.random.uniform(apply_key) < probability)
    inside_hw1 = (on & inside_h[:, None] & inside_w[None])[..., None]
    noise_hwc = denormalise(_gauss(noise_key, image_hwc.shape))
    return jnp.where(inside_hw1, jnp.clip(noise_hwc, 0.0, 1.0), image_hwc)


def _gauss(rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """N(0, 1) in 256 equally likely levels, at a fifth of the cost of random.normal()."""
    count = math.prod(shape)
    # The barrier keeps XLA from drawing each word again for each of its four bytes.
    words_n = jax.lax.optimization_barrier(jax.random.bits(rng, (math.ceil(count / 4),)))
    shifts = jnp.array([[0], [8], [16], [24]], jnp.uint32)
    bytes_n = ((words_n[None] >> shifts) & jnp.uint32(255)).reshape(-1)[:count]
    table = jax.scipy.special.ndtri((jnp.arange(256, dtype=jnp.float32) + 0.5) / 256)
    return table.at[bytes_n.astype(jnp.int32)].get(mode="promise_in_bounds").reshape(shape)


def _filter(start, length, mirrored, inputs: int, outputs: int) -> jax.Array:
    """The matrix [outputs, inputs] that resamples [start, start + length) of one axis."""
    step = length / outputs
    centres = start + step * (jnp.arange(outputs, dtype=jnp.float32) + 0.5)
    centres = jnp.where(mirrored, centres[::-1], centres)
    pixels = jnp.arange(inputs, dtype=jnp.float32) + 0.5
    distance = jnp.abs(centres[:, None] - pixels[None]) / jnp.maximum(step, 1.0)
    weights = jnp.maximum(0.0, 1.0 - distance)
    return weights / weights.sum(axis=1, keepdims=True)


def _unit(images: jax.Array) -> jax.Array:
    if images.dtype != jnp.uint8:
        raise TypeError(f"augmentation reads uint8 images, not {images.dtype}")
    # Written as the product that XLA makes of a division, so that eager and jitted bits agree.
    return images.astype(jnp.float32) * (1 / 255)

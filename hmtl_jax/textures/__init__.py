"""Textures: code maps of an image, as targets (and inputs) of the masked autoencoder.

A texture is one pure function of grey levels and one line in `TEXTURES`. All run on device, inside
the jitted step, on the augmented images. They are taken from luma; `NAME_rgb` is the same texture
of red, green and blue, one after the other. forms.py has the forms in which they are targets.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp

from hmtl_jax import errors
from hmtl_jax.textures.cs_lbp import cs_lbp
from hmtl_jax.textures.hog import hog
from hmtl_jax.textures.lbp import lbp
from hmtl_jax.textures.ldp import ldp
from hmtl_jax.textures.ltp import ltp
from hmtl_jax.textures.sobel import sobel

# Largest variance that levels 0..255 can have: half of them 0 and half of them 255.
_MAX_VAR = 127.5**2


@dataclass(frozen=True)
class Texture:
    """How to compute a texture and what its codes are.

    codes: int32 grey levels 0..255 [B, H, W] -> [B, H, W], or [B, H, W, channels] where channels
      is not 1: int32 codes out of `values`, or float32 in [0, 1] where `values` is None.
    values: the codes that can occur, ascending; None where the texture is continuous.
    channels: maps per image.
    of_each_colour: whether the grey levels are those of red, green and blue instead of luma.
    bits: comparisons of which a code is made, its lowest bits; None where it is not made so.
    mean: of codes over the largest one, in faces of 48 px, and so nearly of bits (ours: FER+ and
      FairFace agree to 0.06). What predicts the texture starts there.
    """

    codes: Callable[[jax.Array], jax.Array]
    values: tuple[int, ...] | None
    mean: float
    channels: int = 1
    of_each_colour: bool = False
    bits: int | None = None

    @property
    def num_codes(self) -> int | None:
        """Number of classes when the target is classified; None where continuous."""
        return None if self.values is None else len(self.values)


def luma(images_bhwc: jax.Array) -> jax.Array:
    """RGB in [0, 1] -> float32 [B, H, W] in [0, 1], by BT.601's weights."""
    # Written out, because a matrix product is rounded to bfloat16 on some accelerators.
    red, green, blue = (images_bhwc[..., channel].astype(jnp.float32) for channel in range(3))
    return 0.299 * red + 0.587 * green + 0.114 * blue


def levels(images_bhwc: jax.Array) -> jax.Array:
    """RGB in [0, 1] -> luma as int32 levels 0..255 [B, H, W], rounded as an 8-bit file would be."""
    return _rounded(luma(images_bhwc))


def _rounded(grey: jax.Array) -> jax.Array:
    """[0, 1] -> int32 0..255.

    Rounding is ours: it makes a texture equal to that of the same image saved and read again, and
    keeps float noise of the augmentation from drawing patterns into flat skin.
    """
    return jnp.round(jnp.clip(grey, 0, 1) * 255).astype(jnp.int32)


def codes(name: str, images_bhwc: jax.Array) -> jax.Array:
    """RGB in [0, 1] -> the texture's raw codes [B, H, W, channels]: int32, or float32 in [0, 1].

    An unknown name raises UserError.
    """
    texture = errors.lookup(TEXTURES, name, "texture")
    shape = (*images_bhwc.shape[:3], texture.channels)
    if texture.of_each_colour:
        colours = [_rounded(images_bhwc[..., channel].astype(jnp.float32)) for channel in range(3)]
        stacked = texture.codes(_once(jnp.concatenate(colours)))
        found = jnp.stack(jnp.split(stacked, 3), axis=3)
    else:
        found = texture.codes(_once(levels(images_bhwc)))
    return _once(found.reshape(shape))


def _once(maps: jax.Array) -> jax.Array:
    """maps, as an array of its own.

    XLA would compute a pixel's grey level anew for each neighbour and its code for each bit, and
    both one by one where a map is padded or cut into patches: the larger part of a small step.
    """
    return jax.lax.optimization_barrier(maps)


def target(name: str, images_bhwc: jax.Array) -> jax.Array:
    """RGB in [0, 1] -> float32 [B, H, W, channels] in [0, 1]: codes divided by the largest one."""
    values = errors.lookup(TEXTURES, name, "texture").values
    return codes(name, images_bhwc).astype(jnp.float32) / (1 if values is None else values[-1])


def classes(name: str, images_bhwc: jax.Array) -> jax.Array:
    """RGB in [0, 1] -> int32 [B, H, W, channels] in [0, num_codes): each code's rank in `values`.

    A continuous texture raises UserError.
    """
    values = errors.lookup(TEXTURES, name, "texture").values
    if values is None:
        discrete = ", ".join(sorted(key for key, texture in TEXTURES.items() if texture.values))
        raise errors.UserError(
            f"Texture {name!r} is continuous and has no codes to classify; with codes: {discrete}."
        )
    return jnp.searchsorted(jnp.array(values, jnp.int32), codes(name, images_bhwc)).astype(
        jnp.int32
    )


def as_input(name: str, images_bhwc: jax.Array) -> jax.Array:
    """RGB in [0, 1] -> what an encoder reads instead, float32 [B, H, W, 3] in [0, 1].

    `rgb` returns the images. One map is repeated three times; two get an empty third; of more, an
    encoder sees the means of three groups of neighbours (ours).
    """
    texture = errors.lookup({"rgb": None, **TEXTURES}, name, "texture")
    if texture is None:
        return images_bhwc
    maps = target(name, images_bhwc)
    if texture.channels == 1:
        return jnp.repeat(maps, 3, axis=3)
    missing = -texture.channels % 3
    maps = jnp.pad(maps, ((0, 0), (0, 0), (0, 0), (0, missing)))
    return jnp.mean(maps.reshape(*maps.shape[:3], 3, -1), axis=-1)


def _log_var(gray_bhw: jax.Array) -> jax.Array:
    """LBP's variance on a logarithmic scale in [0, 1] (ours): a linear one is nearly all black."""
    return jnp.log1p(lbp(gray_bhw, method="var")) / jnp.log1p(_MAX_VAR)


def _smallest_rotations(points: int) -> tuple[int, ...]:
    def turn(code, shift):
        return ((code >> shift) | (code << (points - shift))) & ((1 << points) - 1)

    smallest = (min(turn(code, shift) for shift in range(points)) for code in range(1 << points))
    return tuple(sorted(set(smallest)))


def _with_bits_set(count: int) -> tuple[int, ...]:
    return tuple(
        sorted(sum(1 << bit for bit in bits) for bits in itertools.combinations(range(8), count))
    )


TEXTURES: dict[str, Texture] = {
    "lbp": Texture(lbp, tuple(range(256)), 0.5, bits=8),
    "lbp_uniform": Texture(partial(lbp, method="uniform"), tuple(range(10)), 0.5),
    "lbp_ror": Texture(partial(lbp, method="ror"), _smallest_rotations(8), 0.16),
    "lbp_var": Texture(_log_var, None, 0.44),
    "ldp": Texture(ldp, _with_bits_set(3), 0.39, bits=8),
    "ltp": Texture(ltp, tuple(range(256)), 0.3, channels=2, bits=8),
    "cs_lbp": Texture(cs_lbp, tuple(range(16)), 0.42, bits=4),
    "hog": Texture(hog, None, 0.24, channels=9),
    "hog_4": Texture(partial(hog, cell=4), None, 0.21, channels=9),
    "sobel": Texture(sobel, None, 0.1),
}
TEXTURES |= {
    f"{name}_rgb": replace(texture, channels=3 * texture.channels, of_each_colour=True)
    for name, texture in TEXTURES.items()
}

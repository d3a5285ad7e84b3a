"""Textures as targets, in the form in which they can be foreseen.

A decoder cannot foresee the code of a hidden pixel, and in `code / 255` one comparison weighs 128
times another. What can be foreseen is how often a comparison holds in a small cell.

A target is named TEXTURE, or TEXTURE_FORM, or either with _CELL behind it, all in one word:

    lbp               the code of each pixel, scaled to [0, 1]
    lbp_bits          each of its eight comparisons a channel
    lbp_bits_4        these, averaged over cells of 4 x 4 pixels; lbp_4: the scaled codes
    lbp_histogram_8   how often each code occurs in a cell
    lbp_bits_patch    over the whole patch that the encoder reads
    rgb, rgb_2        the picture itself
"""

import dataclasses
import re

import jax
import jax.numpy as jnp

from hmtl_jax import textures
from hmtl_jax.errors import UserError, nearest
from hmtl_jax.images import normalise

RGB = "rgb"
FORMS = ("code", "bits", "histogram")
_NAME = re.compile(r"(?P<texture>.+?)(_(?P<form>(?!patch$)[a-z]+))?(_(?P<cell>\d+|patch))?")


@dataclasses.dataclass(frozen=True)
class Target:
    """A texture, or the picture (`rgb`), its form, and the side of its cells in pixels."""

    texture: str
    form: str = "code"
    cell: int = 1

    @property
    def channels(self) -> int:
        """Numbers a cell."""
        if self.texture == RGB:
            return 3
        of = textures.TEXTURES[self.texture]
        return (
            of.channels
            * {"code": 1, "bits": of.bits or 0, "histogram": of.num_codes or 0}[self.form]
        )

    @property
    def mean(self) -> float:
        """About what a number is on average; the picture itself is normalised."""
        if self.texture == RGB:
            return 0.0
        of = textures.TEXTURES[self.texture]
        return 1 / (of.num_codes or 1) if self.form == "histogram" else of.mean

    @property
    def codes(self) -> int | None:
        """Number of classes where single pixels have codes that can be classified."""
        plain = self.texture != RGB and (self.form, self.cell) == ("code", 1)
        return textures.TEXTURES[self.texture].num_codes if plain else None

    def maps(self, images_bhwc: jax.Array) -> jax.Array:
        """RGB in [0, 1] [B, H, W, 3] → float32 [B, H / cell, W / cell, channels].

        In [0, 1] but for the picture itself, which is normalised.
        """
        if self.texture == RGB:
            return _averaged(normalise(images_bhwc), self.cell)
        if self.form == "code":
            return _averaged(textures.target(self.texture, images_bhwc), self.cell)
        if self.form == "bits":
            codes = textures.codes(self.texture, images_bhwc)[..., None]
            places = jnp.arange(textures.TEXTURES[self.texture].bits, dtype=codes.dtype)
            bits = (codes >> places.reshape(1, 1, 1, 1, -1)) & 1
            return _averaged(bits.reshape(*bits.shape[:3], -1).astype(jnp.float32), self.cell)
        count = textures.TEXTURES[self.texture].num_codes
        assert count is not None
        return _histogram(textures.classes(self.texture, images_bhwc), count, self.cell)


def parse(name: str, patch: int) -> Target:
    """The target of a name, for an encoder whose patches have sides of `patch` pixels.

    Raises UserError for an unknown texture, a form that it lacks, and a cell that does not divide
    the patch. A histogram without a cell is over the patch.
    """
    known = {RGB: None, **textures.TEXTURES}
    if name in known:
        return Target(name)
    found = _NAME.fullmatch(name)
    assert found
    texture, form = found["texture"], found["form"]
    while form and f"{texture}_{form}" in known:  # lbp_rgb_4: the form is a part of the name
        texture, form = f"{texture}_{form}", None
    if texture not in known or form not in (None, *FORMS):
        raise UserError(
            f"Unknown texture {name!r}; known: {', '.join(sorted(known))}, each with _bits or "
            "_histogram behind it where it has them, and with the side of its cells, as lbp_bits_4."
            f"{nearest(name, known)}"
        )
    forms = forms_of(texture)
    if form and form not in forms:
        raise UserError(
            f"The texture {texture!r} has no form {form!r}; it has {', '.join(forms)}"
            f"{', as ' + texture + '_' + forms[-1] if len(forms) > 1 else ''}."
        )
    default = patch if form == "histogram" else 1
    cell = patch if found["cell"] == "patch" else int(found["cell"] or default)
    if cell < 1 or patch % cell:
        fitting = [side for side in range(1, patch + 1) if patch % side == 0]
        raise UserError(
            f"The target {name!r} has cells of {cell} pixels, which do not divide the patch of "
            f"{patch}; choose among {', '.join(map(str, fitting))}."
        )
    return Target(texture, form or "code", cell)


def forms_of(texture: str) -> list[str]:
    """The forms that a texture has: `code`, and what its codes allow."""
    if texture == RGB:
        return ["code"]
    of = textures.TEXTURES[texture]
    has = {"code": True, "bits": of.bits, "histogram": of.values}
    return [form for form, there in has.items() if there]


def _averaged(maps_bhwc: jax.Array, cell: int) -> jax.Array:
    """The mean over cells of `cell` x `cell` pixels."""
    if cell == 1:
        return maps_bhwc
    batch, height, width, channels = maps_bhwc.shape
    cells = maps_bhwc.reshape(batch, height // cell, cell, width // cell, cell, channels)
    return jnp.mean(cells, axis=(2, 4))


def _histogram(classes_bhwc: jax.Array, count: int, cell: int) -> jax.Array:
    """How often each of `count` classes occurs in a cell, by channel: they sum to 1."""
    _, height, width, channels = classes_bhwc.shape
    rows, columns = height // cell, width // cell
    row = jnp.arange(height)[:, None, None] // cell
    column = jnp.arange(width)[None, :, None] // cell
    channel = jnp.arange(channels)[None, None, :]
    place = (row * columns + column) * channels + channel  # of a pixel's cell and channel

    def one(classes_hwc):
        counted = jnp.zeros(rows * columns * channels * count, jnp.float32)
        counted = counted.at[place * count + classes_hwc].add(1 / cell**2)
        return counted.reshape(rows, columns, channels * count)

    return jax.vmap(one)(classes_bhwc)

"""Inpainting with a perceptual loss (HMTL's "in-painting-pl", arXiv 2105.06421).

Only that name is published: the holes, the decoder, the losses and their weights here are ours.
Holes are painted with the mean colour; a light decoder fills them from the encoder's last feature
map; the filled image must match the original in the hole, and in the features of a frozen network:
the moving average of the encoder itself, or a network whose weights are imported.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from hmtl_jax import limits
from hmtl_jax.errors import UserError, lookup
from hmtl_jax.images import denormalise, normalise, paint
from hmtl_jax.pretext import skill
from hmtl_jax.view import View

ASPECT = 2.0  # of a rectangle at most, either way


@dataclasses.dataclass(frozen=True)
class Inpaint:
    """The pretext's settings, and its view, target and loss.

    holes: `centre`, one square in the middle, where an aligned crop has the face; `rectangles`, at
    random places and of random shape; `tiles`, random cells of a grid. share: of the image's area
    that is cut out; rectangles may overlap, then it is less. rectangles: how many. tiles: cells
    along a side of the grid. perceptual: weight of the perceptual loss beside L1; 0 for none.
    perceptual_encoder: the frozen network, named as in model.encoder; "" for the moving average of
    the encoder. perceptual_weights: its safetensors file in timm's naming, of a network that reads
    images by ImageNet's mean and deviation; it is read once and then kept in the checkpoints.
    stages: the features that are compared. decoder_dim, decoder_depth: channels
    and number of the decoder's convolutions.
    """

    image_size: int
    holes: str = "rectangles"
    share: float = 0.25
    rectangles: int = 3
    tiles: int = 8
    perceptual: float = 0.1
    perceptual_encoder: str = ""
    perceptual_weights: str = ""
    stages: tuple[str, ...] = ("patches",)
    decoder_dim: int = 128
    decoder_depth: int = 2

    reads: ClassVar = "own"
    unlearned: ClassVar[str] = "a smaller share, a larger weight, or a longer run"
    FILLED: ClassVar = ("image_size",)
    LIMITS: ClassVar = {
        "share": limits.open_share("the part of the area to cut out"),
        "rectangles": limits.whole(1),
        "tiles": limits.whole(2),
        "perceptual": limits.number(0, what="a weight"),
        "decoder_dim": limits.whole(1),
        "decoder_depth": limits.whole(0),
    }

    def __post_init__(self):
        limits.check("pretexts.inpaint.", vars(self), self.LIMITS)
        lookup(HOLES, self.holes, "pretexts.inpaint.holes")
        self._check_grid()
        self._check_network()

    @property
    def network(self) -> tuple[str, str] | None:
        """The frozen network in which features are compared, as its name and file; or None."""
        return (
            (self.perceptual_encoder, self.perceptual_weights) if self.perceptual_encoder else None
        )

    @property
    def needs_average(self) -> bool:
        """Whether features are compared under the moving average of the encoder."""
        return bool(self.perceptual) and not self.perceptual_encoder

    @property
    def sizes_of_views(self) -> tuple[int, ...]:
        """Sides of what the encoder reads, in pixels."""
        return (self.image_size,)

    def decoder_spec(self) -> dict:
        size, dim, depth = self.image_size, self.decoder_dim, self.decoder_depth
        return {"kind": "image", "size": size, "dim": dim, "depth": depth}

    def views(self, rngs_b: jax.Array, images_bhwc: jax.Array) -> tuple[tuple[View, dict], ...]:
        """Cuts holes into each image on its own.

        rngs_b: one key an example. images_bhwc: float32 [B, S, S, 3] in [0, 1]. Returns one view
        and its target: `images`, as given, and `holes` float32 [B, S, S, 1], 1 in a hole, of which
        each image has at least one pixel.
        """
        draw = HOLES[self.holes]
        holes_bhw = jax.vmap(lambda key: draw(self, key))(rngs_b)
        holes_bhwc = holes_bhw[:, :, :, None].astype(jnp.float32)
        target = {"images": images_bhwc, "holes": holes_bhwc}
        return ((View(paint(images_bhwc, holes_bhwc)), target),)

    def losses(self, output: jax.Array, target: dict, features) -> dict[str, jax.Array]:
        """Per-example losses, float32 [B]; their sum counts.

        output: normalised pixels [B, S, S, 3]. features: images in [0, 1] → named stages. `l1`:
        mean absolute error of normalised pixels in the hole. `perceptual`: its weight times the
        distance of the filled image's features from the original's.
        """
        images, holes = target["images"], target["holes"]
        error = jnp.abs(output.astype(jnp.float32) - normalise(images)) * holes
        pixels_b = jnp.sum(holes, axis=(1, 2, 3))
        losses = {"l1": jnp.sum(error, axis=(1, 2, 3)) / (images.shape[-1] * pixels_b)}
        if self.perceptual:
            found, wanted = features(filled(output, target)), features(images)
            distances = [
                perceptual_distance(lookup(found, name, "stage of the encoder"), wanted[name])
                for name in self.stages
            ]
            losses["perceptual"] = self.perceptual * sum(distances) / len(distances)
        return losses

    def skill(self, output: jax.Array, target: dict, mask_b: jax.Array) -> dict[str, skill.Errors]:
        """Of the pixels in the holes, against the mean of the place."""
        wanted = normalise(target["images"])
        found = output.astype(jnp.float32)
        return {"pixels": skill.of_values(found, wanted, target["holes"], mask_b)}

    def columns(
        self, images: np.ndarray, view: View, target: Mapping, output: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The picture's columns: input, input with holes, and the holes filled."""
        shown = np.clip(np.asarray(filled(jnp.asarray(output), target)), 0.0, 1.0)
        return {"input": images, "holes": np.asarray(view.images), "filled": shown}

    def _check_grid(self):
        if self.holes == "tiles" and self.tiles > self.image_size:
            raise UserError(
                f"pretexts.inpaint.tiles is {self.tiles}; give at most data.image_size "
                f"{self.image_size} tiles along a side."
            )

    def _check_network(self):
        if bool(self.perceptual_encoder) != bool(self.perceptual_weights):
            raise UserError(
                "pretexts.inpaint.perceptual_encoder and pretexts.inpaint.perceptual_weights name "
                "a network and its safetensors file; set both or neither."
            )
        if self.perceptual_encoder and not self.perceptual:
            raise UserError(
                "pretexts.inpaint.perceptual is 0, so pretexts.inpaint.perceptual_encoder is not "
                "read; set a weight, or leave the encoder empty."
            )
        if self.perceptual and (not self.stages or isinstance(self.stages, str)):
            raise UserError(
                f"pretexts.inpaint.stages is {self.stages!r}; give a tuple of the encoder's "
                "stages, such as ('patches',), or set pretexts.inpaint.perceptual to 0."
            )


def filled(output: jax.Array, target: Mapping) -> jax.Array:
    """The prediction in the holes and the truth elsewhere, float32 in the scale of images.

    What is predicted is not bound to [0, 1]: clipped, it would get no gradient.
    """
    return jnp.where(target["holes"] > 0, denormalise(output), target["images"])


def perceptual_distance(found: jax.Array, wanted: jax.Array) -> jax.Array:
    """Features [B, …, D] → float32 [B] in [0, 4]: squared distance of the unit vectors of D.

    Averaged over places, as LPIPS does (Zhang 2018), without its learned weights.
    """
    square = jnp.sum(jnp.square(unit(found) - unit(wanted)), axis=-1)
    return jnp.mean(square, axis=tuple(range(1, square.ndim)))


def unit(features: jax.Array) -> jax.Array:
    """Features [..., D] at length 1, in f32; a zero vector stays zero, with a finite gradient."""
    features = features.astype(jnp.float32)
    square = jnp.sum(jnp.square(features), axis=-1, keepdims=True)
    return features * jax.lax.rsqrt(square + 1e-10)


def centre(pretext: Inpaint, rng: jax.Array) -> jax.Array:
    """One square in the middle, the same for all; bool [S, S]."""
    del rng
    size = pretext.image_size
    side = min(max(1, round(math.sqrt(pretext.share) * size)), size - 1)
    place, start = jnp.arange(size), (size - side) // 2
    inside = (place >= start) & (place < start + side)
    return inside[:, None] & inside[None, :]


def rectangles(pretext: Inpaint, rng: jax.Array) -> jax.Array:
    """Rectangles of equal area, each wholly inside; bool [S, S]."""
    size, shape = pretext.image_size, (pretext.rectangles,)
    aspect_rng, top_rng, left_rng = jax.random.split(rng, 3)
    log_aspect = math.log(ASPECT) * jax.random.uniform(aspect_rng, shape, minval=-1.0, maxval=1.0)
    side = math.sqrt(pretext.share / pretext.rectangles) * size

    def spans(key, length):
        """bool [R, S]: the rows, or the columns, of each rectangle."""
        length = jnp.clip(jnp.round(length), 1, size - 1)[:, None]
        start = jnp.floor(jax.random.uniform(key, shape)[:, None] * (size - length + 1))
        place = jnp.arange(size, dtype=jnp.float32)[None]
        return (place >= start) & (place < start + length)

    rows_rs = spans(top_rng, side * jnp.exp(log_aspect / 2))
    columns_rs = spans(left_rng, side * jnp.exp(-log_aspect / 2))
    return jnp.any(rows_rs[:, :, None] & columns_rs[:, None, :], axis=0)


def tiles(pretext: Inpaint, rng: jax.Array) -> jax.Array:
    """Random cells of a grid, as many as come nearest to the share; bool [S, S]."""
    grid, size = pretext.tiles, pretext.image_size
    count = min(max(1, round(pretext.share * grid**2)), grid**2 - 1)
    cut_gg = (jax.random.permutation(rng, grid**2) < count).reshape(grid, grid)
    tile_s = jnp.arange(size) * grid // size
    return cut_gg[tile_s[:, None], tile_s[None, :]]


HOLES = {"centre": centre, "rectangles": rectangles, "tiles": tiles}

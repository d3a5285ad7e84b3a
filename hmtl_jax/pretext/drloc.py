"""DrLoc (Liu 2021, arXiv 2106.03746): how far apart are two places of the last feature map?

Pairs of cells are drawn; from their features alone a small network says how many rows and columns
lie between them. It reads the clean view, so that it costs no pass of the encoder.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from hmtl_jax import limits
from hmtl_jax.errors import UserError
from hmtl_jax.pretext import skill
from hmtl_jax.view import View


@dataclasses.dataclass(frozen=True)
class DrLoc:
    """The pretext's settings, and its target and loss.

    patch: the pixels that a cell of the last feature map covers. pairs: drawn an image (the paper's
    m). dim: width of the network's two hidden layers. The paper's weight is 0.1 for most ViTs and
    0.5 for Swin.
    """

    patch: int
    image_size: int
    pairs: int = 64
    dim: int = 512

    FILLED: ClassVar = ("patch", "image_size")
    LIMITS: ClassVar = {"pairs": limits.whole(1), "dim": limits.whole(1)}
    reads: ClassVar = "clean"
    unlearned: ClassVar[str] = "a larger weight, or a longer run"
    network: ClassVar = None  # in which losses compare features
    needs_average: ClassVar = False

    def __post_init__(self):
        limits.check("pretexts.drloc.", vars(self), self.LIMITS)
        if self.image_size <= self.patch:
            raise UserError(
                f"pretexts.drloc: the last feature map of {self.image_size} pixels is one cell of "
                f"{self.patch}, and a place has no distance from itself; choose a larger "
                "data.image_size, or an encoder of finer patches."
            )

    @property
    def sizes_of_views(self) -> tuple[int, ...]:
        """Sides of what the encoder reads, in pixels."""
        return (self.image_size,)

    def decoder_spec(self) -> dict:
        return {"kind": "pairs", "dim": self.dim}

    def views(self, rngs_b: jax.Array, images_bhwc: jax.Array) -> tuple[tuple[View, dict], ...]:
        """Draws pairs of cells; the image is the clean one.

        rngs_b: one key an example. Returns one view, whose `keep` int32 [B, 2 pairs] are the first
        cells and then the second ones, and `offset` float32 [B, pairs, 2]: rows and columns between
        them, as shares of the grid, without sign (the paper's equation 2).
        """
        grid = self.image_size // self.patch
        draw = jax.vmap(lambda key: jax.random.randint(key, (2, self.pairs), 0, grid**2))
        cells_b2m = draw(rngs_b).astype(jnp.int32)
        places = jnp.stack([cells_b2m // grid, cells_b2m % grid], axis=-1)
        apart_bm2 = jnp.abs(places[:, 0] - places[:, 1]).astype(jnp.float32) / grid
        view = View(images_bhwc, cells_b2m.reshape(-1, 2 * self.pairs))
        return ((view, {"offset": apart_bm2}),)

    def losses(self, output: jax.Array, target: dict, features) -> dict[str, jax.Array]:
        """Mean absolute error of the offsets, float32 [B]. output: float32 [B, pairs, 2]."""
        del features
        return {"offset": jnp.mean(jnp.abs(output - target["offset"]), axis=(1, 2))}

    def skill(self, output: jax.Array, target: dict, mask_b: jax.Array) -> dict[str, skill.Errors]:
        """Of the offsets, against their mean."""
        wanted = target["offset"].reshape(-1, 2)
        rows = jnp.repeat(mask_b, self.pairs)
        found = output.reshape(-1, 2)
        errors = skill.of_values(found, wanted, jnp.ones_like(wanted[:, :1]), rows)
        own_b, constant_b = (part.reshape(-1, self.pairs).sum(1) for part in errors)
        return {"offset": (own_b, constant_b)}

    def columns(
        self, images: np.ndarray, view: View, target: Mapping, output: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The picture's columns: input, and the two cells of the first pair, with what is said."""
        grid = self.image_size // self.patch
        cells = np.asarray(view.keep).reshape(-1, 2, self.pairs)[:, :, 0]
        marked = np.array(images)
        for image, pair in zip(marked, cells, strict=True):
            for colour, cell in zip(((1.0, 0.3, 0.3), (0.3, 0.5, 1.0)), pair, strict=True):
                top, left = self.patch * (cell // grid), self.patch * (cell % grid)
                square = image[top : top + self.patch, left : left + self.patch]
                square[:] = 0.4 * square + 0.6 * np.array(colour, np.float32)
        error = np.abs(output - target["offset"]).mean() * grid
        return {"input": images, f"a pair; off by {error:.2f} cells": marked}

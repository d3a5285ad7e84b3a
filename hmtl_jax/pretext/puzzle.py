"""Puzzles of tiles (HMTL, arXiv 2105.06421): which tile is where, and how far is it turned?

The image is cut into n × n tiles without gaps. They change places, or turn where they lie, or
both; the encoder sees the whole that they form, and linear heads on its pooled feature (or, ours,
on the features of each place) say what happened. A permutation [n²] holds at place k, in raster
order, the tile's place in the original.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from hmtl_jax import limits
from hmtl_jax.errors import UserError, lookup
from hmtl_jax.patches import patchify, unpatchify
from hmtl_jax.pretext import skill
from hmtl_jax.view import View

TURNS = 4
SMALLEST_TILE = 2  # pixels a side
HEADS = {"pooled": "pooled_tiles", "places": "placed_tiles"}  # → decoders


@dataclasses.dataclass(frozen=True)
class Puzzle:
    """The puzzle's settings, and its views, target and loss.

    tiles: n, tiles along a side. sizes: sides in pixels of the puzzled views, all of one puzzle
    (the authors' siamese code has three); the image's own where empty. dropout: on the pooled
    feature, one mask for all heads. permute: shuffle the tiles. rotate: turn each tile by a
    multiple of 90°. The authors' code has both, alone and together. heads: what they read:
    `pooled`, as the authors', one head a place on the pooled feature, which must then tell of every
    place at once; or `places` (ours), one head for all places, on the mean feature of each.
    """

    image_size: int
    patch: int
    tiles: int = 3
    sizes: tuple[int, ...] = ()
    dropout: float = 0.2
    permute: bool = True
    rotate: bool = False
    heads: str = "pooled"

    kind: ClassVar[str] = "puzzle"
    reads: ClassVar = "own"
    unlearned: ClassVar[str] = (
        "heads='places', fewer tiles, model.positions='centred' for a ViT, or a longer run"
    )

    FILLED: ClassVar = ("image_size", "patch")
    LIMITS: ClassVar = {
        "tiles": limits.whole(1, 4),
        "sizes": (
            lambda sizes: isinstance(sizes, tuple) and all(map(limits.is_whole, sizes)),
            "a tuple of sides such as (48,)",
        ),
        "dropout": limits.share("a probability"),
        "permute": limits.flag(),
        "rotate": limits.flag(),
    }
    network: ClassVar = None  # in which losses compare features
    needs_average: ClassVar = False

    def __post_init__(self):
        limits.check(f"pretexts.{self.kind}.", vars(self), self.LIMITS)
        lookup(HEADS, self.heads, f"pretexts.{self.kind}.heads")
        self._check_questions()
        self._check_sizes()

    @property
    def sizes_of_views(self) -> tuple[int, ...]:
        """Sides of what the encoder reads, in pixels."""
        return self.sizes or (self.image_size,)

    def decoder_spec(self) -> dict:
        """The heads of each question: where from (n² classes), how far turned (4)."""
        places, outputs = self.tiles**2, []
        if self.permute:
            outputs.append(("puzzle", places, places))
        if self.rotate:
            outputs.append(("rotation", places, TURNS))
        return {"kind": HEADS[self.heads], "outputs": tuple(outputs), "dropout": self.dropout}

    def views(self, rngs_b: jax.Array, images_bhwc: jax.Array) -> tuple[tuple[View, dict], ...]:
        """Shuffles and turns the tiles of each image on its own.

        rngs_b: one key an example. images_bhwc: float32 [B, S, S, 3] in [0, 1]. Returns one view a
        size, all with the same target, int32 [B, n²] by raster place: `puzzle`, the original place
        of the tile now there (uniform over all n²! permutations), and `rotation`, its quarter
        turns counter-clockwise.
        """
        places, target = self.tiles**2, {}
        keys = jax.vmap(jax.random.split)(rngs_b)
        whole = resized(images_bhwc, whole_size(images_bhwc.shape[1], self.tiles))
        if self.permute:
            draw = jax.vmap(lambda key: jax.random.permutation(key, places))
            target["puzzle"] = draw(keys[:, 0]).astype(jnp.int32)
            whole = shuffle(whole, target["puzzle"], self.tiles)
        if self.rotate:
            draw = jax.vmap(lambda key: jax.random.randint(key, (places,), 0, TURNS, jnp.int32))
            target["rotation"] = draw(keys[:, 1])
            whole = turn(whole, target["rotation"], self.tiles)
        sizes = self.sizes or (self.image_size,)
        return tuple((View(resized(whole, size)), target) for size in sizes)

    def losses(self, output: dict, target: dict, features) -> dict[str, jax.Array]:
        """Cross-entropy summed over the heads, float32 [B], by question; chance is n² ln classes.

        output: {question: logits [B, n², classes]}. target: {question: int32 [B, n²]}.
        """
        del features
        return {name: cross_entropy(output[name], labels) for name, labels in target.items()}

    def skill(self, output: dict, target: dict, mask_b: jax.Array) -> dict[str, skill.Errors]:
        """By question; chance is one of the classes."""
        del mask_b
        return {name: skill.of_choices(output[name], labels) for name, labels in target.items()}

    def columns(
        self, images: np.ndarray, view: View, target: Mapping, output: Mapping
    ) -> dict[str, np.ndarray]:
        """The picture's columns: input, what is seen, and that put back by the likeliest answers.

        The last title tells which share of all tiles shown is where, and as, it was.
        """
        tiles = self.tiles
        answers = {name: np.argmax(logits, axis=-1) for name, logits in output.items()}
        right = np.all([answers[name] == truth for name, truth in target.items()], axis=0)
        back = resized(jnp.asarray(view.images), whole_size(view.images.shape[1], tiles))
        if "rotation" in answers:
            back = turn(back, jnp.asarray(-answers["rotation"]), tiles)
        if "puzzle" in answers:
            back = reassemble(back, jnp.asarray(answers["puzzle"]), tiles)
        title = f"put back, {right.mean():.0%} right"
        return {"input": images, self.kind: np.asarray(view.images), title: np.asarray(back)}

    def _check_questions(self):
        key = f"pretexts.{self.kind}"
        if not (self.permute or self.rotate):
            raise UserError(f"{key} changes nothing; set {key}.permute or {key}.rotate.")
        if self.permute and self.tiles == 1:
            raise UserError(f"{key}.tiles is 1, and one tile changes no place; give 2 to 4.")

    def _check_sizes(self):
        key = f"pretexts.{self.kind}"
        for size in self.sizes:
            # The image's own size fits the encoder, or the recipe would have been refused before.
            if size % self.patch and size != self.image_size:
                raise UserError(
                    f"{key}.sizes has {size}, which the encoder's patch of {self.patch} pixels "
                    f"does not divide; give multiples of {self.patch}."
                )
        smallest = min((self.image_size, *self.sizes))
        if smallest < SMALLEST_TILE * self.tiles:
            raise UserError(
                f"{key}.tiles {self.tiles} cuts {smallest} pixels into tiles of less than "
                f"{SMALLEST_TILE}; choose fewer tiles or larger images."
            )


def cross_entropy(logits_bkc: jax.Array, labels_bk: jax.Array) -> jax.Array:
    """Summed over the heads k, in f32; returns [B]."""
    log_p = jax.nn.log_softmax(logits_bkc.astype(jnp.float32), axis=-1)
    truth = jax.nn.one_hot(labels_bk, logits_bkc.shape[-1], dtype=jnp.float32)
    return -jnp.sum(truth * log_p, axis=(1, 2))


def whole_size(size: int, tiles: int) -> int:
    """The multiple of `tiles` nearest to `size`, the larger of two: 225 for 224 and 3 (HMTL)."""
    return (size + tiles // 2) // tiles * tiles


def resized(images_bhwc: jax.Array, size: int) -> jax.Array:
    """Square images at another size: bilinear, antialiased when it shrinks; unchanged if equal."""
    if images_bhwc.shape[1] == size:
        return images_bhwc
    shape = (images_bhwc.shape[0], size, size, images_bhwc.shape[3])
    # Rounding of the kernel's weights can leave the range by a bit.
    return jnp.clip(jax.image.resize(images_bhwc, shape, "bilinear"), 0.0, 1.0)


def shuffle(images_bhwc: jax.Array, permutation_bk: jax.Array, tiles: int) -> jax.Array:
    """Puts tile `permutation[k]` at raster place k; the side must be a multiple of `tiles`."""
    # Mapped over examples, so that on a sharded batch no device asks for another's tiles.
    moved = jax.vmap(lambda cut_kp, order_k: cut_kp[order_k])
    side = images_bhwc.shape[1] // tiles
    return unpatchify(moved(patchify(images_bhwc, side), permutation_bk), side, tiles)


def reassemble(images_bhwc: jax.Array, permutation_bk: jax.Array, tiles: int) -> jax.Array:
    """Undoes `shuffle`, exactly: the tile at raster place k goes back to `permutation[k]`.

    images_bhwc: [B, S, S, C], S a multiple of `tiles`. permutation_bk: int [B, tiles²], which may
    be a guess: a place that no tile is said to be from stays 0, and of several tiles said to be
    from one place the first goes there.
    """
    side = images_bhwc.shape[1] // tiles

    def back(cut_kp, order_k):
        from_place_jk = order_k[None, :] == jnp.arange(tiles**2)[:, None]
        found_jp = cut_kp[jnp.argmax(from_place_jk, axis=1)]
        return jnp.where(jnp.any(from_place_jk, axis=1)[:, None], found_jp, 0)

    return unpatchify(jax.vmap(back)(patchify(images_bhwc, side), permutation_bk), side, tiles)


def turn(images_bhwc: jax.Array, turns_bk: jax.Array, tiles: int) -> jax.Array:
    """Turns the tile at raster place k by `turns[k]` · 90° counter-clockwise (−1: clockwise).

    images_bhwc: [B, S, S, C], S a multiple of `tiles`. turns_bk: int [B, tiles²].
    """
    side = images_bhwc.shape[1] // tiles
    cut_bkp = patchify(images_bhwc, side)
    cut_bkhwc = cut_bkp.reshape(*cut_bkp.shape[:2], side, side, -1)
    chosen = (turns_bk % TURNS)[:, :, None, None, None].astype(jnp.int32)
    turned = [jnp.rot90(cut_bkhwc, count, axes=(2, 3)) for count in range(TURNS)]
    turned_bkhwc = jax.lax.select_n(jnp.broadcast_to(chosen, cut_bkhwc.shape), *turned)
    return unpatchify(turned_bkhwc.reshape(cut_bkp.shape), side, tiles)

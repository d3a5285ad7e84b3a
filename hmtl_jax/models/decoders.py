"""Decoders: from the encoder's stages of a view to what its pretext asks for."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hmtl_jax.errors import UserError, lookup
from hmtl_jax.models.layers import Dense, LayerNorm, gelu
from hmtl_jax.models.vit import FIXED, Blocks, with_cls
from hmtl_jax.patches import unpatchify
from hmtl_jax.view import View

PIXEL = 16  # features of a pixel whose classes are predicted
quiet = nn.initializers.variance_scaling(0.01, "fan_avg", "uniform")  # a tenth of Xavier's


class TokenDecoder(nn.Module):
    """MAE's decoder: embeds the kept tokens, puts mask tokens in the gaps, predicts every patch.

    outputs: (name, values a patch, numbers a value, what all are near before training); returns
    {name: float32 [B, N, values × numbers]} in raster order. positions: a key of vit.FIXED;
    attention: of layers.ATTENTION.
    """

    dim: int
    depth: int
    heads: int
    grid: int
    outputs: tuple[tuple[str, int, int, float], ...]
    positions: str = "sincos"
    attention: str = "plain"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, stages: dict, view: View, *, train: bool) -> dict[str, jax.Array]:
        if view.keep is None:
            raise UserError("The token decoder needs a view that masks patches.")
        x_bnd = Dense(self.dim, self.dtype, name="embed")(stages["tokens"])
        mask = self.param("mask_token", nn.initializers.normal(0.02), (1, 1, self.dim), jnp.float32)
        # Rounded after it is copied, so that the gradients of the copies are summed in f32.
        full_bnd = jnp.tile(mask, (x_bnd.shape[0], self.grid**2, 1)).astype(self.dtype)

        def put(full_nd, keep_k, x_kd):
            # Told that ids differ, XLA need not put one token after the other on CPU.
            return full_nd.at[keep_k].set(x_kd, unique_indices=True)

        # Mapped over examples, so that on a sharded batch no device asks for another's tokens.
        full_bnd = jax.vmap(put)(full_bnd, view.keep, x_bnd[:, 1:])
        x_bnd = jnp.concatenate([x_bnd[:, :1], full_bnd], axis=1)
        table = with_cls(self.positions, self.grid, self.grid, self.dim)
        x_bnd = x_bnd + jnp.asarray(table[None], self.dtype)
        x_bnd, _ = Blocks(
            self.depth, self.dim, self.heads,
            attention=self.attention, dtype=self.dtype, name="blocks",
        )(x_bnd, train)  # fmt: skip
        x_bnd = LayerNorm(self.dtype, name="norm")(x_bnd)[:, 1:]
        return {output[0]: predict(x_bnd, *output, self.dtype) for output in self.outputs}


def predict(
    x_bnd: jax.Array, name: str, values: int, numbers: int, start: float, dtype: Any
) -> jax.Array:
    """[B, N, D] → float32 [B, N, values × numbers]: a linear layer; to be called in a module.

    At first all of it is near `start` (ours). The MAE authors' kernel is Xavier's, whose first
    answers lie several times as far from a texture's mean as its cells do; a small budget went into
    unlearning them.
    Classes of pixels, hundreds of numbers a value, come from `PIXEL` features of each pixel by one
    layer that all pixels share (ours). A single layer for all of them would outgrow the encoder.
    """
    if numbers <= PIXEL:
        layer = Dense(values * numbers, dtype, kernel_init=quiet, name=f"predict_{name}")
        return layer(x_bnd).astype(jnp.float32) + start
    pixels = gelu(Dense(values * PIXEL, dtype, name=f"pixels_{name}")(x_bnd))
    pixels = pixels.reshape(*x_bnd.shape[:2], values, PIXEL)
    layer = Dense(numbers, dtype, kernel_init=quiet, name=f"predict_{name}")
    logits = layer(pixels).astype(jnp.float32) + start
    return logits.reshape(*x_bnd.shape[:2], values * numbers)


class CellDecoder(nn.Module):
    """SimMIM's decoder (Xie 2022): one linear layer on each cell of the last feature map.

    grid: the pretext's cells along a side, which the map must have. outputs: as in TokenDecoder.
    """

    grid: int
    outputs: tuple[tuple[str, int, int, float], ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, stages: dict, view: View, *, train: bool) -> dict[str, jax.Array]:
        del view, train
        batch, height, width, dim = stages["patches"].shape
        if (height, width) != (self.grid, self.grid):
            raise UserError(
                f"The encoder's last feature map is {height} x {width}, the masks have "
                f"{self.grid} x {self.grid} cells; choose another data.image_size or model.encoder."
            )
        cells_bnd = stages["patches"].reshape(batch, height * width, dim)
        return {output[0]: predict(cells_bnd, *output, self.dtype) for output in self.outputs}


class PooledTileHeads(nn.Module):
    """The puzzle's heads (HMTL): dropout once, then linear layers on the pooled feature.

    outputs: (question, heads, classes); returns {question: float32 [B, heads, classes]}. All heads
    of a question are one layer. They start as the supervised head does (ours).
    """

    outputs: tuple[tuple[str, int, int], ...]
    dropout: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, stages: dict, view: View, *, train: bool) -> dict[str, jax.Array]:
        del view
        pooled_bd = nn.Dropout(self.dropout, deterministic=not train)(stages["pooled"])
        init = nn.initializers.truncated_normal(0.02)
        outputs = {}
        for name, heads, classes in self.outputs:
            layer = Dense(heads * classes, self.dtype, kernel_init=init, name=f"predict_{name}")
            outputs[name] = layer(pooled_bd).astype(jnp.float32).reshape(-1, heads, classes)
        return outputs


class PlacedTileHeads(nn.Module):
    """A puzzle's heads on its places (ours): a linear layer on the mean feature of each place.

    outputs: as in PooledTileHeads, whose heads are the places, n² in raster order; all places share
    a question's layer. The last feature map must have at least n cells along a side. A cell that
    lies in several places counts in each by its share.
    """

    outputs: tuple[tuple[str, int, int], ...]
    dropout: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, stages: dict, view: View, *, train: bool) -> dict[str, jax.Array]:
        del view
        x_bnd = of_places(stages["patches"], math.isqrt(self.outputs[0][1]))
        x_bnd = nn.Dropout(self.dropout, deterministic=not train)(x_bnd)
        init = nn.initializers.truncated_normal(0.02)
        outputs = {}
        for name, _, classes in self.outputs:
            layer = Dense(classes, self.dtype, kernel_init=init, name=f"predict_{name}")
            outputs[name] = layer(x_bnd).astype(jnp.float32)
        return outputs


def of_places(x_bhwd: jax.Array, tiles: int) -> jax.Array:
    """[B, H, W, D] → [B, tiles², D], the mean of what lies in each place of a grid; UserError."""
    _, height, width, _ = x_bhwd.shape
    if min(height, width) < tiles:
        raise UserError(
            f"The puzzle has {tiles} x {tiles} places, and the encoder's last feature map only "
            f"{height} x {width} cells; choose fewer tiles, heads='pooled', a larger "
            "data.image_size or another model.encoder."
        )
    rows, columns = (jnp.asarray(shares(cells, tiles), x_bhwd.dtype) for cells in (height, width))
    x_bijd = jnp.einsum("ih,jw,bhwd->bijd", rows, columns, x_bhwd)
    return x_bijd.reshape(x_bijd.shape[0], tiles**2, -1)


def shares(cells: int, places: int) -> np.ndarray:
    """How the cells of a line make up each of its equal parts, float32 [places, cells]."""
    edges, cell = np.arange(places + 1) * cells / places, np.arange(cells)
    inside = np.minimum(edges[1:, None], cell + 1) - np.maximum(edges[:-1, None], cell)
    return (np.maximum(inside, 0) * places / cells).astype(np.float32)


class PairHeads(nn.Module):
    """DrLoc's network: the features of two cells → two numbers, by two hidden layers with a ReLU.

    The view's `keep` int32 [B, 2 M] holds the first cells of the pairs and then the second ones;
    returns float32 [B, M, 2].
    """

    dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, stages: dict, view: View, *, train: bool) -> jax.Array:
        del train
        if view.keep is None:
            raise UserError("The heads of pairs need a view that names cells.")
        patches = stages["patches"]
        cells_bnd = patches.reshape(patches.shape[0], -1, patches.shape[-1])
        chosen_bnd = jnp.take_along_axis(cells_bnd, view.keep[:, :, None], axis=1)
        x_bmd = jnp.concatenate(jnp.split(chosen_bnd, 2, axis=1), axis=-1)
        for name in ("hidden0", "hidden1"):
            x_bmd = nn.relu(Dense(self.dim, self.dtype, name=name)(x_bmd))
        return Dense(2, self.dtype, name="predict")(x_bmd).astype(jnp.float32)


class ImageDecoder(nn.Module):
    """A light convolutional decoder (ours): the last feature map → float32 [B, size, size, 3].

    3×3 convolutions on the coarse map, then each place predicts the square of normalised pixels
    that it stands for, as SimMIM's head does (Xie 2022); at first that is about the mean colour.
    Convolutions at the image's own size cost five times as much on a CPU.
    """

    size: int
    dim: int
    depth: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, stages: dict, view: View, *, train: bool) -> jax.Array:
        del view, train
        x_bhwc = Dense(self.dim, self.dtype, name="embed")(stages["patches"])
        for step in range(self.depth):
            x_bhwc = nn.Conv(self.dim, (3, 3), dtype=self.dtype, name=f"conv{step}")(x_bhwc)
            x_bhwc = gelu(LayerNorm(self.dtype, name=f"norm{step}")(x_bhwc))
        side = math.ceil(self.size / x_bhwc.shape[1])
        layer = Dense(side**2 * 3, self.dtype, kernel_init=quiet, name="predict")
        x_bhwc = layer(x_bhwc).astype(jnp.float32)
        batch, grid, width, _ = x_bhwc.shape
        images = unpatchify(x_bhwc.reshape(batch, grid * width, -1), side, grid)
        if images.shape[1] != self.size:
            shape = (batch, self.size, self.size, 3)
            images = jax.image.resize(images, shape, "bilinear")
        return images


DECODERS = {
    "cells": CellDecoder,
    "image": ImageDecoder,
    "pairs": PairHeads,
    "placed_tiles": PlacedTileHeads,
    "pooled_tiles": PooledTileHeads,
    "tokens": TokenDecoder,
}


def build(spec: dict, dtype: Any, positions: str = "sincos", attention: str = "plain") -> nn.Module:
    """Builds the decoder that a pretext's `decoder_spec()` asks for.

    positions, attention: the encoder's. A decoder of tokens has the same, or MAE's positions where
    they are learned.
    """
    spec = dict(spec)
    if spec["kind"] == "tokens":
        spec |= {"attention": attention}
        spec |= {"positions": positions} if positions in FIXED else {}
    return lookup(DECODERS, spec.pop("kind"), "decoder")(**spec, dtype=dtype)

"""Decoders: from the encoder's stages of a view to what its pretext asks for."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hmtl_jax.errors import UserError, lookup
from hmtl_jax.models.layers import Dense, LayerNorm
from hmtl_jax.models.vit import Blocks, sincos_positions
from hmtl_jax.pretext.view import View


class TokenDecoder(nn.Module):
    """MAE's decoder: embeds the kept tokens, puts mask tokens in the gaps, predicts every patch.

    outputs: (name, values a patch) pairs; returns {name: float32 [B, N, values]} in raster order.
    """

    dim: int
    depth: int
    heads: int
    grid: int
    outputs: tuple[tuple[str, int], ...]
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
        table = sincos_positions(self.grid, self.grid, self.dim)
        table = np.concatenate([np.zeros((1, self.dim), np.float32), table])[None]
        x_bnd = x_bnd + jnp.asarray(table, self.dtype)
        x_bnd, _ = Blocks(self.depth, self.dim, self.heads, dtype=self.dtype, name="blocks")(
            x_bnd, train
        )
        x_bnd = LayerNorm(self.dtype, name="norm")(x_bnd)[:, 1:]
        return {
            name: Dense(size, self.dtype, name=f"predict_{name}")(x_bnd).astype(jnp.float32)
            for name, size in self.outputs
        }


DECODERS = {"tokens": TokenDecoder}


def build(spec: dict, dtype: Any) -> nn.Module:
    """Builds the decoder that a pretext's `decoder_spec()` asks for."""
    spec = dict(spec)
    return lookup(DECODERS, spec.pop("kind"), "decoder")(**spec, dtype=dtype)

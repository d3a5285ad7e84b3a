"""Heads: from the stages of a view, or of two, to the outputs of a supervised task."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hmtl_jax.errors import lookup
from hmtl_jax.models.layers import Dense, attention, gelu


class LinearHead(nn.Module):
    """Dropout, then one linear layer on the pooled feature [B, D]; returns float32 [B, outputs].

    The layer starts at a truncated N(0, 0.02), as ViT's heads usually do (ours; SSAT's is Xavier
    uniform, 5.6 times as wide).
    """

    num_outputs: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, stages: dict[str, jax.Array], *, train: bool) -> jax.Array:
        pooled_bd = nn.Dropout(self.dropout, deterministic=not train)(stages["pooled"])
        init = nn.initializers.truncated_normal(0.02)
        outputs = Dense(self.num_outputs, self.dtype, kernel_init=init, name="linear")(pooled_bd)
        return outputs.astype(jnp.float32)


class FusionHead(nn.Module):
    """LinearHead on a fusion of two views' features (Fusion-SSAT, arXiv 2601.00789).

    The paper does not publish its operator; these three are ours. `concat`: one hidden layer of
    width D with a GELU on both pooled features. `sum`: their sum. `cross_attention`: the pooled
    feature asks the other view's patches, and the answer is added to it.
    """

    num_outputs: int
    operator: str
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, stages: dict, other: dict, *, train: bool) -> jax.Array:
        fused_bd = lookup(FUSIONS, self.operator, "fusion")(self, stages, other)
        linear = LinearHead(self.num_outputs, self.dropout, self.dtype, name="head")
        return linear({"pooled": fused_bd}, train=train)


def _concat(head: FusionHead, stages: dict, other: dict) -> jax.Array:
    both = jnp.concatenate([stages["pooled"], other["pooled"]], axis=-1)
    return gelu(Dense(stages["pooled"].shape[-1], head.dtype, name="hidden")(both))


def _sum(head: FusionHead, stages: dict, other: dict) -> jax.Array:
    del head
    return stages["pooled"] + other["pooled"]


def _cross_attention(head: FusionHead, stages: dict, other: dict) -> jax.Array:
    pooled_bd = stages["pooled"]
    dim = pooled_bd.shape[-1]
    # A masked view has tokens and no grid; a convolutional encoder has a grid and no tokens.
    patches = other["tokens"] if "tokens" in other else other["patches"]
    heads = next(n for n in (8, 4, 3, 2, 1) if dim % n == 0)

    def split(name: str, x: jax.Array) -> jax.Array:
        y = Dense(dim, head.dtype, name=name)(x)
        return y.reshape(y.shape[0], -1, heads, dim // heads)

    asked = attention(
        split("query", pooled_bd[:, None]), split("key", patches), split("value", patches)
    )
    answer = Dense(dim, head.dtype, name="proj")(asked.reshape(pooled_bd.shape))
    return pooled_bd + answer.astype(pooled_bd.dtype)


FUSIONS = {"concat": _concat, "sum": _sum, "cross_attention": _cross_attention}

"""Heads: from a pooled feature to the outputs of a supervised task."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hmtl_jax.models.layers import Dense


class LinearHead(nn.Module):
    """Dropout, then one linear layer on the pooled feature [B, D]; returns float32 [B, outputs].

    The layer starts at a truncated N(0, 0.02), as ViT's heads usually do (SSAT does not say: ours).
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

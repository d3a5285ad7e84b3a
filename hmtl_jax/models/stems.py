"""What makes a ViT's tokens of an image, in place of one product a patch.

Both let a ViT begin with smaller pieces than its patches, which small models on few images gain by.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from hmtl_jax.errors import UserError
from hmtl_jax.models.conv import batch_norm, conv
from hmtl_jax.models.layers import Dense, LayerNorm, gelu


def factors(patch: int) -> tuple[int, ...]:
    """By how much each layer of the hMLP shrinks a patch: 16 → 4, 2, 2 (the paper's); 8 → 2, 2, 2.

    At most two halvings stand last. Raises UserError for an odd patch, of which one layer is left.
    """
    last = []
    while patch % 2 == 0 and len(last) < 2:
        patch //= 2
        last.append(2)
    if not last:
        raise UserError(
            f"model.stem 'hmlp' halves the patch, and model.encoder has one of {patch}; choose an "
            "even patch, or model.stem 'patch'."
        )
    return (*((patch,) if patch > 1 else ()), *last)


def halvings(patch: int) -> int:
    """How many convolutions of stride 2 make one cell of a patch; UserError if none do."""
    if patch < 2 or patch & (patch - 1):
        raise UserError(
            f"model.stem 'conv' halves the image step by step, and model.encoder has a patch of "
            f"{patch}; choose 2, 4, 8, 16 or 32, or another model.stem."
        )
    return patch.bit_length() - 1


class HMLP(nn.Module):
    """Patches [B, K, p·p·3] → tokens [B, K, D], each from its own patch (Touvron 2022, 5).

    Layers of a quarter of the width over ever larger squares of the patch, GELU between them. The
    paper normalises with batch statistics; layer norm is ours, so that a token does not hang on
    which other patches were dropped.
    """

    patch: int
    dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, patches_bkp: jax.Array) -> jax.Array:
        x = rearrange(
            patches_bkp.astype(self.dtype), "b k (p q c) -> b k p q c", p=self.patch, q=self.patch
        )
        steps = factors(self.patch)
        for index, factor in enumerate(steps):
            last = index == len(steps) - 1
            x = rearrange(x, "b k (p f) (q g) c -> b k p q (f g c)", f=factor, g=factor)
            x = Dense(self.dim if last else self.dim // 4, self.dtype, name=f"dense{index}")(x)
            x = LayerNorm(self.dtype, name=f"norm{index}")(x)
            x = x if last else gelu(x)
        return x[:, :, 0, 0]


class Convolutions(nn.Module):
    """Images [B, H, W, 3] → tokens [B, (H/p)(W/p), D] in raster order (Xiao 2021, 4).

    3×3 convolutions of stride 2, each batch-normalised and rectified, of doubling width up to D,
    then one product. The paper has one block fewer after it; the recipe says how many there are.
    """

    patch: int
    dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images_bhwc: jax.Array, *, train: bool) -> jax.Array:
        x, count = images_bhwc.astype(self.dtype), halvings(self.patch)
        for index in range(count):
            width = max(1, self.dim // 2 ** (count - 1 - index))
            x = conv(width, 3, 2, self.dtype, f"conv{index}")(x)
            x = nn.relu(batch_norm(x, self.dtype, train=train, name=f"norm{index}"))
        return Dense(self.dim, self.dtype, name="proj")(rearrange(x, "b h w c -> b (h w) c"))


@dataclasses.dataclass(frozen=True)
class Stem:
    """What a ViT must know of a stem.

    mixes: whether a token sees pixels of other patches, so that none can be dropped before it; then
    it is called on images and told whether it trains, else on patches. check: raises UserError for
    a patch that it cannot make tokens of. make: (patch, width, dtype) → module, named.
    """

    mixes: bool
    check: Callable[[int], Any]
    make: Callable[[int, int, Any], nn.Module]


STEMS = {
    "patch": Stem(
        False, lambda patch: None, lambda patch, dim, dtype: Dense(dim, dtype, name="embed")
    ),
    "hmlp": Stem(False, factors, lambda *settings: HMLP(*settings, name="stem")),
    "conv": Stem(True, halvings, lambda *settings: Convolutions(*settings, name="stem")),
}

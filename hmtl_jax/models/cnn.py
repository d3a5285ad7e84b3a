"""A small residual network for faces of 48 to 96 px, cheap on a CPU (ours).

After ResNet-9, known from DAWNBench (Coleman 2017): one residual block a stage. The stem reads
squares of 2 x 2 pixels, so that no layer runs at the image's own size, where a CPU spends most of
its time on few channels.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hmtl_jax.errors import lookup
from hmtl_jax.models.conv import batch_norm, check_image, check_whole, conv, pooled
from hmtl_jax.models.layers import DropPath
from hmtl_jax.patches import patchify

SIZES = {
    "cnn16": 16,
    "cnn24": 24,
    "cnn32": 32,
    "cnn48": 48,
    "cnn64": 64,
}  # channels of the first stage
SQUARE = 2  # pixels a side that the stem reads as one place
STAGES = 3


class Residual(nn.Module):
    """x + branch(x): two 3x3 convolutions, each normalised and rectified."""

    drop_path: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_bhwc: jax.Array, *, train: bool) -> jax.Array:
        y = x_bhwc
        for index in (1, 2):
            y = conv(x_bhwc.shape[-1], 3, 1, self.dtype, f"conv{index}")(y)
            y = nn.relu(batch_norm(y, self.dtype, train=train, name=f"norm{index}"))
        return x_bhwc + DropPath(self.drop_path)(y, train=train)


class CNN(nn.Module):
    """Images [B, H, W, 3] (normalised) → named stages.

    Returns `stage1` … `stage3`, `dtype` [B, h, w, C], `patches` (the last of them) and `pooled`,
    float32 [B, C], its mean. Drop path grows linearly with depth to `drop_path`.
    """

    width: int
    drop_path: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images_bhwc: jax.Array, keep_bk: jax.Array | None = None, *, train: bool = False
    ) -> dict[str, jax.Array]:
        check_whole(keep_bk)
        check_image(images_bhwc, cell(False))
        batch, height, width, _ = images_bhwc.shape
        x = patchify(images_bhwc.astype(self.dtype), SQUARE)
        x = x.reshape(batch, height // SQUARE, width // SQUARE, -1)
        stages = {}
        for stage in range(STAGES):
            name = f"stage{stage + 1}_block0" if stage else "stem"
            x = conv(self.width * 2**stage, 3, 2 if stage else 1, self.dtype, name)(x)
            x = nn.relu(batch_norm(x, self.dtype, train=train, name=f"{name}_norm"))
            rate = self.drop_path * stage / (STAGES - 1)
            x = Residual(rate, self.dtype, name=f"stage{stage + 1}_block1")(x, train=train)
            stages[f"stage{stage + 1}"] = x
        return stages | {"patches": x, "pooled": pooled(x)}


def cell(small: bool) -> int:
    """The pixels along one side that a cell of the last map stands for: its total stride."""
    del small  # it is made for small images
    return SQUARE * 2 ** (STAGES - 1)


def make(name: str, *, drop_path: float = 0.0, dtype: Any = jnp.float32) -> CNN:
    """`"cnn24"` … `"cnn64"`; UserError if unknown."""
    return CNN(lookup(SIZES, name, "encoder"), drop_path, dtype)

"""EfficientNet B0, B1 and B2 (Tan 2019), with timm's `efficientnet_b*` padding and norms.

Those pad on every side and take epsilon 1e-5, where the authors' TensorFlow code (timm's
`tf_efficientnet_b*`) pads a stride of 2 on the right and below alone and takes 1e-3. The small
variant, for faces of up to 64 px, has stride 1 in its stem and in its second stage (ours).
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hmtl_jax.errors import lookup
from hmtl_jax.models.conv import batch_norm, check_image, check_whole, conv, pooled, split_name
from hmtl_jax.models.layers import Dense, DropPath

# Expansion, channels, repeats, stride, kernel of the stages of B0 (Tan 2019, table 1).
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
# What widths and repeats are multiplied by (the authors' code).
SIZES = {
    "efficientnet_b0": (1.0, 1.0),
    "efficientnet_b1": (1.0, 1.1),
    "efficientnet_b2": (1.1, 1.2),
}


def scaled(channels: int, width: float) -> int:
    """channels * width, to the nearest multiple of 8 that is at least 90 % of it."""
    near = max(8, int(channels * width + 4) // 8 * 8)
    return near + 8 if near < 0.9 * channels * width else near


@dataclasses.dataclass(frozen=True)
class BlockShape:
    """One MBConv block; `inputs` and `outputs` count channels."""

    inputs: int
    outputs: int
    expansion: int
    kernel: int
    stride: int


def stages_of(width: float, depth: float, small: bool) -> list[list[BlockShape]]:
    """The blocks of each of the seven stages."""
    stages, inputs = [], scaled(32, width)
    for index, (expansion, channels, repeats, stride, kernel) in enumerate(STAGES):
        outputs, blocks = scaled(channels, width), []
        stride = 1 if small and index == 1 else stride
        for block in range(math.ceil(repeats * depth)):
            step = stride if block == 0 else 1
            blocks.append(BlockShape(inputs, outputs, expansion, kernel, step))
            inputs = outputs
        stages.append(blocks)
    return stages


def swish(x: jax.Array) -> jax.Array:
    """x times its sigmoid (Ramachandran 2017), in f32, returned in the dtype of `x`."""
    return nn.silu(x.astype(jnp.float32)).astype(x.dtype)


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate that its mean over the map decides (Hu 2018)."""

    squeezed: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        y = swish(Dense(self.squeezed, self.dtype, name="squeeze")(pooled(x_bhwc)))
        y = Dense(x_bhwc.shape[-1], self.dtype, name="excite")(y)
        gate = nn.sigmoid(y.astype(jnp.float32)).astype(x_bhwc.dtype)
        return x_bhwc * gate[:, None, None, :]


class MBConv(nn.Module):
    """Widens, filters each channel alone, gates, narrows; adds x where the shape stays.

    The gate's middle has a quarter of the block's input channels.
    """

    shape: BlockShape
    drop_path: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_bhwc: jax.Array, *, train: bool) -> jax.Array:
        of, y = self.shape, x_bhwc
        inner = of.inputs * of.expansion

        def normed(y, name):
            return batch_norm(y, self.dtype, train=train, name=name)

        if of.expansion > 1:
            y = swish(normed(conv(inner, 1, 1, self.dtype, "expand")(y), "expand_norm"))
        y = conv(inner, of.kernel, of.stride, self.dtype, "depthwise", groups=inner)(y)
        y = swish(normed(y, "depthwise_norm"))
        y = SqueezeExcite(of.inputs // 4, self.dtype, name="gate")(y)
        y = normed(conv(of.outputs, 1, 1, self.dtype, "project")(y), "project_norm")
        if y.shape != x_bhwc.shape:
            return y
        return x_bhwc + DropPath(self.drop_path)(y, train=train)


class EfficientNet(nn.Module):
    """Images [B, H, W, 3] (normalised) → named stages.

    Returns `stage1` … `stage7`, `dtype` [B, h, w, C], `patches`, what the last 1x1 convolution
    makes of stage 7, and `pooled`, float32 [B, C], the mean of `patches`. Drop path's rate of block
    i of n is `drop_path` i / n, as in timm.
    """

    width: float
    depth: float
    small: bool = False
    drop_path: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images_bhwc: jax.Array, keep_bk: jax.Array | None = None, *, train: bool = False
    ) -> dict[str, jax.Array]:
        check_whole(keep_bk)
        check_image(images_bhwc, cell(self.small))
        x = images_bhwc.astype(self.dtype)
        x = conv(scaled(32, self.width), 3, 1 if self.small else 2, self.dtype, "stem")(x)
        x = swish(batch_norm(x, self.dtype, train=train, name="stem_norm"))
        shapes = stages_of(self.width, self.depth, self.small)
        stages, index, count = {}, 0, sum(map(len, shapes))
        for stage, blocks in enumerate(shapes, 1):
            for block, shape in enumerate(blocks):
                rate, name = self.drop_path * index / count, f"stage{stage}_block{block}"
                x = MBConv(shape, rate, self.dtype, name=name)(x, train=train)
                index += 1
            stages[f"stage{stage}"] = x
        # B0 and B1 have 1280 channels at the end and B2 has 1408.
        x = conv(scaled(1280, self.width), 1, 1, self.dtype, "last")(x)
        x = swish(batch_norm(x, self.dtype, train=train, name="last_norm"))
        return stages | {"patches": x, "pooled": pooled(x)}


def cell(small: bool) -> int:
    """The pixels along one side that a cell of the last map stands for: its total stride."""
    return 8 if small else 32


def make(name: str, *, drop_path: float = 0.0, dtype: Any = jnp.float32) -> EfficientNet:
    """`"efficientnet_b0"` … `"efficientnet_b2"`, or with `-small`; UserError if unknown."""
    size, small = split_name(name)
    width, depth = lookup(SIZES, size, "encoder")
    return EfficientNet(width, depth, small, drop_path, dtype)

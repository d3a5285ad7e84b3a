"""ResNet (He 2016) in its v1.5 form: a bottleneck's stride is on its 3x3 convolution.

That, the padding and the order of layers are those of torchvision and timm, so their weights fit.
The small stem, for faces of up to 64 px, is the one usual for CIFAR: a 3x3 convolution of stride 1
and no max-pooling.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hmtl_jax.errors import lookup
from hmtl_jax.models.conv import batch_norm, check_image, check_whole, conv, pooled, split_name
from hmtl_jax.models.layers import DropPath

# Blocks in each of the four stages, and whether they are bottlenecks (He 2016, table 1).
SIZES = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
}


class Residual(nn.Module):
    """relu(shortcut(x) + branch(x)); `convs` lists (channels, kernel, stride) along the branch.

    The last norm's scale starts at zero, so that a block starts as the identity (Goyal 2017; timm).
    """

    convs: tuple[tuple[int, int, int], ...]
    drop_path: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_bhwc: jax.Array, *, train: bool) -> jax.Array:
        y, last = x_bhwc, len(self.convs)
        for index, (features, kernel, stride) in enumerate(self.convs, 1):
            init = nn.initializers.zeros if index == last else nn.initializers.ones
            y = conv(features, kernel, stride, self.dtype, f"conv{index}")(y)
            y = batch_norm(y, self.dtype, train=train, name=f"norm{index}", scale_init=init)
            y = y if index == last else nn.relu(y)
        if y.shape != x_bhwc.shape:
            stride = x_bhwc.shape[1] // y.shape[1]
            x_bhwc = conv(y.shape[-1], 1, stride, self.dtype, "shortcut")(x_bhwc)
            x_bhwc = batch_norm(x_bhwc, self.dtype, train=train, name="shortcut_norm")
        return nn.relu(x_bhwc + DropPath(self.drop_path)(y, train=train))


def branch(width: int, stride: int, bottleneck: bool) -> tuple[tuple[int, int, int], ...]:
    """The convolutions of a residual branch: (channels, kernel, stride) each."""
    if bottleneck:
        return (width, 1, 1), (width, 3, stride), (4 * width, 1, 1)
    return (width, 3, stride), (width, 3, 1)


class ResNet(nn.Module):
    """Images [B, H, W, 3] (normalised) → named stages.

    Returns `stage1` … `stage4`, `dtype` [B, h, w, C], `patches` (the last of them) and `pooled`,
    float32 [B, C], its mean. Drop path grows linearly with depth to `drop_path`.
    """

    depths: tuple[int, ...]
    bottleneck: bool
    small: bool = False
    drop_path: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images_bhwc: jax.Array, keep_bk: jax.Array | None = None, *, train: bool = False
    ) -> dict[str, jax.Array]:
        check_whole(keep_bk)
        check_image(images_bhwc, cell(self.small))
        x = self.stem(images_bhwc.astype(self.dtype), train)
        stages, index, last = {}, 0, max(sum(self.depths) - 1, 1)
        for stage, depth in enumerate(self.depths):
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                convs = branch(64 * 2**stage, stride, self.bottleneck)
                rate, name = self.drop_path * index / last, f"stage{stage + 1}_block{block}"
                x = Residual(convs, rate, self.dtype, name=name)(x, train=train)
                index += 1
            stages[f"stage{stage + 1}"] = x
        return stages | {"patches": x, "pooled": pooled(x)}

    def stem(self, x_bhwc: jax.Array, train: bool) -> jax.Array:
        """The first convolution: 7x7 of stride 2 and max-pooling, or the small one."""
        kernel, stride = (3, 1) if self.small else (7, 2)
        x_bhwc = conv(64, kernel, stride, self.dtype, "stem")(x_bhwc)
        x_bhwc = nn.relu(batch_norm(x_bhwc, self.dtype, train=train, name="stem_norm"))
        if self.small:
            return x_bhwc
        padding: Any = ((1, 1), (1, 1))  # which Flax takes but declares as a string
        return nn.max_pool(x_bhwc, (3, 3), (2, 2), padding=padding)


def cell(small: bool) -> int:
    """The pixels along one side that a cell of the last map stands for: its total stride."""
    return 8 if small else 32


def make(name: str, *, drop_path: float = 0.0, dtype: Any = jnp.float32) -> ResNet:
    """`"resnet18"` … `"resnet101"`, with `-small` for the small stem; UserError if unknown."""
    size, small = split_name(name)
    depths, bottleneck = lookup(SIZES, size, "encoder")
    return ResNet(depths, bottleneck, small, drop_path, dtype)

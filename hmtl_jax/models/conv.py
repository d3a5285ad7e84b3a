"""The layers every convolutional encoder is made of, padded and normalised as in PyTorch.

So imported weights give the outputs that they gave there. Parameters and statistics are f32, the
convolutions run in `dtype`.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hmtl_jax.errors import UserError
from hmtl_jax.models.layers import Dtype


def he_fan_out(groups: int) -> Any:
    """Initializer N(0, 2 / (k k out / groups)) of kernels [k, k, in / groups, out] (He 2015)."""

    def init(key: jax.Array, shape: Sequence[int], dtype: Dtype = jnp.float32) -> jax.Array:
        fan_out = shape[0] * shape[1] * shape[3] / groups
        return (2.0 / fan_out) ** 0.5 * jax.random.normal(key, shape, dtype)

    return init


def conv(features: int, kernel: int, stride: int, dtype: Dtype, name: str, groups: int = 1) -> Any:
    """A k x k convolution without bias, padded by (k - 1) // 2 on every side.

    XLA's "SAME" would pad a stride of 2 on the right and below alone.
    """
    pad = (kernel - 1) // 2
    return nn.Conv(
        features, (kernel, kernel), (stride, stride), padding=((pad, pad), (pad, pad)),
        feature_group_count=groups, use_bias=False, dtype=dtype, kernel_init=he_fan_out(groups),
        name=name,
    )  # fmt: skip


def batch_norm(
    x_bhwc: jax.Array,
    dtype: Dtype,
    *,
    train: bool,
    name: str,
    scale_init: Any = nn.initializers.ones,
) -> jax.Array:
    """Batch normalisation in f32 (Ioffe 2015), returned in `dtype`; to be called in a module.

    `train`: statistics of the batch, under jit the whole of it on whatever devices its rows are;
    the running ones take a tenth of them. Else: the running ones. Epsilon 1e-5, momentum 0.9, as in
    PyTorch and timm; the running variance takes in the biased one, where PyTorch takes n / (n - 1)
    of it.
    """
    norm = nn.BatchNorm(momentum=0.9, epsilon=1e-5, scale_init=scale_init, name=name)
    return norm(x_bhwc.astype(jnp.float32), use_running_average=not train).astype(dtype)


def pooled(x_bhwc: jax.Array) -> jax.Array:
    """The mean over the map: float32 [B, C]."""
    return jnp.mean(x_bhwc.astype(jnp.float32), axis=(1, 2))


def split_name(name: str) -> tuple[str, bool]:
    """`"resnet18-small"` → (`"resnet18"`, True): the network, and whether its stem is small."""
    return name.removesuffix("-small"), name.endswith("-small")


def check_image(images_bhwc: jax.Array, cell: int) -> None:
    """Raises UserError unless cells of `cell` px cover the images exactly."""
    height, width = images_bhwc.shape[1:3]
    if height % cell or width % cell or 0 in (height, width):
        raise UserError(
            f"model.encoder: the last map has cells of {cell} px, which do not cover an image of "
            f"{height} x {width} px; choose multiples of {cell}, or an encoder such as "
            "'resnet18-small', with cells of 8 px."
        )


def check_whole(keep_bk: jax.Array | None) -> None:
    """Raises UserError if a subset of patches is asked of a convolutional encoder."""
    if keep_bk is not None:
        raise UserError(
            "model.encoder: a convolutional encoder reads whole images and cannot drop patches; "
            "choose a ViT such as 'S/16', or a pretext that masks pixels."
        )

"""The layers every convolutional encoder is made of, padded and normalised as in PyTorch.

So imported weights give the outputs that they gave there. Parameters and statistics are f32, the
convolutions run in `dtype`.

On a CPU, XLA computes a convolution and its pull-back to the images near the processor's peak, if
they are f32, and the gradient of the kernel at a tenth of that. There it is written as products,
one for each row of the map (benchmarks/RESULTS.md). All else takes XLA's own, everywhere.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hmtl_jax.errors import UserError
from hmtl_jax.models.layers import Dtype, at_least_f32
from hmtl_jax.sharding import over_batch, summed_over_batch


def he_fan_out(groups: int) -> Any:
    """Initializer N(0, 2 / (k k out / groups)) of kernels [k, k, in / groups, out] (He 2015)."""

    def init(key: jax.Array, shape: Sequence[int], dtype: Dtype = jnp.float32) -> jax.Array:
        fan_out = shape[0] * shape[1] * shape[3] / groups
        return (2.0 / fan_out) ** 0.5 * jax.random.normal(key, shape, dtype)

    return init


def _own(x_bhwc: jax.Array, kernel: jax.Array, stride: int, groups: int) -> jax.Array:
    """XLA's convolution, padded by (k - 1) // 2 on every side.

    Its "SAME" would pad a stride of 2 on the right and below alone.
    """
    pads = [((side - 1) // 2, (side - 1) // 2) for side in kernel.shape[:2]]
    return jax.lax.conv_general_dilated(
        x_bhwc,
        kernel,
        (stride, stride),
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _in_f32(function: Any) -> Any:
    """`function` of arrays computed in f32, its result in the dtype of the first."""

    def wrapped(first: jax.Array, *others: jax.Array) -> jax.Array:
        wide = (array.astype(at_least_f32(array.dtype)) for array in (first, *others))
        return function(*wide).astype(first.dtype)

    return wrapped


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(x_bhwc: jax.Array, kernel: jax.Array, stride: int, groups: int) -> jax.Array:
    """x [B, H, W, C] with a kernel [k, k, C / groups, F] of its dtype, in that dtype.

    No forward-mode derivatives, and none of the backward pass.
    """
    own = functools.partial(_own, stride=stride, groups=groups)
    return jax.lax.platform_dependent(x_bhwc, kernel, cpu=_in_f32(own), default=own)


def _convolve_forward(x_bhwc, kernel, stride, groups):
    return convolve(x_bhwc, kernel, stride, groups), (x_bhwc, kernel)


def _convolve_backward(stride, groups, kept, dy_bhwf):
    x_bhwc, kernel = kept
    own = functools.partial(_own, stride=stride, groups=groups)

    def of_images(dy, kernel):
        return jax.linear_transpose(lambda x: own(x, kernel), x_bhwc.astype(dy.dtype))(dy)[0]

    def of_kernel(dy, x):
        return jax.linear_transpose(lambda k: own(x, k), kernel.astype(dy.dtype))(dy)[0]

    def by_row(dy, x):
        return summed_over_batch(functools.partial(_of_kernel, kernel.shape[0], stride), dy, x)

    on_cpu = _in_f32(by_row if groups == 1 else of_kernel)
    dx = jax.lax.platform_dependent(dy_bhwf, kernel, cpu=_in_f32(of_images), default=of_images)
    dkernel = jax.lax.platform_dependent(dy_bhwf, x_bhwc, cpu=on_cpu, default=of_kernel)
    return dx, dkernel.astype(kernel.dtype)


def _of_kernel(side: int, stride: int, dy_bhwf: jax.Array, x_bhwc: jax.Array) -> jax.Array:
    """The gradient of a kernel [side, side, C, F], a product for each row of the map.

    Of a row, all places of the kernel lie side by side: a long product of what fits into a cache.
    """
    height, width, features = dy_bhwf.shape[1:]
    if side == 1:
        x_nc = x_bhwc[:, ::stride, ::stride].reshape(-1, x_bhwc.shape[-1])
        return (x_nc.T @ dy_bhwf.reshape(-1, features))[None, None]
    pad = ((side - 1) // 2,) * 2
    x_bhwc = jnp.pad(x_bhwc, ((0, 0), pad, pad, (0, 0)))
    end = stride * (width - 1) + 1

    def of_row(at):
        rows = jax.lax.dynamic_slice_in_dim(x_bhwc, stride * at, side, axis=1)
        places = [rows[:, i, j : j + end : stride] for i in range(side) for j in range(side)]
        dy_nf = jax.lax.dynamic_index_in_dim(dy_bhwf, at, 1, keepdims=False).reshape(-1, features)
        return dy_nf.T @ jnp.concatenate(places, axis=-1).reshape(len(dy_nf), -1)

    def add(total, at):
        return total + of_row(at), None

    total, _ = jax.lax.scan(add, of_row(0), jnp.arange(1, height))
    return total.T.reshape(side, side, -1, features)


convolve.defvjp(_convolve_forward, _convolve_backward)


class Conv(nn.Module):
    """A k x k convolution without bias, padded by (k - 1) // 2 on every side, in `dtype`.

    Its parameter is f32: kernel [k, k, in / groups, features], drawn as in He 2015.
    """

    features: int
    kernel: int
    stride: int = 1
    groups: int = 1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        shape = (self.kernel, self.kernel, x_bhwc.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", he_fan_out(self.groups), shape, jnp.float32)
        x_bhwc, kernel = x_bhwc.astype(self.dtype), kernel.astype(self.dtype)
        return over_batch(convolve(x_bhwc, kernel, self.stride, self.groups))


def conv(features: int, kernel: int, stride: int, dtype: Dtype, name: str, groups: int = 1) -> Conv:
    """A convolution named `name`; to be called in a module."""
    return Conv(features, kernel, stride, groups, dtype, name=name)


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
    """The mean over the map: float32 [B, C].

    Not fused with what makes a map of bf16: on processors with AVX-512, XLA's CPU backend (JAX 0.11
    and 0.12) then sums what was never written.
    """
    if x_bhwc.dtype != jnp.float32:
        x_bhwc = jax.lax.optimization_barrier(x_bhwc)
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

"""The layers every token encoder is made of: f32 parameters, `dtype` compute, f32 reductions.

Each has a backward pass of its own, equal to autodiff's but for rounding. For two reasons: in bf16
XLA's CPU matrix path takes some forms of a product and not others (the weight gradient as autodiff
writes it is 20 times slower); and what is kept for the backward pass stays in `dtype`, where
autodiff keeps the f32 insides of a norm, a GELU or a softmax. The products are the same ones, so
a GPU or TPU loses nothing. benchmarks/RESULTS.md has the figures. No forward-mode derivatives.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hmtl_jax.sharding import over_batch

Dtype = Any
xavier_uniform = nn.initializers.xavier_uniform()


def at_least_f32(dtype: Dtype) -> Dtype:
    """For sums, and for functions that lose too much in bf16."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def wide(x: jax.Array) -> jax.Array:
    """x in f32, or f64 if it is that."""
    return x.astype(at_least_f32(x.dtype))


def along_last(vector: jax.Array, x: jax.Array) -> jax.Array:
    """A vector [D] in the rank and the dtype of `x` [..., D]."""
    return jnp.reshape(vector, (1,) * (x.ndim - 1) + (-1,)).astype(x.dtype)


def leading(x: jax.Array) -> tuple[int, ...]:
    """All axes but the last."""
    return tuple(range(x.ndim - 1))


@jax.custom_vjp
def affine(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """`x @ kernel + bias` over the last axis of x [..., D], in the dtype of x."""
    return jnp.einsum("...d,df->...f", x, kernel.astype(x.dtype)) + along_last(bias, x)


def _affine_forward(x, kernel, bias):
    return affine(x, kernel, bias), (x, kernel, bias)


def _affine_backward(kept, dy):
    x, kernel, bias = kept
    dx = jnp.einsum("...f,df->...d", dy, kernel.astype(dy.dtype))
    # "df" and not "fd", all leading axes contracted at once, summed in f32: the fast form on CPU.
    axes, sums = "abceghij"[: x.ndim - 1], at_least_f32(dy.dtype)
    dkernel = jnp.einsum(f"{axes}d,{axes}f->df", x, dy, preferred_element_type=sums)
    dbias = jnp.sum(dy, axis=leading(dy), dtype=sums)
    return dx, dkernel.astype(kernel.dtype), dbias.astype(bias.dtype)


affine.defvjp(_affine_forward, _affine_backward)


class Dense(nn.Module):
    """`x @ kernel + bias` over the last axis, computed in `dtype`.

    Parameters are f32: kernel [in, features] (Xavier-uniform, as in the MAE authors' code), bias
    [features] (zeros).
    """

    features: int
    dtype: Dtype = jnp.float32
    kernel_init: Any = xavier_uniform

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return over_batch(affine(x.astype(self.dtype), kernel, bias))


def standardised(x: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """x [..., D] at mean 0 and variance 1 over D, and the factor [..., 1] applied; both wide."""
    x = wide(x)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    factor = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + epsilon)
    return centred * factor, factor


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def layer_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, dtype: Dtype
) -> jax.Array:
    """Standardises x [..., D] over D in f32, scales, shifts, returns `dtype` (Ba 2016)."""
    unit, _ = standardised(x, epsilon)
    return (unit * along_last(scale, unit) + along_last(bias, unit)).astype(dtype)


def _layer_norm_forward(x, scale, bias, epsilon, dtype):
    return layer_norm(x, scale, bias, epsilon, dtype), (x, scale, bias)


def _layer_norm_backward(epsilon, dtype, kept, dy):
    del dtype
    x, scale, bias = kept
    unit, factor = standardised(x, epsilon)
    dy = dy.astype(unit.dtype)
    dunit = dy * along_last(scale, dy)
    # What lies along the mean and along `unit` was removed by standardising.
    along_mean = jnp.mean(dunit, axis=-1, keepdims=True)
    along_unit = jnp.mean(dunit * unit, axis=-1, keepdims=True)
    dx = factor * (dunit - along_mean - unit * along_unit)
    dscale, dbias = jnp.sum(dy * unit, axis=leading(dy)), jnp.sum(dy, axis=leading(dy))
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class LayerNorm(nn.Module):
    """Normalises the last axis in f32 and returns `dtype`; epsilon 1e-6 as in ViT and MAE.

    Parameters are f32: scale [features] (ones), bias [features] (zeros).
    """

    dtype: Dtype = jnp.float32
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return layer_norm(x, scale, bias, self.epsilon, self.dtype)


def written(x: jax.Array) -> jax.Array:
    """x; on a CPU as an array of its own, which what reads it does not compute anew.

    XLA's CPU backend computes a GELU a second time, across its rows, for the product that gives the
    next kernel's gradient: a fifth of a small ViT's step in f32.
    """
    return jax.lax.platform_dependent(x, cpu=jax.lax.optimization_barrier, default=lambda x: x)


def normal_cdf(x: jax.Array) -> jax.Array:
    """Φ(x). By erf: XLA's erfc, which jax.nn.gelu takes, costs three times as much on CPU."""
    return 0.5 * (1.0 + jax.lax.erf(x * 0.5**0.5))


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x Φ(x) (Hendrycks 2016): computed in f32, returned in the dtype of `x`."""
    z = wide(x)
    return written((z * normal_cdf(z)).astype(x.dtype))


def _gelu_forward(x):
    return gelu(x), x


def _gelu_backward(x, dy):
    z = wide(x)
    density = jnp.exp(-0.5 * jnp.square(z)) * (2.0 * jnp.pi) ** -0.5
    return ((dy.astype(z.dtype) * (normal_cdf(z) + z * density)).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


@jax.custom_vjp
def attention(q_bnhd: jax.Array, k_bmhd: jax.Array, v_bmhd: jax.Array) -> jax.Array:
    """softmax(q kᵀ / √D) v for each head, with an f32 softmax (Vaswani 2017).

    All of one dtype, which is that of the result [B, N, H, D]. Keeps the weights [B, H, N, M] for
    the backward pass.
    """
    return _attention_forward(q_bnhd, k_bmhd, v_bmhd)[0]


def attention_weights(q_bnhd: jax.Array, k_bmhd: jax.Array) -> jax.Array:
    """softmax(q kᵀ / √D) for each head, [B, H, N, M] in f32 or wider; rows sum to 1."""
    scores = wide(jnp.einsum("bnhd,bmhd->bhnm", q_bnhd, k_bmhd)) * q_bnhd.shape[-1] ** -0.5
    return jax.nn.softmax(scores, axis=-1)


def _attention_forward(q_bnhd, k_bmhd, v_bmhd):
    weights_bhnm = attention_weights(q_bnhd, k_bmhd).astype(v_bmhd.dtype)
    out_bnhd = jnp.einsum("bhnm,bmhd->bnhd", weights_bhnm, v_bmhd)
    return out_bnhd, (q_bnhd, k_bmhd, v_bmhd, weights_bhnm)


def _attention_backward(kept, dout_bnhd):
    q_bnhd, k_bmhd, v_bmhd, weights_bhnm = kept
    weights = wide(weights_bhnm)
    dweights = wide(jnp.einsum("bnhd,bmhd->bhnm", dout_bnhd, v_bmhd))
    mean = jnp.sum(weights * dweights, axis=-1, keepdims=True)
    dscores = weights * (dweights - mean) * q_bnhd.shape[-1] ** -0.5
    dscores_bhnm = dscores.astype(q_bnhd.dtype)
    dq_bnhd = jnp.einsum("bhnm,bmhd->bnhd", dscores_bhnm, k_bmhd)
    dk_bmhd = jnp.einsum("bhnm,bnhd->bmhd", dscores_bhnm, q_bnhd)
    dv_bmhd = jnp.einsum("bhnm,bnhd->bmhd", weights_bhnm, dout_bnhd)
    return dq_bnhd, dk_bmhd, dv_bmhd


attention.defvjp(_attention_forward, _attention_backward)


def one_kernel(
    q_bnhd: jax.Array, k_bnhd: jax.Array, v_bnhd: jax.Array, implementation: Any = "cudnn"
) -> jax.Array:
    """`attention` of tokens to themselves as cuDNN's fused kernel, which keeps no weights.

    A token more, that nobody sees, makes an odd length even, which the backward pass wants.
    """
    batch, length = q_bnhd.shape[:2]
    odd = length % 2
    if odd:
        q_bnhd, k_bnhd, v_bnhd = (
            jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q_bnhd, k_bnhd, v_bnhd)
        )
    seen = jnp.full(batch, length, jnp.int32) if odd else None
    out_bnhd = jax.nn.dot_product_attention(
        q_bnhd, k_bnhd, v_bnhd, query_seq_lengths=seen, key_value_seq_lengths=seen,
        implementation=implementation,
    )  # fmt: skip
    return out_bnhd[:, :length]


def has_cudnn() -> bool:
    """Whether JAX computes on NVIDIA GPUs."""
    return "cuda" in jax.devices()[0].client.platform_version


def cudnn_takes(dtype: Dtype, size: int) -> bool:
    """Whether `one_kernel` computes heads of so many numbers here: 16-bit, in eights up to 128."""
    return jnp.finfo(dtype).bits == 16 and size % 8 == 0 and size <= 128 and has_cudnn()


def fused_attention(q_bnhd: jax.Array, k_bnhd: jax.Array, v_bnhd: jax.Array) -> jax.Array:
    """`one_kernel` where it is there and takes it, else `attention`: equal but for rounding."""
    if not cudnn_takes(q_bnhd.dtype, q_bnhd.shape[-1]):
        return attention(q_bnhd, k_bnhd, v_bnhd)
    own = (q_bnhd, k_bnhd, v_bnhd)
    return jax.lax.platform_dependent(*own, cuda=one_kernel, default=attention)


# By `model.attention`.
ATTENTION = {"plain": attention, "cudnn": fused_attention}


class DropPath(nn.Module):
    """Drops a residual branch per example with probability `rate` in training (Huang 2016)."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if self.rate == 0.0 or not train:
            return x
        keep = jax.random.bernoulli(
            self.make_rng("dropout"), 1.0 - self.rate, (x.shape[0],) + (1,) * (x.ndim - 1)
        )
        return jnp.where(keep, x / (1.0 - self.rate), jnp.zeros_like(x))

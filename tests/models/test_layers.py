"""The layers' own backward passes against autodiff of plain definitions, and how they compose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from hmtl_jax.models import layers


def plain_affine(x, kernel, bias):
    return jnp.matmul(x, kernel) + jnp.broadcast_to(bias, (*x.shape[:-1], bias.size))


def plain_layer_norm(x, scale, bias):
    mean = jnp.mean(x, -1, keepdims=True)
    variance = jnp.mean((x - mean) ** 2, -1, keepdims=True)
    scale, bias = (jnp.broadcast_to(p, x.shape) for p in (scale, bias))
    return (x - mean) / jnp.sqrt(variance + 1e-6) * scale + bias


def plain_gelu(x):
    return jax.nn.gelu(x, approximate=False)


def plain_attention(q, k, v):
    q, k, v = (jnp.swapaxes(part, 1, 2) for part in (q, k, v))
    weights = jax.nn.softmax(jnp.matmul(q, jnp.swapaxes(k, 2, 3)) / q.shape[-1] ** 0.5, axis=-1)
    return jnp.swapaxes(jnp.matmul(weights, v), 1, 2)


def own_layer_norm(x, scale, bias):
    return layers.layer_norm(x, scale, bias, 1e-6, x.dtype)


# Name -> (ours, the plain definition, shapes of the arguments).
CASES = {
    "affine of tokens": (layers.affine, plain_affine, ((3, 5, 8), (8, 6), (6,))),
    "affine of features": (layers.affine, plain_affine, ((4, 8), (8, 6), (6,))),
    "affine of a vector": (layers.affine, plain_affine, ((8,), (8, 6), (6,))),
    "affine of a map": (layers.affine, plain_affine, ((2, 3, 4, 8), (8, 6), (6,))),
    "layer norm": (own_layer_norm, plain_layer_norm, ((3, 5, 8), (8,), (8,))),
    "gelu": (layers.gelu, plain_gelu, ((3, 5, 8),)),
    "attention": (layers.attention, plain_attention, ((2, 5, 3, 4), (2, 7, 3, 4), (2, 7, 3, 4))),
}
each_case = pytest.mark.parametrize("name", CASES)


def arguments(shapes, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(0.3, 1.5, shape), dtype) for shape in shapes)


def value_and_grads(function, args):
    """The result, and the gradients of its product with fixed random numbers."""

    def weighed(*args):
        out = function(*args)
        noise = np.random.default_rng(1).normal(size=out.shape)
        return jnp.sum(out * jnp.asarray(noise, out.dtype)), out

    (_, out), grads = jax.jit(
        jax.value_and_grad(weighed, argnums=tuple(range(len(args))), has_aux=True)
    )(*args)
    return (out, *grads)


@each_case
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-14)])
def test_value_and_gradients_equal_autodiff(name, dtype, tolerance):
    own, plain, shapes = CASES[name]
    with jax.enable_x64(True):
        exact = value_and_grads(plain, arguments(shapes, "float64"))
        args = [a.astype(dtype) for a in arguments(shapes, "float64")]
        for ours, theirs in zip(value_and_grads(own, args), exact, strict=True):
            assert ours.dtype == dtype
            scale = np.abs(theirs).max()
            error = np.abs(np.asarray(ours, "float64") - theirs).max()
            assert error < tolerance * scale


@each_case
def test_bf16_errs_by_its_rounding_alone(name):
    own, plain, shapes = CASES[name]
    args = [a.astype("bfloat16") for a in arguments(shapes, "float32")]
    exact = value_and_grads(plain, [a.astype("float32") for a in args])
    for ours, theirs in zip(value_and_grads(own, args), exact, strict=True):
        assert ours.dtype == jnp.bfloat16
        error = np.linalg.norm(ours.astype("float32") - theirs) / np.linalg.norm(theirs)
        assert error < 0.015  # half a unit in the last place is 0.004


@each_case
def test_vmap_equals_a_loop(name):
    own, _, shapes = CASES[name]
    rows = [arguments(shapes, "float32", seed) for seed in (2, 3, 4)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *rows)

    @jax.jit
    def grads(*args):
        return jax.grad(lambda *a: jnp.sum(own(*a) ** 2), argnums=tuple(range(len(args))))(*args)

    looped = jax.tree.map(lambda *x: jnp.stack(x), *[grads(*row) for row in rows])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        jax.vmap(grads)(*stacked), looped,
    )  # fmt: skip


def test_scan_and_remat_change_no_gradient():
    x = arguments(((2, 3, 4, 4),), "float32")[0]

    def layer(x):
        x = layers.attention(x, x, x)
        x = layers.gelu(own_layer_norm(x, jnp.ones(4), jnp.zeros(4)))
        return layers.affine(x, jnp.eye(4), jnp.ones(4))

    def looped(x):
        return jnp.sum(layer(layer(x)) ** 2)

    def scanned(x):
        return jnp.sum(jax.lax.scan(lambda x, _: (layer(x), None), x, length=2)[0] ** 2)

    def remat(x):
        return jnp.sum(jax.checkpoint(layer)(jax.checkpoint(layer)(x)) ** 2)

    expected, *others = [jax.jit(jax.grad(f))(x) for f in (looped, scanned, remat)]
    for found in others:
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_second_derivatives_by_reverse_over_reverse():
    (x,) = arguments(((2, 3),), "float32")

    def slope(function):
        square = lambda x: jnp.sum(jax.grad(lambda y: jnp.sum(function(y)))(x) ** 2)  # noqa: E731
        return jax.jit(jax.grad(square))(x)

    np.testing.assert_allclose(slope(layers.gelu), slope(plain_gelu), atol=1e-5)


def test_parameters_and_their_gradients_are_float32_under_bf16_compute():
    x = arguments(((2, 3, 8),), "float32")[0]
    for module, names in (
        (layers.Dense(4, dtype=jnp.bfloat16), {"kernel", "bias"}),
        (layers.LayerNorm(dtype=jnp.bfloat16), {"scale", "bias"}),
    ):
        params = module.init(jax.random.key(0), x)["params"]

        @jax.jit
        def total(params, module=module):
            return jnp.sum(module.apply({"params": params}, x).astype(jnp.float32))

        assert module.apply({"params": params}, x).dtype == jnp.bfloat16
        assert set(params) == names
        for leaf in jax.tree.leaves((params, jax.grad(total)(params))):
            assert leaf.dtype == jnp.float32


def test_float32_parameters_serve_float64_compute():
    with jax.enable_x64(True):
        x = arguments(((2, 3, 8),), "float64")[0]
        module = layers.Dense(4, dtype=jnp.float64)
        params = module.init(jax.random.key(0), x)["params"]
        out, pullback = jax.vjp(lambda p: module.apply({"params": p}, x), params)
        assert out.dtype == jnp.float64
        gradients = pullback(out)[0]
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradients))


def test_weight_gradients_sum_in_float32():
    """Over 4096 rows, sums in bf16 would stall at 256: an ulp is then 2."""
    x = jnp.ones((4, 1024, 2), jnp.bfloat16)
    kernel, bias = jnp.ones((2, 3)), jnp.zeros(3)
    grads = jax.grad(lambda k, b: jnp.sum(layers.affine(x, k, b).astype(jnp.float32)), (0, 1))
    for grad in grads(kernel, bias):
        np.testing.assert_array_equal(grad, 4096.0)


def test_large_scores_do_not_overflow():
    q = jnp.full((1, 2, 1, 4), 1e4)
    value, grads = jax.value_and_grad(lambda q: jnp.sum(layers.attention(q, q, q)))(q)
    assert np.isfinite(value) and np.all(np.isfinite(grads))


def test_gelu_of_far_values_is_the_identity_or_zero():
    x = jnp.array([-1e4, -20.0, 0.0, 20.0, 1e4])
    np.testing.assert_array_equal(layers.gelu(x), [0.0, 0.0, 0.0, 20.0, 1e4])
    np.testing.assert_array_equal(jax.grad(lambda x: layers.gelu(x).sum())(x), [0, 0, 0.5, 1, 1])


def test_drop_path_drops_whole_examples_and_keeps_the_mean():
    x = jnp.ones((4096, 2, 3))
    layer = layers.DropPath(0.25)
    out = layer.apply({}, x, train=True, rngs={"dropout": jax.random.key(0)})
    rows = np.asarray(out).reshape(4096, -1)
    assert set(np.unique(rows)) == {0.0, np.float32(1 / 0.75)}
    assert np.all(rows == rows[:, :1])
    assert abs(rows.mean() - 1.0) < 0.03
    np.testing.assert_array_equal(layer.apply({}, x, train=False), x)


@pytest.mark.parametrize("length", [6, 7])
def test_attention_in_one_kernel_equals_the_plain_form(length):
    """With a token more where they are odd, which neither takes part nor gets a gradient."""
    q, k, v = arguments([(2, length, 2, 8)] * 3, "float32")

    def kernel(*qkv):
        return layers.one_kernel(*qkv, implementation="xla")

    plain, fused = (value_and_grads(f, (q, k, v)) for f in (layers.attention, kernel))
    for ours, theirs in zip(fused, plain, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("dtype", "size", "fused"),
    [("bfloat16", 64, True), ("float32", 64, False), ("bfloat16", 4, False)],
)
def test_attention_is_lowered_to_cudnn_where_it_takes_it_and_nowhere_else(
    monkeypatch, dtype, size, fused
):
    monkeypatch.setattr(layers, "has_cudnn", lambda: True)
    for asked in ("check_cudnn_version", "check_compute_capability"):  # of a GPU that is not here
        monkeypatch.setattr(fused_attention_stablehlo, asked, lambda *_: 92000)
    x = jax.ShapeDtypeStruct((2, 37, 3, size), dtype)
    slope = jax.grad(
        lambda *qkv: jnp.sum(layers.fused_attention(*qkv).astype("float32")), (0, 1, 2)
    )
    traced = jax.jit(slope).trace(x, x, x)
    texts = {on: traced.lower(lowering_platforms=(on,)).as_text() for on in ("cuda", "cpu")}
    calls = {on: "__cudnn$fmhaSoftmaxBackward" in text for on, text in texts.items()}
    assert calls == {"cuda": fused, "cpu": False}

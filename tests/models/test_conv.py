"""Convolutions and their norms: by hand, in training and after it, on one device and on eight."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from hmtl_jax import sharding
from hmtl_jax.models import cnn, conv, efficientnet, resnet
from tests import tiny

ENCODERS = {
    "cnn": cnn.CNN(8, 0.1),
    "resnet": resnet.ResNet((1, 1), True, True),
    "efficientnet": efficientnet.EfficientNet(0.1, 0.1, True),
}


class Layer(nn.Module):
    """One convolution and one norm."""

    kernel: int
    stride: int
    groups: int = 1

    @nn.compact
    def __call__(self, x, *, train):
        x = conv.conv(6, self.kernel, self.stride, jnp.float32, "conv", self.groups)(x)
        return x, conv.batch_norm(x, jnp.float32, train=train, name="norm")


@pytest.mark.parametrize(
    ("kernel", "stride", "groups", "side"),
    [
        (3, 1, 1, 12),
        (3, 2, 1, 12),
        (3, 2, 1, 9),
        (1, 2, 1, 8),
        (5, 1, 1, 8),
        (7, 2, 1, 16),
        (7, 1, 1, 9),
        (3, 1, 4, 8),
    ],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_convolution_and_its_gradients_are_those_of_xla(kernel, stride, groups, side, dtype):
    rng = np.random.default_rng(kernel * 10 + stride)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
    x, weights = draw(4, side, side, 8), draw(kernel, kernel, 8 // groups, 12)

    def xlas(x, weights):
        pad = ((kernel - 1) // 2,) * 2
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, weights, (stride, stride), (pad, pad), dimension_numbers=numbers,
            feature_group_count=groups,
        )  # fmt: skip

    ours, pull = jax.vjp(lambda *given: conv.convolve(*given, stride, groups), x, weights)
    wide = (x.astype(jnp.float32), weights.astype(jnp.float32))
    theirs, their_pull = jax.vjp(xlas, *wide)
    dy = draw(*ours.shape)
    exact = (theirs, *their_pull(dy.astype(jnp.float32)))
    bits = 2.0**-7 if dtype == jnp.bfloat16 else 1e-5
    for found, wanted in zip((ours, *pull(dy)), exact, strict=True):
        assert found.dtype == dtype
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(found.astype(jnp.float32) / scale, wanted / scale, atol=bits)


def images_of(rows=16, side=16, channels=3):
    images = np.random.default_rng(0).normal(1.0, 2.0, size=(rows, side, side, channels))
    return jnp.asarray(images, jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def evaluated(model, variables, images):
    return model.apply(variables, images, train=False)


@functools.partial(jax.jit, static_argnums=0)
def trained(model, variables, images):
    """The stages, and the new statistics."""
    stages, new = model.apply(variables, images, train=True, mutable=["batch_stats"])
    return stages, new["batch_stats"]


def variables_of(model, images):
    """Random ones, with variances above zero."""
    shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
    variables = tiny.random_like(shapes)

    def positive(path, leaf):
        return jnp.abs(leaf) + 0.5 if path[-1].key == "var" else leaf

    return jax.tree_util.tree_map_with_path(positive, variables)


def by_hand(images, kernel_hwio, stride, groups):
    """The convolution by SciPy, in float64, padded on every side."""
    pad = (kernel_hwio.shape[0] - 1) // 2
    images = np.pad(np.asarray(images, np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    each = kernel_hwio.shape[3] // groups
    maps = []
    for out in range(kernel_hwio.shape[3]):
        inputs = range(kernel_hwio.shape[2])
        offset = out // each * kernel_hwio.shape[2]
        maps.append(
            sum(
                signal.correlate(
                    images[..., offset + i], np.asarray(kernel_hwio)[None, :, :, i, out], "valid"
                )
                for i in inputs
            )
        )
    return np.stack(maps, axis=-1)[:, ::stride, ::stride]


@pytest.mark.parametrize(
    ("kernel", "stride", "groups", "channels"),
    [(1, 1, 1, 3), (1, 2, 1, 3), (3, 2, 1, 3), (7, 2, 1, 3), (5, 2, 6, 6), (3, 1, 6, 6)],
)
def test_convolution_and_norm_equal_their_definitions(kernel, stride, groups, channels):
    model, images = Layer(kernel, stride, groups), images_of(3, 8, channels)
    variables = variables_of(model, images)
    slow = by_hand(images, variables["params"]["conv"]["kernel"], stride, groups)
    norm, old = variables["params"]["norm"], variables["batch_stats"]["norm"]

    def normed(mean, var):
        unit = (slow - np.asarray(mean)) / np.sqrt(np.asarray(var) + 1e-5)
        return unit * np.asarray(norm["scale"]) + np.asarray(norm["bias"])

    mapped, found = evaluated(model, variables, images)
    np.testing.assert_allclose(mapped, slow, atol=1e-4)
    np.testing.assert_allclose(found, normed(old["mean"], old["var"]), atol=1e-4)
    (_, found), new = trained(model, variables, images)
    mean, var = slow.mean((0, 1, 2)), slow.var((0, 1, 2))
    np.testing.assert_allclose(found, normed(mean, var), atol=1e-4)
    new = new["norm"]
    np.testing.assert_allclose(new["mean"], 0.9 * np.asarray(old["mean"]) + 0.1 * mean, atol=1e-5)
    np.testing.assert_allclose(new["var"], 0.9 * np.asarray(old["var"]) + 0.1 * var, rtol=1e-4)


@pytest.mark.parametrize("groups", [1, 16])
def test_kernels_start_at_the_scale_of_their_fan_out(groups):
    kernel = conv.he_fan_out(groups)(jax.random.key(0), (3, 3, 64, 256))
    np.testing.assert_allclose(np.std(kernel), np.sqrt(2 / (9 * 256 / groups)), rtol=0.01)


def test_statistics_and_parameters_are_f32_where_the_map_is_bf16():
    model = ENCODERS["resnet"].clone(dtype=jnp.bfloat16)
    images = images_of(4)
    stages, new = trained(model, variables_of(model, images), images)
    assert stages["patches"].dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype(jnp.float32)}


EACH = pytest.mark.parametrize(
    "name", ["resnet", pytest.param("efficientnet", marks=pytest.mark.slow)]
)


@EACH
def test_training_learns_every_statistic_and_evaluation_takes_each_image_alone(name):
    model, images = ENCODERS[name], images_of(4)
    variables = variables_of(model, images)
    stages, new = trained(model, variables, images)
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), new, variables["batch_stats"])
    assert all(jax.tree.leaves(moved))
    whole = evaluated(model, variables, images)["pooled"]
    assert np.abs(np.asarray(whole) - np.asarray(stages["pooled"])).max() > 1e-2
    alone = evaluated(model, variables, images[1:2])["pooled"]
    np.testing.assert_allclose(alone, whole[1:2], rtol=1e-4, atol=1e-4)


@EACH
@pytest.mark.slow
def test_eight_devices_share_their_statistics(name):
    """Outputs, gradients and new statistics equal those of one device with the whole batch."""
    model, images = ENCODERS[name], images_of()
    variables = variables_of(model, images)

    def step(params, batch_stats, images):
        def loss(params):
            every = {"params": params, "batch_stats": batch_stats}
            stages, new = model.apply(every, images, train=True, mutable=["batch_stats"])
            return jnp.mean(jnp.square(stages["pooled"])), (stages["pooled"], new)

        return jax.grad(loss, has_aux=True)(params)

    def on(devices):
        mesh = sharding.make_mesh(devices, 1, jax.devices()[:devices])
        with jax.set_mesh(mesh):
            given = jax.device_put(variables, sharding.replicated(mesh))
            rows = sharding.to_devices({"images": np.asarray(images)}, mesh)["images"]
            assert len(rows.sharding.device_set) == devices
            return jax.device_get(jax.jit(step)(given["params"], given["batch_stats"], rows))

    def close(one, eight):
        np.testing.assert_allclose(eight, one, rtol=2e-3, atol=1e-4 * (1 + np.abs(one).max()))

    jax.tree.map(close, on(1), on(8))

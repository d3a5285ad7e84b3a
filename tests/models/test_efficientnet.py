"""EfficientNet has its published size, and its maps lie where a pretext expects them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hmtl_jax.errors import UserError
from hmtl_jax.models import efficientnet
from tests import tiny

# Channels and repeats of the stages as the networks' published listings give them.
LISTED = {
    "efficientnet_b0": (32, (16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1), 1280),
    "efficientnet_b1": (32, (16, 24, 40, 80, 112, 192, 320), (2, 3, 3, 4, 4, 5, 2), 1280),
    "efficientnet_b2": (32, (16, 24, 48, 88, 120, 208, 352), (2, 3, 3, 4, 4, 5, 2), 1408),
}


@functools.cache
def traced(name, *sides):
    """The shapes of the stages and of the variables, in bf16."""
    images = jax.ShapeDtypeStruct((2, *sides, 3), jnp.float32)
    model = efficientnet.make(name, dtype=jnp.bfloat16)
    return jax.eval_shape(model.init_with_output, jax.random.key(0), images)


def by_formula(stem, channels, repeats, last):
    """Weights of every convolution, gate and norm, added up."""
    total, inputs = 27 * stem + 2 * stem, stem
    kernels, expansions = (3, 3, 5, 3, 5, 5, 3), (1, 6, 6, 6, 6, 6, 6)
    for outputs, count, kernel, expansion in zip(
        channels, repeats, kernels, expansions, strict=True
    ):
        for _ in range(count):
            inner, middle = expansion * inputs, inputs // 4
            total += (inputs + 2) * inner if expansion > 1 else 0
            total += kernel**2 * inner + 2 * inner
            total += (inner + 1) * middle + (middle + 1) * inner
            total += (inner + 2) * outputs
            inputs = outputs
    return total + (inputs + 2) * last


# timm's documented counts less the classifier.
@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("efficientnet_b0", 5_288_548 - 1_281_000),
        ("efficientnet_b1", 7_794_184 - 1_281_000),
        ("efficientnet_b2", 9_109_994 - 1_409_000),
    ],
)
def test_parameter_counts_are_the_published(name, published):
    assert by_formula(*LISTED[name]) == published
    for variant in (name, f"{name}-small"):
        _, variables = traced(variant, 64, 96)
        assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == published


@pytest.mark.parametrize("name", LISTED)
@pytest.mark.parametrize("small", [False, True])
def test_stages_lie_at_their_strides(name, small):
    stages, _ = traced(name + "-small" * small, 64, 96)
    strides = (1, 1, 2, 4, 4, 8, 8) if small else (2, 4, 8, 16, 16, 32, 32)
    _, channels, _, last = LISTED[name]
    maps = {f"stage{i + 1}": (2, 64 // strides[i], 96 // strides[i], channels[i]) for i in range(7)}
    ends = {"patches": (*maps["stage7"][:3], last), "pooled": (2, last)}
    assert {name: stage.shape for name, stage in stages.items()} == maps | ends
    assert strides[-1] == efficientnet.cell(small)
    kinds = {name: stage.dtype for name, stage in stages.items()}
    assert kinds.pop("pooled") == jnp.float32
    assert set(kinds.values()) == {jnp.dtype(jnp.bfloat16)}


def test_repeats_are_the_listed():
    for name, (_, _, repeats, _) in LISTED.items():
        stages = efficientnet.stages_of(*efficientnet.SIZES[name], False)
        assert tuple(map(len, stages)) == repeats


@pytest.mark.parametrize(
    ("channels", "width", "expected"), [(32, 1.1, 32), (40, 1.1, 48), (80, 1.1, 88), (16, 0.1, 8)]
)
def test_channels_are_multiples_of_eight_that_lose_at_most_a_tenth(channels, width, expected):
    assert efficientnet.scaled(channels, width) == expected


def test_a_gate_equals_its_definition():
    gate = efficientnet.SqueezeExcite(3)
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 8)).astype(np.float32)
    params = tiny.random_like(jax.eval_shape(gate.init, jax.random.key(0), x))
    squeeze, excite = (
        jax.tree.map(lambda a: np.asarray(a, np.float64), params["params"][name])
        for name in ("squeeze", "excite")
    )
    y = x.astype(np.float64).mean((1, 2)) @ squeeze["kernel"] + squeeze["bias"]
    y = y / (1 + np.exp(-y)) @ excite["kernel"] + excite["bias"]
    slow = x / (1 + np.exp(-y))[:, None, None]
    np.testing.assert_allclose(gate.apply(params, x), slow, atol=1e-5)


@pytest.mark.parametrize(("outputs", "stride"), [(8, 1), (8, 2), (16, 1)])
def test_a_block_adds_its_input_where_the_shape_stays(outputs, stride):
    shape = efficientnet.BlockShape(8, outputs, 6, 3, stride)
    block = efficientnet.MBConv(shape)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 8)), jnp.float32)
    init = functools.partial(block.init, train=False)
    variables = jax.tree.map(jnp.zeros_like, jax.eval_shape(init, jax.random.key(0), x))
    found = jax.jit(functools.partial(block.apply, train=False))(variables, x)
    expected = (
        x if (outputs, stride) == (8, 1) else jnp.zeros((2, 4 // stride, 4 // stride, outputs))
    )
    np.testing.assert_array_equal(found, expected)


def test_drop_path_drops_whole_branches_and_scales_the_rest():
    shape = efficientnet.BlockShape(8, 8, 1, 3, 1)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 2, 2, 8)), jnp.float32)
    block = efficientnet.MBConv(shape, drop_path=0.5)
    variables = tiny.random_like(
        jax.eval_shape(functools.partial(block.init, train=False), jax.random.key(0), x)
    )

    @functools.partial(jax.jit, static_argnums=0)
    def run(block):
        rngs = {"dropout": jax.random.key(0)}
        return block.apply(variables, x, train=True, mutable=["batch_stats"], rngs=rngs)[0]

    branch = np.asarray(run(block.clone(drop_path=0.0)) - x)
    dropped = np.asarray(run(block) - x)
    kept = np.abs(dropped).max((1, 2, 3)) > 0
    assert 16 < kept.sum() < 48
    np.testing.assert_allclose(dropped[kept], 2 * branch[kept], rtol=1e-3, atol=1e-4)


def test_images_that_cells_do_not_cover_are_refused():
    with pytest.raises(UserError, match=r"cells of 32 px, which do not cover .* 48 x 48 px"):
        traced("efficientnet_b0", 48, 48)
    with pytest.raises(UserError, match="cells of 8 px"):
        traced("efficientnet_b0-small", 12, 16)


def test_a_subset_of_patches_is_refused():
    model = efficientnet.make("efficientnet_b0-small")
    with pytest.raises(UserError, match="cannot drop patches"):
        model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 1), jnp.int32))


def test_unknown_names_list_the_known():
    with pytest.raises(UserError, match="Unknown encoder 'efficientnet_b9'; known: eff"):
        efficientnet.make("efficientnet_b9")

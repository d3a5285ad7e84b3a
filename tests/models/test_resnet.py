"""ResNet has its published size, and its maps lie where a pretext expects them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hmtl_jax.errors import UserError
from hmtl_jax.models import resnet
from tests import tiny


def shapes_of(model, *sides):
    images = jax.ShapeDtypeStruct((2, *sides, 3), jnp.float32)
    return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# torchvision's documented counts less the classifier: 512 or 2048 times 1000, and 1000.
@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("resnet18", 11_689_512 - 513_000),
        ("resnet34", 21_797_672 - 513_000),
        ("resnet50", 25_557_032 - 2_049_000),
        ("resnet101", 44_549_160 - 2_049_000),
    ],
)
def test_parameter_counts_are_the_published(name, published):
    shapes = shapes_of(resnet.make(name), 64, 64)
    assert count(shapes["params"]) == published
    # A 7x7 kernel has become a 3x3 one.
    small = shapes_of(resnet.make(f"{name}-small"), 64, 64)
    assert count(small["params"]) == published - 64 * 3 * (49 - 9)
    scales = [
        x for path, x in jax.tree.leaves_with_path(shapes["params"]) if path[-1].key != "kernel"
    ]
    assert count(shapes["batch_stats"]) == count(scales)


@pytest.mark.parametrize(("name", "wide"), [("resnet18", 64), ("resnet50", 256)])
@pytest.mark.parametrize("small", [False, True])
def test_stages_halve_the_map_and_double_the_channels(name, wide, small):
    model = resnet.make(name + "-small" * small, dtype=jnp.bfloat16)
    images = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
    stages = jax.eval_shape(model.apply, shapes_of(model, 64, 96), images)
    first = 1 if small else 4
    maps = {
        f"stage{i + 1}": (2, 64 // first // 2**i, 96 // first // 2**i, wide * 2**i)
        for i in range(4)
    }
    found = {name: stage.shape for name, stage in stages.items()}
    assert found == maps | {"patches": maps["stage4"], "pooled": (2, 8 * wide)}
    assert 64 // found["patches"][1] == resnet.cell(small)
    kinds = {name: stage.dtype for name, stage in stages.items()}
    assert kinds.pop("pooled") == jnp.float32
    assert set(kinds.values()) == {jnp.dtype(jnp.bfloat16)}


def test_a_bottleneck_strides_in_its_3x3_convolution():
    assert resnet.branch(128, 2, True) == ((128, 1, 1), (128, 3, 2), (512, 1, 1))
    assert resnet.branch(128, 2, False) == ((128, 3, 2), (128, 3, 1))


def test_a_fresh_block_is_the_identity_on_a_map_that_was_rectified():
    block = resnet.Residual(resnet.branch(8, 1, True))
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 4, 4, 32)), jnp.float32)
    run = jax.jit(functools.partial(block.init_with_output, train=False))
    found, _ = run(jax.random.key(0), x)
    np.testing.assert_array_equal(found, x)


def test_drop_path_grows_from_zero_to_its_rate():
    model = resnet.ResNet((1, 1, 1), False, True, drop_path=1.0 - 1e-6)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
    variables = tiny.random_like(shapes_of(model, 8, 8))
    rngs = {"dropout": jax.random.key(0)}

    @functools.partial(jax.jit, static_argnums=0)
    def run(model):
        return model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)[0]

    dropped, whole = run(model), run(model.clone(drop_path=0.0))
    np.testing.assert_array_equal(dropped["stage1"], whole["stage1"])
    # The last branch is surely dropped: what is left of the block is its shortcut.
    assert np.abs(dropped["stage3"] - whole["stage3"]).max() > 1e-3


def test_images_that_cells_do_not_cover_are_refused():
    with pytest.raises(UserError, match=r"cells of 32 px, which do not cover .* 48 x 48 px"):
        shapes_of(resnet.make("resnet18"), 48, 48)
    with pytest.raises(UserError, match=r"cells of 8 px, which do not cover .* 4 x 8 px"):
        shapes_of(resnet.make("resnet18-small"), 4, 8)


def test_a_subset_of_patches_is_refused():
    model = resnet.make("resnet18-small")
    with pytest.raises(UserError, match="cannot drop patches"):
        model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 1), jnp.int32))


def test_unknown_names_list_the_known():
    with pytest.raises(UserError, match="Unknown encoder 'resnet5'; known: resnet101, resnet18"):
        resnet.make("resnet5-small")

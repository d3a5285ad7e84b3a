"""The state at step 0: a function of the seed alone, made where it lives."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hmtl_jax import build, sharding, state, step
from tests import tiny


@pytest.fixture(scope="module")
def training():
    config = tiny.config(ema=0.9)
    config.model.scan = True  # compiles in half the time
    return tiny.training(config)


@pytest.fixture(scope="module")
def plain(training):
    return jax.jit(lambda: state.create(training))()


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(data=2, fsdp=4)


@pytest.fixture(scope="module")
def shapes(training, mesh):
    return state.abstract(training, mesh)


@pytest.fixture(scope="module")
def sharded(training, mesh, shapes):
    with jax.set_mesh(mesh):
        return state.create_sharded(training, shapes)


def test_it_starts_from_the_seed_whatever_the_devices(plain, sharded):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), jax.device_get(sharded), plain
    )
    assert int(plain.step) == 0 and plain.step.dtype == jnp.int32
    kernel = np.asarray(plain.params["encoder"]["embed"]["kernel"])
    # Xavier-uniform of 48 values to 16.
    bound = np.sqrt(6 / (48 + 16))
    assert 0.9 * bound < np.abs(kernel).max() <= bound
    assert np.asarray(plain.params["encoder"]["cls"]).std() == pytest.approx(0.02, rel=0.5)


def test_another_seed_starts_elsewhere(training, plain):
    cls = jax.jit(lambda: state.create(training, 1).params["encoder"]["cls"])()
    assert not np.allclose(cls, plain.params["encoder"]["cls"])


def test_abstract_tells_shapes_types_and_places(shapes, sharded):
    def form(leaf):
        return leaf.shape, leaf.dtype, leaf.sharding.shard_shape(leaf.shape)

    assert jax.tree.map(form, shapes) == jax.tree.map(form, sharded)


def test_parameters_moments_and_average_are_really_split(sharded):
    """Each device of the four of fsdp holds a quarter of every kernel, and of what follows it."""
    wanted = {"params": 0, "ema": 0, "opt_state": 0}
    for field in wanted:
        leaves = jax.tree_util.tree_leaves_with_path(getattr(sharded, field))
        for path, leaf in leaves:
            shards = {shard.data.size for shard in leaf.addressable_shards}
            if jax.tree_util.keystr(path, simple=True, separator="/").endswith("kernel"):
                assert shards == {leaf.size // 4}, path
                wanted[field] += 1
            else:
                assert shards == {leaf.size}, path
    kernels = wanted["params"]
    assert wanted == {"params": kernels, "ema": kernels, "opt_state": 2 * kernels} and kernels > 9


def test_the_average_starts_as_a_copy_that_can_be_donated(plain):
    jax.tree.map(np.testing.assert_array_equal, plain.ema["params"], plain.params)
    moved = jax.jit(lambda old: jax.tree.map(lambda x: x + 1, old), donate_argnums=0)(
        jax.tree.map(jnp.copy, plain)
    )
    assert int(moved.step) == 1


def test_evaluation_takes_the_average_where_one_is_kept(plain):
    assert state.evaluation_variables(plain) is plain.ema
    without = state.evaluation_variables(dataclasses.replace(plain, ema={}))
    assert without["params"] is plain.params and without["batch_stats"] is plain.batch_stats


def test_parameters_and_bytes_are_counted_once(plain, sharded):
    shapes = {"a": jax.ShapeDtypeStruct((2, 3), jnp.float32), "b": {"c": jnp.zeros(4, jnp.int8)}}
    assert (state.count(shapes), state.nbytes(shapes)) == (10, 28)
    assert state.nbytes(sharded) == state.nbytes(plain) > 16 * state.count(plain.params)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_one_number_that_is_not_finite_is_found(bad):
    tree = {"a": jnp.ones(3), "count": jnp.int32(0), "b": {"c": jnp.ones((2, 2))}}
    assert state.is_finite(tree)
    tree["b"]["c"] = tree["b"]["c"].at[1, 0].set(bad)
    assert not state.is_finite(tree)


def test_another_seed_is_the_same_program(training):
    """What is compiled does not hold the seed: a second run of a table compiles nothing."""
    step_of = build.jitted(step.train_step, training)
    batch = tiny.batch(8)
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam mixes a float with a counter
        texts = {step_of.lower(state.create(training, seed), batch).as_text() for seed in (0, 7)}
    assert len(texts) == 1
    draw = jax.jit(functools.partial(state.create, training))
    assert len({draw.lower(np.uint32(seed)).as_text() for seed in (0, 7)}) == 1

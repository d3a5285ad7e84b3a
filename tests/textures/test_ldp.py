"""LDP equals a slow NumPy version written from the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hmtl_jax import errors
from hmtl_jax.textures.ldp import ldp

# Kirsch's masks written out, as in Jabid 2010, figure 2: m0 east, then anticlockwise.
EAST = [[-3, -3, 5], [-3, 0, 5], [-3, -3, 5]]
NORTH_EAST = [[-3, 5, 5], [-3, 0, 5], [-3, -3, -3]]
MASKS = [np.rot90(mask, turns) for turns in range(4) for mask in (EAST, NORTH_EAST)]


def slow_ldp(gray_hw, k):
    padded = np.pad(gray_hw.astype(np.int64), 1, mode="edge")
    codes = np.zeros(gray_hw.shape, np.int64)
    for y, x in np.ndindex(gray_hw.shape):
        responses = [abs(int(np.sum(mask * padded[y : y + 3, x : x + 3]))) for mask in MASKS]
        strongest = sorted(range(8), key=lambda direction: (-responses[direction], direction))[:k]
        codes[y, x] = sum(1 << direction for direction in strongest)
    return codes


@pytest.mark.parametrize("k", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("high", [256, 3])  # with three grey levels most pixels have ties
def test_equals_the_definition(k, high):
    gray_bhw = np.random.default_rng(k).integers(0, high, (2, 14, 17), dtype=np.uint8)
    codes = jax.jit(ldp, static_argnums=1)(gray_bhw, k)
    assert codes.dtype == jnp.int32
    np.testing.assert_array_equal(codes, np.stack([slow_ldp(gray, k) for gray in gray_bhw]))


def test_integer_valued_floats_give_the_same_codes():
    gray_bhw = np.random.default_rng(0).integers(0, 9, (2, 20, 20))
    np.testing.assert_array_equal(
        ldp(jnp.asarray(gray_bhw, jnp.float32)), ldp(jnp.asarray(gray_bhw))
    )


def test_three_bits_give_the_fifty_six_codes():
    gray_bhw = np.random.default_rng(0).integers(0, 256, (8, 64, 64), dtype=np.uint8)
    seen = np.unique(ldp(jnp.asarray(gray_bhw)))
    assert len(seen) == 56
    assert all(int(code).bit_count() == 3 and code < 256 for code in seen)


def test_flat_image_has_the_three_lowest_directions_everywhere():
    assert np.all(np.asarray(ldp(jnp.full((1, 9, 9), 200, jnp.uint8))) == 0b111)


def test_vertical_edge_points_east_or_west():
    gray_hw = np.repeat([0, 0, 0, 200, 200, 200], 8).reshape(6, 8).T.astype(np.uint8)
    codes = np.asarray(ldp(jnp.asarray(gray_hw[None]), 1))[0]
    np.testing.assert_array_equal(codes[:, 2], 1 << 0)  # the bright side lies east
    np.testing.assert_array_equal(codes[:, 3], 1 << 4)  # the dark side lies west


@pytest.mark.parametrize("k", [0, 8])
def test_bad_k_is_named(k):
    with pytest.raises(errors.UserError, match=f"not {k}"):
        ldp(jnp.zeros((1, 8, 8), jnp.uint8), k)

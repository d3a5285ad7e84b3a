"""CS-LBP equals a slow NumPy version written from the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hmtl_jax import errors
from hmtl_jax.textures.cs_lbp import cs_lbp

PAIRS = [((0, 1), (0, -1)), ((-1, 1), (1, -1)), ((-1, 0), (1, 0)), ((-1, -1), (1, 1))]


def slow_cs_lbp(gray_hw, threshold):
    padded = np.pad(gray_hw.astype(np.float64), 1, mode="edge")
    codes = np.zeros(gray_hw.shape, np.int64)
    for y, x in np.ndindex(gray_hw.shape):
        for bit, ((dy, dx), (ey, ex)) in enumerate(PAIRS):
            one, other = padded[y + 1 + dy, x + 1 + dx], padded[y + 1 + ey, x + 1 + ex]
            codes[y, x] += (one - other > threshold) << bit
    return codes


@pytest.mark.parametrize("threshold", [0, 2.55, 10])
@pytest.mark.parametrize("high", [256, 4])
def test_equals_the_definition(threshold, high):
    gray_bhw = np.random.default_rng(high).integers(0, high, (2, 14, 17), dtype=np.uint8)
    codes = jax.jit(cs_lbp, static_argnums=1)(gray_bhw, threshold)
    assert codes.dtype == jnp.int32
    np.testing.assert_array_equal(codes, [slow_cs_lbp(gray, threshold) for gray in gray_bhw])


def test_the_papers_threshold_is_between_two_and_three_levels():
    steps = np.array([[[100, 100, 102, 102, 105, 105]]], np.uint8).repeat(3, axis=1)
    east = np.asarray(cs_lbp(jnp.asarray(steps)))[0, 1] & 1
    np.testing.assert_array_equal(east, [0, 0, 0, 1, 1, 0])


def test_all_sixteen_codes_occur():
    gray_bhw = np.random.default_rng(0).integers(0, 256, (2, 32, 32), dtype=np.uint8)
    assert np.unique(cs_lbp(jnp.asarray(gray_bhw))).tolist() == list(range(16))


def test_a_threshold_below_zero_is_refused():
    with pytest.raises(errors.UserError, match="not -1"):
        cs_lbp(jnp.zeros((1, 8, 8), jnp.uint8), -1)

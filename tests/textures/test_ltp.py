"""LTP equals a slow NumPy version written from the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hmtl_jax import errors
from hmtl_jax.textures.ltp import ltp

AROUND = [(0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1)]


def slow_ltp(gray_hw, threshold):
    """Tan and Triggs 2010, equation 9, pixel by pixel, and the split of their figure 4."""
    padded = np.pad(gray_hw.astype(np.int64), 1, mode="edge")
    codes = np.zeros((*gray_hw.shape, 2), np.int64)
    for y, x in np.ndindex(gray_hw.shape):
        centre = padded[y + 1, x + 1]
        for bit, (dy, dx) in enumerate(AROUND):
            value = padded[y + 1 + dy, x + 1 + dx]
            ternary = 1 if value >= centre + threshold else -1 if value <= centre - threshold else 0
            codes[y, x, 0] += (ternary == 1) << bit
            codes[y, x, 1] += (ternary == -1) << bit
    return codes


@pytest.mark.parametrize(("threshold", "high"), [(5, 256), (5, 12), (1, 3), (20, 256)])
def test_equals_the_definition(threshold, high):
    gray_bhw = np.random.default_rng(high).integers(0, high, (2, 14, 17), dtype=np.uint8)
    codes = jax.jit(ltp, static_argnums=1)(gray_bhw, threshold)
    assert codes.dtype == jnp.int32
    np.testing.assert_array_equal(codes, [slow_ltp(gray, threshold) for gray in gray_bhw])


def test_no_neighbour_is_both_brighter_and_darker():
    gray_bhw = np.random.default_rng(0).integers(0, 256, (2, 32, 32), dtype=np.uint8)
    upper, lower = np.moveaxis(np.asarray(ltp(jnp.asarray(gray_bhw))), -1, 0)
    assert not np.any(upper & lower) and upper.any() and lower.any()
    darker = np.moveaxis(np.asarray(ltp(255 - jnp.asarray(gray_bhw))), -1, 0)
    np.testing.assert_array_equal(darker, [lower, upper])


def test_noise_below_the_threshold_draws_nothing():
    gray_bhw = 100 + np.random.default_rng(0).integers(0, 5, (1, 16, 16), dtype=np.uint8)
    assert not np.any(ltp(jnp.asarray(gray_bhw)))


def test_a_threshold_of_zero_is_refused():
    with pytest.raises(errors.UserError, match="above 0, not 0"):
        ltp(jnp.zeros((1, 8, 8), jnp.uint8), 0)

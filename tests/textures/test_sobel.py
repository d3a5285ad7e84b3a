"""Sobel equals scikit-image's up to its scale, which ends at 1."""

import itertools

import jax.numpy as jnp
import numpy as np
from skimage.filters import sobel as skimage_sobel

from hmtl_jax.textures.sobel import sobel


def test_equals_scikit_image_borders_included():
    gray_bhw = np.random.default_rng(0).integers(0, 256, (3, 21, 34), dtype=np.uint8)
    theirs = np.stack([skimage_sobel(gray / 255) for gray in gray_bhw]) * np.sqrt(8 / 5)
    np.testing.assert_allclose(sobel(jnp.asarray(gray_bhw)), theirs, atol=1e-6)


def test_the_longest_gradient_is_one():
    """Its square is convex in the levels, so that the longest is among black and white ones."""
    rings = np.array(list(itertools.product((0, 255), repeat=8)), np.uint8)
    squares = np.insert(rings, 4, 0, axis=1).reshape(-1, 3, 3)
    longest = np.asarray(sobel(jnp.asarray(squares)))[:, 1, 1].max()
    np.testing.assert_allclose(longest, 1, rtol=1e-6)


def test_flat_is_zero():
    assert not np.any(sobel(jnp.full((1, 9, 9), 77, jnp.uint8)))

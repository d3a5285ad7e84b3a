"""HOG's cells equal scikit-image's, borders included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.feature import hog as skimage_hog

from hmtl_jax import errors
from hmtl_jax.textures.hog import hog


def theirs(gray_hw, cell, bins):
    found = skimage_hog(
        gray_hw.astype(np.float64), bins, (cell, cell), (1, 1), "L2", feature_vector=False
    )
    return found[:, :, 0, 0]


@pytest.mark.parametrize(("cell", "bins"), [(8, 9), (4, 9), (6, 8)])
def test_equals_scikit_image_cell_by_cell(cell, bins):
    gray_bhw = np.random.default_rng(0).integers(0, 256, (3, 24, 48), dtype=np.uint8)
    ours = np.asarray(jax.jit(hog, static_argnums=(1, 2))(gray_bhw, cell, bins))
    assert ours.shape == (3, 24, 48, bins) and ours.dtype == np.float32
    np.testing.assert_allclose(
        ours[:, ::cell, ::cell], [theirs(gray, cell, bins) for gray in gray_bhw], atol=1e-5
    )
    blocks = ours.reshape(3, 24 // cell, cell, 48 // cell, cell, bins)
    assert np.all(blocks == blocks[:, :, :1, :, :1])


def test_equals_scikit_image_on_few_levels_where_angles_repeat():
    gray_bhw = np.random.default_rng(1).integers(0, 3, (2, 32, 32), dtype=np.uint8)
    ours = np.asarray(hog(jnp.asarray(gray_bhw)))[:, ::8, ::8]
    np.testing.assert_allclose(ours, [theirs(gray, 8, 9) for gray in gray_bhw], atol=1e-5)


def test_a_ramp_has_one_orientation():
    ramp = jnp.broadcast_to(jnp.arange(0, 160, 10)[None, None], (1, 16, 16))
    across, down = np.asarray(hog(ramp)), np.asarray(hog(ramp.transpose(0, 2, 1)))
    np.testing.assert_allclose(across[0, 4, 4], np.eye(9)[0], atol=1e-6)
    np.testing.assert_allclose(down[0, 4, 4], np.eye(9)[4], atol=1e-6)  # 90 of 180 degrees
    mirrored = np.asarray(hog(ramp[:, :, ::-1]))
    np.testing.assert_array_equal(mirrored, across)  # unsigned


def test_contrast_does_not_matter_and_flat_cells_are_zero():
    gray_bhw = np.random.default_rng(0).integers(0, 100, (1, 16, 16), dtype=np.uint8)
    twice = hog(2 * jnp.asarray(gray_bhw, jnp.float32))
    np.testing.assert_allclose(twice, hog(jnp.asarray(gray_bhw)), atol=1e-6)
    assert not np.any(hog(jnp.full((1, 16, 16), 9, jnp.uint8)))


def test_sides_that_cells_do_not_divide_are_refused():
    with pytest.raises(errors.UserError, match="cell of 8 pixels, not 20x16"):
        hog(jnp.zeros((1, 20, 16), jnp.uint8))

"""The order of patches and of their pixels."""

import jax.numpy as jnp
import numpy as np
import pytest

from hmtl_jax.patches import patchify, unpatchify
from tests import reference


@pytest.mark.parametrize(("height", "width", "patch", "channels"), [(8, 12, 4, 3), (6, 6, 2, 1)])
def test_patches_stand_in_raster_order_and_come_back(height, width, patch, channels):
    images = np.arange(2 * height * width * channels, dtype=np.float32)
    images = images.reshape(2, height, width, channels)
    found = patchify(jnp.asarray(images), patch)
    np.testing.assert_array_equal(found, reference.patches(images, patch))
    np.testing.assert_array_equal(unpatchify(found, patch, height // patch), images)

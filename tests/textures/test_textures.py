"""Every texture keeps the interface that targets rely on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.feature import local_binary_pattern

from hmtl_jax import errors, textures

NAMES = sorted(textures.TEXTURES)
DISCRETE = [name for name in NAMES if textures.TEXTURES[name].num_codes]


@pytest.fixture(scope="module")
def images_bhwc():
    """Noise over a smooth ramp, a flat corner and a chequered quarter, [2, 64, 48, 3] in [0, 1]."""
    noise = np.random.default_rng(0).random((2, 64, 48, 3), np.float32)
    images = 0.5 * noise + 0.5 * np.linspace(0, 1, 64, dtype=np.float32)[:, None, None]
    images[:, :16, :16] = 0.25
    images[:, 48:] = (np.indices((16, 48)) // 4).sum(0)[..., None] % 2
    return jnp.asarray(images)


@pytest.mark.parametrize("name", NAMES)
def test_target_is_in_the_unit_interval_and_uses_it(name, images_bhwc):
    target = jax.jit(textures.target, static_argnums=0)(name, images_bhwc)
    assert target.shape == (2, 64, 48, textures.TEXTURES[name].channels)
    assert target.dtype == jnp.float32
    assert float(target.min()) >= 0 and 0.7 < float(target.max()) <= 1
    assert float(target.std()) > 0.1


@pytest.mark.parametrize("name", DISCRETE)
def test_classes_rank_the_codes(name, images_bhwc):
    texture = textures.TEXTURES[name]
    classes = textures.classes(name, images_bhwc)
    assert classes.dtype == jnp.int32 and texture.num_codes is not None
    assert int(classes.max()) < texture.num_codes
    values = np.asarray(texture.values)
    np.testing.assert_array_equal(values[np.asarray(classes)], textures.codes(name, images_bhwc))


def test_published_numbers_of_codes():
    counts = {name: textures.TEXTURES[name].num_codes for name in NAMES}
    expected = {"lbp": 256, "lbp_uniform": 10, "lbp_ror": 36, "lbp_var": None, "ldp": 56}
    assert {name: counts[name] for name in expected} == expected


def test_grey_8_bit_image_gives_scikit_images_codes():
    gray_bhw = np.random.default_rng(0).integers(0, 256, (2, 48, 48), dtype=np.uint8)
    images_bhwc = jnp.repeat(jnp.asarray(gray_bhw, jnp.float32)[..., None] / 255, 3, axis=-1)
    theirs = np.stack([local_binary_pattern(gray, 8, 1) for gray in gray_bhw])
    np.testing.assert_array_equal(textures.codes("lbp", images_bhwc)[..., 0], theirs)
    np.testing.assert_allclose(textures.target("lbp", images_bhwc)[..., 0], theirs / 255, rtol=1e-6)


def test_a_texture_of_each_colour_is_that_of_its_grey_picture(images_bhwc):
    for name in ("lbp", "ltp"):
        found = textures.codes(f"{name}_rgb", images_bhwc)
        grey = [jnp.repeat(images_bhwc[..., c : c + 1], 3, axis=-1) for c in range(3)]
        wanted = jnp.concatenate([textures.codes(name, picture) for picture in grey], axis=-1)
        np.testing.assert_array_equal(found, wanted)
    shown = textures.as_input("lbp_rgb", images_bhwc)
    np.testing.assert_array_equal(shown, textures.target("lbp_rgb", images_bhwc))


def test_every_8_bit_grey_keeps_its_level():
    grey = jnp.arange(256, dtype=jnp.float32)[None, :, None, None] / 255
    images_bhwc = jnp.repeat(grey, 3, axis=-1)
    np.testing.assert_array_equal(textures.levels(images_bhwc)[0, :, 0], np.arange(256))


def test_luma_is_bt601():
    primaries = jnp.eye(3)[None, None]
    np.testing.assert_allclose(textures.luma(primaries)[0, 0], [0.299, 0.587, 0.114], rtol=1e-6)


def test_noise_below_a_level_draws_nothing_into_flat_skin(images_bhwc):
    jitter = jax.random.uniform(jax.random.key(0), images_bhwc.shape, minval=-1e-3, maxval=1e-3)
    flat = jnp.full_like(images_bhwc, 100 / 255)
    for name in NAMES:
        np.testing.assert_array_equal(
            textures.target(name, flat + jitter), textures.target(name, flat)
        )


def test_unknown_texture_lists_the_known():
    with pytest.raises(errors.UserError, match="Did you mean 'lbp_uniform'"):
        textures.target("lbp_unifrom", jnp.zeros((1, 8, 8, 3)))


def test_continuous_texture_has_no_classes():
    with pytest.raises(errors.UserError, match=r"continuous.*ldp"):
        textures.classes("lbp_var", jnp.zeros((1, 8, 8, 3)))


def test_an_encoder_reads_a_texture_as_three_equal_channels(images_bhwc):
    assert textures.as_input("rgb", images_bhwc) is images_bhwc
    shown = textures.as_input("ldp", images_bhwc)
    assert shown.shape == images_bhwc.shape and shown.dtype == jnp.float32
    for channel in range(3):
        maps = textures.target("ldp", images_bhwc)[..., 0]
        np.testing.assert_array_equal(shown[..., channel], maps)


def test_an_input_has_three_maps_whatever_the_texture_has(images_bhwc):
    upper, lower = np.moveaxis(np.asarray(textures.target("ltp", images_bhwc)), -1, 0)
    shown = np.asarray(textures.as_input("ltp", images_bhwc))
    np.testing.assert_array_equal(shown, np.stack([upper, lower, np.zeros_like(upper)], axis=-1))
    nine = np.asarray(textures.target("hog", images_bhwc))
    wanted = np.stack([nine[..., i : i + 3].mean(-1) for i in (0, 3, 6)], axis=-1)
    np.testing.assert_allclose(textures.as_input("hog", images_bhwc), wanted, atol=1e-6)
    for name in textures.TEXTURES:
        shown = textures.as_input(name, images_bhwc)
        assert shown.shape == images_bhwc.shape and shown.min() >= 0 and shown.max() <= 1


def test_an_unknown_input_suggests_the_nearest(images_bhwc):
    with pytest.raises(errors.UserError, match=r"Unknown texture 'rbg'; .*Did you mean 'rgb'"):
        textures.as_input("rbg", images_bhwc)

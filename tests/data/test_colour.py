"""Colour adjustments against Pillow's enhancers and the standard library's colorsys."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import PIL.ImageEnhance
import pytest

from hmtl_jax.data import colour


def picture_u8(seed=0, size=32):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def unit(image_u8):
    return jnp.asarray(image_u8, jnp.float32) / 255


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.7])
@pytest.mark.parametrize(
    ("adjust", "enhancer"),
    [
        (colour.brightness, PIL.ImageEnhance.Brightness),
        (colour.contrast, PIL.ImageEnhance.Contrast),
        (colour.saturation, PIL.ImageEnhance.Color),
    ],
)
def test_adjustments_equal_pillow_up_to_its_rounding(adjust, enhancer, factor):
    image = picture_u8()
    expected = np.asarray(enhancer(PIL.Image.fromarray(image)).enhance(factor))
    got = np.asarray(adjust(unit(image), factor)) * 255
    # Pillow rounds the grey (half a level, times |1 - factor|), then cuts the result (one level).
    assert np.abs(got - expected).max() <= 1.01 + 0.5 * abs(1 - factor)


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.0, 0.07, 0.5])
def test_hue_equals_colorsys(turn):
    image = picture_u8(size=12)
    image[0] = image[0, :, :1]  # a row of greys
    expected = np.zeros(image.shape)
    for place in np.ndindex(12, 12):
        h, s, v = colorsys.rgb_to_hsv(*(image[place] / 255))
        expected[place] = colorsys.hsv_to_rgb((h + turn) % 1, s, v)
    np.testing.assert_allclose(colour.hue(unit(image), turn), expected, atol=2e-6)


def jittered(image, strengths, count=2000):
    keys = jax.random.split(jax.random.key(0), count)
    draw = jax.jit(jax.vmap(lambda key: colour.color_jitter(key, jnp.asarray(image), strengths)))
    return np.asarray(draw(keys))


def test_factors_are_uniform_about_one():
    factors = jittered(np.full((1, 1, 3), 0.5, np.float32), (0.4, 0.0, 0.0, 0.0))[:, 0, 0, 0] / 0.5
    assert 0.6 <= factors.min() < 0.61 and 1.39 < factors.max() <= 1.4001
    assert abs(factors.mean() - 1) < 0.02 and abs(factors.std() - 0.8 / 12**0.5) < 0.01


def test_a_strength_above_one_never_draws_a_negative_factor():
    factors = jittered(np.full((1, 1, 3), 0.25, np.float32), (3.0, 0.0, 0.0, 0.0)) / 0.25
    assert 0 <= factors.min() < 0.05 and factors.max() > 3.9


def test_hue_turns_both_ways_by_at_most_its_strength():
    red = np.array([[[1.0, 0.0, 0.0]]], np.float32)
    turned = jittered(red, (0.0, 0.0, 0.0, 0.1))[:, 0, 0]
    hues = np.array([colorsys.rgb_to_hsv(*map(float, rgb))[0] for rgb in turned])
    hues = (hues + 0.5) % 1 - 0.5
    assert -0.1001 < hues.min() < -0.095 and 0.095 < hues.max() < 0.1001


def test_hue_behind_other_adjustments_in_one_program_is_hue_of_their_result():
    image, factors = unit(picture_u8(size=64)), jnp.linspace(0.5, 1.5, 16)

    def before(factor):
        return colour.saturation(colour.contrast(image, factor), factor)

    fused = jax.jit(jax.vmap(lambda factor: colour.hue(before(factor), 0.07)))(factors)
    apart = jax.jit(jax.vmap(lambda image: colour.hue(image, 0.07)))(
        jax.jit(jax.vmap(before))(factors)
    )
    np.testing.assert_allclose(fused, apart, atol=1e-5)


def test_the_four_draws_are_independent():
    image = np.array([[[0.5, 0.2, 0.2], [0.1, 0.3, 0.4]]], np.float32)
    flat = jittered(image, (0.2, 0.2, 0.2, 0.1)).reshape(2000, -1)
    assert np.linalg.matrix_rank(np.cov(flat.T), tol=1e-6) >= 4


def test_no_strength_is_the_image_bit_for_bit():
    image = np.asarray(unit(picture_u8()))
    np.testing.assert_array_equal(jittered(image, (0.0, 0.0, 0.0, 0.0), count=2)[1], image)
    np.testing.assert_array_equal(colour.saturation(jnp.asarray(image), 1.0), image)

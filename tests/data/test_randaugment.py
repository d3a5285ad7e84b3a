"""RandAugment's operations against Pillow and SciPy, and its draws against their definition."""

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps
import pytest
import scipy.ndimage

from hmtl_jax.data import randaugment as ra

FILL = (0.2, 0.5, 0.9)
COLOUR_OP = jax.jit(ra.colour_op, static_argnums=2)


def picture_u8(kind="smooth", size=40):
    # The smooth one stays away from 255, so that autocontrast and equalize have something to do.
    rng = np.random.default_rng(0)
    if kind == "flat":
        return np.full((size, size, 3), 77, np.uint8)
    if kind == "two values":
        return rng.choice(np.array([30, 200], np.uint8), (size, size, 3))
    if kind == "noise":
        return rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    y, x = np.mgrid[:size, :size] / size
    waves = [np.sin(5 * y + 3 * x * c) * np.cos(4 * x - c) for c in range(1, 4)]
    return (105 + 95 * np.stack(waves, axis=-1)).astype(np.uint8)


def unit(image_u8):
    return jnp.asarray(image_u8, jnp.float32) / 255


def solarize_added(image, level):
    codes = np.asarray(image).astype(int)
    return np.where(codes < 128, np.minimum(codes + int(110 * level), 255), codes)


def enhanced(enhancer):
    return lambda image, level, sign: enhancer(image).enhance(1 + sign * 0.9 * level)


# Name -> (by Pillow, how many 8-bit levels Pillow's own rounding may take away).
PILLOW = {
    "autocontrast": (lambda im, level, sign: PIL.ImageOps.autocontrast(im), 1.01),
    "equalize": (lambda im, level, sign: PIL.ImageOps.equalize(im), 0.01),
    "invert": (lambda im, level, sign: PIL.ImageOps.invert(im), 0.01),
    "posterize": (lambda im, level, sign: PIL.ImageOps.posterize(im, 4 - int(4 * level)), 0.01),
    "solarize": (lambda im, level, sign: PIL.ImageOps.solarize(im, 256 - int(256 * level)), 0.01),
    "solarize_add": (lambda im, level, sign: solarize_added(im, level), 0.01),
    "contrast": (enhanced(PIL.ImageEnhance.Contrast), 1.5),
    "brightness": (enhanced(PIL.ImageEnhance.Brightness), 1.01),
    "color": (enhanced(PIL.ImageEnhance.Color), 1.5),
    "sharpness": (enhanced(PIL.ImageEnhance.Sharpness), 1.5),
}


@pytest.mark.parametrize("kind", ["smooth", "noise", "two values", "flat"])
@pytest.mark.parametrize("name", PILLOW)
def test_colour_operations_equal_pillow(name, kind):
    image = picture_u8(kind)
    by_pillow, tolerance = PILLOW[name]
    for level, sign in [(0.9, 1.0), (0.9, -1.0), (0.4, 1.0)]:
        expected = np.asarray(by_pillow(PIL.Image.fromarray(image), level, sign), np.float32)
        got = COLOUR_OP(unit(image), jnp.int32(ra.OPS.index(name)), level, sign) * 255
        assert np.abs(got - expected).max() <= tolerance, (level, sign)


def test_every_colour_operation_has_its_reference():
    assert set(PILLOW) == {*ra.TABLES, *ra.BLENDS}


def test_other_numbers_leave_the_image_bit_for_bit():
    image = jnp.asarray(np.random.default_rng(1).random((20, 20, 3), dtype=np.float32))
    for op in (ra.OPS.index("rotate"), ra.OPS.index("translate_y"), len(ra.OPS)):
        np.testing.assert_array_equal(COLOUR_OP(image, jnp.int32(op), 0.9, 1.0), image)
    np.testing.assert_array_equal(ra.warp(image, jnp.eye(3), FILL), image)


def warped(image, name, signed_level):
    return ra.warp(image, ra.geometric_matrix(jnp.int32(ra.OPS.index(name)), signed_level), FILL)


def by_scipy(image, source_y, source_x):
    planes = [
        scipy.ndimage.map_coordinates(
            np.asarray(image)[..., c], [source_y, source_x], order=1, mode="grid-constant", cval=f
        )
        for c, f in enumerate(FILL)
    ]
    return np.stack(planes, axis=-1)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("name", ra.GEOMETRIC)
def test_warps_equal_scipy_at_the_defined_coordinates(name, sign):
    size, level = 40, 0.9
    image, middle = unit(picture_u8()), (size - 1) / 2
    y, x = np.mgrid[:size, :size] - middle
    angle = np.deg2rad(27) * sign
    source_y, source_x = {
        "rotate": (np.cos(angle) * y - np.sin(angle) * x, np.sin(angle) * y + np.cos(angle) * x),
        "shear_x": (y, x + 0.27 * sign * y),
        "shear_y": (y + 0.27 * sign * x, x),
        "translate_x": (y, x + 0.405 * sign * size),
        "translate_y": (y + 0.405 * sign * size, x),
    }[name]
    expected = by_scipy(image, source_y + middle, source_x + middle)
    np.testing.assert_allclose(warped(image, name, sign * level), expected, atol=2e-5)


def test_rotation_equals_pillow_inside_the_picture():
    image = picture_u8()
    planes = [PIL.Image.fromarray(image[..., c].astype(np.float32)) for c in range(3)]
    turned = [np.asarray(p.rotate(-27, PIL.Image.Resampling.BILINEAR)) / 255 for p in planes]
    y, x = np.mgrid[:40, :40] - 19.5
    disc = np.hypot(y, x) < 18
    either = [
        np.abs(np.asarray(warped(unit(image), "rotate", s * 0.9)) - np.stack(turned, -1))[
            disc
        ].max()
        for s in (1, -1)
    ]
    assert min(either) < 2e-3 < 0.05 < max(either)


def test_two_warps_in_one_are_the_first_then_the_second():
    image = unit(picture_u8(size=64))
    shear, turn = (
        ra.geometric_matrix(jnp.int32(ra.OPS.index(n)), 0.9) for n in ("shear_x", "rotate")
    )
    in_turn = ra.warp(ra.warp(image, shear, FILL), turn, FILL)
    at_once, swapped = ra.warp(image, shear @ turn, FILL), ra.warp(image, turn @ shear, FILL)
    middle = np.s_[20:44, 20:44]
    assert np.abs(at_once - in_turn)[middle].max() < 0.01 < np.abs(swapped - in_turn)[middle].max()


def outcomes(image, count, layers=1, geometric=True, magnitude=9):
    keys = jax.random.split(jax.random.key(0), count)

    def draw(key):
        return ra.randaugment(key, image, layers, magnitude, geometric, FILL)

    return np.asarray(jax.jit(jax.vmap(draw))(keys))


@pytest.mark.parametrize(("geometric", "kinds"), [(True, 6 + 2 * 9), (False, 6 + 2 * 4)])
def test_one_layer_draws_every_operation_with_both_signs_half_of_the_time(geometric, kinds):
    image = unit(picture_u8(size=24))
    views = outcomes(image, 1500, geometric=geometric).reshape(1500, -1)
    distinct, counts = np.unique(np.round(views, 4), axis=0, return_counts=True)
    assert len(distinct) == kinds + 1
    same = np.abs(distinct - np.asarray(image).reshape(1, -1)).max(1) < 1e-3
    assert abs(counts[same].sum() / 1500 - 0.5) < 0.05
    share = counts[~same] / counts[~same].sum()
    operations = len(ra.OPS) if geometric else len(ra.OPS) - len(ra.GEOMETRIC)
    assert share.min() > 0.25 / operations and share.max() < 1.6 / operations


def test_without_geometric_operations_nothing_moves():
    image = np.zeros((24, 24, 3), np.float32) + np.array([0.2, 0.3, 0.4], np.float32)
    image[:, 12:] = [0.7, 0.6, 0.8]
    for geometric in (False, True):
        views = outcomes(jnp.asarray(image), 64, layers=2, geometric=geometric)
        halves = views[:, :, :11], views[:, :, 13:]  # sharpness touches the columns at the step
        uneven = [np.ptp(half, axis=(1, 2)).max() > 0.01 for half in halves]
        assert any(uneven) == geometric


def test_two_layers_apply_two_operations():
    image = unit(picture_u8(size=24))
    one, two = (outcomes(image, 400, layers=n).reshape(400, -1) for n in (1, 2))
    plain = np.asarray(image).reshape(1, -1)
    untouched = [(np.abs(views - plain).max(1) < 1e-3).mean() for views in (one, two)]
    assert abs(untouched[0] - 0.5) < 0.08 and abs(untouched[1] - 0.25) < 0.07
    assert len(np.unique(np.round(two, 4), axis=0)) > 3 * 25


def test_magnitude_zero_still_leaves_the_geometry_alone():
    image = unit(picture_u8(size=24))
    views = outcomes(image, 200, layers=2, magnitude=0)
    assert np.isfinite(views).all() and views.min() >= 0 and views.max() <= 1
    matrix = ra.geometric_matrix(jnp.int32(ra.OPS.index("rotate")), 0.0)
    np.testing.assert_array_equal(matrix, np.eye(3))

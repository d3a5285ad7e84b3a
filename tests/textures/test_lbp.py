"""LBP equals scikit-image's, and where it does not the definition says which one is right."""

import io
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from skimage.feature import local_binary_pattern

from hmtl_jax import errors
from hmtl_jax.textures.lbp import lbp

CIRCLES = [(8, 1), (16, 2), (24, 3)]
METHODS = ["default", "ror", "uniform"]


@pytest.fixture(scope="module")
def faces_bhw(shared_data):
    """Forty-eight real 48x48 faces, uint8."""
    with zipfile.ZipFile(shared_data / "ferplus.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".png"))[::750]
        images = [PIL.Image.open(io.BytesIO(archive.read(name))).convert("L") for name in names]
    return np.stack([np.asarray(image) for image in images])


def random_bhw(high=256, shape=(4, 40, 33)):
    return np.random.default_rng(0).integers(0, high, shape, dtype=np.uint8)


def reference(gray_bhw, points, radius, method):
    return np.stack([local_binary_pattern(gray, points, radius, method) for gray in gray_bhw])


def exact_bits(gray_hw, points, radius):
    """The definition in integers: [P, H, W] bits, and where a sample exactly equals the centre."""
    unit, height, width = 100_000, *gray_hw.shape
    margin = int(radius) + 1
    padded = np.pad(gray_hw.astype(np.int64), margin)
    differences = []
    for angle in 2 * np.pi * np.arange(points) / points:
        y, y_part = divmod(int(np.rint(-radius * np.sin(angle) * unit)), unit)
        x, x_part = divmod(int(np.rint(radius * np.cos(angle) * unit)), unit)
        total = -(unit**2) * gray_hw.astype(np.int64)
        for dy, y_weight in ((0, unit - y_part), (1, y_part)):
            for dx, x_weight in ((0, unit - x_part), (1, x_part)):
                if y_weight * x_weight:
                    top, left = margin + y + dy, margin + x + dx
                    window = padded[top : top + height, left : left + width]
                    total += y_weight * x_weight * window
        differences.append(total)
    difference = np.stack(differences)
    return difference >= 0, difference == 0


def to_codes(bits):
    return np.sum(bits.astype(np.int64) << np.arange(len(bits))[:, None, None], axis=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("points", "radius"), CIRCLES)
def test_equals_scikit_image_on_random_images(points, radius, method):
    gray_bhw = random_bhw()
    ours = jax.jit(lbp, static_argnums=(1, 2, 3))(gray_bhw, points, radius, method)
    assert ours.dtype == jnp.int32
    np.testing.assert_array_equal(ours, reference(gray_bhw, points, radius, method))


@pytest.mark.parametrize("method", METHODS)
def test_equals_scikit_image_on_real_faces(faces_bhw, method):
    np.testing.assert_array_equal(
        lbp(jnp.asarray(faces_bhw), method=method), reference(faces_bhw, 8, 1, method)
    )


@pytest.mark.parametrize(("points", "radius"), CIRCLES)
def test_differs_from_scikit_image_only_at_exact_ties(faces_bhw, points, radius):
    ours = np.asarray(lbp(jnp.asarray(faces_bhw), points, radius)).astype(np.int64)
    theirs = reference(faces_bhw, points, radius, "default").astype(np.int64)
    for gray, our_codes, their_codes in zip(faces_bhw, ours, theirs, strict=True):
        bits, tied = exact_bits(gray, points, radius)
        np.testing.assert_array_equal(our_codes, to_codes(bits))
        differing = our_codes ^ their_codes
        assert not np.any(differing & ~to_codes(tied))
    assert np.mean(ours != theirs) < 5e-4


@pytest.mark.parametrize(("points", "radius"), CIRCLES)
def test_every_tie_sets_its_bit(points, radius):
    # Four grey levels only: every fifth to tenth pixel has a sample that ties between pixels.
    gray_bhw = random_bhw(high=4)
    bits, _ = exact_bits(gray_bhw[0], points, radius)
    np.testing.assert_array_equal(lbp(jnp.asarray(gray_bhw[:1]), points, radius)[0], to_codes(bits))


@pytest.mark.parametrize(("points", "radius"), CIRCLES)
def test_flat_image_sets_all_bits_inside(points, radius):
    codes = lbp(jnp.full((1, 16, 16), 77, jnp.uint8), points, radius)[0]
    assert np.all(np.asarray(codes)[4:-4, 4:-4] == 2**points - 1)
    assert np.all(np.asarray(codes)[0] != 2**points - 1), "outside the image all is 0"


@pytest.mark.parametrize(("points", "radius"), CIRCLES)
@pytest.mark.filterwarnings("ignore:Applying `local_binary_pattern`:UserWarning")
def test_floating_point_equals_scikit_image(points, radius):
    gray_bhw = np.random.default_rng(1).random((2, 32, 32), np.float32)
    np.testing.assert_array_equal(
        lbp(jnp.asarray(gray_bhw), points, radius), reference(gray_bhw, points, radius, "default")
    )


@pytest.mark.parametrize(("points", "radius"), CIRCLES)
def test_var_is_scikit_images_with_zero_for_nan(faces_bhw, points, radius):
    theirs = np.nan_to_num(reference(faces_bhw, points, radius, "var"), nan=0.0)
    ours = lbp(jnp.asarray(faces_bhw), points, radius, "var")
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_ror_does_not_change_when_the_image_turns():
    gray_hw = random_bhw()[0, :33, :33]
    turned = lbp(jnp.asarray(np.rot90(gray_hw)[None]), method="ror")[0]
    np.testing.assert_array_equal(
        np.rot90(lbp(jnp.asarray(gray_hw[None]), method="ror")[0]), turned
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint16])
def test_integer_dtype_does_not_matter(dtype):
    gray_bhw = random_bhw()
    np.testing.assert_array_equal(lbp(jnp.asarray(gray_bhw.astype(dtype))), lbp(gray_bhw))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "unifrom"}, "uniform"),
        ({"points": 31}, "P=31"),
        ({"points": 0}, "P=0"),
        ({"radius": 0}, "R=0"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(errors.UserError, match=words):
        lbp(jnp.zeros((1, 8, 8), jnp.uint8), **arguments)

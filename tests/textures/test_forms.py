"""Forms of textures against NumPy: bits, means over cells, histograms; and what names mean."""

import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from hmtl_jax import textures
from hmtl_jax.errors import UserError
from hmtl_jax.images import normalise
from hmtl_jax.textures import forms

BATCH, SIZE = 2, 24


@pytest.fixture(scope="module")
def faces_bhwc(shared_data):
    """Sixty faces of FairFace at 48 px."""
    with zipfile.ZipFile(shared_data / "fairface96.zip") as files:
        names = [name for name in files.namelist() if name.endswith(".jpg")]
        chosen = [Image.open(files.open(name)) for name in names[:: len(names) // 60][:60]]
        faces = [np.asarray(face.convert("RGB").resize((48, 48))) for face in chosen]
    return jnp.asarray(np.stack(faces), jnp.float32) / 255


def codes_of(name, images):
    return np.asarray(textures.codes(name, images))


def averaged(maps, cell):
    batch, height, width, channels = maps.shape
    return maps.reshape(batch, height // cell, cell, width // cell, cell, channels).mean((2, 4))


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("lbp", ("lbp", "code", 1)),
        ("lbp_4", ("lbp", "code", 4)),
        ("lbp_bits", ("lbp", "bits", 1)),
        ("lbp_bits_4", ("lbp", "bits", 4)),
        ("lbp_bits_patch", ("lbp", "bits", 8)),
        ("lbp_rgb_bits_2", ("lbp_rgb", "bits", 2)),
        ("lbp_uniform", ("lbp_uniform", "code", 1)),
        ("lbp_uniform_patch", ("lbp_uniform", "code", 8)),
        ("lbp_uniform_histogram", ("lbp_uniform", "histogram", 8)),
        ("cs_lbp_2", ("cs_lbp", "code", 2)),
        ("cs_lbp_histogram_4", ("cs_lbp", "histogram", 4)),
        ("hog_4", ("hog_4", "code", 1)),
        ("hog_4_2", ("hog_4", "code", 2)),
        ("sobel_patch", ("sobel", "code", 8)),
        ("rgb", ("rgb", "code", 1)),
        ("rgb_2", ("rgb", "code", 2)),
    ],
)
def test_names(name, meaning):
    assert forms.parse(name, 8) == forms.Target(*meaning)


@pytest.mark.parametrize("texture", textures.TEXTURES)
def test_every_form_that_a_texture_has_can_be_made(texture, images_bhwc):
    for form in forms.forms_of(texture):
        target = forms.Target(texture, form, 8 if form == "histogram" else 4)
        maps = np.asarray(target.maps(images_bhwc))
        side = SIZE // target.cell
        assert maps.shape == (BATCH, side, side, target.channels) and maps.dtype == np.float32
        assert maps.min() >= 0 and maps.max() <= 1 + 1e-6 and maps.std() > 0


@pytest.mark.parametrize("texture", textures.TEXTURES)
def test_means_are_those_of_real_faces(texture, faces_bhwc):
    for form in forms.forms_of(texture):
        target = forms.Target(texture, form, 8 if form == "histogram" else 1)
        assert np.mean(target.maps(faces_bhwc)) == pytest.approx(target.mean, abs=0.06)


@pytest.mark.parametrize("texture", ["lbp", "ldp", "cs_lbp", "ltp", "lbp_rgb"])
@pytest.mark.parametrize("cell", [1, 4])
def test_bits_are_the_comparisons_of_the_code(texture, cell, images_bhwc):
    count = textures.TEXTURES[texture].bits
    codes = codes_of(texture, images_bhwc)
    bits = np.stack([codes >> place & 1 for place in range(count)], -1)
    wanted = averaged(bits.reshape(*codes.shape[:3], -1).astype(np.float64), cell)
    found = forms.Target(texture, "bits", cell).maps(images_bhwc)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    # Together they are the code again.
    if cell == 1 and codes.shape[-1] == 1:
        weights = 2.0 ** np.arange(count)
        np.testing.assert_allclose((wanted * weights).sum(-1), codes[..., 0])


@pytest.mark.parametrize("texture", ["lbp_uniform", "cs_lbp", "ltp"])
def test_a_histogram_counts_the_codes_of_its_cell(texture, images_bhwc):
    of, classes = textures.TEXTURES[texture], np.asarray(textures.classes(texture, images_bhwc))
    found = np.asarray(forms.Target(texture, "histogram", 8).maps(images_bhwc))
    found = found.reshape(BATCH, 3, 3, of.channels, of.num_codes)
    np.testing.assert_allclose(found.sum(-1), 1.0, atol=1e-5)
    for row, column, channel in [(0, 0, 0), (2, 1, of.channels - 1)]:
        here = classes[1, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8, channel]
        wanted = np.bincount(here.ravel(), minlength=of.num_codes) / 64
        np.testing.assert_allclose(found[1, row, column, channel], wanted, atol=1e-6)


def test_the_picture_and_scaled_codes_are_averaged_over_cells(images_bhwc):
    found = forms.parse("rgb_4", 8).maps(images_bhwc)
    np.testing.assert_allclose(found, averaged(np.asarray(normalise(images_bhwc)), 4), atol=1e-5)
    found = forms.parse("lbp_4", 8).maps(images_bhwc)
    wanted = averaged(codes_of("lbp", images_bhwc) / 255, 4)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_classes_are_of_single_pixels_alone():
    assert forms.parse("lbp", 8).codes == 256 and forms.parse("ldp", 8).codes == 56
    for name in ("lbp_4", "lbp_bits", "lbp_histogram", "sobel", "rgb"):
        assert forms.parse(name, 8).codes is None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("lbq", r"Unknown texture 'lbq'; known: .* lbp_bits_4\. Did you mean 'lbp'"),
        ("lbp_unifrom", r"Unknown texture 'lbp_unifrom'; known: .* Did you mean 'lbp_uniform'"),
        ("nothing_bits_4", r"Unknown texture 'nothing_bits_4'"),
        ("lbp_uniform_bits", r"'lbp_uniform' has no form 'bits'; it has code, histogram, as lbp_u"),
        ("sobel_histogram", r"'sobel' has no form 'histogram'; it has code\."),
        ("rgb_bits", r"'rgb' has no form 'bits'; it has code\."),
        ("lbp_bits_3", r"cells of 3 pixels, which do not divide the patch of 8; .* 1, 2, 4, 8"),
        ("lbp_bits_0", r"cells of 0 pixels"),
    ],
)
def test_names_that_mean_nothing_are_refused(name, says):
    with pytest.raises(UserError, match=says):
        forms.parse(name, 8)


def test_noise_in_one_pixel_moves_the_bits_of_its_surrounding_alone(images_bhwc):
    moved = images_bhwc.at[0, 12, 12].set(1.0 - images_bhwc[0, 12, 12])
    before, after = (forms.Target("lbp", "bits").maps(images) for images in (images_bhwc, moved))
    changed = np.argwhere(np.asarray(jnp.any(before != after, -1)))
    assert len(changed) and (np.abs(changed[:, 1:] - 12) <= 1).all() and (changed[:, 0] == 0).all()

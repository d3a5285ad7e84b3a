"""A picture shows what its titles say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import decomposition

from hmtl_jax import figures, images, pictures
from hmtl_jax.models import decoders
from hmtl_jax.pretext.inpaint import Inpaint
from hmtl_jax.pretext.mae import Mae
from hmtl_jax.pretext.puzzle import Puzzle
from hmtl_jax.pretext.rotation import Rotation
from tests import reference, tiny

BATCH, SIZE, PATCH = 3, 24, 4


def seen(pretext, images_bhwc):
    return jax.device_get(pretext.views(tiny.keys(BATCH), images_bhwc)[0])


@pytest.mark.parametrize("drops", [True, False])
def test_mae_with_the_perfect_prediction_shows_the_truth(images_bhwc, drops):
    mae = Mae(PATCH, SIZE, drops_tokens=drops, targets=("rgb", "lbp_uniform"))
    view, target = seen(mae, images_bhwc)
    columns = mae.columns(np.asarray(images_bhwc), view, target, target)
    assert list(columns) == ["input", "masked", "rgb", "rgb rebuilt", "lbp_uniform",
                             "lbp_uniform rebuilt"]  # fmt: skip
    hidden = target["hidden"].astype(bool)
    masked = reference.patches(columns["masked"], PATCH)
    assert (masked[hidden] == 0).all()
    whole = reference.patches(images_bhwc, PATCH)
    np.testing.assert_array_equal(masked[~hidden], whole[~hidden])
    for name in ("rgb", "rgb rebuilt"):
        np.testing.assert_allclose(columns[name], images_bhwc, atol=1e-6)


def test_mae_shows_predictions_only_where_patches_were_masked(images_bhwc):
    mae = Mae(PATCH, SIZE)
    view, target = seen(mae, images_bhwc)
    output = {"rgb": np.zeros_like(target["rgb"])}
    rebuilt = mae.columns(np.asarray(images_bhwc), view, target, output)
    found = reference.patches(rebuilt["rgb rebuilt"], PATCH)
    hidden = target["hidden"].astype(bool)
    mean = np.tile([0.485, 0.456, 0.406], PATCH**2)[None]
    np.testing.assert_allclose(found[hidden] - mean, 0, atol=1e-6)
    np.testing.assert_allclose(found[~hidden], reference.patches(images_bhwc, PATCH)[~hidden],
                               atol=1e-6)  # fmt: skip


def test_classes_are_shown_as_the_codes_that_they_stand_for(images_bhwc):
    mae = Mae(PATCH, SIZE, targets=("ldp",), loss="classes")
    view, target = seen(mae, images_bhwc)
    sure = np.eye(56, dtype=np.float32)[target["ldp"]].reshape(BATCH, 36, 16 * 56)
    columns = mae.columns(np.asarray(images_bhwc), view, target, {"ldp": sure})
    ((_, scaled),) = Mae(PATCH, SIZE, targets=("ldp",)).views(
        jax.random.split(jax.random.key(0), BATCH), images_bhwc
    )
    for name in ("ldp", "ldp rebuilt"):
        np.testing.assert_allclose(
            reference.patches(columns[name], PATCH), scaled["ldp"], atol=1e-6
        )


def test_comparisons_that_cancel_are_told_by_colour(images_bhwc):
    """Of opposite comparisons one holds where the other does not: their mean tells nothing."""
    mae = Mae(PATCH, SIZE, targets=("lbp_bits_patch",))
    view, target = seen(mae, images_bhwc)
    drawn = mae.columns(np.asarray(images_bhwc), view, target, target)
    shown = drawn["lbp_bits_patch"]
    assert shown.shape == (BATCH, SIZE, SIZE, 3) and shown.min() >= 0 and shown.max() <= 1
    np.testing.assert_array_equal(shown, drawn["lbp_bits_patch rebuilt"])
    cells = shown[:, ::PATCH, ::PATCH].reshape(-1, 3)
    last = shown[:, PATCH - 1 :: PATCH, PATCH - 1 :: PATCH].reshape(-1, 3)
    np.testing.assert_array_equal(last, cells)
    wanted = np.asarray(target["lbp_bits_patch"]).reshape(-1, 8)
    assert np.linalg.matrix_rank(np.cov(cells.T)) == 3
    # The first component is that of scikit-learn, up to its sign.
    theirs = decomposition.PCA(3).fit_transform(wanted)
    assert abs(np.corrcoef(cells[:, 0], theirs[:, 0])[0, 1]) > 0.99

    nothing = {"lbp_bits_patch": np.broadcast_to(wanted.mean(0), target["lbp_bits_patch"].shape)}
    rebuilt = mae.columns(np.asarray(images_bhwc), view, target, nothing)["lbp_bits_patch rebuilt"]
    hidden = target["hidden"].astype(bool)
    np.testing.assert_allclose(reference.patches(rebuilt, PATCH)[hidden], 0.5, atol=1e-6)


def test_two_channels_and_maps_without_contrast_can_be_drawn():
    maps = np.zeros((1, 2, 2, 2), np.float32)
    for shown in images.coloured(maps, maps):
        np.testing.assert_array_equal(shown, np.full((1, 2, 2, 3), 0.5))
    maps[0, 0, 0] = 1, 0
    shown, beside = images.coloured(maps, np.zeros_like(maps))
    assert shown[0, 0, 0, 0] > 0.8 and beside[0, 0, 0, 0] < 0.5


@pytest.mark.parametrize(
    ("pretext", "title"),
    [
        (Puzzle(SIZE, PATCH), "puzzle"),
        (Puzzle(SIZE, PATCH, 2, rotate=True), "puzzle"),
        (Rotation(SIZE, PATCH, 4), "rotation"),
    ],
)
def test_tiles_are_put_back_by_the_likeliest_answers(images_bhwc, pretext, title):
    view, target = seen(pretext, images_bhwc)
    outputs = pretext.decoder_spec()["outputs"]
    sure = {name: np.eye(classes)[target[name]] for name, _, classes in outputs}
    columns = pretext.columns(np.asarray(images_bhwc), view, target, sure)
    assert list(columns) == ["input", title, "put back, 100% right"]
    np.testing.assert_array_equal(columns["put back, 100% right"], images_bhwc)
    name = outputs[-1][0]
    wrong = sure | {name: np.roll(sure[name], 1, axis=-1)}
    columns = pretext.columns(np.asarray(images_bhwc), view, target, wrong)
    assert not np.array_equal(columns["put back, 0% right"], images_bhwc)


def test_inpainting_shows_what_fills_the_holes(images_bhwc):
    pretext = Inpaint(SIZE)
    view, target = seen(pretext, images_bhwc)
    output = np.full((BATCH, SIZE, SIZE, 3), 100.0, np.float32)
    columns = pretext.columns(np.asarray(images_bhwc), view, target, output)
    assert list(columns) == ["input", "holes", "filled"]
    white = np.where(target["holes"] > 0, 1.0, images_bhwc)
    np.testing.assert_array_equal(columns["filled"], white)
    np.testing.assert_array_equal(columns["holes"], view.images)


@pytest.mark.parametrize(
    "pretext",
    [
        Inpaint(SIZE, decoder_dim=8),
        Mae(PATCH, SIZE, drops_tokens=False, targets=("lbp_uniform",), loss="classes"),
        Puzzle(SIZE, PATCH, sizes=(32,)),
    ],
)
def test_what_an_untrained_decoder_makes_can_be_drawn(images_bhwc, pretext, tmp_path):
    view, target = seen(pretext, images_bhwc)
    decoder = decoders.build(pretext.decoder_spec(), jnp.float32)
    stages = {"pooled": jnp.ones((BATCH, 8)), "patches": jnp.ones((BATCH, 6, 6, 8))}
    output, _ = decoder.init_with_output(jax.random.key(0), stages, view, train=False)
    made = jax.device_get((view, target, output))
    columns = pretext.columns(np.asarray(images_bhwc), *made)
    figures.reconstruction_grid(tmp_path / "grid.png", columns)
    assert (tmp_path / "grid.png").stat().st_size > 1000


def test_heat_is_red_where_a_model_looks_and_blue_elsewhere(images_bhwc):
    maps = np.zeros((BATCH, 2, 2), np.float32)
    maps[:, 0, 0] = 1
    shown = pictures.heated(np.zeros((BATCH, SIZE, SIZE, 3)), maps)
    assert shown.shape == (BATCH, SIZE, SIZE, 3) and shown.min() >= 0 and shown.max() <= 1
    red, _, blue = shown[:, 2, 2].T
    assert (red > blue + 0.1).all()
    red, _, blue = shown[:, -3, -3].T
    assert (blue > red).all()
    np.testing.assert_allclose(
        pictures.heated(np.asarray(images_bhwc), maps) - shown, 0.55 * images_bhwc, atol=1e-6
    )

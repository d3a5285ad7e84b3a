"""Holes, what is painted over them, and the loss on what fills them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hmtl_jax.errors import UserError
from hmtl_jax.pretext import inpaint
from hmtl_jax.pretext.inpaint import Inpaint
from tests import reference, tiny

BATCH, SIZE = 4, 20
MEAN = np.array([0.485, 0.456, 0.406])
KINDS = ("centre", "rectangles", "tiles")


@pytest.fixture(scope="module")
def predicted():
    return np.random.default_rng(1).normal(size=(BATCH, SIZE, SIZE, 3))


def keys(seed=0, batch=BATCH):
    return tiny.keys(batch, seed)


def holes_of(count=200, **settings):
    pretext = Inpaint(SIZE, **settings)
    ((_, target),) = pretext.views(keys(batch=count), jnp.zeros((count, SIZE, SIZE, 3)))
    return np.asarray(target["holes"])[..., 0]


def features(images_bhwc):
    """A frozen network: squares of 4 × 4 pixels, each as a vector of 48, bent."""
    return {"patches": jnp.sin(images_bhwc.reshape(-1, 5, 4, 5, 4, 3).swapaxes(2, 3)).reshape(
        -1, 5, 5, 48
    )}  # fmt: skip


@pytest.mark.parametrize("holes", KINDS)
def test_holes_show_the_mean_colour_and_the_rest_the_image(images_bhwc, holes):
    ((view, target),) = Inpaint(SIZE, holes=holes).views(keys(), images_bhwc)
    assert view.keep is None
    cut = np.broadcast_to(np.asarray(target["holes"], bool), view.images.shape)
    np.testing.assert_array_equal(target["images"], images_bhwc)
    np.testing.assert_array_equal(view.images[~cut], images_bhwc[~cut])
    np.testing.assert_allclose(np.asarray(view.images)[cut].reshape(-1, 3) - MEAN, 0, atol=1e-7)
    assert set(np.unique(target["holes"])) == {0.0, 1.0}


@pytest.mark.parametrize("holes", KINDS)
@pytest.mark.parametrize("share", [1e-6, 0.25, 0.999])
def test_every_image_has_a_hole_and_something_beside_it(holes, share):
    area = holes_of(holes=holes, share=share, rectangles=1).mean((1, 2))
    assert area.min() > 0 and area.max() < 1
    if share == 0.25:
        assert abs(area.mean() - 0.25) < 0.03


def test_the_central_hole_is_a_square_in_the_middle():
    (hole,) = holes_of(1, holes="centre", share=0.16)
    wanted = np.zeros((SIZE, SIZE))
    wanted[6:14, 6:14] = 1
    np.testing.assert_array_equal(hole, wanted)


def test_one_rectangle_is_a_rectangle_of_its_area_anywhere():
    holes = holes_of(holes="rectangles", share=0.2, rectangles=1)
    heights, widths = holes.any(2).sum(1), holes.any(1).sum(1)
    np.testing.assert_array_equal(heights * widths, holes.sum((1, 2)))
    assert np.abs(heights * widths / SIZE**2 - 0.2).max() < 0.04
    ratio = heights / widths
    assert 0.4 < ratio.min() < 0.7 and 1.4 < ratio.max() < 2.4
    tops, lefts = holes.any(2).argmax(1), holes.any(1).argmax(1)
    for start, length in ((tops, heights), (lefts, widths)):
        assert start.min() == 0 and (start + length).max() == SIZE
        assert abs(np.mean(start / (SIZE - length)) - 0.5) < 0.1


def test_several_rectangles_overlap_or_not_but_never_exceed_the_share():
    area = holes_of(holes="rectangles", share=0.3, rectangles=4).mean((1, 2))
    assert area.max() < 0.34 and area.min() < 0.25


@pytest.mark.parametrize("tiles", [4, 3])
def test_tiles_are_cut_whole(tiles):
    holes = holes_of(holes="tiles", share=0.5, tiles=tiles)
    edges = [0, *(np.flatnonzero(np.diff(np.arange(SIZE) * tiles // SIZE)) + 1), SIZE]
    for top, bottom in itertools.pairwise(edges):
        for left, right in itertools.pairwise(edges):
            cell = holes[:, top:bottom, left:right]
            assert (cell == cell[:, :1, :1]).all()
            assert abs(cell[:, 0, 0].mean() - 0.5) < 0.15


@pytest.mark.parametrize("holes", ["rectangles", "tiles"])
def test_a_hole_depends_on_its_own_key_alone(images_bhwc, holes):
    pretext = Inpaint(SIZE, holes=holes)
    ((_, target),) = pretext.views(keys(), images_bhwc)
    ((_, part),) = pretext.views(keys()[1:3], images_bhwc[1:3])
    np.testing.assert_array_equal(target["holes"][1:3], part["holes"])
    ((_, other),) = pretext.views(keys(seed=1), images_bhwc)
    assert not np.array_equal(target["holes"], other["holes"])
    assert len(np.unique(target["holes"], axis=0)) == BATCH


def test_losses_equal_a_slow_copy_of_their_definition(images_bhwc, predicted):
    pretext = Inpaint(SIZE, perceptual=0.3)
    ((_, target),) = pretext.views(keys(), images_bhwc)
    losses = pretext.losses(jnp.float32(predicted), target, features)
    images = np.asarray(images_bhwc, np.float64)
    cut = np.asarray(target["holes"], bool)[..., 0]
    for row in range(BATCH):
        wanted = reference.normalise(images[row])
        l1 = np.mean(
            [abs(predicted[row][p] - wanted[p]) for p in zip(*np.nonzero(cut[row]), strict=True)]
        )
        np.testing.assert_allclose(losses["l1"][row], l1, rtol=1e-5)
        filled = images[row].copy()
        filled[cut[row]] = (predicted[row] * [0.229, 0.224, 0.225] + MEAN)[cut[row]]
        distances = []
        for y in range(0, SIZE, 4):
            for x in range(0, SIZE, 4):
                a, b = (np.sin(i[y : y + 4, x : x + 4]).ravel() for i in (filled, images[row]))
                distances.append(np.sum((a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2))
        np.testing.assert_allclose(losses["perceptual"][row], 0.3 * np.mean(distances), rtol=1e-4)
    assert {loss.dtype for loss in losses.values()} == {jnp.dtype("float32")}


def test_the_perfect_prediction_has_no_loss(images_bhwc):
    pretext = Inpaint(SIZE)
    ((_, target),) = pretext.views(keys(), images_bhwc)
    truth = jnp.float32(reference.normalise(np.asarray(images_bhwc, np.float64)))
    losses = pretext.losses(truth, target, features)
    for loss in losses.values():
        np.testing.assert_allclose(loss, 0, atol=1e-5)
    np.testing.assert_allclose(inpaint.filled(truth, target), images_bhwc, atol=1e-6)


@pytest.mark.parametrize("part", ["l1", "perceptual"])
def test_only_the_prediction_in_the_hole_gets_a_gradient(images_bhwc, predicted, part):
    pretext = Inpaint(SIZE)
    ((_, target),) = pretext.views(keys(), images_bhwc)

    def loss(output):
        return jnp.sum(pretext.losses(output, target, features)[part])

    gradient = np.asarray(jax.grad(loss)(jnp.float32(predicted)))
    cut = np.asarray(target["holes"], bool)[..., 0]
    assert (gradient[cut] != 0).all() and (gradient[~cut] == 0).all()


def test_several_stages_are_averaged(images_bhwc, predicted):
    ((_, target),) = Inpaint(SIZE).views(keys(), images_bhwc)

    def two(images):
        return features(images) | {"pooled": jnp.mean(images, axis=(1, 2))}

    found = [
        Inpaint(SIZE, stages=stages).losses(jnp.float32(predicted), target, two)["perceptual"]
        for stages in (("patches",), ("pooled",), ("patches", "pooled"))
    ]
    np.testing.assert_allclose(found[2], (found[0] + found[1]) / 2, rtol=1e-5)
    assert (found[1] != found[0]).all()


def test_without_a_perceptual_weight_no_network_is_run(images_bhwc, predicted):
    pretext = Inpaint(SIZE, perceptual=0.0)
    ((_, target),) = pretext.views(keys(), images_bhwc)
    assert set(pretext.losses(jnp.float32(predicted), target, None)) == {"l1"}


def test_features_of_zero_have_a_finite_gradient():
    zeros = jnp.zeros((2, 3, 3, 4))
    gradient = jax.grad(lambda x: jnp.sum(inpaint.perceptual_distance(x, zeros)))(zeros)
    assert np.isfinite(gradient).all()


def test_an_unknown_stage_lists_the_known(images_bhwc, predicted):
    pretext = Inpaint(SIZE, stages=("patch",))
    ((_, target),) = pretext.views(keys(), images_bhwc)
    with pytest.raises(UserError, match=r"Unknown stage .* 'patch'; known: patches"):
        pretext.losses(jnp.float32(predicted), target, features)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"holes": "center"}, r"Unknown pretexts\.inpaint\.holes 'center'; known: centre, .*Did"),
        ({"share": 1.0}, r"share is 1\.0; give the part of the area"),
        ({"rectangles": 0}, r"rectangles is 0; give a whole number, 1 or more"),
        ({"holes": "tiles", "tiles": 21}, r"tiles is 21; give at most data\.image_size 20"),
        ({"decoder_dim": 0}, r"decoder_dim is 0; give a whole number, 1 or more"),
        ({"decoder_depth": -1}, r"decoder_depth is -1; give a whole number, 0 or more"),
        ({"perceptual": -0.1}, r"perceptual is -0\.1; give a weight"),
        ({"stages": ()}, r"stages is \(\); give a tuple .* or set .*perceptual to 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Inpaint(SIZE, **settings)

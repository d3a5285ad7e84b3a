"""The puzzle's labels are proved by undoing it: the right answer gives the image back."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hmtl_jax.errors import UserError
from hmtl_jax.pretext import puzzle
from hmtl_jax.pretext.puzzle import Puzzle, reassemble, shuffle, turn
from tests import tiny

BATCH, SIZE, PATCH = 6, 24, 4


def keys(seed=0, batch=BATCH):
    return tiny.keys(batch, seed)


def tile(image_hwc, place, tiles):
    """The tile at a raster place, by slicing."""
    side = image_hwc.shape[0] // tiles
    top, left = place // tiles * side, place % tiles * side
    return np.asarray(image_hwc)[top : top + side, left : left + side]


@pytest.mark.parametrize("tiles", [2, 3, 4])
def test_a_label_names_the_original_place_of_the_tile(images_bhwc, tiles):
    ((view, target),) = Puzzle(SIZE, PATCH, tiles).views(keys(), images_bhwc)
    assert set(target) == {"puzzle"} and view.keep is None
    assert target["puzzle"].dtype == jnp.int32 and target["puzzle"].shape == (BATCH, tiles**2)
    for row in range(BATCH):
        labels = np.asarray(target["puzzle"][row])
        assert sorted(labels) == list(range(tiles**2))
        for place, origin in enumerate(labels):
            np.testing.assert_array_equal(
                tile(view.images[row], place, tiles), tile(images_bhwc[row], origin, tiles)
            )


@pytest.mark.parametrize("tiles", [2, 3, 4])
def test_the_right_permutation_reassembles_the_image_bit_for_bit(images_bhwc, tiles):
    ((view, target),) = Puzzle(SIZE, PATCH, tiles).views(keys(), images_bhwc)
    assert not np.array_equal(view.images, images_bhwc)
    back = reassemble(view.images, target["puzzle"], tiles)
    np.testing.assert_array_equal(back, images_bhwc)


def test_turned_and_shuffled_tiles_are_put_back_by_both_labels(images_bhwc):
    ((view, target),) = Puzzle(SIZE, PATCH, 3, rotate=True).views(keys(), images_bhwc)
    upright = turn(view.images, -target["rotation"], 3)
    assert not np.array_equal(upright, view.images)
    np.testing.assert_array_equal(reassemble(upright, target["puzzle"], 3), images_bhwc)


def test_the_identity_permutation_is_the_identity(images_bhwc):
    order = jnp.tile(jnp.arange(9), (BATCH, 1))
    np.testing.assert_array_equal(shuffle(images_bhwc, order, 3), images_bhwc)
    np.testing.assert_array_equal(reassemble(images_bhwc, order, 3), images_bhwc)


def test_a_wrong_guess_leaves_gaps_and_takes_the_first_of_two(images_bhwc):
    guess = jnp.tile(jnp.array([3, 3, 0, 0]), (BATCH, 1))
    back = reassemble(images_bhwc, guess, 2)
    for place, shown in ((0, 2), (3, 0)):
        np.testing.assert_array_equal(tile(back[0], place, 2), tile(images_bhwc[0], shown, 2))
    for place in (1, 2):
        assert (tile(back[0], place, 2) == 0).all()


def test_all_permutations_are_equally_likely():
    count = 2400
    ((_, target),) = Puzzle(SIZE, PATCH, 2).views(keys(1, count), jnp.zeros((count, 4, 4, 3)))
    drawn = list(map(tuple, np.asarray(target["puzzle"])))
    counts = np.array([drawn.count(order) for order in itertools.permutations(range(4))])
    assert counts.sum() == count
    # χ² with 23 degrees of freedom: 49.7 is passed once in a thousand.
    assert np.sum((counts - 100) ** 2 / 100) < 49.7


def test_a_puzzle_depends_on_its_own_key_alone(images_bhwc):
    pretext = Puzzle(SIZE, PATCH, rotate=True)
    ((view, target),) = pretext.views(keys(), images_bhwc)
    ((part, part_target),) = pretext.views(keys()[2:4], images_bhwc[2:4])
    np.testing.assert_array_equal(view.images[2:4], part.images)
    for name in ("puzzle", "rotation"):
        np.testing.assert_array_equal(target[name][2:4], part_target[name])
        assert len(np.unique(target[name], axis=0)) == BATCH
    ((_, other),) = pretext.views(keys(seed=1), images_bhwc)
    assert not np.array_equal(target["puzzle"], other["puzzle"])
    # To ask for turns too does not deal other permutations.
    ((_, alone),) = Puzzle(SIZE, PATCH).views(keys(), images_bhwc)
    np.testing.assert_array_equal(target["puzzle"], alone["puzzle"])


@pytest.mark.parametrize(
    ("size", "tiles", "whole"), [(224, 3, 225), (223, 3, 222), (48, 3, 48), (226, 4, 228)]
)
def test_images_grow_or_shrink_to_the_nearest_multiple(size, tiles, whole):
    assert puzzle.whole_size(size, tiles) == whole


def test_a_size_that_tiles_do_not_divide_is_resized_and_back():
    # On a ramp from left to right the mean of a tile tells its column, resized or not.
    ramp = jnp.tile(jnp.linspace(0, 1, 20)[None, None, :, None], (BATCH, 20, 1, 3))
    ((view, target),) = Puzzle(20, PATCH, 3).views(keys(), ramp)
    assert view.images.shape == (BATCH, 20, 20, 3) and view.images.dtype == jnp.float32
    assert view.images.min() >= 0 and view.images.max() <= 1
    for row in range(BATCH):
        for place, origin in enumerate(np.asarray(target["puzzle"][row])):
            centre = [int((index + 0.5) * 20 / 3) for index in divmod(place, 3)]
            assert abs(view.images[row][tuple(centre)][0] - (origin % 3 + 0.5) / 3) < 0.06


def test_views_of_several_sizes_show_one_puzzle(images_bhwc):
    pretext = Puzzle(SIZE, PATCH, sizes=(24, 12, 36))
    (full, target), (small, second), (large, third) = pretext.views(keys(), images_bhwc)
    assert [v.images.shape[1:3] for v in (full, small, large)] == [(24, 24), (12, 12), (36, 36)]
    np.testing.assert_array_equal(target["puzzle"], second["puzzle"])
    np.testing.assert_array_equal(target["puzzle"], third["puzzle"])
    halves = np.asarray(full.images).reshape(BATCH, 12, 2, 12, 2, 3).mean((2, 4))
    assert np.corrcoef(np.ravel(small.images), halves.ravel())[0, 1] > 0.9


def test_loss_is_the_sum_over_heads_of_cross_entropy(images_bhwc):
    pretext = Puzzle(SIZE, PATCH, 2, rotate=True)
    ((_, target),) = pretext.views(keys(), images_bhwc)
    rng = np.random.default_rng(1)
    output = {
        name: rng.normal(size=(BATCH, heads, classes))
        for name, heads, classes in pretext.decoder_spec()["outputs"]
    }
    losses = pretext.losses(jax.tree.map(jnp.float32, output), target, None)
    assert set(losses) == {"puzzle", "rotation"}
    for name, logits in output.items():
        slow = np.zeros(BATCH)
        for row, head in itertools.product(range(BATCH), range(4)):
            p = np.exp(logits[row, head]) / np.exp(logits[row, head]).sum()
            slow[row] -= np.log(p[target[name][row, head]])
        assert losses[name].shape == (BATCH,) and losses[name].dtype == jnp.float32
        np.testing.assert_allclose(losses[name], slow, rtol=1e-5)


def test_chance_is_what_the_authors_state(images_bhwc):
    pretext = Puzzle(SIZE, PATCH, 3, rotate=True)
    ((_, target),) = pretext.views(keys(), images_bhwc)
    flat = {"puzzle": jnp.zeros((BATCH, 9, 9)), "rotation": jnp.zeros((BATCH, 9, 4))}
    losses = pretext.losses(flat, target, None)
    np.testing.assert_allclose(losses["puzzle"], 19.775, atol=1e-3)
    np.testing.assert_allclose(losses["rotation"], 9 * math.log(4), rtol=1e-5)


def test_every_head_of_an_example_gets_a_gradient(images_bhwc):
    pretext = Puzzle(SIZE, PATCH, 2)
    ((_, target),) = pretext.views(keys(), images_bhwc)
    one_row = lambda logits: pretext.losses({"puzzle": logits}, target, None)["puzzle"][1]  # noqa: E731
    gradient = np.asarray(jax.grad(one_row)(jnp.zeros((BATCH, 4, 4))))
    assert (gradient[1] != 0).all() and (np.delete(gradient, 1, axis=0) == 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tiles": 5}, r"pretexts\.puzzle\.tiles is 5; give a whole number from 1 to 4"),
        ({"tiles": 1}, r"pretexts\.puzzle\.tiles is 1"),
        ({"sizes": (26,)}, r"sizes has 26, .* patch of 4 pixels .* multiples of 4"),
        ({"sizes": 24}, r"sizes is 24; give a tuple"),
        ({"sizes": (4,)}, r"tiles 3 cuts 4 pixels into tiles of less than 2"),
        ({"dropout": 1.0}, r"dropout is 1.0; give a probability"),
        ({"permute": False}, r"pretexts\.puzzle changes nothing"),
        ({"heads": "place"}, r"pretexts\.puzzle\.heads 'place'.*places"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Puzzle(SIZE, PATCH, **settings)

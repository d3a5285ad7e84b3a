"""Rotation turns each tile where it lies, and its label undoes the turn."""

import jax.numpy as jnp
import numpy as np
import pytest

from hmtl_jax.errors import UserError
from hmtl_jax.pretext.puzzle import turn
from hmtl_jax.pretext.rotation import Rotation
from tests import tiny
from tests.pretext.test_puzzle import tile

BATCH, SIZE, PATCH = 8, 24, 4


def keys(seed=0, batch=BATCH):
    return tiny.keys(batch, seed)


@pytest.mark.parametrize("tiles", [1, 2, 3, 4])
def test_a_label_counts_the_quarter_turns_of_the_tile_in_its_place(images_bhwc, tiles):
    ((view, target),) = Rotation(SIZE, PATCH, tiles).views(keys(), images_bhwc)
    assert set(target) == {"rotation"} and target["rotation"].dtype == jnp.int32
    assert set(np.unique(target["rotation"])) == {0, 1, 2, 3}
    for row in range(BATCH):
        for place, turns in enumerate(np.asarray(target["rotation"][row])):
            upright = tile(images_bhwc[row], place, tiles)
            np.testing.assert_array_equal(
                tile(view.images[row], place, tiles), np.rot90(upright, turns)
            )
    back = turn(view.images, -target["rotation"], tiles)
    np.testing.assert_array_equal(back, images_bhwc)


def test_turns_are_each_tiles_own_and_uniform():
    count = 2000
    ((_, target),) = Rotation(SIZE, PATCH, 2).views(keys(1, count), jnp.zeros((count, 4, 4, 3)))
    shares = np.stack([np.mean(target["rotation"] == turns, axis=0) for turns in range(4)])
    # The share of one of four turns has a standard deviation of 0.0097.
    assert np.abs(shares - 0.25).max() < 0.05
    assert len(np.unique(target["rotation"], axis=0)) == 4**4


def test_it_asks_for_one_head_of_four_classes_a_tile():
    spec = Rotation(SIZE, PATCH, 3, dropout=0.1).decoder_spec()
    assert spec == {"kind": "pooled_tiles", "outputs": (("rotation", 9, 4),), "dropout": 0.1}


def test_settings_that_do_not_fit_name_their_key():
    with pytest.raises(
        UserError, match=r"pretexts\.rotation\.tiles is 5; give a whole number from 1 to 4"
    ):
        Rotation(SIZE, PATCH, 5)

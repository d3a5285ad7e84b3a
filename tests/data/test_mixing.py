"""Mixup and CutMix: the shares agree with the pixels, and are drawn from Beta."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hmtl_jax.data import augment as aug
from hmtl_jax.data import mixing, order

MIX = jax.jit(aug.mix, static_argnums=2)


def numbered(batch, size=16):
    """Images whose pixels all hold the number of their example, scaled into [0, 1)."""
    return np.broadcast_to(
        np.arange(batch, dtype=np.float32)[:, None, None, None] / batch,
        (
            batch,
            size,
            size,
            3,
        ),
    )


def random_images(batch, size=16, seed=0):
    return np.random.default_rng(seed).random((batch, size, size, 3), dtype=np.float32)


def test_off_returns_each_example_to_itself():
    images = random_images(8)
    mixed, partner, share = MIX(jax.random.key(0), images, aug.Augment(16))
    np.testing.assert_array_equal(mixed, images)
    np.testing.assert_array_equal(partner, np.arange(8))
    np.testing.assert_array_equal(share, np.ones(8))


def test_the_partner_is_the_example_before():
    _, partner, _ = MIX(jax.random.key(0), random_images(5), aug.Augment(16, mixup=1.0))
    assert partner.dtype == np.int32
    np.testing.assert_array_equal(partner, [4, 0, 1, 2, 3])


@pytest.mark.parametrize("layout", [(1, 2), (2, 3), (1, 4), (5, 12), (11, 12)])
def test_the_partner_has_a_label_if_the_example_has_one(layout):
    layout, rows = order.Layout(*layout), np.arange(12)
    images = random_images(12)
    mixed, partner, share = mixing.mix(jax.random.key(0), images, 1.0, 0.0, layout)
    known = layout.known(rows)
    kinds = (known, np.setdiff1d(rows, known))
    for kind in kinds:
        np.testing.assert_array_equal(partner[kind], np.roll(kind, 1))
    share = np.asarray(share)[:, None, None, None]
    wanted = share * images + (1 - share) * np.asarray(images)[partner]
    np.testing.assert_allclose(mixed, wanted, atol=1e-6)


def test_mixup_is_the_weighted_mean_of_both():
    images = random_images(32)
    mixed, partner, share = map(
        np.asarray, MIX(jax.random.key(1), images, aug.Augment(16, mixup=0.8))
    )
    weight = share[:, None, None, None]
    np.testing.assert_allclose(mixed, weight * images + (1 - weight) * images[partner], atol=1e-6)
    assert mixed.min() >= 0 and mixed.max() <= 1


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_mixup_shares_are_beta(alpha):
    images = np.zeros((4000, 1, 1, 3), np.float32)
    share = np.asarray(MIX(jax.random.key(2), images, aug.Augment(1, mixup=alpha))[2])
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(share.mean() - 0.5) < 4 * (variance / 4000) ** 0.5
    assert abs(share.var() / variance - 1) < 0.1


def test_cutmix_pastes_a_rectangle_of_the_partner_and_shares_its_true_area():
    images = numbered(200)
    mixed, partner, share = MIX(jax.random.key(3), images, aug.Augment(16, cutmix=1.0))
    own = np.asarray(mixed == images).all(-1)
    others = np.asarray(mixed == images[np.asarray(partner)]).all(-1)
    np.testing.assert_array_equal(own, ~others)
    np.testing.assert_allclose(share, own.mean((1, 2)), atol=1e-6)
    np.testing.assert_array_equal(others, others.any(2)[:, :, None] & others.any(1)[:, None, :])
    for line in (others.any(2), others.any(1)):
        assert (np.abs(np.diff(line.astype(int), axis=1)).sum(1) <= 2).all()
    assert share.min() < 0.2 and share.max() > 0.95


def test_cutmix_areas_follow_beta_where_no_border_cuts_them():
    images = numbered(4000, size=32)
    mixed, _, share = MIX(jax.random.key(4), images, aug.Augment(32, cutmix=1.0))
    pasted = np.asarray(mixed != images).any(-1)
    border = pasted[:, [0, -1]].any((1, 2)) | pasted[:, :, [0, -1]].any((1, 2))
    inside = (1 - np.asarray(share))[~border & pasted.any((1, 2))]
    # With alpha 1 the area a² of the box is uniform, and a box of side a clears the border with
    # probability (1 - a)²: the mean of a² over those is ∫ a³ (1 - a)² / ∫ a (1 - a)² = 1/5.
    assert abs(inside.mean() - 0.2) < 0.02


def test_both_on_takes_each_for_half_of_the_examples():
    images = numbered(2000, size=8)
    mixed, partner, share = MIX(jax.random.key(5), images, aug.Augment(8, mixup=1.0, cutmix=1.0))
    spread = np.asarray(mixed).reshape(2000, -1)
    between = ~np.isclose(spread, images.reshape(2000, -1)) & ~np.isclose(
        spread, images[np.asarray(partner)].reshape(2000, -1)
    )
    assert abs(between.any(1).mean() - 0.5) < 0.04
    weight = np.asarray(share)
    expected = weight * images[:, 0, 0, 0] + (1 - weight) * images[np.asarray(partner), 0, 0, 0]
    np.testing.assert_allclose(np.asarray(mixed).mean((1, 2, 3)), expected, atol=1e-5)


def test_targets_are_mixed_as_the_images():
    one_hot = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0, 1]]
    _, partner, share = MIX(jax.random.key(6), random_images(6), aug.Augment(16, mixup=1.0))
    mixed = np.asarray(aug.mix_target(one_hot, partner, share))
    for row in range(6):
        weight = float(share[row])
        np.testing.assert_allclose(
            mixed[row], weight * one_hot[row] + (1 - weight) * one_hot[row - 1], atol=1e-6
        )
    dense = random_images(6)
    as_images = MIX(jax.random.key(6), dense, aug.Augment(16, mixup=1.0))[0]
    np.testing.assert_allclose(aug.mix_target(dense, partner, share), as_images, atol=1e-6)


@pytest.mark.parametrize(
    "setting", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}]
)
def test_mixing_repeats_with_the_key_and_does_not_see_the_sharding(setting):
    images, cfg = random_images(16), aug.Augment(16, **setting)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    spread = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
    whole, again, parts = (MIX(jax.random.key(7), x, cfg) for x in (images, images, spread))
    assert len(parts[0].sharding.device_set) == 8
    for first, second, third in zip(whole, again, parts, strict=True):
        np.testing.assert_array_equal(first, second)
        np.testing.assert_allclose(first, third, atol=5e-6)
    other = MIX(jax.random.key(8), images, cfg)
    assert not np.array_equal(whole[2], other[2])
    assert len(np.unique(whole[2])) > 8

"""Which records take part, and which of them are in a batch."""

import numpy as np
import pytest

from hmtl_jax.data import order
from hmtl_jax.data.subset import subset_indices

CLASSES = np.repeat([0, 1, 2], [60, 30, 10])
ALL = slice(0, 10)


def batches(pools, count, seed=0, share=ALL):
    steps = order.Steps([order.Pool(*pool) for pool in pools], seed, share)
    return np.array([steps[index] for index in range(count)])


def test_the_labels_that_stay_are_those_of_an_equal_subset():
    numbers, labelled = order.choose(CLASSES, 1.0, 0.2, seed=3)
    np.testing.assert_array_equal(numbers, np.arange(100))
    np.testing.assert_array_equal(numbers[labelled], subset_indices(CLASSES, 0.2, 3))
    assert np.bincount(CLASSES[numbers[labelled]]).tolist() == [12, 6, 2]


def test_labels_are_a_part_of_the_subset():
    numbers, labelled = order.choose(CLASSES, 0.5, 0.4, seed=0)
    assert np.bincount(CLASSES[numbers]).tolist() == [30, 15, 5]
    assert np.bincount(CLASSES[numbers[labelled]]).tolist() == [12, 6, 2]


def test_one_pool_is_a_new_shuffle_each_epoch_without_its_remainder():
    numbers = np.arange(100, 127)
    found = batches([(numbers, 10)], 4)
    first, second = found[:2].ravel(), found[2:].ravel()
    assert len(set(first)) == len(set(second)) == 20 and set(first) != set(second)
    assert set(found.ravel()) <= set(numbers)


def test_each_of_several_pools_has_its_part_of_every_batch_and_is_seen_whole():
    few, many = np.arange(7), np.arange(100, 140)
    found = batches([(few, 4), (many, 6)], 28)
    assert (found[:, :4] < 100).all() and (found[:, 4:] >= 100).all()
    assert np.bincount(found[:, :4].ravel()).tolist() == [16] * 7  # 112 places, 16 passes
    for start in range(0, 112, 7):
        assert sorted(found[:, :4].ravel()[start : start + 7]) == few.tolist()
    assert np.unique(found[:20, 4:].ravel()).tolist() == many.tolist()


def test_pools_of_equal_size_have_orders_of_their_own():
    numbers = np.arange(50)
    found = batches([(numbers, 5), (numbers, 5)], 10)
    assert (found[:, :5] != found[:, 5:]).any()


def test_processes_share_the_very_batch():
    pools = [(np.arange(7), 4), (np.arange(100, 140), 6)]
    whole = batches(pools, 9)
    parts = [batches(pools, 9, share=slice(at, at + 5)) for at in (0, 5)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    assert (batches(pools, 9, seed=1) != whole).any()


@pytest.mark.parametrize(
    "share, wanted",
    [(0.0, (1, 1)), (0.5, (1, 2)), (0.25, (3, 4)), (0.3, (7, 10)), (0.001, (79, 80))],
)
def test_a_layout_sets_a_share_of_each_batch_aside(share, wanted):
    layout = order.Layout.of(80, share)
    assert layout == wanted
    rows = np.arange(80)
    laid = layout.laid(rows)
    assert sorted(laid) == rows.tolist() and layout.count(80) == len(layout.known(laid))
    np.testing.assert_array_equal(layout.known(laid), rows[: layout.count(80)])
    # Any whole number of units, as a device or a process has them, holds the same share.
    for part in laid.reshape(-1, layout.unit):
        assert (part < layout.count(80)).sum() == layout.labelled
        assert (np.diff(part)[np.arange(1, layout.unit) != layout.labelled] == 1).all()


def test_a_batch_is_laid_out_as_it_is_said_to_be():
    pools = [order.Pool(np.arange(7), 6), order.Pool(np.arange(100, 140), 2)]
    steps = order.Steps(pools, 0, slice(0, 8), order.Layout.of(8, 0.25))
    found = np.array([steps[index] for index in range(20)])
    np.testing.assert_array_equal(found >= 100, np.tile([0, 0, 0, 1], (20, 2)))
    plain = order.Steps(pools, 0, slice(0, 8))
    assert all(sorted(steps[index]) == sorted(plain[index]) for index in range(20))


@pytest.mark.parametrize("pools", [[(np.arange(30), 10)], [(np.arange(7), 4), (np.arange(9), 6)]])
def test_a_batch_depends_on_its_number_alone(pools):
    steps = order.Steps([order.Pool(*pool) for pool in pools], 5, ALL)
    later = steps[17]
    np.testing.assert_array_equal(batches(pools, 18, seed=5)[17], later)


##### Classes drawn by a power of their count #####


@pytest.mark.parametrize(
    "power, wanted", [(1, [60, 30, 10]), (0, [33, 34, 33]), (0.5, [47, 33, 19])]
)
def test_quotas_are_as_the_count_to_a_power(power, wanted):
    found = order.quotas(CLASSES, power)
    assert found.sum() == 100 and np.abs(found - wanted).max() <= 1
    shares = np.array([60, 30, 10.0]) ** power
    np.testing.assert_allclose(found, 100 * shares / shares.sum(), atol=1)


def test_rows_without_a_class_keep_their_share():
    classes = np.concatenate([np.full(20, -1), CLASSES])
    assert order.quotas(classes, 0)[0] == 20 and order.quotas(classes, 0).sum() == 120


@pytest.mark.parametrize("more", [[], [(np.arange(1000, 1040), 6)]])
def test_an_epoch_has_each_class_as_often_as_its_quota(more):
    """And each record of a class equally often, but for one; another epoch has other ones."""
    pools = [(np.arange(500, 600), 10, CLASSES, 0.0), *more]
    epochs = []
    for epoch in range(2):
        steps = order.Steps([order.Pool(*pool) for pool in pools], 0, slice(None))
        rows = np.concatenate([steps[10 * epoch + index] for index in range(10)])
        rows = rows[rows < 1000]
        counts = np.bincount(rows - 500, minlength=100)
        of_class = [counts[value == CLASSES] for value in range(3)]
        assert [of.sum() for of in of_class] == order.quotas(CLASSES, 0).tolist()
        assert all(np.ptp(of) <= 1 for of in of_class)
        epochs.append(rows)
    assert sorted(epochs[0]) != sorted(epochs[1])
    again = batches(pools, 20)
    np.testing.assert_array_equal(again[10][again[10] < 1000], epochs[1][:10])


def test_processes_share_the_batch_of_drawn_classes():
    pools = [(np.arange(100), 10, CLASSES, 0.5)]
    whole = batches(pools, 25)
    parts = [batches(pools, 25, share=slice(at, at + 5)) for at in (0, 5)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)

"""The cost model of scale on paper, by sums done by hand."""

import pytest

from benchmarks import scale

CHIP = scale.Chip(peak=1e12, near=100e9, far=10e9, node=8)


def test_a_ring_moves_nearly_twice_the_bytes_of_a_sum_and_once_those_of_a_gather():
    near = 7 / 8 * 1e9 / (scale.LINK * 100e9)
    assert scale.seconds("all-reduce", 1e9, 8, CHIP) == pytest.approx(2 * near)
    assert scale.seconds("all-gather", 1e9, 8, CHIP) == pytest.approx(near)
    # Eight nodes: an eighth of the bytes goes round between them, on the slower link.
    far = 7 / 8 * 1e9 / 8 / (scale.LINK * 10e9)
    assert scale.seconds("all-gather", 1e9, 64, CHIP) == pytest.approx(near + far)


def test_what_fits_beside_the_operations_costs_its_last_bucket_alone():
    sent, bucket = {"all-reduce": 1e9}, scale.BUCKET / 1e9
    whole = scale.seconds("all-reduce", 1e9, 8, CHIP)
    assert scale.exposed(sent, 1e6, 8, CHIP) == pytest.approx(bucket * whole)
    assert scale.exposed(sent, 0.0, 8, CHIP) == pytest.approx(whole)
    half = 0.75 * whole  # two thirds of it are half of the sum
    assert scale.exposed(sent, half, 8, CHIP) == pytest.approx(0.5 * whole)
    assert scale.exposed({}, 1.0, 8, CHIP) == 0


def test_the_least_batch_reaches_the_efficiency_and_one_below_does_not():
    asked = ({"all-reduce": 1e9, "all-gather": 5e8}, 1e9)
    rows = scale.least_rows(*asked, 64, CHIP)
    assert scale.efficiency(*asked, rows, 64, CHIP) >= scale.WANTED
    assert scale.efficiency(*asked, 0.95 * rows, 64, CHIP) < scale.WANTED
    assert scale.efficiency(*asked, 1e9, 64, CHIP) > 0.999

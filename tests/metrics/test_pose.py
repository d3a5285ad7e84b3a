"""Pose errors wrap around, and the geodesic is the angle between two matrices."""

import numpy as np
import pytest

from hmtl_jax import errors
from hmtl_jax.metrics.pose import pose_metrics


def matrix(yaw, pitch, roll):
    """Rz(roll) · Ry(yaw) · Rx(pitch), from the definition."""
    y, p, r = np.deg2rad([yaw, pitch, roll])
    x = np.array([[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    z = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    return z @ about_y @ x


def test_errors_wrap_around():
    ours = pose_metrics(np.array([[179.0, 10, -170]]), np.array([[-179.0, 350, 170]]))
    assert (ours["mae_yaw"], ours["mae_pitch"], ours["mae_roll"]) == (2, 20, 20)
    assert ours["mae"] == pytest.approx(14) and ours["n"] == 1


def test_errors_are_means_of_absolute_differences():
    rng = np.random.default_rng(0)
    labels, predicted = rng.uniform(-60, 60, (2, 50, 3))
    ours = pose_metrics(predicted, labels)
    expected = np.abs(predicted - labels).mean(axis=0)
    np.testing.assert_allclose([ours[f"mae_{a}"] for a in ("yaw", "pitch", "roll")], expected)
    apart = [matrix(*a).T @ matrix(*b) for a, b in zip(predicted, labels, strict=True)]
    degrees = np.rad2deg(np.arccos([(np.trace(turn) - 1) / 2 for turn in apart]))
    assert ours["geodesic"] == pytest.approx(degrees.mean())


def test_one_axis_alone_is_its_own_geodesic():
    for axis in range(3):
        predicted = np.zeros((1, 3))
        predicted[0, axis] = 25
        assert pose_metrics(predicted, np.zeros((1, 3)))["geodesic"] == pytest.approx(25)


def test_rows_without_a_label_are_left_out():
    labels = np.array([[0.0, 0, 0], [np.nan, 0, 0]])
    assert pose_metrics(np.ones((2, 3)), labels)["n"] == 1


def test_bad_input_is_named():
    with pytest.raises(errors.UserError, match=r"must be \[N, 3\]"):
        pose_metrics(np.ones((2, 2)), np.ones((2, 3)))
    with pytest.raises(errors.UserError, match="not finite"):
        pose_metrics(np.full((2, 3), np.nan), np.ones((2, 3)))
    with pytest.raises(errors.UserError, match="No example"):
        pose_metrics(np.ones((2, 3)), np.full((2, 3), np.nan))

"""Metrics of head pose, computed on the host from all predictions of a split."""

from typing import Any

import numpy as np

from hmtl_jax import errors

ANGLES = ("yaw", "pitch", "roll")
# The measures; what else is returned are counts.
NAMES = ("mae", *(f"mae_{angle}" for angle in ANGLES), "geodesic")


def pose_metrics(predictions: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Errors in degrees, as plain JSON values.

    Args:
      predictions: [N, 3], yaw, pitch and roll in degrees.
      labels: the same; rows with NaN (missing) are left out.

    Returns:
      n: examples counted.
      mae_yaw, mae_pitch, mae_roll: mean of min(d, 360 - d) of the difference d, and mae: their
        mean.
      geodesic: mean angle between the rotations Rz(roll) · Ry(yaw) · Rx(pitch).

    Wrong shapes, predictions that are not finite, and no labelled example raise UserError.
    """
    predictions, labels = np.asarray(predictions, np.float64), np.asarray(labels, np.float64)
    if labels.ndim != 2 or not predictions.shape == labels.shape == (len(labels), 3):
        raise errors.UserError(
            f"Poses must be [N, 3], yaw, pitch and roll, not {list(predictions.shape)} and "
            f"{list(labels.shape)}."
        )
    known = np.isfinite(labels).all(axis=1)
    predictions, labels = predictions[known], labels[known]
    if not len(labels):
        raise errors.Unlabelled("No example has a label, so there is nothing to measure.")
    if not np.isfinite(predictions).all():
        raise errors.UserError("Some predictions are not finite, so there is nothing to measure.")
    apart = np.abs(predictions - labels) % 360
    error = np.minimum(apart, 360 - apart).mean(axis=0)
    return {
        "n": len(labels),
        "mae": float(error.mean()),
        **{f"mae_{angle}": float(value) for angle, value in zip(ANGLES, error, strict=True)},
        "geodesic": float(
            np.rad2deg((_rotation(predictions).inv() * _rotation(labels)).magnitude()).mean()
        ),
    }


def _rotation(angles_n3):
    from scipy.spatial.transform import Rotation

    # Lower case letters turn about axes that stay: x first, then y, then z.
    return Rotation.from_euler("xyz", angles_n3[:, [1, 0, 2]], degrees=True)

"""Head pose: a rotation by its 6-D representation, or binned Euler angles.

Angles are those of 300W-LP and AFLW2000, in degrees. With the usual matrices about x, y and z,
R = Rz(roll) · Ry(yaw) · Rx(pitch), as in 6DRepNet (Hempel 2022); that is the transpose of the
matrix of 3DDFA, which made 300W-LP. Geodesic distances are the same for both.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from hmtl_jax import errors, limits
from hmtl_jax.metrics import pose
from hmtl_jax.tasks.columns import columns
from hmtl_jax.tasks.data import Data

BINS = 66
BIN_DEGREES = 3.0
LIMIT = BINS * BIN_DEGREES / 2  # 99 degrees


@dataclasses.dataclass(frozen=True)
class Pose:
    """Yaw, pitch and roll in degrees, NaN where missing.

    labels: the batch's keys that side by side hold yaw, pitch and roll, in this order: three of
    float32 [B], or one of [B, 3]. names: of the columns, where the data set tells.
    representation: "6d": two vectors that Gram-Schmidt makes a rotation matrix (Zhou 2019), with
    the geodesic distance in radians as the loss (6DRepNet); or "bins": 66 bins of 3 degrees an
    angle, with the sum over angles of cross-entropy + alpha · squared error in degrees of the
    expectation (HopeNet, Ruiz 2018; its alpha is 1 or 2). Rows beyond 99 degrees have no bin: they
    count as unlabelled.
    """

    labels: tuple[str, ...] = pose.ANGLES
    names: tuple[str, ...] = ()
    representation: str = "6d"
    alpha: float = 1.0

    mixes: ClassVar = False
    bears_warps: ClassVar = False
    distribution: ClassVar = False
    couples_rows: ClassVar = False
    metric_names: ClassVar = pose.NAMES
    answer: ClassVar = "yaw, pitch and roll in degrees, [b, 3]"
    outputs: ClassVar = pose.ANGLES
    FILLED: ClassVar = ("names",)
    SETTINGS: ClassVar = {}
    LIMITS: ClassVar = {
        "labels": limits.names("('pose',)"),
        "alpha": limits.number(0, what="a weight"),
    }

    @property
    def raw(self) -> str:
        """What the head yields."""
        if self.representation == "6d":
            return "two vectors, of which Gram-Schmidt makes a rotation matrix, [b, 6]"
        return "logits of 66 bins of 3 degrees for yaw, pitch and roll, [b, 198]"

    def __post_init__(self):
        limits.check("tasks.pose.", vars(self), self.LIMITS)
        errors.lookup(_HEADS, self.representation, "tasks.pose.representation")
        self._check_names()

    @classmethod
    def fitted(cls, settings: Mapping[str, Any], data: Data) -> "Pose":
        """With the angles' names in the data."""
        return cls(**{**settings, "names": data.entries(settings["labels"])})

    @property
    def num_outputs(self) -> int:
        return _HEADS[self.representation]

    def target(self, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Yaw, pitch and roll in degrees, float32 [B, 3], and the mask float32 [B]."""
        angles = columns(batch, self.labels)
        known = jnp.all(jnp.isfinite(angles), axis=1)
        if self.representation == "bins":
            known &= jnp.all(jnp.abs(angles) <= LIMIT, axis=1)
        return jnp.where(known[:, None], angles, 0.0), known.astype(jnp.float32)

    def flip(self, target: jax.Array, flipped: jax.Array) -> jax.Array:
        """A mirror turns yaw and roll to the other side, and leaves pitch."""
        mirrored = target * jnp.array([[-1.0, 1.0, -1.0]])
        return jnp.where(flipped[:, None], mirrored, target)

    def mirrored(self, predicted_b3: jax.Array) -> jax.Array:
        """What angles of a mirror image say of the picture itself."""
        return self.flip(predicted_b3, jnp.ones(predicted_b3.shape[0], bool))

    def loss(self, outputs: jax.Array, target_b3: jax.Array, mask_b: jax.Array) -> jax.Array:
        """The geodesic distance, or HopeNet's loss, float32 [B]."""
        del mask_b
        outputs = outputs.astype(jnp.float32)
        if self.representation == "6d":
            return geodesic(matrix_of_6d(outputs), matrix_of_euler(target_b3))
        logits = outputs.reshape(-1, 3, BINS)
        place = jnp.floor((target_b3 + LIMIT) / BIN_DEGREES).astype(jnp.int32)
        # An angle of 99 degrees belongs to the last bin.
        right = jax.nn.one_hot(jnp.clip(place, 0, BINS - 1), BINS, dtype=jnp.float32)
        entropy = -jnp.sum(right * jax.nn.log_softmax(logits), axis=-1)
        return jnp.sum(entropy + self.alpha * (expectation(logits) - target_b3) ** 2, axis=1)

    def predict(self, outputs: jax.Array) -> jax.Array:
        """Yaw, pitch and roll in degrees, float32 [B, 3]."""
        outputs = outputs.astype(jnp.float32)
        if self.representation == "6d":
            return euler_of_matrix(matrix_of_6d(outputs))
        return expectation(outputs.reshape(-1, 3, BINS))

    def metrics(self, predictions: np.ndarray, labels: Mapping[str, np.ndarray]) -> dict:
        """Metrics of one split on the host; rows without a label are left out."""
        return pose.pose_metrics(predictions, columns(labels, self.labels, np))

    def _check_names(self):
        if self.names and tuple(self.names) != pose.ANGLES:
            raise errors.UserError(
                f"tasks.pose.labels hold {', '.join(self.names)}; name those that hold yaw, pitch "
                "and roll, in this order."
            )


def expectation(logits: jax.Array) -> jax.Array:
    """Logits [..., 66] -> the mean of the bins' centres in degrees (HopeNet: of lower edges)."""
    centres = (jnp.arange(BINS, dtype=jnp.float32) + 0.5) * BIN_DEGREES - LIMIT
    centres = centres.reshape((1,) * (logits.ndim - 1) + (BINS,))
    return jnp.sum(jax.nn.softmax(logits) * centres, axis=-1)


def matrix_of_6d(vectors_b6: jax.Array) -> jax.Array:
    """Two vectors [B, 6] -> the rotation float32 [B, 3, 3] with these as first columns (Zhou 2019).

    Gram-Schmidt: the first is normalised, the second made orthogonal to it, the third their cross
    product.
    """
    first = _unit(vectors_b6[:, :3])
    second = vectors_b6[:, 3:]
    second = _unit(second - jnp.sum(first * second, axis=1, keepdims=True) * first)
    return jnp.stack([first, second, jnp.cross(first, second)], axis=2)


def _unit(vectors_b3):
    square = jnp.sum(vectors_b3**2, axis=1, keepdims=True)
    # A vector of zeros stays one, with a finite gradient.
    return vectors_b3 * jax.lax.rsqrt(jnp.maximum(square, 1e-12))


def matrix_of_euler(angles_b3: jax.Array) -> jax.Array:
    """Yaw, pitch and roll in degrees [B, 3] -> R = Rz(roll) · Ry(yaw) · Rx(pitch), [B, 3, 3]."""
    y, p, r = (jnp.deg2rad(angles_b3[:, axis]) for axis in range(3))
    (cy, cp, cr), (sy, sp, sr) = map(jnp.cos, (y, p, r)), map(jnp.sin, (y, p, r))
    rows = [
        [cr * cy, cr * sy * sp - sr * cp, cr * sy * cp + sr * sp],
        [sr * cy, sr * sy * sp + cr * cp, sr * sy * cp - cr * sp],
        [-sy, cy * sp, cy * cp],
    ]
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def euler_of_matrix(matrix_b33: jax.Array) -> jax.Array:
    """R [B, 3, 3] -> yaw in [-90, 90], pitch and roll in [-180, 180] degrees, float32 [B, 3].

    Where yaw is 90 degrees, only pitch and roll together are determined: roll is 0 then.
    """
    m = matrix_b33
    side = jnp.hypot(m[:, 0, 0], m[:, 1, 0])
    yaw = jnp.arctan2(-m[:, 2, 0], side)
    locked = side < 1e-6
    pitch = jnp.where(
        locked, jnp.arctan2(-m[:, 1, 2], m[:, 1, 1]), jnp.arctan2(m[:, 2, 1], m[:, 2, 2])
    )
    roll = jnp.where(locked, 0.0, jnp.arctan2(m[:, 1, 0], m[:, 0, 0]))
    return jnp.rad2deg(jnp.stack([yaw, pitch, roll], axis=1))


def geodesic(ours_b33: jax.Array, theirs_b33: jax.Array) -> jax.Array:
    """The angle in radians [0, pi] between rotations [B, 3, 3], float32 [B].

    By the arctangent of its sine and cosine, whose gradient is bounded at 0 and at pi, where that
    of the arc cosine of the trace is not.
    """
    # Written as sums, because a matrix product is rounded to bfloat16 on some accelerators.
    turn = jnp.sum(ours_b33[:, :, :, None] * theirs_b33[:, :, None, :], axis=1)
    cosine = (turn[:, 0, 0] + turn[:, 1, 1] + turn[:, 2, 2] - 1.0) / 2
    axis = [turn[:, 2, 1] - turn[:, 1, 2], turn[:, 0, 2] - turn[:, 2, 0],
            turn[:, 1, 0] - turn[:, 0, 1]]  # fmt: skip
    sine = jnp.sqrt(sum((part / 2) ** 2 for part in axis) + 1e-12)
    return jnp.arctan2(sine, cosine)


_HEADS = {"6d": 6, "bins": 3 * BINS}

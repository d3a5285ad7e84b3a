"""Yes or no by one logit, such as real or fake."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from hmtl_jax.errors import check_weights
from hmtl_jax.metrics.ranking import binary_metrics
from hmtl_jax.tasks.columns import check_smoothing


@dataclasses.dataclass(frozen=True)
class Binary:
    """One label that is 1 (positive), 0, or -1 where missing.

    label: the batch's key, int32 [B]. positive_weight: multiplies the loss of positives.
    label_smoothing: s turns the target t into (1 - s) t + s / 2 (Szegedy 2016).
    """

    label: str
    positive_weight: float = 1.0
    label_smoothing: float = 0.0

    mixes = True
    num_outputs = 1

    def __post_init__(self):
        check_weights("positive_weight", (self.positive_weight,))
        check_smoothing(self.label_smoothing)

    @property
    def labels(self) -> tuple[str, ...]:
        """The batch's keys that training and evaluation read."""
        return (self.label,)

    def target(self, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """The probability of 1, float32 [B], and the mask float32 [B] of labelled rows."""
        label = batch[self.label]
        known = (label == 0) | (label == 1)
        return (label == 1).astype(jnp.float32), known.astype(jnp.float32)

    def flip(self, target: jax.Array, flipped: jax.Array) -> jax.Array:
        """A mirrored picture keeps its label."""
        del flipped
        return target

    def loss(self, logits_b1: jax.Array, target_b: jax.Array, mask_b: jax.Array) -> jax.Array:
        """Binary cross-entropy of the smoothed, weighted target in f32, float32 [B]."""
        del mask_b
        logits_b = logits_b1[:, 0].astype(jnp.float32)
        target_b = (1.0 - self.label_smoothing) * target_b + self.label_smoothing / 2
        of_positive = -self.positive_weight * jax.nn.log_sigmoid(logits_b)
        return target_b * of_positive - (1.0 - target_b) * jax.nn.log_sigmoid(-logits_b)

    def predict(self, logits_b1: jax.Array) -> jax.Array:
        """Probability of 1, float32 [B]."""
        return jax.nn.sigmoid(logits_b1[:, 0].astype(jnp.float32))

    def metrics(self, predictions: np.ndarray, labels: Mapping[str, np.ndarray]) -> dict:
        """Metrics of one split on the host; rows without a label are left out."""
        return binary_metrics(predictions, labels[self.label])

"""Yes or no by one logit, such as real or fake."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from hmtl_jax import limits
from hmtl_jax.errors import UserError
from hmtl_jax.metrics import ranking
from hmtl_jax.tasks.data import Data


@dataclasses.dataclass(frozen=True)
class Binary:
    """One label that is 1 (positive), 0, or -1 where missing.

    label: the batch's key, int32 [B]. positive_weight: multiplies the loss of positives.
    label_smoothing: s turns the target t into (1 - s) t + s / 2 (Szegedy 2016).
    """

    label: str
    positive_weight: float = 1.0
    label_smoothing: float = 0.0

    mixes: ClassVar = True
    bears_warps: ClassVar = True
    distribution: ClassVar = False
    couples_rows: ClassVar = False
    num_outputs: ClassVar = 1
    outputs: ClassVar = ()  # a prediction is one number
    metric_names: ClassVar = ranking.NAMES
    answer: ClassVar = "probability of yes, [b]"
    raw: ClassVar = "its logit, [b, 1]"
    FILLED: ClassVar = ()
    SETTINGS: ClassVar = {}
    LIMITS: ClassVar = {
        "positive_weight": limits.above(0, "a weight"),
        "label_smoothing": limits.share(),
    }

    def __post_init__(self):
        limits.check("tasks.binary.", vars(self), self.LIMITS)

    @classmethod
    def fitted(cls, settings: Mapping[str, Any], data: Data) -> "Binary":
        """Raises UserError for a label of more than two classes."""
        classes = data.classes(settings["label"])
        if classes and len(classes) != 2:
            raise UserError(
                f"tasks.binary.label {settings['label']!r} has {len(classes)} classes, not two; "
                "make it a classification task."
            )
        return cls(**settings)

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
        return ranking.binary_metrics(predictions, labels[self.label])

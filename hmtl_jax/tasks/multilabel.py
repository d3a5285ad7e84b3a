"""Multi-label classification: K yes-or-no attributes with a sigmoid each, any of them missing."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from hmtl_jax import errors, limits
from hmtl_jax.metrics import multilabel
from hmtl_jax.tasks.columns import columns
from hmtl_jax.tasks.data import Data, given_weights


@dataclasses.dataclass(frozen=True)
class Multilabel:
    """K attributes that are each 1, 0, or -1 where missing.

    labels: the batch's keys, int32 [B] or [B, k], side by side K columns. names: of the columns;
    the labels' own where empty. positive_weights: one an attribute, or empty for none; they
    multiply the loss of its positives. swaps: pairs of names that a mirror exchanges, such as a
    left and a right one; others stay as they are.

    The loss of an example is the mean binary cross-entropy of the attributes that it has (ours:
    the mean, so that examples with few labels weigh as much as those with all).
    """

    labels: tuple[str, ...]
    names: tuple[str, ...] = ()
    positive_weights: tuple[float, ...] = ()
    swaps: tuple[tuple[str, str], ...] = ()

    mixes: ClassVar = True
    bears_warps: ClassVar = True
    distribution: ClassVar = False
    couples_rows: ClassVar = False
    metric_names: ClassVar = multilabel.MEANS
    answer: ClassVar = "probability of each attribute, [b, attributes]"
    raw: ClassVar = "their logits, [b, attributes]"
    FILLED: ClassVar = ("names",)
    SETTINGS: ClassVar = {"positive_weights": "none"}  # or "balanced", or one number an attribute
    LIMITS: ClassVar = {
        "labels": limits.names("('attributes',)"),
        "positive_weights": limits.weights(),
    }

    def __post_init__(self):
        limits.check("tasks.multilabel.", vars(self), self.LIMITS)
        self._check_pairs()

    @classmethod
    def fitted(cls, settings: Mapping[str, Any], data: Data) -> "Multilabel":
        """With the attributes' names in the data, and the weights that its counts give."""
        names = data.entries(settings["labels"])
        key = "tasks.multilabel.positive_weights"
        weights = given_weights(key, settings["positive_weights"], len(names))
        if weights is None:
            read = {label: data.column(label) for label in settings["labels"]}
            weights = balanced_positive_weights(columns(read, settings["labels"], np))
        return cls(**{**settings, "names": names, "positive_weights": weights})

    @property
    def columns(self) -> tuple[str, ...]:
        """The attributes' names."""
        return self.names or self.labels

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the numbers that a prediction is made of."""
        return self.columns

    @property
    def num_outputs(self) -> int:
        return len(self.columns)

    def target(self, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """float32 [B, K, 2], and the mask float32 [B] of rows with any label.

        The last axis holds (known and 1, known), both 0 or 1: the loss is linear in the two, so
        the mean of two targets has the mean of their losses, missing entries included.
        """
        value = columns(batch, self.labels)
        known = (value >= 0).astype(jnp.float32)
        positive = (value > 0).astype(jnp.float32)
        return jnp.stack([positive, known], axis=-1), jnp.max(known, axis=1)

    def flip(self, target: jax.Array, flipped: jax.Array) -> jax.Array:
        """Exchanges the pairs of `swaps` in the rows that were mirrored."""
        if not self.swaps:
            return target
        return jnp.where(flipped[:, None, None], target[:, jnp.array(self._mirrored())], target)

    def mirrored(self, predicted_bk: jax.Array) -> jax.Array:
        """What predictions for a mirror image say of the picture itself."""
        return predicted_bk[:, jnp.array(self._mirrored())]

    def _mirrored(self) -> list[int]:
        place = {name: index for index, name in enumerate(self.columns)}
        order = list(range(len(place)))
        for pair in self.swaps:
            left, right = (errors.lookup(place, name, "attribute in swaps") for name in pair)
            order[left], order[right] = right, left
        return order

    def loss(self, logits_bk: jax.Array, target: jax.Array, mask_b: jax.Array) -> jax.Array:
        """Binary cross-entropy in f32, the mean over an example's known attributes; [B]."""
        del mask_b
        logits_bk = logits_bk.astype(jnp.float32)
        positive, known = target[..., 0], target[..., 1]
        of_positive = -jax.nn.log_sigmoid(logits_bk)
        if self.positive_weights:
            of_positive = of_positive * jnp.asarray(self.positive_weights, jnp.float32)[None, :]
        of_negative = -jax.nn.log_sigmoid(-logits_bk)
        losses = positive * of_positive + (known - positive) * of_negative
        return jnp.sum(losses, axis=1) / jnp.maximum(jnp.sum(known, axis=1), 1e-6)

    def predict(self, logits_bk: jax.Array) -> jax.Array:
        """Probability of each attribute, float32 [B, K]."""
        return jax.nn.sigmoid(logits_bk.astype(jnp.float32))

    def metrics(self, predictions: np.ndarray, labels: Mapping[str, np.ndarray]) -> dict:
        """Metrics of one split on the host; missing entries are left out."""
        truth = columns(labels, self.labels, np).astype(np.int64)
        return multilabel.multilabel_metrics(predictions, truth, self.columns)

    def _check_pairs(self):
        if self.positive_weights and len(self.positive_weights) != self.num_outputs:
            raise errors.UserError(
                f"tasks.multilabel.positive_weights has {len(self.positive_weights)} numbers for "
                f"{self.num_outputs} attributes; give one each, or none."
            )
        swapped = [name for pair in self.swaps for name in pair]
        if len(set(swapped)) != 2 * len(self.swaps) or len(swapped) != 2 * len(self.swaps):
            raise errors.UserError(
                f"tasks.multilabel.swaps {self.swaps} must be pairs of names, each name once."
            )
        self._mirrored()


def balanced_positive_weights(values_nk: np.ndarray) -> tuple[float, ...]:
    """Negatives / positives of each attribute, among its known entries; 1 where it has no positive.

    values_nk: [N, K] of 1, 0, and -1 where missing.
    """
    positives, negatives = (values_nk == 1).sum(axis=0), (values_nk == 0).sum(axis=0)
    return tuple(
        float(no / yes) if yes and no else 1.0 for yes, no in zip(positives, negatives, strict=True)
    )

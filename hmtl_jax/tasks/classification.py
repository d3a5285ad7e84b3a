"""Softmax classification with class weights, label smoothing, and hard or soft labels."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from hmtl_jax.metrics.classification import classification_metrics


@dataclasses.dataclass(frozen=True)
class Classification:
    """One label of C classes.

    label: the batch's key, int32 [B], -1 where missing. soft: read `LABEL_soft` float32 [B, C]
    instead, all zeros where missing. class_weights: one a class, or empty for none; they multiply
    the loss of a class and do not change the divisor, which stays the number of labelled examples
    (HMTL: majority count / class count). label_smoothing: Szegedy 2016.
    """

    label: str
    classes: tuple[str, ...]
    class_weights: tuple[float, ...] = ()
    label_smoothing: float = 0.0
    soft: bool = False

    @property
    def num_outputs(self) -> int:
        return len(self.classes)

    @property
    def labels(self) -> tuple[str, ...]:
        """The batch's keys that training and evaluation read."""
        return (self.label, f"{self.label}_soft") if self.soft else (self.label,)

    def target(self, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """The class distribution float32 [B, C], and the mask float32 [B] of labelled rows."""
        if self.soft:
            target = batch[f"{self.label}_soft"].astype(jnp.float32)
            return target, (jnp.sum(target, axis=-1) > 0).astype(jnp.float32)
        label = batch[self.label]
        mask = ((label >= 0) & (label < self.num_outputs)).astype(jnp.float32)
        return jax.nn.one_hot(label, self.num_outputs, dtype=jnp.float32), mask

    def flip(self, target: jax.Array, flipped: jax.Array) -> jax.Array:
        """A mirrored face keeps its class."""
        del flipped
        return target

    def loss(self, logits_bc: jax.Array, target_bc: jax.Array) -> jax.Array:
        """Cross-entropy of the smoothed, weighted target in f32, float32 [B]."""
        smooth = self.label_smoothing
        target_bc = (1.0 - smooth) * target_bc + smooth / self.num_outputs
        if self.class_weights:
            target_bc = target_bc * jnp.asarray(self.class_weights, jnp.float32)[None, :]
        return -jnp.sum(target_bc * jax.nn.log_softmax(logits_bc.astype(jnp.float32)), axis=-1)

    def predict(self, logits_bc: jax.Array) -> jax.Array:
        """Class probabilities, float32 [B, C]."""
        return jax.nn.softmax(logits_bc.astype(jnp.float32))

    def metrics(self, predictions: np.ndarray, labels: Mapping[str, np.ndarray]) -> dict:
        """Metrics of one split on the host; rows without a label are left out."""
        label = labels[self.label]
        known = label >= 0
        return classification_metrics(predictions[known], label[known], self.classes)

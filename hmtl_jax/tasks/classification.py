"""Softmax classification: class weights, smoothing, focal loss, logit adjustment, soft labels."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from hmtl_jax import limits
from hmtl_jax.errors import UserError
from hmtl_jax.metrics import classification
from hmtl_jax.tasks.data import Data, class_weights, shares


@dataclasses.dataclass(frozen=True)
class Classification:
    """One label of C classes.

    label: the batch's key, int32 [B], -1 where missing. soft: read `LABEL_soft` float32 [B, C]
    instead, all zeros where missing. class_weights: one a class, or empty for none; they multiply
    the loss of a class and do not change the divisor, which stays the number of labelled examples.
    In a recipe also "balanced", majority count / class count (HMTL), and "effective", or
    "effective_0.99" with another β than 0.999, by the effective number of a class's examples (Cui
    2019, arXiv 1901.05555). label_smoothing: Szegedy 2016. focal: the exponent gamma that plays
    down what is predicted well (Lin 2017, arXiv 1708.02002); 0 is cross-entropy.
    logit_adjustment: tau (Menon 2021, arXiv 2007.07314): training adds tau · log(prior) to each
    logit, so that the plain logits rank classes as if all were equally frequent; 0 is off. priors:
    shares of the classes in the training data, all above 0, which it needs.
    """

    label: str
    classes: tuple[str, ...]
    class_weights: tuple[float, ...] = ()
    label_smoothing: float = 0.0
    soft: bool = False
    focal: float = 0.0
    logit_adjustment: float = 0.0
    priors: tuple[float, ...] = ()

    mixes: ClassVar = True
    bears_warps: ClassVar = True
    distribution: ClassVar = True
    couples_rows: ClassVar = False
    metric_names: ClassVar = classification.NAMES
    answer: ClassVar = "probability of each class, [b, classes]"
    raw: ClassVar = "logits, whose softmax these are, [b, classes]"
    FILLED: ClassVar = ("classes", "priors")
    SETTINGS: ClassVar = {"class_weights": "none"}  # or "balanced", "effective", numbers
    LIMITS: ClassVar = {
        "class_weights": limits.weights(),
        "label_smoothing": limits.share(),
        "soft": limits.flag(),
        "focal": limits.number(0, what="an exponent"),
        "logit_adjustment": limits.number(0),
    }

    def __post_init__(self):
        limits.check("tasks.classification.", vars(self), self.LIMITS)
        self._check_priors()

    @classmethod
    def fitted(cls, settings: Mapping[str, Any], data: Data) -> "Classification":
        """With the class names of the data, and the weights and priors that its counts give."""
        label = settings["label"]
        classes = data.classes(label)
        if not classes:
            raise UserError(
                f"tasks.classification.label {label!r} is not a class label in this data set."
            )
        if settings["soft"] and not data.has(f"{label}_soft"):
            raise UserError(
                f"tasks.classification.soft reads {label}_soft, the shares of votes, which the "
                "data set has not; set it to False."
            )
        key = "tasks.classification.class_weights"
        read = functools.partial(data.column, label)
        weights = class_weights(key, settings["class_weights"], read, len(classes))
        priors = ()
        if settings["logit_adjustment"]:
            priors = shares(data.column(label), len(classes))
        found = {"classes": tuple(classes), "class_weights": weights, "priors": priors}
        return cls(**{**settings, **found})

    @property
    def num_outputs(self) -> int:
        return len(self.classes)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The classes, of whose probabilities a prediction is made."""
        return self.classes

    @property
    def labels(self) -> tuple[str, ...]:
        """The batch's keys that training reads."""
        return (self.label, f"{self.label}_soft") if self.soft else (self.label,)

    @property
    def measured(self) -> tuple[str, ...]:
        """The batch's keys that metrics read."""
        return (self.label,)

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

    def loss(self, logits_bc: jax.Array, target_bc: jax.Array, mask_b: jax.Array) -> jax.Array:
        """Cross-entropy of the smoothed, weighted target in f32, float32 [B]."""
        del mask_b
        smooth, logits_bc = self.label_smoothing, logits_bc.astype(jnp.float32)
        target_bc = (1.0 - smooth) * target_bc + smooth / self.num_outputs
        if self.class_weights:
            target_bc = target_bc * jnp.asarray(self.class_weights, jnp.float32)[None, :]
        if self.logit_adjustment:
            prior_c = jnp.log(jnp.asarray(self.priors, jnp.float32))
            logits_bc = logits_bc + self.logit_adjustment * prior_c[None, :]
        log_p_bc = jax.nn.log_softmax(logits_bc)
        if self.focal:
            # 1 - p, kept off 0, where a power below 1 has no gradient.
            rest_bc = jnp.maximum(-jnp.expm1(log_p_bc), 1e-7)
            target_bc = target_bc * rest_bc**self.focal
        return -jnp.sum(target_bc * log_p_bc, axis=-1)

    def predict(self, logits_bc: jax.Array) -> jax.Array:
        """Class probabilities, float32 [B, C]."""
        return jax.nn.softmax(logits_bc.astype(jnp.float32))

    def metrics(self, predictions: np.ndarray, labels: Mapping[str, np.ndarray]) -> dict:
        """Metrics of one split on the host; rows without a label are left out."""
        label = labels[self.label]
        known = label >= 0
        return classification.classification_metrics(predictions[known], label[known], self.classes)

    def _check_priors(self):
        usable = len(self.priors) == len(self.classes) and min(self.priors, default=0.0) > 0
        if self.logit_adjustment and not usable:
            raise UserError(
                f"tasks.classification.logit_adjustment needs the share of each of the "
                f"{len(self.classes)} classes, above 0, as priors, not {self.priors}; leave it 0 "
                "where a class has no example."
            )

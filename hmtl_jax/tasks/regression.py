"""Regression of real-valued labels, such as valence and arousal, or age; any of them missing."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from hmtl_jax import errors, limits
from hmtl_jax.metrics import regression
from hmtl_jax.tasks.columns import columns
from hmtl_jax.tasks.data import Data

# In units of the scaled labels, whose variance is near 1: keeps a batch of equal rows finite.
_TINY = 1e-8


@dataclasses.dataclass(frozen=True)
class Regression:
    """K numbers, NaN where missing.

    labels: the batch's keys, float32 [B] or [B, k], side by side K columns. names: of the columns;
    the labels' own where empty. objective: "mse"; "l1"; or "ccc", 1 - Lin's concordance correlation
    over the labelled rows of the batch, for which the batch should hold dozens of them. (As it
    couples rows, "ccc" hangs on the size of a micro-batch where gradients are accumulated.)
    centre, scale: the head's output is (label - centre) / scale, and the loss is taken in that
    unit; for ages 40 and 20 do, valence and arousal need none. tolerance: metrics then count the
    share of errors up to it as `within` (CS@5 for ages).
    """

    labels: tuple[str, ...]
    names: tuple[str, ...] = ()
    objective: str = "mse"
    centre: float = 0.0
    scale: float = 1.0
    tolerance: float = 0.0

    mixes: ClassVar = True
    bears_warps: ClassVar = True
    metric_names: ClassVar = regression.NAMES
    answer: ClassVar = "numbers in the labels' own unit, [b, numbers]"
    distribution: ClassVar = False
    FILLED: ClassVar = ("names",)
    SETTINGS: ClassVar = {}
    LIMITS: ClassVar = {
        "labels": limits.names("('valence', 'arousal')"),
        "centre": limits.any_number(),
        "scale": limits.above(0),
        "tolerance": limits.number(0),
    }

    @property
    def raw(self) -> str:
        """What the head yields."""
        return f"of each number, less {self.centre:g} and divided by {self.scale:g}, [b, numbers]"

    def __post_init__(self):
        limits.check("tasks.regression.", vars(self), self.LIMITS)
        errors.lookup(_OBJECTIVES, self.objective, "tasks.regression.objective")

    @classmethod
    def fitted(cls, settings: Mapping[str, Any], data: Data) -> "Regression":
        """With the numbers' names in the data."""
        return cls(**{**settings, "names": data.entries(settings["labels"])})

    @property
    def couples_rows(self) -> bool:
        """Whether the loss is one of the whole batch, which no micro-batch knows."""
        return self.objective == "ccc"

    @property
    def columns(self) -> tuple[str, ...]:
        """The numbers' names."""
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

        The last axis holds (scaled label, known): 0 and 0 where it is missing.
        """
        value = columns(batch, self.labels)
        known = jnp.isfinite(value)
        scaled = jnp.where(known, (value - self.centre) / self.scale, 0.0)
        known = known.astype(jnp.float32)
        return jnp.stack([scaled, known], axis=-1), jnp.max(known, axis=1)

    def flip(self, target: jax.Array, flipped: jax.Array) -> jax.Array:
        """A mirrored face keeps its numbers (head pose does not: see tasks/pose.py)."""
        del flipped
        return target

    def loss(self, outputs_bk: jax.Array, target: jax.Array, mask_b: jax.Array) -> jax.Array:
        """The objective, float32 [B]: of each example's known labels, or ("ccc") of the batch."""
        # A mixed number is known only if both of its sources are: their shares sum to 1.
        known = (target[..., 1] > 0.999).astype(jnp.float32) * mask_b[:, None]
        return _OBJECTIVES[self.objective](outputs_bk.astype(jnp.float32), target[..., 0], known)

    def predict(self, outputs_bk: jax.Array) -> jax.Array:
        """The numbers in the labels' own unit, float32 [B, K]."""
        return outputs_bk.astype(jnp.float32) * self.scale + self.centre

    def metrics(self, predictions: np.ndarray, labels: Mapping[str, np.ndarray]) -> dict:
        """Metrics of one split on the host; missing entries are left out."""
        truth = columns(labels, self.labels, np)
        return regression.regression_metrics(predictions, truth, self.columns, self.tolerance)


def _mean_of_known(loss_bk, known_bk):
    return jnp.sum(loss_bk * known_bk, axis=1) / jnp.maximum(jnp.sum(known_bk, axis=1), 1.0)


def _mse(outputs_bk, labels_bk, known_bk):
    return _mean_of_known((outputs_bk - labels_bk) ** 2, known_bk)


def _l1(outputs_bk, labels_bk, known_bk):
    return _mean_of_known(jnp.abs(outputs_bk - labels_bk), known_bk)


def _ccc(outputs_bk, labels_bk, known_bk):
    """1 - 2 cov / (var + var + squared difference of means), the same for each row (Lin 1989).

    The mean over the labels that any row of the batch has.
    """
    rows_k = jnp.sum(known_bk, axis=0)
    share_bk = known_bk / jnp.maximum(rows_k, 1.0)[None, :]

    def mean(values_bk):
        return jnp.sum(share_bk * values_bk, axis=0)

    mean_o, mean_l = mean(outputs_bk), mean(labels_bk)
    o_bk, l_bk = outputs_bk - mean_o[None, :], labels_bk - mean_l[None, :]
    spread = mean(o_bk**2) + mean(l_bk**2) + (mean_o - mean_l) ** 2
    loss_k = 1.0 - 2.0 * mean(o_bk * l_bk) / (spread + _TINY)
    present_k = (rows_k > 0).astype(jnp.float32)
    loss = jnp.sum(loss_k * present_k) / jnp.maximum(jnp.sum(present_k), 1.0)
    return jnp.broadcast_to(loss, (outputs_bk.shape[0],))


_OBJECTIVES = {"mse": _mse, "l1": _l1, "ccc": _ccc}

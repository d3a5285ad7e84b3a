"""What tasks share: labels side by side as the columns of one array, and checks of settings."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from hmtl_jax import errors


def columns(batch: Mapping[str, Any], labels: Sequence[str], xp: Any = jnp) -> Any:
    """Scalar labels [B] and vectors [B, k] of a batch, joined to one float32 [B, K].

    xp: jax.numpy, or numpy for arrays of the host.
    """
    parts = [batch[label].astype(xp.float32).reshape(batch[label].shape[0], -1) for label in labels]
    return xp.concatenate(parts, axis=1)


def check_labels(kind: str, labels: Any) -> None:
    """Raises UserError where a task's `labels` is no tuple of names, such as a bare string."""
    if isinstance(labels, str) or not labels:
        raise errors.UserError(
            f"The {kind} task's labels must be a tuple of label names, such as ('valence',), not "
            f"{labels!r}."
        )


def check_smoothing(label_smoothing: float) -> None:
    """Raises UserError unless it is a share."""
    if not 0.0 <= label_smoothing < 1.0:
        raise errors.UserError(f"label_smoothing is a share in [0, 1), not {label_smoothing}.")

"""Labels side by side: scalar labels and vectors of labels as the columns of one array."""

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

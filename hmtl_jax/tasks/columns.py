"""Labels side by side as the columns of one array."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp


def columns(batch: Mapping[str, Any], labels: Sequence[str], xp: Any = jnp) -> Any:
    """Scalar labels [B] and vectors [B, k] of a batch, joined to one float32 [B, K].

    xp: jax.numpy, or numpy for arrays of the host.
    """
    parts = [batch[label].astype(xp.float32).reshape(batch[label].shape[0], -1) for label in labels]
    return xp.concatenate(parts, axis=1)

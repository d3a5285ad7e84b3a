"""A split through eval_step to predictions on the host to metrics; each example counts once."""

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from hmtl_jax import sharding
from hmtl_jax.files import write_json


def predictions(eval_step: Any, variables: Any, batches: Iterable, mesh: Any) -> dict[str, dict]:
    """All valid rows of a split: `predictions` and `labels` by name, NumPy [N, …].

    The same on every process: eval_step must return replicated arrays.
    """
    parts = []
    for batch in batches:
        found = jax.device_get(eval_step(variables, sharding.to_devices(batch, mesh)))
        valid = found["labels"].pop("valid")
        parts.append(jax.tree.map(lambda rows, valid=valid: rows[valid], found))
    joined = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
    # Processes read interleaved rows; the order of the split is restored, so that files are equal.
    order = np.argsort(joined["labels"]["index"], kind="stable")
    return jax.tree.map(lambda rows: rows[order], joined)


def metrics(tasks: Mapping[str, Any], found: Mapping[str, Mapping]) -> dict[str, dict]:
    """Each task's metrics by name."""
    return {
        name: task.metrics(found["predictions"][name], found["labels"])
        for name, task in tasks.items()
    }


def scalars(found: Mapping[str, Mapping]) -> dict[str, float]:
    """`TASK/METRIC` → number, for logs and for choosing the best checkpoint."""
    return {
        f"{task}/{name}": float(value)
        for task, values in found.items()
        for name, value in values.items()
        if isinstance(value, float)  # counts are no measures
    }


def write(workdir: pathlib.Path, split: str, step: int, report: Mapping[str, Any]) -> pathlib.Path:
    """Writes eval/SPLIT-STEP.json, whole or not at all."""
    path = workdir / "eval" / f"{split}-{step}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, report)
    return path

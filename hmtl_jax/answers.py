"""Every example of a split with its labels and a run's answers, as a table for other programs."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hmtl_jax.data import sources


def table(
    tasks: Mapping[str, Any], source: sources.Opened, found: Mapping[str, Mapping]
) -> dict[str, Any]:
    """Columns by name with a row an example, in the order of the split.

    tasks: of the run. source: the split, with its classes as the run has them. found: what
    `evaluate.predictions` returned for it.

    Columns: `key`; each label of the set by its name, a class as text, the entries of a vector as
    LABEL/ENTRY, what is missing as null; and of each task `predicted/TASK`, the class or the number
    itself, and `predicted/TASK/OUTPUT`, the probability of each class, or each number.
    """
    records = [source[index] for index in found["labels"]["index"].tolist()]
    columns: dict[str, Any] = {"key": [record["key"] for record in records]}
    for label in source.labels:
        values = np.array([record[label] for record in records])
        columns |= _label(label, values, source.class_names(label) or ())
    for name, task in tasks.items():
        columns |= _answer(f"predicted/{name}", task, found["predictions"][name])
    return columns


def _label(label: str, values: np.ndarray, names: tuple[str, ...]) -> dict[str, Any]:
    if values.ndim > 2:
        return {label: values.reshape(len(values), -1).tolist()}
    if values.ndim == 2:
        entries = names or tuple(map(str, range(values.shape[1])))
        columns = zip(entries, values.T, strict=True)
        return {f"{label}/{entry}": _known(column) for entry, column in columns}
    if names:
        return {label: [names[value] if value >= 0 else None for value in values.tolist()]}
    return {label: _known(values)}


def _known(values: np.ndarray) -> np.ma.MaskedArray:
    return np.ma.masked_array(values, np.isnan(values) if values.dtype.kind == "f" else values < 0)


def _answer(name: str, task: Any, predicted: np.ndarray) -> dict[str, Any]:
    if not task.outputs:
        return {name: predicted.reshape(len(predicted))}
    found: dict[str, Any] = {}
    if hasattr(task, "classes"):
        found[name] = [task.outputs[best] for best in predicted.argmax(axis=1).tolist()]
    columns = zip(task.outputs, predicted.T, strict=True)
    return found | {f"{name}/{output}": column for output, column in columns}

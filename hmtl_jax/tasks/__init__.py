"""Supervised tasks: each is a head, a masked per-example loss, and metrics.

A task is a frozen dataclass with `labels`, `num_outputs`, `target(batch) -> (target, mask)`,
`flip(target, flipped)`, `loss(outputs, target) -> [B]`, `predict(outputs)` and
`metrics(predictions, labels)`. To add one, write its file and its line below.
"""

from hmtl_jax.tasks.classification import Classification

TASKS = {"classification": Classification}

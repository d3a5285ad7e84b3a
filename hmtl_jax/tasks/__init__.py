"""Supervised tasks: each is a head, a masked per-example loss, and metrics.

A task is a frozen dataclass with

- `labels`, the batch's keys that it reads, and `num_outputs`, the width of its linear head,
- `measured`, those of them that metrics read, where these are fewer,
- `target(batch) -> (target [B, …], mask [B])`: mask 0 where the label is missing, no NaN in either,
- `flip(target, flipped)`: what mirroring the image does to the label,
- `mixes`: whether λ·a + (1 − λ)·b of two targets means anything (mixup, CutMix),
- `loss(outputs, target, mask) -> [B]`; the mask is for losses that couple the rows of a batch,
- `outputs`, the names of the numbers that a prediction is made of, () where it is a single one,
- in words, `answer`, what these are, and `raw`, what the head yields that they are made of,
- `mirrored(predictions)`, where a mirror image changes what is predicted: what they say of the
  picture itself,
- `predict(outputs) -> [B, …]`, and on the host `metrics(predictions, labels) -> dict`, in which
  floats are measures, ints counts, None what nothing defines, and dicts and lists tables.

- `fitted(settings, data)`, which makes it of the recipe's settings and of what the data say; FILLED
  are the fields that it takes from there, SETTINGS the recipe's defaults for those that it
  translates,
- LIMITS, what each of its settings may be (see limits.py), and `metric_names`, the measures that
  `metrics` may yield,
- what it forbids: `mixes` as above, `bears_warps`, whether a picture may be turned and sheared
  without a falsified label, `couples_rows`, whether its loss is taken over the whole batch;
  `distribution`, whether the softmax of its outputs is one, so that two answers can be compared.

Missing labels are -1 in int labels and NaN in float labels. To add a task, write its file and its
line below.
"""

from typing import Any

from hmtl_jax.tasks.binary import Binary
from hmtl_jax.tasks.classification import Classification
from hmtl_jax.tasks.multilabel import Multilabel
from hmtl_jax.tasks.pose import Pose
from hmtl_jax.tasks.regression import Regression

TASKS: dict[str, Any] = {
    "binary": Binary,
    "classification": Classification,
    "multilabel": Multilabel,
    "pose": Pose,
    "regression": Regression,
}

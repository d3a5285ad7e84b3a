"""Synthetic faces with labels for every task: drawn by NumPy alone, no download, no files.

A picture and its labels are a function of (seed, split, index): not of the batch, the process or
the order. Splits share no identity; eight pictures in a row show one person. Labels hold no noise,
but a weak expression, an occluder or a turned head can make one hard to see. The expressions are
mildly imbalanced, as AffectNet's are strongly: 20 % neutral and happiness down to 7 % contempt.
The renderer and all its amounts are ours.

The expressions are meant to be out of a linear model's reach. On the grey pixels of 6,000 training
pictures ridge regression names 40.1 % of 2,000 test expressions (20.8 % of them are of the most
frequent class):

    python benchmarks/synthetic_linear.py
"""

import numpy as np

from hmtl_jax.data import synthetic_people as people
from hmtl_jax.data.synthetic_face import draw
from hmtl_jax.data.synthetic_people import ATTRIBUTES, IMAGES_PER_IDENTITY
from hmtl_jax.data.synthetic_scene import Rows
from hmtl_jax.errors import UserError, nearest

SPLIT_SIZES = {"train": 8000, "validation": 1000, "test": 2000}
CLASS_NAMES = {
    "expression": people.EXPRESSIONS,
    "gender": ("male", "female"),
    "skin_tone": ("1 lightest", "2", "3", "4", "5", "6 darkest"),
    "fake": ("real", "fake"),
    "attributes": ATTRIBUTES,
}

_CHUNK = 32  # images drawn together: enough to hide the cost of each call, few enough for the cache


def render(
    indices: np.ndarray, *, split: str, size: int = 64, seed: int = 0
) -> dict[str, np.ndarray]:
    """Draws pictures `indices` (ints [N] >= 0) of a split.

    Returns `image` uint8 [N,size,size,3] RGB, `expression` int64 [N] (AffectNet's order),
    `valence`, `arousal` float32 [N] in [-1,1], `pose` float32 [N,3] = yaw, pitch, roll in degrees
    (signs as in 300W-LP: the nose to the left of the picture, up, the head tilted clockwise),
    `attributes` int64 [N,A] of {0,1} in the order of ATTRIBUTES, `gender` int64 [N],
    `age` float32 [N] in years, `skin_tone` int64 [N] 0..5, `fake` int64 [N], `identity` int64 [N].
    Raises UserError for an unknown split, a negative index, or a size below 16.
    """
    indices = _checked(indices, split, size)
    p = people.sample(indices, split, seed)
    images = np.empty((len(indices), size, size, 3), np.uint8)
    order = np.lexsort((np.abs(p["roll"]), p["fake"]))  # like beside like: smaller windows
    for start in range(0, len(indices), _CHUNK):
        rows = order[start : start + _CHUNK]
        images[rows] = draw(Rows(p, rows), size)
    return {"image": images} | _labels(p)


def _checked(indices, split: str, size: int) -> np.ndarray:
    indices = np.asarray(indices)
    if split not in people.SPLITS:
        raise UserError(
            f"Unknown split {split!r} of the synthetic faces; known: "
            f"{', '.join(people.SPLITS)}.{nearest(split, people.SPLITS)}"
        )
    if indices.ndim != 1 or indices.dtype.kind not in "iu" or (indices < 0).any():
        raise UserError(f"Synthetic indices must be a list of integers >= 0, not {indices!r}.")
    if size < 16:
        raise UserError(f"Synthetic faces need a size of at least 16 pixels, not {size}.")
    return indices.astype(np.int64)


def _labels(p: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    worn = p | {
        "smiling": p["smile"] > 0.07,
        "mouth_open": p["upper"] + p["lower"] > 0.05,
        "young": p["age"] < 35,
    }
    whole = ("expression", "gender", "skin_tone", "fake", "identity")
    real = ("valence", "arousal", "age")
    return {
        **{name: p[name].astype(np.int64) for name in whole},
        **{name: p[name].astype(np.float32) for name in real},
        "pose": np.stack([p["yaw"], p["pitch"], p["roll"]], 1).astype(np.float32),
        "attributes": np.stack([worn[name] for name in ATTRIBUTES], 1).astype(np.int64),
    }


__all__ = ["ATTRIBUTES", "CLASS_NAMES", "IMAGES_PER_IDENTITY", "SPLIT_SIZES", "render"]

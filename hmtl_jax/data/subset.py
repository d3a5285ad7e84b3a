"""The low-data protocol: a seeded, class-stratified part of the training examples."""

import numpy as np

from hmtl_jax import errors


def subset_indices(classes: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Draws a part of the examples, the same share of each class; returns sorted int64 [n'].

    A class of n keeps round(fraction * n), at least one. A smaller fraction's subset lies inside a
    larger one's. The draw is ours, from NumPy's frozen legacy stream: a subset means the same
    examples under every version.

    Args:
      classes: integers [n]; one value for all draws regardless of class.
      fraction: the share to keep, in (0, 1].
      seed: any integer.

    Raises:
      UserError: `fraction` is not in (0, 1], or `classes` is not one integer for each example.
    """
    if not 0 < fraction <= 1:
        raise errors.UserError(f"subset={fraction} is no share of the data; use 0 < subset <= 1.")
    if classes.ndim != 1:
        raise errors.UserError(
            f"A stratified subset needs one class for each example, but the label has shape "
            f"{classes.shape[1:]}; name an integer label."
        )
    if classes.dtype.kind not in "iu":
        raise errors.UserError(
            f"A stratified subset needs a class label, and this one holds {classes.dtype} numbers, "
            "no two of which may be equal; name a class label in data.stratify."
        )
    rng = np.random.RandomState(seed % 2**32)
    kept = []
    for value in np.unique(classes):
        members = rng.permutation(np.flatnonzero(classes == value))
        kept.append(members[: max(1, int(fraction * len(members) + 0.5))])
    return np.sort(np.concatenate(kept))

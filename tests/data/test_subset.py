"""The low-data subset: stratified, nested, drawn by seed and the same for ever."""

import numpy as np
import pytest

from hmtl_jax import errors
from hmtl_jax.data import subset

CLASSES = np.repeat([-1, 0, 1, 5], [3, 40, 100, 7])


def test_subset_keeps_each_class_in_proportion():
    kept = subset.subset_indices(CLASSES, 0.2, seed=0)
    values, counts = np.unique(CLASSES[kept], return_counts=True)
    assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == {-1: 1, 0: 8, 1: 20, 5: 1}
    assert (np.diff(kept) > 0).all()


def test_subsets_are_nested_and_drawn_by_seed():
    previous: set[int] = set()
    for fraction in (0.001, 0.1, 0.2, 0.5, 0.51, 0.99, 1.0):
        kept = set(subset.subset_indices(CLASSES, fraction, seed=5).tolist())
        assert previous <= kept
        previous = kept
    assert previous == set(range(len(CLASSES)))
    draws = {subset.subset_indices(CLASSES, 0.2, seed).tobytes() for seed in (5, 5, 6, 7)}
    assert len(draws) == 3


def test_a_published_subset_stays_what_it_is():
    """Changes on purpose make other results under the same recipe: say so in the changelog."""
    kept = subset.subset_indices(np.arange(20) % 2, 0.25, seed=0)
    assert kept.tolist() == [3, 4, 7, 8, 11, 16]


def test_a_label_of_real_numbers_is_no_class():
    with pytest.raises(errors.UserError, match=r"holds float32 numbers.*data\.stratify"):
        subset.subset_indices(np.linspace(-1, 1, 1000, dtype=np.float32), 0.2, seed=0)

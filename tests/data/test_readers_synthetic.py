from typing import Any

import numpy as np
import pytest

from hmtl_jax import errors, prepare
from hmtl_jax.data import decode, records, synthetic

SIZES: dict[str, Any] = {"train": 70, "validation": 3, "test": 5}


def run(data_dir, **options: Any):
    prepare.prepare("synthetic", None, data_dir, progress=False, **{**SIZES, **options})


def test_stored_faces_are_the_rendered_ones_with_all_labels(tmp_path):
    run(tmp_path, size=32, seed=3)
    for split, size in SIZES.items():
        source = records.open_split(tmp_path, "synthetic", split)
        rendered = synthetic.render(np.arange(size), split=split, size=32, seed=3)
        assert len(source) == size
        assert set(source.labels) == set(rendered) - {"image"}
        for index in range(size):
            record = source[index]
            np.testing.assert_array_equal(decode.decode(record["image"]), rendered["image"][index])
            for label in source.labels:
                np.testing.assert_array_equal(record[label], rendered[label][index], label)


def test_names_and_types(tmp_path):
    run(tmp_path)
    source = records.open_split(tmp_path, "synthetic", "test")
    for label, names in synthetic.CLASS_NAMES.items():
        assert source.class_names(label) == tuple(names)
    record = source[0]
    assert decode.decode(record["image"]).shape == (64, 64, 3)
    assert record["attributes"].shape == (len(synthetic.ATTRIBUTES),)
    assert record["attributes"].dtype == record["identity"].dtype == np.int32
    assert record["pose"].dtype == record["age"].dtype == np.float32
    assert len({source[index]["key"] for index in range(len(source))}) == 5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"train": 0}, "--train 0: every split needs at least one image"),
        ({"size": 8}, "at least 16 pixels"),
        ({"source": "faces.zip"}, "leave out --source faces.zip"),
    ],
)
def test_refusals_leave_nothing(tmp_path, options, said):
    source = options.pop("source", None)
    with pytest.raises(errors.UserError, match=said):
        prepare.prepare("synthetic", source, tmp_path, progress=False, **(SIZES | options))
    assert records.sets(tmp_path) == {}

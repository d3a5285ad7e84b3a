import csv

import numpy as np
import pytest
import simplejpeg

from hmtl_jax import errors, prepare
from hmtl_jax.data import records
from hmtl_jax.data.readers import fairface
from tests import tiny

SPLITS = ("train", "validation", "test")


def rows(split):
    """Forty rows: every race and gender at least twice, all age groups."""
    for index in range(40):
        age, gender = fairface.AGES[index % 9], fairface.GENDERS[index % 2]
        race = fairface.RACES[index % 7]
        yield [f"{split}/{index + 1}.jpg", age, gender, race, str(index % 3 == 0)]


def draw(root):
    """The official layout."""
    for number, split in enumerate(("train", "val")):
        (root / split).mkdir(parents=True)
        table = [["file", "age", "gender", "race", "service_test"], *rows(split)]
        with open(root / f"fairface_label_{split}.csv", "w", newline="") as file:
            csv.writer(file).writerows(table)
        for index, (name, *_) in enumerate(table[1:]):
            pixels = np.random.default_rng([number, index]).integers(0, 256, (16, 16, 3), np.uint8)
            (root / name).write_bytes(simplejpeg.encode_jpeg(pixels, 80))
    return root


def run(source, data_dir, **options):
    prepare.prepare("fairface", source, data_dir, allow_partial=True, progress=False, **options)
    sources = {split: records.open_split(data_dir, "fairface", split) for split in SPLITS}
    return {split: [source[i] for i in range(len(source))] for split, source in sources.items()}


def refusal(source, **options):
    return tiny.refused(run, source, source.parent / "data", **options)


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_labels_and_bytes(tmp_path):
    source = draw(tmp_path / "source")
    test = run(source, tmp_path / "data")["test"]
    assert [record["key"] for record in test] == [f"val/{index + 1}" for index in range(40)]
    for index, record in enumerate(test):
        assert (record["age_group"], record["gender"]) == (index % 9, index % 2)
        assert (record["race"], record["service_test"]) == (index % 7, int(index % 3 == 0))
        assert record["image"] == (source / f"val/{index + 1}.jpg").read_bytes()
    opened = records.open_split(tmp_path / "data", "fairface", "test")
    assert opened.class_names("gender") == ("male", "female")
    assert opened.class_names("race") == fairface.RACES


def test_validation_is_a_seeded_part_of_every_race_and_gender_of_train(tmp_path):
    source = draw(tmp_path / "source")
    first = run(source, tmp_path / "one")
    again, other = run(source, tmp_path / "two"), run(source, tmp_path / "three", seed=1)
    keys = {split: {record["key"] for record in first[split]} for split in SPLITS}
    assert len(keys["train"]) == 26 and len(keys["validation"]) == 14
    assert keys["train"] | keys["validation"] == {f"train/{index + 1}" for index in range(40)}
    groups = [(int(record["race"]), int(record["gender"])) for record in first["validation"]]
    assert len(set(groups)) == 14
    assert {record["key"] for record in again["validation"]} == keys["validation"]
    assert {record["key"] for record in other["validation"]} != keys["validation"]


def test_spellings_and_places_that_circulate_are_the_same_set(tmp_path):
    plain = run(draw(tmp_path / "source"), tmp_path / "plain")
    source = draw(tmp_path / "other")
    (source / "images").mkdir()
    for split in ("train", "val"):
        (source / split).rename(source / "images" / split)
        for file in (source / "images" / split).iterdir():
            file.rename(file.with_suffix(".JPG"))
        path = source / f"fairface_label_{split}.csv"
        text = path.read_text().replace("False", "FALSE").replace("True", "TRUE")
        path.write_text(text.replace(f"{split}/", f"{split}\\"))
    other = run(source, tmp_path / "data")
    for split, records_ in plain.items():
        for ours, theirs in zip(records_, other[split], strict=True):
            assert ours["key"] == theirs["key"] and ours["image"] == theirs["image"]
            assert ours["service_test"] == theirs["service_test"]


def test_a_subset_is_refused_unless_allowed(tmp_path):
    source = draw(tmp_path / "source")
    with pytest.raises(errors.UserError, match="train has 40 images instead of 86,744"):
        prepare.prepare("fairface", source, tmp_path / "data", progress=False)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("3-9", "9-Mar", "line 3: age '9-Mar' is a date that a spreadsheet made"),
        ("10-19", "19-Oct", "line 4: age '19-Oct' is a date that a spreadsheet made"),
        ("20-29", "20-92", "Unknown age in fairface_label_train.csv, line 5: '20-92'"),
        ("Female", "Femal", "Did you mean 'Female'?"),
        ("East Asian", "east", "Unknown race in fairface_label_train.csv, line 5:"),
        ("True", "yes", "Unknown service_test in fairface_label_train.csv, line 2:"),
        ("train/7.jpg", "train/77.jpg", "line 8 (train/77): train/77.jpg is missing"),
        ("race", "ethnicity", "lacks the column 'race'"),
    ],
)
def test_a_wrong_label_file(tmp_path, old, new, said):
    source = draw(tmp_path / "source")
    edit(source / "fairface_label_train.csv", old, new)
    assert said in refusal(source)


def test_a_name_that_occurs_twice_counts_once(tmp_path, capsys):
    source = draw(tmp_path / "source")
    edit(source / "fairface_label_val.csv", "val/2.jpg", "val/1.jpg")
    assert len(run(source, tmp_path / "data")["test"]) == 39
    assert "Left out: 1 rows of a name seen before." in capsys.readouterr().out


def test_a_share_that_holds_out_nothing_or_all_is_refused(tmp_path):
    assert "--validation 1.0 is no share" in refusal(draw(tmp_path / "source"), validation=1.0)


def test_a_source_of_another_layout(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "should hold fairface_label_train.csv" in refusal(tmp_path / "empty")


def test_the_real_subset(shared_data):
    """Labels of all 16,000 rows; images are decoded by `prepare` alone."""
    survey = fairface.FairFace().survey(shared_data / "fairface96.zip", lambda items, name: items)
    sizes = {split: len(rows) for split, rows in survey.splits.items()}
    assert sizes["train"] + sizes["validation"] == 12_000 and sizes["test"] == 4_000
    assert 1_200 <= sizes["validation"] <= 1_214 and not survey.left_out

"""Readers of one's own pictures: a folder for each class, a table, and pictures without labels."""

import csv
import os
import shutil

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from hmtl_jax.data import decode, records
from tests.data.prepared import edit, keys, picture, read, refusal

# --- folder


def class_folders(root, counts, deep=False):
    for number, (name, count) in enumerate(counts.items()):
        for index in range(count):
            place = root / name / (f"{index % 2}" if deep else "")
            picture(place / f"{index}.jpg", len(str(root)), number, index)
    return root


def test_a_folder_for_each_class_is_split_by_hash(tmp_path, capsys):
    source = class_folders(tmp_path / "mine", {"sad": 20, "happy": 30}, deep=True)
    (source / "happy" / "Thumbs.db").write_bytes(b"not one")
    (source / "happy" / "._1.jpg").write_bytes(b"not one")
    (source / "happy" / "notes.txt").write_text("not one")
    (source / "readme.md").write_text("not one")
    found = read("folder", source, tmp_path / "data", label="expression", name="mine")
    counts = {
        split: np.bincount([int(one["expression"]) for one in rows]).tolist()
        for split, rows in found.items()
    }
    assert counts == {"train": [24, 16], "validation": [3, 2], "test": [3, 2]}
    opened = records.open_split(tmp_path / "data", "mine", "train")
    assert opened.class_names("expression") == ("happy", "sad")
    printed = capsys.readouterr().out
    assert "Left out: 1 files that are no pictures by their name." in printed
    assert "Left out: 1 files outside of a class's folder." in printed
    for record in found["test"]:
        assert record["image"] == (source / record["key"]).read_bytes()
    again = read("folder", source, tmp_path / "again", label="expression", name="mine")
    assert all(keys(again, split) == keys(found, split) for split in found)


def test_a_folder_for_each_split_is_kept(tmp_path):
    for split, count in (("Train", 20), ("val", 4), ("testing", 5)):
        class_folders(tmp_path / "mine" / split, {"a": count, "b": count})
    found = read("folder", tmp_path / "mine", tmp_path / "data")
    assert {split: len(rows) for split, rows in found.items()} == {
        "train": 40, "validation": 8, "test": 10,
    }  # fmt: skip
    shutil.rmtree(tmp_path / "mine" / "val")
    # Of train and test alone, a tenth of each class of train becomes validation.
    found = read("folder", tmp_path / "mine", tmp_path / "other")
    assert {split: len(rows) for split, rows in found.items()} == {
        "train": 36, "validation": 4, "test": 10,
    }  # fmt: skip


def test_a_zip_of_folders_gives_the_same(tmp_path):
    source = class_folders(tmp_path / "wrap" / "mine", {"a": 12, "b": 12})
    whole = read("folder", source, tmp_path / "data")
    archive = shutil.make_archive(str(tmp_path / "mine"), "zip", tmp_path / "wrap")
    zipped = read("folder", archive, tmp_path / "other")
    assert {split: keys(zipped, split) for split in zipped} == {
        split: keys(whole, split) for split in whole
    }
    assert zipped["test"][0]["image"] == whole["test"][0]["image"]


def test_large_pictures_shrink_and_small_ones_keep_their_bytes(tmp_path):
    picture(tmp_path / "mine" / "a" / "large.jpg", 1, size=(60, 90))
    for index in range(8):
        picture(tmp_path / "mine" / "a" / f"{index}.jpg", 2, index, size=(20, 30))
    found = read("folder", tmp_path / "mine", tmp_path / "data", image_size=45)
    every = {record["key"]: record["image"] for rows in found.values() for record in rows}
    assert decode.decode(every["a/large.jpg"]).shape == (30, 45, 3)
    assert every["a/0.jpg"] == (tmp_path / "mine" / "a" / "0.jpg").read_bytes()


def test_an_upright_picture_stays_upright_once(tmp_path):
    """A picture that EXIF turns is turned when it is read, whether it was shrunk or not."""
    pixels = picture(tmp_path / "mine" / "a" / "0.jpg", 1, size=(40, 60))
    plain = (tmp_path / "mine" / "a" / "0.jpg").read_bytes()
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    turned = plain[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + plain[2:]
    (tmp_path / "mine" / "a" / "0.jpg").write_bytes(turned)
    for index in range(1, 6):
        picture(tmp_path / "mine" / "a" / f"{index}.jpg", 2, index)
    for size, shape in ((0, (60, 40, 3)), (30, (30, 20, 3))):
        found = read("folder", tmp_path / "mine", tmp_path / f"data{size}", image_size=size)
        (image,) = [
            one["image"] for rows in found.values() for one in rows if one["key"] == "a/0.jpg"
        ]
        assert decode.decode(image).shape == shape
    assert pixels.shape == (40, 60, 3)


def test_folders_with_something_wrong(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "should hold a folder for each class" in refusal("folder", tmp_path / "empty")
    source = class_folders(tmp_path / "mine", {"many": 20, "few": 2})
    assert "Class 'few' of label has 2 pictures, too few to draw test and validation from" in (
        refusal("folder", source)
    )
    assert "leave nothing to train on" in refusal("folder", source, test=0.5, validation=0.5)
    assert "--test 1.5 is no share" in refusal("folder", source, test=1.5)
    (source / "many" / "0.jpg").write_bytes(b"no picture")
    shutil.rmtree(source / "few")
    assert "many/0.jpg (many/0.jpg): The image is damaged" in refusal("folder", source)
    (source / "many" / "0.jpg").unlink()
    broken = os.fsencode(source / "many") + b"/\xff.jpg"
    with open(broken, "wb") as file:
        file.write((source / "many" / "1.jpg").read_bytes())
    assert "is not UTF-8; rename it" in refusal("folder", source)


def test_a_link_to_where_it_lies_is_not_followed_for_ever(tmp_path):
    source = class_folders(tmp_path / "mine", {"a": 6, "b": 6})
    (source / "a" / "again").symlink_to(source, target_is_directory=True)
    found = read("folder", source, tmp_path / "data")
    assert sum(map(len, found.values())) == 12


# --- unlabelled


def test_pictures_without_labels(tmp_path):
    source = class_folders(tmp_path / "mine", {"a": 3, "b/c": 3})
    picture(source / "top.jpg", 5, size=(300, 600))
    (source / "video.mp4").write_bytes(b"no picture")
    found = read("unlabelled", source, tmp_path / "data")
    assert set(found) == {"train"} and len(found["train"]) == 7
    assert set(found["train"][0]) == {"image", "key"}
    (top,) = [record for record in found["train"] if record["key"] == "top.jpg"]
    assert decode.decode(top["image"]).shape == (128, 256, 3)
    (tmp_path / "empty").mkdir()
    assert "holds no picture" in refusal("unlabelled", tmp_path / "empty")


# --- table

HEADER = ("image", "age", "smile", "tags", "yaw", "pitch", "person", "note")


def rows(count=40):
    for index in range(count):
        yield (
            f"faces/{index}.jpg",
            str(20.5 + index),
            ("yes", "no", "")[index % 3],
            ("glasses|beard", "beard", "", "hat")[index % 4],
            str(index - 20),
            "" if index == 3 else str(index / 2),
            f"p{index // 4}",
            f"remark {index}",
        )


def sheet(root, name="faces.csv", count=40, header=HEADER):
    root.mkdir(parents=True, exist_ok=True)
    with open(root / name, "w", newline="") as file:
        mark = "\t" if name.endswith("tsv") else ","
        csv.writer(file, delimiter=mark).writerows([header, *rows(count)])
    for index in range(count):
        picture(root / "faces" / f"{index}.jpg", index)
    return root / name


def every(found):
    return {record["key"]: record for part in found.values() for record in part}


@pytest.mark.parametrize("name", ["faces.csv", "faces.tsv"])
def test_a_table_whose_kinds_are_said(tmp_path, name, capsys):
    labels = "age:number,smile:class,accessory=tags:tags,pose=yaw+pitch:number"
    source = sheet(tmp_path / "mine", name)
    found = read("table", source, tmp_path / "data", labels=labels, name="mine")
    assert {split: len(part) for split, part in found.items()} == {
        "train": 28, "validation": 6, "test": 6,
    }  # fmt: skip
    opened = records.open_split(tmp_path / "data", "mine", "train")
    assert opened.class_names("smile") == ("no", "yes")
    assert opened.class_names("accessory") == ("beard", "glasses", "hat")
    assert opened.class_names("pose") == ("yaw", "pitch")
    for key, record in every(found).items():
        index = int(key.split("/")[1].split(".")[0])
        assert record["age"] == np.float32(20.5 + index)
        assert record["smile"] == (1, 0, -1)[index % 3]
        expected = ([1, 1, 0], [1, 0, 0], [-1, -1, -1], [0, 0, 1])[index % 4]
        assert record["accessory"].tolist() == expected
        assert record["pose"][0] == index - 20
        assert np.isnan(record["pose"][1]) == (index == 3)
        assert record["image"] == (tmp_path / "mine" / key).read_bytes()
    printed = capsys.readouterr().out
    assert "label smile: class (no, yes), 13 missing" in printed
    for task in (
        'age = recipe.task("regression", labels=("age",), centre=40, scale=11.5)',
        'smile = recipe.task("classification", label="smile")',
        'accessory = recipe.task("multilabel", labels=("accessory",))',
    ):
        assert f"  config.tasks.{task}\n" in printed


def test_yes_and_no_are_one_class_or_a_vector(tmp_path):
    source = sheet(tmp_path / "mine")
    lines = source.read_text().splitlines()
    more = ["beard,hat", *(f"{i % 2},{('True', 'no', '')[i % 3]}" for i in range(40))]
    source.write_text("\n".join(f"{line},{two}" for line, two in zip(lines, more, strict=True)))
    labels = "smile:yesno,worn=beard+hat:yesno"
    found = read("table", source, tmp_path / "data", labels=labels)
    for key, record in every(found).items():
        index = int(key.split("/")[1].split(".")[0])
        assert record["smile"] == (1, 0, -1)[index % 3]
        assert record["worn"].tolist() == [index % 2, (1, 0, -1)[index % 3]]
    opened = records.open_split(tmp_path / "data", "table", "train")
    assert opened.class_names("worn") == ("beard", "hat")


def test_kinds_are_inferred_and_said(tmp_path, capsys):
    found = read("table", sheet(tmp_path / "mine"), tmp_path / "data", name="mine")
    printed = capsys.readouterr().out
    for line in (
        "label age: number",
        "label smile: class (no, yes), 13 missing",
        "label tags: tags (beard, glasses, hat), 10 missing",
        "label yaw: number",
        "label pitch: number, 1 missing",
        "label person: class (p0, p1, p2, p3, p4, p5, p6, p7, p8, p9)",
        "left out: note, with 40 texts in 40 rows",
    ):
        assert line in printed
    record = every(found)["faces/6.jpg"]
    assert set(record) == {
        "image", "key", "age", "smile", "tags", "yaw", "pitch", "person",
    }  # fmt: skip


def test_rows_of_a_group_stay_together(tmp_path):
    found = read(
        "table", sheet(tmp_path / "mine"), tmp_path / "data", labels="age:number", group="person",
        test=0.2, validation=0.2,
    )  # fmt: skip
    people = [{int(key.split("/")[1][:-4]) // 4 for key in keys(found, split)} for split in found]
    assert sum(map(len, people)) == 10 == len(set().union(*people)) and len(people) == 3


def test_a_column_of_splits(tmp_path):
    source = sheet(tmp_path / "mine")
    lines = source.read_text().splitlines()
    names = ["Training", "valid", "test", "train"]
    said = [lines[0] + ",Usage", *(f"{line},{names[i % 4]}" for i, line in enumerate(lines[1:]))]
    source.write_text("\n".join(said))
    found = read("table", source, tmp_path / "data", labels="age:number")
    assert {split: len(part) for split, part in found.items()} == {
        "train": 20, "validation": 10, "test": 10,
    }  # fmt: skip
    edit(source, "Training", "Kaggle")
    assert "names the splits Kaggle, Training, test, train, valid" in refusal("table", source)


# An empty list is none of the tags, null is not known.
WORN = (["hat"], ["beard", "hat"], [], None)
WEARS = ([0, 1], [1, 1], [0, 0], [-1, -1])


def parquet(path, first=0, count=20, struct=True):
    """As hubs publish them: a struct of bytes and path, and an integer label."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = []
    for index in range(first, first + count):
        picture(path.parent / "drawn.jpg", index)
        images.append((path.parent / "drawn.jpg").read_bytes())
    cells = [{"bytes": one, "path": None} for one in images] if struct else images
    table = pyarrow.table(
        {
            "image": cells,
            "label": [index % 3 for index in range(first, first + count)],
            "age": [None if index == 5 else 20.0 + index for index in range(first, first + count)],
            "worn": [WORN[index % 4] for index in range(first, first + count)],
        }
    )
    (path.parent / "drawn.jpg").unlink()
    pyarrow.parquet.write_table(table, path, row_group_size=6)
    return images


@pytest.mark.parametrize("struct", [True, False])
def test_pictures_in_a_parquet_file(tmp_path, struct):
    images = parquet(tmp_path / "mine.parquet", count=30, struct=struct)
    found = read("table", tmp_path / "mine.parquet", tmp_path / "data")
    assert len(every(found)) == 30
    for key, record in every(found).items():
        index = int(key.split("/")[1])
        assert record["image"] == images[index] and record["label"] == index % 3
        assert np.isnan(record["age"]) if index == 5 else record["age"] == 20 + index
        assert record["worn"].tolist() == WEARS[index % 4]


def test_parquet_files_of_splits(tmp_path):
    """train-00000-of-00002.parquet and so on, in a folder `data`."""
    for number in range(2):
        parquet(tmp_path / "hub" / "data" / f"train-0000{number}-of-00002.parquet", 20 * number)
    images = parquet(tmp_path / "hub" / "data" / "test-00000-of-00001.parquet", 60)
    found = read("table", tmp_path / "hub", tmp_path / "data")
    # Of splits that are there, validation alone is not: a part of train, two of each class.
    assert {split: len(part) for split, part in found.items()} == {
        "test": 20, "train": 34, "validation": 6,
    }  # fmt: skip
    assert [record["image"] for record in found["test"]] == images
    alone = tmp_path / "alone"
    (tmp_path / "hub" / "data" / "test-00000-of-00001.parquet").rename(tmp_path / "gone.parquet")
    found = read("table", tmp_path / "hub", alone, test=0.0, validation=0.0)
    assert set(found) == {"train"}


def test_tables_with_something_wrong(tmp_path):
    source = sheet(tmp_path / "mine")
    text = source.read_text()

    def said(old="", new="", **options):
        source.write_text(text.replace(old, new, 1) if old else text)
        return refusal("table", source, **options)

    assert "faces.csv, line 3: age is '9-Mar', no number; a spreadsheet may have made a date" in (
        said("21.5", "9-Mar", labels="age:number")
    )
    assert "line 2: smile is 'maybe', neither yes nor no" in said(
        ",yes,", ",maybe,", labels="smile:yesno"
    )
    assert "'faces/0.jpg' has a row already" in said("faces/1.jpg", "faces/0.jpg")
    assert "faces.csv, line 3: image is empty" in said("faces/1.jpg", "")
    assert "faces/1000.jpg is missing" in said("faces/1.jpg", "faces/1000.jpg")
    assert "leads out of" in said("faces/1.jpg", "../1.jpg")
    assert "line 3: 7 cells instead of the header's 8" in said(",remark 1\n", "\n")
    assert "Unknown column of --labels in faces.csv: 'aeg'" in said(labels="aeg:number")
    assert "Unknown kind of age in --labels: 'numbr'" in said(labels="age:numbr")
    assert "--labels has 'age number'" in said(labels="age number")
    assert "Unknown column of --group in faces.csv: 'who'" in said(group="who")
    assert "has no column of pictures among photo, age" in said("image,", "photo,")
    assert "note has too many values to be a class" in said(labels="note")
    assert "joins columns; its kind must be number or yesno" in said(labels="a=age+yaw:class")
    assert "has the column 'age' twice" in said("smile", "age")
    source.write_text(text.replace(",", ";"))
    assert "is separated by ';'" in refusal("table", source)
    source.write_text("image,age\n")
    assert "has no row below its header" in refusal("table", source)
    source.write_bytes(b"image,age\nfaces/0.jpg,\xff\n")
    assert "is not UTF-8 text" in refusal("table", source)
    (tmp_path / "mine.parquet").write_bytes(b"PAR1, or not")
    assert "is damaged, or no parquet file" in refusal("table", tmp_path / "mine.parquet")
    assert "is no table; give a .csv" in refusal("table", tmp_path / "mine" / "faces" / "0.jpg")
    assert "does not exist" in refusal("table", tmp_path / "nothing.csv")
    assert "holds no parquet file" in refusal("table", tmp_path / "mine")

"""Readers of sets whose labels stand in lists, or in the pictures' names."""

import collections
import csv

import numpy as np
import pytest
from PIL import Image

from hmtl_jax.data import decode, faces
from hmtl_jax.data.readers import celeba, fer2013, mtfl, rafdb, utkface
from tests.data.prepared import edit, keys, picture, read, refusal

# --- FER2013


def fer_csv(root, name="fer2013.csv", header=("emotion", "pixels", "Usage")):
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    cells = {"emotion": 0, "pixels": 1, " pixels": 1, "Usage": 2, " Usage": 2}
    with open(root / name, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(header)
        for usage in ("Training", "PublicTest", "PrivateTest"):
            for index in range(7):
                pixels = " ".join(map(str, rng.integers(0, 256, 2304)))
                row = (index, pixels, usage)
                table.writerow([row[cells[column]] for column in header])
    return root


@pytest.mark.parametrize(
    "name, header",
    [
        ("fer2013.csv", ("emotion", "pixels", "Usage")),
        ("icml_face_data.csv", ("emotion", " Usage", " pixels")),
    ],
)
def test_fer2013_in_both_its_forms(tmp_path, name, header):
    found = read("fer2013", fer_csv(tmp_path / "source", name, header), tmp_path / "data")
    for split in ("train", "validation", "test"):
        assert [record["expression"] for record in found[split]] == list(range(7))
    first = np.random.default_rng(0).integers(0, 256, 2304).reshape(48, 48)
    np.testing.assert_array_equal(decode.decode(found["train"][0]["image"])[..., 0], first)
    assert fer2013.EXPRESSIONS[3] == "happiness" and fer2013.EXPRESSIONS[6] == "neutral"


def test_fer2013_refuses_what_no_usage_and_no_emotion_is(tmp_path):
    source = fer_csv(tmp_path / "source")
    edit(source / "fer2013.csv", "PublicTest", "Public")
    assert "Unknown Usage in fer2013.csv, line 9: 'Public'" in refusal("fer2013", source)
    source = fer_csv(tmp_path / "source")
    edit(source / "fer2013.csv", "\n6,", "\n7,")
    assert "Unknown emotion in fer2013.csv, line 8: '7'" in refusal("fer2013", source)


# --- RAF-DB


def raf_tree(root, groups=True):
    lines = []
    for split, digits, n in (("train", 5, 28), ("test", 4, 7)):
        for index in range(n):
            name = f"{split}_{index + 1:0{digits}d}"
            picture(root / rafdb.IMAGES / f"{name}_aligned.jpg", len(lines))
            lines.append(f"{name}.jpg {index % 7 + 1}\n")
            if groups:
                file = root / rafdb.ATTRIBUTES / f"{name}_manu_attri.txt"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text("1.5\t2.5\n" * 5 + f"{index % 3}\n{index % 3}\n{index % 5}\n")
    (root / "EmoLabel").mkdir()
    (root / rafdb.LIST).write_text("".join(lines))
    return root


def test_rafdb_counts_from_one_and_unsure_is_missing(tmp_path):
    found = read("rafdb", raf_tree(tmp_path / "source" / "basic").parent, tmp_path / "data")
    assert keys(found, "test") == [f"test_{index + 1:04d}" for index in range(7)]
    assert [record["expression"] for record in found["test"]] == list(range(7))
    assert [record["gender"] for record in found["test"]] == [0, 1, -1, 0, 1, -1, 0]
    assert [record["race"] for record in found["test"]] == [0, 1, 2, 0, 1, 2, 0]
    assert [record["age_group"] for record in found["test"]] == [0, 1, 2, 3, 4, 0, 1]
    # One of four of each class is held out.
    held = collections.Counter(int(record["expression"]) for record in found["validation"])
    assert held == dict.fromkeys(range(7), 1) and len(found["train"]) == 21
    plain = read("rafdb", raf_tree(tmp_path / "plain", groups=False), tmp_path / "other")
    assert "gender" not in plain["test"][0]


def test_rafdb_refuses(tmp_path):
    source = raf_tree(tmp_path / "source")
    edit(source / rafdb.LIST, "train_00002.jpg 2", "train_00002.jpg 8")
    assert "Unknown expression in EmoLabel/list_patition_label.txt, line 2: '8'" in refusal(
        "rafdb", source
    )
    edit(source / rafdb.LIST, "train_00002.jpg 8", "train_00002.jpg")
    assert "line 2: 1 words instead of a name and a number" in refusal("rafdb", source)
    edit(source / rafdb.LIST, "train_00002.jpg", "other_00002.jpg 1")
    assert "'other_00002.jpg' begins with neither train nor test" in refusal("rafdb", source)
    edit(source / rafdb.LIST, "other_00002.jpg", "train_00001.jpg")
    (source / rafdb.IMAGES / "train_00003_aligned.jpg").unlink()
    assert "train_00003_aligned.jpg is missing" in refusal("rafdb", source)
    (source / rafdb.ATTRIBUTES / "train_00005_manu_attri.txt").write_text("1\n")
    assert "train_00005_manu_attri.txt has 1 lines instead of 8" in refusal("rafdb", source)


# --- UTKFace


def utk_tree(root):
    for index in range(60):
        name = f"{index + 1}_{index % 2}_{index % 5}_2017011617451{index:04d}.jpg.chip.jpg"
        picture(root / name, index)
    odd = (
        "24_0_1_20170116220224657 .jpg.chip.jpg",
        "39_1_20170116174525125.jpg.chip.jpg",
        "55_0_0_20170116232725357jpg.chip.jpg",
        "61_1_20170109150557335.jpg.chip.jpg",
        "9_1_2_20161219204347420.jpg",
    )
    for index, name in enumerate(odd):
        picture(root / name, 100 + index)
    (root / "notes.txt").write_text("no face")
    (root / "Thumbs.db").write_text("no face")
    return root


def test_utkface_reads_names_with_and_without_all_fields(tmp_path, capsys):
    found = read("utkface", utk_tree(tmp_path / "UTKFace").parent, tmp_path / "data")
    every = {record["key"]: record for split in found.values() for record in split}
    assert len(every) == 65
    lacking = every["39_1_20170116174525125.jpg.chip.jpg"]
    assert (lacking["age"], lacking["gender"], lacking["race"]) == (39, -1, -1)
    blank = every["24_0_1_20170116220224657 .jpg.chip.jpg"]
    assert (blank["age"], blank["gender"], blank["race"]) == (24, 0, 1)
    dotless = every["55_0_0_20170116232725357jpg.chip.jpg"]
    assert (dotless["age"], dotless["gender"], dotless["race"]) == (55, 0, 0)
    assert "Left out: 1 files that are not named as faces." in capsys.readouterr().out
    again = read("utkface", tmp_path / "UTKFace", tmp_path / "again")
    assert all(keys(again, split) == keys(found, split) for split in found)
    assert len(found["test"]) > len(found["validation"]) > 5


def test_utkface_refuses_numbers_out_of_range(tmp_path):
    root = utk_tree(tmp_path / "UTKFace")
    for name, words in {
        "200_0_0_20170116174525125.jpg.chip.jpg": "age 200 is out of range 0 to 116",
        "20_3_0_20170116174525125.jpg.chip.jpg": "gender 3 is out of range 0 to 1 (male, female)",
        "20_0_7_20170116174525125.jpg.chip.jpg": "race 7 is out of range 0 to 4",
    }.items():
        picture(root / name, 7)
        assert words in refusal("utkface", root)
        (root / name).unlink()
    (tmp_path / "empty").mkdir()
    assert "found there: nothing" in refusal("utkface", tmp_path / "empty")


# --- CelebA

NAMES = ("Bangs", "Male", "Smiling")


def celeba_tree(root, comma=False):
    """Thirty faces of ten people; a person is in one split."""
    root.mkdir()
    end, mark = ("csv", ",") if comma else ("txt", " ")
    attributes = [] if comma else ["30"]
    attributes.append(mark.join(("image_id", *NAMES)) if comma else " ".join(NAMES) + " ")
    partition, people = (["image_id,partition"] if comma else []), []
    for index in range(30):
        name, person = f"{index + 1:06d}.jpg", index // 3
        picture(root / "img_align_celeba" / name, index)
        values = ("1" if index >> bit & 1 else "-1" for bit in range(3))
        attributes.append(f"{name}{mark if comma else '  '}{mark.join(values)}")
        partition.append(f"{name}{mark}{max(0, person - 7)}")
        people.append(f"{name} {person}")
    (root / f"list_attr_celeba.{end}").write_text("\n".join(attributes) + "\n")
    (root / f"list_eval_partition.{end}").write_text("\n".join(partition) + "\n")
    (root / "identity_CelebA.txt").write_text("\n".join(people) + "\n")
    return root


@pytest.mark.parametrize("comma", [False, True])
def test_celeba_in_both_its_forms(tmp_path, comma):
    source = celeba_tree(tmp_path / "source", comma)
    found = read("celeba", source, tmp_path / "data")
    assert {split: len(rows) for split, rows in found.items()} == {
        "train": 24, "validation": 3, "test": 3,
    }  # fmt: skip
    for index, record in enumerate(found["train"]):
        assert record["attributes"].tolist() == [index >> bit & 1 for bit in range(3)]
        assert record["gender"] == 1 - record["attributes"][1]  # Male → male, which is 0
        assert record["identity"] == index // 3
        assert (
            record["image"] == (source / "img_align_celeba" / f"{record['key']}.jpg").read_bytes()
        )


def test_celeba_takes_whole_people(tmp_path, capsys):
    source = celeba_tree(tmp_path / "source")
    found = read("celeba", source, tmp_path / "data", people=0.3)
    people = {split: {int(one["identity"]) for one in rows} for split, rows in found.items()}
    assert {split: len(of) for split, of in people.items()} == {
        "train": 3, "validation": 1, "test": 1,
    }  # fmt: skip
    assert len(found["train"]) == 9
    assert "Left out: 15 faces of other people." in capsys.readouterr().out


def test_celeba_of_a_zip_beside_its_lists(tmp_path):
    import shutil

    source = celeba_tree(tmp_path / "source")
    whole = read("celeba", source, tmp_path / "data")
    shutil.make_archive(str(source / "img_align_celeba"), "zip", source, "img_align_celeba")
    shutil.rmtree(source / "img_align_celeba")
    zipped = read("celeba", source, tmp_path / "other")
    assert keys(zipped, "train") == keys(whole, "train")
    assert zipped["test"][0]["image"] == whole["test"][0]["image"]


def test_celeba_refuses(tmp_path):
    source = celeba_tree(tmp_path / "source")
    edit(source / "list_attr_celeba.txt", "Male", "Mail")
    assert "does not name its attributes, Male among them" in refusal("celeba", source)
    edit(source / "list_attr_celeba.txt", "Mail", "Male")
    edit(source / "list_attr_celeba.txt", "000002.jpg  1 -1", "000002.jpg  0 -1")
    assert "Unknown Bangs in list_attr_celeba.txt, line 4: '0'" in refusal("celeba", source)
    edit(source / "list_attr_celeba.txt", "000002.jpg  0 -1", "000002.jpg -1")
    assert "line 4: 2 values instead of 3" in refusal("celeba", source)
    edit(source / "list_eval_partition.txt", "000003.jpg 0", "000003.jpg 3")
    assert "line 3: '000003.jpg 3' is not a face's name and a number from 0 to 2" in refusal(
        "celeba", source
    )
    (source / "identity_CelebA.txt").unlink()
    edit(source / "list_eval_partition.txt", "000003.jpg 3", "000003.jpg 0")
    assert "--people needs identity_CelebA.txt" in refusal("celeba", source, people=0.5)
    assert "--people 0 is no share" in refusal("celeba", source, people=0)


def test_the_official_attributes_are_read(shared_data):
    lines = celeba._table(
        celeba.Tree(shared_data / "formats" / "celeba"), "list_attr_celeba.first400.txt"
    )
    _, names = next(lines)
    assert len(names) == celeba.ATTRIBUTES and names[20] == "Male"
    rows = [celeba._values(cells, names, where) for where, (_, *cells) in lines]
    assert len(rows) == 400 and rows[0][names.index("Arched_Eyebrows")] == 1


# --- MTFL


def mtfl_tree(root):
    """Faces of 30 pixels in pictures of 64; the lists have blanks and backslashes as published."""
    for path, n in ((mtfl.LISTS["train"], 40), (mtfl.LISTS["test"], 10)):
        lines = []
        for index in range(n):
            name = (
                f"AFLW\\{path[:5]}{index}.jpg" if index % 2 else f"lfw_5590/{path[:5]}{index}.jpg"
            )
            picture(root / name.replace("\\", "/"), n, index, size=(64, 64))
            x, y = "22.5 42.5 32.5 24.5 40.5", "24.5 24.5 32.5 40.5 40.5"
            labels = f"{index % 2 + 1} {index // 2 % 2 + 1} {index % 2 + 1} {index % 5 + 1}"
            lines.append(f" {name} {x} {y} {labels} \n")
        (root / path).write_text("".join(lines) + "\n")
    return root


def test_mtfl_cuts_faces_and_turns_yes_to_one(tmp_path):
    found = read("mtfl", mtfl_tree(tmp_path / "source"), tmp_path / "data", image_size=0)
    assert len(found["test"]) == 10 and len(found["train"]) + len(found["validation"]) == 40
    assert keys(found, "test")[:2] == ["lfw_5590/testi0", "AFLW/testi1"]
    for index, record in enumerate(found["test"]):
        assert record["gender"] == index % 2 and record["pose_class"] == index % 5
        assert record["smile"] == 1 - index // 2 % 2 and record["glasses"] == 1 - index % 2
        side = decode.decode(record["image"]).shape[0]
        assert side == 50  # 2.5 times the twenty pixels between the eyes
        # The middle of the landmarks' box is the middle of the picture.
        middle = (record["landmarks"].min(0) + record["landmarks"].max(0)) / 2
        np.testing.assert_allclose(middle, side / 2, atol=1)
        np.testing.assert_allclose(np.ptp(record["landmarks"], axis=0), [20, 16])
    small = read("mtfl", tmp_path / "source", tmp_path / "other", image_size=25)
    np.testing.assert_allclose(np.ptp(small["test"][0]["landmarks"], axis=0), [10, 8])


def test_mtfl_turns_faces_upright_and_their_landmarks_with_them(tmp_path):
    source = mtfl_tree(tmp_path / "source")
    points = [(30, 20), (44, 34), (29, 35), (15, 37), (27, 49)]  # leaning by 45 degrees
    image = np.zeros((64, 64, 3), np.uint8)
    for x, y in points:
        image[y - 1 : y + 2, x - 1 : x + 2] = 255
    Image.fromarray(image).save(source / "lfw_5590" / "testi0.jpg", quality=95)
    said = " ".join(str(float(value)) for value in np.array(points).T.ravel())
    edit(source / "testing.txt", "22.5 42.5 32.5 24.5 40.5 24.5 24.5 32.5 40.5 40.5", said)
    found = read("mtfl", source, tmp_path / "data", align=True, image_size=112)
    record = found["test"][0]
    np.testing.assert_allclose(record["landmarks"], faces.TEMPLATE * 112, atol=6)
    stored = decode.decode(record["image"])
    assert stored.shape == (112, 112, 3)
    for x, y in record["landmarks"].round().astype(int):
        assert stored[y, x].min() > 120
    assert stored[20, 56].max() < 60


def test_mtfl_refuses(tmp_path):
    source = mtfl_tree(tmp_path / "source")
    assert "--align needs an --image_size" in refusal("mtfl", source, align=True, image_size=0)
    edit(source / "testing.txt", "22.5 42.5", "22.5")
    assert "testing.txt, line 1: 14 words instead of 15" in refusal("mtfl", source)
    edit(source / "testing.txt", "22.5 32.5", "22.5 x 32.5")
    assert "testing.txt, line 1: a landmark is no number" in refusal("mtfl", source)
    edit(source / "testing.txt", "22.5 x", "22.5 42.5")
    edit(source / "training.txt", " 1 1 1 1 ", " 3 1 1 1 ")
    assert "Unknown gender in training.txt, line 1: '3'" in refusal("mtfl", source)


@pytest.mark.parametrize("name", ["rafdb", "utkface", "celeba"])
def test_large_pictures_shrink_and_small_ones_keep_their_bytes(tmp_path, name):
    tree = {"rafdb": raf_tree, "utkface": utk_tree, "celeba": celeba_tree}[name]
    source = tree(tmp_path / "UTKFace")
    for size, side in ((12, 12), (24, 24)):
        found = read(name, source, tmp_path / f"data{size}", image_size=size)
        image = found["test"][0]["image"]
        assert decode.decode(image).shape == (side, side, 3)
    assert image in [path.read_bytes() for path in source.rglob("*.jpg")]


def test_published_counts_are_asked_for(tmp_path):
    """Without --allow_partial a part of a set is refused, with what it lacks."""
    trees = {
        "fer2013": (fer_csv(tmp_path / "fer"), "train has 7 faces instead of 28,709"),
        "rafdb": (raf_tree(tmp_path / "raf"), "train has 4 of surprise instead of 1,290"),
        "utkface": (utk_tree(tmp_path / "UTKFace"), "it has 65 faces instead of 23,708"),
        "celeba": (celeba_tree(tmp_path / "celeba"), "train has 24 faces instead of 162,770"),
        "mtfl": (mtfl_tree(tmp_path / "mtfl"), "train has 40 faces instead of 10,000"),
    }
    for name, (source, words) in trees.items():
        assert words in refusal(name, source, allow_partial=False)
    assert utkface.PUBLISHED == 23_708 and sum(rafdb.PUBLISHED["train"]) == 12_271

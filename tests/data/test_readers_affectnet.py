import csv
import shutil

import numpy as np
import pytest
import simplejpeg

from hmtl_jax import errors, prepare
from hmtl_jax.data import decode, faces, records
from hmtl_jax.data.readers import affectnet
from hmtl_jax.data.readers.reader import Row, Survey
from tests import tiny

PER_CLASS = 4


def picture(seed, size=32):
    """Smooth enough for JPEG to keep; no two seeds alike."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(size // 4, 0).repeat(size // 4, 1))


def draw_2021(root, size=32):
    """`{train,val}_set`; scalars are 0-d arrays, every second one a string as in the release."""
    number = 0
    for folder, per_class in (("train_set", PER_CLASS), ("val_set", 1)):
        (root / folder / "images").mkdir(parents=True)
        (root / folder / "annotations").mkdir()
        for index in range(per_class * 8):
            stem = root / folder / "annotations" / str(index)
            kind = str if index % 2 else np.float64
            np.save(f"{stem}_exp.npy", np.array(str(index % 8) if index % 2 else index % 8))
            np.save(f"{stem}_val.npy", np.array(kind(index / 100)))
            np.save(f"{stem}_aro.npy", np.array(kind(-index / 100)))
            np.save(f"{stem}_lnd.npy", np.arange(136.0) / 136 * size)
            encoded = simplejpeg.encode_jpeg(picture(number, size), 80)
            (root / folder / "images" / f"{index}.jpg").write_bytes(encoded)
            number += 1
    return root


def row_2017(name, expression, box=(8, 8, 16, 16), valence=0.5, arousal=-0.25):
    x, y, width, height = box
    points = ";".join(f"{x + width * i / 67};{y + height * i / 67}" for i in range(68))
    return [name, *box, points, expression, valence, arousal]


def draw_2017(root, lists="", images="Manually_Annotated_Images", per_class=PER_CLASS):
    """csv lists and whole photographs; expressions 8 to 10 are to be left out."""
    (root / lists).mkdir(parents=True, exist_ok=True)
    number = 0
    for file, count in (("training.csv", per_class), ("validation.csv", 1)):
        table = [list(affectnet.COLUMNS_2017)]
        for index in range(count * 11):
            name = f"{index % 3}/{file[:3]}{index}.jpg"
            (root / images / name).parent.mkdir(parents=True, exist_ok=True)
            encoded = simplejpeg.encode_jpeg(picture(number), 95)
            (root / images / name).write_bytes(encoded)
            missing = index % 11 >= 8
            scores = {"valence": -2, "arousal": -2} if missing else {}
            table.append(row_2017(name, index % 11, **scores))
            number += 1
        with open(root / lists / file, "w", newline="") as handle:
            csv.writer(handle).writerows(table)
    return root


def run(source, data_dir, **options):
    prepare.prepare("affectnet", source, data_dir, allow_partial=True, progress=False, **options)
    return {
        split: records.open_split(data_dir, "affectnet", split)
        for split in ("train", "validation", "test")
    }


def refusal(source, **options):
    return tiny.refused(run, source, source.parent / "data", **options)


def all_of(source):
    return [source[index] for index in range(len(source))]


@pytest.mark.parametrize("draw", [draw_2021, draw_2017])
def test_both_releases(tmp_path, draw):
    splits = run(draw(tmp_path / "source"), tmp_path / "data")
    # One of the four of each class is held out: 5 %, rounded up.
    assert {split: len(source) for split, source in splits.items()} == {
        "train": 24, "validation": 8, "test": 8,
    }  # fmt: skip
    for split, count in (("train", 3), ("validation", 1), ("test", 1)):
        labels = [record["expression"] for record in all_of(splits[split])]
        assert np.bincount(labels).tolist() == [count] * 8
    keys = {record["key"] for split in ("train", "validation") for record in all_of(splits[split])}
    assert len(keys) == 32
    assert splits["train"].class_names("expression") == affectnet.EXPRESSIONS
    record = splits["test"][0]
    assert record["valence"].dtype == record["arousal"].dtype == np.float32


def test_labels_and_bytes_of_2021(tmp_path):
    source = draw_2021(tmp_path / "source")
    test = all_of(run(source, tmp_path / "data")["test"])
    assert [record["key"] for record in test] == [str(index) for index in range(8)]
    for index, record in enumerate(test):
        assert record["expression"] == index
        assert record["valence"] == np.float32(index / 100) == -record["arousal"]
        # A picture that is small enough is copied, not compressed again.
        original = source / "val_set" / "images" / f"{index}.jpg"
        assert record["image"] == original.read_bytes()


def test_numbers_that_nobody_annotated_are_nan(tmp_path):
    source = draw_2021(tmp_path / "source")
    np.save(source / "val_set" / "annotations" / "5_aro.npy", np.array(-2.0))
    record = run(source, tmp_path / "data")["test"][5]
    assert np.isnan(record["arousal"]) and record["valence"] == np.float32(0.05)


def test_larger_images_shrink_and_landmarks_with_them(tmp_path):
    source = draw_2021(tmp_path / "source", size=64)
    record = run(source, tmp_path / "data", image_size=32, landmarks=True)["test"][3]
    stored = decode.decode(record["image"])
    assert stored.shape == (32, 32, 3)
    original = picture(PER_CLASS * 8 + 3, 64)[::2, ::2]
    assert np.abs(stored.astype(int) - original).mean() < 4
    expected = (np.arange(136) / 136 * 32).reshape(68, 2)
    np.testing.assert_allclose(record["landmarks"], expected, rtol=1e-6)


def test_the_face_box_of_2017_is_cut_out(tmp_path):
    source = draw_2017(tmp_path / "source")
    record = run(source, tmp_path / "data", margin=0.0, landmarks=True)["test"][0]
    stored = decode.decode(record["image"])
    photograph = picture(PER_CLASS * 11)
    assert stored.shape == (16, 16, 3)
    assert np.abs(stored.astype(int) - photograph[8:24, 8:24]).mean() < 4
    corners = record["landmarks"][[0, 67]]  # the first lies on the box's corner, the last opposite
    np.testing.assert_allclose(corners, [[0, 0], [16, 16]], atol=1e-5)
    assert record["valence"] == 0.5 and record["arousal"] == -0.25


def test_margin_and_shrinking_of_2017(tmp_path):
    source = draw_2017(tmp_path / "source")
    options = {"margin": 0.5, "image_size": 16, "landmarks": True}
    record = run(source, tmp_path / "data", **options)["test"][0]
    assert decode.decode(record["image"]).shape == (16, 16, 3)  # the whole photograph, halved
    np.testing.assert_allclose(record["landmarks"][[0, 67]], [[4, 4], [12, 12]], atol=1e-5)


def test_crop_repeats_the_border_and_refuses_a_box_outside():
    image = picture(0)
    cut = faces.cut(image, -4, 8, 16)
    assert cut.shape == (16, 16, 3)
    np.testing.assert_array_equal(cut[:, 4:], image[8:24, :12])
    np.testing.assert_array_equal(cut[:, :4], np.broadcast_to(image[8:24, :1], (16, 4, 3)))
    for left, top in ((32, 0), (0, 32), (-16, 0), (0, -16)):
        with pytest.raises(errors.UserError, match="outside of the image"):
            faces.cut(image, left, top, 16)


def test_other_places_of_the_lists_and_images(tmp_path):
    lists, images = "Manually_Annotated_file_lists", "Manually_Annotated/Manually_Annotated_Images"
    splits = run(draw_2017(tmp_path / "a", lists, images), tmp_path / "data_a")
    assert len(splits["train"]) == 24
    splits = run(draw_2017(tmp_path / "b", images=""), tmp_path / "data_b")
    assert len(splits["train"]) == 24


def test_other_categories_and_contempt_are_left_out_and_counted(tmp_path, capsys):
    source = draw_2017(tmp_path / "source")
    splits = run(source, tmp_path / "data", classes=7)
    output = capsys.readouterr().out
    for name in ("contempt", "none", "uncertain", "no face"):
        assert f"Left out: {PER_CLASS + 1} faces labelled {name}." in output
    assert len(splits["test"]) == 7
    assert splits["test"].class_names("expression") == affectnet.EXPRESSIONS[:7]


def test_the_held_out_part_depends_on_the_seed_alone(tmp_path):
    source = draw_2021(tmp_path / "source")

    def held_out(name, **options):
        validation = run(source, tmp_path / name, **options)["validation"]
        return {record["key"] for record in all_of(validation)}

    first = held_out("a")
    assert first == held_out("b")
    assert first != held_out("c", seed=1)
    assert first < held_out("d", validation=0.5) and len(held_out("e", validation=0.5)) == 16


def test_several_faces_of_one_photograph_have_several_keys(tmp_path):
    source = draw_2017(tmp_path / "source")
    with open(source / "validation.csv", "a", newline="") as file:
        csv.writer(file).writerow(row_2017("0/val0.jpg", 1, box=(0, 0, 12, 12)))
    keys = [record["key"] for record in all_of(run(source, tmp_path / "data")["test"])]
    assert len(set(keys)) == 9 and {"0/val0.jpg", "0/val0.jpg#2"} < set(keys)


def survey(train, test):
    def rows(counts):
        made = []
        for index, count in enumerate(counts):
            made += [Row("", {"expression": index}, bytes, "")] * count
        return made

    return Survey({"train": rows(train), "test": rows(test)}, {}, {})


def test_published_counts():
    eight, seven = affectnet.AffectNet(), affectnet.AffectNet(classes=7)
    counts = (74_874, 134_415, 25_459, 14_090, 6_378, 3_803, 24_882, 3_750)
    assert sum(counts) == 287_651
    assert eight.check(survey(counts, [500] * 8)) == []
    assert eight.check(survey(counts, [500] * 7 + [499])) == []  # the current download
    assert seven.check(survey(counts[:7], [500] * 7)) == []
    assert eight.check(survey(counts, [500] * 7 + [498])) == [
        "test has 3,998 images instead of 4,000"
    ]
    shifted = (counts[0] - 1, counts[1] + 1, *counts[2:])
    assert eight.check(survey(shifted, [500] * 8)) == [
        "train has 74,873 of neutral instead of 74,874",
        "train has 134,416 of happiness instead of 134,415",
    ]
    assert eight.check(survey([1] * 8, [500] * 8)) == ["train has 8 images instead of 287,651"]


def test_a_subset_is_refused_unless_allowed(tmp_path):
    source = draw_2021(tmp_path / "source")
    with pytest.raises(errors.UserError, match=r"32 images instead of 287,651.*--allow_partial"):
        prepare.prepare("affectnet", source, tmp_path / "data", progress=False)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        ("exp", np.array(11), "expression 11 is out of range 0 to 10"),
        ("exp", np.array("1.5"), "expression 1.5 is out of range 0 to 10"),
        ("val", np.array(1.5), "valence 1.5 is out of range -1 to 1"),
        ("aro", np.array("-3"), "arousal -3 is out of range -1 to 1"),
        ("val", np.array("high"), "2_val.npy is damaged, and is no npy file of numbers"),
        ("aro", np.zeros(2), "2_aro.npy holds 2 numbers instead of 1"),
    ],
)
def test_wrong_annotations_of_2021(tmp_path, kind, value, said):
    source = draw_2021(tmp_path / "source")
    np.save(source / "train_set" / "annotations" / f"2_{kind}.npy", value)
    message = refusal(source)
    assert said in message and "train_set/annotations/2_" in message


def test_missing_and_damaged_files_of_2021(tmp_path):
    source = draw_2021(tmp_path / "source")
    annotations, images = source / "train_set" / "annotations", source / "train_set" / "images"
    image = images / "5.jpg"
    whole = image.read_bytes()
    image.write_bytes(whole[:100])
    assert "train_set/annotations/5_exp.npy (5): The image is damaged" in refusal(source)
    image.unlink()
    assert "train_set/images/5.jpg is missing" in refusal(source)
    image.write_bytes(whole)
    (annotations / "5_val.npy").unlink()
    assert "train_set/annotations/5_val.npy is missing" in refusal(source)
    (annotations / "5_val.npy").write_bytes(b"no npy")
    assert "5_val.npy is damaged, and is no npy file of numbers" in refusal(source)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("valence", "pleasure", "lacks the column 'valence'"),
        ("0/tra0.jpg", "0/no.jpg", "line 2 (0/no.jpg): Manually_Annotated_Images/0/no.jpg is mis"),
        (",8,8,16,16,", ",8,8,wide,16,", "line 2: face_width is 'wide', not a number"),
        (",8,8,16,16,", ",8,8,0,16,", "line 2: the face box is 0 x 16 pixels"),
        (",8,8,16,16,", ",80,8,16,16,", "line 2 (0/tra0.jpg): The face box"),
        (",0,0.5,", ",12,0.5,", "line 2: expression 12 is out of range"),
        (",0,0.5,", ",0,5,", "line 2: valence 5 is out of range"),
        (",0,0.5,", ",0,,", "line 2: valence is '', not a number"),
    ],
)  # fmt: skip
def test_wrong_rows_of_2017(tmp_path, old, new, said):
    source = draw_2017(tmp_path / "source")
    text = (source / "training.csv").read_text()
    assert old in text
    (source / "training.csv").write_text(text.replace(old, new, 1))
    message = refusal(source)
    assert said in message and "training.csv" in message


def test_too_few_landmarks_of_2017(tmp_path):
    source = draw_2017(tmp_path / "source")
    text = (source / "training.csv").read_text()
    (source / "training.csv").write_text(text.replace("8.0;8.0;", "", 1))
    assert "line 2: facial_landmarks has 134 numbers" in refusal(source, landmarks=True)
    run(source, tmp_path / "other")  # without landmarks nobody reads them


def test_another_layout_and_a_wrong_share(tmp_path):
    source = draw_2021(tmp_path / "source")
    assert "--validation 1.5 is no share" in refusal(source, validation=1.5)
    shutil.rmtree(source / "val_set")
    message = refusal(source)
    assert "val_set/images/" in message and "training.csv" in message and "train_set" in message


def test_files_of_macos_are_no_data_and_pickles_are_never_advised(tmp_path):
    source = draw_2021(tmp_path / "source")
    for folder, name in (("annotations", "._0_exp.npy"), ("images", "._0.jpg")):
        (source / "train_set" / folder / name).write_bytes(b"Mac OS X")
    assert len(all_of(run(source, tmp_path / "data")["train"]))
    np.save(source / "train_set/annotations/0_exp.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(errors.UserError) as caught:
        run(source, tmp_path / "again")
    message = str(caught.value)
    assert "0_exp.npy holds Python objects, and is no npy file of numbers" in message
    assert "pickle" not in message

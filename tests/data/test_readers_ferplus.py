import collections
import csv
import io
import shutil
import zipfile

import cv2
import numpy as np
import pytest

from hmtl_jax import errors, prepare
from hmtl_jax.data import decode, records
from hmtl_jax.data.readers import ferplus
from hmtl_jax.data.readers.reader import Row, Survey
from tests import tiny

USAGE = {"train": "Training", "validation": "PublicTest", "test": "PrivateTest"}
FOLDER = {"train": "FER2013Train", "validation": "FER2013Valid", "test": "FER2013Test"}
HAPPY = (0, 9, 0, 0, 0, 0, 0, 0, 1, 0)
SAD = (2, 0, 0, 7, 0, 0, 0, 0, 1, 0)
SPLIT_VOTE = (5, 5, 0, 0, 0, 0, 0, 0, 0, 0)
NO_FACE = (0, 0, 0, 0, 0, 0, 0, 0, 0, 10)


def faces(seed=0):
    """(split, name, votes, pixels) of twelve rows; one without a majority, one no face."""
    rng = np.random.default_rng(seed)
    number = 0
    for split in USAGE:
        for votes in (HAPPY, SAD, SPLIT_VOTE, NO_FACE):
            pixels = rng.integers(0, 256, (48, 48), dtype=np.uint8)
            yield split, f"fer{number:07d}.png", votes, pixels
            number += 1


def draw_folders(root, rows):
    """The layout of the official tool's output."""
    for folder in FOLDER.values():
        (root / folder).mkdir(parents=True)
        (root / folder / "label.csv").write_text("")
    for split, name, votes, pixels in rows:
        cv2.imwrite(str(root / FOLDER[split] / name), pixels)
        with open(root / FOLDER[split] / "label.csv", "a", newline="") as file:
            csv.writer(file).writerow([name, "(0, 0, 48, 48)", *votes])
    return root


def draw_csv(root, rows):
    """The two csv files as published: pixels in the challenge's, votes in the other."""
    root.mkdir()
    pixel_table = [["emotion", "pixels", "Usage"]]
    vote_table = [["Usage", "Image name", *ferplus.VOTES]]
    for split, name, votes, pixels in rows:
        pixel_table.append(["0", " ".join(map(str, pixels.reshape(-1))), USAGE[split]])
        vote_table.append([USAGE[split], name, *votes])
    for name, table in (("fer2013.csv", pixel_table), ("fer2013new.csv", vote_table)):
        with open(root / name, "w", newline="") as file:
            csv.writer(file).writerows(table)
    return root


def draw_zip(path, folder, inside=""):
    with zipfile.ZipFile(path, "w") as file:
        for entry in sorted(folder.rglob("*")):
            if entry.is_file():
                file.write(entry, inside + entry.relative_to(folder).as_posix())
    return path


def prepared(tmp_path, source, **options):
    """Prepares a tiny source and returns its three splits as lists."""
    target = tmp_path / f"data-{len(list(tmp_path.glob('data-*')))}"
    prepare.prepare("ferplus", source, target, allow_partial=True, progress=False, **options)
    sources = {split: records.open_split(target, "ferplus", split) for split in USAGE}
    return {split: [source[i] for i in range(len(source))] for split, source in sources.items()}


def refusal(source):
    options = {"allow_partial": True, "progress": False}
    said = tiny.refused(prepare.prepare, "ferplus", source, source.parent / "d", **options)
    assert records.sets(source.parent / "d") == {} if (source.parent / "d").exists() else True
    return said


# The rules, against the definition


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        (HAPPY, 1),
        (SPLIT_VOTE, None),  # half is not more than half
        ((6, 4, 0, 0, 0, 0, 0, 0, 0, 0), 0),
        ((5, 1, 1, 1, 1, 1, 0, 0, 0, 0), 0),  # single votes are slips: five of five
        ((5, 2, 2, 1, 0, 0, 0, 0, 0, 0), 0),  # five of nine
        ((4, 2, 2, 2, 0, 0, 0, 0, 0, 0), None),
        ((2, 0, 0, 0, 0, 0, 0, 0, 8, 0), None),  # unknown won
        (NO_FACE, None),
        ((1, 1, 1, 1, 1, 1, 1, 1, 1, 1), None),  # nothing but slips
        ((0, 0, 0, 0, 0, 0, 0, 10, 0, 0), 7),
    ],
)
def test_majority_rule(votes, expected):
    labels = ferplus.label(np.array(votes), "majority")
    assert (labels and labels["expression"]) == expected


def test_rules_on_random_votes():
    """Properties of every row: who wins, what the soft label is, which rule keeps more."""
    rng = np.random.default_rng(0)
    kept = collections.Counter()
    for _ in range(500):
        votes = rng.multinomial(10, rng.dirichlet(np.full(10, 0.4)))
        several = [count if count >= 2 else 0 for count in votes]
        majority = ferplus.label(votes, "majority")
        probability = ferplus.label(votes, "probability")
        winners = [i for i in range(8) if several[i] > sum(several) - several[i]]
        assert (majority is not None) == (len(winners) == 1)
        assert (probability is not None) == (sum(several[:8]) > sum(several[8:]))
        if majority:
            assert majority["expression"] == winners[0] == majority["expression_soft"].argmax()
            assert probability is not None and majority["expression"] == probability["expression"]
        if probability:
            assert probability["expression"] == (winners[0] if winners else -1)
            soft = probability["expression_soft"]
            np.testing.assert_allclose(soft * sum(several[:8]), several[:8], atol=1e-5)
            assert soft.dtype == np.float32 and abs(soft.sum() - 1) < 1e-6
            np.testing.assert_array_equal(probability["votes"], votes)
        kept["majority"] += majority is not None
        kept["probability"] += probability is not None
    assert 0 < kept["majority"] < kept["probability"] < 500


def test_published_votes_give_the_published_counts(shared_data):
    """fer2013new.csv as published; the official label.csv (other votes) is in the real set."""
    usable, names = {split: [] for split in USAGE}, set()
    splits = {usage: split for split, usage in USAGE.items()}
    with open(shared_data / "formats" / "ferplus" / "fer2013new.csv") as file:
        for row in csv.DictReader(file):
            if row["Image name"] and row["Image name"] not in names:
                names.add(row["Image name"])
                labels = ferplus.label(np.array([int(row[v]) for v in ferplus.VOTES]), "majority")
                usable[splits[row["Usage"]]] += [labels["expression"]] if labels else []
    rows = {
        split: [Row("", {"expression": label}, bytes, "") for label in labels]
        for split, labels in usable.items()
    }
    assert len(names) == 35_710
    assert ferplus.FerPlus().check(Survey(rows, ferplus.LABELS, {})) == []
    rows["train"].pop()
    assert ferplus.FerPlus().check(Survey(rows, ferplus.LABELS, {})) == [
        "train has 25,056 usable rows instead of 25,057"
    ]


# Both official layouts


def test_labels_and_lossless_pixels(tmp_path):
    splits = prepared(tmp_path, draw_folders(tmp_path / "source", faces()))
    assert {split: len(rows) for split, rows in splits.items()} == dict.fromkeys(USAGE, 2)
    happy, sad = splits["train"]
    assert (happy["expression"], sad["expression"]) == (1, 3)
    assert happy["key"] == "fer0000000"
    np.testing.assert_array_equal(happy["votes"], HAPPY)
    np.testing.assert_allclose(sad["expression_soft"], np.array([2, 0, 0, 7, 0, 0, 0, 0]) / 9)
    pixels = next(faces())[3]
    np.testing.assert_array_equal(
        decode.decode(happy["image"]), np.repeat(pixels[..., None], 3, -1)
    )


def contents(splits):
    return {
        split: [
            (row["key"], int(row["expression"]), decode.decode(row["image"]).tobytes())
            for row in rows
        ]
        for split, rows in splits.items()
    }


def test_zip_wrapped_zip_and_csv_give_the_set_of_the_folder(tmp_path):
    folder = draw_folders(tmp_path / "source", faces())
    expected = contents(prepared(tmp_path, folder))
    sources = [
        draw_zip(tmp_path / "plain.zip", folder),
        draw_zip(tmp_path / "wrapped.zip", folder, inside="ferplus/"),
        draw_csv(tmp_path / "csv", faces()),
    ]
    sources.append(draw_zip(tmp_path / "csv.zip", sources[-1]))
    for source in sources:
        assert contents(prepared(tmp_path, source)) == expected, source


def test_rows_without_a_name_and_names_that_occur_twice(tmp_path, capsys):
    rows = list(faces())
    again = (*rows[0][:2], NO_FACE, rows[1][3])  # the name of the first row, other votes
    unnamed = ("train", "", NO_FACE, rows[2][3])
    splits = prepared(tmp_path, draw_csv(tmp_path / "csv", [*rows, again, unnamed, unnamed]))
    assert [row["key"] for row in splits["train"]] == ["fer0000000", "fer0000001"]
    output = capsys.readouterr().out
    assert "Left out: 2 rows without an image name." in output
    assert "Left out: 1 rows of a name seen before." in output
    assert "Left out: 6 rows by rule majority." in output


def test_probability_keeps_rows_without_a_majority(tmp_path):
    splits = prepared(tmp_path, draw_folders(tmp_path / "s", faces()), rule="probability")
    assert [row["expression"] for row in splits["test"]] == [1, 3, -1]
    np.testing.assert_allclose(splits["test"][2]["expression_soft"][:3], [0.5, 0.5, 0])


# Sources that are wrong


def test_a_subset_is_refused_unless_allowed(tmp_path):
    source = draw_folders(tmp_path / "source", faces())
    with pytest.raises(errors.UserError, match="train has 2 usable rows instead of 25,045"):
        prepare.prepare("ferplus", source, tmp_path / "data", progress=False)
    assert not (tmp_path / "data").exists()


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (",0,9,0,", ",0,nine,0,", "line 1: the vote for happiness is 'nine', no whole number"),
        (",0,9,0,", ",0,-9,0,", "line 1: the vote for happiness is '-9', no whole number"),
        (",0,9,0,", ",0,11,0,", "line 1: the vote for happiness is 11, out of range 0 to 10"),
        (",0,9,0,", ",0,0,", "line 1: 11 columns instead of 12"),
        ("fer0000001.png", "fer0000099.png", "FER2013Train/fer0000099.png is missing"),
    ],
)
def test_a_wrong_label_csv(tmp_path, old, new, said):
    source = draw_folders(tmp_path / "source", faces())
    edit(source / "FER2013Train" / "label.csv", old, new)
    assert said in refusal(source) and "FER2013Train/label.csv" in refusal(source)


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("fer2013new.csv", "sadness", "sorrow", "lacks the column 'sadness'"),
        ("fer2013.csv", "pixels", "points", "lacks the column 'pixels'"),
        ("fer2013new.csv", "0,9,0", "0,x,0", "line 2: the vote for happiness is 'x'"),
        ("fer2013new.csv", "Training", "PublicTest", "line 2: Usage is 'PublicTest'"),
        ("fer2013.csv", "0,", "0,300 ", "line 2: 2305 pixels instead of 2304"),
        ("fer2013.csv", "0,", "0,x", "line 2: a pixel is not a number"),
        ("fer2013new.csv", "Training,fer0000001.png,2", "Training", "fewer columns"),
    ],
)
def test_wrong_csv_files(tmp_path, file, old, new, said):
    source = draw_csv(tmp_path / "source", faces())
    edit(source / file, old, new)
    assert said in refusal(source) and file in refusal(source)


def test_the_csv_as_it_circulates_is_the_same_set(tmp_path):
    """Another name and order of columns, blanks in the header, 10.0, blank and junk last rows."""
    source = draw_csv(tmp_path / "source", faces())
    plain = prepared(tmp_path, source)
    with open(source / "fer2013.csv", newline="") as file:
        table = list(csv.reader(file))
    (source / "fer2013.csv").unlink()
    lines = [["emotion", " Usage", " pixels"], *([e, u, p] for e, p, u in table[1:])]
    with open(source / "icml_face_data.csv", "w", newline="") as file:
        csv.writer(file).writerows([*lines, [], ["", "", ""], ["junk", "", "0 0 0"]])
    with open(source / "fer2013new.csv", newline="") as file:
        votes = list(csv.reader(file))
    spelt = [[*row[:2], *(f"{int(vote)}.0" for vote in row[2:])] for row in votes[1:]]
    with open(source / "fer2013new.csv", "w", newline="") as file:
        csv.writer(file).writerows([votes[0], *spelt, []])
    other = prepared(tmp_path, source)
    for split, records_ in plain.items():
        assert [r["key"] for r in records_] == [r["key"] for r in other[split]]
        assert [r["image"] for r in records_] == [r["image"] for r in other[split]]
        np.testing.assert_array_equal(
            [r["votes"] for r in records_], [r["votes"] for r in other[split]]
        )


def test_a_csv_cut_short(tmp_path):
    source = draw_csv(tmp_path / "source", faces())
    lines = (source / "fer2013.csv").read_text().splitlines(keepends=True)
    (source / "fer2013.csv").write_text("".join(lines[:-3]))
    assert "different numbers of rows" in refusal(source)


def test_unknown_usage(tmp_path):
    source = draw_csv(tmp_path / "source", faces())
    for file in ("fer2013.csv", "fer2013new.csv"):
        edit(source / file, "Training", "Trainnig")
    assert "line 2" in refusal(source) and "Did you mean 'Training'?" in refusal(source)


def test_a_source_that_is_missing_empty_or_of_another_layout(tmp_path):
    assert "does not exist" in refusal(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    message = refusal(tmp_path / "empty")
    assert "FER2013Train/label.csv" in message and "fer2013new.csv" in message
    source = draw_folders(tmp_path / "source", faces())
    shutil.rmtree(source / "FER2013Test")
    message = refusal(source)
    assert "should hold" in message and "found there: FER2013Train, FER2013Valid" in message


def test_a_truncated_zip_and_a_file_that_is_none(tmp_path):
    path = draw_zip(tmp_path / "f.zip", draw_folders(tmp_path / "source", faces()))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "f.zip is neither a folder nor a whole zip" in refusal(path)
    path.write_text("hello")
    assert "neither a folder nor a whole zip" in refusal(path)


def test_a_damaged_member_of_a_zip(tmp_path):
    path = draw_zip(tmp_path / "f.zip", draw_folders(tmp_path / "source", faces()))
    whole = bytearray(path.read_bytes())
    start = whole.index(b"IDAT")
    whole[start : start + 50] = bytes(50)
    path.write_bytes(whole)
    message = refusal(path)
    assert "label.csv, line" in message and "fer0000" in message and "damaged" in message


def test_a_damaged_image_names_its_row(tmp_path):
    source = draw_folders(tmp_path / "source", faces())
    image = source / "FER2013Valid" / "fer0000005.png"
    image.write_bytes(image.read_bytes()[:500])
    message = refusal(source)
    assert "FER2013Valid/label.csv, line 2 (fer0000005)" in message and "damaged" in message


@pytest.mark.slow
def test_the_real_set(shared_data, tmp_path, capsys):
    """Counts are checked against the published ones on the way; 692 duplicates by content."""
    prepare.prepare("ferplus", shared_data / "ferplus.zip", tmp_path, progress=False)
    output = capsys.readouterr().out
    assert "24,438 train, 3,191 validation, 3,137 test" in output
    assert "692 train images are held out too" in output and "607 of them" in output
    train = records.open_split(tmp_path, "ferplus", "train")
    held_out = set()
    for split in ("validation", "test"):
        source = records.open_split(tmp_path, "ferplus", split)
        held_out |= {decode.decode(source[i]["image"]).tobytes() for i in range(len(source))}
    stored = [train[index] for index in range(len(train))]
    assert not held_out & {decode.decode(record["image"]).tobytes() for record in stored}
    assert len({record["key"] for record in stored}) == len(train) == 24_438
    with zipfile.ZipFile(shared_data / "ferplus.zip") as file:
        original = file.read(f"FER2013Train/{stored[77]['key']}.png")
    assert io.BytesIO(original).read() == stored[77]["image"]

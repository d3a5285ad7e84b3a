import csv
import dataclasses
import json
import os
import subprocess
import sys
from typing import ClassVar

import cv2
import numpy as np
import pytest

from hmtl_jax import errors, prepare
from hmtl_jax.data import records
from hmtl_jax.data.labels import Label
from hmtl_jax.data.readers import READERS
from hmtl_jax.data.readers.reader import Row, Survey, option

FOLDERS = {"train": "FER2013Train", "validation": "FER2013Valid", "test": "FER2013Test"}
HAPPY, SAD, UNCLEAR = (0, 10), (0, 0, 0, 10), (5, 5)


def face(seed):
    return np.random.default_rng(seed).integers(0, 256, (48, 48), dtype=np.uint8)


def draw(root, train=(), validation=(), test=()):
    """FER+ folders; each row is (votes, pixels)."""
    for split, rows in (("train", train), ("validation", validation), ("test", test)):
        folder = root / FOLDERS[split]
        folder.mkdir(parents=True)
        with open(folder / "label.csv", "w", newline="") as file:
            for index, (votes, pixels) in enumerate(rows):
                padded = [*votes, *[0] * (10 - len(votes))]
                csv.writer(file).writerow([f"{split}{index}.png", "(0, 0, 48, 48)", *padded])
                cv2.imwrite(str(folder / f"{split}{index}.png"), pixels)
    return root


@pytest.fixture
def source(tmp_path):
    rows = [(HAPPY, face(0)), (SAD, face(1)), (HAPPY, face(2))]
    return draw(tmp_path / "source", rows, [(HAPPY, face(3))], [(SAD, face(4))])


def run(source, data_dir, **options):
    return prepare.prepare("ferplus", source, data_dir, **{"allow_partial": True, **options})


def keys(data_dir, split):
    opened = records.open_split(data_dir, "ferplus", split)
    return [opened[index]["key"] for index in range(len(opened))]


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "hmtl_jax.prepare", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_train_loses_what_is_held_out(tmp_path, capsys):
    """By pixels, not by bytes; rows without a usable label are looked for as well."""
    rows = {
        "train": [(HAPPY, face(i)) for i in range(6)] + [(UNCLEAR, face(9))],
        "validation": [(SAD, face(1)), (UNCLEAR, face(2)), (HAPPY, face(7))],
        "test": [(SAD, face(3)), (HAPPY, face(8)), (HAPPY, face(9)), (HAPPY, face(7))],
    }
    source = draw(tmp_path / "source", **rows)
    other = cv2.imencode(".png", face(3), [cv2.IMWRITE_PNG_COMPRESSION, 0])[1].tobytes()
    file = source / "FER2013Train" / "train3.png"
    assert file.read_bytes() != other
    file.write_bytes(other)
    run(source, tmp_path / "data")
    assert keys(tmp_path / "data", "train") == ["train0", "train4", "train5"]
    assert keys(tmp_path / "data", "validation") == ["validation0", "validation2"]
    assert keys(tmp_path / "data", "test") == ["test0", "test1", "test2", "test3"]
    output = capsys.readouterr().out
    assert "4 train images are held out too" in output
    assert "3 of them had a usable label and were removed" in output
    assert "1 images are in two held-out splits; both stay whole" in output


def test_metadata_and_the_class_table(tmp_path, source, capsys):
    run(source, tmp_path / "data")
    metadata = records.open_split(tmp_path / "data", "ferplus", "train").metadata
    assert metadata["reader"] == "ferplus" and metadata["source"]["name"] == "source"
    assert metadata["options"] == {"rule": "majority"}
    assert metadata["label_rule"].startswith("majority: single votes are dropped")
    assert metadata["counts"]["train"] == {"examples": 3, "expression": [0, 2, 0, 1, 0, 0, 0, 0]}
    assert metadata["counts"]["test"]["examples"] == 1
    assert metadata["mismatches"][0] == "train has 3 usable rows instead of 25,045"
    printed = capsys.readouterr()
    assert ["happiness", "2", "1", "0"] in [line.split() for line in printed.out.splitlines()]
    assert "Warning: train has 3 usable rows instead of 25,045." in printed.err


def test_a_finished_set_is_kept_until_overwrite(tmp_path, source, capsys):
    final = run(source, tmp_path / "data")
    before = final.stat().st_ino
    capsys.readouterr()
    assert run(source, tmp_path / "data") == final
    assert "already prepared" in capsys.readouterr().out
    assert final.stat().st_ino == before
    run(source, tmp_path / "data", overwrite=True)
    assert final.stat().st_ino != before
    assert os.listdir(final.parent) == ["1.0.0"]


def test_a_set_of_another_rule_does_not_pass_for_the_one_asked_for(tmp_path, source):
    run(source, tmp_path / "data")
    with pytest.raises(errors.UserError, match=r"rule='majority' \(now 'probability'\)"):
        run(source, tmp_path / "data", rule="probability")
    run(source, tmp_path / "data", rule="probability", overwrite=True)
    opened = records.open_split(tmp_path / "data", "ferplus", "train")
    assert opened.metadata["options"] == {"rule": "probability"}


def test_a_failed_overwrite_keeps_the_old_set(tmp_path, source):
    run(source, tmp_path / "data")
    (source / "FER2013Train" / "train2.png").write_bytes(b"no picture")
    with pytest.raises(errors.UserError, match=r"label.csv, line 3 \(train2\)"):
        run(source, tmp_path / "data", overwrite=True)
    assert keys(tmp_path / "data", "train") == ["train0", "train1", "train2"]


def test_an_unknown_name_and_no_source(tmp_path):
    with pytest.raises(
        errors.UserError, match=r"'ferpus'; known: 300w_lp, affectnet, .*mean 'ferplus'\?"
    ):
        prepare.prepare("ferpus", "x", tmp_path)
    with pytest.raises(errors.UserError, match="ferplus needs --source"):
        prepare.prepare("ferplus", None, tmp_path)


def test_wrong_options(tmp_path, source):
    with pytest.raises(errors.UserError, match=r"'rulle'.*Did you mean 'rule'\?"):
        run(source, tmp_path, rulle="majority")
    with pytest.raises(errors.UserError, match="'most' is none of majority, probability"):
        run(source, tmp_path, rule="most")


def test_a_split_whose_rows_are_all_unusable_is_refused(tmp_path):
    source = draw(tmp_path / "s", [(HAPPY, face(0))], [(HAPPY, face(1))], [(UNCLEAR, face(2))])
    with pytest.raises(errors.UserError, match="'test' of ferplus has no example"):
        run(source, tmp_path / "data")
    assert records.sets(tmp_path / "data") == {}


def test_the_command_line(tmp_path, source):
    done = command("ferplus", "--source", source, "--data_dir", tmp_path / "d", "--allow_partial")
    assert done.returncode == 0, done.stderr
    assert "ferplus: 3 train, 1 validation, 1 test; written to" in done.stdout
    assert "train: 100%" in done.stderr  # progress
    refused = command("ferplus", "--source", tmp_path / "none.zip", "--data_dir", tmp_path / "e")
    assert refused.returncode == 1
    assert refused.stderr == f"prepare: --source {tmp_path / 'none.zip'} does not exist.\n"
    unknown = command("ferpus", "--source", source, "--data_dir", tmp_path / "d")
    assert unknown.returncode == 2 and "ferplus" in unknown.stderr
    assert "Traceback" not in unknown.stderr


def test_ctrl_c_is_one_sentence_and_leaves_nothing(tmp_path, source, monkeypatch, capsys):
    def interrupted(row, max_pixels):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "_load_one", interrupted)
    arguments = ["--source", str(source), "--data_dir", str(tmp_path / "d"), "--allow_partial"]
    assert prepare.main(["ferplus", *arguments]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "prepare: interrupted; the same command goes on from there"
    assert list((tmp_path / "d" / "ferplus").iterdir()) == []


def test_every_reader_has_help_and_options(capsys):
    for name in READERS:
        with pytest.raises(SystemExit) as caught:
            prepare.main([name, "--help"])
        assert caught.value.code == 0
        assert "--data_dir" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        prepare.main(["affectnet", "--help"])
    output = capsys.readouterr().out
    assert "--landmarks" in output and "{8,7}" in output


def test_options_reach_the_reader_from_the_command_line(tmp_path, capsys):
    sizes = ["--train", "9", "--validation", "2", "--test", "3", "--size", "16"]
    assert prepare.main(["synthetic", "--data_dir", str(tmp_path), *sizes]) == 0
    assert "synthetic: 9 train, 2 validation, 3 test" in capsys.readouterr().out
    metadata = records.open_split(tmp_path, "synthetic", "test").metadata
    assert metadata["options"] == {"size": 16, "train": 9, "validation": 2, "test": 3, "seed": 0}


##### Bad pictures, other splits, other names, other sources #####


@dataclasses.dataclass(frozen=True)
class Own:
    """Whatever splits it is told of, a picture an entry."""

    name: ClassVar[str] = "own"
    version: ClassVar[str] = "1.0.0"
    needs_source: ClassVar[bool] = False

    splits: tuple[str, ...] = option(("test",), "what to make")
    label_rule = "drawn"

    def survey(self, source, track):
        def rows(split, number):
            for index in range(3):
                encoded = cv2.imencode(".png", face([number, index]))[1].tobytes()
                yield Row(f"{index}", {"kind": index % 2}, lambda e=encoded: e, f"{split} {index}")

        made = {split: list(rows(split, i)) for i, split in enumerate(self.splits)}
        return Survey(made, {"kind": Label("class", ("a", "b"))}, {})

    def check(self, survey):
        return []


@pytest.fixture
def own(monkeypatch):
    monkeypatch.setitem(READERS, "own", Own)  # one line


@pytest.mark.parametrize(
    "splits", [("test",), ("train", "unlabeled"), ("train", "test", "test_celebdf"), ("a", "train")]
)
def test_a_set_may_have_any_splits(tmp_path, own, capsys, splits):
    arguments = ["own", "--data_dir", str(tmp_path), "--name", "mine", "--splits", *splits]
    assert prepare.main(arguments) == 0
    for split in splits:
        assert len(records.open_split(tmp_path, "mine", split)) == 3
    printed = capsys.readouterr().out
    assert printed.startswith("mine: ") and all(f"3 {split}" in printed for split in splits)
    assert set(records.identity(tmp_path, "mine")["counts"]) == set(splits)


def test_names_and_lists_are_told_in_help_and_checked_before_anything_is_written(
    tmp_path, own, capsys
):
    with pytest.raises(SystemExit):
        prepare.main(["own", "--help"])
    assert "several with blanks between" in " ".join(capsys.readouterr().out.split())
    for wrong in (["--name", "My-Set"], ["--splits", "a b"], ["--splits", "../up"]):
        assert prepare.main(["own", "--data_dir", str(tmp_path), *wrong]) == 1
        assert "cannot be called" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_bad_pictures_are_all_told_of_or_left_out_and_listed(tmp_path, source, capsys):
    (source / "FER2013Train" / "train1.png").write_bytes(b"broken")
    (source / "FER2013Valid" / "validation0.png").unlink()
    cv2.imwrite(str(source / "FER2013Valid" / "more.png"), face(9))
    with open(source / "FER2013Valid" / "label.csv", "a") as file:
        file.write("more.png,box,0,10,0,0,0,0,0,0,0,0\n")
    with pytest.raises(errors.UserError) as caught:
        run(source, tmp_path / "data")
    said = str(caught.value)
    assert said.startswith("2 pictures can't be read: FER2013Valid/label.csv, line 1 (validation0)")
    assert "FER2013Train/label.csv, line 2 (train1)" in said and "--leave_out_bad" in said
    assert list((tmp_path / "data" / "ferplus").iterdir()) == []
    folder = run(source, tmp_path / "data", leave_out_bad=True)
    assert keys(tmp_path / "data", "train") == ["train0", "train2"]
    assert keys(tmp_path / "data", "validation") == ["more"]
    listed = (folder / "bad_pictures.txt").read_text().splitlines()
    assert len(listed) == 2 and listed[1].startswith("FER2013Train/label.csv, line 2 (train1): ")
    assert json.loads((folder / "metadata.json").read_text())["bad_pictures"] == 2
    assert "Left out: 2 bad pictures, listed in" in capsys.readouterr().out


def test_too_many_pixels_make_a_bad_picture(tmp_path, source):
    with pytest.raises(errors.UserError, match="48 x 48 pixels, more than the 2,000"):
        run(source, tmp_path / "data", max_pixels=2000)


def test_another_or_a_missing_source_is_not_taken_for_the_old_one(tmp_path, source, capsys):
    run(source, tmp_path / "data")
    run(source, tmp_path / "data")
    assert "already prepared" in capsys.readouterr().out
    with pytest.raises(errors.UserError, match="does not exist"):
        run(tmp_path / "none", tmp_path / "data")
    other = draw(tmp_path / "other", [(HAPPY, face(7))], [(HAPPY, face(8))], [(SAD, face(9))])
    said = r"source='source, .*' \(now 'other, .*'\); pass --overwrite"
    with pytest.raises(errors.UserError, match=said):
        run(other, tmp_path / "data")
    run(other, tmp_path / "data", name="ferplus_other")
    assert set(records.sets(tmp_path / "data")) == {"ferplus", "ferplus_other"}


def test_an_interrupted_set_goes_on_behind_its_last_whole_shard(tmp_path, monkeypatch):
    """Stopped in train, after validation and test: the same bytes as without, and fewer loads."""
    monkeypatch.setattr(records, "EXAMPLES_PER_SHARD", 4)
    rows = {
        "train": [((HAPPY, SAD)[i % 2], face(i)) for i in range(40)] + [(UNCLEAR, face(60))],
        "validation": [(SAD, face(i)) for i in (3, 50, 51, 52, 53, 54)],
        "test": [(HAPPY, face(i)) for i in (7, 55, 56, 57)] + [(HAPPY, face(50))],
    }
    source = draw(tmp_path / "source", **rows)
    whole = run(source, tmp_path / "whole")
    real, loads = prepare._load_one, []

    def stopped(row, max_pixels):
        if row.key == "train30":
            raise KeyboardInterrupt
        return real(row, max_pixels)

    monkeypatch.setattr(prepare, "_load_one", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "data")
    assert os.listdir(tmp_path / "data" / "ferplus") == [".1.0.0.partial"]

    def counted(row, max_pixels):
        loads.append(row.key)
        return real(row, max_pixels)

    monkeypatch.setattr(prepare, "_load_one", counted)
    again = run(source, tmp_path / "data")
    assert "train27" not in loads and "train30" in loads and len(loads) < 20
    for file in whole.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes(), file.name


def test_a_dry_run_says_what_is_there_and_writes_nothing(tmp_path, source, capsys):
    run(source, tmp_path / "data", dry_run=True)
    printed = capsys.readouterr().out
    assert "ferplus: 3 train, 1 validation, 1 test; nothing is written" in printed
    assert ["happiness", "2", "1", "0"] in [line.split() for line in printed.splitlines()]
    assert not (tmp_path / "data").exists()


def test_the_list_names_every_set_and_what_to_fetch(capsys):
    assert prepare.main(["--list"]) == 0
    printed = capsys.readouterr().out
    for name, kind in READERS.items():
        assert f"{name}: " in printed
        assert not kind.needs_source or kind.obtain in printed
    with pytest.raises(SystemExit):
        prepare.main([])
    assert "name a set, or pass --list" in capsys.readouterr().err


def test_a_card_and_pictures_that_look_alike(tmp_path, capsys):
    """One of train is one of test, a shade lighter: no duplicate by its pixels, and yet near."""
    rng = np.random.default_rng(3)
    faces = [cv2.resize(rng.integers(20, 200, (9, 9), np.uint8), (48, 48)) for _ in range(8)]
    rows = {
        "train": [*((HAPPY, one) for one in faces[:6]), (SAD, faces[1])],
        "validation": [(SAD, faces[6])],
        "test": [(HAPPY, faces[7]), (SAD, faces[0] + 3)],
    }
    folder = run(draw(tmp_path / "source", **rows), tmp_path / "data")
    near = [
        line.split("\t")[:2] for line in (folder / "near_duplicates.txt").read_text().splitlines()
    ]
    assert near == [["test/test1", "train/train0"], ["train/train1", "train/train6"]]
    text = (folder / "card.md").read_text()
    assert "| happiness | 6 | 0 | 1 |" in text or "| happiness | 0 | 1 | 6 |" in text
    assert "1 pairs across splits that look alike, 1 within" in text
    sheet = cv2.imread(str(folder / "contact_sheet.png"))
    assert sheet.shape == (3 * 68, 12 * 64, 3)
    assert "Near-duplicates: 1 pairs across splits that look alike, 1 within one" in (
        capsys.readouterr().out
    )

import csv
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from hmtl_jax import errors, prepare
from hmtl_jax.data import records
from hmtl_jax.data.readers import READERS

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
    assert "1 images are in validation and in test; both stay whole" in output


def test_metadata_and_the_class_table(tmp_path, source, capsys):
    run(source, tmp_path / "data")
    metadata = records.open_split(tmp_path / "data", "ferplus", "train").metadata
    assert metadata["reader"] == "ferplus" and metadata["source"] == "source"
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
    with pytest.raises(errors.UserError, match=r"'ferpus'; known: affectnet, .*mean 'ferplus'\?"):
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
    def interrupted(row):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "_load_one", interrupted)
    arguments = ["--source", str(source), "--data_dir", str(tmp_path / "d"), "--allow_partial"]
    assert prepare.main(["ferplus", *arguments]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "prepare: interrupted; nothing was written"
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

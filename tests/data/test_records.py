import io
import json
import os
import pickle
import socket
import subprocess
import sys
import textwrap
import time
from concurrent import futures
from typing import Any

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from hmtl_jax import errors
from hmtl_jax.data import records
from hmtl_jax.data.labels import Label
from tests import tiny

LABELS = {
    "expression": Label("class", ("neutral", "happiness", "anger")),
    "votes": Label("int", shape=(3,)),
    "pose": Label("float", shape=(3,)),
    "valence": Label("float"),
}


def examples(n, seed=0):
    rng = np.random.default_rng(seed)
    for index in range(n):
        pixels = rng.integers(0, 256, (8, 6, 3), dtype=np.uint8)
        yield {
            "image": cv2.imencode(".png", pixels)[1].tobytes(),
            "key": f"å{index}",
            "expression": index % 4 - 1,
            "votes": rng.integers(0, 10, 3),
            "pose": np.array([rng.normal(), np.nan, 2], np.float32),
            "valence": np.float32(rng.uniform(-1, 1)),
        }


def write(data_dir, n=10, name="faces", version="1.0.0", splits=("train", "test"), **metadata):
    made = {split: examples(n, seed) for seed, split in enumerate(splits)}
    return records.write(data_dir, name, version, LABELS, made, metadata)


def run(code, *arguments, check=True):
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, check=check, capture_output=True, text=True, timeout=120)


def assert_same(record, example):
    assert record["image"] == example["image"]
    assert record["key"] == example["key"]
    for key in ("expression", "votes", "pose", "valence"):
        np.testing.assert_array_equal(record[key], example[key])


def test_what_is_written_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "EXAMPLES_PER_SHARD", 4)
    folder = write(tmp_path, 10)
    assert folder == tmp_path / "faces" / "1.0.0"
    assert len(list(folder.glob("faces-train.array_record-*"))) == 3
    source = records.open_split(tmp_path, "faces", "train")
    assert len(source) == 10
    for index, example in enumerate(examples(10)):
        assert_same(source[index], example)
    assert source[np.int64(3)]["key"] == "å3"
    record = source[0]
    assert record["expression"].dtype == record["votes"].dtype == np.int32
    assert record["expression"] == -1
    assert record["pose"].dtype == record["valence"].dtype == np.float32
    with pytest.raises(IndexError):
        source[10]


def test_labels_and_names(tmp_path):
    named = LABELS | {"votes": Label("int", ("a", "b", "c"), (3,))}
    made = {"train": examples(3), "test": examples(3)}
    records.write(tmp_path, "faces", "1.0.0", named, made, {"label_rule": "drawn"})
    source = records.open_split(tmp_path, "faces", "test")
    assert source.labels == ("expression", "pose", "valence", "votes")
    assert source.class_names("expression") == ("neutral", "happiness", "anger")
    assert source.class_names("votes") == ("a", "b", "c")
    assert source.class_names("pose") is None
    assert source.metadata["label_rule"] == "drawn"


def test_tfds_reads_the_same(tmp_path):
    folder = write(tmp_path)
    builder: Any = tfds.builder_from_directory(folder)
    skip = {"image": tfds.decode.SkipDecoding()}
    theirs = builder.as_data_source("train", decoders=skip)
    ours = records.open_split(tmp_path, "faces", "train")
    assert len(theirs) == len(ours) == 10
    for a, b in zip(theirs, (ours[index] for index in range(10)), strict=True):
        assert_same(b, a | {"key": a["key"].decode()})
    assert builder.as_data_source("train")[0]["image"].shape == (8, 6, 3)


def test_other_processes_reopen_a_pickled_source_and_none_imports_tensorflow(tmp_path):
    write(tmp_path)
    source = records.open_split(tmp_path, "faces", "train")
    source[0]  # an open file must not travel
    pickled = pickle.dumps(source)
    assert len(pickled) < 10_000
    (tmp_path / "source.pickle").write_bytes(pickled)
    result = run(
        """
        import pickle, sys
        from hmtl_jax.data import records
        from hmtl_jax.data.labels import Label
        source = pickle.load(open(sys.argv[1], "rb"))
        print(source[7]["key"], records.open_split(sys.argv[2], "faces", "test")[1]["key"])
        folder = records.write(
            sys.argv[2], "copy", "1.0.0",
            {
                "expression": Label("class", source.class_names("expression")),
                "votes": Label("int", shape=(3,)), "pose": Label("float", shape=(3,)),
                "valence": Label("float"),
            },
            {"train": (source[i] for i in range(len(source)))}, {},
        )
        assert "tensorflow" not in sys.modules
        assert "jax" not in sys.modules  # the command and data workers need no accelerator
        """,
        tmp_path / "source.pickle",
        tmp_path,
    )
    assert result.stdout.split() == ["å7", "å1"]
    assert_same(records.open_split(tmp_path, "copy", "train")[9], source[9])


def test_many_threads_read_what_one_does(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "EXAMPLES_PER_SHARD", 16)
    write(tmp_path, 100)
    source = records.open_split(tmp_path, "faces", "train")
    with futures.ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda index: source[index]["key"], range(100)))
    assert keys == [f"å{index}" for index in range(100)]


def test_the_newest_version_opens(tmp_path):
    for version, n in (("1.0.0", 2), ("1.10.0", 4), ("1.9.0", 3)):
        write(tmp_path, n, version=version)
    assert len(records.open_split(tmp_path, "faces", "train")) == 4


def test_metadata_may_be_filled_by_the_last_example(tmp_path):
    metadata = {"count": 0}

    def counting():
        for example in examples(5):
            metadata["count"] += 1
            yield example

    records.write(tmp_path, "faces", "1.0.0", LABELS, {"train": counting()}, metadata)
    assert records.open_split(tmp_path, "faces", "train").metadata["count"] == 5


def failing():
    yield from examples(3)
    raise errors.UserError("the fourth image is damaged")


def test_a_writer_that_fails_leaves_the_old_set_and_no_new_one(tmp_path):
    for _ in range(2):  # without an old set, then with one
        with pytest.raises(errors.UserError, match="fourth image"):
            records.write(tmp_path, "new", "1.0.0", LABELS, {"train": failing()}, {})
        assert not list((tmp_path / "new").iterdir())
    write(tmp_path, 10)
    with pytest.raises(errors.UserError, match="fourth image"):
        records.write(tmp_path, "faces", "1.0.0", LABELS, {"train": failing()}, {})
    assert len(records.open_split(tmp_path, "faces", "train")) == 10
    assert os.listdir(tmp_path / "faces") == ["1.0.0"]


def test_a_killed_writer_leaves_nothing_that_opens_and_the_next_one_tidies_up(tmp_path):
    killed = run(
        """
        import os, signal, sys
        from hmtl_jax.data import records

        def examples():
            yield {"image": b"1", "key": "1"}
            os.kill(os.getpid(), signal.SIGKILL)

        records.write(sys.argv[1], "faces", "1.0.0", {}, {"train": examples()}, {})
        """,
        tmp_path,
        check=False,
    )
    assert killed.returncode == -9
    left = os.listdir(tmp_path / "faces")
    assert left == [".1.0.0.partial"]
    with pytest.raises(errors.UserError, match="No prepared set 'faces'"):
        records.open_split(tmp_path, "faces", "train")
    write(tmp_path)
    assert os.listdir(tmp_path / "faces") == ["1.0.0"]


KILLED = """
    import os, signal, sys
    from hmtl_jax.data import records
    from tests.data.test_records import LABELS, examples

    records.EXAMPLES_PER_SHARD = 4
    with records.Writer(sys.argv[1], "faces", "1.0.0", LABELS, "this task") as writer:
        for number, example in enumerate(examples(11)):
            if number == 10:
                os.kill(os.getpid(), signal.SIGKILL)
            writer.add("train", example, lambda: f"up to {number}")
    """


def go_on(data_dir, task):
    """What a second writer finds, and the set that it finishes."""
    with records.Writer(data_dir, "faces", "1.0.0", LABELS, task) as writer:
        notes = writer.notes("train")
        for example in list(examples(11))[4 * len(notes) :]:
            writer.add("train", example)
        writer.close("train", "the end")
        return notes, writer.finish({})


@pytest.mark.parametrize("task, kept", [("this task", ["up to 3", "up to 7"]), ("another", [])])
def test_a_killed_writer_is_gone_on_from_by_one_with_its_task(tmp_path, monkeypatch, task, kept):
    monkeypatch.setattr(records, "EXAMPLES_PER_SHARD", 4)
    assert run(KILLED, tmp_path / "killed", check=False).returncode == -9
    notes, folder = go_on(tmp_path / "killed", task)
    assert notes == kept
    _, whole = go_on(tmp_path / "whole", task)
    for file in whole.iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes()
    assert os.listdir(folder.parent) == ["1.0.0"]
    source = records.open_split(tmp_path / "killed", "faces", "train")
    for index, example in enumerate(examples(11)):
        assert_same(source[index], example)


def test_a_set_that_was_cut_short_while_it_got_its_names_starts_from_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "EXAMPLES_PER_SHARD", 4)
    assert run(KILLED, tmp_path, check=False).returncode == -9
    partial = tmp_path / "faces" / ".1.0.0.partial"
    (partial / "train-00000").rename(partial / "faces-train.array_record-00000-of-00003")
    (partial / "dataset_info.json").write_text("{")
    notes, folder = go_on(tmp_path, "this task")
    assert notes == [] and len(records.open_split(tmp_path, "faces", "train")) == 11
    assert not (folder / records.JOURNAL).exists()


def test_a_writer_that_lives_is_not_disturbed(tmp_path):
    """Not one of this machine that runs, nor one of another that wrote a moment ago."""
    partial = tmp_path / "faces" / ".1.0.0.partial"
    partial.mkdir(parents=True)
    for host, pid in ((socket.gethostname(), os.getppid()), ("elsewhere", 1)):
        head = {"task": None, "host": host, "pid": pid}
        (partial / records.JOURNAL).write_text(json.dumps(head) + "\n")
        with pytest.raises(errors.UserError, match=f"is being written by process {pid} on {host}"):
            write(tmp_path)
    old = time.time() - 2 * records.SILENCE
    os.utime(partial / records.JOURNAL, (old, old))
    write(tmp_path)
    assert os.listdir(tmp_path / "faces") == ["1.0.0"]


def test_a_full_disk_is_told(tmp_path):
    result = run(
        """
        import os, resource, sys
        from hmtl_jax import errors
        from hmtl_jax.data import records
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        large = ({"image": os.urandom(50_000), "key": "k"} for _ in range(99))
        try:
            records.write(sys.argv[1], "faces", "1.0.0", {}, {"train": large}, {})
        except errors.UserError as error:
            print(error)
        """,
        tmp_path,
    )
    assert "faces/1.0.0 failed" in result.stdout and "File too large" in result.stdout
    assert os.listdir(tmp_path / "faces") == []


def test_an_empty_split_is_refused(tmp_path):
    made = {"train": examples(2), "test": iter(())}
    with pytest.raises(errors.UserError, match="'test' of faces has no example"):
        records.write(tmp_path, "faces", "1.0.0", LABELS, made, {})
    assert records.sets(tmp_path) == {}


def test_a_data_dir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.UserError, match=r"Cannot write in data_dir .*file"):
        write(tmp_path / "file")


def refusal(data_dir, name="faces", split="train"):
    return tiny.refused(records.open_split, data_dir, name, split)


def test_a_missing_or_unreadable_data_dir(tmp_path):
    (tmp_path / "file").write_text("")
    assert "No such file" in refusal(tmp_path / "none")
    assert "Not a directory" in refusal(tmp_path / "file")


def test_an_unknown_set_lists_those_there_and_names_the_command(tmp_path):
    assert "no set is there" in refusal(tmp_path, "ferplus")
    write(tmp_path, name="ferplus")
    message = refusal(tmp_path, "ferpus")
    assert "there are: ferplus" in message and "Did you mean 'ferplus'?" in message
    assert "|ferplus|" in message and "--name ferpus" in message
    assert "--source" not in refusal(tmp_path, "synthetic")


def test_an_unknown_split_lists_the_known(tmp_path):
    write(tmp_path)
    message = refusal(tmp_path, split="tset")
    assert "known: test, train." in message and "Did you mean 'test'?" in message


def test_a_truncated_or_missing_record_file_is_refused_at_once(tmp_path):
    (file,) = write(tmp_path).glob("*train.array_record*")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    message = refusal(tmp_path)
    assert file.name in message and "truncated" in message and "--overwrite" in message
    assert len(records.open_split(tmp_path, "faces", "test")) == 10
    file.unlink()
    assert f"{file.name} is missing" in refusal(tmp_path)


def test_a_record_file_with_flipped_bits_is_refused_when_read(tmp_path):
    (file,) = write(tmp_path).glob("*train.array_record*")
    damaged = bytearray(file.read_bytes())
    damaged[200:1200] = bytes(byte ^ 0xFF for byte in damaged[200:1200])
    file.write_bytes(damaged)
    source = records.open_split(tmp_path, "faces", "train")
    with pytest.raises(errors.UserError, match=r"Record . of split 'train' .*cannot be read"):
        for index in range(10):
            source[index]


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json", "metadata.json"])
def test_damaged_metadata_is_refused(tmp_path, file):
    folder = write(tmp_path)
    (folder / file).write_text("{")
    assert "The metadata in" in refusal(tmp_path) and "--overwrite" in refusal(tmp_path)


def test_integers_are_not_made_of_fractions(tmp_path):
    """A reader's slip (0.5 as a vote) must not be rounded away."""
    wrong = next(examples(1)) | {"votes": np.array([0.5, 1, 2])}
    with pytest.raises(TypeError):
        records.write(tmp_path, "faces", "1.0.0", LABELS, {"train": [wrong]}, {})


def test_images_are_bytes_as_given(tmp_path):
    """Even what is no picture travels untouched: `prepare` decodes, the record file does not."""
    example = next(examples(1)) | {"image": b"no picture"}
    records.write(tmp_path, "faces", "1.0.0", LABELS, {"train": [example]}, {})
    stored = records.open_split(tmp_path, "faces", "train")[0]["image"]
    assert io.BytesIO(stored).read() == b"no picture"


##### What a set says of itself #####


def identity(data_dir, n=4, change=None):
    def rows():
        for index, row in enumerate(examples(n)):
            yield row | (change or {}) if index == 2 else row

    records.write(data_dir, "faces", "1.0.0", LABELS, {"train": rows()}, {"reader": "mine"})
    return records.identity(data_dir, "faces")


def test_equal_examples_have_equal_digests_and_others_have_others(tmp_path, monkeypatch):
    found = identity(tmp_path / "one")
    assert (found["name"], found["version"], found["reader"]) == ("faces", "1.0.0", "mine")
    monkeypatch.setattr(records, "EXAMPLES_PER_SHARD", 2)
    assert identity(tmp_path / "two")["digest"] == found["digest"]
    changes = [
        {"image": b"other"}, {"key": "other"}, {"expression": -1}, {"valence": np.float32(0.5)},
        {"pose": np.zeros(3, np.float32)},
    ]  # fmt: skip
    others = {identity(tmp_path / str(i), change=c)["digest"] for i, c in enumerate(changes)}
    assert len(others | {found["digest"]}) == 1 + len(changes)
    assert identity(tmp_path / "short", n=3)["digest"] not in others | {found["digest"]}


def test_a_set_without_a_digest_is_to_be_prepared_again(tmp_path):
    folder = write(tmp_path)
    kept = json.loads((folder / "metadata.json").read_text())
    del kept["digest"]
    (folder / "metadata.json").write_text(json.dumps(kept))
    with pytest.raises(errors.UserError, match="by an earlier version of hmtl_jax"):
        records.identity(tmp_path, "faces")


@pytest.mark.parametrize("name", ["Faces", "my-set", "../up", "", "_lp"])
def test_names_that_a_path_would_not_take_are_refused_before_writing(tmp_path, name):
    with pytest.raises(errors.UserError, match="A set cannot be called"):
        write(tmp_path, name=name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_may_not_be_listed_stops_no_set(tmp_path, monkeypatch):
    write(tmp_path)
    (tmp_path / "lost+found").mkdir()
    real = records.pathlib.Path.iterdir

    def iterdir(path):
        if path.name == "lost+found":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(records.pathlib.Path, "iterdir", iterdir)
    assert len(records.open_split(tmp_path, "faces", "train")) == 10


def test_an_advice_names_what_prepare_knows(tmp_path):
    write(tmp_path)
    for name, said in (("ferplus", "prepare ferplus --source"), ("vggface", "--name vggface")):
        with pytest.raises(errors.UserError, match=said):
            records.find(tmp_path, name)
    with pytest.raises(errors.UserError, match=r"fairface\|fer2013\|ferplus"):
        records.find(tmp_path, "vggface")

"""Batches: their contents, order, shares, position, subset, padding, and what bad records do."""

import gc
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import cloudpickle
import cv2
import numpy as np
import pytest

from hmtl_jax import errors
from hmtl_jax.data import decode, pipeline, subset

# Worker processes can't import this module, so they get its classes by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

SIZE = 8


class Records:
    """Drawn pictures: the record's number stands in its pixels, and in its labels."""

    split, name = "train", "drawn"

    def __init__(self, n: int, damaged: tuple[int, ...] = ()):
        self.n, self.damaged = n, damaged

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        picture = np.random.default_rng(index).integers(0, 256, (12, 12, 3), np.uint8)
        encoded = cv2.imencode(".png", picture)[1].tobytes()
        return {
            "image": encoded[:-40] if index in self.damaged else encoded,
            "key": f"face-{index:03d}",
            "expression": np.int64(index % 7 if index % 10 else 7),
            "expression_soft": np.full(8, index, np.float64),
            "comment": "smiles",
        }


def train(source, **options):
    settings = {"labels": ["expression"], "image_size": SIZE, "batch_size": 4, "seed": 3}
    return pipeline.train_batches(source, **(settings | {"threads": 2} | options))


def evaluation(source, **options):
    settings = {"labels": ["expression"], "image_size": SIZE, "batch_size": 4, "threads": 2}
    return pipeline.eval_batches(source, **(settings | options))


def take(batches, n: int) -> list:
    return [next(batches) for _ in range(n)]


def assert_equal(left: list, right: list) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dtype == b[name].dtype
            np.testing.assert_array_equal(a[name], b[name])


def test_a_batch_holds_what_the_records_hold():
    source = Records(9)
    batch = next(train(source, labels=["expression", "expression_soft"]))
    assert {name: (value.shape, value.dtype.name) for name, value in batch.items()} == {
        "image": ((4, SIZE, SIZE, 3), "uint8"),
        "expression": ((4,), "int32"),
        "expression_soft": ((4, 8), "float32"),
        "index": ((4,), "int32"),
        "valid": ((4,), "bool"),
    }
    assert batch["valid"].all()
    for row, index in enumerate(batch["index"]):
        record = source[int(index)]
        np.testing.assert_array_equal(batch["image"][row], decode.decode(record["image"], SIZE))
        assert batch["expression"][row] == record["expression"]
        np.testing.assert_array_equal(batch["expression_soft"][row], record["expression_soft"])


def epochs(batches, count: int) -> list[list[int]]:
    """Record numbers of each of the first epochs."""
    steps = [take(batches, batches.steps_per_epoch) for _ in range(count)]
    return [np.concatenate([batch["index"] for batch in epoch]).tolist() for epoch in steps]


def test_each_epoch_is_a_new_shuffle_without_the_remainder():
    batches = train(Records(30))
    assert (batches.num_examples, batches.steps_per_epoch) == (30, 7)
    seen = epochs(batches, 6)
    for order in seen:
        assert len(order) == len(set(order)) == 28
        assert order != sorted(order)
    assert len({tuple(order) for order in seen}) == 6
    # What fills no batch changes from epoch to epoch, so that no record is left out for good.
    assert set().union(*seen) == set(range(30))


def test_order_is_a_function_of_the_seed():
    first, again, other = (epochs(train(Records(30), seed=seed), 2) for seed in (3, 3, 4))
    assert first == again
    # Not even a shifted one, as with per-epoch seeds of seed + epoch.
    assert not {tuple(order) for order in first} & {tuple(order) for order in other}


@pytest.mark.parametrize("process_count", [2, 4])
def test_shares_of_processes_make_the_batch_of_one(process_count):
    source = Records(30)
    shares = [
        take(train(source, process_index=index, process_count=process_count), 9)
        for index in range(process_count)
    ]
    joined = [
        {name: np.concatenate([batch[name] for batch in step]) for name in step[0]}
        for step in zip(*shares, strict=True)
    ]
    assert_equal(joined, take(train(source), 9))


@pytest.mark.parametrize("k", [0, 1, 7, 12])
def test_continued_equals_uninterrupted(k):
    source = Records(30)
    uninterrupted = take(train(source), k + 9)
    first = train(source)
    assert_equal(take(first, k), uninterrupted[:k])
    state = json.loads(json.dumps(first.get_state()))
    next(first)  # a position taken earlier must not move with the iterator
    second = train(source, threads=3)
    next(second)
    second.set_state(state)
    assert second.get_state() == state
    assert_equal(take(second, 9), uninterrupted[k:])


@pytest.mark.parametrize("workers", [0, 1])
def test_classes_are_drawn_equally_and_a_run_goes_on(workers):
    """Of 80 records in eight classes, eight of the rarest: ten of each an epoch."""
    options = {"sampling": 0.0, "stratify": "expression", "batch_size": 8, "workers": workers}
    batches = train(Records(80), **options)
    found = take(batches, 14)
    batches.close()
    counts = np.bincount(np.concatenate([one["expression"] for one in found[:10]]), minlength=8)
    assert counts.tolist() == [10] * 8
    again = train(Records(80), **options)
    again.set_state(json.loads(json.dumps(_state_after(options, 7))))
    assert_equal(take(again, 7), found[7:])
    again.close()


def _state_after(options, count):
    batches = train(Records(80), **options)
    take(batches, count)
    state = batches.get_state()
    batches.close()
    return state


def test_closed_batches_can_go_on():
    batches = train(Records(30))
    taken = take(batches, 3)
    batches.close()
    batches.close()
    assert_equal(taken + take(batches, 3), take(train(Records(30)), 6))


@pytest.mark.parametrize("stratify", [None, "expression"])
def test_training_sees_the_subset_alone(stratify):
    options = {"subset": 0.25, "stratify": stratify, "labels": [], "batch_size": 1}
    batches = train(Records(80), **options)
    classes = pipeline.column(Records(80), "expression") if stratify else np.zeros(80, int)
    expected = subset.subset_indices(classes, 0.25, seed=0).tolist()
    assert batches.num_examples == len(expected)
    assert [sorted(order) for order in epochs(batches, 2)] == [expected, expected]
    # Runs with several seeds differ in training, not in what they train on.
    assert sorted(epochs(train(Records(80), **options, seed=9), 1)[0]) == expected


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5, float("nan")])
def test_a_share_outside_zero_to_one_is_refused(fraction):
    with pytest.raises(errors.UserError, match="0 < subset <= 1"):
        train(Records(8), subset=fraction)


def test_a_vector_label_cannot_stratify():
    with pytest.raises(errors.UserError, match=r"shape \(8,\)"):
        train(Records(8), subset=0.5, stratify="expression_soft")


def test_a_column_of_the_source_spares_the_records():
    class Columns(Records):
        def column(self, label):
            assert label == "expression"
            return np.arange(80) % 2

        def __getitem__(self, index):
            assert index == 0  # the shapes of labels
            return super().__getitem__(index)

    assert train(Columns(80), subset=0.25, stratify="expression").num_examples == 20


@pytest.mark.parametrize("process_count", [1, 2, 4])
@pytest.mark.parametrize("n", [1, 3, 4, 8, 9])
def test_evaluation_sees_each_record_once(n, process_count):
    splits = [
        evaluation(Records(n), process_index=index, process_count=process_count)
        for index in range(process_count)
    ]
    assert [len(split) for split in splits] == [-(-n // 4)] * process_count
    shares = [list(split) for split in splits]
    shapes = {batch["image"].shape for share in shares for batch in share}
    assert shapes == {(4 // process_count, SIZE, SIZE, 3)}
    steps = zip(*shares, strict=True)
    index = np.concatenate([batch["index"] for step in steps for batch in step])
    valid = np.concatenate([b["valid"] for step in zip(*shares, strict=True) for b in step])
    assert index[valid].tolist() == list(range(n))
    assert set(index[~valid].tolist()) <= {-1}


def test_padding_is_zeros():
    batch = list(evaluation(Records(5)))[-1]
    assert batch["valid"].tolist() == [True, False, False, False]
    assert not batch["image"][1:].any() and not batch["expression"][1:].any()
    assert batch["image"][0].any()


def test_evaluation_may_be_repeated_and_left_early():
    split = evaluation(Records(9))
    next(iter(split))
    assert_equal(list(split), list(split))


MESSAGE = (
    "Record 'face-005' of the split 'train' of drawn: The image is damaged, cut short or no "
    "picture (293 bytes that no decoder takes); replace the file and prepare the data again, or "
    "set data.tolerate_corrupt to skip and count it."
)


def test_a_corrupt_picture_names_its_record(capfd):
    damaged = Records(9, damaged=(5,))
    expected = MESSAGE.replace("293", str(len(damaged[5]["image"])))
    with pytest.raises(errors.UserError) as error:
        take(train(damaged), 2)
    assert str(error.value) == expected
    with pytest.raises(errors.UserError) as error:
        list(evaluation(damaged))
    assert str(error.value) == expected


def test_a_tolerated_picture_is_another_one_invalid_and_told_once(caplog, capfd):
    batches = train(Records(8, damaged=(5,)), tolerate_corrupt=True)
    with caplog.at_level("WARNING"):
        taken = take(batches, 6)
    lost = [batch for batch in taken if not batch["valid"].all()]
    assert len(lost) == 3  # once in each epoch
    for batch in lost:
        row = int(np.flatnonzero(~batch["valid"])[0])
        assert batch["index"][row] == 5 and batch["expression"][row] == 5
        others = np.delete(batch["image"], row, axis=0)
        assert (batch["image"][row] == others).all(axis=(1, 2, 3)).any()
        assert batch["image"][batch["valid"]].any(axis=(1, 2, 3)).all()
    assert [record.message for record in caplog.records].count("Skipped: " + _message(5)) == 1
    assert len(caplog.records) == 1


def _message(index: int) -> str:
    assert index == 5
    return MESSAGE.replace("293", str(len(Records(9, damaged=(5,))[5]["image"])))


@pytest.mark.parametrize("make", [train, evaluation])
def test_a_batch_that_processes_do_not_divide_is_refused(make):
    with pytest.raises(errors.UserError, match="batch of 4 can't be shared evenly by 3"):
        make(Records(9), process_count=3)


@pytest.mark.parametrize("make", [train, evaluation])
def test_an_unknown_label_lists_the_known(make):
    with pytest.raises(errors.UserError, match=r"comment, expression, expression_soft.*Did you"):
        make(Records(9), labels=["expresion"])


def test_entries_without_names_are_numbered_and_matrices_refused():
    names = pipeline.entry_names(Records(3), ["expression", "expression_soft"])
    assert names == ("expression", *(f"expression_soft/{index}" for index in range(8)))

    class Landmarks(Records):
        def __getitem__(self, index):
            return super().__getitem__(index) | {"landmarks": np.zeros((68, 2), np.float32)}

    with pytest.raises(errors.UserError, match=r"'landmarks' .* has the shape \[68, 2\]"):
        pipeline.entry_names(Landmarks(3), ["landmarks"])


def test_a_label_of_text_is_refused():
    with pytest.raises(errors.UserError, match=r"'comment' .* no numbers"):
        train(Records(9), labels=["comment"])


def test_too_few_examples_for_a_batch_are_refused():
    with pytest.raises(errors.UserError, match="has 3 training examples, too few"):
        train(Records(3))


@pytest.mark.parametrize("make", [train, evaluation])
def test_an_empty_split_is_refused(make):
    with pytest.raises(errors.UserError, match="'train' of drawn has no examples"):
        make(Records(0))


# Worker processes: each takes some seconds to start.


def wait_for_no_children() -> None:
    deadline = time.monotonic() + 30
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_workers_give_the_very_batches_and_take_over_any_position():
    size = 160  # images above the least size for shared memory
    expected = take(train(Records(30), image_size=size), 17)
    batches = train(Records(30), image_size=size, workers=2, threads=1)
    batches.set_state({"step": 3})
    taken = take(batches, 2)
    children = multiprocessing.active_children()
    assert len(children) == 2
    for child in children:  # as Slurm and Ctrl-C do; the run still wants batches, to save and end
        os.kill(child.pid, signal.SIGTERM)
        os.kill(child.pid, signal.SIGINT)
    taken += take(batches, 8)  # more than lie ready
    assert_equal(taken, expected[3:13])
    assert all(type(value) is np.ndarray for batch in taken for value in batch.values())
    state = batches.get_state()
    batches.close()
    wait_for_no_children()
    assert_equal(taken, expected[3:13])  # nothing refers to memory of the workers
    threaded = train(Records(30), image_size=size)
    threaded.set_state(state)
    assert_equal(take(threaded, 4), expected[13:])


def test_too_little_shared_memory_is_told_before_a_worker_dies(monkeypatch):
    usage = type(shutil.disk_usage("/"))(64, 63, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(errors.UserError, match=r"need 0 MB .* --shm-size.*data.workers=0"):
        next(train(Records(30), workers=2))


@pytest.mark.slow
def test_evaluation_by_workers_ends_by_itself():
    split = evaluation(Records(9), workers=1)
    assert_equal(list(split), list(evaluation(Records(9))))
    wait_for_no_children()


@pytest.mark.slow
def test_a_dropped_iterator_leaves_no_process():
    batches = train(Records(30), workers=2)
    next(batches)
    pids = [child.pid for child in multiprocessing.active_children()]
    assert len(pids) == 2
    del batches
    gc.collect()
    wait_for_no_children()
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


@pytest.mark.slow
def test_a_corrupt_picture_in_a_worker_is_the_same_sentence():
    with pytest.raises(errors.UserError) as error:
        take(train(Records(9, damaged=(5,)), workers=1), 2)
    assert str(error.value) == _message(5)
    wait_for_no_children()


@pytest.mark.slow
def test_a_tolerated_picture_in_a_worker_is_told_in_the_main_process(caplog):
    batches = train(Records(8, damaged=(5,)), tolerate_corrupt=True, workers=1)
    with caplog.at_level("WARNING"):
        taken = take(batches, 6)
    assert sum((~batch["valid"]).sum() for batch in taken) == 3
    assert [record.message for record in caplog.records] == ["Skipped: " + _message(5)]
    batches.close()


@pytest.mark.slow
def test_a_worker_that_is_killed_is_told_in_words():
    batches = train(Records(30), workers=1)
    next(batches)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(errors.UserError, match=r"exit code -9.*data.workers=0"):
        take(batches, 20)
    wait_for_no_children()


@pytest.mark.slow
def test_workers_end_with_a_killed_parent(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
        import multiprocessing, sys, time
        import cv2, numpy as np
        from hmtl_jax.data import pipeline

        if __name__ == "__main__":
            image = cv2.imencode(".png", np.zeros((9, 9, 3), np.uint8))[1].tobytes()
            source = [{"image": image, "key": str(i)} for i in range(8)]
            batches = pipeline.train_batches(
                source, labels=[], image_size=8, batch_size=2, seed=0, workers=2, threads=1
            )
            next(batches)
            print(*(child.pid for child in multiprocessing.active_children()), flush=True)
            time.sleep(600)
        """)
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}
    parent = subprocess.Popen(
        [sys.executable, str(program)], stdout=subprocess.PIPE, text=True, env=environment
    )
    with parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.kill()
        parent.wait(30)
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


##### Pictures without labels #####


def test_hidden_labels_are_told_and_their_pictures_stay():
    options = {"labels": ["expression"], "batch_size": 8, "stratify": "expression"}
    batches = train(Records(80), labelled=0.25, **options)
    wanted = subset.subset_indices(pipeline.column(Records(80), "expression"), 0.25, 0)
    assert (batches.num_examples, batches.num_labelled) == (80, len(wanted))
    epoch = take(batches, 10)
    index = np.concatenate([batch["index"] for batch in epoch])
    labelled = np.concatenate([batch["labelled"] for batch in epoch])
    assert sorted(index) == list(range(80))
    assert sorted(index[labelled]) == wanted.tolist()
    assert "labelled" not in take(train(Records(80), **options), 1)[0]


def test_pictures_of_another_set_have_their_share_of_each_batch_and_no_labels():
    class Pictures(Records):
        def __getitem__(self, index):
            record = super().__getitem__(index)
            return {"image": record["image"], "key": record["key"]}

    batches = train(
        Records(20), labels=["expression"], batch_size=8, pictures=Pictures(50),
        unlabelled_share=0.75,
    )  # fmt: skip
    assert (batches.num_examples, batches.num_labelled) == (70, 20)
    for batch in take(batches, 12):
        assert batch["labelled"].sum() == 2 and batch["valid"].all()
        np.testing.assert_array_equal(batch["labelled"], batch["index"] < 20)
        np.testing.assert_array_equal(batch["labelled"], [True, False, False, False] * 2)
        assert not batch["expression"][~batch["labelled"]].any()
    seen = np.concatenate([batch["index"] for batch in take(batches, 20)])
    assert set(range(20)) < set(seen) and seen.max() < 70


def test_a_share_without_labels_needs_such_pictures():
    options = {"labels": ["expression"], "batch_size": 8, "unlabelled_share": 0.5}
    with pytest.raises(errors.UserError, match=r"unlabelled_share asks for .* none left beside 20"):
        train(Records(20), labelled=1.0, **options)

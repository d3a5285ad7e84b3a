"""Several prepared sets as if they were one: labels by their names, rows by their weights."""

import json

import numpy as np
import pytest

from hmtl_jax import build, errors, recipe
from hmtl_jax.data import order, pipeline, records, sources
from hmtl_jax.data.labels import Label
from tests.data.test_records import examples

FIRST = ("neutral", "happiness", "anger")
SECOND = ("Anger", "neutral", "fear")  # upper and lower case are one


def write(data_dir, name, labels, rows):
    """A set of a train split, with these labels of each row."""
    pictures = [example["image"] for example in examples(len(rows), len(name))]
    made = [
        {"image": picture, "key": f"{name}{index}", **row}
        for index, (picture, row) in enumerate(zip(pictures, rows, strict=True))
    ]
    records.write(data_dir, name, "1.0.0", labels, {"train": made}, {"counts": {"train": {}}})


@pytest.fixture
def data_dir(tmp_path):
    hard = {"expression": Label("class", FIRST), "valence": Label("float")}
    rows = [{"expression": i % 4 - 1, "valence": np.float32(i / 10)} for i in range(12)]
    write(tmp_path, "first", hard, rows)
    soft = {
        "expression": Label("class", SECOND),
        "expression_soft": Label("float", SECOND, (3,)),
        "worn": Label("int", ("hat", "beard"), (2,)),
        "votes": Label("int"),
    }
    votes = np.array([0.5, 0.25, 0.25], np.float32)
    rows = [
        {
            "expression": i % 3,
            "expression_soft": np.roll(votes, i),
            "worn": np.array([i % 2, -1]),
            "votes": i,
        }
        for i in range(8)
    ]
    write(tmp_path, "second", soft, rows)
    worn = {"worn": Label("int", ("glasses", "hat"), (2,))}
    write(tmp_path, "third", worn, [{"worn": np.array([1, 0])}] * 4)
    return tmp_path


def test_classes_are_matched_by_their_names(data_dir):
    joined = sources.open_split(data_dir, "first,second", "train")
    assert len(joined) == 20 and joined.split == "train" and joined.name == "first,second"
    assert joined.class_names("expression") == ("neutral", "happiness", "anger", "fear")
    assert joined.class_names("expression_soft") == joined.class_names("expression")
    assert [int(joined[i]["expression"]) for i in range(12)] == [i % 4 - 1 for i in range(12)]
    places = (2, 0, 3)  # of anger, neutral and fear
    assert [int(joined[12 + i]["expression"]) for i in range(8)] == [
        places[i % 3] for i in range(8)
    ]
    assert joined[13]["key"] == "second/second1" and joined[3]["key"] == "first/first3"
    other = sources.open_split(data_dir, "second,first", "train")
    assert other.class_names("expression") == ("Anger", "neutral", "fear", "happiness")
    with pytest.raises(IndexError):
        joined[20]


def test_what_a_set_lacks_is_missing(data_dir):
    joined = sources.open_split(data_dir, "first,second,third", "train")
    assert joined.labels == ("expression", "expression_soft", "valence", "votes", "worn")
    first, second, third = joined[0], joined[12], joined[20]
    assert np.isnan(second["valence"]) and first["votes"] == -1 and third["expression"] == -1
    assert joined.class_names("worn") == ("hat", "beard", "glasses")
    assert first["worn"].tolist() == [-1, -1, -1]
    assert second["worn"].tolist() == [0, -1, -1] and third["worn"].tolist() == [0, -1, 1]
    for record in (first, second, third):
        assert record["worn"].dtype == np.int32 and record["valence"].dtype == np.float32


def test_shares_of_votes_are_those_of_the_class_where_nobody_voted(data_dir):
    """In the order of the joined classes: neutral, happiness, anger, fear."""
    joined = sources.open_split(data_dir, "first,second", "train")
    assert joined[12]["expression_soft"].tolist() == [0.25, 0, 0.5, 0.25]
    assert joined[1]["expression"] == 0 and joined[1]["expression_soft"].tolist() == [1, 0, 0, 0]
    assert joined[0]["expression"] == -1 and joined[0]["expression_soft"].tolist() == [0] * 4


def test_tasks_are_made_of_what_is_joined(data_dir):
    config = recipe.defaults()
    config.tasks.expression = recipe.task("classification", label="expression", soft=True)
    config.tasks.affect = recipe.task("regression", labels=("valence",))
    joined = sources.open_split(data_dir, "first,second", "train")
    made = build.make_tasks(config, joined)
    assert made["expression"].classes == ("neutral", "happiness", "anger", "fear")
    assert pipeline.column(joined, "expression").shape == (20,)


def test_labels_of_one_name_and_two_kinds_are_refused(data_dir):
    for labels, row, words in (
        ({"valence": Label("class", ("low", "high"))}, {"valence": 1}, "has names in some sets"),
        ({"valence": Label("int")}, {"valence": 1}, "is not of one kind in first, odd"),
        (
            {"valence": Label("float", shape=(2,))},
            {"valence": np.ones(2, np.float32)},
            "not of one",
        ),
    ):
        write(data_dir, "odd", labels, [row])
        with pytest.raises(errors.UserError, match=words):
            sources.open_split(data_dir, "first,odd", "train")
        (data_dir / "odd" / "1.0.0").rename(data_dir / f"gone{words[:3]}{len(labels)}{id(row)}")
    for name in ("first,first", "first,", ","):
        with pytest.raises(errors.UserError, match="name each set once"):
            sources.open_split(data_dir, name, "train")
    with pytest.raises(errors.UserError, match="No prepared set 'fourth'"):
        sources.open_split(data_dir, "first,fourth", "train")


def test_several_sets_have_one_identity(data_dir):
    found = sources.identity(data_dir, "first,second")
    assert found["name"] == "first,second" and found["version"] == "1.0.0,1.0.0"
    other = sources.identity(data_dir, "second,first")
    digests = {found["digest"], other["digest"], sources.identity(data_dir, "first")["digest"]}
    assert len(digests) == 3
    json.dumps(found)


def batches(data_dir, **options):
    joined = sources.open_split(data_dir, "first,second,third", "train")
    settings = {"labels": ["expression"], "image_size": 8, "batch_size": 10, "seed": 1}
    return pipeline.train_batches(joined, **(settings | {"threads": 1} | options))


def test_each_set_has_its_part_of_every_batch(data_dir):
    made = batches(data_dir, weights=(1, 2, 1))
    rows = [next(made)["index"] for _ in range(8)]
    made.close()
    of_set = [np.searchsorted([12, 20], one, "right") for one in rows]
    assert all(np.bincount(one, minlength=3).tolist() == [3, 5, 2] for one in of_set)
    # Each set is gone through again and again, every record equally often.
    counts = np.bincount(np.concatenate(rows), minlength=24)
    assert set(counts[12:20]) == {5} and set(counts[20:]) == {4} and set(counts[:12]) == {2}


def test_a_set_of_no_weight_is_left_out_and_others_share(data_dir):
    made = batches(data_dir, weights=(0, 1, 0))
    assert (np.searchsorted([12, 20], next(made)["index"], "right") == 1).all()
    made.close()


def test_processes_share_the_batch_of_several_sets(data_dir):
    whole = batches(data_dir, weights=(1, 2, 1))
    parts = [
        batches(data_dir, weights=(1, 2, 1), process_index=at, process_count=2) for at in (0, 1)
    ]
    for _ in range(5):
        joined = np.concatenate([next(part)["index"] for part in parts])
        np.testing.assert_array_equal(joined, next(whole)["index"])
    for one in (whole, *parts):
        one.close()


@pytest.mark.parametrize("processes", [2, 4])
def test_an_epoch_of_several_sets_has_each_record_once_over_all_processes(data_dir, processes):
    made = [
        batches(data_dir, batch_size=8, process_index=at, process_count=processes)
        for at in range(processes)
    ]
    seen = [next(one)["index"] for _ in range(3) for one in made]
    assert sorted(np.concatenate(seen).tolist()) == list(range(24))
    assert {len(one) for one in seen} == {8 // processes}
    for one in made:
        one.close()
    joined = sources.open_split(data_dir, "first,second,third", "train")
    settings = {"labels": ["expression"], "image_size": 8, "batch_size": 20, "threads": 1}
    parts = [
        pipeline.eval_batches(joined, process_index=at, process_count=processes, **settings)
        for at in range(processes)
    ]
    rows = [batch["index"][batch["valid"]] for part in parts for batch in part]
    assert sorted(np.concatenate(rows).tolist()) == list(range(24))
    assert len({len(part) for part in parts}) == 1


@pytest.mark.parametrize(
    "weights, count, parts",
    [((1, 1), 10, [5, 5]), ((1, 2, 1), 10, [3, 5, 2]), ((0.98, 0.01, 0.01), 10, [8, 1, 1]),
     ((3, 0, 1), 8, [6, 0, 2]), ((1, 1, 1), 3, [1, 1, 1])],
)  # fmt: skip
def test_a_batch_is_shared_in_whole_numbers(weights, count, parts):
    found = order.shared(weights, count)
    assert sum(found) == count and sorted(found) == sorted(parts)
    assert [bool(one) for one in found] == [bool(weight) for weight in weights]

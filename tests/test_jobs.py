"""After training: a run opened by a link, and another set's figures."""

import csv
import shutil

import jax
import pyarrow.parquet
import pytest

from configs import linear_probe
from hmtl_jax import evaluate, fairness, prepare, recipe, sharding, trained
from hmtl_jax.data import records
from hmtl_jax.errors import UserError
from tests import runs
from tests.data.prepared import picture


def test_a_link_names_a_checkpoint_as_its_own_path_does(finished, tmp_path):
    (tmp_path / "latest").symlink_to(finished / "checkpoints" / "8")
    folder, why = trained.find(tmp_path / "latest")
    assert (folder.name, why) == ("8", "as named")
    (tmp_path / "mine").symlink_to(finished)
    assert trained.find(tmp_path / "mine")[0] == trained.find(finished)[0]
    assert trained.recipe_of(tmp_path / "latest").model.encoder == "16x2x2/8"


def test_another_sets_classes_are_matched_by_name(finished, tiny_data, tmp_path):
    """The run's own test pictures as another set: classes in another order, one of them unknown."""
    own = records.open_split(tiny_data, "synthetic", "test")
    classes = own.class_names("expression")
    assert classes is not None
    called = {name: name.upper() for name in classes} | {"anger": "boredom"}
    with open(tmp_path / "mine.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "expression", "split"])
        for index in range(len(own)):
            record = own[index]
            (tmp_path / f"{index}.png").write_bytes(record["image"])
            name = called[classes[record["expression"]]]
            table.writerow([f"{index}.png", name, "train" if index == 0 else "test"])
    prepare.prepare(
        "table", tmp_path / "mine.csv", tmp_path / "data", name="mine", progress=False,
        validation=0.0,
    )  # fmt: skip
    said, place = evaluate.assess(
        finished, data="mine", data_dir=str(tmp_path / "data"), resamples=30
    )
    assert said["unmatched"]["expression"] == {"data": ["boredom"], "run": ["anger"]}
    assert "expression: the run does not know boredom" in evaluate.text(said)
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
        run = trained.load(finished, mesh)
        step = evaluate.measure_step(run.program, mesh)
        found = evaluate.predictions_of(step, run.program, run.variables, own, run.config)
    truth = found["labels"]["expression"][1:]
    right = found["predictions"]["expression"][1:].argmax(1) == truth
    known = truth != classes.index("anger")
    assert said["expression"]["n"] == known.sum() < len(truth)
    assert said["expression"]["accuracy"] == pytest.approx(right[known].mean())

    rows = pyarrow.parquet.read_table(place.with_suffix(".parquet")).to_pylist()
    assert len(rows) == len(truth)
    for row, label, predicted in zip(
        rows, truth, found["predictions"]["expression"][1:], strict=True
    ):
        name = classes[label]
        assert row["expression"] == (None if name == "anger" else name)
        assert row["predicted/expression"] == classes[predicted.argmax()]
        assert row[f"predicted/expression/{name}"] == pytest.approx(predicted[label], abs=1e-5)


@pytest.mark.slow
def test_sets_with_other_labels_train_as_one_and_are_measured_by_their_own(
    tiny_data, compile_cache, tmp_path
):
    """Expressions of one set, hats of another: each is a missing label in the other one."""
    data = shutil.copytree(tiny_data, tmp_path / "data")
    rows = ["path,hat,side,gender,split"]
    for index, split in enumerate(("train", "validation", "test") * 8):
        picture(tmp_path / f"{index}.png", index)
        whose = f"{'ab'[index // 12]},{('female', 'male')[index // 12]}"
        rows.append(f"{index}.png,{('yes', 'no')[index % 2]},{whose},{split}")
    (tmp_path / "hats.csv").write_text("\n".join(rows))
    prepare.prepare("table", tmp_path / "hats.csv", data, name="hats", progress=False)
    config = runs.config(data, supervised=True, steps=8, epochs=0.0, data__name="synthetic,hats")
    with config.unlocked():
        config.tasks.hat = recipe.task("classification", label="hat")
        config.tasks.va = recipe.task("regression", labels=("valence", "arousal"))
    runs.run(config, tmp_path / "run")

    whole, _ = evaluate.assess(tmp_path / "run", data_dir=str(data), resamples=0)
    sets = whole["sets"]
    assert set(sets["hats"]) == {"examples", "hat"}
    assert sets["hats"]["hat"]["confusion"] == whole["hat"]["confusion"]
    assert {"expression", "va"} <= set(sets["synthetic"]) and "hat" not in sets["synthetic"]

    # One of the sets alone has figures of its own tasks, and says which others it has none of.
    alone, _ = evaluate.assess(tmp_path / "run", data="hats", data_dir=str(data), resamples=0)
    assert alone["hat"]["accuracy"] == whole["hat"]["accuracy"]
    assert alone["unlabelled"] == ["expression", "va"] and "expression" not in alone
    assert "  va: no example has a label of it" in evaluate.text(alone)

    probe = linear_probe.get_config()
    probe.init_from, probe.data.name = str(tmp_path / "run"), "hats"
    probe.data.data_dir, probe.batch_size = str(data), 16
    runs.run(probe.lock(), tmp_path / "probe")
    assert [file.name for file in (tmp_path / "probe").glob("*.json")] == ["probe-hat.json"]

    groups = fairness.assess(tmp_path / "run", ["side"], data_dir=str(data), resamples=5)
    assert list(groups["tasks"]) == ["hat"] and groups["left_out"] == runs.SIZES["test"]
    groups = fairness.assess(tmp_path / "run", ["gender"], resamples=5)
    assert groups["left_out"] == 0
    counted = {
        name: sum(row["examples"] for row in task["columns"]["gender"]["groups"].values())
        for name, task in groups["tasks"].items()
    }  # of those with a label of the task
    assert counted == {"expression": runs.SIZES["test"], "va": runs.SIZES["test"], "hat": 8}
    asked = fairness.assess(tmp_path / "run", ["gender"], metric="mae", resamples=5)
    assert list(asked["tasks"]) == ["va"]
    with pytest.raises(UserError, match=r"expression has no metric 'auc'.* va has no metric"):
        fairness.assess(tmp_path / "run", ["gender"], metric="auc", resamples=5)


def test_a_set_without_a_common_class_is_refused(finished, tiny_data, tmp_path):
    own = records.open_split(tiny_data, "synthetic", "test")
    for index in range(12):
        folder = tmp_path / "faces" / ("cat", "dog")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index}.png").write_bytes(own[index]["image"])
    prepare.prepare(
        "folder", tmp_path / "faces", tmp_path / "data", label="expression", progress=False,
        test=0.3, validation=0.0,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"None of the names of 'expression' in folder \(cat, dog"):
        evaluate.assess(finished, data="folder", data_dir=str(tmp_path / "data"))
    assert not list((finished / "eval").glob("folder*"))

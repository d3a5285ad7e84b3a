"""After training: another set's figures, a probe of frozen features, and files for others."""

import csv
import json

import jax
import pyarrow.parquet
import pytest

from configs import linear_probe
from hmtl_jax import (
    evaluate,
    initial,
    prepare,
    probe,
    recipe,
    sharding,
    trained,
)
from hmtl_jax.data import records
from hmtl_jax.errors import UserError
from tests import runs


@pytest.fixture(scope="module")
def finished(tiny_data, compile_cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs") / "run"
    runs.run(runs.config(tiny_data, steps=8, epochs=0.0), folder)
    return folder


def probe_of(**changes):
    config = linear_probe.get_config()
    config.batch_size = 16
    config.update_from_flattened_dict(changes)
    return config.lock()


@pytest.mark.slow
def test_a_probe_reports_the_run_beside_a_random_encoder(finished, tmp_path):
    printed = runs.run(probe_of(init_from=str(finished)), tmp_path / "probe")
    found = json.loads((tmp_path / "probe" / "probe-expression.json").read_text())
    kinds = {"linear", "neighbours", "few_shot", "train_examples"}
    assert set(found["trained"]) == set(found["random"]) == kinds
    assert set(found["trained"]["few_shot"]) == {"1", "5", "10"}
    for encoder in ("trained", "random"):
        assert found[encoder]["train_examples"] == runs.SIZES["train"]
        assert found[encoder]["linear"]["n"] == runs.SIZES["test"]
    assert found["trained"]["linear"]["nll"] != found["random"]["linear"]["nll"]
    accuracy = f"{found['trained']['linear']['accuracy']:.4f}"
    assert any(f"expression, linear: test accuracy {accuracy}, with a random" in p for p in printed)


def test_another_data_set_is_read_at_the_image_size_of_the_run(finished):
    theirs, labels = probe.probed(probe_of(**{"init_from": str(finished), "data.name": "other"}))
    own, _ = probe.probed(probe_of(init_from=str(finished)))
    assert labels == ["expression"]
    assert (theirs.data.name, theirs.data.image_size) == ("other", own.data.image_size)
    assert theirs.data.data_dir == own.data.data_dir
    assert own.data.image_size != linear_probe.get_config().data.image_size


@pytest.mark.slow
def test_a_pretrained_encoder_is_probed_on_the_splits_that_pretraining_left_out(
    tiny_data, compile_cache, tmp_path
):
    config = runs.config(tiny_data, steps=2, epochs=0.0)
    with config.unlocked():
        recipe.pretrain_only(config)
        config.weighting.name, config.optim.warmup_epochs = "fixed", 0.0
    runs.run(config, tmp_path / "run")
    changes = {"init_from": str(tmp_path / "run"), "probe.label": "expression"}
    runs.run(probe_of(**changes), tmp_path / "probe")
    found = json.loads((tmp_path / "probe" / "probe-expression.json").read_text())
    assert found["trained"]["linear"]["n"] == runs.SIZES["test"]


def test_a_probe_reads_numbers_by_ridge_on_part_of_the_labels(finished, tmp_path):
    changes = {"init_from": str(finished), "probe.label": "pose", "data.subset": 0.5}
    runs.run(probe_of(**changes), tmp_path / "probe")
    found = json.loads((tmp_path / "probe" / "probe-pose.json").read_text())
    assert found["trained"]["train_examples"] == runs.SIZES["train"] // 2
    assert set(found["trained"]["linear"]["per_label"]) == {"yaw", "pitch", "roll"}


def test_a_probe_reads_every_attribute(finished, tmp_path):
    changes = {"init_from": str(finished), "probe.label": "attributes"}
    printed = runs.run(probe_of(**changes), tmp_path / "probe")
    found = json.loads((tmp_path / "probe" / "probe-attributes.json").read_text())
    assert found["trained"]["linear"]["n"] == runs.SIZES["test"]
    assert len(found["trained"]["linear"]["per_attribute"]) > 1
    assert any("attributes, linear: test accuracy" in line for line in printed)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"init_from": ""}, "needs init_from"),
        ({"init_from": "nowhere"}, "nowhere is neither a workdir nor a checkpoint"),
        ({"probe.label": "hat"}, "probe.label 'hat' is not in the data set; it has age, arousal"),
        ({"batch_size": 12}, "batch_size 12 does not divide"),
    ],
)
def test_a_probe_that_cannot_be_is_refused_in_a_sentence(finished, tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        runs.run(probe_of(**({"init_from": str(finished)} | changes)), tmp_path / "probe")


def test_a_link_names_a_checkpoint_as_its_own_path_does(finished, tmp_path):
    (tmp_path / "latest").symlink_to(finished / "checkpoints" / "8")
    folder, why = trained.find(tmp_path / "latest")
    assert (folder.name, why) == ("8", "as named")
    (tmp_path / "mine").symlink_to(finished)
    assert trained.find(tmp_path / "mine")[0] == trained.find(finished)[0]
    assert trained.recipe_of(tmp_path / "latest").model.encoder == "16x2x2/8"


def test_a_pytorch_file_is_told_how_to_convert(finished, tmp_path):
    changes = {"init_from": str(tmp_path / "mae.pth"), "probe.label": "expression"}
    changes |= {"data.name": "synthetic", "data.data_dir": "none"}
    with pytest.raises(UserError, match=r"weights_only=True.*save_file.*encoder\.safetensors"):
        initial.encoder(probe_of(**changes), {})


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

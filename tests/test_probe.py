"""The job probe: encoders side by side, features that are kept, stages, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import linear_probe
from hmtl_jax import export, initial, probe, recipe, sharding
from hmtl_jax.errors import UserError
from tests import runs


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
    assert set(found["encoders"]) == {"run", probe.RANDOM}
    assert set(found["encoders"]["run"]["few_shot"]) == {"1", "5", "10"}
    for of in found["encoders"].values():
        assert set(of) == kinds
        assert of["train_examples"] == runs.SIZES["train"]
        assert of["linear"]["n"] == runs.SIZES["test"]
    ours, chance = (of["linear"] for of in found["encoders"].values())
    assert ours["nll"] != chance["nll"]
    text = "\n".join(printed)
    assert f"  run             {100 * ours['accuracy']:.2f} %" in text
    assert f"  random weights  {100 * chance['accuracy']:.2f} %" in text
    page = (tmp_path / "probe" / "probe-expression.md").read_text()
    assert f"| run | {100 * ours['accuracy']:.2f} % |" in page


def test_another_data_set_is_read_at_the_image_size_of_the_run(finished):
    (other,), labels = probe.probed(probe_of(**{"init_from": str(finished), "data.name": "other"}))
    (run,), _ = probe.probed(probe_of(init_from=str(finished)))
    assert labels == ["expression"]
    theirs, own = other.config, run.config
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
    changes = {"init_from": str(tmp_path / "run")}
    with pytest.raises(UserError, match=r"probe.label is empty.* name one of age, arousal"):
        runs.run(probe_of(**changes), tmp_path / "probe")
    changes["probe.label"] = "expression"
    runs.run(probe_of(**changes), tmp_path / "probe")
    found = json.loads((tmp_path / "probe" / "probe-expression.json").read_text())
    assert found["encoders"]["run"]["linear"]["n"] == runs.SIZES["test"]


def test_a_probe_reads_numbers_by_ridge_on_part_of_the_labels(finished, tmp_path):
    changes = {"init_from": str(finished), "probe.label": "pose", "data.subset": 0.5}
    runs.run(probe_of(**changes), tmp_path / "probe")
    found = json.loads((tmp_path / "probe" / "probe-pose.json").read_text())
    assert found["encoders"]["run"]["train_examples"] == runs.SIZES["train"] // 2
    assert set(found["encoders"]["run"]["linear"]["per_label"]) == {"yaw", "pitch", "roll"}


def test_a_probe_reads_every_attribute(finished, tmp_path):
    changes = {"init_from": str(finished), "probe.label": "attributes"}
    printed = runs.run(probe_of(**changes), tmp_path / "probe")
    found = json.loads((tmp_path / "probe" / "probe-attributes.json").read_text())
    assert found["encoders"]["run"]["linear"]["n"] == runs.SIZES["test"]
    assert len(found["encoders"]["run"]["linear"]["per_attribute"]) > 1
    assert any("attributes, test; see" in line for line in printed)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"init_from": ""}, "needs init_from"),
        ({"init_from": "nowhere"}, "nowhere is neither a workdir nor a checkpoint"),
        ({"probe.label": "hat"}, "probe.label 'hat' is not in the data set; it has age, arousal"),
        ({"batch_size": 12}, "batch_size 12 does not divide"),
        (
            {"probe.stage": "stage9"},
            "Unknown probe.stage 'stage9'; known: block00, ",
        ),
        ({"probe.stage": "patches", "probe.pool": "cls"}, "'patches' has no cls token"),
        ({"probe.pool": "max"}, "probe.pool is 'max'; it must be one of mean, cls"),
    ],
)
def test_a_probe_that_cannot_be_is_refused_in_a_sentence(finished, tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        runs.run(probe_of(**({"init_from": str(finished)} | changes)), tmp_path / "probe")


def test_features_are_extracted_once(finished, tmp_path, monkeypatch):
    """Another label, another share and more neighbours read what is kept; other weights do not."""
    asked = {"init_from": str(finished), "probe.label": "pose"}
    made = []
    whole = probe.encoder
    monkeypatch.setattr(probe, "encoder", lambda *of: made.append(of[0].name) or whole(*of))
    runs.run(probe_of(**asked), tmp_path)
    assert made == ["run", probe.RANDOM]
    first = (tmp_path / "probe-pose.json").read_text()
    runs.run(probe_of(**asked | {"data.subset": 0.5}), tmp_path)
    assert len(made) == 2 and (tmp_path / "probe-pose.json").read_text() != first
    runs.run(probe_of(**asked), tmp_path)
    assert len(made) == 2 and (tmp_path / "probe-pose.json").read_text() == first
    kept = next((tmp_path / "features").glob("test-*"))
    kept.write_bytes(kept.read_bytes()[:100])  # as a process that was killed would leave it
    runs.run(probe_of(**asked), tmp_path)
    assert len(made) == 3 and (tmp_path / "probe-pose.json").read_text() == first
    runs.run(probe_of(**asked | {"probe.stage": "block00"}), tmp_path)
    assert len(made) == 5 and (tmp_path / "probe-pose.json").read_text() != first


def test_several_encoders_stand_in_one_table(finished, tmp_path, compile_cache):
    export.write(finished)
    file = finished / "encoder.safetensors"
    asked = {
        "init_from": f"ours={finished},{finished / 'checkpoints' / '8'},file={file}",
        "probe.label": "pose", "data.name": "synthetic", "model.encoder": "16x2x2/8",
        "data.image_size": 32, "model.dtype": "float32",
        "data.data_dir": probe.probed(probe_of(init_from=str(finished)))[0][0].config.data.data_dir,
    }  # fmt: skip
    runs.run(probe_of(**asked), tmp_path)
    found = json.loads((tmp_path / "probe-pose.json").read_text())["encoders"]
    ours, same, read, *chance = found.values()
    assert list(found)[:3] == ["ours", "8", "file"] and chance
    assert ours == same
    assert read["linear"]["mae"] == pytest.approx(ours["linear"]["mae"], rel=1e-3)
    assert all(of["linear"]["mae"] != ours["linear"]["mae"] for of in chance)


def test_encoders_of_different_data_need_a_set_by_name(finished, tmp_path):
    config = json.loads((finished / "config.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps(config | {"data.name": "elsewhere"}))
    with pytest.raises(UserError, match="synthetic and elsewhere; name the set"):
        probe.probed(probe_of(init_from=f"{finished},{other}"))
    with pytest.raises(UserError, match="names an encoder twice"):
        probe.probed(probe_of(init_from=f"{finished},{finished}"))


def test_a_stage_is_pooled_by_its_mean_or_its_cls_token(finished):
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8))
    mesh = sharding.make_mesh()
    found = {}
    with jax.set_mesh(mesh):
        for stage, pool in (("tokens", "cls"), ("tokens", "mean"), ("pooled", "mean")):
            asked = {"init_from": str(finished), "probe.stage": stage, "probe.pool": pool}
            (of,), _ = probe.probed(probe_of(**asked))
            encode, variables = probe.encoder(of, mesh)
            seen = encode(variables, {"image": images})["predictions"]["pooled"]
            found[stage, pool] = np.asarray(seen)
    np.testing.assert_array_equal(found["tokens", "cls"], found["pooled", "mean"])  # it pools so
    assert np.abs(found["tokens", "cls"] - found["tokens", "mean"]).max() > 0.01


def test_features_are_in_the_order_of_the_split_without_padding():
    mesh = sharding.make_mesh(2, 1, jax.devices()[:2])

    @jax.jit
    def encode(state, batch):
        pooled = state * batch["image"].astype(jnp.float32).mean((1, 2))
        labels = {key: value for key, value in batch.items() if key != "image"}
        return {"predictions": {"pooled": pooled}, "labels": labels}

    def batch(indices):
        index = np.array(indices, np.int32)
        image = np.broadcast_to(index[:, None, None, None], (4, 2, 2, 3)).astype(np.uint8)
        return {
            "image": image,
            "index": index,
            "valid": index >= 0,
            "age": (index + 0.5).astype(np.float32),
        }

    found, labels = probe.features(encode, 2.0, [batch([4, 5, 1, -1]), batch([0, 3, 2, -1])], mesh)
    np.testing.assert_array_equal(found, np.arange(6, dtype=np.float32)[:, None] * [[2.0, 2, 2]])
    np.testing.assert_array_equal(labels["age"], np.arange(6) + 0.5)
    assert found.dtype == np.float32


def test_a_pytorch_file_is_told_how_to_convert(tmp_path):
    changes = {"init_from": str(tmp_path / "mae.pth"), "probe.label": "expression"}
    changes |= {"data.name": "synthetic", "data.data_dir": "none"}
    with pytest.raises(UserError, match=r"weights_only=True.*save_file.*encoder\.safetensors"):
        initial.encoder(probe_of(**changes), {})

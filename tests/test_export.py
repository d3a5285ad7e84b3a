"""Files for others: weights in timm's naming, programs for JAX alone and for onnxruntime."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from hmtl_jax import as_onnx, build, export, infer, sharding, state, textures, train, trained
from hmtl_jax.data import records, sources
from hmtl_jax.errors import UserError
from tests import runs


def answers(run, images):
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
        found = trained.load(run, mesh)
        return infer.eval_step(found.program, found.variables, {"image": images})["predictions"]


def test_an_exported_encoder_starts_another_run_as_its_checkpoint_does(
    finished, tiny_data, tmp_path
):
    export.write(finished)
    file = finished / "encoder.safetensors"
    assert {"cls_token", "pos_embed", "blocks.1.mlp.fc2.bias"} <= set(load_file(file))
    with safe_open(file, framework="np") as opened:
        about = opened.metadata()
    assert (about["encoder"], about["image_size"], about["input"]) == ("16x2x2/8", "32", "rgb")
    assert json.loads(about["classes"])["expression"][0] == "neutral"

    def started(path):
        config = runs.config(tiny_data, init_from=str(path))
        mesh = sharding.make_mesh(**config.mesh)
        with jax.set_mesh(mesh), jax.numpy_dtype_promotion("standard"):
            tasks = build.make_tasks(config, records.open_split(tiny_data, "synthetic", "train"))
            training = build.training(config, tasks, 96)
            current = train.begin(config, training, state.abstract(training, mesh))
        return jax.device_get(state.evaluation_variables(current)["params"]["encoder"])

    # The tolerance is 0: both hold the very bits of the moving average.
    jax.tree.map(np.testing.assert_array_equal, started(file), started(finished))


def test_an_exported_model_answers_without_this_code(finished, tmp_path):
    """In another process that has JAX alone, for batches of two sizes."""
    export.write(finished)
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    np.save(tmp_path / "images.npy", images)
    code = """
import sys
import jax, numpy as np
from jax import export
model = export.deserialize(open(sys.argv[1], "rb").read())
images = np.load(sys.argv[2] + "/images.npy")
whole = model.call(images)["expression"]
np.save(sys.argv[2] + "/whole.npy", whole)
np.save(sys.argv[2] + "/two.npy", model.call(images[:2])["expression"])
assert "hmtl_jax" not in sys.modules and "flax" not in sys.modules
"""
    subprocess.run(
        [sys.executable, "-c", code, str(finished / "model.stablehlo"), str(tmp_path)],
        cwd=tmp_path, check=True, timeout=120,
    )  # fmt: skip
    wanted = answers(finished, images)["expression"]
    np.testing.assert_allclose(np.load(tmp_path / "whole.npy"), wanted, atol=1e-5)
    np.testing.assert_allclose(np.load(tmp_path / "two.npy"), wanted[:2], atol=1e-5)
    about = json.loads((finished / "model.json").read_text())
    assert about["input"]["shape"] == ["b", 32, 32, 3]
    assert about["outputs"]["expression"]["names"][0] == "neutral"
    assert len(about["outputs"]["expression"]["names"]) == 8


def test_export_needs_no_data(finished, monkeypatch, capsys):
    def gone(*_):
        raise UserError("There is no data set.")

    monkeypatch.setattr(sources, "open_split", gone)
    monkeypatch.setattr(records, "identity", None)
    monkeypatch.setattr(sys, "argv", ["export", str(finished)])
    export.main()
    said = capsys.readouterr().out
    assert "model.stablehlo, for any batch; its answers on noise, as the data are not at" in said
    card = (finished / "model_card.md").read_text()
    (report,) = (finished / "eval").glob("test-*[0-9].json")
    accuracy = json.loads(report.read_text())["expression"]["accuracy"]
    for said in (
        "A `16x2x2/8` on faces of 32 × 32 pixels", "synthetic 1.1.0, 96 pictures",
        f"| expression/accuracy | {100 * accuracy:.2f} % (", "beside them mae",
        "Not measured: nobody knows whom", "fewer than 50 test examples",
    ):  # fmt: skip
        assert said in card, said


def test_a_head_and_its_encoder_are_one_file_in_timms_naming(finished):
    """What timm does with it: the encoder's feature, and one linear layer."""
    export.write(finished)
    file = finished / "expression.safetensors"
    with safe_open(file, framework="np") as opened:
        about = opened.metadata()
    assert about["timm"].endswith("num_heads=2, num_classes=8, global_pool='token', fc_norm=False)")
    assert about["task"] == "expression" and "softmax" in about["raw"]
    tensors = load_file(file)
    assert set(tensors) - set(load_file(finished / "encoder.safetensors")) == {
        "head.weight", "head.bias",
    }  # fmt: skip
    images = jnp.asarray(np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), np.uint8))
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
        run = trained.load(finished, mesh)
        feature = infer.encode_step(run.program, run.variables, {"image": images})["predictions"]
    logits = np.asarray(feature["pooled"]) @ tensors["head.weight"].T + tensors["head.bias"]
    wanted = answers(finished, images)["expression"]
    np.testing.assert_allclose(jax.nn.softmax(logits), wanted, atol=1e-5)


def test_onnxruntime_answers_as_the_run_does_without_jax(finished, tmp_path):
    """In another process that has onnxruntime alone, for batches of two sizes."""
    pytest.importorskip("jax2onnx", reason="requirements-onnx.txt is not installed")
    with jax.numpy_dtype_promotion("standard"):
        export.write(finished, onnx=True)
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    np.save(tmp_path / "images.npy", images)
    code = """
import sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
images = np.load(sys.argv[2] + "/images.npy")
np.save(sys.argv[2] + "/whole.npy", session.run(["expression"], {"images": images})[0])
np.save(sys.argv[2] + "/two.npy", session.run(["expression"], {"images": images[:2]})[0])
assert "hmtl_jax" not in sys.modules and "jax" not in sys.modules
"""
    command = [sys.executable, "-c", code, str(finished / "model.onnx"), str(tmp_path)]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120)
    wanted = answers(finished, images)["expression"]
    np.testing.assert_allclose(np.load(tmp_path / "whole.npy"), wanted, atol=1e-5)
    np.testing.assert_allclose(np.load(tmp_path / "two.npy"), wanted[:2], atol=1e-5)
    about = json.loads((finished / "model.json").read_text())
    assert set(about["how"]) == set(about["apart"]) == {"model.stablehlo", "model.onnx"}
    assert about["tried_on"] == "8 pictures of synthetic test"
    assert max(about["apart"].values()) < export.APART


def test_scanned_blocks_and_a_fused_view_are_written_plainly(tiny_data, compile_cache, tmp_path):
    """A loop over layers, and what is drawn: jax2onnx knows neither."""
    pytest.importorskip("jax2onnx", reason="requirements-onnx.txt is not installed")
    looped = {"model__scan": True, "model__remat": True, "model__fusion": "cross_attention"}
    looped["model__positions"] = "learned"  # of which the fused view takes those that it keeps
    config = runs.config(tiny_data, steps=8, epochs=0.0, **looped)
    runs.run(config, tmp_path / "run")
    with jax.numpy_dtype_promotion("standard"):
        export.write(tmp_path / "run", onnx=True)
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    wanted = answers(tmp_path / "run", images)["expression"]
    made = (tmp_path / "run" / "model.onnx").read_bytes()
    np.testing.assert_allclose(as_onnx.answers(made, images)["expression"], wanted, atol=1e-5)
    made = (tmp_path / "run" / "model.stablehlo").read_bytes()
    answered = jax.export.deserialize(bytearray(made)).call(images)["expression"]
    np.testing.assert_allclose(answered, wanted, atol=1e-5)


@pytest.mark.parametrize("name", ["rgb", "lbp", "ldp", "hog", "lbp_uniform_rgb"])
def test_what_onnx_lacks_is_written_otherwise(name):
    """Textures pad, shift bits and branch by platform; onnxruntime makes the same of pictures."""
    pytest.importorskip("jax2onnx", reason="requirements-onnx.txt is not installed")
    # Multiples of ten in red alone: no grey level lies at a half, which is rounded either way.
    red = 10 * np.random.default_rng(2).integers(0, 26, (3, 16, 16), np.uint8)
    images = np.stack([red, 0 * red, 0 * red], axis=-1)

    def seen(images):
        return {"seen": textures.as_input(name, images.astype(jnp.float32) / 255)}

    with jax.numpy_dtype_promotion("standard"):
        made = as_onnx.convert(seen, (16, 16, 3), jnp.uint8)
        found = as_onnx.answers(made, images)["seen"]
        np.testing.assert_allclose(found, seen(jnp.asarray(images))["seen"], atol=1e-5)
    assert found.shape == (3, 16, 16, 3) and found.std() > 0.01


def test_what_cannot_be_written_is_said():
    pytest.importorskip("jax2onnx", reason="requirements-onnx.txt is not installed")

    def branches(images):
        bright = images.astype(jnp.float32).mean() > 100
        return {"of": jax.lax.cond(bright, lambda x: x, lambda x: -x, images.astype(jnp.float32))}

    with pytest.raises(UserError, match=r"as ONNX: a branch that hangs on the picture"):
        as_onnx.convert(branches, (4, 4, 3), jnp.uint8)


def test_a_program_that_answers_otherwise_is_not_written(finished, monkeypatch):
    pytest.importorskip("jax2onnx", reason="requirements-onnx.txt is not installed")
    whole = as_onnx.answers

    def off(model, images):
        return {name: of + 2e-4 for name, of in whole(model, images).items()}

    monkeypatch.setattr(as_onnx, "answers", off)
    (finished / "model.onnx").unlink(missing_ok=True)
    with (
        jax.numpy_dtype_promotion("standard"),
        pytest.raises(UserError, match=r"onnx would answer otherwise than the run .*0\.0002"),
    ):
        export.write(finished, onnx=True)
    assert not (finished / "model.onnx").exists()


def test_a_missing_package_is_named_before_anything_is_written(finished, monkeypatch):
    (finished / "model.stablehlo").unlink(missing_ok=True)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(UserError, match=r"jax2onnx.*launch/setup\.sh requirements-onnx\.txt"):
        export.write(finished, onnx=True)
    assert not (finished / "model.stablehlo").exists()

"""Runs in this process, on eight devices: what they leave, say, refuse and survive."""

import collections
import gc
import json
import pathlib
import shutil
import signal
import types

import cv2
import jax
import numpy as np
import pytest

from hmtl_jax import (
    build,
    evaluate,
    initial,
    prepare,
    recipe,
    sharding,
    state,
    train,
    trained,
    workdir,
)
from hmtl_jax.data import pipeline, records
from hmtl_jax.data.labels import Label
from hmtl_jax.data.readers import synthetic
from hmtl_jax.errors import UserError
from hmtl_jax.metrics.names import headlines
from hmtl_jax.models import layers
from tests import runs, tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def watched_run(tiny_data, compile_cache, tmp_path_factory):
    """A whole run: its workdir, what it printed, and the splits it opened to evaluate, in order."""
    folder, opened = tmp_path_factory.mktemp("watched_run") / "run", []
    real = pipeline.eval_batches

    def spy(source, **options):
        opened.append(source.split)
        return real(source, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "eval_batches", spy)
        printed = runs.run(runs.config(tiny_data), folder)
    return types.SimpleNamespace(workdir=folder, printed=printed, opened=opened)


##### What a run leaves and says #####


@pytest.mark.parametrize(
    ("pretext", "low", "high"),
    [
        # A quarter of 16 patches and the cls token: 5 tokens beside 17, and the fused head.
        (recipe.pretext_task("mae", decoder_heads=2, decoder_dim=8), 1.2, 1.4),
        (recipe.pretext_task("puzzle", tiles=2), 1.95, 2.1),
    ],
)
def test_the_cost_of_fusion_is_that_of_the_second_view(pretext, low, high):
    config = tiny.config(8)
    config.model.fusion, config.pretexts = "concat", {"other": pretext}
    training = tiny.training(config)
    shapes = jax.eval_shape(lambda: state.create(training))
    variables = state.evaluation_variables(shapes)
    assert low < train.fusion_cost(training.program, variables) < high


def test_every_kind_of_task_has_a_number_on_the_screen():
    found = {"pose/mae": 4.5, "pose/mae_yaw": 4.0, "affect/ccc": 0.5, "fake/auc": 0.9, "a/ece": 0.1}
    assert headlines(found) == "pose/mae 4.5000, affect/ccc 0.5000, fake/auc 0.9000"


def test_the_workdir_holds_everything(watched_run):
    names = {path.name.partition(".out.")[0] for path in watched_run.workdir.iterdir()}
    assert names == {
        "config.json", "tasks.json", "data.json", "preprocessing.json", "versions.json",
        "metrics.jsonl", "events", "checkpoints", "eval", "pictures",
    }  # fmt: skip
    assert runs.steps(watched_run.workdir) == [12, 18]
    kept = json.loads((watched_run.workdir / "config.json").read_text())
    assert (kept["batch_size"], kept["tasks.expression.kind"]) == (16, "classification")
    drawn = {path.stem for path in (watched_run.workdir / "pictures").iterdir()}
    # What the pretext makes is drawn at the first, second, fourth … evaluation, and at the end.
    assert drawn == {
        "mae", "mae-000006", "mae-000012", "attention", "curves", "expression_confusion",
    }  # fmt: skip
    for name in drawn:
        assert cv2.imread(f"{watched_run.workdir}/pictures/{name}.png") is not None


def test_metrics_hold_the_promised_keys(watched_run):
    lines = runs.writer.read(watched_run.workdir / "metrics.jsonl")
    training = [line for line in lines if "loss/total" in line]
    assert [line["step"] for line in training] == list(range(2, 19, 2))
    promised = {
        "step", "loss/total", "loss/expression", "loss/mae", "weight/expression", "weight/mae",
        "count/expression", "count/mae", "skill/mae",
        "lr", "grad_norm", "images_per_second", "data_wait_fraction", "nonfinite", "skipped_images",
    }  # fmt: skip
    for line in training:
        assert set(line) == promised
        assert all(np.isfinite(value) for value in line.values())
        assert 0 <= line["data_wait_fraction"] <= 1
        parts = [line[f"weight/{name}"] * line[f"loss/{name}"] for name in ("expression", "mae")]
        assert line["loss/total"] == pytest.approx(sum(parts), rel=1e-5)
    evaluated = [line for line in lines if "loss/total" not in line]
    assert [line["step"] for line in evaluated] == [6, 12, 18]
    for line in evaluated:
        assert {f"eval/validation/{m}" for m in ("expression/accuracy", "mae/skill")} < set(line)


def test_training_learns(watched_run):
    """Six times the same few faces: the loss must fall from that of a guess."""
    lines = [line for line in runs.metrics(watched_run.workdir) if "loss/total" in line]
    assert lines[0]["loss/expression"] == pytest.approx(np.log(8), abs=0.1)
    assert lines[-1]["loss/total"] < lines[0]["loss/total"]


def test_each_example_is_evaluated_once(watched_run):
    found = runs.evaluations(watched_run.workdir)
    tests = [name for name in found if name.startswith("test")]
    assert len(tests) == 1
    assert set(found) - set(tests) == {f"validation-{step}.json" for step in (6, 12, 18)}
    for report in found.values():
        size = runs.SIZES[report["split"]]
        assert (report["examples"], report["skipped_images"]) == (size, 0)
        assert report["expression"]["n"] == np.sum(report["expression"]["confusion"]) == size


def test_the_test_split_is_read_once_at_the_end(watched_run):
    faces = ("validation", "test")  # in pictures: none that was trained on
    assert watched_run.opened == ["validation", faces[0], "test", faces[1]]


def test_the_last_line_says_what_was_reached_and_where_to_look(watched_run):
    last = watched_run.printed[-1]
    (name,) = (name for name in runs.evaluations(watched_run.workdir) if name.startswith("test"))
    report = runs.evaluations(watched_run.workdir)[name]
    assert last.startswith(f"test: expression/accuracy {report['expression']['accuracy']:.4f}, ")
    assert f"at step {report['step']} (the best by expression/accuracy)" in last
    where, _, files = last.partition("; see ")[2].partition(": ")
    assert where == str(watched_run.workdir)
    assert f"eval/{name}" in files
    assert all((watched_run.workdir / file).is_file() for file in files.split(", "))


def test_progress_is_said_in_lines_of_steps(watched_run):
    assert watched_run.printed[0] == "synthetic: 96 training examples, 18 steps of 16"
    assert watched_run.printed[1].endswith("in training; 8 × cpu")
    steps = [line for line in watched_run.printed if line.startswith("step ")]
    assert len(steps) == 9
    assert all("images/s  ETA " in line for line in steps)
    assert len([line for line in watched_run.printed if line.startswith("  validation: ")]) == 3


##### Evaluation #####


@pytest.fixture
def mesh():
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh), jax.numpy_dtype_promotion("standard"):
        yield mesh


@pytest.mark.parametrize("devices", [1, 6])
def test_a_run_is_opened_on_other_devices_without_its_data(watched_run, tiny_data, devices):
    """Batch 16 does not divide over 6; the numbers are the recorded ones all the same."""
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    with jax.set_mesh(mesh), jax.numpy_dtype_promotion("standard"):
        run = trained.load(watched_run.workdir / "checkpoints" / "18", mesh)
        source = records.open_split(tiny_data, "synthetic", "validation")
        measure = evaluate.measure_step(run.program, mesh)
        found, _ = evaluate.of_split(measure, run.program, run.variables, source, run.config)
    recorded = runs.evaluations(watched_run.workdir)["validation-18.json"]
    assert (run.step, run.why, run.run) == (18, "as named", watched_run.workdir)
    assert found["expression"]["nll"] == pytest.approx(recorded["expression"]["nll"], rel=1e-6)
    assert found["expression"]["confusion"] == recorded["expression"]["confusion"]


def test_evaluation_reads_the_moving_average(watched_run, tiny_data, mesh):
    """The recorded NLL is that of the averaged weights and not that of the last ones."""
    run = trained.load(watched_run.workdir / "checkpoints" / "18", mesh)
    arrays = runs.arrays(watched_run.workdir, 18)
    recorded = runs.evaluations(watched_run.workdir)["validation-18.json"]
    assert recorded["weights"] == "moving average"
    leaves = jax.tree_util.tree_flatten_with_path(run.variables)[0]
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        np.testing.assert_array_equal(leaf, arrays[f"ema/{name}"])
    assert any(
        not np.array_equal(arrays[name], arrays[f"ema/{name}"])
        for name in arrays
        if name.startswith("params/")
    )


def test_at_the_end_no_state_stands_beside_what_the_report_reads(
    tiny_data, compile_cache, tmp_path, monkeypatch
):
    held = []
    load = trained.load

    def spy(path, mesh):
        gc.collect()
        held.append(sum(x.nbytes for x in jax.live_arrays() if x.ndim > 1))
        return load(path, mesh)

    monkeypatch.setattr(trained, "load", spy)
    gc.collect()
    before = sum(x.nbytes for x in jax.live_arrays() if x.ndim > 1)
    cfg = runs.config(tiny_data, supervised=True, epochs=0.0, steps=2, optim__warmup_epochs=0.0)
    runs.run(cfg, tmp_path / "run")
    assert held == [before + 16 * 32 * 32 * 3]  # the last batch, and none of the weights
    runs.run(cfg, tmp_path / "run")  # which has nothing left to train
    assert held[1:] == [before]


def test_other_data_are_evaluated_under_their_own_name(
    watched_run, tiny_data, compile_cache, tmp_path, monkeypatch
):
    other = tmp_path / "data"
    sizes = {"train": 8, "validation": 8, "test": 17}
    prepare.prepare("synthetic", None, other, progress=False, size=32, seed=7, **sizes)
    again = tmp_path / "run"
    shutil.copytree(watched_run.workdir, again)
    before = runs.evaluations(again)
    said, place = evaluate.assess(again, data_dir=str(other), resamples=20)
    after = runs.evaluations(again)
    assert {name: after[name] for name in before} == before
    (new,) = set(after) - set(before)
    identity = records.identity(other, "synthetic")
    own = watched_run.printed[-1].split("eval/")[1].split(",")[0]
    assert new == f"synthetic-{identity['digest'][:8]}-{own}" == place.name
    assert after[new]["examples"] == 17
    assert after[new]["data"]["digest"] == identity["digest"]
    version = synthetic.Synthetic.version
    assert evaluate.text(said).startswith(f"synthetic {version}, test, 17 examples; step ")
    with pytest.raises(UserError, match=r"was trained on synthetic .* does not go on with other"):
        runs.run(runs.config(other), again)


def test_mirrored_answers_stand_beside_the_plain_ones(
    watched_run, tiny_data, compile_cache, tmp_path
):
    again = tmp_path / "run"
    shutil.copytree(watched_run.workdir, again)
    before = runs.evaluations(again)
    said, _ = evaluate.assess(again, mirror=True, resamples=0)
    after = runs.evaluations(again)
    (new,) = set(after) - set(before)
    assert new.endswith("-mirrored.json") and after[new]["mirrored"]
    assert {name: after[name] for name in before} == before
    plain = before[new.replace("-mirrored", "")]
    assert plain["expression"]["nll"] != after[new]["expression"]["nll"]
    assert "mean with the mirrored pictures" in evaluate.text(said)


def test_several_sets_are_evaluated_as_one_and_each_by_itself(
    watched_run, tiny_data, compile_cache, tmp_path
):
    """A run on its own test split and on another set at once: the whole is what its parts make."""
    data, again = tmp_path / "data", tmp_path / "run"
    shutil.copytree(tiny_data, data)
    shutil.copytree(watched_run.workdir, again)
    sizes = {"train": 8, "validation": 8, "test": 17}
    prepare.prepare(
        "synthetic", None, data, name="more", progress=False, size=32, seed=7, **sizes
    )  # fmt: skip
    said, _ = evaluate.assess(again, data="synthetic,more", data_dir=str(data), resamples=0)
    (new,) = set(runs.evaluations(again)) - set(runs.evaluations(watched_run.workdir))
    found = runs.evaluations(again)[new]
    sets = found["sets"]
    assert sets["more"]["examples"] == 17
    assert found["examples"] == 17 + sets["synthetic"]["examples"]
    right = {name: part["expression"]["accuracy"] * part["examples"] for name, part in sets.items()}
    assert sum(right.values()) == pytest.approx(
        found["expression"]["accuracy"] * found["examples"], abs=1e-3
    )
    before = runs.evaluations(watched_run.workdir).values()
    (own,) = (one for one in before if (one["split"], one["step"]) == ("test", found["step"]))
    assert own["examples"] == sets["synthetic"]["examples"]
    assert sets["synthetic"]["expression"]["accuracy"] == own["expression"]["accuracy"]
    assert "  of more, 17 examples: expression/accuracy" in evaluate.text(said)


def test_an_evaluation_that_fails_does_not_cost_the_state(
    tiny_data, compile_cache, tmp_path, monkeypatch
):
    def fails(*_):
        raise UserError("no")

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "metrics", fails)
        with pytest.raises(UserError, match="no"):
            runs.run(runs.config(tiny_data, supervised=True), tmp_path / "run")
    assert runs.steps(tmp_path / "run") == [6]
    printed = runs.run(runs.config(tiny_data, supervised=True), tmp_path / "run")
    assert "going on from step 6 of 18" in printed


def test_a_diverged_run_that_skips_its_steps_says_so(tiny_data, compile_cache, tmp_path):
    changes = {"optim__lr": 1e30, "optim__warmup_epochs": 0.0, "nonfinite": "skip"}
    changes |= {"optim__name": "sgd", "optim__ema": 0.0, "steps": 3, "epochs": 0.0}
    said = "Predictions of the task expression are not finite: the run has diverged"
    with pytest.raises(UserError, match=said):
        runs.run(runs.config(tiny_data, supervised=True, **changes), tmp_path / "run")


def test_a_signal_ends_the_report_as_it_ends_any_program(
    tiny_data, compile_cache, tmp_path, monkeypatch
):
    """Everything is saved by then; swallowed, a stop would look like a finished run."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    seen = []

    def report(*arguments):
        seen.extend(signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT))

    monkeypatch.setattr(evaluate, "report", report)
    changes = {"steps": 1, "epochs": 0.0, "optim__warmup_epochs": 0.0}
    runs.run(runs.config(tiny_data, supervised=True, **changes), tmp_path / "run")
    assert seen == before


def test_a_window_of_steps_is_traced(tiny_data, compile_cache, tmp_path):
    changes = {"steps": 3, "epochs": 0.0, "optim__warmup_epochs": 0.0}
    cfg = runs.config(tiny_data, supervised=True, profile_steps=(2, 3), **changes)
    printed = runs.run(cfg, tmp_path / "run")
    assert any(line.startswith("traced steps 2 to 3 into ") for line in printed)
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


def test_a_window_outside_the_run_is_refused_before_anything_is_written(tiny_data, tmp_path):
    changes = {"steps": 3, "epochs": 0.0, "optim__warmup_epochs": 0.0}
    cfg = runs.config(tiny_data, supervised=True, profile_steps=(3, 4), **changes)
    with pytest.raises(UserError, match=r"profile_steps \(3, 4\) lies outside the run, .* 3 steps"):
        runs.run(cfg, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_evaluating_a_finished_run_again_gives_the_same_numbers(watched_run, tiny_data, tmp_path):
    again = tmp_path / "run"
    shutil.copytree(watched_run.workdir, again)
    shutil.rmtree(again / "eval")
    said, place = evaluate.assess(again, resamples=50)
    (before,) = (
        found for name, found in runs.evaluations(watched_run.workdir).items() if name == place.name
    )
    assert {key: said[key] for key in ("examples", "step", "weights")} == {
        key: before[key] for key in ("examples", "step", "weights")
    }
    low, high = said["expression"].pop("intervals")["accuracy"]
    assert said["expression"] == before["expression"]
    accuracy = before["expression"]["accuracy"]
    assert low <= accuracy <= high and (low < high) == (0 < accuracy < 1)
    assert (again / "pictures" / "curves.png").is_file()
    for name in ("config.json", "metrics.jsonl"):
        assert (again / name).read_bytes() == (watched_run.workdir / name).read_bytes()


def test_evaluating_nothing_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="is neither a workdir with checkpoints nor a checkpoint"):
        evaluate.assess(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_best_by_validation_is_kept_and_reported(
    tiny_data, compile_cache, tmp_path, monkeypatch
):
    """With made-up scores, whose best is neither the first nor the last."""
    scores = iter([0.2, 0.9, 0.5, 0.0])
    monkeypatch.setattr(evaluate, "metrics", lambda *_: {"expression": {"accuracy": next(scores)}})
    cfg = runs.config(tiny_data, checkpoint__keep=1)
    printed = runs.run(cfg, tmp_path / "run")
    assert runs.steps(tmp_path / "run") == [12, 18]
    assert "at step 12 (the best by expression/accuracy)" in printed[-1]
    assert set(runs.evaluations(tmp_path / "run")) == {
        "validation-6.json", "validation-12.json", "validation-18.json", "test-12.json",
    }  # fmt: skip


@pytest.mark.parametrize("key, score", [("expression/accuracy", 0.25), ("expression/nll", -1.5)])
def test_the_best_has_the_least_of_an_error(tiny_data, tmp_path, key, score):
    cfg = runs.config(tiny_data, checkpoint__best=key)
    identity = records.identity(tiny_data, "synthetic")
    found = {"expression": {"accuracy": 0.25, "nll": 1.5}}
    assert train.scored(cfg, tmp_path, 6, found, identity, None) == score


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"checkpoint__best": "expresion/accuracy"}, "Did you mean 'expression'"),
        ({"checkpoint__best": "accuracy"}, "must be TASK/METRIC"),
        ({"data__validation": ""}, "needs data.validation, which is empty"),
    ],
)
def test_a_best_that_cannot_be_is_refused_before_training(tiny_data, tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        runs.run(runs.config(tiny_data, **changes), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


##### Whose the workdir is, and whether it can hold a run #####


def test_a_workdir_of_another_recipe_is_refused(watched_run, tiny_data):
    with pytest.raises(UserError) as caught:
        runs.run(runs.config(tiny_data, optim__lr=0.5, seed=3), watched_run.workdir)
    assert str(watched_run.workdir) in str(caught.value)
    assert "optim.lr: 0.001 → 0.5; seed: 0 → 3" in str(caught.value)


def test_a_checkpoint_of_another_recipe_is_refused(watched_run, tiny_data, tmp_path):
    """Without config.json the checkpoint itself still knows."""
    shutil.copytree(watched_run.workdir / "checkpoints", tmp_path / "checkpoints")
    with pytest.raises(UserError, match=r"checkpoints/18 belongs .* optim\.lr: 0\.001 → 0\.5"):
        runs.run(runs.config(tiny_data, optim__lr=0.5), tmp_path)


def test_a_workdir_that_cannot_be_written_fails_first(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "open_split", None)  # nothing may be read before
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        runs.run(runs.config(tiny_data), tmp_path / "file" / "run")


def test_a_full_disk_fails_before_training(tiny_data, tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, 1000))
    with pytest.raises(UserError, match=r"has 1 kB free, but 4 checkpoints of .* kB need"):
        runs.run(runs.config(tiny_data), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_start_that_fails_does_not_claim_the_workdir(tiny_data, tmp_path):
    with pytest.raises(UserError, match="neither a workdir with checkpoints nor a checkpoint"):
        runs.run(runs.config(tiny_data, init_from=str(tmp_path / "typo")), tmp_path / "run")
    workdir.check(tmp_path / "run", runs.config(tiny_data))


##### Where training starts and on what #####


def test_init_from_lists_what_it_took_and_left(
    watched_run, tiny_data, compile_cache, tmp_path, mesh
):
    cfg = runs.config(tiny_data, init_from=str(watched_run.workdir))
    tasks = build.make_tasks(cfg, records.open_split(tiny_data, "synthetic", "train"))
    training = build.training(cfg, tasks, 96)
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr(initial, "say", printed.append)
        current = train.begin(cfg, training, state.abstract(training, mesh))
    last = run_arrays = runs.arrays(watched_run.workdir, 18)
    average = last["ema/params/encoder/embed/kernel"]
    np.testing.assert_array_equal(current.params["encoder"]["embed"]["kernel"], average)
    head = current.params["heads_expression"]
    assert not np.array_equal(
        jax.tree.leaves(head)[1], run_arrays["params/heads_expression/linear/kernel"]
    )
    took, left = printed
    assert took.startswith(
        f"init_from {watched_run.workdir}: took encoder/blocks (24), encoder/cls, "
    )
    assert "encoder" not in left.partition(": left ")[2]
    assert "heads_expression" in left and "decoders_mae" in left


def test_init_from_refuses_another_size(watched_run, tiny_data, tmp_path):
    cfg = runs.config(tiny_data, init_from=str(watched_run.workdir), model__encoder="32x2x2/8")
    with pytest.raises(
        UserError, match=r"does not fit the recipe's model.*fc2/bias \(16,\) → \(32,\)"
    ):
        runs.run(cfg, tmp_path / "run")


def test_a_subset_is_its_share_of_each_class(tiny_data, tmp_path, mesh):
    whole = records.open_split(tiny_data, "synthetic", "train")
    classes = pipeline.column(whole, "expression")
    cfg = runs.config(tiny_data, data__subset=0.25)
    batches = train.train_batches(cfg, whole, build.make_tasks(cfg, whole))
    wanted = sum(max(1, int(0.25 * n + 0.5)) for n in np.bincount(classes) if n)
    assert batches.num_examples == wanted
    seen = {int(i) for _ in range(40) for i in next(batches)["index"]}
    assert len(seen) == wanted
    batches.close()


@pytest.mark.parametrize(
    "changes, said",
    [
        (
            {"data__data_dir": "/nowhere", "data__name": "ferplus"},
            "data_dir /nowhere cannot be read",
        ),
        ({"data__name": "ferplus"}, "No prepared set 'ferplus' in data_dir .*synthetic"),
        ({"data__validation": "dev"}, "Unknown split of synthetic 'dev'; known: test, train"),
        ({"data__test": "tset"}, "Unknown split of synthetic 'tset'.*Did you mean 'test'"),
        ({"batch_size": 12}, "batch_size 12 does not divide over 8 devices"),
        ({"eval_batch_size": 12}, "eval_batch_size 12 does not divide over 8 devices"),
        ({"batch_size": 128}, "too few for one batch of 128"),
        ({"model__encoder": "16x2x2/5"}, "patch 5 does not divide the image size 32"),
        ({"model__encoder": "XL/16"}, "Unknown encoder 'XL'; known: B, H, L, S, Ti"),
        ({"optim__name": "adm"}, "Unknown optimizer 'adm'; known: adamw, .*Did you mean 'adamw'"),
    ],
)
def test_mistakes_are_one_sentence_before_training(tiny_data, tmp_path, changes, said):
    with pytest.raises(UserError, match=said) as caught:
        runs.run(runs.config(tiny_data, **changes), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


##### Losses that are not finite, and corrupt images #####

POISONED, CORRUPT = 5, 7  # records of train


@pytest.fixture(scope="module")
def flawed_data(tiny_data, tmp_path_factory):
    """The tiny data with soft labels, an infinite one, and a corrupt image in two splits."""
    labels = synthetic.LABELS | {"expression_soft": Label("float", shape=(8,))}

    def examples(split):
        source = records.open_split(tiny_data, "synthetic", split)
        for index in range(len(source)):
            record = source[index]
            record["expression_soft"] = np.eye(8, dtype=np.float32)[record["expression"]]
            if (split, index) == ("train", POISONED):
                record["expression_soft"][0] = np.inf
            if split != "test" and index == CORRUPT:
                record["image"] = record["image"][:-200]
            yield record

    data_dir = tmp_path_factory.mktemp("flawed")
    splits = {split: examples(split) for split in runs.SIZES}
    records.write(data_dir, "synthetic", "9.0.0", labels, splits, {})
    return data_dir


def poisoned_steps(flawed_data):
    source = records.open_split(flawed_data, "synthetic", "train")
    batches = pipeline.train_batches(
        source, labels=[], image_size=32, batch_size=16, seed=0, tolerate_corrupt=True
    )
    found = [at for at in range(1, 2 * runs.PER_EPOCH + 1) if POISONED in next(batches)["index"]]
    batches.close()
    return found


def test_flaws_stop_a_run_or_are_skipped_and_counted(
    flawed_data, compile_cache, tmp_path, monkeypatch
):
    cfg = runs.config(
        flawed_data, supervised=True, tasks__expression__soft=True, checkpoint__every=1, epochs=2.0
    )
    folder = tmp_path / "run"

    # A corrupt image names its key.
    key = records.open_split(flawed_data, "synthetic", "train")[CORRUPT]["key"]
    with pytest.raises(UserError, match=f"Record '{key}' of the split 'train'.*tolerate_corrupt"):
        runs.run(cfg, folder)

    # Tolerated, the run goes on to the infinite label; what came before is saved, and nothing else.
    first, *others = poisoned_steps(flawed_data)
    assert 1 < first <= runs.PER_EPOCH and len(others) == 1
    cfg.data.tolerate_corrupt = True
    with pytest.raises(UserError, match=rf"not finite at step {first}; nothing was saved since"):
        runs.run(cfg, folder)
    assert max(runs.steps(folder)) == first - 1
    for step in runs.steps(folder):
        assert all(np.isfinite(x).all() for x in runs.arrays(folder, step).values())

    # Skipped, it ends, with both counted.
    cfg.nonfinite, cfg.checkpoint.every = "skip", 0
    printed = runs.run(cfg, folder)
    assert f"going on from step {first - 1} of 12" in printed
    lines = [line for line in runs.metrics(folder) if "loss/total" in line]
    assert sum(line["nonfinite"] for line in lines) == 2
    assert sum(line["skipped_images"] for line in lines) == 2
    assert all(np.isfinite(x).all() for x in runs.arrays(folder, 12).values())
    assert any("1 steps not finite" in line for line in printed)
    report = runs.evaluations(folder)["validation-12.json"]
    assert (report["examples"], report["skipped_images"]) == (19, 1)
    assert report["expression"]["n"] == 19


def test_weights_that_are_not_finite_are_never_saved(tiny_data, compile_cache, tmp_path):
    """A step may blow the weights up while its own loss was still finite."""
    cfg = runs.config(
        tiny_data,
        supervised=True,
        optim__lr=3e38,
        optim__weight_decay=1e6,
        optim__warmup_epochs=0.0,
        checkpoint__every=1,
    )
    with pytest.raises(
        UserError, match="The weights are not finite after step 1, and were not saved"
    ):
        runs.run(cfg, tmp_path / "run")
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    assert pathlib.Path(tmp_path / "run" / "metrics.jsonl").exists()


def test_attention_that_changes_nothing_is_said(monkeypatch):
    config = tiny.config()
    assert not train.takes_cudnn(config)  # no GPU, and float32
    monkeypatch.setattr(layers, "has_cudnn", lambda: True)
    config.model.update({"encoder": "64x2x2/8", "dtype": "bfloat16"})
    assert train.takes_cudnn(config)
    for other in ({"dtype": "float32"}, {"encoder": "64x2x16/8"}, {"encoder": "cnn16"}):
        changed = config.copy_and_resolve_references()
        changed.model.update(other)
        assert not train.takes_cudnn(changed)

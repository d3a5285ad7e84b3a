import csv
import json
import pathlib
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import stats

from hmtl_jax import compare, evaluate, figures
from hmtl_jax.errors import Unlabelled, UserError
from hmtl_jax.metrics import writer
from hmtl_jax.tasks.binary import Binary
from tests import runs


@pytest.fixture(scope="module")
def checkpoints(whole_run):
    found = sorted((whole_run.workdir / "checkpoints").iterdir(), key=lambda path: int(path.name))
    assert len(found) > 1
    return [found[0], found[-1]]


@pytest.mark.slow
def test_two_checkpoints_have_their_own_values_and_a_paired_interval(checkpoints):
    methods = compare.methods_of([str(path) for path in checkpoints])
    found = compare.compare(methods, resamples=200)
    assert found["examples"] == runs.SIZES["test"] and found["split"] == "test"
    assert found["methods"] == [path.name for path in checkpoints]
    (row,) = found["metrics"].values()
    (first,), (second,) = row["values"]
    assert row["over"] == ["examples"] and 0 < row["p"][0] <= 1
    assert row["differences"] == [pytest.approx(second - first)]
    (low, high) = row["intervals"][0]
    assert -1 <= low <= second - first <= high <= 1


def test_the_same_examples_are_drawn_for_both_runs():
    class Task:
        def metrics(self, predicted, labels):
            return {"accuracy": float(np.mean(predicted == labels["truth"]))}

    truth = np.zeros(400, int)
    labels = {"truth": truth, "index": np.arange(400)}
    base = {"predictions": {"a": np.arange(400) % 2}, "labels": labels}
    same = compare._of_task("a", [Task(), Task()], [base, base], 100, (1, 1))["a/accuracy"]
    assert same["intervals"] == [[0, 0]]  # unpaired, it would be ± 0.07
    # 40 examples more are right and none is lost: the deviation is √(0.1 · 0.9 / 400) = 0.015.
    better = {"predictions": {"a": np.where(np.arange(400) < 80, 0, np.arange(400) % 2)}}
    row = compare._of_task("a", [Task(), Task()], [base, better | {"labels": labels}], 2000, (1, 1))
    row = row["a/accuracy"]
    assert row["differences"] == [pytest.approx(0.1)]
    np.testing.assert_allclose(
        row["intervals"][0], [0.1 - 1.96 * 0.015, 0.1 + 1.96 * 0.015], atol=6e-3
    )


@pytest.mark.slow
def test_frames_of_a_video_are_drawn_together(checkpoints, monkeypatch):
    class Task:
        def metrics(self, predicted, labels):
            return {"accuracy": float(np.mean(predicted == labels["truth"]))}

    labels = {"truth": np.zeros(1600, int), "index": np.arange(1600)}
    videos = np.repeat(np.arange(400), 4)  # of four equal frames
    better = np.where(videos < 80, 0, videos % 2)
    found = [{"predictions": {"a": of}, "labels": labels} for of in (videos % 2, better)]
    row = compare._of_task("a", [Task()] * 2, found, 2000, (1, 1), [], videos)["a/accuracy"]
    # As of 400 examples, and not of 1,600, whose interval is half as wide.
    np.testing.assert_allclose(row["intervals"][0], [0.1 - 0.0294, 0.1 + 0.0294], atol=6e-3)
    assert row["over"] == ["videos"]
    # From the labels of a set to the screen; its people stand for videos.
    monkeypatch.setattr(evaluate, "FRAMES_OF", ("identity",))
    methods = {path.name: [path] for path in checkpoints}
    assert compare.text(compare.compare(methods, resamples=20)).endswith(" over videos")


class Ranked:
    def metrics(self, predicted, labels):
        if not labels["truth"].any():
            raise Unlabelled("No example has a label.")
        auc = 1.0 if predicted.max() > 1 else None  # as where one class is drawn
        return {"accuracy": float(np.mean(predicted > 0)), "auc": auc, "confusion": [[1]]}


def test_metrics_that_are_asked_for_are_measured_on_the_same_draws():
    labels = {"truth": np.arange(40) == 0, "index": np.arange(40)}
    found = [{"predictions": {"a": np.arange(40) // 13}, "labels": labels}] * 2
    asked = compare._of_task("a", [Ranked()] * 2, found, 100, (1, 1), ["auc", "accuracy"])
    assert list(asked) == ["a/auc", "a/accuracy"]
    assert asked["a/auc"]["values"] == [[1], [1]]
    # A third of the draws have no label: they count for nothing, rather than end it.
    assert asked["a/accuracy"]["intervals"] == [[0, 0]] and asked["a/accuracy"]["p"] == [1]
    found = [{"predictions": {"a": np.arange(40) % 2}, "labels": labels}] * 2
    with pytest.raises(UserError, match=r"does not define a/auc, .* by --metrics, of accuracy"):
        compare._of_task("a", [Ranked()] * 2, found, 100, (1, 1), ["auc"])


def test_a_task_that_the_test_has_no_label_of_is_left_out(monkeypatch):
    predicted = {"hat": np.array([0.9, 0.2, 0.6]), "mask": np.array([0.9, 0.2, 0.6])}
    labels = {"hat": np.array([1, 0, 0]), "mask": np.array([-1, -1, -1]), "index": np.arange(3)}
    config = ConfigDict({"checkpoint": {"best": ""}, "data": {"test": "test"}})
    made = SimpleNamespace(tasks={"hat": Binary("hat"), "mask": Binary("mask")})
    run = SimpleNamespace(run="r", config=config, program=made)
    source = SimpleNamespace(name="faces", split="test", labels=("hat", "mask"))
    monkeypatch.setattr(compare.trained, "load", lambda path, mesh: run)
    monkeypatch.setattr(compare, "_source", lambda *_: source)
    found = {"predictions": predicted, "labels": labels}
    monkeypatch.setattr(compare, "_predictions", lambda *_: found)
    methods = {"a": [pathlib.Path("a")], "b": [pathlib.Path("b")]}
    assert list(compare.compare(methods, resamples=5)["metrics"]) == ["hat/accuracy"]
    with pytest.raises(UserError, match=r"No example of faces test has a label of mask\."):
        compare.compare(methods, metrics=["mask/nll"])
    labels["hat"][:] = -1
    with pytest.raises(UserError, match=r"has a label of hat, mask\."):
        compare.compare(methods)


def test_what_chose_the_checkpoint_is_compared_where_nothing_is_asked_for():
    def run(best, *tasks):
        config = ConfigDict({"checkpoint": {"best": best}})
        measures = SimpleNamespace(metric_names=("auc", "nll"))
        program = SimpleNamespace(tasks=dict.fromkeys(tasks, measures))
        return SimpleNamespace(run="r", config=config, program=program)

    both = [run("b/auc", "a", "b"), run("a/accuracy", "b", "a", "c")]
    assert compare._wanted(both, []) == {"a": [], "b": ["auc"]}
    assert compare._wanted([run("puzzle/skill", "a")] * 2, []) == {"a": []}
    assert compare._wanted([run("", "a")] * 2, []) == {"a": []}
    assert compare._wanted([run("a/ccc", "a")] * 2, []) == {"a": []}
    asked = ["b/nll", "b/auc"]
    assert compare._wanted(both, asked) == {"b": ["nll", "auc"]}
    for key, said in (
        ("c/auc", "task of all runs 'c'; known: a, b"),
        ("auc", "is no TASK/METRIC"),
        ("a/acu", "metric of a in all runs 'acu'; known: auc, nll"),
    ):
        with pytest.raises(UserError, match=said):
            compare._wanted(both, [key])
    with pytest.raises(UserError, match="No task is common"):
        compare._wanted([run("", "a"), run("", "b")], [])


@pytest.mark.slow
def test_as_a_command_it_leaves_a_report_and_a_picture(checkpoints, tmp_path, capsys, monkeypatch):
    drawn = []
    draw = figures._draw_panels
    monkeypatch.setattr(figures, "_draw_panels", lambda *args: (drawn.append(args[1]), draw(*args)))
    out = tmp_path / "o"
    monkeypatch.setattr("sys.argv", ["compare", *map(str, checkpoints), "--out", str(out)])
    compare.main()
    printed = capsys.readouterr().out
    report = json.loads((out / "compare.json").read_text())
    assert compare.text(report) in printed and str(out / "compare.png") in printed
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")
    (row,) = report["metrics"].values()
    base, ours = csv.DictReader((out / "compare.csv").read_text().splitlines())
    assert float(ours["difference"]) == row["differences"][0] and base["difference"] == ""
    assert f"| {100 * row['means'][0]:.2f} % | – | – |" in (out / "compare.md").read_text()
    (key,) = report["metrics"]
    (panels,) = drawn  # what a real run logs is found
    assert list(panels) == [f"validation/{key}", f"Training loss/{key.partition('/')[0]}"]
    assert all(list(series) == report["methods"] for series in panels.values())


@pytest.mark.slow
def test_what_cannot_be_compared_is_said(checkpoints, tmp_path, tiny_data):
    for paths, said in (
        (checkpoints[:1], "name two or more"),
        ([checkpoints[0], checkpoints[0]], "named twice"),
    ):
        with pytest.raises(UserError, match=said):
            compare.methods_of([str(path) for path in paths])
    with pytest.raises(UserError, match="There is no run"):
        compare.methods_of([str(checkpoints[0]), f"{tmp_path}/none-*"])
    with pytest.raises(UserError, match="neither a workdir"):
        compare.compare({"a": checkpoints[:1], "b": [tmp_path]})
    from hmtl_jax import prepare

    prepare.prepare(
        "synthetic", None, tmp_path, progress=False, size=32, **(runs.SIZES | {"test": 8})
    )
    with pytest.raises(UserError, match="trained on other data"):
        compare.compare({"a": checkpoints[:1], "b": checkpoints[1:]}, str(tmp_path))


def test_curves_of_runs_lie_in_the_same_panels(tmp_path):
    logs = {}
    for name, worth in (("a", 0.4), ("b", 0.6)):
        logs[name] = tmp_path / f"{name}.jsonl"
        logs[name].write_text(
            "".join(
                json.dumps({"step": step, "eval/validation/task/accuracy": worth, "loss/task": 1.0})
                + "\n"
                for step in (1, 2)
            )
        )
    assert [row["step"] for row in writer.read(logs["a"])] == [1, 2]
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "_draw_panels", lambda path, panels: drawn.append(panels))
        figures.compared_curves(tmp_path / "c.png", logs, ["task/accuracy"])
    (panels,) = drawn
    assert list(panels) == ["validation/task/accuracy", "Training loss/task"]
    np.testing.assert_array_equal(panels["validation/task/accuracy"]["b"][1], [0.6, 0.6])
    with pytest.raises(UserError, match="hold none of"):
        figures.compared_curves(tmp_path / "c.png", logs, ["other/accuracy"])


def test_seeds_are_replicates_of_a_method():
    class Task:
        def metrics(self, predicted, labels):
            return {"accuracy": float(np.mean(predicted == labels["truth"]))}

    labels = {"truth": np.zeros(1000, int), "index": np.arange(1000)}
    wrong = (500, 520, 540, 400, 430)  # three seeds of the first method, two of the second
    found = [{"predictions": {"a": np.arange(1000) < n}, "labels": labels} for n in wrong]
    sizes = (3, 2)
    row = compare._of_task("a", [Task()] * 5, found, 50, sizes)["a/accuracy"]
    assert row["values"] == [[0.5, 0.48, 0.46], [0.6, 0.57]] and row["over"] == ["seeds"]
    assert row["deviations"] == [pytest.approx(0.02), pytest.approx(0.03 / 2**0.5)]
    # Welch by hand: difference 0.105, variance 0.0004 / 3 + 0.00045 / 2, 2.1 degrees of freedom.
    variance = (0.0004 / 3, 0.00045 / 2)
    freedom = sum(variance) ** 2 / (variance[0] ** 2 / 2 + variance[1] ** 2 / 1)
    half = stats.t.ppf(0.975, freedom) * sum(variance) ** 0.5
    assert row["intervals"][0] == [pytest.approx(0.105 - half), pytest.approx(0.105 + half)]
    report = {
        "data": "faces", "split": "test", "examples": 1000, "methods": ["old", "new"],
        "runs": list(sizes), "metrics": {"a/accuracy": row},
    }  # fmt: skip
    said = compare.text(report)
    assert "old (3 runs)  48.00 ± 2.00 %" in said and "+10.50 [" in said
    assert said.endswith(" over seeds")


def test_methods_are_named_by_their_folders(tmp_path):
    for name in ("sl-0", "sl-1", "joint_0", "joint_1"):
        (tmp_path / name).mkdir()
    found = compare.methods_of([f"{tmp_path}/sl-*", f"{tmp_path}/joint_0,{tmp_path}/joint_1"])
    assert {name: [path.name for path in paths] for name, paths in found.items()} == {
        "sl": ["sl-0", "sl-1"], "joint": ["joint_0", "joint_1"],
    }  # fmt: skip
    found = compare.methods_of([f"plain={tmp_path}/sl-0", f"{tmp_path}/joint_0"])
    assert list(found) == ["plain", "joint_0"]
    assert found["plain"] == [pathlib.Path(tmp_path / "sl-0")]

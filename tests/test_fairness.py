"""A run's fairness on its own test split, and on one that lacks the groups."""

import json

import numpy as np
import pytest

from hmtl_jax import evaluate, fairness
from hmtl_jax.data import records
from tests import runs, tiny

pytestmark = pytest.mark.slow


def test_a_run_is_assessed_by_groups_and_their_intersection(whole_run, monkeypatch, capsys):
    found = fairness.assess(whole_run.workdir, ["gender", "skin_tone"], resamples=20)
    assert found["examples"] == runs.SIZES["test"] and found["left_out"] == 0
    columns = found["tasks"]["expression"]["columns"]
    assert list(columns) == ["gender", "skin_tone", "gender × skin_tone"]
    for part in columns.values():
        sizes = {name: row["examples"] for name, row in part["groups"].items()}
        assert sum(sizes.values()) == found["examples"]
        right = sum(row["value"] * row["examples"] for row in part["groups"].values())
        assert right / found["examples"] == pytest.approx(part["overall"])
    data_dir = json.loads((whole_run.workdir / "config.json").read_text())["data.data_dir"]
    source = records.open_split(data_dir, "synthetic", "test")
    genders = np.array([source[index]["gender"] for index in range(len(source))])
    assert columns["gender"]["groups"]["male"]["examples"] == (genders == 0).sum()
    assert found["over"] == "examples"
    monkeypatch.setattr(evaluate, "FRAMES_OF", ("identity",))
    arguments = [str(whole_run.workdir), "--by", "gender", "--resamples", "5", "--metric", "nll"]
    monkeypatch.setattr("sys.argv", ["fairness", *arguments])
    fairness.main()
    printed = capsys.readouterr().out
    assert "## expression/nll by gender" in printed and "| male (few) |" in printed
    assert "bootstrap over videos within each group" in printed
    (report,) = (whole_run.workdir / "fairness").glob("*.json")
    assert json.loads(report.read_text())["tasks"]["expression"]["metric"] == "nll"


def test_groups_that_are_not_there_are_named(whole_run):
    def said(by, **options):
        return tiny.refused(fairness.assess, whole_run.workdir, by, **options)

    assert "Unknown label of groups in synthetic: 'race'; known: " in said(["race"])
    assert "is a vector, and names no group" in said(["attributes"])
    assert "The task expression has no metric 'auc'; it has accuracy" in said(
        ["gender"], metric="auc"
    )

import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from configs import linear_probe
from hmtl_jax import charts, evaluate, fairness, model_card, report
from hmtl_jax.errors import UserError
from hmtl_jax.metrics import writer
from tests import runs


@pytest.fixture(scope="module")
def pair(short_run, tiny_data, tmp_path_factory):
    """Two runs, evaluated; the second by group as well."""
    folder = tmp_path_factory.mktemp("report")
    shutil.copytree(short_run, folder / "joint")
    runs.run(runs.config(tiny_data, supervised=True, steps=8, epochs=0.0), folder / "alone")
    for name in ("joint", "alone"):
        evaluate.assess(folder / name, resamples=20)
    config = linear_probe.get_config()
    config.init_from, config.batch_size = str(folder / "joint"), 16
    runs.run(config.lock(), folder / "joint" / "probe")
    found = fairness.assess(folder / "joint", ["expression"], resamples=20)
    (folder / "joint" / "fairness").mkdir()
    (folder / "joint" / "fairness" / "one.json").write_text(json.dumps(found))
    return [folder / "alone", folder / "joint"]


@pytest.mark.slow
def test_a_page_tells_what_two_runs_became(pair):
    made = report.page(pair)
    assert "<title>alone and joint</title>" in made
    for said in (
        "Training loss, expression", "validation/expression/accuracy", "Recall by class",
        "Calibration", "Confusion, joint", "Surest mistakes, alone",
        "accuracy by expression, synthetic test", "joint: expression",
        "<td>random weights</td>", "10 a class", "weighting.lam",
        "pretexts.mae.kind: None → &#39;mae&#39;",
    ):  # fmt: skip
        assert said in made, said
    assert "\nOn synthetic test. Groups are labels" in model_card.text(pair[1])
    test = next((pair[1] / "eval").glob("test-*.json"))
    found = json.loads(test.read_text())["expression"]
    low, high = found["intervals"]["accuracy"]
    assert f"{100 * found['accuracy']:.2f} % ({100 * low:.2f}–{100 * high:.2f})" in made
    # Nothing is asked of a network, and no face is shown unasked.
    assert not re.search(r"(src|href)=[\"'](?!data:|#)", made) and "data:image" not in made
    shown = report.page(pair, pictures=True)
    assert shown.count("data:image/") >= 12 and re.search(r'alt="mae.* of joint"', shown)


@pytest.mark.slow
def test_a_page_shows_in_a_browser_without_an_error(pair, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no Chromium is installed")
    file = tmp_path / "page.html"
    file.write_text(report.page(pair))
    quiet = ("gpu", "sync", "background-networking", "component-update")
    ended = subprocess.run(
        [
            browser, "--headless", "--no-sandbox", *(f"--disable-{name}" for name in quiet),
            "--no-first-run", "--enable-logging=stderr", "--window-size=400,900",
            f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", file.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in ended.stderr
    assert ended.stdout.count("<svg") == ended.stdout.count("</svg>") > 8
    assert "Surest mistakes" in ended.stdout


def test_a_long_log_is_thinned_to_means(tmp_path):
    x = np.arange(100_000.0)
    thin = charts.thinned(x)
    assert len(thin) == charts.POINTS and thin.mean() == pytest.approx(x.mean())
    assert charts.thinned(x[:7]).tolist() == x[:7].tolist()
    svg = charts.lines("Loss", {"run": (x.tolist(), (1 / (1 + x)).tolist())}, log=True)
    assert len(svg) < 50_000 and "currentColor" in svg and "#010203" not in svg


def test_a_folder_that_is_no_run_is_said(tmp_path):
    with pytest.raises(UserError, match=r"is no workdir of a run; it has no config\.json"):
        report.page([tmp_path])


def test_a_run_that_has_just_begun_has_a_page(tmp_path):
    """A recipe, and two lines of a log."""
    from hmtl_jax import recipe, workdir
    from tests import tiny

    config = tiny.config()
    (tmp_path / workdir.CONFIG).write_text(json.dumps(recipe.flat(config)))
    (tmp_path / workdir.TASKS).write_text(json.dumps({"expression": {"kind": "classification"}}))
    (tmp_path / workdir.DATA).write_text(json.dumps({"name": "tiny", "version": "1"}))
    (tmp_path / workdir.VERSIONS).write_text("{}")
    with writer.Writer(tmp_path) as log:
        for step in (1, 2):
            log.write(step, {"loss/expression": 1.0 / step})
    made = report.page([tmp_path])
    assert "Training loss, expression" in made and "<h2>expression</h2>" not in made

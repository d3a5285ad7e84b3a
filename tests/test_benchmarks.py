"""The other benchmarks still run, at sizes for a test, and count what they say they count."""

import json
import subprocess
import sys

import jax
import pytest

from benchmarks import all as benchmark
from benchmarks import by_part, several
from tests import runs

TINY = {"model__encoder": "cnn16", "model__dtype": "float32", "data__image_size": 16}


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax's Adam mixes a float with a counter; for the threads that compile as well."""
    before = jax.config.jax_numpy_dtype_promotion
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    yield
    jax.config.update("jax_numpy_dtype_promotion", before)


def test_a_table_is_there_as_soon_as_its_first_row(tmp_path):
    rows = benchmark.Rows(tmp_path / "out", "About it.")
    rows.add("One", {"step": "a", "images/s": "12"})
    rows.add("Two", {"x": "1"})
    rows.add("One", {"step": "b"})
    said = (tmp_path / "out" / "table.md").read_text()
    assert "| step | images/s |" in said and "| b | – |" in said
    assert said.index("| b | – |") < said.index("#### Two")
    lines = (tmp_path / "out" / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["table"] for line in lines] == ["One", "Two", "One"]


def test_a_part_that_fails_does_not_cost_the_others(monkeypatch, tmp_path):
    """Nor the rows before it; and nothing starts when the time is over."""

    def fails(*_):
        raise ValueError("no memory\nat all")

    took = []
    monkeypatch.setattr(benchmark, "steps", lambda _rows, _args, group, *_: took.append(group))
    monkeypatch.setattr(benchmark, "of_layers", fails)
    monkeypatch.setattr(benchmark, "parity", lambda *_: took.append("parity"))
    arguments = ["all", "--rehearse", f"--out={tmp_path}", "--peer_python="]
    monkeypatch.setattr(sys, "argv", arguments)
    benchmark.main()
    assert took[2] == "parity" and len(took) == 4 and took[0].startswith("ViT-16x2x2/8")
    assert "ValueError: no memory |" in (tmp_path / "table.md").read_text()
    monkeypatch.setattr(sys, "argv", [*arguments, "--minutes=0"])
    benchmark.main()
    assert len(took) == 4


@pytest.mark.slow
def test_a_step_is_timed_at_the_best_of_its_batches(monkeypatch, tmp_path):
    config = benchmark.of_recipe("ferplus_supervised", "cpu", **TINY)
    cases = [benchmark.Case("kept", config, (4, 8), kept=True)]
    rows = benchmark.Rows(tmp_path, "")
    monkeypatch.setattr(sys, "argv", ["all"])
    args = benchmark.argparse.Namespace(peer_python="", compilers=1, seconds=0.1)
    benchmark.steps(rows, args, "small", cases, 1e12)
    (row,) = rows.tables["small"]
    by_batch = {
        int(name): float(speed.replace(",", ""))
        for name, speed in (part.split(": ") for part in row["by batch"].split("; "))
    }
    assert set(by_batch) == {4, 8}
    best = float(row["images/s"].split(" ")[0].replace(",", ""))
    assert best == max(by_batch.values())
    assert float(row["GFLOP an image"]) > 0 and row["ours / its"] == "–"


@pytest.mark.slow
def test_losses_of_twenty_steps_in_bfloat16_are_near_those_in_float32():
    changes = TINY | {"model__encoder": "16x2x2/8"}
    configs = [
        benchmark.of_recipe("ferplus_mae_rgb", "cpu", **changes | {"model__dtype": dtype})
        for dtype in ("float32", "bfloat16")
    ]
    exact, rounded = (benchmark.twenty(config, 8) for config in configs)
    assert len(exact) == 20 and abs(exact[0] - exact[-1]) > 1e-3
    assert 0 < abs(rounded / exact - 1).max() < 0.05


def test_an_operation_belongs_to_the_part_that_its_scope_names():
    path = "jit(train_step)/transpose(jvp(Hybrid))/Hybrid.encode/encoder/blocks/block00/fc1/dot"
    assert by_part.part_of(path) == "encoder, backward"
    assert (
        by_part.part_of("jit(train_step)/jvp(Hybrid)/heads_expression/linear") == "heads, forward"
    )
    assert by_part.part_of("jit(train_step)/augment/encoder") == "augment"
    assert by_part.part_of("jit(train_step)/mul") == "other"
    assert by_part.kind_of("dot_general.12") == "dot_general"
    text = '  %fusion.3 = f32[2]{0} fusion(%a), metadata={op_name="jit(f)/encoder/add" id=1}'
    assert by_part.paths(text) == {"fusion.3": "jit(f)/encoder/add"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")
def test_a_step_by_part_and_its_picture(monkeypatch, capsys, tmp_path):
    picture = tmp_path / "step.png"
    arguments = ["--config=synthetic", "--rows=8", "--steps=1", f"--picture={picture}"]
    monkeypatch.setattr(sys, "argv", ["by_part", *arguments])
    by_part.main()
    said = capsys.readouterr().out
    rows = [line.split(" | ") for line in said.splitlines() if line.startswith("| encoder")]
    assert {row[0] for row in rows} == {"| encoder, forward", "| encoder, backward"}
    assert all(float(row[1]) > 0 for row in rows) and picture.stat().st_size > 10_000


def test_a_line_has_what_each_gets_and_what_all_get_over_one():
    assert several.row("2", 2, 3000.0, 2000.0) == "| 2 | 1,500 | 3,000 | 1.50 |"


@pytest.mark.slow
def test_several_trainings_side_by_side_and_as_one_program(tmp_path):
    changes = [f"--change={key}={value}" for key, value in TINY.items() if "size" not in key]
    command = [sys.executable, "-m", "benchmarks.several", "--processes=1,2", "--words=cpu"]
    said = subprocess.run(
        [*command, *changes, "--batch_size=4", "--seconds=0.2", "--seeds=2"],
        cwd=runs.ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    rows = [line.strip("| ").split(" | ") for line in said.stdout.splitlines()[3:]]
    assert [row[0] for row in rows] == ["1", "2", "2 in one program"]
    assert rows[0][3] == "1.00" and all(float(row[2].replace(",", "")) > 0 for row in rows)

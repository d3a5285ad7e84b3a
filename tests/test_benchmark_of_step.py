"""The benchmark of the train step still runs, and its peer computes the same function."""

import importlib.util

import jax
import pytest

from benchmarks import train_step

TINY = ["--encoder=16x2x2/8", "--image_size=32", "--batch_size=4"]


def run(monkeypatch, capsys, *options):
    monkeypatch.setattr("sys.argv", ["train_step", *TINY, *options])
    # Optax's Adam takes a float to the power of an integer, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        train_step.main()
    return capsys.readouterr().out


@pytest.mark.slow
def test_tables_without_a_peer(monkeypatch, capsys):
    text = run(monkeypatch, capsys, "--peer_python=", "--rounds=1", "--steps=1", "--matmul=64")
    rows = [line.split("|") for line in text.splitlines() if line.startswith(("| sup", "| ssat"))]
    assert len(rows) == 2
    # ms a step, images/s, GFLOP, share of the ceiling, program MB: each a positive number.
    for row in rows:
        assert all(float(cell.strip().rstrip("%")) >= 0 for cell in row[2:-1])
    assert float(rows[1][-2]) > float(rows[0][-2])  # SSAT keeps more
    assert "No peer" in text


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="PyTorch is not installed")
def test_pytorch_computes_the_same_loss_and_gradient(monkeypatch, capsys):
    assert "equal to 1e-4" in run(monkeypatch, capsys, "--check")

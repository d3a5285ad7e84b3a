"""Paths are what users mean by them, or refused in a sentence."""

import pathlib

import pytest

from hmtl_jax import files
from hmtl_jax.data import records
from hmtl_jax.errors import UserError
from tests import runs


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.local("~/runs/a", "--workdir") == tmp_path / "runs" / "a"
    assert files.local("a/~b", "--workdir") == pathlib.Path("a/~b")
    (tmp_path / "data").mkdir()
    assert records.sets("~/data") == {}


@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://bucket", "file:///tmp/x"])
def test_an_address_is_refused_before_anything_is_made(tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    for call in (
        lambda: runs.run(runs.config(tmp_path), address),
        lambda: records.sets(address),
        lambda: records.write(address, "mine", "1.0.0", {}, {}, {}),
    ):
        with pytest.raises(UserError, match="is an address, and hmtl_jax reads and writes folders"):
            call()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", '{"a": ', "[]"])
def test_what_is_no_object_is_told_of(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=r"x\.json .*put back a copy"):
        files.read_json(tmp_path / "x.json")

"""Where compiled programs are kept: by processor, elsewhere if told, and never a must."""

import os
import pathlib
import subprocess
import sys

import pytest

from hmtl_jax import compiled

ASK = "from hmtl_jax import compiled; import jax; compiled.keep({}); {}"
SHOW = "print(jax.config.jax_compilation_cache_dir, jax.config.jax_enable_compilation_cache)"


def run(given, home, then=SHOW, **environment):
    """What a fresh process prints, and its warnings."""
    clean = {k: v for k, v in os.environ.items() if k not in ("JAX_COMPILATION_CACHE_DIR",)}
    done = subprocess.run(
        [sys.executable, "-c", ASK.format(given, then)], capture_output=True, text=True,
        cwd=pathlib.Path(__file__).parents[1], check=True,
        env=clean | {"HOME": str(home), "XDG_CACHE_HOME": "", "JAX_PLATFORMS": "cpu"} | environment,
    )  # fmt: skip
    return done.stdout.strip(), done.stderr


@pytest.mark.slow
def test_what_is_compiled_once_is_there_for_the_next_process(tmp_path):
    told, _ = run("", tmp_path)
    folder = pathlib.Path(told.split()[0])
    assert folder.parent == tmp_path / ".cache" / "hmtl_jax"
    assert folder.name.endswith(compiled.processor()) and folder.is_dir()
    work = (
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0); "
        "print(jax.jit(lambda x: x * 2 + 1)(3))"
    )
    assert run("", tmp_path, work)[0] == "7"
    kept = sorted(path.name for path in folder.iterdir())
    assert kept
    assert run("", tmp_path, work)[0] == "7"
    assert sorted(path.name for path in folder.iterdir() if "atime" not in path.name) == [
        name for name in kept if "atime" not in name
    ]


@pytest.mark.slow
def test_it_is_moved_and_switched_off(tmp_path):
    assert run(f"{str(tmp_path / 'x')!r}", tmp_path)[0].startswith(f"{tmp_path}/x/jax-")
    assert run("''", tmp_path)[0] == "None False"
    assert run("", tmp_path, JAX_COMPILATION_CACHE_DIR="/own")[0] == "/own True"
    found = run("", tmp_path, XDG_CACHE_HOME=str(tmp_path / "xdg"))[0]
    assert found.startswith(f"{tmp_path}/xdg/hmtl_jax/jax-")


@pytest.mark.slow
def test_a_folder_that_cannot_be_made_is_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    told, warned = run(f"{str(tmp_path / 'file' / 'x')!r}", tmp_path)
    assert told == "None True"
    assert "compiled programs are not kept" in warned and "--compile_cache" in warned


def test_another_processor_has_another_folder(monkeypatch):
    names = set()
    for flags in ("fpu avx2", "fpu avx2 avx512f"):
        monkeypatch.setattr(compiled, "_cpuinfo", lambda flags=flags: f"flags\t\t: {flags}\n")
        names.add(compiled.processor())
    assert len(names) == 2

"""A workdir has one living run, whoever asks and from wherever."""

import errno
import json
import subprocess
import sys
import time

import pytest

from hmtl_jax import lock
from hmtl_jax.errors import UserError
from tests import runs

HOLD = """
import pathlib, sys, time
from hmtl_jax import lock
with lock.held(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        cwd=runs.ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def written(folder, **holder):
    (folder / lock.FILE).write_text(json.dumps({"pid": 1, "beat": 7} | holder))


def test_the_second_run_is_told_whose_the_workdir_is(tmp_path, other):
    said = rf"in use by process {other.pid} on \S+; wait for that"
    with pytest.raises(UserError, match=said), lock.held(tmp_path):
        pass
    other.kill()
    other.wait()
    with lock.held(tmp_path):  # a dead one's lock is taken over
        assert json.loads((tmp_path / lock.FILE).read_text())["pid"] != other.pid
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_given_back_when_the_run_fails(tmp_path):
    with pytest.raises(RuntimeError), lock.held(tmp_path):
        raise RuntimeError
    with lock.held(tmp_path):
        pass


@pytest.mark.parametrize("beats", [True, False])
def test_a_run_elsewhere_is_alive_as_long_as_it_says_so(tmp_path, monkeypatch, beats, capsys):
    monkeypatch.setattr(lock, "DEAD", 0.2)
    written(tmp_path, host="elsewhere")

    def sleep(seconds):
        if beats:
            written(tmp_path, host="elsewhere", beat=8)

    monkeypatch.setattr(time, "sleep", sleep)
    if beats:
        said = "in use by process 1 on elsewhere"
        with pytest.raises(UserError, match=said), lock.held(tmp_path):
            pass
    else:
        with lock.held(tmp_path):
            pass
    assert "was in use on elsewhere; waiting" in capsys.readouterr().out


def test_a_disk_without_locks_shows_a_dead_process_of_this_machine(tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    here = lock.socket.gethostname()
    written(tmp_path, host=here, pid=1)  # always there
    with pytest.raises(UserError, match="in use by process 1 on"), lock.held(tmp_path):
        pass
    written(tmp_path, host=here, pid=2**22 + 1)  # above every system's limit
    with lock.held(tmp_path):
        pass


def test_a_lock_that_was_cut_short_is_nobodys(tmp_path):
    (tmp_path / lock.FILE).write_text('{"host": "else')
    with lock.held(tmp_path):
        pass


def test_the_holder_goes_on_saying_that_it_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.01)
    with lock.held(tmp_path):
        end = time.monotonic() + 10
        while json.loads((tmp_path / lock.FILE).read_text() or "{}").get("beat", 0) < 2:
            assert time.monotonic() < end

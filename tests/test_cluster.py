"""Flags that name no cluster are refused; alone, a process watches the signals."""

import os
import signal

import jax
import pytest

from hmtl_jax import cluster
from hmtl_jax.errors import UserError


@pytest.fixture(autouse=True)
def joined(monkeypatch):
    """The arguments with which JAX would have been told to join, and no sign of a real cluster."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given: calls.append(given))
    for name in cluster.DETECTED:
        monkeypatch.delenv(name, raising=False)
    return calls


def test_alone_nothing_is_joined(joined):
    cluster.join(None, None, None)
    assert joined == []


def test_flags_name_the_cluster(joined):
    cluster.join("10.0.0.1:1234", 2, 1)
    assert joined == [("10.0.0.1:1234", 2, 1)]


@pytest.mark.parametrize(
    "name, value, joins",
    [
        ("SLURM_STEP_NUM_TASKS", "1", False),
        ("SLURM_STEP_NUM_TASKS", "4", True),
        ("OMPI_COMM_WORLD_SIZE", "2", True),
        ("TPU_WORKER_HOSTNAMES", "localhost", False),
        ("TPU_WORKER_HOSTNAMES", "t1k-w0,t1k-w1", True),
    ],
)
def test_a_cluster_of_several_is_detected(joined, monkeypatch, name, value, joins):
    monkeypatch.setenv(name, value)
    cluster.join(None, None, None)
    assert joined == ([()] if joins else [])


@pytest.mark.parametrize(
    "given, said",
    [
        (("localhost:1", None, None), "go together; got localhost:1, None and None"),
        ((None, 2, 0), "go together"),
        ((None, None, 0), "go together"),
        (("localhost", 2, 0), "HOST:PORT"),
        (("localhost:x", 2, 0), "HOST:PORT"),
        (("localhost:1", 2, 2), "--process_id 2 is not one of the 2 processes"),
        (("localhost:1", 0, 0), "--process_id 0 is not one of the 0 processes"),
    ],
)
def test_flags_that_name_no_cluster_are_refused(joined, given, said):
    with pytest.raises(UserError, match=said):
        cluster.join(*given)
    assert joined == []


@pytest.mark.parametrize("number, name", [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_a_signal_to_stop_is_seen_named_and_given_back(number, name):
    before = signal.getsignal(number)
    preemption = cluster.Preemption()
    assert not preemption.reached(1)
    os.kill(os.getpid(), number)
    assert preemption.reached(2)
    assert preemption.by == name
    preemption.close()
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_ends_at_once_and_a_second_sigterm_does_not():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may ignore it
    preemption = cluster.Preemption()
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    preemption.close()
    signal.signal(signal.SIGINT, before)

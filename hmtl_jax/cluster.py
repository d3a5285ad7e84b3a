"""Several processes as one program: joining them, speaking with one voice, stopping together."""

import os
import signal
from typing import ClassVar

import jax
from jax.experimental import multihost_utils

from hmtl_jax.errors import UserError

# Set by the launchers of clusters that jax.distributed.initialize() understands by itself.
DETECTED = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES")


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the cluster that the flags name or the environment shows; alone, does nothing.

    Must run before the first look at a device. Raises UserError for flags that name no cluster.
    """
    given = (coordinator, num_processes, process_id)
    if any(flag is not None for flag in given):
        host, colon, port = (coordinator or "").rpartition(":")
        if None in given or not (host and colon and port.isdigit()):
            raise UserError(
                "--coordinator=HOST:PORT, --num_processes and --process_id go together; "
                f"got {coordinator}, {num_processes} and {process_id}."
            )
        if not 0 <= (process_id or 0) < (num_processes or 0):
            raise UserError(
                f"--process_id {process_id} is not one of the {num_processes} processes; "
                "they are numbered from 0."
            )
        jax.distributed.initialize(coordinator, num_processes, process_id)
    elif any(_several(os.environ.get(name, "")) for name in DETECTED):
        jax.distributed.initialize()


def _several(value: str) -> bool:
    return "," in value or (value.isdigit() and int(value) > 1)


class Preemption:
    """Becomes true at the same step on all processes after any of them was told to stop.

    A single process watches SIGTERM and Ctrl-C itself, and a second Ctrl-C ends it at once; among
    several, JAX's coordination service watches SIGTERM.
    """

    NAMES: ClassVar = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}

    def __init__(self):
        self.seen = False
        self.by = "SIGTERM"  # what the last line names
        self.alone = jax.process_count() == 1
        watched = self.NAMES if self.alone else ()
        self.before = {number: signal.signal(number, self._on_signal) for number in watched}

    def _on_signal(self, number, frame) -> None:
        del frame
        self.seen, self.by = True, self.NAMES[number]
        # A launcher and its system may both send SIGTERM; a person presses twice for a reason.
        if number == signal.SIGINT:
            signal.signal(number, self.before[number])

    def reached(self, step: int) -> bool:
        """Whether to save and stop after `step`."""
        return self.seen if self.alone else multihost_utils.reached_preemption_sync_point(step)

    def close(self) -> None:
        """Gives the signals back to whoever had them."""
        for number, handler in self.before.items():
            signal.signal(number, handler)


def lead() -> bool:
    """Whether this process writes the logs and the reports."""
    return jax.process_index() == 0


def wait(name: str) -> None:
    """Waits until every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def say(text: str) -> None:
    """A line on the screen, from the leading process alone."""
    if lead():
        print(text, flush=True)

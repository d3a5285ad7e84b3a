"""A window of steps whose trace TensorBoard and Perfetto open."""

import pathlib
from typing import Any

import jax

from hmtl_jax.cluster import lead, say
from hmtl_jax.errors import UserError


def check(window: tuple[int, int], steps: int) -> None:
    """Raises UserError for a window that a run of `steps` steps does not reach to its end."""
    if window[1] > steps:
        raise UserError(
            f"profile_steps {tuple(window)} lies outside the run, which has {steps:,} steps; "
            "choose a window within it."
        )


class Profile:
    """Traces the steps `first` to `last` into WORKDIR/profile, on the leading process.

    Both 0: never. Choose steps behind the first ones, which compile.
    """

    def __init__(self, folder: pathlib.Path, first: int, last: int):
        self.folder, self.first, self.last = folder / "profile", first, last
        self.running = False

    def before(self, at: int) -> None:
        """To be called before step `at` is handed to the devices."""
        if at == self.first and lead():
            jax.profiler.start_trace(str(self.folder))
            self.running = True

    def after(self, at: int, metrics: Any) -> None:
        """To be called after it; waits for the last step of the window."""
        if at == self.last and self.running:
            jax.block_until_ready(metrics)
            self.close()
            say(f"traced steps {self.first} to {self.last} into {self.folder}")

    def close(self) -> None:
        """Ends the trace where the run ends inside the window."""
        if self.running:
            jax.profiler.stop_trace()
            self.running = False

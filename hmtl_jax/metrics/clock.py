"""How fast a run trains and when it will end, evaluation not counted, across interruptions."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from hmtl_jax import errors


class Clock:
    """Counts images and seconds of training; runs from its construction on.

    Args:
      images, seconds: what earlier parts of the run have counted already.
      now: returns seconds since any fixed moment; never goes back.
    """

    def __init__(
        self, images: int = 0, seconds: float = 0.0, now: Callable[[], float] = time.monotonic
    ):
        self._now = now
        self._images = images
        self._seconds = seconds  # without the stretch since _since
        self._since: float | None = now()  # None while paused
        self._lap_images, self._lap_seconds = images, seconds
        self._lap_rate: float | None = None
        self._longest_lap = 0  # in images

    def count(self, images: int) -> None:
        """Adds images of one step, over all processes."""
        self._images += images

    def pause(self) -> None:
        """Stops the time, for an evaluation; while paused it does nothing."""
        self._seconds, self._since = self.seconds, None

    def resume(self) -> None:
        """Lets the time run again; while running it does nothing."""
        if self._since is None:
            self._since = self._now()

    @property
    def images(self) -> int:
        """Images trained on since the run began."""
        return self._images

    @property
    def seconds(self) -> float:
        """Seconds of training since the run began."""
        return self._seconds + (0.0 if self._since is None else self._now() - self._since)

    @property
    def images_per_second(self) -> float:
        """The rate over the whole run, 0 before any time has passed."""
        return _rate(self._images, self.seconds)

    def lap(self, seconds: float | None = None) -> float:
        """Images per second from the end of the last lap (or since this process began).

        Of a lap less than half as long as the longest, as after an evaluation, the time tells
        nothing: devices run a few steps behind. It gets the rate of the lap before it.

        `seconds`: when this lap ended, as the property counts, for one that is measured later than
        it ended; None: now.
        """
        seconds = self.seconds if seconds is None else seconds
        images = self._images - self._lap_images
        rate = _rate(images, seconds - self._lap_seconds)
        self._lap_images, self._lap_seconds = self._images, seconds
        self._longest_lap = max(self._longest_lap, images)
        if 2 * images >= self._longest_lap or self._lap_rate is None:
            self._lap_rate = rate
        return self._lap_rate

    def eta(self, images_left: int) -> str:
        """The time that `images_left` more will take at the last long lap's rate, as "1 h 02 min".

        The last one's, because the whole run's holds the compilation too. "?" while unknown.
        """
        rate = self._lap_rate or self.images_per_second
        return duration(images_left / rate) if rate > 0 else "?"

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: {"images": int, "seconds": float}, plain JSON."""
        return {"images": self._images, "seconds": self.seconds}

    @classmethod
    def from_state(
        cls, state: Mapping[str, Any], now: Callable[[], float] = time.monotonic
    ) -> "Clock":
        """A running clock that goes on from `state()`; another dict raises UserError."""
        try:
            return cls(int(state["images"]), float(state["seconds"]), now)
        except (KeyError, TypeError, ValueError) as error:
            raise errors.UserError(
                f"The checkpoint's clock must hold images and seconds, not {state!r}; restore"
                " from an older checkpoint."
            ) from error


def duration(seconds: float) -> str:
    """Seconds as two units, rounded: "42 s", "3 min 05 s", "1 h 02 min", "2 d 03 h"."""
    if round(seconds) < 60:
        return f"{round(seconds)} s"
    if round(seconds) < 3600:
        return _two_units(round(seconds), 60, "min", "s")
    if round(seconds / 60) < 24 * 60:
        return _two_units(round(seconds / 60), 60, "h", "min")
    return _two_units(round(seconds / 3600), 24, "d", "h")


def _two_units(total: int, per_large: int, large: str, small: str) -> str:
    return f"{total // per_large} {large} {total % per_large:02d} {small}"


def _rate(images: int, seconds: float) -> float:
    return images / seconds if seconds > 0 else 0.0

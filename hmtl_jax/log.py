"""What training says of itself: a line on the screen and in metrics.jsonl for each interval."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax

from hmtl_jax.cluster import say
from hmtl_jax.errors import UserError
from hmtl_jax.metrics.clock import Clock, duration
from hmtl_jax.metrics.writer import Writer
from hmtl_jax.view import owner

Metrics = Mapping[str, Any]  # of jax.Array, whose stub lacks is_ready
# Metrics of a step that count things; an interval has their sum, of others the mean.
COUNTS = ("nonfinite", "skipped_images")
# A pretext with less skill than this, after this part of the run, is named.
UNLEARNED, EARLY = 0.02, 10


@dataclasses.dataclass
class Interval:
    """Steps between two lines: their metrics, still on the devices, and the host's times."""

    rows: list[tuple[int, Metrics]] = dataclasses.field(default_factory=list)
    waited: float = 0.0  # seconds without a batch
    closed: float = 0.0  # the clock when its last step was handed to the devices
    asked: bool = False  # whether the devices have been asked since
    done: float | None = None  # the clock when they were first seen to have done it

    def ask(self, now: float) -> None:
        """Asks whether the devices have done it, without waiting.

        Those that have at once were waiting for the host, and done when the last step was handed
        over. The others are behind it: a CPU backend queues thirty steps.
        """
        if self.rows and self.done is None:
            if all(value.is_ready() for value in self.rows[-1][1].values()):
                self.done = now if self.asked else self.closed
            self.asked = True


class Log:
    """Metrics of each step, fetched one interval late, so that no device ever waits for the host.

    Args:
      writer: of metrics.jsonl; None on the processes that do not lead.
      steps, batch_size: of the whole run.
      stop_nonfinite: whether a loss that is not finite ends the run, with a UserError.
      unlearned: by pretext, what to try where it learns nothing.
    """

    def __init__(
        self,
        writer: Writer | None,
        clock: Clock,
        steps: int,
        batch_size: int,
        stop_nonfinite: bool,
        unlearned: Mapping[str, str],
    ):
        self.unlearned = unlearned
        self.writer, self.clock = writer, clock
        self.steps, self.batch_size, self.stop_nonfinite = steps, batch_size, stop_nonfinite
        self.running, self.open = Interval(), Interval()
        self.ended = clock.seconds  # the clock when the last written interval was done
        self.counted = 0  # steps of the open interval that the clock has counted already
        self.compiled = False

    def keep(self, at: int, metrics: Metrics, waited: float) -> None:
        """Remembers the metrics of a step, and how long the host waited for its batch."""
        self.running.ask(self.clock.seconds)
        self.open.rows.append((at, metrics))
        self.open.waited += waited
        if not self.compiled:
            self._first(metrics)
        self.open.closed = self.clock.seconds

    def write(self) -> None:
        """Writes the interval before this one; this one waits for the next call."""
        before, self.running, self.open = self.running, self.open, Interval()
        self._emit(before)

    def finish(self) -> None:
        """Writes whatever is kept, waiting for the devices."""
        self.write()
        self.write()

    def _first(self, metrics: Metrics) -> None:
        """Waits for the first step, so that compiling it spoils neither speed nor ETA."""
        jax.block_until_ready(metrics)
        say(f"the first step took {duration(self.clock.seconds - self.ended)}, mostly to compile")
        self.clock.count(self.batch_size)
        self.clock.lap()
        self.ended, self.counted, self.compiled = self.clock.seconds, 1, True
        self.open.waited = 0.0

    def _emit(self, interval: Interval) -> None:
        if not interval.rows:
            return
        at, _ = interval.rows[-1]
        interval.ask(self.clock.seconds)
        rows = [(step, jax.device_get(metrics)) for step, metrics in interval.rows]
        ended = max(self.clock.seconds if interval.done is None else interval.done, self.ended)
        seconds, self.ended = ended - self.ended, ended
        self.clock.count(self.batch_size * (len(rows) - self.counted))
        self.counted = 0
        found = summary([metrics for _, metrics in rows]) | {
            "images_per_second": self.clock.lap(ended) or self.clock.images_per_second,
            "data_wait_fraction": min(interval.waited / seconds, 1.0) if seconds else 0.0,
        }
        if self.writer:
            self.writer.write(at, found)
        say(self._line(at, found))
        if at - len(rows) < self.steps / EARLY <= at:
            self._name_unlearned(found)
        bad = [step for step, metrics in rows if metrics["nonfinite"]]
        if bad and self.stop_nonfinite:
            raise UserError(
                f"The loss or a gradient is not finite at step {_ranges(bad)}; nothing was saved "
                "since. Lower optim.lr, set optim.clip, or set nonfinite='skip'."
            )

    def _name_unlearned(self, found: Mapping[str, float]) -> None:
        for name, value in found.items():
            kind, _, leaf = name.partition("/")
            if kind == "skill" and value < UNLEARNED:
                say(
                    f"after a tenth of the run the pretext {leaf} has a skill of {value:.3f}, and "
                    f"a constant answer has 0; try {self.unlearned[owner(leaf)]}"
                )

    def _line(self, at: int, found: Mapping[str, float]) -> str:
        losses = [
            f"{name[5:]} {value:.4f}"
            for name, value in found.items()
            if name.startswith("loss/") and not math.isnan(value)
        ]
        skills = [
            f"{name} {value:.3f}"
            for name, value in found.items()
            if name.startswith("skill/") and not math.isnan(value)
        ]
        notes = {"nonfinite": "steps not finite", "skipped_images": "images skipped"}
        said = [f"{found[n]:.0f} {note}" for n, note in notes.items() if found[n]]
        eta = self.clock.eta((self.steps - at) * self.batch_size)
        speed = f"{found['images_per_second']:,.0f} images/s"
        return "  ".join([f"step {at}/{self.steps}", *losses, *skills, *said, speed, f"ETA {eta}"])


def summary(rows: list[Mapping[str, Any]]) -> dict[str, float]:
    """One line's numbers for the metrics of several steps, in the order of metrics.jsonl.

    A loss is the mean over the interval's examples that have it, whose number is its `count`: steps
    whose batch has none do not dilute it. NaN where the whole interval has none.
    """
    found = {name: _mean(rows, name) for name in rows[0]}
    summed = [name for name in rows[0] if name in COUNTS or name.startswith("count/")]
    found |= {name: float(sum(row[name] for row in rows)) for name in summed}
    found["lr"] = float(rows[-1]["lr"])
    order = ("loss/total", "loss/", "skill/", "count/", "weight/", "lr", "grad_norm", "")
    return dict(
        sorted(found.items(), key=lambda item: [item[0].startswith(o) for o in order].index(True))
    )


def _mean(rows: list[Mapping[str, Any]], name: str) -> float:
    """The mean of the finite values, by the examples that each stands for where they are known."""
    counted = "count/" + owner(name.removeprefix("loss/"))
    values = [(float(row[name]), float(row.get(counted, 1.0))) for row in rows]
    finite = [(value, count) for value, count in values if math.isfinite(value)]
    total = sum(count for _, count in finite)
    return sum(value * count for value, count in finite) / total if total else math.nan


def _ranges(steps: list[int]) -> str:
    return str(steps[0]) if len(steps) == 1 else f"{steps[0]}–{steps[-1]} ({len(steps)} steps)"

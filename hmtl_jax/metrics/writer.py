"""The log of a run: one JSON object a line in metrics.jsonl, and TensorBoard events beside it."""

import errno
import json
import math
import os
import pathlib
import struct
from collections.abc import Mapping
from typing import Any, SupportsFloat

from hmtl_jax import errors

FILE_NAME = "metrics.jsonl"


class Writer:
    """Appends metrics to WORKDIR/metrics.jsonl and to TensorBoard events in the same folder.

    Each call writes one line and hands it to the operating system at once, so a killed process
    loses none. To be used by one process only, as a context manager or with `close()`.

    Args:
      workdir: made if missing. One that cannot be written to raises UserError.
      resume_step: step of the checkpoint that the run goes on from. Lines of later steps, which
        the run will write again, are dropped, so the log becomes that of an uninterrupted run if
        all lines up to a step are written before that step's checkpoint is saved. -1 begins the
        log anew; None keeps every line. A line that a kill cut short is dropped always.
    """

    def __init__(self, workdir: str | os.PathLike, resume_step: int | None = None):
        self._path = pathlib.Path(workdir) / FILE_NAME
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _mend(self._path, resume_step)
            # Unbuffered: a line is one call to the system, and a failed one leaves nothing behind.
            self._file = self._path.open("ab", buffering=0)
        except OSError as error:
            raise _unwritable(self._path, error) from error
        self._events = _events(self._path.parent, resume_step)

    def write(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Writes one line: `step`, then the metrics in their order, as numbers.

        Values are anything that `float` takes, arrays of no dimension too. NaN and infinity become
        null, because JSON has no word for them, and are left out of TensorBoard. The name "step"
        and a full disk raise UserError.
        """
        if "step" in metrics:
            raise errors.UserError("A metric cannot be called 'step'; rename it in the recipe.")
        values = {name: _finite(value) for name, value in metrics.items()}
        line = json.dumps({"step": int(step), **values}, allow_nan=False).encode() + b"\n"
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise _unwritable(self._path, error) from error
        for name, value in values.items():
            if value is not None:
                self._events.add_scalar(name, value, int(step))

    def picture(self, step: int, name: str, file: pathlib.Path) -> None:
        """Shows a PNG in TensorBoard, under `name`."""
        from tensorboardX.proto import summary_pb2

        proto: Any = summary_pb2  # made at run time, for a type checker empty
        encoded = file.read_bytes()
        width, height = struct.unpack(">II", encoded[16:24])  # of its header
        image = proto.Summary.Image(
            width=width, height=height, colorspace=4, encoded_image_string=encoded
        )
        summary = proto.Summary(value=[proto.Summary.Value(tag=name, image=image)])
        writer: Any = self._events.file_writer
        writer.add_summary(summary, int(step))

    def close(self) -> None:
        """Ends both logs; further calls of `write` fail."""
        self._file.close()
        self._events.close()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl as dicts, without those that a kill cut short."""
    lines = pathlib.Path(path).read_bytes().split(b"\n")
    return [record for record in map(_parse, lines) if record is not None]


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:  # cut short, or the nothing behind the last newline
        return None
    return record if isinstance(record, dict) and "step" in record else None


def _mend(path: pathlib.Path, resume_step: int | None) -> None:
    """Rewrites the log, all or nothing, without cut lines and lines after `resume_step`."""
    if not path.exists():
        return
    limit = math.inf if resume_step is None else resume_step
    kept = [
        line + b"\n"
        for line in path.read_bytes().split(b"\n")
        if (record := _parse(line)) is not None and record["step"] <= limit
    ]
    beside = path.with_suffix(".jsonl.tmp")
    beside.write_bytes(b"".join(kept))
    os.replace(beside, path)


def _events(workdir: pathlib.Path, resume_step: int | None):
    from tensorboardX import SummaryWriter  # here, because it takes a second to import

    # Files of events cannot be cut, but TensorBoard hides what a later file says it purges.
    purge_step = None if resume_step is None else max(resume_step + 1, 0)
    # The name of a file holds whole seconds, so a run restarted within one would overwrite its
    # earlier file if nothing else told them apart.
    part = len(list(workdir.glob("events.out.tfevents.*")))
    return SummaryWriter(str(workdir), purge_step=purge_step, filename_suffix=f".{part}")


def _finite(value: SupportsFloat) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _unwritable(path: pathlib.Path, error: OSError) -> errors.UserError:
    return errors.UserError(
        f"Cannot write {path}: {error.strerror}; free the disk, mend the permissions, or choose"
        " another --workdir."
    )

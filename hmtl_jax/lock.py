"""One run at a time in a workdir: a file that names who holds it, and shows that he lives.

On one machine the system's own lock of that file decides: it goes with its process, however that
ends. Over a shared disk, whose locks may be each machine's own, the holder writes a new number into
the file every BEAT seconds; a file that nobody has changed for DEAD seconds has no living holder.
"""

import contextlib
import dataclasses
import errno
import fcntl
import itertools
import json
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from hmtl_jax import files
from hmtl_jax.errors import UserError

FILE = "lock"
BEAT, DEAD = 10.0, 60.0  # seconds
# What a file system says that knows no locks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


@contextlib.contextmanager
def held(folder: pathlib.Path) -> Iterator[None]:
    """Holds the folder for this process; the folder must be there.

    Raises UserError that names host and process where another living run holds it. What a dead one
    left is taken over: at once if it died on this machine, else after DEAD seconds of silence.
    """
    file, locked = _opened(folder / FILE)
    with file:
        _take(folder, locked)
        _write(file, 0)
        stop = threading.Event()
        beating = threading.Thread(target=_beat, args=(file, stop), daemon=True)
        beating.start()
        try:
            yield
        finally:
            stop.set()
            beating.join()
            (folder / FILE).unlink(missing_ok=True)  # while it is still ours


def _opened(path: pathlib.Path) -> tuple[Any, bool]:
    """The file of this name, and whether it is locked: not where the file system knows no locks.

    Raises UserError if another process has locked it.
    """
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(path)
            file.close()
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise _in_use(path.parent, holder) from None
            if error.errno in NO_LOCKS:
                return path.open("a+"), False
            raise
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file, True
        file.close()  # its holder removed it between our opening and our locking


def _take(folder: pathlib.Path, locked: bool) -> None:
    """Refuses a living holder whom the system's lock did not show."""
    holder = _holder(folder / FILE)
    if holder is None:
        return
    if holder.host == socket.gethostname():
        if not locked and files.is_alive(holder.pid):
            raise _in_use(folder, holder)
        return
    print(f"{folder} was in use on {holder.host}; waiting whether that run still lives", flush=True)
    for _ in range(10):
        time.sleep(DEAD / 10)
        now = _holder(folder / FILE)
        if now != holder:
            raise _in_use(folder, now or holder)


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who holds a workdir, and how often he has said so."""

    host: str
    pid: int
    beat: int


def _holder(path: pathlib.Path) -> Holder | None:
    """Whom the file names; None where it is empty or was cut short."""
    # Opened anew each time: a shared disk may show an open file as it was.
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Holder(**json.loads(path.read_text()))
    return None


def _beat(file: Any, stop: threading.Event) -> None:
    for beat in itertools.count(1):
        if stop.wait(BEAT):
            return
        with contextlib.suppress(OSError):  # a full disk ends the run elsewhere, in words
            _write(file, beat)


def _write(file: Any, beat: int) -> None:
    file.truncate(0)
    file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "beat": beat}))
    file.flush()


def _in_use(folder: pathlib.Path, holder: Holder | None) -> UserError:
    by = f"process {holder.pid} on {holder.host}" if holder else "another process"
    return UserError(
        f"The workdir {folder} is in use by {by}; wait for that run or stop it, or choose another "
        "--workdir."
    )

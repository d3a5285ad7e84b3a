"""Batches made ahead by grain's threads, or by its worker processes with threads of their own."""

import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Iterator

import grain
import numpy as np
from absl import flags

from hmtl_jax import errors


class Running(Iterator[dict[str, np.ndarray]]):
    """The batches of a dataset, in order, read ahead.

    Args:
      batches: the dataset; its elements are dicts of arrays.
      image_nbytes: bytes of a batch's largest array.
      threads: that make batches in each process; None: one for each core, 16 at most.
      workers: processes that make batches; 0: the threads of this one.

    Raises:
      UserError: too little shared memory for the workers; later, a worker that was killed.
    """

    def __init__(
        self, batches: grain.MapDataset, image_nbytes: int, threads: int | None, workers: int
    ):
        self._workers = workers
        threads = threads or min(16, max(1, _usable_cores() // max(1, workers)))
        # Two batches beyond those that are being read keep the device fed over a slow one.
        reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 2)
        dataset = batches.to_iter_dataset(reading)
        if workers:
            _check_shared_memory(3 * workers * image_nbytes)
            dataset = _in_workers(dataset, workers)
        self._iterator = iter(dataset)

    def __next__(self) -> dict[str, np.ndarray]:
        try:
            batch = next(self._iterator)
        except RuntimeError as error:
            if "Worker process was terminated" not in str(error):
                raise
            raise errors.UserError(
                f"A data worker ended by itself ({str(error).partition('. ')[0]}): too little "
                "memory, or a main module that starts work when it is imported; look at the lines "
                "above, and try data.workers=0."
            ) from error
        if self._workers:
            # An array in shared memory must not outlive its file, which JAX can't know (on a CPU
            # it takes arrays over without copying): so copy, and free the file at once.
            batch = {name: np.array(value) for name, value in batch.items()}
        return batch

    def close(self) -> None:
        """Ends the threads or workers."""
        self._iterator.close()


# Smaller arrays travel through the pipe that announces them anyway.
_MIN_SHARED = 1 << 16


def _in_workers(dataset: grain.IterDataset, workers: int) -> grain.IterDataset:
    if not flags.FLAGS.is_parsed():  # grain asks for its own flags, also in a notebook
        flags.FLAGS.mark_as_parsed()
    options = grain.experimental.DatasetOptions(min_shm_size=_MIN_SHARED)
    dataset = grain.experimental.WithOptionsIterDataset(dataset, options)
    return dataset.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers),
        worker_init_fn=_outlive_signals_not_parent,
    )


def _check_shared_memory(needed: int) -> None:
    """A batch ready, one in the making and one being taken over, for each worker.

    A worker that writes beyond the shared memory's end is killed without a word.
    """
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:  # not Linux: shared memory is no file system there
        return
    if needed > free:
        raise errors.UserError(
            f"Data workers need {needed / 1e6:.0f} MB of shared memory for batches in flight, but "
            f"/dev/shm has {free / 1e6:.0f} MB free; give the container more (docker: --shm-size), "
            "or set data.workers=0 (threads)."
        )


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: a job may be given a part of the machine
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _outlive_signals_not_parent(worker: int, workers: int) -> None:
    """Lets a worker end when its parent says so, or is dead; at no other time.

    Ctrl-C and Slurm's SIGTERM reach every process of a job: the parent still wants batches until it
    has saved. And grain's worker whose parent was killed waits for ever to hand over its batch.
    """
    del worker, workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def wait() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()

"""From a source of records to batches on the host: subset, order, shares of processes, decoding.

The unit that grain's threads and worker processes work on is a whole batch, and what is in batch t
is fixed by (seed, t) alone, for given data and global batch size. Hence the position of training is
one number, the count of batches taken, and may be continued with any number of threads, workers and
processes. (Grain's own way, records dealt to workers that batch what they get, makes the batches
depend on the workers.)
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import grain
import numpy as np
from absl import logging

from hmtl_jax import errors
from hmtl_jax.data import decode, order, parallel
from hmtl_jax.data.decoded import Decoded

Batch = dict[str, np.ndarray]


class Source(Protocol):
    """Records by number: a dict with `image` (encoded bytes), `key` (str) and NumPy labels."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


def train_batches(
    source: Source,
    *,
    labels: Sequence[str],
    image_size: int,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    subset: float = 1.0,
    stratify: str | None = None,
    subset_seed: int = 0,
    labelled: float = 1.0,
    pictures: Source | None = None,
    unlabelled_share: float = 0.0,
    sampling: float = 1.0,
    weights: Sequence[float] = (),
    threads: int | None = None,
    workers: int = 0,
    tolerate_corrupt: bool = False,
    cache: str = "none",
) -> "TrainBatches":
    """Returns an endless iterator over this process's share of the training batches.

    A batch is a dict of NumPy arrays: `image` uint8 [b, S, S, 3] RGB, each label int32 or float32
    [b, ...], `index` int32 [b] (the record's number in its split; `source[i]["key"]` is its name)
    and `valid` bool [b]. Where some rows have no labels that tasks may see, `labelled` bool [b]
    tells which have.

    Each epoch is a new shuffle, a function of (seed, epoch) alone, without the remainder that fills
    no batch. The shares of all processes, one after the other, are the very batch that one process
    would get.

    Args:
      source: the records of the training split.
      labels: fields of the records to put into the batch.
      image_size: S; see `decode.decode` for how a picture is brought to it.
      batch_size: of all processes together; b = batch_size / process_count.
      seed: of the order.
      process_index: this process's number, from 0.
      process_count: processes that share each batch.
      subset: share of the examples to train on; see `order.choose`.
      stratify: the integer label whose classes the subset keeps in proportion; None: any draw.
      subset_seed: of the subset, which doesn't hang on `seed`: runs with several seeds then differ
        in training only.
      labelled: share of these whose labels tasks may see; see `order.choose`.
      pictures: records of another set that take part without labels; their `index` goes on where
        that of `source` ends.
      unlabelled_share: share of each batch that is drawn from what has no labels; 0: as it comes.
      sampling: an epoch draws each class of `stratify` as its count to this power says, 1 as they
        are and 0 all equally often, of the rows whose labels tasks see; see `order.quotas`.
      weights: of the sets that `source` is made of, each set's share of the rows with labels in
        every batch, in proportion; (): each record once an epoch, whichever set it is of.
      threads: that read and decode in each process; None: one for each core, 16 at most.
      workers: processes that read and decode instead; 0: threads of this process. The main module
        needs its `if __name__ == "__main__"`, because each worker imports it.
      tolerate_corrupt: a record whose picture can't be decoded shows another one of its batch, with
        `valid` False (its labels stand) and one warning; else it is an error.
      cache: "host": all that takes part is decoded by the first `next` and kept in memory, whole
        in each process; "device": likewise, for `TrainBatches.take_images`; "none": each picture
        is decoded whenever it is its turn. The batches are the same.

    Raises:
      UserError: an unknown label, a batch that processes don't divide or that is larger than the
        data; too little memory; from the iterator: a corrupt picture, with the record's key.
    """
    share = _share(batch_size, process_index, process_count)
    rows = choose(source, subset, labelled, stratify, subset_seed)
    added = len(source) + np.arange(len(pictures) if pictures is not None else 0)
    seen = rows.numbers[rows.labelled]
    unseen = np.concatenate([rows.numbers[~rows.labelled], added])
    labelled_n = None
    if len(unseen):
        labelled_n = np.zeros(len(source) + len(added), bool)
        labelled_n[seen] = True
    load = _Load(
        source, labels, image_size, share.stop - share.start, tolerate_corrupt, pictures, labelled_n
    )
    examples = len(seen) + len(unseen)
    steps_per_epoch = examples // batch_size
    if not steps_per_epoch:
        raise errors.UserError(
            f"{_name(source)} has {examples} training examples, too few for one batch of "
            f"{batch_size}; use a smaller batch."
        )
    classes = column(source, stratify) if sampling != 1.0 and stratify is not None else None
    layout = order.Layout.of(batch_size, unlabelled_share)
    if unlabelled_share and not len(unseen):
        raise errors.UserError(
            f"data.unlabelled_share asks for pictures without labels, and {_name(source)} has none "
            f"left beside {len(seen)} with labels; lower data.labelled, or set "
            "data.unlabelled_share to 0."
        )
    pools = _pools(source, seen, unseen, batch_size, layout, weights, classes, sampling)
    found = TrainBatches(
        order.Steps(pools, seed, share, layout),
        load,
        len(seen),
        examples,
        steps_per_epoch,
        threads,
        workers,
    )
    if cache != "none":
        found.keep(np.sort(np.concatenate([seen, unseen])))
    return found


def _pools(
    source: Source,
    seen: np.ndarray,
    unseen: np.ndarray,
    batch_size: int,
    layout: order.Layout,
    weights: Sequence[float],
    classes: np.ndarray | None,
    sampling: float,
) -> list[order.Pool]:
    """What shares each batch: rows with labels, of one set or of several, and rows without."""

    def pool(numbers: np.ndarray, count: int) -> order.Pool:
        of_each = None if classes is None else classes[numbers]
        return order.Pool(numbers, count, of_each, sampling)

    known = layout.count(batch_size)
    without = batch_size - known
    if not weights:
        if not without:
            together = np.sort(np.concatenate([seen, unseen]))
            if len(unseen):
                return [order.Pool(together, batch_size)]
            return [pool(seen, batch_size)]
        return [pool(seen, known), order.Pool(unseen, without)]
    counts = order.shared(weights, known)
    found = []
    parts: Mapping[str, slice] = getattr(source, "parts", {})
    for (name, rows), count in zip(parts.items(), counts, strict=True):
        members = seen[(seen >= rows.start) & (seen < rows.stop)]
        if count and not len(members):
            raise errors.UserError(f"data.weights gives {name} a share, and it has no such row.")
        if count:
            found.append(pool(members, count))
    return found + ([order.Pool(unseen, without)] if without else [])


def choose(
    source: Source, subset: float, labelled: float, stratify: str | None, seed: int = 0
) -> order.Rows:
    """The records of a split that take part; see `order.choose`."""
    classes = np.zeros(len(source), int)
    if stratify is not None and (subset != 1.0 or labelled != 1.0):
        classes = column(source, stratify)
    return order.choose(classes, subset, labelled, seed)


def eval_batches(
    source: Source,
    *,
    labels: Sequence[str],
    image_size: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    threads: int | None = None,
    workers: int = 0,
    tolerate_corrupt: bool = False,
    keep: bool = False,
) -> "EvalBatches":
    """Returns this process's share of a split, in order; may be iterated again and again.

    Arguments and batches as in `train_batches`; `keep`: what was read once stays in the host's
    memory. Over all processes each record comes exactly once.
    All processes get equally many batches of equal shape: what the last one lacks is filled with
    zeros, `index` -1 and `valid` False.
    """
    share = _share(batch_size, process_index, process_count)
    load = _Load(source, labels, image_size, share.stop - share.start, tolerate_corrupt)
    steps = -(-len(source) // batch_size)
    padded = np.full(steps * batch_size, -1, np.int32)
    padded[: len(source)] = np.arange(len(source))
    batches = grain.MapDataset.source(list(padded.reshape(steps, batch_size)[:, share])).map(load)
    return EvalBatches(batches, load, threads, workers, keep=keep)


class TrainBatches(Iterator[Batch]):
    """Endless batches; see `train_batches`.

    Attributes:
      num_labelled: examples with labels that tasks see.
      num_examples: examples that take part, after the subset.
      steps_per_epoch: batches in an epoch.
    """

    def __init__(self, steps, load, num_labelled, num_examples, steps_per_epoch, threads, workers):
        self.num_labelled = num_labelled
        self.num_examples = num_examples
        self.steps_per_epoch = steps_per_epoch
        self._steps, self._load = steps, load
        self._threads, self._workers = threads, workers
        self._step = 0
        self._running: parallel.Running | None = None

    def keep(self, numbers: np.ndarray) -> None:
        """Decodes these records, which must be all that take part, and reads no others."""
        self._load.keep(numbers, self._threads)
        self._workers = 0  # what is left to do is a copy

    def take_images(self) -> np.ndarray:
        """Hands over all pictures, uint8 [n, S, S, 3], of batches that are kept.

        From then on `image` in a batch is the row of each picture in them, int32 [b].
        """
        return self._load.take_images()

    def __next__(self) -> Batch:
        batch = self._load(self._steps[self._step]) if self._load.light else self._read_ahead()
        self._step += 1
        self._load.warn_of_corrupt(batch)
        return batch

    def _read_ahead(self) -> Batch:
        """The next batch from threads or workers, which are started where none run."""
        if self._running is None:
            rest = grain.MapDataset.source(self._steps).map(self._load)[self._step :]
            self._running = parallel.Running(rest, self._load.nbytes, self._threads, self._workers)
        try:
            return next(self._running)
        except BaseException:  # what is left of the threads or workers is of no use
            self.close()
            raise

    def abstract(self, rows: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of each array of a batch of `rows`; reads nothing."""
        one = self._load(np.full(1, -1, np.int32))
        if self._load.light:
            one["image"] = np.zeros(1, np.int32)
        return {name: ((rows, *array.shape[1:]), array.dtype) for name, array in one.items()}

    def get_state(self) -> dict[str, int]:
        """Returns the position, as JSON can hold it: the number of batches taken."""
        return {"step": self._step}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Continues after `state["step"]` batches, taken with whatever threads and workers."""
        self.close()
        self._step = int(state["step"])

    def close(self) -> None:
        """Ends threads and worker processes; a later `next` starts them again."""
        if self._running is not None:
            self._running.close()
            self._running = None


class EvalBatches:
    """A split's batches, with a length; see `eval_batches`."""

    def __init__(self, batches, load, threads, workers, keep=False):
        self._batches, self._load = batches, load
        self._threads, self._workers = threads, workers
        self._keep, self._kept = keep, []

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        if len(self._kept) == len(self):
            yield from self._kept
            return
        kept = []
        running = parallel.Running(self._batches, self._load.nbytes, self._threads, self._workers)
        try:
            for batch in running:
                self._load.warn_of_corrupt(batch)
                if self._keep:
                    kept.append(batch)
                yield batch
            self._kept = kept
        finally:
            running.close()


def column(source: Source, label: str) -> np.ndarray:
    """One label of all records [n, ...], without decoding pictures.

    A source that keeps its labels apart offers `source.column(label)`; else each record is read.
    """
    _label_specs(source, [label])
    read = getattr(source, "column", None)
    if read is not None:
        return np.asarray(read(label))
    return np.asarray([source[index][label] for index in range(len(source))])


def entry_names(source: Source, labels: Sequence[str]) -> tuple[str, ...]:
    """Names of the columns that scalar labels and vectors of labels make side by side.

    A scalar has its own name; the entries of a vector have those that `source.class_names(label)`
    tells, or LABEL/0, LABEL/1 and so on. An unknown label, or one of more axes, raises UserError.
    """
    names: list[str] = []
    for label, (shape, _) in _label_specs(source, labels).items():
        if len(shape) > 1:
            raise errors.UserError(
                f"Label {label!r} of {_name(source)} has the shape {list(shape)}; a task reads "
                "single numbers and vectors of them."
            )
        read = getattr(source, "class_names", lambda label: None)
        numbered = [f"{label}/{index}" for index in range(shape[0])] if shape else [label]
        names += (read(label) or numbered) if shape else numbered
    return tuple(names)


def _share(batch_size: int, process_index: int, process_count: int) -> slice:
    """The rows of a global batch that belong to a process."""
    if batch_size < 1 or batch_size % process_count:
        raise errors.UserError(
            f"A batch of {batch_size} can't be shared evenly by {process_count} processes; "
            f"use a multiple of {process_count}."
        )
    size = batch_size // process_count
    return slice(process_index * size, (process_index + 1) * size)


class _Load:
    """Record numbers int32 [b] -> batch. Runs in grain's threads or workers.

    pictures: records without labels, numbered behind those of `source`. labelled: for each record
    of both whether tasks see its labels; None: all do.
    """

    def __init__(
        self,
        source: Source,
        labels: Sequence[str],
        size: int,
        rows: int,
        tolerate: bool,
        pictures: Source | None = None,
        labelled: np.ndarray | None = None,
    ):
        self._source, self._size, self._tolerate = source, size, tolerate
        self._pictures, self._labelled = pictures, labelled
        self._specs = _label_specs(source, labels)
        self._warned: set[int] = set()
        self._decoded: Decoded | None = None
        self.nbytes = rows * size * size * 3

    def keep(self, numbers: np.ndarray, threads: int | None) -> None:
        """Decodes these records now, and takes them from memory from then on."""
        self._decoded = Decoded(self, numbers, 3 * self._size**2, threads)

    def take_images(self) -> np.ndarray:
        """The pictures that are kept; batches then hold the row of each."""
        assert self._decoded is not None, "nothing is kept"
        return self._decoded.take_images()

    @property
    def light(self) -> bool:
        """Whether a batch holds no pictures, and is made sooner than handed from a thread."""
        return self._decoded is not None and self._decoded.images is None

    def __call__(self, index_b: np.ndarray) -> Batch:
        if self._decoded is not None and (index_b >= 0).all():
            return self._decoded.batch(index_b)
        b = len(index_b)
        batch = {
            "image": np.zeros((b, self._size, self._size, 3), np.uint8),
            "index": index_b,
            "valid": index_b >= 0,
        }
        if self._labelled is not None:
            batch["labelled"] = self._labelled[index_b]
        for label, (shape, dtype) in self._specs.items():
            batch[label] = np.zeros((b, *shape), dtype)
        for row, index in enumerate(index_b.tolist()):
            if index >= 0:
                self._fill(batch, row, index)
        corrupt, whole = (index_b >= 0) & ~batch["valid"], batch["valid"]
        if corrupt.any() and whole.any():
            # Not zeros: they would shift the batch's statistics, which all examples share.
            batch["image"][corrupt] = batch["image"][whole.argmax()]
        return batch

    def _fill(self, batch: Batch, row: int, index: int) -> None:
        record = self._record(index)
        for label in self._specs if index < len(self._source) else ():
            batch[label][row] = record[label]
        try:
            batch["image"][row] = self._decode(record)
        except errors.UserError:
            if not self._tolerate:
                raise
            batch["valid"][row] = False

    def _record(self, index: int) -> Mapping[str, Any]:
        beyond = index - len(self._source)
        if beyond < 0:
            return self._source[index]
        assert self._pictures is not None
        return self._pictures[beyond]

    def _decode(self, record: Mapping[str, Any]) -> np.ndarray:
        try:
            return decode.decode(record["image"], self._size)
        except errors.UserError as error:
            raise errors.UserError(
                f"Record {record['key']!r} of {_name(self._source)}: {str(error).rstrip('.')}; "
                "replace the file and prepare the data again, or set data.tolerate_corrupt to skip "
                "and count it."
            ) from None

    def warn_of_corrupt(self, batch: Batch) -> None:
        """Logs each tolerated record once.

        It is asked in the main process, and the cause found by decoding again: worker processes
        would each warn, on logs that nobody keeps.
        """
        for index in batch["index"][~batch["valid"]].tolist():
            if index >= 0 and index not in self._warned:
                self._warned.add(index)
                try:
                    self._decode(self._record(index))
                except errors.UserError as error:
                    logging.warning("Skipped: %s", error)


def _label_specs(source: Source, labels: Sequence[str]) -> dict[str, tuple[tuple, type]]:
    """Shape and dtype of each label, from the first record."""
    if not len(source):
        raise errors.UserError(f"{_name(source)} has no examples.")
    first = source[0]
    known = {name: value for name, value in first.items() if name not in ("image", "key")}
    specs = {}
    for label in labels:
        value = np.asarray(errors.lookup(known, label, f"label of {_name(source)}"))
        if value.dtype.kind not in "biuf":
            raise errors.UserError(
                f"Label {label!r} of {_name(source)} holds {value.dtype} values, no numbers; "
                "it can't be put into a batch."
            )
        specs[label] = (value.shape, np.float32 if value.dtype.kind == "f" else np.int32)
    return specs


def _name(source: Source) -> str:
    """`the split 'train' of ferplus`, as far as the source knows."""
    split, name = getattr(source, "split", None), getattr(source, "name", None)
    of = f" of {name}" if name else ""
    return f"the split {split!r}{of}" if split else f"the data{of}"

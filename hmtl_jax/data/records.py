"""Prepared sets on disk: TFDS-format ArrayRecord, written and read without TensorFlow.

`write` leaves DATA/NAME/VERSION, which `tfds.builder_from_directory` opens as well; `open_split`
gives random access to one split of it. TFDS's own data source takes about three times as long for
a record as `Source` does (it walks a nested spec each time), hence the parser here.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import (
    array_record_data_source,
    array_record_module,  # pyright: ignore[reportAttributeAccessIssue] (compiled)
)
from tensorflow_datasets.core import dataset_info, example_serializer, naming
from tensorflow_datasets.core import splits as tfds_splits
from tensorflow_datasets.proto import tf_example_pb2

from hmtl_jax import errors, files
from hmtl_jax.data.labels import Label

_EXAMPLE: Any = getattr(tf_example_pb2, "Example")  # noqa: B009 (made at import, so no checker knows it)
# A shard of this many 256-px JPEGs is about 150 MB: few enough files to keep all of them open.
EXAMPLES_PER_SHARD = 8192
JOURNAL = "journal.jsonl"  # in an unfinished set: who writes what, and its whole shards
SILENCE = 600.0  # seconds after which a writer on another machine counts as gone


def write(
    data_dir: str | os.PathLike[str],
    name: str,
    version: str,
    labels: Mapping[str, Label],
    splits: Mapping[str, Iterable[Mapping[str, Any]]],
    metadata: dict[str, Any],
) -> pathlib.Path:
    """Writes a set at `data_dir/name/version` and returns that folder; all or nothing.

    Args:
      data_dir: where prepared sets stand; made if missing.
      name: the set's name: small letters, digits and _.
      version: three numbers, "1.0.0".
      labels: what each example holds beside its `image` and its `key`.
      splits: for each split an iterable of examples, `image` as encoded bytes; written in order.
      metadata: what JSON can hold. It is read after the last example, so the iterables may still
        fill it; `Writer.finish` adds to it.

    Raises:
      UserError: a split has no example, a name that TFDS does not take, or `data_dir` cannot be
        written.
    """
    check_names(name, splits, labels)
    with Writer(data_dir, name, version, labels) as writer:
        for split, examples in splits.items():
            for example in examples:
                writer.add(split, example)
            writer.close(split)
        return writer.finish(metadata)


class Writer:
    """Writes a set shard by shard, and goes on behind the last whole shard after an interruption.

        with Writer(data_dir, name, version, labels, task) as writer:
            for split in …:
                for note in writer.notes(split): …  # what was noted with its shards
                for example in …: writer.add(split, example, note)
                writer.close(split, note)
            writer.finish(metadata)

    The files stand in a hidden sibling of the set's folder, which takes the final name at the end;
    an older set of that name goes only then. An error that ends the `with` leaves nothing; Ctrl-C,
    a full disk and a killed process leave whole shards, from which a writer with the same `task`
    goes on.
    """

    def __init__(
        self, data_dir: str | os.PathLike[str], name: str, version: str,
        labels: Mapping[str, Label], task: Any = None,
    ):  # fmt: skip
        """task: what JSON can hold, and tells one writing from another; None: goes on from none."""
        self._labels, self._name, self._version = labels, name, version
        self._final = files.local(data_dir, "data_dir") / name / version
        self._folder = self._final.parent / f".{version}.partial"
        self._shards: dict[str, list[dict]] = collections.defaultdict(list)
        self._open: tuple[Any, dict] | None = None
        self._features = tfds.features.FeaturesDict(dict(_features(labels)))
        serialized: Any = self._features.get_serialized_info()
        self._serializer = example_serializer.ExampleSerializer(serialized)
        try:
            self._final.parent.mkdir(parents=True, exist_ok=True)
            self._resume(json.loads(json.dumps(task)))
        except OSError as error:
            raise errors.UserError(
                f"Cannot write in data_dir {data_dir}: {error.strerror}."
            ) from error

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        if self._open:
            self._open[0].close()
        self._journal.close()
        # array_record raises RuntimeError on a full disk.
        full = kind is not None and issubclass(kind, (OSError, RuntimeError))
        stopped = full or (kind is not None and issubclass(kind, KeyboardInterrupt))
        if not (stopped and self._task is not None and any(self._shards.values())):
            shutil.rmtree(self._folder, ignore_errors=True)
        if full:
            raise errors.UserError(f"Writing {self._final} failed: {error}.") from error

    def notes(self, split: str) -> list[Any]:
        """What was noted with each whole shard of a split by the writer before; empty at first."""
        return [shard["note"] for shard in self._shards[split]]

    def add(
        self, split: str, example: Mapping[str, Any], note: Callable[[], Any] = lambda: None
    ) -> None:
        """Writes one example; `note` is asked, for what JSON can hold, when a shard is whole."""
        if self._open is None:
            path = self._folder / f"{split}-{len(self._shards[split]):05d}"
            before = self._shards[split][-1]["digest"] if self._shards[split] else ""
            record = array_record_module.ArrayRecordWriter(os.fspath(path), "group_size:1")
            shard = {"split": split, "length": 0, "bytes": 0, "digest": before}
            self._open = (record, shard)
        record, shard = self._open
        encodable, shard["digest"] = _encodable(example, self._labels, shard["digest"])
        serialized = self._serializer.serialize_example(self._features.encode_example(encodable))
        # The order of a protobuf's fields hangs on the process, unless it is asked to be fixed.
        serialized = _EXAMPLE.FromString(serialized).SerializeToString(deterministic=True)
        record.write(serialized)
        shard["length"] += 1
        shard["bytes"] += len(serialized)
        if shard["length"] >= EXAMPLES_PER_SHARD:
            self._end(note())

    def close(self, split: str, note: Any = None) -> None:
        """Ends a split; UserError if it has no example."""
        if self._open:
            self._end(note)
        if not self._shards[split]:
            raise errors.UserError(
                f"Split {split!r} of {self._name} has no example; nothing is written."
            )

    def finish(
        self, metadata: Mapping[str, Any], lists: Mapping[str, Sequence[str]] | None = None
    ) -> pathlib.Path:
        """Gives the set its metadata and its final name, and returns its folder.

        To `metadata` come `files` (bytes by file name), `class_names` and `digest` (of all
        examples, equal wherever and whenever they are written). lists: lines by the name of a text
        file beside the records, left out where there are none.
        """
        infos, sizes = [], {}
        for split, shards in self._shards.items():
            here: Any = self._folder
            template = naming.ShardedFileTemplate(
                dataset_name=self._name, data_dir=here, split=split, filetype_suffix="array_record"
            )
            for number in range(len(shards)):
                path = pathlib.Path(
                    template.sharded_filepath(shard_index=number, num_shards=len(shards))
                )
                (self._folder / f"{split}-{number:05d}").rename(path)
                sizes[path.name] = path.stat().st_size
            infos.append(
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[shard["length"] for shard in shards],
                    num_bytes=sum(shard["bytes"] for shard in shards),
                    filename_template=template,
                )
            )
        # Splits in the order of their names: which of them is written first does not matter.
        last = {split: shards[-1]["digest"] for split, shards in sorted(self._shards.items())}
        whole = hashlib.blake2b(json.dumps(last).encode(), digest_size=16)
        names = {key: list(label.names) for key, label in self._labels.items() if label.names}
        stored = tfds.core.MetadataDict()
        stored.update(metadata, files=sizes, class_names=names, digest=whole.hexdigest())
        info = tfds.core.DatasetInfo(
            builder=dataset_info.DatasetIdentity(
                name=self._name, version=tfds.core.Version(self._version),
                data_dir=os.fspath(self._folder), module_name="",
            ),
            features=self._features,
            metadata=stored,
        )  # fmt: skip
        info.set_file_format("array_record")
        info.set_splits(tfds_splits.SplitDict(infos))
        info.write_to_directory(self._folder)
        stored.save_metadata(self._folder)
        for file, lines in (lists or {}).items():
            if lines:
                (self._folder / file).write_text("".join(f"{line}\n" for line in lines))
        (self._folder / JOURNAL).unlink()
        _swap(self._folder, self._final)
        return self._final

    def _resume(self, task: Any) -> None:
        """Takes over the whole shards of a writer with the same task, or starts from nothing."""
        self._task = task
        head = {"task": task, "labels": repr(self._labels), "shard": EXAMPLES_PER_SHARD}
        journal = self._folder / JOURNAL
        lines: list[dict] = []
        with contextlib.suppress(OSError, ValueError):
            lines = [json.loads(line) for line in journal.read_text().splitlines()]
        if lines:
            self._refuse_if_alive(lines[0], journal)
        old = self._final.parent.glob(f".{self._version}.partial*-old")
        for leftover in old:
            shutil.rmtree(leftover, ignore_errors=True)
        for shard in lines[1:]:
            self._shards[shard["split"]].append(shard)
        whole = {f"{split}-{n:05d}" for split, of in self._shards.items() for n in range(len(of))}
        there = {file.name for file in self._folder.glob("*")}
        same = lines and all(lines[0].get(key) == head[key] for key in head)
        if task is None or not same or not whole <= there:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._shards.clear()
            lines, there = [], set()
        self._folder.mkdir(exist_ok=True)
        for name in there - whole - {JOURNAL}:
            (self._folder / name).unlink()  # a shard that was cut short
        self._journal = journal.open("w")
        self._note(head | {"host": socket.gethostname(), "pid": os.getpid()})
        for shard in lines[1:]:
            self._note(shard)

    def _refuse_if_alive(self, head: Mapping[str, Any], journal: pathlib.Path) -> None:
        host, pid = head.get("host"), head.get("pid", 0)
        here = host == socket.gethostname()
        if (here and pid != os.getpid() and files.is_alive(pid)) or (
            not here and time.time() - journal.stat().st_mtime < SILENCE
        ):
            raise errors.UserError(
                f"{self._final} is being written by process {pid} on {host}; wait for it or stop "
                "it."
            )

    def _end(self, note: Any) -> None:
        """Closes the shard and notes it: only now is it one to go on from."""
        assert self._open is not None
        record, shard = self._open
        self._open = None
        record.close()
        shard["note"] = note
        self._shards[shard["split"]].append(shard)
        self._note(shard)

    def _note(self, line: Mapping[str, Any]) -> None:
        self._journal.write(json.dumps(line) + "\n")
        self._journal.flush()


def check_names(name: str, splits: Iterable[str], labels: Iterable[str]) -> None:
    """Raises UserError for a name that TFDS or a path would not take."""
    if not re.fullmatch("[a-z0-9][a-z0-9_]*", name):
        raise errors.UserError(
            f"A set cannot be called {name!r}; take small letters, digits and '_'."
        )
    for what, names in (("split", splits), ("label", labels)):
        for one in names:
            if not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", one) or one in ("image", "key"):
                raise errors.UserError(
                    f"A {what} cannot be called {one!r}; take letters, digits and '_', a letter "
                    "first, and neither 'image' nor 'key'."
                )


def _features(labels: Mapping[str, Label]) -> dict[str, Any]:
    """TFDS's own description of what an example holds."""
    features: dict[str, Any] = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "key": tfds.features.Text(),
    }
    for name, label in labels.items():
        if label.kind == "class":
            features[name] = tfds.features.ClassLabel(names=list(label.names))
        elif label.shape:
            features[name] = tfds.features.Tensor(shape=label.shape, dtype=label.dtype)
        else:
            features[name] = tfds.features.Scalar(label.dtype)
    return features


def _encodable(
    example: Mapping[str, Any], labels: Mapping[str, Label], before: str
) -> tuple[dict[str, Any], str]:
    """Makes an example what TFDS takes without TensorFlow, and the digest of all up to it.

    A file object is stored as it is, whereas pixels would be encoded by TensorFlow; and an array
    must have the very dtype of its feature.
    """
    digest = hashlib.blake2b(before.encode(), digest_size=16)
    found = {"image": io.BytesIO(example["image"]), "key": example["key"]}
    for part in (example["key"].encode(), example["image"]):
        digest.update(len(part).to_bytes(8, "little") + part)
    for name in sorted(labels):
        array = np.asarray(example[name]).astype(labels[name].dtype, casting="same_kind")
        found[name] = array if labels[name].shape else example[name]
        digest.update(name.encode() + array.tobytes())
    return found, digest.hexdigest()


def _swap(partial: pathlib.Path, final: pathlib.Path) -> None:
    """Gives `partial` its final name; a set that stood there moves aside first, then goes."""
    old = partial.with_name(partial.name + "-old")
    if final.exists():
        final.rename(old)
    partial.rename(final)
    shutil.rmtree(old, ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class Field:
    """How one field stands in a serialised example: which proto list, and what it becomes."""

    kind: str  # "bytes_list", "int64_list" or "float_list"
    dtype: type  # bytes (an image), str, np.int32 or np.float32
    shape: tuple[int, ...]


class Source:
    """Random access to one split: `len(source)` and `source[i] -> dict`.

    A record is a dict with `image` (encoded bytes, as the set was prepared), `key` (str) and the
    labels as NumPy int32 or float32, scalars or arrays. Files open at the first access. A source
    pickles small (worker processes open the files again) and is safe to read from many threads.
    `open_split` makes one.
    """

    def __init__(self, folder: pathlib.Path, split: str):
        builder = tfds.builder_from_directory(folder)
        features: Any = builder.info.features
        info = builder.info.splits[split]
        self.folder, self.name, self.split = folder, builder.name, split
        self.metadata: dict[str, Any] = dict(builder.info.metadata or {})
        self._lengths = tuple(info.shard_lengths)
        self._files = tuple(os.fspath(path) for path in info.filepaths)
        self._fields = {key: _field(value) for key, value in features.items()}
        self._class_names = dict(self.metadata.get("class_names", {}))
        self._check_sizes()

    def __len__(self) -> int:
        return sum(self._lengths)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        index = index.__index__()
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        try:
            raw = self._records[index]
            features = _EXAMPLE.FromString(raw).features.feature
            return {key: _value(field, features[key]) for key, field in self._fields.items()}
        except Exception as error:  # array_record and protobuf raise bare types of their own
            raise errors.UserError(
                f"Record {index} of split {self.split!r} in {self.folder} cannot be read "
                f"({_first_line(error)}); prepare the set again with --overwrite."
            ) from error

    def __repr__(self) -> str:
        return f"Source({os.fspath(self.folder)!r}, {self.split!r}, {len(self)} examples)"

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of all fields but `image` and `key`, sorted."""
        return tuple(sorted(set(self._fields) - {"image", "key"}))

    @property
    def fields(self) -> Mapping[str, Field]:
        """How each label is stored, by its name."""
        return {label: self._fields[label] for label in self.labels}

    def class_names(self, label: str) -> tuple[str, ...] | None:
        """Names of the classes (or entries) of a label; None where it has none."""
        names = self._class_names.get(label)
        return None if names is None else tuple(names)

    @functools.cached_property
    def _records(self) -> array_record_data_source.ArrayRecordDataSource:
        # With lengths in brackets no file is opened before it is read.
        paths = [f"{file}[0:{n}]" for file, n in zip(self._files, self._lengths, strict=True)]
        return array_record_data_source.ArrayRecordDataSource(paths)

    def _check_sizes(self) -> None:
        """A record file cut short by a full disk or a copy is refused before training starts."""
        sizes = self.metadata.get("files", {})
        for path in map(pathlib.Path, self._files):
            if not path.is_file():
                raise errors.UserError(f"Record file {path} is missing; {_advice(self.name)}.")
            expected, found = sizes.get(path.name), path.stat().st_size
            if expected not in (None, found):
                raise errors.UserError(
                    f"Record file {path} is truncated or changed: {found} bytes instead of "
                    f"{expected}; {_advice(self.name, overwrite=True)}."
                )


def _field(feature: Any) -> Field:
    if isinstance(feature, tfds.features.Image):
        return Field("bytes_list", bytes, ())
    if isinstance(feature, tfds.features.Text):
        return Field("bytes_list", str, ())
    integer = np.issubdtype(feature.np_dtype, np.integer) or feature.np_dtype == np.bool_
    kind, dtype = ("int64_list", np.int32) if integer else ("float_list", np.float32)
    return Field(kind, dtype, tuple(feature.shape))


def _value(field: Field, feature: Any) -> Any:
    values = getattr(feature, field.kind).value
    if field.dtype is bytes:
        return values[0]
    if field.dtype is str:
        return values[0].decode()
    if not field.shape:
        return field.dtype(values[0])
    return np.array(values, field.dtype).reshape(field.shape)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _advice(name: str, overwrite: bool = False) -> str:
    """How to prepare a set; of a name that prepare does not know, which names it does."""
    from hmtl_jax.data.readers import READERS  # here, because readers need not be there to read

    flag = " --overwrite" if overwrite else ""
    if name not in READERS:
        known = "|".join(sorted(READERS))
        return f"run `python -m hmtl_jax.prepare {known} --name {name}{flag} …` with its own files"
    source = " --source SOURCE" if READERS[name].needs_source else ""
    return f"run `python -m hmtl_jax.prepare {name}{source} --data_dir DATA{flag}`"


def open_split(data_dir: str | os.PathLike[str], name: str, split: str) -> Source:
    """Opens one split of the newest version of a prepared set.

    Raises:
      UserError: `data_dir`, the set or the split is missing (the message lists what is there and
        names the command that prepares the set), or a record file is missing or cut short.
    """
    folder = find(data_dir, name)
    try:
        splits = dict(tfds.builder_from_directory(folder).info.splits)
        errors.lookup(splits, split, f"split of {name}")
        return Source(folder, split)
    except errors.UserError:
        raise
    except Exception as error:  # whatever TFDS, JSON or protobuf makes of damaged metadata
        raise errors.UserError(
            f"The metadata in {folder} cannot be read ({_first_line(error)}); "
            f"{_advice(name, overwrite=True)}."
        ) from error


def identity(data_dir: str | os.PathLike[str], name: str) -> dict[str, Any]:
    """What the set that `open_split` opens says of itself: JSON of a few lines.

    name, version, reader, options (of prepare), counts (by split and class), and digest: equal for
    equal examples, wherever and whenever they were prepared. Raises UserError as `open_split`, and
    for a set of an earlier version, which has no digest.
    """
    folder = find(data_dir, name)
    found = _metadata(folder)
    if "digest" not in found:
        raise errors.UserError(
            f"{folder} was prepared by an earlier version of hmtl_jax and has no digest; "
            f"{_advice(name, overwrite=True)}."
        )
    kept = {key: found.get(key, {}) for key in ("options", "counts")}
    about = {"name": name, "version": folder.name, "reader": found.get("reader", name)}
    return {**about, **kept, "digest": found["digest"]}


def _metadata(folder: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "metadata.json").read_text())
    except (OSError, ValueError) as error:
        raise errors.UserError(
            f"The metadata in {folder} cannot be read ({_first_line(error)}); prepare the set "
            "again with --overwrite."
        ) from error


def find(data_dir: str | os.PathLike[str], name: str) -> pathlib.Path:
    """Returns the folder of the newest version of a set; UserError as in `open_split`."""
    known = sets(data_dir)
    if name not in known:
        there = f"there are: {', '.join(sorted(known))}" if known else "no set is there"
        raise errors.UserError(
            f"No prepared set {name!r} in data_dir {data_dir} ({there})."
            f"{errors.nearest(name, known)} To prepare it, {_advice(name)}."
        )
    return known[name]


def sets(data_dir: str | os.PathLike[str]) -> dict[str, pathlib.Path]:
    """Returns the newest version's folder of every set in `data_dir`.

    A folder in it that may not be listed, such as lost+found, holds none.
    """
    place, found = files.local(data_dir, "data_dir"), {}
    try:
        folders = [folder for folder in place.iterdir() if folder.is_dir()]
    except OSError as error:
        raise errors.UserError(
            f"data_dir {place} cannot be read: {error.strerror}. It holds what "
            "`python -m hmtl_jax.prepare NAME --source SOURCE --data_dir DATA` writes."
        ) from error
    for folder in folders:
        with contextlib.suppress(OSError):
            for version in sorted(folder.iterdir(), key=_version_order):
                if _version_order(version) and (version / "dataset_info.json").is_file():
                    found[folder.name] = version
    return found


def _version_order(folder: pathlib.Path) -> tuple[int, ...]:
    """(1, 0, 0) for a folder named 1.0.0; empty for other names, unfinished sets among them."""
    match = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", folder.name)
    return tuple(map(int, match.groups())) if match else ()

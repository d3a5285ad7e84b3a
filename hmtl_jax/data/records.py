"""Prepared sets on disk: TFDS-format ArrayRecord, written and read without TensorFlow.

`write` leaves DATA/NAME/VERSION, which `tfds.builder_from_directory` opens as well; `open_split`
gives random access to one split of it. TFDS's own data source takes about three times as long for
a record as `Source` does (it walks a nested spec each time), hence the parser here.
"""

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
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_data_source
from tensorflow_datasets.core import dataset_info
from tensorflow_datasets.proto import tf_example_pb2

from hmtl_jax import errors, files
from hmtl_jax.data.labels import Label

_EXAMPLE: Any = getattr(tf_example_pb2, "Example")  # noqa: B009 (made at import, so no checker knows it)
# A shard of this many 256-px JPEGs is about 150 MB: few enough files to keep all of them open.
EXAMPLES_PER_SHARD = 8192


def write(
    data_dir: str | os.PathLike[str],
    name: str,
    version: str,
    labels: Mapping[str, Label],
    splits: Mapping[str, Iterable[Mapping[str, Any]]],
    metadata: dict[str, Any],
    lists: Mapping[str, Sequence[str]] | None = None,
) -> pathlib.Path:
    """Writes a set at `data_dir/name/version` and returns that folder.

    All or nothing: the files are written in a hidden sibling folder that takes the final name at
    the end; an older set of that name goes only then. Leftovers of killed writers are removed.

    Args:
      data_dir: where prepared sets stand; made if missing.
      name: the set's name: small letters, digits and _.
      version: three numbers, "1.0.0".
      labels: what each example holds beside its `image` and its `key`.
      splits: for each split an iterable of examples, `image` as encoded bytes; written in order.
      metadata: what JSON can hold. It is read after the last example, so the iterables may still
        fill it; `files` (bytes by file name), `class_names` and `digest` (of all examples, equal
        wherever and whenever they are written) are added.
      lists: lines by the name of a text file beside the records; read when metadata are, and left
        out where there are none.

    Raises:
      UserError: a split has no example, a name that TFDS does not take, or `data_dir` cannot be
        written.
    """
    check_names(name, splits, labels)
    final = files.local(data_dir, "data_dir") / name / version
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(final.parent)
        partial = final.parent / f".{version}.partial-{socket.gethostname()}-{os.getpid()}"
        partial.mkdir()
    except OSError as error:
        raise errors.UserError(f"Cannot write in data_dir {data_dir}: {error.strerror}.") from error
    try:
        _write_folder(partial, name, version, labels, splits, metadata)
        for file, lines in (lists or {}).items():
            if lines:
                (partial / file).write_text("".join(f"{line}\n" for line in lines))
        _swap(partial, final)
    except (OSError, RuntimeError) as error:  # array_record raises RuntimeError on a full disk
        raise errors.UserError(f"Writing {final} failed: {error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


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


def _remove_leftovers(parent: pathlib.Path) -> None:
    for folder in parent.glob(f".*.partial-{socket.gethostname()}-*"):
        if not files.is_alive(int(folder.name.removesuffix("-old").rpartition("-")[2])):
            shutil.rmtree(folder, ignore_errors=True)


def _write_folder(folder, name, version, labels, splits, metadata) -> None:
    features = _features(labels)
    identity = dataset_info.DatasetIdentity(
        name=name, version=tfds.core.Version(version), data_dir=os.fspath(folder), module_name=""
    )
    stored = tfds.core.MetadataDict()
    info = tfds.core.DatasetInfo(
        builder=identity, features=tfds.features.FeaturesDict(dict(features)), metadata=stored
    )
    writer = tfds.core.SequentialWriter(info, EXAMPLES_PER_SHARD, file_format="array_record")
    writer.initialize_splits(list(splits))
    digests = {split: hashlib.blake2b(split.encode(), digest_size=16) for split in splits}
    for split, examples in splits.items():
        encodable: Any = (_encodable(one, labels, digests[split]) for one in examples)
        writer.add_examples({split: encodable})
        writer.close_splits([split])
        if not info.splits[split].num_examples:
            raise errors.UserError(f"Split {split!r} of {name} has no example; nothing is written.")
    sizes = {file.name: file.stat().st_size for file in sorted(folder.glob("*.array_record*"))}
    names = {key: list(label.names) for key, label in labels.items() if label.names}
    # Splits in the order of their names: which of them is written first does not matter.
    whole = hashlib.blake2b(digest_size=16)
    for split in sorted(digests):
        whole.update(digests[split].digest())
    stored.update(metadata, files=sizes, class_names=names, digest=whole.hexdigest())
    stored.save_metadata(folder)


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


def _encodable(example: Mapping[str, Any], labels: Mapping[str, Label], digest) -> dict[str, Any]:
    """Makes an example what TFDS takes without TensorFlow, and counts it into the digest.

    A file object is stored as it is, whereas pixels would be encoded by TensorFlow; and an array
    must have the very dtype of its feature.
    """
    found = {"image": io.BytesIO(example["image"]), "key": example["key"]}
    for part in (example["key"].encode(), example["image"]):
        digest.update(len(part).to_bytes(8, "little") + part)
    for name in sorted(labels):
        array = np.asarray(example[name]).astype(labels[name].dtype, casting="same_kind")
        found[name] = array if labels[name].shape else example[name]
        digest.update(name.encode() + array.tobytes())
    return found


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

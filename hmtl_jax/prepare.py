"""Official files -> a prepared set that training opens: `python -m hmtl_jax.prepare NAME`.

    python -m hmtl_jax.prepare ferplus --source ferplus.zip --data_dir DATA
    python -m hmtl_jax.prepare synthetic --data_dir DATA --train 8000

Writes DATA/NAME/VERSION (see `data/records.py`) all at once or not at all, prints the class table,
and does nothing where the set already stands. Train images that stand pixel for pixel in
validation or test are removed, and counted.
"""

import argparse
import collections
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm

from hmtl_jax import errors
from hmtl_jax.data import decode, records
from hmtl_jax.data.readers import READERS
from hmtl_jax.data.readers.reader import Reader, Row, Rows, Survey, Track

THREADS = min(8, os.cpu_count() or 1)


def prepare(
    name: str,
    source: str | os.PathLike[str] | None,
    data_dir: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    allow_partial: bool = False,
    progress: bool = True,
    **options: Any,
) -> pathlib.Path:
    """Prepares one set and returns its folder; a finished one is returned as it is.

    Args:
      name: a key of READERS.
      source: the official files, a folder or a zip; None for sets that need none.
      data_dir: where prepared sets stand.
      overwrite: prepare again, although the set is there.
      allow_partial: warn of counts that differ from the published ones instead of refusing.
      progress: show progress bars (on stderr).
      options: fields of the reader, such as `rule="majority"`.

    Raises:
      UserError: anything wrong with the source, the options or `data_dir`; nothing is written.
    """
    reader = _reader(name, options)
    final = pathlib.Path(data_dir) / name / reader.version
    if final.is_dir() and not overwrite:
        _check_same_options(final, reader)
        print(f"{name} is already prepared at {final}; --overwrite prepares it again.")
        return final
    if source is None and reader.needs_source:
        raise errors.UserError(f"{name} needs --source, the folder or zip of its official files.")
    track = functools.partial(_bar, disable=not progress)
    survey = reader.survey(source, track)
    mismatches = _check_counts(reader, survey, allow_partial)
    metadata = _metadata(reader, source) | {
        "mismatches": mismatches,
        "left_out": dict(survey.left_out),
    }
    # Held-out splits go first, so that train can leave out what stands in them.
    order = sorted(survey.splits, key=lambda split: split == "train")
    pass_ = _Pass(reader.features(), metadata, track)
    splits = {split: pass_.examples(split, survey.splits[split]) for split in order}
    records.write(data_dir, name, reader.version, reader.features(), splits, metadata)
    _report(final)
    return final


def _bar(items: Iterable[Any], description: str, disable: bool) -> Iterable[Any]:
    return tqdm.tqdm(items, desc=description, unit=" images", disable=disable)


def _reader(name: str, options: Mapping[str, Any]) -> Reader:
    kind = errors.lookup(READERS, name, "data set")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key, value in options.items():
        field = errors.lookup(fields, key, f"option of prepare {name}:")
        choices = field.metadata["choices"]
        if choices and value not in choices:
            known = ", ".join(map(str, choices))
            raise errors.UserError(f"--{key} {value!r} is none of {known}.")
    return kind(**options)


def _check_same_options(final: pathlib.Path, reader: Reader) -> None:
    """A set prepared by another rule must not pass for the one that was asked for."""
    try:
        before = json.loads((final / "metadata.json").read_text())["options"]
    except (OSError, ValueError, KeyError) as error:
        raise errors.UserError(
            f"{final} holds no readable metadata.json; --overwrite prepares the set again."
        ) from error
    now = dataclasses.asdict(reader)
    differing = [key for key in now if before.get(key) != now[key]]
    if differing:
        pairs = ", ".join(f"{key}={before.get(key)!r} (now {now[key]!r})" for key in differing)
        raise errors.UserError(
            f"{final} was prepared with {pairs}; pass --overwrite, or another --data_dir."
        )


def _check_counts(reader: Reader, survey: Survey, allow_partial: bool) -> list[str]:
    mismatches = reader.check(survey)
    if mismatches and not allow_partial:
        raise errors.UserError(
            f"This is not the whole published {reader.name}: {'; '.join(mismatches)}. "
            "Pass --allow_partial to prepare it as it is."
        )
    for mismatch in mismatches:
        print(f"Warning: {mismatch}.", file=sys.stderr)
    return mismatches


def _metadata(reader: Reader, source: str | os.PathLike[str] | None) -> dict[str, Any]:
    """What the set says of itself; `_Pass` and `records.write` add to it."""
    return {
        "reader": reader.name,
        "options": dataclasses.asdict(reader),
        "source": pathlib.Path(source).name if source else "rendered",
        "label_rule": reader.label_rule,
        "class_names": {key: list(names) for key, names in reader.class_names().items()},
        "counts": {},
        # By decoded pixels; "train rows" counts rows without a usable label as well.
        "duplicates": {"train rows": 0, "removed": 0, "in two held-out splits (kept)": 0},
    }


class _Pass:
    """The one pass over all images: loads, checks, hashes, leaves out, and counts in `metadata`."""

    def __init__(self, features: Mapping[str, Any], metadata: dict[str, Any], track: Track):
        self._classes = {
            key: len(feature.names)
            for key, feature in features.items()
            if isinstance(feature, tfds.features.ClassLabel)
        }
        self._counts: dict[str, Any] = metadata["counts"]
        self._duplicates: dict[str, int] = metadata["duplicates"]
        self._track = track
        self._held_out: dict[bytes, str] = {}  # content -> the first held-out split it stands in

    def examples(self, split: str, rows: Rows) -> Iterator[dict[str, Any]]:
        """Yields what `records.write` stores for a split; held-out splits must come first."""
        tables = {key: np.zeros(n, int) for key, n in self._classes.items()}
        written = 0
        for row, encoded, content in _load(self._track(rows, split)):
            if self._is_duplicate(split, row, content) or row.labels is None:
                continue
            for key, table in tables.items():
                if row.labels[key] >= 0:
                    table[row.labels[key]] += 1
            written += 1
            yield {"image": encoded, "key": row.key, **row.labels}
        counts = {key: table.tolist() for key, table in tables.items()}
        self._counts[split] = {"examples": written, **counts}

    def _is_duplicate(self, split: str, row: Row, content: bytes) -> bool:
        """Whether a train row is held out as well; held-out rows all stay, and are remembered."""
        if split != "train":
            other = self._held_out.setdefault(content, split)
            self._duplicates["in two held-out splits (kept)"] += other != split
            return False
        if content not in self._held_out:
            return False
        self._duplicates["train rows"] += 1
        self._duplicates["removed"] += row.labels is not None
        return True


def _load(rows: Iterable[Row]) -> Iterator[tuple[Row, bytes, bytes]]:
    """Loads and hashes images on threads; yields (row, encoded image, content), in order."""
    with futures.ThreadPoolExecutor(THREADS) as pool:
        ahead: collections.deque = collections.deque()
        for row in rows:
            ahead.append((row, pool.submit(_load_one, row)))
            if len(ahead) > 4 * THREADS:
                first, future = ahead.popleft()
                yield first, *future.result()
        for first, future in ahead:
            yield first, *future.result()


def _load_one(row: Row) -> tuple[bytes, bytes]:
    try:
        encoded = row.image()
        image_hwc = decode.decode(encoded)
    except errors.UserError as error:
        raise errors.UserError(f"{row.where} ({row.key}): {error}") from error
    content = hashlib.blake2b(repr(image_hwc.shape).encode(), digest_size=16)
    content.update(image_hwc)
    return encoded, content.digest()


def _report(final: pathlib.Path) -> None:
    """Prints what was prepared: counts, what was left out, the class tables, the rule."""
    metadata = json.loads((final / "metadata.json").read_text())
    counts = metadata["counts"]
    sizes = ", ".join(f"{counts[split]['examples']:,} {split}" for split in _order(counts))
    print(f"{metadata['reader']}: {sizes}; written to {final}")
    print(f"Labels: {metadata['label_rule']}")
    for what, number in metadata["left_out"].items():
        print(f"Left out: {number:,} {what}.")
    _print_duplicates(metadata["duplicates"])
    source = records.open_split(final.parent.parent, metadata["reader"], "train")
    for label in sorted(set(counts["train"]) - {"examples"}):
        _print_table(label, source.class_names(label) or (), counts)


def _print_duplicates(duplicates: Mapping[str, int]) -> None:
    print(
        f"Duplicates: {duplicates['train rows']:,} train images are held out too, pixel for pixel"
        f"; {duplicates['removed']:,} of them had a usable label and were removed from train."
    )
    kept = duplicates["in two held-out splits (kept)"]
    if kept:
        print(f"Duplicates: {kept:,} images are in validation and in test; both stay whole.")


def _print_table(label: str, names: Sequence[str], counts: Mapping[str, Any]) -> None:
    width = max(len(label), *map(len, names))
    splits = _order(counts)
    print(f"{label:{width}}" + "".join(f"{split:>12}" for split in splits))
    for index, name in enumerate(names):
        row = "".join(f"{counts[split][label][index]:>12,}" for split in splits)
        print(f"{name:{width}}{row}")


def _order(counts: Mapping[str, Any]) -> list[str]:
    return sorted(counts, key=("train", "validation", "test").index)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hmtl_jax.prepare",
        description="Turns a data set's official files into a prepared set that training opens.",
    )
    commands = parser.add_subparsers(dest="name", metavar="NAME", required=True)
    for name, kind in READERS.items():
        command = commands.add_parser(name, help=(kind.__doc__ or "").splitlines()[0])
        if kind.needs_source:
            command.add_argument("--source", help="folder or zip of the official files")
        command.add_argument("--data_dir", required=True, help="where prepared sets stand")
        command.add_argument("--overwrite", action="store_true", help="prepare it again")
        command.add_argument(
            "--allow_partial", action="store_true", help="only warn where counts differ"
        )
        for field in dataclasses.fields(kind):
            _add_option(command, field)
    return parser


def _add_option(command: argparse.ArgumentParser, field: dataclasses.Field) -> None:
    flag, default = f"--{field.name}", field.default
    text = f"{field.metadata['help']} (default: {default})"
    if isinstance(default, bool):
        command.add_argument(flag, default=default, action="store_true", help=text)
    else:
        choices = field.metadata["choices"]
        command.add_argument(flag, default=default, type=type(default), choices=choices, help=text)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0, or 1 (130: Ctrl-C) after one sentence on stderr."""
    args = vars(_parser().parse_args(argv))
    try:
        prepare(args.pop("name"), args.pop("source", None), args.pop("data_dir"), **args)
    except errors.UserError as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("prepare: interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

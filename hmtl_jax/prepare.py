"""Official files -> a prepared set that training opens: `python -m hmtl_jax.prepare NAME`.

    python -m hmtl_jax.prepare ferplus --source ferplus.zip --data_dir DATA
    python -m hmtl_jax.prepare synthetic --data_dir DATA --train 8000

Writes DATA/NAME/VERSION (see `data/records.py`) all at once or not at all, prints the class table,
and does nothing where the set already stands; what was interrupted goes on behind its last whole
shard. Images to train on that stand pixel for pixel in a held-out split are removed, and counted;
those that only look alike are listed. A card with histograms and a contact sheet stands beside the
records.
"""

import argparse
import collections
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import tqdm

from hmtl_jax import __version__, errors, files
from hmtl_jax.data import card, decode, records
from hmtl_jax.data.detect import NoFace
from hmtl_jax.data.labels import Label
from hmtl_jax.data.readers import READERS
from hmtl_jax.data.readers.reader import (
    Reader,
    Row,
    Rows,
    Survey,
    Track,
    is_trained_on,
)

THREADS = min(8, os.cpu_count() or 1)
BAD = "bad_pictures.txt"  # beside a set: the pictures that it lacks, and why
FACELESS = "pictures_without_a_face.txt"
NEAR = "near_duplicates.txt"


def prepare(
    reader_name: str,
    source: str | os.PathLike[str] | None,
    data_dir: str | os.PathLike[str],
    *,
    name: str = "",
    overwrite: bool = False,
    allow_partial: bool = False,
    leave_out_bad: bool = False,
    dry_run: bool = False,
    max_pixels: int = decode.MAX_PIXELS,
    progress: bool = True,
    **options: Any,
) -> pathlib.Path:
    """Prepares one set and returns its folder; a finished one is returned as it is.

    Args:
      reader_name: a key of READERS.
      source: the official files, a folder or a zip; None for sets that need none.
      data_dir: where prepared sets stand.
      name: what the set is called there; "": as its reader.
      overwrite: prepare again, although the set is there.
      allow_partial: warn of counts that differ from the published ones instead of refusing.
      leave_out_bad: leave out pictures that can't be read, listed in bad_pictures.txt beside the
        set, instead of refusing after all have been tried.
      dry_run: read all labels, say what is there, and write nothing.
      max_pixels: a picture of more is a bad one.
      progress: show progress bars (on stderr).
      options: fields of the reader, such as `rule="majority"`.

    Raises:
      UserError: anything wrong with the source, the options or `data_dir`; nothing is written.
    """
    reader = _reader(reader_name, options)
    name = name or reader_name
    records.check_names(name, (), ())
    final = files.local(data_dir, "--data_dir") / name / reader.version
    if source is not None:
        source = files.local(source, "--source")
    about = _about(reader, source)
    if final.is_dir() and not overwrite:
        _check_same(final, about)
        print(f"{name} is already prepared at {final}; --overwrite prepares it again.")
        return final
    if source is None and reader.needs_source:
        raise errors.UserError(
            f"{reader_name} needs --source, the folder or zip of its official files."
        )
    track = functools.partial(_bar, disable=not progress)
    survey = reader.survey(source, track)
    records.check_names(name, survey.splits, survey.labels)
    mismatches = _check_counts(reader, survey, allow_partial)
    metadata = about | {"mismatches": mismatches, "left_out": dict(survey.left_out)}
    if dry_run:
        _say_what_is_there(name, survey, metadata)
        return final
    pass_ = _Pass(survey.labels, metadata, track, max_pixels, leave_out_bad)
    task = [metadata, {split: len(rows) for split, rows in survey.splits.items()}, max_pixels]
    with records.Writer(data_dir, name, reader.version, survey.labels, task) as writer:
        # Held-out splits go first, so that those to train on can leave out what stands in them.
        for split in sorted(survey.splits, key=is_trained_on):
            pass_.run(writer, split, survey.splits[split])
        pass_.finish()
        near = card.near(pass_.looks)
        metadata["near_duplicates"] = card.counted(near)
        lists = {BAD: pass_.bad, FACELESS: pass_.faceless, NEAR: card.lines(near)}
        writer.finish(metadata, lists)
    card.write(final, survey.labels)
    _report(final, survey.labels)
    return final


def _bar(items: Iterable[Any], description: str, disable: bool) -> Iterable[Any]:
    # A file keeps what a terminal writes over: there half a minute a line will do.
    often = 0.1 if sys.stderr.isatty() else 30
    return tqdm.tqdm(items, desc=description, unit=" images", disable=disable, mininterval=often)


def _reader(name: str, options: Mapping[str, Any]) -> Reader:
    kind = errors.lookup(READERS, name, "data set")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key, value in options.items():
        field = errors.lookup(fields, key, f"option of prepare {name}:")
        choices = field.metadata["choices"]
        wrong = [one for one in _several(value) if choices and one not in choices]
        if wrong:
            known = ", ".join(map(str, choices))
            raise errors.UserError(f"--{key} {wrong[0]!r} is none of {known}.")
    tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    return kind(**tuples)


def _several(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else [value]


def _about(reader: Reader, source: pathlib.Path | None) -> dict[str, Any]:
    """What the set says of itself before it is read; `_Pass` and `records.write` add to it."""
    return {
        "reader": reader.name,
        "hmtl_jax": __version__,
        "options": json.loads(json.dumps(dataclasses.asdict(reader))),
        "source": _fingerprint(source) if reader.needs_source and source else {"name": "rendered"},
        "label_rule": reader.label_rule,
        "counts": {},
        # By decoded pixels; "train rows" counts rows without a usable label as well.
        "duplicates": {"train rows": 0, "removed": 0, "in two held-out splits (kept)": 0},
        "bad_pictures": 0,
    }


def _fingerprint(source: pathlib.Path) -> dict[str, Any]:
    """What tells one source from another without reading it: names and sizes of its files."""
    if not source.exists():
        raise errors.UserError(f"--source {source} does not exist.")
    listing, size = hashlib.blake2b(digest_size=16), 0
    found = [source] if source.is_file() else sorted(source.rglob("*"))
    for file in found:
        if file.is_file():
            bytes_ = file.stat().st_size
            name = file.name if source.is_file() else file.relative_to(source).as_posix()
            listing.update(os.fsencode(f"{name}\0{bytes_}\0"))
            size += bytes_
    return {"name": source.name, "bytes": size, "listing": listing.hexdigest()}


def _told(source: Mapping[str, Any]) -> str:
    return f"{source['name']}, {source['bytes']:,} bytes, {source['listing'][:6]}"


def _check_same(final: pathlib.Path, about: Mapping[str, Any]) -> None:
    """A set of another source or another rule must not pass for the one that was asked for."""
    try:
        before = json.loads((final / "metadata.json").read_text())
        pairs = [(key, before["options"].get(key), now) for key, now in about["options"].items()]
        if before["reader"] != about["reader"]:
            pairs = [("reader", before["reader"], about["reader"])]
        elif about["source"]["name"] != "rendered" and before["source"] != about["source"]:
            pairs.append(("source", *map(_told, (before["source"], about["source"]))))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise errors.UserError(
            f"{final} holds no readable metadata.json; --overwrite prepares the set again."
        ) from error
    differing = [f"{key}={old!r} (now {new!r})" for key, old, new in pairs if old != new]
    if differing:
        raise errors.UserError(
            f"{final} was prepared with {', '.join(differing)}; pass --overwrite, or another "
            "--name or --data_dir."
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


class _Pass:
    """The one pass over all images: loads, checks, hashes, leaves out, and counts in `metadata`.

    What it knows beside the metadata goes into the notes of the writer's shards, so that the pass
    goes on behind the last of them.
    """

    def __init__(
        self, labels: Mapping[str, Label], metadata: dict[str, Any], track: Track,
        max_pixels: int, leave_out_bad: bool,
    ):  # fmt: skip
        self._classes = {
            k: len(label.names) for k, label in labels.items() if label.kind == "class"
        }
        self._metadata = metadata
        self._track, self._max_pixels = track, max_pixels
        self._leave_out_bad = leave_out_bad
        self._held_out: dict[bytes, str] = {}  # content -> the first held-out split it stands in
        self.bad: list[str] = []  # one line a picture that can't be read
        self.faceless: list[str] = []  # and one in which a detector finds nothing
        self.looks: list[tuple[bytes, str]] = []  # of each picture, and SPLIT/KEY
        self._news: dict[str, list] = collections.defaultdict(list)  # since the last note
        self._rows = 0  # of this split, that are done with

    def run(self, writer: records.Writer, split: str, rows: Rows) -> None:
        """Writes one split, from where it was left; held-out splits must come first."""
        self._rows = 0
        self._metadata["counts"][split] = {
            "examples": 0, **{key: [0] * n for key, n in self._classes.items()},
        }  # fmt: skip
        for note in writer.notes(split):
            self._replay(split, note)
        ahead = itertools.islice(iter(rows), self._rows, None)
        bar = self._track(_Sized(ahead, len(rows) - self._rows), split)
        for row, loaded in _load(bar, self._max_pixels):
            self._rows += 1
            if isinstance(loaded, errors.UserError):
                self._remember(row, loaded)
            elif not self._is_duplicate(split, row, loaded.content) and row.labels is not None:
                self._count(split, row, loaded.look)
                example = {"image": loaded.encoded, "key": row.key, **row.labels}
                writer.add(split, example, self._note)
        # Only at the end: whoever mends pictures wants to know of all of them at once.
        if self.bad and not self._leave_out_bad and not self._metadata["counts"][split]["examples"]:
            raise errors.UserError(self._all_bad())
        writer.close(split, self._note())

    def finish(self) -> None:
        """UserError if pictures are bad, and not to be left out."""
        if self.bad and not self._leave_out_bad:
            raise errors.UserError(self._all_bad())

    def _note(self) -> dict[str, Any]:
        """What has come since the last note, and the metadata as they are."""
        news, self._news = dict(self._news), collections.defaultdict(list)
        kept = ("counts", "duplicates", "bad_pictures", "left_out")
        return {
            "rows": self._rows, "news": news, "metadata": {k: self._metadata[k] for k in kept},
        }  # fmt: skip

    def _replay(self, split: str, note: Mapping[str, Any]) -> None:
        self._rows = note["rows"]
        self._metadata.update(json.loads(json.dumps(note["metadata"])))
        news = note["news"]
        for content in news.get("held_out", ()):
            self._held_out.setdefault(bytes.fromhex(content), split)
        self.bad += news.get("bad", ())
        self.faceless += news.get("faceless", ())
        self.looks += [(bytes.fromhex(look), key) for look, key in news.get("looks", ())]

    def _count(self, split: str, row: Row, look: bytes) -> None:
        counts = self._metadata["counts"][split]
        counts["examples"] += 1
        for key in self._classes:
            if row.labels is not None and row.labels[key] >= 0:
                counts[key][int(row.labels[key])] += 1
        self.looks.append((look, f"{split}/{row.key}"))
        self._news["looks"].append((look.hex(), f"{split}/{row.key}"))

    def _remember(self, row: Row, error: errors.UserError) -> None:
        line = f"{row.where} ({row.key}): {error}"
        if isinstance(error, NoFace):
            self.faceless.append(line)
            self._news["faceless"].append(line)
            self._metadata["left_out"]["pictures without a face"] = len(self.faceless)
        elif row.labels is not None:  # one that no label would use does no harm
            self.bad.append(line)
            self._news["bad"].append(line)
            self._metadata["bad_pictures"] = len(self.bad)

    def _all_bad(self) -> str:
        count = len(self.bad)
        more = f" (and {count - 3:,} more)" if count > 3 else ""
        return (
            f"{count:,} pictures can't be read: {' '.join(self.bad[:3])}{more} Mend them, or pass "
            "--leave_out_bad to prepare the set without them."
        )

    def _is_duplicate(self, split: str, row: Row, content: bytes) -> bool:
        """Whether a row to train on is held out as well; held-out rows stay, and are remembered."""
        duplicates = self._metadata["duplicates"]
        if not is_trained_on(split):
            other = self._held_out.setdefault(content, split)
            self._news["held_out"].append(content.hex())
            duplicates["in two held-out splits (kept)"] += other != split
            return False
        if content not in self._held_out:
            return False
        duplicates["train rows"] += 1
        duplicates["removed"] += row.labels is not None
        return True


@dataclasses.dataclass(frozen=True)
class _Sized:
    """An iterable that knows its length, for a progress bar."""

    items: Iterable[Row]
    length: int

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Row]:
        return iter(self.items)


@dataclasses.dataclass(frozen=True)
class _Loaded:
    """A picture as it is stored, a hash of its pixels, and one of how it looks."""

    encoded: bytes
    content: bytes
    look: bytes


def _load(rows: Iterable[Row], max_pixels: int) -> Iterator[tuple[Row, Any]]:
    """Loads and hashes images on threads, in order: (row, _Loaded, or the UserError why not)."""
    with futures.ThreadPoolExecutor(THREADS) as pool:
        ahead: collections.deque = collections.deque()
        for row in rows:
            ahead.append((row, pool.submit(_load_one, row, max_pixels)))
            if len(ahead) > 4 * THREADS:
                first, future = ahead.popleft()
                yield first, future.result()
        for first, future in ahead:
            yield first, future.result()


def _load_one(row: Row, max_pixels: int) -> _Loaded | errors.UserError:
    try:
        encoded = row.image()
        image_hwc = decode.decode(encoded, max_pixels=max_pixels)
    except errors.UserError as error:
        return error
    content = hashlib.blake2b(repr(image_hwc.shape).encode(), digest_size=16)
    content.update(image_hwc)
    return _Loaded(encoded, content.digest(), card.look(image_hwc))


def _report(final: pathlib.Path, labels: Mapping[str, Label]) -> None:
    """Prints what was prepared: counts, what was left out, the class tables, the rule."""
    metadata = json.loads((final / "metadata.json").read_text())
    counts = metadata["counts"]
    sizes = ", ".join(f"{counts[split]['examples']:,} {split}" for split in _order(counts))
    print(f"{final.parent.name}: {sizes}; written to {final}")
    print(f"Labels: {metadata['label_rule']}")
    for what, number in metadata["left_out"].items():
        listed = f", listed in {final / FACELESS}" if (final / FACELESS).is_file() else ""
        print(f"Left out: {number:,} {what}{listed if 'without a face' in what else ''}.")
    if metadata["bad_pictures"]:
        print(f"Left out: {metadata['bad_pictures']:,} bad pictures, listed in {final / BAD}.")
    _print_duplicates(metadata["duplicates"])
    close = metadata["near_duplicates"]
    if any(close.values()):
        print(
            f"Near-duplicates: {close['across']:,} pairs across splits that look alike, "
            f"{close['within']:,} within one; they stay, and are listed in {final / NEAR}."
        )
    print(f"Card: {final / card.FILE}, with {card.SHEET} beside it.")
    for label in sorted(label for label in labels if labels[label].kind == "class"):
        _print_table(label, labels[label].names, counts)


def _say_what_is_there(name: str, survey: Survey, metadata: Mapping[str, Any]) -> None:
    """What a dry run prints: the splits, their classes, and what the labels alone leave out."""
    counts: dict[str, dict[str, Any]] = {}
    classes = {key: label for key, label in survey.labels.items() if label.kind == "class"}
    for split, rows in survey.splits.items():
        usable = [row.labels for row in rows if row.labels is not None]
        counts[split] = {"examples": len(usable)}
        for key, label in classes.items():
            found = collections.Counter(int(labels[key]) for labels in usable)
            counts[split][key] = [found[index] for index in range(len(label.names))]
    sizes = ", ".join(f"{counts[split]['examples']:,} {split}" for split in _order(counts))
    print(f"{name}: {sizes}; nothing is written, and no picture was looked at")
    print(f"Labels: {metadata['label_rule']}")
    for what, number in metadata["left_out"].items():
        print(f"Left out: {number:,} {what}.")
    for key in sorted(classes):
        _print_table(key, classes[key].names, counts)


def _print_duplicates(duplicates: Mapping[str, int]) -> None:
    print(
        f"Duplicates: {duplicates['train rows']:,} train images are held out too, pixel for pixel"
        f"; {duplicates['removed']:,} of them had a usable label and were removed from train."
    )
    kept = duplicates["in two held-out splits (kept)"]
    if kept:
        print(f"Duplicates: {kept:,} images are in two held-out splits; both stay whole.")


def _print_table(label: str, names: Sequence[str], counts: Mapping[str, Any]) -> None:
    width = max(len(label), *map(len, names))
    splits = _order(counts)
    wide = max(12, *(len(split) + 2 for split in splits))
    print(f"{label:{width}}" + "".join(f"{split:>{wide}}" for split in splits))
    for index, name in enumerate(names):
        row = "".join(f"{counts[split][label][index]:>{wide},}" for split in splits)
        print(f"{name:{width}}{row}")


def _order(counts: Mapping[str, Any]) -> list[str]:
    """The usual three first, others behind them by name."""
    usual = ("train", "validation", "test")
    return sorted(counts, key=lambda split: (split not in usual, *map(split.__ne__, usual), split))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hmtl_jax.prepare",
        description="Turns a data set's official files into a prepared set that training opens.",
    )
    parser.add_argument(
        "--list", action="store_true", help="all sets: what to fetch, where, under which terms"
    )
    commands = parser.add_subparsers(dest="reader_name", metavar="NAME")
    for name, kind in READERS.items():
        command = commands.add_parser(name, help=(kind.__doc__ or "").splitlines()[0])
        if kind.needs_source:
            command.add_argument("--source", help="folder or zip of the official files")
        command.add_argument("--data_dir", required=True, help="where prepared sets stand")
        command.add_argument("--overwrite", action="store_true", help="prepare it again")
        command.add_argument(
            "--allow_partial", action="store_true", help="only warn where counts differ"
        )
        command.add_argument(
            "--name", default="", help="what the set is called in data_dir (default: its NAME)"
        )
        command.add_argument(
            "--leave_out_bad", action="store_true",
            help=f"leave out pictures that can't be read, and list them in {BAD}",
        )  # fmt: skip
        command.add_argument(
            "--dry_run", action="store_true", help="say what is there, and write nothing"
        )
        command.add_argument(
            "--max_pixels", type=int, default=decode.MAX_PIXELS,
            help="refuse a picture of more, before it takes memory (default: %(default)s)",
        )  # fmt: skip
        for field in dataclasses.fields(kind):
            _add_option(command, field)
    return parser


def _add_option(command: argparse.ArgumentParser, field: dataclasses.Field) -> None:
    flag, default = f"--{field.name}", field.default
    text = f"{field.metadata['help']} (default: {default})"
    choices = field.metadata["choices"]
    if isinstance(default, bool):
        command.add_argument(flag, default=default, action="store_true", help=text)
    elif isinstance(default, tuple):
        kind = type(default[0]) if default else str
        text = f"{field.metadata['help']}; several with blanks between (default: {default})"
        command.add_argument(
            flag, default=default, type=kind, choices=choices, nargs="*", help=text
        )
    else:
        command.add_argument(flag, default=default, type=type(default), choices=choices, help=text)


def _list() -> list[str]:
    """A set a paragraph: what it is, and what to fetch."""
    found = []
    for name, kind in READERS.items():
        module = sys.modules[kind.__module__].__doc__ or ""
        found.append(f"{name}: {module.splitlines()[0]}")
        found.append(f"    {kind.obtain}")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0, or 1 (130: Ctrl-C) after one sentence on stderr."""
    parser = _parser()
    args = vars(parser.parse_args(argv))
    if args.pop("list"):
        print("\n".join(_list()))
        return 0
    if args["reader_name"] is None:
        parser.error("name a set, or pass --list")
    try:
        prepare(args.pop("reader_name"), args.pop("source", None), args.pop("data_dir"), **args)
    except errors.UserError as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("prepare: interrupted; the same command goes on from there", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

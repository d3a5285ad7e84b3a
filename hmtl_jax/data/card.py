"""What a prepared set looks like: a card, a contact sheet, and which pictures look alike."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from hmtl_jax.data import decode, records
from hmtl_jax.data.labels import Label

FILE, SHEET = "card.md", "contact_sheet.png"
# A look is 256 bits, and two of them within these are near. Of two unlike pictures half differ.
SIDE, BITS = 16, 10
BANDS = BITS + 1  # by the pigeonhole, near looks are equal in one of so many parts
MOST = 64  # pictures with one and the same part: a plain background, and nothing to compare
LISTED = 10_000  # pairs in the list; all are counted
THUMBNAIL, COLUMNS, ROWS = 64, 12, 4  # of the contact sheet, for each split


def look(image_hwc: np.ndarray) -> bytes:
    """A difference hash (dHash, Krawetz 2013) of 256 bits: is a place lighter than its left one?"""
    grey = cv2.cvtColor(image_hwc, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (SIDE + 1, SIDE), interpolation=cv2.INTER_AREA)
    return np.packbits(small[:, 1:] > small[:, :-1]).tobytes()


def near(looks: Sequence[tuple[bytes, str]]) -> list[tuple[str, str, int]]:
    """Pairs of pictures that look alike, by name, and how many of 256 bits differ.

    looks: (look, SPLIT/KEY) of each picture.
    """
    if not looks:
        return []
    packed = np.frombuffer(b"".join(one for one, _ in looks), np.uint8).reshape(len(looks), -1)
    bits = np.unpackbits(packed, axis=1)
    pairs = set()
    for band in np.array_split(np.arange(bits.shape[1]), BANDS):
        keys = np.packbits(bits[:, band], axis=1)
        _, inverse, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
        order = np.argsort(inverse.reshape(-1), kind="stable")
        for members in np.split(order, np.cumsum(counts)[:-1]):
            if 2 <= len(members) <= MOST:
                apart = (bits[members][:, None] != bits[members][None]).sum(2)
                for a, b in zip(*np.nonzero(np.triu(apart <= BITS, 1)), strict=True):
                    pairs.add((int(members[a]), int(members[b]), int(apart[a, b])))
    return [(looks[a][1], looks[b][1], apart) for a, b, apart in sorted(pairs)]


def counted(pairs: Sequence[tuple[str, str, int]]) -> dict[str, int]:
    """How many pairs are across two splits, and how many within one."""
    across = sum(_split(a) != _split(b) for a, b, _ in pairs)
    return {"across": across, "within": len(pairs) - across}


def lines(pairs: Sequence[tuple[str, str, int]]) -> list[str]:
    """One line a pair, those across splits first; LISTED at most."""
    ordered = sorted(pairs, key=lambda pair: (_split(pair[0]) == _split(pair[1]), pair[2]))
    ordered = ordered[:LISTED]
    return [f"{a}\t{b}\t{apart} of {SIDE * SIDE} bits differ" for a, b, apart in ordered]


def write(folder: pathlib.Path, labels: Mapping[str, Label]) -> None:
    """Writes the card and the contact sheet of a finished set beside its records."""
    metadata = json.loads((folder / "metadata.json").read_text())
    sheets = [_sheet(folder, split) for split in metadata["counts"]]
    width = max(sheet.shape[1] for sheet in sheets)
    padded = [np.pad(one, ((0, 4), (0, width - one.shape[1]), (0, 0))) for one in sheets]
    cv2.imwrite(str(folder / SHEET), np.concatenate(padded)[..., ::-1])
    (folder / FILE).write_text(_card(folder, metadata, labels))


def _sheet(folder: pathlib.Path, split: str) -> np.ndarray:
    """Pictures of a split, evenly spaced, as one; their sides keep their ratio."""
    source = records.Source(folder, split)
    count = min(len(source), COLUMNS * ROWS)
    sheet = np.zeros((-(-count // COLUMNS), COLUMNS, THUMBNAIL, THUMBNAIL, 3), np.uint8)
    for place in range(count):
        image_hwc = decode.decode(source[place * len(source) // count]["image"])
        scale = THUMBNAIL / max(image_hwc.shape[:2])
        height, width = (max(1, round(side * scale)) for side in image_hwc.shape[:2])
        small = cv2.resize(image_hwc, (width, height), interpolation=cv2.INTER_AREA)
        sheet[place // COLUMNS, place % COLUMNS, :height, :width] = small
    return sheet.transpose(0, 2, 1, 3, 4).reshape(-1, COLUMNS * THUMBNAIL, 3)


def _card(folder: pathlib.Path, metadata: Mapping[str, Any], labels: Mapping[str, Label]) -> str:
    counts, source = metadata["counts"], metadata["source"]
    splits = list(counts)
    text = [f"# {folder.parent.name} {folder.name}", ""]
    origin = source["name"] + (
        f", {source['bytes']:,} bytes, listing {source['listing']}" if "bytes" in source else ""
    )
    made = f"{metadata['reader']} of hmtl_jax {metadata['hmtl_jax']}"
    text += [f"Reader: {made}. Source: {origin}.", ""]
    text += [f"Options: `{json.dumps(metadata['options'])}`", ""]
    text += [f"Labels: {metadata['label_rule']}", ""]
    text += [f"Digest of all examples: {metadata['digest']}", ""]
    text += _table("examples", [("all", [counts[split]["examples"] for split in splits])], splits)
    for name, label in sorted(labels.items()):
        if label.kind == "class":
            rows = [
                (cell, [counts[split][name][index] for split in splits])
                for index, cell in enumerate(label.names)
            ]
            text += _table(name, rows, splits)
        else:
            shape = "×".join(map(str, label.shape)) or "one"
            names = f": {', '.join(label.names)}" if label.names else ""
            text += [f"{name}: {shape} of kind {label.kind}{names}", ""]
    duplicates, close = metadata["duplicates"], metadata["near_duplicates"]
    text += ["## Left out, and doubtful", ""]
    text += [f"- {number:,} {what}" for what, number in metadata["left_out"].items()]
    text += [f"- {metadata['bad_pictures']:,} pictures that can't be read"]
    text += [f"- {number:,} duplicates, {what}" for what, number in duplicates.items()]
    text += [
        f"- {close['across']:,} pairs across splits that look alike, {close['within']:,} within"
    ]
    text += [f"- {mismatch}" for mismatch in metadata["mismatches"]]
    return "\n".join([*text, "", f"![pictures of each split]({SHEET})", ""])


def _table(
    head: str, rows: Sequence[tuple[str, Sequence[int]]], splits: Sequence[str]
) -> list[str]:
    text = [f"| {head} | {' | '.join(splits)} |", f"|---|{'---|' * len(splits)}"]
    text += [f"| {name} | {' | '.join(f'{n:,}' for n in numbers)} |" for name, numbers in rows]
    return [*text, ""]


def _split(name: str) -> str:
    return name.partition("/")[0]

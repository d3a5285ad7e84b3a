"""What readers of one's own pictures share: what is a picture, and which split it is in."""

import collections
from collections.abc import Mapping, Sequence

import numpy as np

from hmtl_jax.data import detect
from hmtl_jax.data.labels import Label
from hmtl_jax.data.readers.held_out import check_share, held_out, held_out_groups
from hmtl_jax.data.readers.reader import Row
from hmtl_jax.data.readers.tree import Tree
from hmtl_jax.errors import UserError

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
# As people name them → as recipes do.
SPLITS = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation",
    "publictest": "validation",
    "test": "test", "testing": "test", "eval": "test", "privatetest": "test",
}  # fmt: skip


def is_picture(name: str) -> bool:
    """Whether a file's name is that of a picture."""
    return name.lower().endswith(PICTURES)


def check_text(name: str, where: str) -> None:
    """UserError for a name that is not UTF-8, which no record could hold."""
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = name.encode("utf-8", "replace").decode()
        raise UserError(f"{where}: the name {shown!r} is not UTF-8; rename it.") from None


def stored(tree: Tree, path: str, cutter: detect.Cutter) -> bytes:
    """What is stored of a picture: its own bytes if it stays as it is."""
    return cutter.stored(tree.read(path))


def completed(
    splits: Mapping[str, Sequence[Row]],
    shares: Mapping[str, float],
    seed: int,
    classes: Mapping[str, Sequence[str]],
    groups: Mapping[str, str] | None = None,
) -> dict[str, list[Row]]:
    """The splits that are there, and of train by `split_up` those of `shares` that are not."""
    missing = {name: 0.0 if splits.get(name) else share for name, share in shares.items()}
    drawn = split_up(splits["train"], missing, seed, classes, groups)
    return drawn | {name: list(rows) for name, rows in splits.items() if rows and name != "train"}


def split_up(
    rows: Sequence[Row],
    shares: Mapping[str, float],
    seed: int,
    classes: Mapping[str, Sequence[str]],
    groups: Mapping[str, str] | None = None,
) -> dict[str, list[Row]]:
    """Train, and of the rest by their hash the shares of validation and test.

    Args:
      rows: all of them.
      shares: of "test" and "validation", each of all rows.
      seed: another one draws other splits.
      classes: names of the classes of each label, all of whose combinations keep their shares; a
        combination of fewer than three rows would be missing in a split.
      groups: a row's key → the group that stays together; then classes are as they come.
    """
    for split, share in shares.items():
        check_share(share, f"--{split}")
    if sum(shares.values()) >= 1:
        raise UserError("--validation and --test together leave nothing to train on.")
    found, rest, left = {}, list(rows), 1.0
    for number, split in enumerate(("test", "validation")):
        part = shares[split] / left
        left -= shares[split]
        if groups is not None:
            rest, held = held_out_groups(rest, part, seed + number, lambda row: groups[row.key])
        else:
            rest, held = held_out(rest, part, seed + number, tuple(classes))
        found[split] = held
    if groups is None:
        _check_few(rows, [name for name, share in shares.items() if share], classes)
    return {name: part for name, part in (("train", rest), *found.items()) if part}


def _check_few(rows: Sequence[Row], drawn: Sequence[str], classes) -> None:
    """One picture of a class can't be both trained on and held out."""
    for label, names in classes.items():
        counts = collections.Counter(row.labels[label] for row in rows if row.labels)
        for index, name in enumerate(names):
            if drawn and 0 < counts[index] <= len(drawn):
                raise UserError(
                    f"Class {name!r} of {label} has {counts[index]} pictures, too few to draw "
                    f"{' and '.join(drawn)} from; add some, leave the class out, or say the splits "
                    "yourself."
                )


def named_splits(names: Sequence[str]) -> dict[str, str] | None:
    """Each name → the split that it means; None unless all of them mean one, train among them."""
    found = {name: SPLITS.get(name.strip().lower(), "") for name in names}
    whole = all(found.values()) and "train" in found.values()
    return found if whole else None


def suggest(labels: Mapping[str, Label], rows: Sequence[Row]) -> None:
    """Prints the line of a recipe that makes a task of each label.

    Numbers far from 0 and 1, such as ages, come with the centre and the scale that they have in
    `rows`: without these their loss would drown those of other tasks.
    """
    for name, label in labels.items():
        if label.kind == "class":
            task = f'"classification", label="{name}"'
        elif label.kind == "int":
            task = f'"multilabel", labels=("{name}",)'
        elif label.names == ("yaw", "pitch", "roll"):
            task = f'"pose", labels=("{name}",)'
        else:
            task = f'"regression", labels=("{name}",){_unit(name, rows)}'
        print(f"  config.tasks.{name} = recipe.task({task})")


def _unit(name: str, rows: Sequence[Row]) -> str:
    values = np.array([row.labels[name] for row in rows if row.labels], np.float64)
    values = values[np.isfinite(values)]
    centre, scale = (values.mean(), values.std()) if len(values) else (0.0, 0.0)
    if not scale or max(abs(centre), scale) <= 2:
        return ""
    return f", centre={centre:.3g}, scale={scale:.3g}"

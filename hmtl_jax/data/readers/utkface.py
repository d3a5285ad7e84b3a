"""UTKFace (Zhang et al. 2017): age, gender and race, told by the name of each aligned face.

It has no official split: ours is published here, and is the same wherever it is made.
"""

import collections
import dataclasses
import functools
import os
import re
from typing import Any, ClassVar

from hmtl_jax import errors
from hmtl_jax.data import detect
from hmtl_jax.data.labels import Label
from hmtl_jax.data.readers import own
from hmtl_jax.data.readers.held_out import check_share, held_out
from hmtl_jax.data.readers.reader import Row, Survey, Track, option
from hmtl_jax.data.readers.tree import Tree

GENDERS = ("male", "female")
RACES = ("White", "Black", "Asian", "Indian", "Others")
LABELS = {"age": Label("float"), "gender": Label("class", GENDERS), "race": Label("class", RACES)}
SUFFIX = ".jpg.chip.jpg"
# age_gender_race_date; three names lack a field or a dot, as published.
NAME = re.compile(r"(\d+)_(?:(\d)_)?(?:(\d)_)?(\d{8,17}) ?(?:\.?jpg\.chip)?\.jpg", re.I)
PUBLISHED = 23_708
OLDEST = 116


@dataclasses.dataclass(frozen=True)
class UtkFace:
    """The folder UTKFace, or a zip of it: the aligned and cropped faces of 200x200 pixels.

    Labels: age float32 in years, gender, race (both -1 where a name lacks either, for then nobody
    can say which it is).
    """

    name: ClassVar[str] = "utkface"
    version: ClassVar[str] = "1.0.0"
    needs_source: ClassVar[bool] = True
    obtain: ClassVar[str] = (
        "UTKFace.tar.gz, unpacked: the aligned and cropped faces; for research, non-commercial"
    )

    test: float = option(0.2, "share of each gender and race that is the test set")
    validation: float = option(0.1, "share of each gender and race of the rest: validation")
    image_size: int = option(0, "longest side of a stored image; larger ones shrink, 0 keeps all")
    seed: int = option(0, "another seed draws other sets; papers should say which, if not 0")

    @property
    def label_rule(self) -> str:
        """As in `Reader`."""
        return (
            f"labels are those of the names; test is {self.test:.0%} of each gender and race, "
            f"validation {self.validation:.0%} of the rest: those whose key's hash comes first "
            f"(seed {self.seed})."
        )

    def survey(self, source: str | os.PathLike[str], track: Track) -> Survey:
        """As in `Reader`."""
        check_share(self.test, "--test")
        check_share(self.validation)
        tree, left_out, rows = Tree(source), collections.Counter(), []
        folder = next((name for name in ("", "UTKFace") if _faces(tree, name)), None)
        if folder is None:
            raise errors.UserError(
                f"{source} should hold faces named as 24_0_1_20170116220224657{SUFFIX}, in itself "
                f"or in a folder UTKFace; found there: {', '.join(tree.list('')[:8]) or 'nothing'}."
            )
        cutter = detect.cutter("", self.image_size)
        for name in track(tree.list(folder), "labels"):
            path = f"{folder}/{name}" if folder else name
            labels = _labels(name)
            if labels is None:
                left_out["files that are not named as faces"] += 1
            else:
                image = functools.partial(own.stored, tree, path, cutter)
                rows.append(Row(name, labels, image, path))
        rest, test = held_out(rows, self.test, self.seed, ("gender", "race"))
        # Another hash than that of test: else its order in each class would go on here.
        train, validation = held_out(rest, self.validation, self.seed + 1, ("gender", "race"))
        splits = {"train": train, "validation": validation, "test": test}
        return Survey({name: rows for name, rows in splits.items() if rows}, LABELS, left_out)

    def check(self, survey: Survey) -> list[str]:
        """All splits are counted together, for they were one."""
        found = sum(len(rows) for rows in survey.splits.values())
        return [] if found == PUBLISHED else [f"it has {found:,} faces instead of {PUBLISHED:,}"]


def _faces(tree: Tree, folder: str) -> bool:
    return any(NAME.fullmatch(name) for name in tree.list(folder))


def _labels(name: str) -> dict[str, Any] | None:
    """What a name says; None if it is not one of a face."""
    match = NAME.fullmatch(name)
    if not match:
        return None
    age, gender, race, _ = match.groups()
    if not 0 <= int(age) <= OLDEST:
        raise errors.UserError(f"{name}: age {age} is out of range 0 to {OLDEST}.")
    if gender is None or race is None:
        return {"age": float(age), "gender": -1, "race": -1}
    for what, cell, names in (("gender", gender, GENDERS), ("race", race, RACES)):
        if int(cell) >= len(names):
            raise errors.UserError(
                f"{name}: {what} {cell} is out of range 0 to {len(names) - 1} ({', '.join(names)})."
            )
    return {"age": float(age), "gender": int(gender), "race": int(race)}

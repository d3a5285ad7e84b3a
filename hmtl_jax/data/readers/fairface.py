"""FairFace (Kärkkäinen and Joo, WACV 2021): age group, gender and race of faces, race-balanced.

It has no public test set: the official validation set is `test` here, and `validation` is drawn
from train, so that no choice sees it.
"""

import collections
import dataclasses
import functools
import os
import re
from collections.abc import Iterator, Mapping
from typing import ClassVar

from hmtl_jax import errors
from hmtl_jax.data import detect
from hmtl_jax.data.labels import Label
from hmtl_jax.data.readers import own
from hmtl_jax.data.readers.held_out import check_share, held_out
from hmtl_jax.data.readers.reader import Row, Survey, Track, option
from hmtl_jax.data.readers.tree import Tree

# As the csv files spell them, in the order of the authors' own classifier.
AGES = ("0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "more than 70")
GENDERS = ("Male", "Female")
RACES = (
    "White",
    "Black",
    "Latino_Hispanic",
    "East Asian",
    "Southeast Asian",
    "Indian",
    "Middle Eastern",
)
SERVICE_TEST = ("False", "True")
COLUMNS = {"age": AGES, "gender": GENDERS, "race": RACES, "service_test": SERVICE_TEST}
LABELS = {
    "age_group": Label("class", AGES),
    "gender": Label("class", tuple(name.lower() for name in GENDERS)),
    "race": Label("class", RACES),
    "service_test": Label("int"),
}
LISTS = {"train": "fairface_label_train.csv", "test": "fairface_label_val.csv"}
PUBLISHED = {"train": 86_744, "test": 10_954}


@dataclasses.dataclass(frozen=True)
class FairFace:
    """Folders `train` and `val` beside the two official label files, as a folder or a zip.

    Labels: age_group, gender, race, and service_test int32 (1: in the authors' balanced set for
    testing commercial services).
    """

    name: ClassVar[str] = "fairface"
    version: ClassVar[str] = "1.0.0"
    needs_source: ClassVar[bool] = True
    obtain: ClassVar[str] = (
        "fairface-img-margin025-trainval.zip (or margin125), unpacked, and both csv files of the "
        "authors' repository, in one folder; CC BY 4.0"
    )

    validation: float = option(0.1, "share of train held out, of each race and gender")
    image_size: int = option(0, "longest side of a stored image; larger ones shrink, 0 keeps all")
    seed: int = option(0, "another seed holds out other images")

    @property
    def label_rule(self) -> str:
        """As in `Reader`."""
        return (
            "official labels; the official validation set is test; validation is "
            f"{self.validation:.0%} of each race and gender of train, those whose key's hash comes "
            f"first (seed {self.seed})."
        )

    def survey(self, source: str | os.PathLike[str], track: Track) -> Survey:
        """As in `Reader`."""
        del track  # all labels are read in a second
        check_share(self.validation)
        tree, left_out = Tree(source), collections.Counter()
        tree.enter(tuple(LISTS.values()))
        cutter = detect.cutter("", self.image_size)
        splits = {split: list(_rows(tree, path, cutter, left_out)) for split, path in LISTS.items()}
        splits["train"], splits["validation"] = held_out(
            splits["train"], self.validation, self.seed, ("race", "gender")
        )
        return Survey({split: rows for split, rows in splits.items() if rows}, LABELS, left_out)

    def check(self, survey: Survey) -> list[str]:
        """Train and validation are counted together, for they were one."""
        found = {split: len(rows) for split, rows in survey.splits.items()}
        found["train"] += found.pop("validation", 0)
        return [
            f"{split} has {found[split]:,} images instead of {size:,}"
            for split, size in PUBLISHED.items()
            if found[split] != size
        ]


def _rows(
    tree: Tree, path: str, cutter: detect.Cutter, left_out: collections.Counter
) -> Iterator[Row]:
    seen = set()
    # The lists may lie beside the unpacked folder of the images.
    places = ["", *(f"{name}/" for name in tree.list(""))]
    for line, cells in tree.table(path, ("file", *COLUMNS)):
        where, file = f"{path}, line {line}", cells["file"].strip().replace("\\", "/")
        if not file:
            raise errors.UserError(f"{where}: the file has no name.")
        found = next((name for place in places if (name := tree.find(place + file))), None)
        if found:
            places = [found[: len(found) - len(file)]]
        if file in seen:
            left_out["rows of a name seen before"] += 1
            continue
        seen.add(file)
        image = functools.partial(own.stored, tree, found or file, cutter)
        yield Row(file.rpartition(".")[0], _labels(cells, where), image, where)


def _labels(cells: Mapping[str, str], where: str) -> dict[str, int]:
    found = {}
    for column, known in COLUMNS.items():
        value = cells[column].strip()
        value = value.capitalize() if column == "service_test" else value  # FALSE, of spreadsheets
        if column == "age" and re.search(r"[a-z]{3}", value, re.I) and value not in known:
            raise errors.UserError(
                f"{where}: age {value!r} is a date that a spreadsheet made of an age group, such "
                "as 9-Mar of 3-9 and 19-Oct of 10-19; fetch the official csv again and don't save "
                "it from a spreadsheet."
            )
        names = {name: index for index, name in enumerate(known)}
        found[column] = errors.lookup(names, value, f"{column} in {where}:")
    return {"age_group" if column == "age" else column: found[column] for column in found}

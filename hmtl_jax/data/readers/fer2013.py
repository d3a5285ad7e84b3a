"""FER2013 (Goodfellow et al. 2013): 35,887 grey faces of 48x48 pixels, seven expressions."""

import collections
import dataclasses
import functools
import os
from typing import ClassVar

from hmtl_jax import errors
from hmtl_jax.data.labels import Label
from hmtl_jax.data.readers.ferplus import PIXELS, SPLITS, encode
from hmtl_jax.data.readers.reader import Row, Survey, Track
from hmtl_jax.data.readers.tree import Tree

# In the order of their numbers in the file.
EXPRESSIONS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
USAGES = {usage: split for split, (_, usage) in SPLITS.items()}
PUBLISHED = {"train": 28_709, "validation": 3_589, "test": 3_589}


@dataclasses.dataclass(frozen=True)
class Fer2013:
    """fer2013.csv or icml_face_data.csv, alone or in a folder or zip.

    Labels: expression. The public test set is `validation`, the private one `test`.
    """

    name: ClassVar[str] = "fer2013"
    version: ClassVar[str] = "1.0.0"
    needs_source: ClassVar[bool] = True
    obtain: ClassVar[str] = (
        "fer2013.csv, or icml_face_data.csv, of Kaggle's Challenges in Representation Learning: "
        "Facial Expression Recognition; for research"
    )

    @property
    def label_rule(self) -> str:
        """As in `Reader`."""
        return "official labels and splits: PublicTest is validation, PrivateTest is test."

    def survey(self, source: str | os.PathLike[str], track: Track) -> Survey:
        """As in `Reader`."""
        tree, left_out = Tree(source), collections.Counter()
        file = PIXELS[tree.enter(*((file,) for file in PIXELS))]
        splits: dict[str, list[Row]] = {split: [] for split in SPLITS}
        rows = tree.table(file, ("emotion", "pixels", "Usage"))
        for line, cells in track(rows, f"{file} labels"):
            where, usage = f"{file}, line {line}", cells["Usage"].strip()
            split = splits[errors.lookup(USAGES, usage, f"Usage in {where}:")]
            image = functools.partial(encode, cells["pixels"], where)
            labels = {"expression": _expression(cells["emotion"], where)}
            split.append(Row(f"{len(split):05d}", labels, image, where))
        return Survey(splits, {"expression": Label("class", EXPRESSIONS)}, left_out)

    def check(self, survey: Survey) -> list[str]:
        """As in `Reader`."""
        return [
            f"{split} has {len(survey.splits[split]):,} faces instead of {size:,}"
            for split, size in PUBLISHED.items()
            if len(survey.splits[split]) != size
        ]


def _expression(cell: str, where: str) -> int:
    known = {str(index): index for index in range(len(EXPRESSIONS))}
    return errors.lookup(known, cell.strip(), f"emotion in {where}:")

"""One's own pictures without labels, for the pretexts of any recipe (`data.unlabelled`)."""

import collections
import dataclasses
import functools
import os
from typing import ClassVar

from hmtl_jax.data import detect
from hmtl_jax.data.readers import own
from hmtl_jax.data.readers.reader import Row, Survey, Track, option
from hmtl_jax.data.readers.tree import Tree
from hmtl_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Unlabelled:
    """Your own pictures without labels: every picture in a folder or zip, however deep.

    They are one split, train; a recipe takes them by `data.unlabelled`, beside the set that has
    labels.
    """

    name: ClassVar[str] = "unlabelled"
    version: ClassVar[str] = "1.0.0"
    needs_source: ClassVar[bool] = True
    obtain: ClassVar[str] = "your own pictures"

    image_size: int = option(
        256, "longest side of a stored image; larger ones shrink, 0 keeps all bytes"
    )
    detector: str = option(
        "", "weights of YuNet (data/detect.py): the largest face alone is stored"
    )
    align: bool = option(False, "turn each face upright by the detector's points, to image_size")

    @property
    def label_rule(self) -> str:
        """As in `Reader`."""
        return "there are no labels."

    def survey(self, source: str | os.PathLike[str], track: Track) -> Survey:
        """As in `Reader`."""
        tree, left_out, rows = Tree(source), collections.Counter(), []
        cutter = detect.cutter(self.detector, self.image_size, self.align)
        for path in track(tree.walk(""), "files"):
            own.check_text(path, str(source))
            if own.is_picture(path):
                image = functools.partial(own.stored, tree, path, cutter)
                rows.append(Row(path, {}, image, path))
            else:
                left_out["files that are no pictures by their name"] += 1
        if not rows:
            raise UserError(f"{source} holds no picture ({', '.join(own.PICTURES)}).")
        return Survey({"train": rows}, {}, left_out)

    def check(self, survey: Survey) -> list[str]:
        """As in `Reader`: nothing is published of it."""
        del survey
        return []

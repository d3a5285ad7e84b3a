"""300W-LP (Zhu et al. 2016): 122,450 faces turned by a 3-D model, to learn head pose from."""

import collections
import dataclasses
import os
import re
from typing import ClassVar

from hmtl_jax.data.readers import pose_mats
from hmtl_jax.data.readers.held_out import check_share, digest, held_out_groups
from hmtl_jax.data.readers.reader import Survey, Track, option
from hmtl_jax.data.readers.tree import Tree
from hmtl_jax.errors import UserError

PARTS = ("AFW", "HELEN", "IBUG", "LFPW")
PUBLISHED = 122_450  # mirrored ones among them
LOW, HIGH = 0.2, 0.4  # of HopeNet's k while training


@dataclasses.dataclass(frozen=True)
class W300Lp:
    """The folders AFW, HELEN, IBUG, LFPW and those of mirrored faces (_Flip), or a zip of them.

    Labels: pose float32[3], yaw, pitch and roll in degrees; faces beyond 99 degrees are left out.
    Validation and test are drawn by photograph: all turned faces of one are in the same split. For
    figures to compare with others', evaluate on aflw2000.
    """

    name: ClassVar[str] = "300w_lp"
    version: ClassVar[str] = "1.0.0"
    needs_source: ClassVar[bool] = True
    obtain: ClassVar[str] = "300W-LP.zip of the authors' page, as it is or unpacked; for research"

    mirrored: bool = option(False, "take the mirrored faces too; training can mirror by itself")
    image_size: int = option(256, "longest side of a stored image; larger ones shrink, 0 keeps all")
    validation: float = option(0.02, "share of the photographs that is validation")
    test: float = option(0.02, "share of the photographs that is test")
    seed: int = option(0, "another seed draws other splits and margins")

    @property
    def label_rule(self) -> str:
        """As in `Reader`."""
        return (
            f"Pose_Para in degrees, none beyond {pose_mats.LIMIT:g}; a face is the square around "
            f"pt2d with HopeNet's margins, k from {LOW} to {HIGH} drawn once a picture; test is "
            f"{self.test:.0%} of the photographs, validation {self.validation:.0%} of the others "
            f"(seed {self.seed})."
        )

    def survey(self, source: str | os.PathLike[str], track: Track) -> Survey:
        """As in `Reader`."""
        check_share(self.validation)
        check_share(self.test, "--test")
        tree, left_out = Tree(source), collections.Counter()
        self._enter(tree)
        parts = [*PARTS, *(f"{part}_Flip" for part in PARTS if self.mirrored)]
        paths = [
            f"{part}/{name}"
            for part in parts
            for name in tree.list(part)
            if name.lower().endswith(".jpg")
        ]
        margins = pose_mats.Margins(0.6, LOW, HIGH, self._draw)
        rows = list(
            pose_mats.rows(
                tree, track(paths, "labels"), "pt2d", margins, self.image_size, left_out
            )
        )  # fmt: skip
        rest, test = held_out_groups(rows, self.test, self.seed, lambda row: photograph(row.key))
        train, validation = held_out_groups(
            rest, self.validation, self.seed + 1, lambda row: photograph(row.key)
        )
        splits = {"train": train, "validation": validation, "test": test}
        found = {split: rows for split, rows in splits.items() if rows}
        return Survey(found, pose_mats.LABELS, left_out)

    def check(self, survey: Survey) -> list[str]:
        """The published count is that of all faces, whatever their angle."""
        found = sum(map(len, survey.splits.values())) + survey.left_out.get(pose_mats.TOO_FAR, 0)
        published = PUBLISHED if self.mirrored else PUBLISHED // 2
        return [] if found == published else [f"it has {found:,} faces instead of {published:,}"]

    def _enter(self, tree: Tree) -> None:
        for root in ("", *(f"{name}/" for name in tree.list(""))):
            tree.root = root
            if any(tree.list(part) for part in PARTS):
                return
        tree.root = ""
        raise UserError(
            f"{tree.source} should hold the folders {', '.join(PARTS)}; found there: "
            f"{', '.join(tree.list('')[:8]) or 'nothing'}."
        )

    def _draw(self, name: str) -> float:
        return int.from_bytes(digest(self.seed, f"margin/{name}"), "big") / 2**64


def photograph(key: str) -> str:
    """`HELEN_Flip/HELEN_232194_1_12` → `HELEN_232194_1`: the last number counts the turns."""
    return re.sub(r"_\d+$", "", key.rpartition("/")[2])

"""AFLW2000-3D (Zhu et al. 2016): head poses of 2,000 faces, the test set for 300W-LP."""

import collections
import dataclasses
import os
from typing import ClassVar

from hmtl_jax.data.readers import pose_mats
from hmtl_jax.data.readers.reader import Survey, Track, option
from hmtl_jax.data.readers.tree import Tree
from hmtl_jax.errors import UserError

PUBLISHED = 2_000
K = 0.2  # of HopeNet's crop at test time


@dataclasses.dataclass(frozen=True)
class Aflw2000:
    """The folder of imageNNNNN.jpg and .mat, or a zip of it. It has a test split alone.

    Labels: pose float32[3], yaw, pitch and roll in degrees; faces beyond 99 degrees are left out.
    """

    name: ClassVar[str] = "aflw2000"
    version: ClassVar[str] = "1.0.0"
    needs_source: ClassVar[bool] = True
    obtain: ClassVar[str] = "AFLW2000-3D.zip of the authors' page, as it is; for research"

    points: str = option(
        "pt3d_68", "the square is around these; pt2d, which has points at -1, as in HopeNet's code",
        ("pt3d_68", "pt2d"),
    )  # fmt: skip
    image_size: int = option(256, "longest side of a stored image; larger ones shrink, 0 keeps all")

    @property
    def label_rule(self) -> str:
        """As in `Reader`."""
        return (
            f"Pose_Para in degrees, none beyond {pose_mats.LIMIT:g}; a face is the square around "
            f"{self.points} with HopeNet's margins (k = {K})."
        )

    def survey(self, source: str | os.PathLike[str], track: Track) -> Survey:
        """As in `Reader`."""
        tree, left_out = Tree(source), collections.Counter()
        # In the zip a folder AFLW2000 holds the pictures, and one of code stands in it.
        folder = next((one for one in ("", "AFLW2000") if _pictures(tree, one)), None)
        if folder is None:
            raise UserError(
                f"{source} should hold imageNNNNN.jpg and .mat, in itself or in a folder AFLW2000; "
                f"found there: {', '.join(tree.list('')[:8]) or 'nothing'}."
            )
        margins = pose_mats.Margins(2, K, K, lambda name: 0.0)
        tree.root = f"{folder}/" if folder else ""
        paths = track(_pictures(tree, ""), "labels")
        rows = list(pose_mats.rows(tree, paths, self.points, margins, self.image_size, left_out))
        return Survey({"test": rows}, pose_mats.LABELS, left_out)

    def check(self, survey: Survey) -> list[str]:
        """The published count is that of all faces, whatever their angle."""
        found = len(survey.splits["test"]) + survey.left_out.get(pose_mats.TOO_FAR, 0)
        return [] if found == PUBLISHED else [f"it has {found:,} faces instead of {PUBLISHED:,}"]


def _pictures(tree: Tree, folder: str) -> list[str]:
    names = [name for name in tree.list(folder) if name.lower().endswith(".jpg")]
    return [f"{folder}/{name}" if folder else name for name in names]

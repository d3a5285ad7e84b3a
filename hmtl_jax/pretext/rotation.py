"""Rotation: every tile stays and is turned by a multiple of 90°; which one? (HMTL authors' code).

With one tile it is the whole image that turns (RotNet, Gidaris 2018). It is the puzzle with other
defaults; `puzzle` with `rotate` asks both questions of one view.
"""

import dataclasses
from typing import ClassVar

from hmtl_jax.pretext.puzzle import Puzzle


@dataclasses.dataclass(frozen=True)
class Rotation(Puzzle):
    """A puzzle whose tiles turn and do not move; its settings mean what the puzzle's do."""

    permute: bool = False
    rotate: bool = True

    kind: ClassVar[str] = "rotation"

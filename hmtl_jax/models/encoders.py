"""Encoders by name: the one table of what a recipe's `model.encoder` may be.

To add a family, write its module and its line in `FAMILIES`.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from hmtl_jax.errors import UserError
from hmtl_jax.models import vit


@dataclasses.dataclass(frozen=True)
class Encoder:
    """What the rest of the program must know of an encoder before it is built.

    patch: the pixels along one side that a cell of its last feature map covers. drops_tokens:
    whether it can read a subset of the patches. make: (settings, dtype) → module.
    """

    patch: int
    drops_tokens: bool
    make: Callable[[Any, Any], nn.Module]

    def check(self, image_size: int) -> None:
        """Raises UserError unless whole cells make up the image."""
        vit.grid_of(image_size, self.patch)


def of_vit(name: str) -> Encoder:
    """`S/16`, or `192x6x3/8` for width x depth x heads / patch."""
    size = vit.parse(name)

    def make(settings: Any, dtype: Any) -> nn.Module:
        return vit.ViT(
            patch=size.patch, dim=size.dim, depth=size.depth, heads=size.heads,
            pool=settings.pool, positions=settings.positions, drop_path=settings.drop_path,
            scan=settings.scan, remat=settings.remat, dtype=dtype,
        )  # fmt: skip

    return Encoder(size.patch, True, make)


# The first family whose pattern matches the name.
FAMILIES: tuple[tuple[str, Callable[[str], Encoder]], ...] = ((r".*/.*", of_vit),)


def parse(name: str) -> Encoder:
    """The encoder of a name; raises UserError for one that no family knows."""
    for pattern, family in FAMILIES:
        if re.fullmatch(pattern, name):
            return family(name)
    raise UserError(
        f"model.encoder {name!r} is unknown; write a ViT as 'S/16' (Ti, S, B, L, H / patch)."
    )

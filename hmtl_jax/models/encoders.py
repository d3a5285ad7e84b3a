"""Encoders by name: the one table of what a recipe's `model.encoder` may be.

To add a convolutional family, write its module (SIZES, cell, make) and name it in `CONVOLUTIONAL`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from hmtl_jax.errors import UserError, lookup
from hmtl_jax.models import cnn, efficientnet, resnet, stems, vit
from hmtl_jax.models.conv import check_image, split_name


@dataclasses.dataclass(frozen=True)
class Encoder:
    """What the rest of the program must know of an encoder before it is built.

    patch: the pixels along one side that a cell of its last feature map covers. drops_tokens:
    whether it can read a subset of the patches. make: (settings, dtype) → module. check: raises
    UserError unless whole cells make up a square image of this many pixels a side.
    """

    patch: int
    drops_tokens: bool
    make: Callable[[Any, Any], nn.Module]
    check: Callable[[int], Any]


def of_vit(name: str, stem: str) -> Encoder:
    """`S/16`, or `192x6x3/8` for width x depth x heads / patch. stem: a key of stems.STEMS."""
    size, made = vit.parse(name), stems.STEMS[stem]
    made.check(size.patch)

    def make(settings: Any, dtype: Any) -> nn.Module:
        return vit.ViT(
            patch=size.patch, dim=size.dim, depth=size.depth, heads=size.heads,
            pool=settings.pool, positions=settings.positions, stem=stem,
            drop_path=settings.drop_path, scan=settings.scan, remat=settings.remat,
            attention=settings.attention, dtype=dtype,
        )  # fmt: skip

    return Encoder(size.patch, not made.mixes, make, lambda side: vit.grid_of(side, size.patch))


def of_convolutions(name: str, module: Any) -> Encoder:
    """`resnet50`, `efficientnet_b0` …, and with `-small` for the stem of small images."""

    def make(settings: Any, dtype: Any) -> nn.Module:
        return module.make(name, drop_path=settings.drop_path, dtype=dtype)

    cell = module.cell(split_name(name)[1])

    def check(side: int) -> None:
        image: Any = jax.ShapeDtypeStruct((1, side, side, 3), float)
        check_image(image, cell)

    return Encoder(cell, False, make, check)


# Module of each name without its `-small`.
CONVOLUTIONAL = {name: module for module in (cnn, resnet, efficientnet) for name in module.SIZES}


def parse(name: str, stem: str = "patch") -> Encoder:
    """The encoder of a name; raises UserError for one that no family knows.

    stem: of a ViT; UserError where it does not fit the patch, or the encoder is no ViT.
    """
    if vit.is_vit(name):
        return of_vit(name, stem)
    if stem != "patch":
        raise UserError(
            f"model.stem {stem!r} stands before a ViT, and model.encoder is {name!r}; set "
            "model.stem to 'patch'."
        )
    try:
        module = lookup(CONVOLUTIONAL, split_name(name)[0], "encoder")
    except UserError as error:
        raise UserError(f"{error} A ViT is written with its patch, as 'S/16'.") from None
    return of_convolutions(name, module)

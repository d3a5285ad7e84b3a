"""Encoders by name: the one table of what a recipe's `model.encoder` may be.

To add a convolutional family, write its module (SIZES, cell, make) and name it in `CONVOLUTIONAL`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from hmtl_jax.errors import UserError, lookup
from hmtl_jax.models import cnn, efficientnet, resnet, vit
from hmtl_jax.models.conv import check_image, split_name


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
        if self.drops_tokens:
            vit.grid_of(image_size, self.patch)
        else:
            image: Any = jax.ShapeDtypeStruct((1, image_size, image_size, 3), float)
            check_image(image, self.patch)


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


def of_convolutions(name: str, module: Any) -> Encoder:
    """`resnet50`, `efficientnet_b0` …, and with `-small` for the stem of small images."""

    def make(settings: Any, dtype: Any) -> nn.Module:
        return module.make(name, drop_path=settings.drop_path, dtype=dtype)

    return Encoder(module.cell(split_name(name)[1]), False, make)


# Module of each name without its `-small`; a name with a slash is a ViT's.
CONVOLUTIONAL = {name: module for module in (cnn, resnet, efficientnet) for name in module.SIZES}


def parse(name: str) -> Encoder:
    """The encoder of a name; raises UserError for one that no family knows."""
    if "/" in name:
        return of_vit(name)
    try:
        module = lookup(CONVOLUTIONAL, split_name(name)[0], "encoder")
    except UserError as error:
        raise UserError(f"{error} A ViT is written with its patch, as 'S/16'.") from None
    return of_convolutions(name, module)

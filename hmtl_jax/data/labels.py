"""What a data set says of a label: its kind, its names and its shape."""

import dataclasses
from typing import Any

import numpy as np

from hmtl_jax.errors import UserError

# kind -> dtype as it is stored; `class` and `int` have -1 where missing, `float` has NaN.
KINDS = {"class": np.int32, "int": np.int32, "float": np.float32}


@dataclasses.dataclass(frozen=True)
class Label:
    """One field of the examples of a set.

    kind: "class", one of `names`; "int", whole numbers such as votes, or yes and no (1, 0);
    "float", numbers. names: of the classes, or of the entries of a vector, where they have any.
    shape: () for a single number, (3,) for a vector of three.
    """

    kind: str
    names: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UserError(
                f"A label's kind is {self.kind!r}; it must be one of {', '.join(KINDS)}."
            )
        if self.kind == "class" and (self.shape or not self.names):
            raise UserError("A label of kind 'class' is one number and names its classes.")
        if len(set(self.names)) != len(self.names):
            raise UserError(f"A label's names must differ, not {self.names}.")

    @property
    def dtype(self) -> Any:
        """As it is stored."""
        return KINDS[self.kind]

"""Readers by name: each turns one official layout into rows (see `reader.py`)."""

from typing import Any

from hmtl_jax.data.readers.affectnet import AffectNet
from hmtl_jax.data.readers.fairface import FairFace
from hmtl_jax.data.readers.ferplus import FerPlus
from hmtl_jax.data.readers.synthetic import Synthetic

READERS: dict[str, Any] = {
    "affectnet": AffectNet,
    "fairface": FairFace,
    "ferplus": FerPlus,
    "synthetic": Synthetic,
}

"""Readers by name: each turns one official layout into rows (see `reader.py`)."""

from typing import Any

from hmtl_jax.data.readers.affectnet import AffectNet
from hmtl_jax.data.readers.aflw2000 import Aflw2000
from hmtl_jax.data.readers.biwi import Biwi
from hmtl_jax.data.readers.celeb_df import CelebDf
from hmtl_jax.data.readers.celeba import CelebA
from hmtl_jax.data.readers.faceforensics import FaceForensics
from hmtl_jax.data.readers.fairface import FairFace
from hmtl_jax.data.readers.fer2013 import Fer2013
from hmtl_jax.data.readers.ferplus import FerPlus
from hmtl_jax.data.readers.folder import Folder
from hmtl_jax.data.readers.mtfl import Mtfl
from hmtl_jax.data.readers.rafdb import RafDb
from hmtl_jax.data.readers.synthetic import Synthetic
from hmtl_jax.data.readers.table import Table
from hmtl_jax.data.readers.unlabelled import Unlabelled
from hmtl_jax.data.readers.utkface import UtkFace
from hmtl_jax.data.readers.w300_lp import W300Lp

_READERS: tuple[Any, ...] = (
    W300Lp,
    AffectNet,
    Aflw2000,
    Biwi,
    CelebA,
    CelebDf,
    FaceForensics,
    FairFace,
    Fer2013,
    FerPlus,
    Folder,
    Mtfl,
    RafDb,
    Synthetic,
    Table,
    Unlabelled,
    UtkFace,
)
READERS: dict[str, Any] = {reader.name: reader for reader in _READERS}

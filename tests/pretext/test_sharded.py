"""On a batch that is split over devices every pretext does its work where the examples are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from hmtl_jax import sharding
from hmtl_jax.pretext.inpaint import Inpaint
from hmtl_jax.pretext.mae import Mae
from hmtl_jax.pretext.puzzle import Puzzle

BATCH, SIZE, PATCH = 16, 16, 4
COLLECTIVES = ("all-gather", "all-to-all", "all-reduce", "collective-permute")


@pytest.mark.parametrize(
    "pretext",
    [
        Inpaint(SIZE, holes="rectangles"),
        Inpaint(SIZE, holes="tiles"),
        Mae(PATCH, SIZE),
        Mae(PATCH, SIZE, drops_tokens=False, input="ldp", targets=("lbp",), loss="classes"),
        Puzzle(SIZE, PATCH, rotate=True, sizes=(16, 8)),
    ],
)
def test_views_need_no_word_between_devices_and_are_the_same(pretext):
    mesh = sharding.make_mesh()
    assert mesh.size == 8
    images = np.random.default_rng(0).random((BATCH, SIZE, SIZE, 3)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), BATCH)
    split = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    views = jax.jit(pretext.views, in_shardings=split, out_shardings=split)
    compiled = views.lower(keys, jnp.asarray(images)).compile()
    assert not [name for name in COLLECTIVES if name in compiled.as_text()]
    found = compiled(*jax.device_put((keys, jnp.asarray(images)), split))
    wanted = jax.jit(pretext.views)(keys, images)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), found, wanted)

"""A recipe small enough to compile in seconds, with a batch and a state for it."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from hmtl_jax import build, recipe, state, step
from hmtl_jax.errors import UserError
from hmtl_jax.models import conv

CLASSES = ("calm", "glad", "grim")


class Source:
    """A training split that has labels and no pictures."""

    labels = ("expression", "expression_soft", "valence")

    def __init__(self, expression=(0, 0, 0, 0, 1, 1, 2, -1)):
        self.expression = np.array(expression, np.int32)

    def __len__(self):
        return len(self.expression)

    def __getitem__(self, index):
        return {"image": b"", "key": str(index), "expression": self.expression[index]}

    def class_names(self, label):
        return CLASSES if label.startswith("expression") else None


class Normed(nn.Module):
    """An encoder that is a batch norm."""

    @nn.compact
    def __call__(self, images_bhwc, keep_bk=None, *, train=False):
        x_bhwc = conv.batch_norm(images_bhwc, jnp.float32, train=train, name="norm")
        return {"patches": x_bhwc, "pooled": conv.pooled(x_bhwc)}


def config(batch_size: int = 8, **optim) -> ConfigDict:
    """16-px images in 16 patches, width 16, two blocks; λ weighting; every augmentation off."""
    config = recipe.defaults()
    config.batch_size, config.steps = batch_size, 10
    config.data.name, config.data.image_size = "tiny", 16
    config.model.encoder, config.model.dtype = "16x2x2/4", "float32"
    config.tasks.expression = recipe.task("classification", label="expression")
    config.pretexts.mae = recipe.pretext_task(
        "mae", targets=("rgb", "lbp"), decoder_dim=8, decoder_depth=1, decoder_heads=2
    )
    config.weighting.name = "ssat"
    config.optim.update({"schedule": "constant", "warmup_epochs": 0.0} | optim)
    return config


def training(config: ConfigDict) -> step.Training:
    return build.training(config, build.make_tasks(config, Source()), config.batch_size)


def changed(training: step.Training, **fields) -> step.Training:
    """The same training of a program that differs in these fields."""
    return dataclasses.replace(training, program=dataclasses.replace(training.program, **fields))


def batch(size: int = 8, missing: tuple[int, ...] = (), invalid: tuple[int, ...] = ()) -> dict:
    """Random colours, labels in turn; rows without a label, and rows that are not valid."""
    rng = np.random.default_rng(7)
    images = rng.integers(0, 256, (size, 16, 16, 3))
    # No luma half-way between two grey levels: float32 and float64 could round it apart.
    images[..., 0] ^= images @ [299, 587, 114] % 1000 == 500
    rows = np.arange(size)
    label = np.where(np.isin(rows, missing), -1, rows % len(CLASSES))
    return {
        "image": images.astype(np.uint8),
        "expression": label.astype(np.int32),
        "index": rows.astype(np.int32),
        "valid": ~np.isin(rows, invalid),
    }


def random_like(shapes, seed: int = 0):
    """Random parameters, biases and norms too: where they are zero or one, mistakes can hide."""
    rng = np.random.default_rng(seed)

    def one(path, leaf):
        scale = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(rng.normal(scale, 0.2, leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, shapes)


def first_state(training: step.Training) -> state.TrainState:
    """The state of step 0 with random parameters, without the time to compile its initialisers."""
    shapes = jax.eval_shape(lambda: state.create(training))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    params = random_like(shapes.params)
    ema = {"params": jax.tree.map(jnp.copy, params), "batch_stats": zeros.batch_stats}
    ema = ema if shapes.ema else {}
    return dataclasses.replace(zeros, params=params, ema=ema)


def float64(tree):
    """The same tree as NumPy float64, for tests/reference.py."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def keys(batch: int, seed: int = 0) -> jax.Array:
    """One random key an example."""
    return jax.random.split(jax.random.key(seed), batch)


def refused(call, *arguments, **options) -> str:
    """What the UserError says that the call ends in: one line."""
    with pytest.raises(UserError) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)

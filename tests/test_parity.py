"""Numbers of the MAE and SSAT authors' code, worked out by their formulas and kept."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from hmtl_jax import build, optim, recipe, state, step, weighting
from hmtl_jax.models import vit
from hmtl_jax.pretext.mae import Mae
from tests import tiny


def test_positions():
    """get_2d_sincos_pos_embed(8, 2): the column, then the row, each as sines then cosines."""
    found = vit.sincos_positions(2, 2, 8)
    one = [0.84147098, 0.00999983, 0.54030231, 0.99995000]
    zero = [0.0, 0.0, 1.0, 1.0]
    np.testing.assert_allclose(found, [zero + zero, one + zero, zero + one, one + one], atol=1e-7)


def test_rate_by_epoch():
    """adjust_learning_rate of 1e-3 to 1e-6 in 100 epochs, of which five warm up."""
    config = recipe.defaults().optim
    config.lr, config.final_lr = 1e-3, 1e-6
    schedule = optim.make_schedule(config, steps=10_000, warmup=500)
    by_epoch = {
        0: 0.0,
        1: 2e-4,
        5: 1e-3,
        10: 9.9317997e-4,
        52.5: 5.005e-4,
        90: 2.80643e-5,
        100: 1e-6,
    }
    for epoch, rate in by_epoch.items():
        assert float(schedule(int(100 * epoch))) == pytest.approx(rate, rel=1e-3), epoch


def test_layer_decay():
    """param_groups_lrd of a ViT of twelve blocks at 0.75."""
    blocks = {f"block{index:02d}": {"fc1": {"kernel": 1.0}} for index in range(12)}
    params = {
        "encoder": {"cls": 1.0, "embed": {"kernel": 1.0}, "blocks": blocks, "norm": {"scale": 1.0}},
        "heads_expression": {"linear": {"kernel": 1.0}},
    }
    found = traverse_util.flatten_dict(optim.layer_scales(params, 0.75), sep="/")
    kept = {
        "encoder/cls": 0.02375726,
        "encoder/embed/kernel": 0.02375726,
        "encoder/blocks/block00/fc1/kernel": 0.03167635,
        "encoder/blocks/block05/fc1/kernel": 0.13348389,
        "encoder/blocks/block11/fc1/kernel": 0.75,
        "encoder/norm/scale": 1.0,
        "heads_expression/linear/kernel": 1.0,
    }
    for key, scale in kept.items():
        assert found[key] == pytest.approx(scale, rel=1e-6), key


def test_masked_error():
    """forward_loss: the mean over a patch's values, then over the patches that are hidden."""
    mae = Mae(patch=2, image_size=4, mask_ratio=0.5)
    wanted = jnp.arange(48, dtype=jnp.float32).reshape(1, 4, 12) / 10
    found = jnp.zeros((1, 4, 12))
    target = {"rgb": wanted, "hidden": jnp.float32([[0, 1, 1, 0]])}
    loss = mae.losses({"rgb": found}, target, None)["rgb"]
    # Means of squares of 1.2 … 2.3 and of 2.4 … 3.5.
    np.testing.assert_allclose(loss, [(3.1816667 + 8.8216667) / 2], rtol=1e-6)


def test_weights_of_the_losses():
    """SSAT: λ of the task, 1 − λ of the pretext, λ = 0.1."""
    config = tiny.config(8)
    config.weighting.lam = 0.1
    made = build.make_weighting(config, 10, 10)
    losses = {"expression": jnp.float32(2.0), "mae": jnp.float32(0.5)}
    weights = made.weights(made.init(), losses, dict.fromkeys(losses, True), jnp.int32(0))
    assert isinstance(made, weighting.Fixed)
    assert {name: round(float(w), 6) for name, w in weights.items()} == {
        "expression": 0.1,
        "mae": 0.9,
    }


def test_the_first_update_is_the_sign_of_the_gradient():
    """AdamW's first step: −lr (g / |g| + decay · weight), with no decay on what is no matrix."""
    config = tiny.config(8, name="adamw", lr=0.01, weight_decay=0.05)
    training = tiny.training(config)
    before = state.create(training)
    # Optax's Adam mixes a float with an integer counter.
    with jax.numpy_dtype_promotion("standard"):
        after, _ = jax.jit(functools.partial(step.train_step, training))(before, tiny.batch(8))
    for path in (("encoder", "embed", "kernel"), ("encoder", "cls")):
        old, new = (functools.reduce(dict.__getitem__, path, s.params) for s in (before, after))
        decay = 0.05 if path[-1] == "kernel" else 0.0
        moved = np.abs((new - old) / 0.01 + decay * old)
        assert np.median(moved) == pytest.approx(1.0, abs=1e-3)

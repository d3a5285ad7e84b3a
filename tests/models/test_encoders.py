"""Every encoder by its name, with every pretext that it can serve."""

import functools

import jax
import numpy as np
import pytest

from hmtl_jax import infer, recipe, state, step
from hmtl_jax.errors import UserError
from hmtl_jax.models import encoders
from tests import tiny

PRETEXTS = {
    "mae": {"targets": ("rgb", "lbp"), "decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2},
    "puzzle": {"tiles": 2},
    "rotation": {"tiles": 2, "heads": "places"},
    "inpaint": {},
}
BATCH = tiny.batch(8) | {"image": np.zeros((8, 32, 32, 3), np.uint8)}


def config_of(encoder, **pretexts):
    config = tiny.config(8, name="sgd", ema=0.9, accumulate=2)
    config.data.image_size, config.model.encoder = 32, encoder
    config.pretexts = {n: recipe.pretext_task(n, **settings) for n, settings in pretexts.items()}
    return config


@pytest.mark.parametrize(
    "encoder", ["16x2x2/8", "resnet18-small", "efficientnet_b0-small", "cnn24"]
)
@pytest.mark.slow
def test_every_encoder_trains_with_every_pretext_and_keeps_the_states_form(encoder):
    training = tiny.training(config_of(encoder, **PRETEXTS))
    old = jax.eval_shape(lambda: state.create(training))
    new, metrics = jax.eval_shape(functools.partial(step.train_step, training), old, BATCH)
    form = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert form(new) == form(old)
    assert {f"loss/{name}" for name in PRETEXTS} <= set(metrics)
    assert bool(old.batch_stats) == ("x" not in encoder)
    found = jax.eval_shape(
        functools.partial(infer.eval_step, training.program), state.evaluation_variables(old), BATCH
    )
    assert found["predictions"]["expression"].shape == (8, 3)


@pytest.mark.parametrize(
    ("name", "patch", "drops"),
    [
        ("S/16", 16, True),
        ("resnet50", 32, False),
        ("resnet101-small", 8, False),
        ("efficientnet_b2", 32, False),
        ("cnn32", 8, False),
    ],
)
def test_what_a_pretext_must_know_of_an_encoder(name, patch, drops):
    found = encoders.parse(name)
    assert (found.patch, found.drops_tokens) == (patch, drops)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("resnet52", "Unknown encoder 'resnet52'; known: .*resnet50.* as 'S/16'"),
        ("X/16", "Unknown encoder 'X'; known: B, H, L, S, Ti"),
        ("S", "Unknown encoder 'S'; known: .* as 'S/16'"),
    ],
)
def test_an_unknown_encoder_lists_the_known_ones(name, says):
    with pytest.raises(UserError, match=says):
        encoders.parse(name)


@pytest.mark.parametrize(("name", "size"), [("resnet18", 48), ("resnet18-small", 44), ("S/16", 40)])
def test_an_image_that_an_encoder_does_not_fit_is_refused_in_words(name, size):
    with pytest.raises(UserError, match=r"model\.encoder: .*choose"):
        encoders.parse(name).check(size)
    encoders.parse(name).check(size // 32 * 32 or 32)


@pytest.mark.parametrize("encoder", ["cnn16", "resnet18-small"])
def test_a_pooled_map_of_bf16_is_that_of_f32(encoder):
    """Compiled as one, for a few pictures: XLA's CPU backend once summed what was not there."""
    images = np.random.default_rng(0).random((8, 48, 48, 3), np.float32)
    settings = recipe.defaults().model
    exact, half = (
        encoders.parse(encoder).make(settings, dtype) for dtype in ("float32", "bfloat16")
    )
    variables = jax.jit(exact.init)(jax.random.key(0), images)
    wanted = jax.jit(lambda v, x: exact.apply(v, x)["pooled"])(variables, images)
    found = jax.jit(lambda v, x: half.apply(v, x)["pooled"])(variables, images)
    np.testing.assert_allclose(found, wanted, atol=0.02 * np.abs(wanted).max())

"""The token decoder puts each token where its patch is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hmtl_jax.errors import UserError
from hmtl_jax.models import decoders
from hmtl_jax.pretext.view import View
from tests import reference, tiny

GRID, DIM, KEPT, HEADS = 3, 8, 4, 2
OUTPUTS = (("rgb", 12), ("lbp", 4))
SPEC = {
    "kind": "tokens", "dim": DIM, "depth": 1, "heads": HEADS, "grid": GRID, "outputs": OUTPUTS,
}  # fmt: skip
KEEP = np.array([[7, 0, 4, 2], [1, 8, 3, 5]], np.int32)
TOKENS = np.random.default_rng(0).normal(size=(2, 1 + KEPT, 16)).astype(np.float32)


def view_of(keep):
    return View(jnp.zeros((2, 6, 6, 3)), None if keep is None else jnp.asarray(keep))


@pytest.fixture(scope="module")
def params():
    decoder = decoders.build(SPEC, jnp.float32)
    stages = {"tokens": jnp.asarray(TOKENS)}
    init = functools.partial(decoder.init, train=False)
    return tiny.random_like(
        jax.eval_shape(init, jax.random.key(0), stages, view_of(KEEP))["params"]
    )


@jax.jit
def run(params, tokens, keep):
    decoder = decoders.build(SPEC, jnp.float32)
    view = View(jnp.zeros((2, 6, 6, 3)), keep)
    return decoder.apply({"params": params}, {"tokens": tokens}, view, train=True)


def test_predictions_equal_the_reference(params):
    found = run(params, TOKENS, KEEP)
    slow = reference.decode(tiny.float64(params), TOKENS.astype(np.float64), KEEP, GRID, HEADS)
    assert set(found) == set(slow) == {"rgb", "lbp"}
    for name, size in OUTPUTS:
        assert found[name].shape == (2, GRID**2, size)
        np.testing.assert_allclose(found[name], slow[name], atol=1e-5)


def test_the_order_of_the_kept_tokens_does_not_matter(params):
    order = np.array([2, 0, 3, 1])
    tokens = np.concatenate([TOKENS[:, :1], TOKENS[:, 1:][:, order]], axis=1)
    found, turned = run(params, TOKENS, KEEP), run(params, tokens, KEEP[:, order])
    for name in found:
        np.testing.assert_allclose(turned[name], found[name], atol=1e-6)


def test_bf16_predictions_come_back_in_f32(params):
    decoder = decoders.build(SPEC, jnp.bfloat16)
    stages = {"tokens": jnp.asarray(TOKENS, jnp.bfloat16)}
    found = jax.eval_shape(
        lambda: decoder.apply({"params": params}, stages, view_of(KEEP), train=True)
    )
    assert {leaf.dtype for leaf in found.values()} == {jnp.dtype("float32")}


def test_a_view_without_a_mask_is_refused(params):
    decoder = decoders.build(SPEC, jnp.float32)
    with pytest.raises(UserError, match="needs a view that masks patches"):
        decoder.apply(
            {"params": params}, {"tokens": jnp.asarray(TOKENS)}, view_of(None), train=False
        )


def test_an_unknown_decoder_lists_the_known():
    with pytest.raises(UserError, match=r"Unknown decoder 'token'; known: cells, .*tokens"):
        decoders.build(SPEC | {"kind": "token"}, jnp.float32)

"""The token decoder puts each token where its patch is."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hmtl_jax.errors import UserError
from hmtl_jax.models import decoders
from hmtl_jax.view import View
from tests import reference, tiny

GRID, DIM, KEPT, HEADS = 3, 8, 4, 2
OUTPUTS = (("rgb", 12, 1, 0.0), ("lbp", 4, 3, 0.25))
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
    for name, values, numbers, start in OUTPUTS:
        assert found[name].shape == (2, GRID**2, values * numbers)
        np.testing.assert_allclose(found[name], slow[name] + start, atol=1e-5)


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


def applied(decoder, params, *args, **options) -> Any:
    return decoder.apply({"params": params}, *args, **options)


def zeros_view(size=6):
    return View(jnp.zeros((2, size, size, 3)))


def test_the_cell_decoder_is_one_linear_layer_on_each_cell():
    decoder = decoders.build({"kind": "cells", "grid": GRID, "outputs": OUTPUTS}, jnp.float32)
    patches = np.random.default_rng(1).normal(size=(2, GRID, GRID, DIM)).astype(np.float32)
    stages = {"patches": jnp.asarray(patches)}
    params = tiny.random_like(
        decoder.init(jax.random.key(0), stages, zeros_view(), train=False)["params"]
    )
    found = applied(decoder, params, stages, zeros_view(), train=True)
    for name, values, numbers, start in OUTPUTS:
        assert (
            found[name].shape == (2, GRID**2, values * numbers) and found[name].dtype == jnp.float32
        )
        layer = tiny.float64(params[f"predict_{name}"])
        for cell in range(GRID**2):
            slow = reference.dense(patches[:, cell // GRID, cell % GRID], layer)
            np.testing.assert_allclose(found[name][:, cell], slow + start, atol=1e-5)


def test_classes_of_pixels_share_one_layer_over_features_of_each_pixel():
    outputs = (("lbp", 4, 30, 0.0),)
    decoder = decoders.build({"kind": "cells", "grid": GRID, "outputs": outputs}, jnp.float32)
    patches = np.random.default_rng(1).normal(size=(2, GRID, GRID, DIM)).astype(np.float32)
    stages = {"patches": jnp.asarray(patches)}
    params = tiny.random_like(
        decoder.init(jax.random.key(0), stages, zeros_view(), train=False)["params"]
    )
    found = applied(decoder, params, stages, zeros_view(), train=True)["lbp"]
    slow = {name: tiny.float64(layer) for name, layer in params.items()}
    for row in range(2):
        for cell in range(GRID**2):
            pixels = reference.dense(patches[row, cell // GRID, cell % GRID], slow["pixels_lbp"])
            pixels = np.asarray(jax.nn.gelu(jnp.asarray(pixels), approximate=False)).reshape(4, 16)
            wanted = [reference.dense(pixel, slow["predict_lbp"]) for pixel in pixels]
            np.testing.assert_allclose(found[row, cell].reshape(4, 30), wanted, atol=1e-4)


def test_classes_of_large_cells_stay_lighter_than_the_encoder():
    outputs = (("lbp", 32**2, 256, 0.0),)
    decoder = decoders.build({"kind": "cells", "grid": 7, "outputs": outputs}, jnp.float32)
    stages = {"patches": jnp.zeros((1, 7, 7, 2048))}
    init = functools.partial(decoder.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), stages, View(jnp.zeros((1, 224, 224, 3))))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) < 40e6  # one layer has 537 million


def test_cells_and_masks_must_be_as_many():
    decoder = decoders.build({"kind": "cells", "grid": 2, "outputs": OUTPUTS}, jnp.float32)
    with pytest.raises(UserError, match="map is 3 x 3, the masks have 2 x 2 cells"):
        stages = {"patches": jnp.zeros((2, 3, 3, DIM))}
        decoder.init(jax.random.key(0), stages, zeros_view(), train=False)


def test_tile_heads_share_one_dropout_mask():
    heads = (("puzzle", 9, 9), ("rotation", 9, 4))
    decoder = decoders.build(
        {"kind": "pooled_tiles", "outputs": heads, "dropout": 0.5}, jnp.float32
    )
    # Each feature counts in one way of its own, so that a head shows which ones were dropped.
    stages = {"pooled": jnp.ones((2, 6))}
    params = decoder.init(jax.random.key(0), stages, zeros_view(), train=False)["params"]
    bits = jnp.asarray(2.0 ** np.arange(6), jnp.float32)[:, None]
    params = jax.tree.map(
        lambda x: x if x.ndim == 1 else jnp.broadcast_to(bits, x.shape), dict(params)
    )
    run = functools.partial(applied, decoder, params, stages, zeros_view())
    clean = run(train=False)
    assert {name: logits.shape for name, logits in clean.items()} == {
        "puzzle": (2, 9, 9), "rotation": (2, 9, 4),
    }  # fmt: skip
    dropped = run(train=True, rngs={"dropout": jax.random.key(1)})
    assert (clean["puzzle"] == 63).all() and (clean["rotation"] == 63).all()
    for row in range(2):
        sums = {*np.unique(dropped["puzzle"][row]), *np.unique(dropped["rotation"][row])}
        assert len(sums) == 1 and 0 <= sums.pop() < 126
    assert dropped["puzzle"][0, 0, 0] != dropped["puzzle"][1, 0, 0]


def test_a_tile_head_is_a_slice_of_one_layer():
    decoder = decoders.build(
        {"kind": "pooled_tiles", "outputs": (("puzzle", 4, 3),), "dropout": 0.0}, jnp.float32
    )
    pooled = np.random.default_rng(2).normal(size=(2, 6)).astype(np.float32)
    stages = {"pooled": jnp.asarray(pooled)}
    params = tiny.random_like(
        decoder.init(jax.random.key(0), stages, zeros_view(), train=False)["params"]
    )
    found = applied(decoder, params, stages, zeros_view(), train=True)["puzzle"]
    layer = tiny.float64(params["predict_puzzle"])
    for head in range(4):
        own = {name: value[..., 3 * head : 3 * head + 3] for name, value in layer.items()}
        np.testing.assert_allclose(found[:, head], reference.dense(pooled, own), atol=1e-5)


@pytest.mark.parametrize(("grid", "tiles"), [(6, 3), (7, 2), (14, 3), (4, 4)])
def test_heads_of_places_read_the_mean_of_their_own_place(grid, tiles):
    """Held against a map drawn finer, of which every place has whole cells."""
    outputs = (("puzzle", tiles**2, tiles**2), ("rotation", tiles**2, 4))
    spec = {"kind": "placed_tiles", "outputs": outputs, "dropout": 0.0}
    decoder = decoders.build(spec, jnp.float32)
    patches = np.random.default_rng(3).normal(size=(2, grid, grid, 5)).astype(np.float32)
    stages = {"patches": jnp.asarray(patches)}
    params = tiny.random_like(
        decoder.init(jax.random.key(0), stages, zeros_view(), train=False)["params"]
    )
    found = applied(decoder, params, stages, zeros_view(), train=True)
    finer = patches.repeat(tiles, axis=1).repeat(tiles, axis=2)
    means = finer.reshape(2, tiles, grid, tiles, grid, 5).mean(axis=(2, 4)).reshape(2, -1, 5)
    for name, places, classes in outputs:
        assert found[name].shape == (2, places, classes)
        layer = tiny.float64(params[f"predict_{name}"])
        np.testing.assert_allclose(found[name], reference.dense(means, layer), atol=1e-5)


def test_a_map_too_coarse_for_the_places_is_refused():
    spec = {"kind": "placed_tiles", "outputs": (("puzzle", 9, 9),), "dropout": 0.0}
    decoder = decoders.build(spec, jnp.float32)
    with pytest.raises(UserError, match=r"3 x 3 places, .* only 2 x 2 cells; choose fewer tiles"):
        stages = {"patches": jnp.zeros((2, 2, 2, DIM))}
        decoder.init(jax.random.key(0), stages, zeros_view(), train=False)


@pytest.mark.parametrize(("grid", "size"), [(3, 12), (3, 10), (2, 2), (1, 5)])
def test_the_image_decoder_fills_the_image_from_any_grid(grid, size):
    decoder = decoders.build({"kind": "image", "size": size, "dim": 8, "depth": 2}, jnp.bfloat16)
    stages = {"patches": jnp.ones((2, grid, grid, DIM), jnp.bfloat16)}
    init = functools.partial(decoder.init, train=False)
    params = jax.eval_shape(init, jax.random.key(0), stages, zeros_view(size))["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    found = jax.eval_shape(
        functools.partial(decoder.apply, train=True), {"params": params}, stages, zeros_view(size)
    )
    assert found.shape == (2, size, size, 3) and found.dtype == jnp.float32


def test_what_a_cell_says_is_painted_where_the_cell_is():
    decoder = decoders.build({"kind": "image", "size": 24, "dim": 8, "depth": 1}, jnp.float32)
    stages = np.random.default_rng(3).normal(size=(1, GRID, GRID, DIM)).astype(np.float32)
    init = functools.partial(decoder.init, train=False)
    params = tiny.random_like(
        jax.eval_shape(init, jax.random.key(0), {"patches": jnp.asarray(stages)}, zeros_view(24))
    )
    paint = functools.partial(decoder.apply, params, view=zeros_view(24), train=False)
    before = paint({"patches": jnp.asarray(stages)})
    stages[:, 2, 0] += 1
    changed = np.asarray(jnp.any(paint({"patches": jnp.asarray(stages)}) != before, axis=(0, 3)))
    # The cell's own pixels, and by the convolution those of its neighbours, no others.
    assert changed[16:, :8].all()
    assert not changed[:8].any() and not changed[:, 16:].any()


def test_every_weight_of_the_image_decoder_gets_a_gradient():
    decoder = decoders.build({"kind": "image", "size": 10, "dim": 8, "depth": 2}, jnp.float32)
    stages = {"patches": jnp.asarray(np.random.default_rng(4).normal(size=(2, 3, 3, 8)), "float32")}
    params = decoder.init(jax.random.key(0), stages, zeros_view(10), train=False)["params"]

    def loss(params, stages):
        return jnp.sum(jnp.abs(applied(decoder, params, stages, zeros_view(10), train=True) - 1))

    for leaf in jax.tree.leaves(jax.grad(loss, argnums=(0, 1))(params, stages)):
        assert np.abs(leaf).max() > 0

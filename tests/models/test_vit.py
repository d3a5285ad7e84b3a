"""The encoder equals a slow float64 version, whatever of scan, remat and subsets is on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hmtl_jax.errors import UserError
from hmtl_jax.models import decoders, vit
from hmtl_jax.models.layers import DropPath
from tests import reference, tiny

# Oblong, so that rows and columns cannot be exchanged unnoticed.
HEIGHT, WIDTH, PATCH, HEADS = 24, 16, 4, 2
GRID = (HEIGHT // PATCH, WIDTH // PATCH)
PATCHES = GRID[0] * GRID[1]
MODEL = vit.ViT(patch=PATCH, dim=16, depth=2, heads=HEADS)


def images_of(height=HEIGHT, width=WIDTH, batch=3):
    images = np.random.default_rng(0).normal(size=(batch, height, width, 3))
    return jnp.asarray(images, jnp.float32)


PATCHES_BNP = reference.patches(images_of(), PATCH)


def shapes_of(model, *args, **kwargs):
    return jax.eval_shape(
        functools.partial(model.init, train=False), jax.random.key(0), *args, **kwargs
    )["params"]


@functools.partial(jax.jit, static_argnums=0, static_argnames="train")
def run(model, params, images, keep=None, train=False):
    return model.apply({"params": params}, images, keep, train=train)


@pytest.fixture(scope="module")
def params():
    return tiny.random_like(shapes_of(MODEL, images_of()))


@pytest.fixture(scope="module")
def whole(params):
    return run(MODEL, params, images_of())


def stacked(params):
    """Parameters of plain blocks → of scanned ones."""
    blocks = params["blocks"]
    joined = jax.tree.map(lambda *x: jnp.stack(x), *[blocks[name] for name in sorted(blocks)])
    return params | {"blocks": {"scanned": joined}}


@pytest.mark.parametrize(
    ("encoder", "size", "published"),
    [
        ("Ti/16", 224, 5_524_416),
        ("S/16", 224, 21_665_664),
        ("B/16", 224, 85_798_656),
        ("L/16", 224, 303_301_632),
        ("H/14", 224, 630_764_800),
        ("64x3x2/6", 48, None),
    ],
)
@pytest.mark.parametrize("positions", ["learned", "sincos"])
def test_parameter_counts(encoder, size, published, positions):
    of = vit.parse(encoder)
    settings = dataclasses.asdict(of) | {"positions": positions}
    model = vit.ViT(**settings, scan=of.depth > 12)
    shapes = shapes_of(model, jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    dim, table = of.dim, (1 + (size // of.patch) ** 2) * of.dim
    by_formula = (3 * of.patch**2 + 1) * dim + dim + of.depth * (12 * dim**2 + 13 * dim) + 2 * dim
    assert count == by_formula + (table if positions == "learned" else 0)
    if published and positions == "learned":
        assert count == published


@pytest.mark.parametrize(("grid_h", "grid_w", "dim"), [(3, 5, 16), (14, 14, 384), (1, 1, 4)])
def test_sincos_table_is_its_definition(grid_h, grid_w, dim):
    found = vit.sincos_positions(grid_h, grid_w, dim)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, reference.sincos(grid_h, grid_w, dim), atol=1e-6)


@pytest.mark.parametrize(("grid_h", "grid_w", "dim"), [(3, 5, 16), (6, 6, 192), (14, 14, 384)])
def test_centred_positions_share_nothing_and_weigh_what_sincos_weighs(grid_h, grid_w, dim):
    found, old = (
        vit.centred_positions(grid_h, grid_w, dim),
        vit.sincos_positions(grid_h, grid_w, dim),
    )
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.mean(0, dtype=np.float64), 0.0, atol=1e-6)
    np.testing.assert_allclose(np.square(found).mean(), np.square(old).mean(), rtol=1e-5)
    # They are the old ones, less what these share, on another scale.
    rest = old - old.mean(0)
    np.testing.assert_allclose(found / np.abs(found).max(), rest / np.abs(rest).max(), atol=1e-4)


def test_one_place_needs_no_position():
    assert not vit.centred_positions(1, 1, 8).any()


def test_encoder_and_decoder_have_the_same_fixed_positions():
    spec = {"kind": "tokens", "dim": 8, "depth": 1, "heads": 2, "grid": 2, "outputs": ()}
    assert decoders.build(spec, jnp.float32, "centred").positions == "centred"
    assert decoders.build(spec, jnp.float32, "learned").positions == "sincos"


def test_tokens_equal_the_reference(params, whole):
    slow = reference.vit(tiny.float64(params), PATCHES_BNP, GRID, HEADS)
    np.testing.assert_allclose(whole["tokens"], slow, atol=2e-5)


def test_every_named_stage_is_returned(whole):
    shapes = {name: stage.shape for name, stage in whole.items()}
    assert shapes == {
        "block00": (3, 1 + PATCHES, 16),
        "block01": (3, 1 + PATCHES, 16),
        "tokens": (3, 1 + PATCHES, 16),
        "pooled": (3, 16),
        "patches": (3, *GRID, 16),
    }
    map_of_tokens = whole["tokens"][:, 1:].reshape(whole["patches"].shape)
    np.testing.assert_array_equal(whole["patches"], map_of_tokens)


def test_pooling_takes_the_cls_token_or_the_mean_of_the_patches(params, whole):
    tokens = np.asarray(whole["tokens"])
    np.testing.assert_array_equal(whole["pooled"], tokens[:, 0])
    mean = run(MODEL.clone(pool="mean"), params, images_of())["pooled"]
    np.testing.assert_allclose(mean, tokens[:, 1:].mean(axis=1), atol=1e-5)


def test_a_subset_equals_running_those_tokens_alone(params):
    keep = np.array([[3, 0, 17, 23, 8], [1, 2, 5, 22, 11], [23, 22, 21, 0, 1]], np.int32)
    found = run(MODEL, params, images_of(), jnp.asarray(keep))
    slow = reference.vit(tiny.float64(params), PATCHES_BNP, GRID, HEADS, keep)
    np.testing.assert_allclose(found["tokens"], slow, atol=2e-5)
    assert "patches" not in found

    turned = run(MODEL, params, images_of(), jnp.asarray(keep[:, ::-1].copy()))
    np.testing.assert_allclose(turned["tokens"][:, 0], found["tokens"][:, 0], atol=1e-5)
    np.testing.assert_allclose(turned["tokens"][:, :0:-1], found["tokens"][:, 1:], atol=1e-5)


def test_keeping_every_patch_is_the_full_pass(params, whole):
    keep = jnp.tile(jnp.arange(PATCHES, dtype=jnp.int32), (3, 1))
    found = run(MODEL, params, images_of(), keep)
    np.testing.assert_allclose(found["tokens"], whole["tokens"], atol=1e-5)


@pytest.mark.parametrize(("size", "patch"), [((48, 48), 6), ((30, 20), 5), ((7, 7), 7)])
def test_any_image_size_and_patch_that_fits(size, patch):
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    model = MODEL.clone(patch=patch)
    found = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x)[0], images)
    assert found["patches"].shape == (2, size[0] // patch, size[1] // patch, 16)


def test_a_patch_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="patch 5 does not divide the image size 24"):
        shapes_of(MODEL.clone(patch=5), images_of())


def gradients(model, params):
    def loss(params):
        return jnp.sum(jnp.sin(model.apply({"params": params}, images_of(), train=True)["tokens"]))

    return jax.grad(loss), params


@pytest.fixture(scope="module")
def plain_gradient(params):
    gradient, params = gradients(MODEL, params)
    return jax.jit(gradient)(params)


@pytest.mark.parametrize(("scan", "remat"), [(True, False), (False, True), (True, True)])
def test_scan_and_remat_change_nothing(params, plain_gradient, scan, remat):
    model = MODEL.clone(scan=scan, remat=remat)
    gradient, arranged = gradients(model, stacked(params) if scan else params)
    shapes = shapes_of(model, images_of())
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, arranged)
    jaxpr = str(jax.make_jaxpr(gradient)(arranged))
    assert ("checkpoint" in jaxpr or "remat" in jaxpr) == remat
    assert ("scan[" in jaxpr) == scan
    wanted = stacked(plain_gradient) if scan else plain_gradient
    jax.tree.map(
        lambda ours, plain: np.testing.assert_allclose(ours, plain, atol=1e-4),
        jax.jit(gradient)(arranged),
        wanted,
    )


def test_scanned_blocks_return_the_same_stages(params, whole):
    scanned = run(MODEL.clone(scan=True), stacked(params), images_of())
    assert scanned.keys() == whole.keys()
    for name, stage in whole.items():
        np.testing.assert_allclose(scanned[name], stage, atol=1e-5)


def test_scanned_blocks_start_with_different_parameters():
    model = MODEL.clone(scan=True, depth=3)
    found = jax.jit(lambda: model.init(jax.random.key(0), images_of(4, 4, 1)))()
    kernel = np.asarray(found["params"]["blocks"]["scanned"]["qkv"]["kernel"])
    assert kernel.shape[0] == 3 and not np.allclose(kernel[0], kernel[1])


def test_bf16_computes_in_bf16_and_keeps_f32_parameters_and_features(params, whole):
    model = MODEL.clone(dtype=jnp.bfloat16)
    found = run(model, params, images_of())
    assert found["block00"].dtype == found["tokens"].dtype == jnp.bfloat16
    assert found["pooled"].dtype == jnp.float32
    gradient, _ = gradients(model, params)
    for tree in (shapes_of(model, images_of()), jax.eval_shape(gradient, params)):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype("float32")}
    error = np.abs(np.asarray(found["pooled"] - whole["pooled"]))
    assert 0 < error.max() < 0.1 and error.mean() < 0.02


def test_drop_path_drops_whole_examples_and_keeps_the_mean():
    x_bnd = jnp.asarray(np.random.default_rng(0).uniform(1, 2, (4000, 3, 2)), jnp.float32)
    rngs = {"dropout": jax.random.key(0)}
    kept = np.asarray(DropPath(0.25).apply({}, x_bnd, train=True, rngs=rngs) / x_bnd).round(4)
    assert (kept == kept[:, :1, :1]).all()
    np.testing.assert_allclose(np.unique(kept), [0, 1.3333])
    # A deviation of 0.0091 for 4000 examples.
    assert kept.mean() == pytest.approx(1, abs=0.04)


def test_drop_path_is_off_in_evaluation_and_at_rate_0(params, whole):
    model = MODEL.clone(drop_path=0.5)
    np.testing.assert_array_equal(run(model, params, images_of())["tokens"], whole["tokens"])
    # At rate 0 a missing stream of randomness would be an error, if it were asked for.
    jax.eval_shape(lambda: MODEL.apply({"params": params}, images_of(), train=True))


@pytest.mark.parametrize("scan", [False, True])
def test_each_block_draws_its_own_drop_path(scan):
    """Branches that add 1 each: what an example has gained counts the branches that it kept."""
    rate, depth = 0.5, 2
    blocks = vit.Blocks(depth=depth, dim=4, heads=1, drop_path=rate, scan=scan)
    x_bnd = jnp.zeros((400, 1, 4))
    shapes = jax.eval_shape(lambda: blocks.init(jax.random.key(0), x_bnd, False))["params"]

    def ones_from_proj(path, leaf):
        adds = [entry.key for entry in path[-2:]] == ["proj", "bias"]
        return jnp.full(leaf.shape, float(adds))

    params = jax.tree_util.tree_map_with_path(ones_from_proj, shapes)
    rngs = {"dropout": jax.random.key(1)}
    out, _ = blocks.apply({"params": params}, x_bnd, True, rngs=rngs)
    gained = np.unique(np.asarray(out)[:, 0, 0].round(3))
    # Plain: rates 0 and 0.5. Scanned: both 0.25, so that one of the two may be dropped alone.
    wanted = [0, 1 / 0.75, 2 / 0.75] if scan else [1, 1 + 1 / 0.5]
    np.testing.assert_allclose(gained, wanted, atol=1e-3)


def test_encoder_names_are_read():
    assert vit.parse("S/16") == vit.Size(16, 384, 12, 6)
    assert vit.parse("192x6x3/8") == vit.Size(8, 192, 6, 3)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("S", "lacks its patch; write it as 'S/16'"),
        ("S/", "lacks its patch"),
        ("S/0", "lacks its patch"),
        ("s/16", "Unknown encoder 's'; known: B, H, L, S, Ti"),
        ("resnet50/16", "Unknown encoder 'resnet50'; known: B, H, L, S, Ti"),
        ("64x2x5/8", "divisible by its heads"),
        ("18x2x3/8", "divisible by its heads and by 4"),
        ("64x2x0/8", "heads must be above 0"),
    ],
)
def test_a_wrong_encoder_name_says_what_is_wrong(name, says):
    with pytest.raises(UserError, match=says):
        vit.parse(name)

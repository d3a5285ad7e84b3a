"""The masked auto-encoder's masks, targets and loss."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hmtl_jax import build, step, textures
from hmtl_jax.errors import UserError
from hmtl_jax.images import normalise
from hmtl_jax.models import decoders
from hmtl_jax.pretext.mae import Mae
from hmtl_jax.program import make_views
from hmtl_jax.view import View
from tests import reference, tiny

BATCH, SIZE, PATCH = 6, 24, 4


def keys(seed=0, batch=BATCH):
    return tiny.keys(batch, seed)


def only(pairs) -> Any:
    """The one view and its target."""
    (pair,) = pairs
    return pair


def random_outputs(mae, seed=1):
    rng = np.random.default_rng(seed)
    sizes = {name: values * n for name, values, n, _ in mae.decoder_spec()["outputs"]}
    return {
        name: jnp.asarray(rng.normal(size=(BATCH, mae.num_patches, size)), jnp.float32)
        for name, size in sizes.items()
    }


@pytest.mark.parametrize(("ratio", "kept"), [(0.75, 9), (0.5, 18), (0.9, 3)])
def test_each_patch_is_kept_or_hidden_exactly_once(images_bhwc, ratio, kept):
    mae = Mae(PATCH, SIZE, mask_ratio=ratio)
    view, target = only(mae.views(keys(), images_bhwc))
    hidden = np.asarray(target["hidden"])
    assert mae.num_kept == kept and view.keep.shape == (BATCH, kept)
    assert view.keep.dtype == jnp.int32
    for keep, row in zip(np.asarray(view.keep), hidden, strict=True):
        assert len(set(keep)) == kept
        assert set(keep) == set(np.flatnonzero(row == 0))
    assert set(np.unique(hidden)) == {0.0, 1.0}
    np.testing.assert_array_equal(view.images, images_bhwc)


def test_masks_are_each_examples_own_and_uniform():
    mae = Mae(PATCH, SIZE)
    images = jnp.zeros((2000, SIZE, SIZE, 3))
    hidden = np.asarray(only(mae.views(keys(batch=2000), images))[1]["hidden"])
    assert len(np.unique(hidden[:BATCH], axis=0)) == BATCH
    # 2000 masks: the share of one patch has a standard deviation of 0.0097.
    assert np.abs(hidden.mean(axis=0) - 0.75).max() < 0.05


def test_a_mask_depends_on_its_own_key_alone(images_bhwc):
    mae = Mae(PATCH, SIZE)
    whole, _ = only(mae.views(keys(), images_bhwc))
    part, _ = only(mae.views(keys()[2:4], images_bhwc[2:4]))
    np.testing.assert_array_equal(whole.keep[2:4], part.keep)
    other, _ = only(mae.views(keys(seed=1), images_bhwc))
    assert not np.array_equal(whole.keep, other.keep)


def test_rgb_targets_are_normalised_pixels(images_bhwc):
    _, target = only(Mae(PATCH, SIZE).views(keys(), images_bhwc))
    pixels = reference.normalise(np.asarray(images_bhwc, np.float64))
    np.testing.assert_allclose(target["rgb"], reference.patches(pixels, PATCH), atol=1e-5)


def test_texture_targets_are_code_maps_in_the_unit_interval(images_bhwc):
    mae = Mae(PATCH, SIZE, targets=("rgb", "lbp", "ldp"))
    _, target = only(mae.views(keys(), images_bhwc))
    for name in ("lbp", "ldp"):
        maps = textures.target(name, images_bhwc)
        np.testing.assert_array_equal(target[name], reference.patches(maps, PATCH))
    sizes = {name: values * n for name, values, n, _ in mae.decoder_spec()["outputs"]}
    assert sizes == {"rgb": 48, "lbp": 16, "ldp": 16}
    assert {name: target[name].shape[-1] for name in sizes} == sizes


def test_norm_patch_gives_each_patch_mean_0_and_variance_1(images_bhwc):
    _, target = only(
        Mae(PATCH, SIZE, targets=("rgb", "lbp"), norm_patch=True).views(keys(), images_bhwc)
    )
    for name in ("rgb", "lbp"):
        np.testing.assert_allclose(np.mean(target[name], axis=-1), 0, atol=1e-5)
        # By n - 1 values, as the authors' code does.
        np.testing.assert_allclose(np.var(target[name], axis=-1, ddof=1), 1, rtol=1e-3)


def test_norm_patch_of_a_flat_patch_is_zero_and_finite():
    mae = Mae(PATCH, SIZE, targets=("lbp",), norm_patch=True)
    _, target = only(mae.views(keys(), jnp.full((BATCH, SIZE, SIZE, 3), 0.5)))
    inner = target["lbp"].reshape(BATCH, 6, 6, 16)[:, 1:-1, 1:-1]  # outside the image is dark
    assert np.isfinite(target["lbp"]).all() and np.abs(inner).max() < 1e-3


def test_loss_is_the_mean_squared_error_of_masked_patches(images_bhwc):
    mae = Mae(PATCH, SIZE, targets=("rgb", "ldp"), target_weights=(1.0, 0.25))
    view, target = only(mae.views(keys(), images_bhwc))
    outputs = random_outputs(mae)
    losses = mae.losses(outputs, target, None)
    keep = np.asarray(view.keep)
    for name, weight in (("rgb", 1.0), ("ldp", 0.25)):
        prediction, wanted = (np.asarray(tree[name], np.float64) for tree in (outputs, target))
        slow = weight * reference.masked_mse(prediction, wanted, keep)
        np.testing.assert_allclose(losses[name], slow, rtol=1e-5)
        assert losses[name].shape == (BATCH,)


def test_predictions_of_kept_patches_get_no_gradient(images_bhwc):
    mae = Mae(PATCH, SIZE, targets=("rgb", "lbp"))
    _, target = only(mae.views(keys(), images_bhwc))

    def total(outputs):
        return sum(jnp.sum(loss) for loss in mae.losses(outputs, target, None).values())

    gradient = jax.grad(total)(random_outputs(mae))
    hidden = np.asarray(target["hidden"], bool)
    for name in ("rgb", "lbp"):
        assert (np.asarray(gradient[name])[~hidden] == 0).all()
        assert (np.asarray(gradient[name])[hidden] != 0).all()


@pytest.mark.parametrize(
    ("settings", "starts"),
    [
        ({}, [0.0, 0.5, 0.375, 0.1]),
        ({"norm_patch": True}, [0.0] * 4),
        ({"drops_tokens": False}, [0.0, 0.5, 0.375, 0.1]),
    ],
)
def test_before_training_each_target_is_predicted_near_its_mean(settings, starts):
    names = ("rgb", "lbp_bits_2", "ldp_bits_2", "lbp_uniform_histogram")
    mae = Mae(patch=PATCH, image_size=SIZE, targets=names, **settings)
    decoder = decoders.build(mae.decoder_spec(), jnp.float32)
    rng = np.random.default_rng(0)
    cells = jnp.asarray(rng.normal(size=(2, mae.grid, mae.grid, 16)), jnp.float32)
    stages = {"patches": cells, "tokens": cells.reshape(2, -1, 16)[:, : 1 + mae.num_kept]}
    keep = jnp.tile(jnp.arange(mae.num_kept), (2, 1))
    view = View(jnp.zeros((2, SIZE, SIZE, 3)), keep)
    params = decoder.init(jax.random.key(0), stages, view, train=False)
    found = decoder.apply(params, stages, view, train=True)
    for name, start in zip(names, starts, strict=True):
        np.testing.assert_allclose(found[name].mean(), start, atol=0.05)
        assert 0 < found[name].std() < 0.15  # with Xavier's kernel about 1


def test_bf16_predictions_are_reduced_in_f32(images_bhwc):
    mae = Mae(PATCH, SIZE)
    _, target = only(mae.views(keys(), images_bhwc))
    rounded = random_outputs(mae)["rgb"].astype(jnp.bfloat16)
    found = mae.losses({"rgb": rounded}, target, None)["rgb"]
    assert found.dtype == jnp.float32
    same = mae.losses({"rgb": rounded.astype(jnp.float32)}, target, None)["rgb"]
    np.testing.assert_array_equal(found, same)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, 1.5, 0.99])
def test_a_ratio_that_hides_or_keeps_nothing_is_refused(ratio):
    with pytest.raises(UserError, match=r"mask_ratio (.* of 36 patches|is .* to mask)"):
        Mae(PATCH, SIZE, mask_ratio=ratio)


@pytest.mark.parametrize("targets", [(), "lbp"])
def test_targets_are_a_tuple_of_names(targets):
    with pytest.raises(UserError, match=r"pretexts\.mae\.targets is .* give a tuple"):
        Mae(PATCH, SIZE, targets=targets)


def test_an_unknown_texture_lists_the_known():
    with pytest.raises(
        UserError, match=r"Unknown texture 'rbg'; known: .*lbp, .*Did you mean 'rgb'"
    ):
        Mae(PATCH, SIZE, targets=("rbg",))


def test_weights_and_targets_are_as_many():
    with pytest.raises(UserError, match="one weight for each target"):
        Mae(PATCH, SIZE, targets=("rgb", "lbp"), target_weights=(1.0,))


def test_encoders_that_read_every_patch_see_the_masked_ones_painted(images_bhwc):
    mae = Mae(PATCH, SIZE, drops_tokens=False, targets=("rgb", "lbp"))
    view, target = only(mae.views(keys(), images_bhwc))
    assert view.keep is None
    shown = reference.patches(normalise(view.images), PATCH)
    whole = reference.patches(normalise(images_bhwc), PATCH)
    hidden = np.asarray(target["hidden"], bool)
    np.testing.assert_allclose(shown[hidden], 0, atol=1e-6)
    np.testing.assert_array_equal(shown[~hidden], whole[~hidden])
    # What is masked, and what is rebuilt, is as for an encoder that drops tokens.
    _, other = only(Mae(PATCH, SIZE, targets=("rgb", "lbp")).views(keys(), images_bhwc))
    jax.tree.map(np.testing.assert_array_equal, target, other)
    outputs = (("rgb", 48, 1, 0.0), ("lbp", 16, 1, 0.5))
    assert mae.decoder_spec() == {"kind": "cells", "grid": 6, "outputs": outputs}


def test_a_vit_can_be_asked_to_read_painted_patches(images_bhwc):
    mae = Mae(PATCH, SIZE, decoder="cells")
    assert mae.decoder_spec()["kind"] == "cells"
    assert only(mae.views(keys(), images_bhwc))[0].keep is None


@pytest.mark.parametrize("drops", [True, False])
def test_a_texture_as_input_is_what_the_view_shows(images_bhwc, drops):
    mae = Mae(PATCH, SIZE, drops_tokens=drops, input="ldp")
    view, target = only(mae.views(keys(), images_bhwc))
    maps = np.repeat(textures.target("ldp", images_bhwc), 3, axis=3)
    seen = np.asarray(target["hidden"]) == 0
    for shown, wanted in (
        (view.images, maps),
        (normalise(view.images), normalise(jnp.asarray(maps))),
    ):
        shown, wanted = reference.patches(shown, PATCH), reference.patches(wanted, PATCH)
        np.testing.assert_array_equal(shown[seen], wanted[seen])
    # RGB is rebuilt all the same: Mask LDP, reconstruct RGB.
    pixels = reference.normalise(np.asarray(images_bhwc, np.float64))
    np.testing.assert_allclose(target["rgb"], reference.patches(pixels, PATCH), atol=1e-5)


def test_classes_are_told_apart_pixel_by_pixel(images_bhwc):
    mae = Mae(PATCH, SIZE, targets=("lbp_uniform", "ldp"), loss="classes", mask_ratio=0.9)
    assert mae.decoder_spec()["outputs"] == (("lbp_uniform", 16, 10, 0.0), ("ldp", 16, 56, 0.0))
    _, target = only(mae.views(keys(), images_bhwc))
    assert target["ldp"].dtype == jnp.int32 and target["ldp"].shape == (BATCH, 36, 16)
    outputs = random_outputs(mae)
    losses = mae.losses(outputs, target, None)
    for name, classes in (("lbp_uniform", 10), ("ldp", 56)):
        maps = reference.patches(textures.classes(name, images_bhwc), PATCH).astype(int)
        for row in range(BATCH):
            patches = []
            for patch in np.flatnonzero(target["hidden"][row]):
                logits = np.asarray(outputs[name][row, patch], np.float64).reshape(16, classes)
                pixels = [
                    reference.cross_entropy(logits[pixel], maps[row, patch, pixel])
                    for pixel in range(16)
                ]
                patches.append(np.mean(pixels))
            np.testing.assert_allclose(losses[name][row], np.mean(patches), rtol=1e-5)


def test_of_a_set_the_codes_are_classified_and_the_rest_is_rebuilt(images_bhwc):
    both = Mae(PATCH, SIZE, targets=("rgb", "ldp"), loss="classes", norm_patch=True)
    assert both.decoder_spec()["outputs"] == (("rgb", 48, 1, 0.0), ("ldp", 16, 56, 0.0))
    _, target = only(both.views(keys(), images_bhwc))
    outputs = random_outputs(both)
    losses = both.losses(outputs, target, None)
    alone = {
        "rgb": Mae(PATCH, SIZE, targets=("rgb",), norm_patch=True),
        "ldp": Mae(PATCH, SIZE, targets=("ldp",), loss="classes"),
    }
    for name, one in alone.items():
        _, own = only(one.views(keys(), images_bhwc))
        np.testing.assert_array_equal(target[name], own[name])
        np.testing.assert_array_equal(losses[name], one.losses(outputs, own, None)[name])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"targets": ("rgb", "lbp"), "target_weights": (1.0, float("nan"))},
            r"target_weights is \(1.0, nan\); give numbers of 0 or more",
        ),
        ({"decoder_dim": 20}, r"decoder_heads 16 must divide decoder_dim 20"),
        ({"decoder_depth": 0}, r"decoder_depth is 0; give a whole number, 1 or more"),
        ({"patch": SIZE}, r"one patch of 24 pixels is the whole image"),
        ({"target_weights": (0.0,)}, r"target_weights is \(0\.0,\); give numbers"),
        (
            {"targets": ("rgb", "lbp"), "target_weights": (1.0, -1.0)},
            r"target_weights is .*; give numbers of 0 or more",
        ),
        ({"targets": ("lbp", "lbp")}, r"names a target twice"),
        ({"loss": "classes"}, r"loss 'classes' needs .* 'rgb' is continuous"),
        ({"loss": "classes", "targets": ("lbp_var",)}, r"'lbp_var' is continuous"),
        (
            {"loss": "classes", "targets": ("lbp",), "norm_patch": True},
            r"norm_patch has no meaning",
        ),
        ({"loss": "l1"}, r"Unknown pretexts\.mae\.loss 'l1'; known: classes, mse"),
        ({"input": "rbg"}, r"Unknown texture 'rbg'; known: .*Did you mean 'rgb'"),
        ({"decoder": "cell"}, r"Unknown pretexts\.mae\.decoder 'cell'; known: cells, tokens"),
        ({"decoder": "tokens", "drops_tokens": False}, r"decoder 'tokens' needs .* a ViT"),
        ({"targets": ("hog",), "image_size": 28}, r"multiples of its cell of 8 pixels, not 28x28"),
        ({"patch": 5}, r"squares of 5 pixels, which do not fit data\.image_size 24"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Mae(**({"patch": PATCH, "image_size": SIZE} | settings))


def test_in_one_stream_a_task_is_read_from_the_visible_tokens_alone():
    """SupMAE's form: what a hidden patch shows changes what is to be rebuilt, and nothing else."""
    config = tiny.config()
    config.stream, config.weighting.name = "one_stream", "fixed"
    training = tiny.training(config)
    before, batch = tiny.first_state(training), tiny.batch()
    examples = step.augmented(training, before.seed, before.step, batch)
    _, targets = make_views(training.program, examples["images"], examples["keys"])
    hidden_bhw = np.kron(np.asarray(targets["mae"]["hidden"]).reshape(-1, 4, 4), np.ones((4, 4)))
    changed = np.where(hidden_bhw[..., None] > 0, 255 - batch["image"], batch["image"])
    run = build.jitted(step.train_step, training)
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam mixes a float with a counter
        own, other, negative = (  # the last one of what is visible
            jax.device_get(run(before, batch | {"image": image})[1])
            for image in (batch["image"], changed, 255 - changed)
        )
    assert own["loss/expression"] == pytest.approx(other["loss/expression"], rel=1e-6)
    assert own["loss/expression"] != pytest.approx(negative["loss/expression"], rel=1e-3)
    assert own["loss/mae"] != pytest.approx(other["loss/mae"], rel=1e-4)

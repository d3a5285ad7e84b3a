import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hmtl_jax import build, export, recipe, step
from hmtl_jax.errors import UserError
from hmtl_jax.models import encoders, stems, vit
from hmtl_jax.patches import patchify
from tests import tiny

IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16, 3)), jnp.float32)


def vit_of(stem, patch=4):
    return vit.ViT(patch=patch, dim=16, depth=1, heads=2, stem=stem)


@pytest.mark.parametrize(
    "patch, steps", [(16, (4, 2, 2)), (8, (2, 2, 2)), (4, (2, 2)), (2, (2,)), (14, (7, 2))]
)
def test_an_hmlp_shrinks_a_patch_as_published(patch, steps):
    assert stems.factors(patch) == steps and np.prod(steps) == patch


def test_an_hmlp_makes_each_token_of_its_own_patch_alone():
    stem = stems.HMLP(patch=8, dim=16)
    patches = patchify(IMAGES, 8)
    variables = stem.init(jax.random.key(0), patches)
    widths = [
        leaf["kernel"].shape for name, leaf in sorted(variables["params"].items()) if "d" in name
    ]
    assert widths == [(12, 4), (16, 4), (16, 16)]
    whole = stem.apply(variables, patches)
    np.testing.assert_allclose(stem.apply(variables, patches[:, 1:3]), whole[:, 1:3], atol=1e-5)
    other = stem.apply(variables, patches.at[:, 2].add(1.0))
    changed = np.abs(np.asarray(other - whole)).max((0, 2)) > 1e-3
    assert changed.tolist() == [False, False, True, False]


def test_the_first_layer_of_an_hmlp_reads_squares_of_neighbours():
    """As a convolution of that stride does, which is how the paper has it."""
    stem = stems.HMLP(patch=8, dim=16)
    patches = patchify(IMAGES, 8)
    variables = stem.init(jax.random.key(0), patches)
    _, kept = stem.apply(variables, patches, capture_intermediates=True)
    first = kept["intermediates"]["dense0"]["__call__"][0]  # [B, K, 4, 4, 4]
    layer = variables["params"]["dense0"]
    kernel = layer["kernel"].reshape(2, 2, 3, 4)
    dims = ("NHWC", "HWIO", "NHWC")
    wanted = jax.lax.conv_general_dilated(
        IMAGES, kernel, (2, 2), "VALID", dimension_numbers=dims, precision="highest"
    )
    wanted = wanted + layer["bias"].reshape(1, 1, 1, -1)
    wanted = wanted.reshape(2, 2, 4, 2, 4, 4).transpose(0, 1, 3, 2, 4, 5).reshape(first.shape)
    np.testing.assert_allclose(first, wanted, atol=1e-5)


def test_a_vit_with_an_hmlp_reads_kept_patches_as_in_the_whole():
    model = vit_of("hmlp")
    variables = model.init(jax.random.key(0), IMAGES)
    keep = jnp.asarray([[3, 0, 9], [1, 2, 15]], jnp.int32)

    def made(keep_bk):
        stages, kept = model.apply(variables, IMAGES, keep_bk, capture_intermediates=True)
        return stages["tokens"], kept["intermediates"]["stem"]["__call__"][0]

    (last, tokens), (_, whole) = made(keep), made(None)
    wanted = np.take_along_axis(np.asarray(whole), np.asarray(keep)[..., None], 1)
    np.testing.assert_allclose(tokens, wanted, atol=1e-5)
    assert last.shape == (2, 4, 16)


def test_a_convolutional_stem_is_the_convolutions_of_the_paper():
    stem = stems.Convolutions(patch=4, dim=16)
    variables = stem.init(jax.random.key(0), IMAGES, train=False)
    params = variables["params"]
    assert [params[f"conv{i}"]["kernel"].shape for i in (0, 1)] == [(3, 3, 3, 8), (3, 3, 8, 16)]
    x = IMAGES
    for index in (0, 1):
        x = jax.lax.conv_general_dilated(
            x,
            params[f"conv{index}"]["kernel"],
            (2, 2),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision="highest",
        )
        x = jax.nn.relu(x / np.float32(np.sqrt(1 + 1e-5)))  # statistics of before any step
    wanted = x.reshape(2, 16, 16) @ params["proj"]["kernel"]
    found = stem.apply(variables, IMAGES, train=False)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    _, changed = stem.apply(variables, IMAGES, train=True, mutable=["batch_stats"])
    mean = changed["batch_stats"]["norm0"]["mean"]
    assert np.abs(np.asarray(mean)).max() > 0


@pytest.mark.parametrize("stem", ["hmlp", "conv"])
@pytest.mark.slow
def test_a_masked_auto_encoder_trains_beside_a_task(stem):
    config = tiny.config(name="sgd", lr=0.1)
    config.model.stem = stem
    training = tiny.training(config)
    assert training.program.pretexts["mae"].drops_tokens == (stem == "hmlp")
    before = tiny.first_state(training)
    after, metrics = build.jitted(step.train_step, training)(before, tiny.batch(8))
    assert np.isfinite(float(metrics["loss/total"]))
    moved = jax.tree.map(
        lambda a, b: float(jnp.abs(a - b).max()),
        before.params["encoder"]["stem"],
        after.params["encoder"]["stem"],
    )
    assert min(jax.tree.leaves(moved)) > 0


@pytest.mark.parametrize(
    "encoder, stem, said",
    [
        ("16x2x2/7", "hmlp", "choose an even patch"),
        ("16x2x2/12", "conv", "choose 2, 4, 8, 16 or 32"),
        ("cnn24", "hmlp", "stands before a ViT"),
    ],
)
def test_a_stem_that_does_not_fit_is_refused(encoder, stem, said):
    with pytest.raises(UserError, match=said):
        encoders.parse(encoder, stem)


def test_a_stem_that_does_not_fit_the_image_or_drops_patches_is_refused():
    with pytest.raises(UserError, match="does not divide the image size 42"):
        encoders.parse("16x2x2/4", "conv").check(42)
    model = vit_of("conv")
    variables = model.init(jax.random.key(0), IMAGES)
    with pytest.raises(UserError):
        model.apply(variables, IMAGES, jnp.zeros((2, 3), jnp.int32))


def exported(monkeypatch, folder, config):
    """The names of the files that the job `export` writes of untrained weights."""
    config.model.stem = "hmlp"
    program = tiny.training(config).program
    variables = {"params": program.init_model(jax.random.key(0))["params"]}
    run = types.SimpleNamespace(
        run=folder, config=config, program=program, variables=variables, step=1, why="the newest",
        data={"name": "synthetic"},
    )  # fmt: skip
    monkeypatch.setattr(export.trained, "load", lambda *_: run)
    monkeypatch.setattr(export.model_card, "text", lambda folder: "card")
    export.write(folder)
    return sorted(path.name for path in folder.iterdir())


def test_an_encoder_with_a_stem_is_not_exported_under_names_of_timm(monkeypatch, tmp_path):
    config = tiny.config()
    recipe.pretrain_only(config)
    with pytest.raises(UserError, match="timm's naming has no place for"):
        exported(monkeypatch, tmp_path, config)
    assert not list(tmp_path.iterdir())


def test_the_whole_model_of_a_run_with_a_stem_is_exported(monkeypatch, tmp_path, capsys):
    files = exported(monkeypatch, tmp_path, tiny.config())
    assert files == ["model.json", "model.stablehlo", "model_card.md"]
    assert "no encoder.safetensors" in capsys.readouterr().out

"""A perceptual loss under imported weights: read once, never trained, kept in the checkpoints."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hmtl_jax import build, recipe, step
from hmtl_jax.errors import UserError
from hmtl_jax.images import normalise
from hmtl_jax.models import encoders, pretrained
from hmtl_jax.pretext.inpaint import perceptual_distance
from hmtl_jax.program import make_views
from tests import runs, tiny

NETWORK = "8x1x1/8"


def inpaint(file, **settings):
    return recipe.pretext_task(
        "inpaint", perceptual_encoder=NETWORK, perceptual_weights=str(file), decoder_dim=8,
        **settings,
    )  # fmt: skip


def network_of(size):
    """The module, and random variables for it."""
    settings = recipe.defaults().model
    settings.positions = "learned"
    module = encoders.parse(NETWORK).make(settings, jnp.float32)
    image = jnp.zeros((1, size, size, 3))
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), image, None, train=False))
    return module, tiny.random_like(shapes, seed=3)


@pytest.fixture
def file(tmp_path):
    _, variables = network_of(32)
    path = tmp_path / "network.safetensors"
    pretrained.save(path, NETWORK, jax.device_get(variables), image_size=32)
    return path


@pytest.mark.slow
def test_the_loss_compares_features_of_the_imported_network_and_does_not_train_it():
    config = tiny.config(8)
    config.pretexts = {"inpaint": inpaint("unread", perceptual=1.0)}
    config.stream = "one_stream"
    config.weighting.name = "fixed"
    training = tiny.training(config)
    module, variables = network_of(16)
    current = dataclasses.replace(tiny.first_state(training), frozen={"inpaint": variables})
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam mixes floats and integers
        new, metrics = build.jitted(step.train_step, training)(current, tiny.batch())
    jax.tree.map(np.testing.assert_array_equal, new.frozen, current.frozen)

    # By hand: the filled image and the original through the module.
    batch = tiny.batch()
    examples = step.augmented(training, 0, current.step, batch)
    views, targets = make_views(training.program, examples["images"], examples["keys"])
    del views["clean"]
    outputs = training.program.model.apply(
        {"params": current.params}, views, train=True, rngs={"dropout": jax.random.key(0)}
    )
    target, images = targets["inpaint"], examples["images"]
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    painted = np.asarray(outputs["inpaint"]["inpaint"]) * std + mean
    whole = jnp.where(target["holes"] > 0, painted, images)

    def patches(x):
        return module.apply(variables, normalise(jnp.float32(x)), None, train=False)["patches"]

    wanted = np.mean(perceptual_distance(patches(whole), patches(images)))
    np.testing.assert_allclose(metrics["loss/inpaint/perceptual"], wanted, rtol=1e-4)


@pytest.mark.slow
def test_a_run_reads_the_file_once_and_goes_on_without_it(tiny_data, compile_cache, tmp_path, file):
    config = runs.config(
        tiny_data, steps=4, epochs=0.0, checkpoint__every=2, checkpoint__keep=9,
        weighting__name="fixed", optim__warmup_epochs=0.0,
    )  # fmt: skip
    with config.unlocked():
        config.pretexts = {"inpaint": inpaint(file)}
    printed = runs.run(config, tmp_path / "run")
    assert any(f"parameters of {NETWORK} from {file}" in line for line in printed)
    whole = runs.arrays(tmp_path / "run", 4)
    frozen = {name: x for name, x in whole.items() if name.startswith("frozen/inpaint/params/")}
    _, variables = network_of(32)
    assert len(frozen) == len(jax.tree.leaves(variables))
    table = whole["frozen/inpaint/params/positions_table"]
    np.testing.assert_array_equal(table, variables["params"]["positions_table"])
    file.unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    runs.run(config, tmp_path / "run")
    runs.assert_same_arrays(runs.arrays(tmp_path / "run", 4), whole)


def test_a_missing_file_is_one_sentence_before_training(tiny_data, tmp_path):
    config = runs.config(tiny_data, steps=2, epochs=0.0, optim__warmup_epochs=0.0)
    with config.unlocked():
        config.pretexts = {"inpaint": inpaint(tmp_path / "none.safetensors")}
        config.weighting.name = "fixed"
    with pytest.raises(UserError, match=r"no file .*none\.safetensors"):
        runs.run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()

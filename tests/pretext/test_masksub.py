"""MaskSub: the tasks' answers on a masked view against those on the clean one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hmtl_jax import recipe, state, step
from hmtl_jax.errors import UserError
from hmtl_jax.pretext.masksub import MaskSub
from tests import tiny

BATCH, SIZE = 4, 16


def config_of(**settings):
    config = tiny.config(8, name="sgd")
    config.pretexts = {"masksub": recipe.pretext_task("masksub", **settings)}
    config.weighting.name = "fixed"
    return config


def keys(count=BATCH):
    return jax.random.split(jax.random.key(0), count)


def test_half_of_the_patches_are_seen(images_bhwc):
    ((view, target),) = MaskSub(4, SIZE).views(keys(), images_bhwc)
    assert view.keep.shape == (BATCH, 8)
    for kept, hidden in zip(np.asarray(view.keep), np.asarray(target["hidden"]), strict=True):
        assert hidden.sum() == 8 and not hidden[kept].any()


def test_an_encoder_of_whole_images_sees_the_patches_painted_over(images_bhwc):
    ((view, target),) = MaskSub(4, SIZE, drops_tokens=False).views(keys(), images_bhwc)
    assert view.keep is None
    same = np.isclose(view.images, images_bhwc).all(-1).reshape(BATCH, 4, 4, 4, 4)
    same = same.all((2, 4)).reshape(BATCH, 16)
    np.testing.assert_array_equal(same, np.asarray(target["hidden"]) == 0)


def test_the_loss_is_the_cross_entropy_against_the_clean_views_softmax():
    rng = np.random.default_rng(0)
    masked, clean = (rng.normal(size=(BATCH, 5)).astype(np.float32) for _ in range(2))
    (loss,) = MaskSub(4, SIZE).losses({"expression": (masked, clean)}, {}, None).values()
    wanted = np.exp(clean) / np.exp(clean).sum(1, keepdims=True)
    log_p = masked - np.log(np.exp(masked).sum(1, keepdims=True))
    np.testing.assert_allclose(loss, -(wanted * log_p).sum(1), rtol=1e-5)

    def total(masked, clean):
        return MaskSub(4, SIZE).losses({"a": (masked, clean)}, {}, None)["a"].sum()

    to_masked, to_clean = jax.grad(total, (0, 1))(jnp.asarray(masked), jnp.asarray(clean))
    assert np.abs(to_masked).max() > 0.1 and not np.any(to_clean)


def test_with_a_threshold_the_surest_answers_count_as_labels():
    clean = np.log(np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]], np.float32))
    masked = np.log(np.array([[0.5, 0.5], [0.5, 0.5], [0.3, 0.7]], np.float32))
    pretext = MaskSub(4, SIZE, threshold=0.75)
    (loss,) = pretext.losses({"a": (masked, clean)}, {}, None).values()
    np.testing.assert_allclose(loss, [-np.log(0.5), 0.0, -np.log(0.7)], rtol=1e-5)


def test_skill_is_one_for_the_same_answer_and_zero_for_the_mean_one():
    clean = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)
    mean = np.log(np.asarray(jax.nn.softmax(clean)).mean(0))
    for masked, wanted in ((clean, 1.0), (np.tile(mean, (64, 1)), 0.0)):
        found = MaskSub(4, SIZE).skill({"a": (masked, clean)}, {}, jnp.ones(64))["a"]
        assert 1 - float(found[0].sum() / found[1].sum()) == pytest.approx(wanted, abs=1e-4)


def test_the_task_is_trained_by_its_labels_on_the_clean_view_alone():
    training = tiny.training(config_of())
    current = state.create(training)
    batch = tiny.batch(8)
    _, metrics = jax.jit(functools.partial(step.train_step, training))(current, batch)
    plain = tiny.config(8, name="sgd")
    plain.pretexts, plain.weighting.name = {}, "fixed"
    alone = tiny.training(plain)
    same = dataclasses.replace(state.create(alone), params=current.params)
    _, wanted = jax.jit(functools.partial(step.train_step, alone))(same, batch)
    np.testing.assert_allclose(metrics["loss/expression"], wanted["loss/expression"], rtol=1e-5)
    assert set(current.params) == {"encoder", "heads_expression"}
    assert metrics["loss/masksub"] > 0
    total = metrics["loss/expression"] + metrics["loss/masksub"]
    np.testing.assert_allclose(metrics["loss/total"], total, rtol=1e-6)


def test_pictures_without_labels_take_part():
    training = tiny.training(config_of())
    current = state.create(training)
    batch = tiny.batch(8) | {"labelled": np.zeros(8, bool)}
    new, metrics = jax.jit(functools.partial(step.train_step, training))(current, batch)
    assert metrics["loss/expression"] == 0 and metrics["loss/masksub"] > 0
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), new.params, current.params)
    assert max(jax.tree.leaves(moved)) > 0


def test_a_recipe_without_classes_to_compare_is_refused():
    config = config_of()
    config.tasks = {"rank": recipe.task("regression", labels=("expression",))}
    with pytest.raises(UserError, match=r"pretexts\.masksub compares what a classification task"):
        tiny.training(config)


def test_a_threshold_that_is_no_probability_is_refused():
    with pytest.raises(
        UserError, match=r"pretexts\.masksub\.threshold is 1\.5; give a probability"
    ):
        tiny.training(config_of(threshold=1.5))


def test_a_mask_that_hides_nothing_is_refused():
    with pytest.raises(UserError, match=r"pretexts\.masksub\.mask_ratio 0\.99 leaves 0 of 16"):
        tiny.training(config_of(mask_ratio=0.99))

"""Skill is 0 for the best constant answer and 1 for a perfect one, however the rows are divided."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hmtl_jax import evaluate, infer, recipe, state, step
from hmtl_jax.pretext import PRETEXTS, skill
from tests import tiny

RNG = np.random.default_rng(0)
ALL = jnp.ones(512)


def ratio(errors):
    own, constant = (float(part.sum()) for part in errors)
    return 1 - own / constant


def test_choices_count_above_chance():
    labels = jnp.asarray(RNG.integers(0, 4, (512, 9)))
    perfect = 5.0 * jax.nn.one_hot(labels, 4)
    assert ratio(skill.of_choices(perfect, labels)) == 1.0
    assert abs(ratio(skill.of_choices(jnp.zeros_like(perfect), labels))) < 0.05
    wrong = -perfect
    assert ratio(skill.of_choices(wrong, labels)) == pytest.approx(-1 / 3)
    # Half of the places known: (accuracy − chance) / (1 − chance).
    half = perfect.at[:, :4].set(0.0)
    accuracy = float(jnp.mean(half.argmax(-1) == labels))
    assert ratio(skill.of_choices(half, labels)) == pytest.approx((accuracy - 0.25) / 0.75)


def test_values_are_held_against_the_mean_of_their_place():
    place = RNG.normal(size=(1, 6, 5))
    wanted = jnp.asarray(place + RNG.normal(size=(512, 6, 5)), jnp.float32)
    hidden = jnp.asarray(RNG.integers(0, 2, (512, 6, 1)), jnp.float32)
    errors = lambda found: skill.of_values(found, wanted, hidden, ALL)  # noqa: E731
    assert ratio(errors(wanted)) == 1.0
    assert (
        abs(ratio(errors(jnp.broadcast_to(jnp.asarray(place, jnp.float32), wanted.shape)))) < 0.01
    )
    halved = jnp.asarray(place, jnp.float32) + 0.5**0.5 * (wanted - jnp.asarray(place, jnp.float32))
    assert ratio(errors(halved)) == pytest.approx(1 - (1 - 0.5**0.5) ** 2, abs=0.01)


def test_the_mean_of_few_rows_is_no_better_for_knowing_them():
    """Else a small batch would be told too little skill: its mean fits it."""
    wanted = jnp.asarray(RNG.normal(size=(4000, 4, 3)), jnp.float32)
    hidden, found = jnp.ones((4, 4, 1)), jnp.zeros((4, 4, 3))
    sums = np.zeros(2)
    for start in range(0, 4000, 4):
        parts = skill.of_values(found, wanted[start : start + 4], hidden, jnp.ones(4))
        sums += [float(part.sum()) for part in parts]
    assert abs(1 - sums[0] / sums[1]) < 0.03


def test_rows_that_are_no_examples_do_not_count():
    wanted = jnp.asarray(RNG.normal(size=(16, 3, 2)), jnp.float32)
    found, hidden = 0.5 * wanted, jnp.ones((16, 3, 1))
    mask = jnp.asarray([1.0] * 12 + [0.0] * 4)
    spoiled = wanted.at[12:].set(100.0)
    own, constant = skill.of_values(found, spoiled, hidden, mask)
    own_of_12, constant_of_12 = skill.of_values(found[:12], wanted[:12], hidden[:12], jnp.ones(12))
    np.testing.assert_allclose(constant[:12], constant_of_12, rtol=1e-5)
    np.testing.assert_allclose(own[:12], own_of_12, rtol=1e-6)


def test_codes_are_held_against_their_frequencies():
    classes = jnp.asarray(
        RNG.choice(8, (512, 6, 4), p=[0.5, 0.2, 0.1, 0.1, 0.04, 0.03, 0.02, 0.01])
    )
    hidden = jnp.asarray(RNG.integers(0, 2, (512, 6)), jnp.float32)
    counts = np.bincount(np.asarray(classes)[np.asarray(hidden) > 0].ravel(), minlength=8)
    log_p = jnp.log(jnp.asarray(counts / counts.sum(), jnp.float32))
    constant_bn = -jnp.mean(log_p[classes], axis=-1)
    assert abs(ratio(skill.of_codes(constant_bn, classes, 8, hidden, ALL))) < 1e-4
    assert ratio(skill.of_codes(jnp.zeros_like(constant_bn), classes, 8, hidden, ALL)) == 1.0


@pytest.mark.parametrize("kind", PRETEXTS)
@pytest.mark.slow
def test_every_pretext_tells_its_skill_and_what_to_try(kind):
    config = tiny.config(8, name="sgd", ema=0.9)
    config.pretexts = {kind: recipe.pretext_task(kind)}
    config.weighting.name = "fixed"
    training = tiny.training(config)
    current = state.create(training)
    _, metrics = jax.jit(lambda s, b: step.train_step(training, s, b))(current, tiny.batch(8))
    found = {name: float(value) for name, value in metrics.items() if name.startswith("skill/")}
    assert found and all(np.isfinite(value) and value <= 1.0 for value in found.values())
    assert training.program.pretexts[kind].unlearned


@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_add_up(accumulate):
    batch = tiny.batch(16, invalid=(3,))
    found = {}
    for count in (1, accumulate):
        config = tiny.config(16, name="sgd", accumulate=count)
        config.pretexts = {"puzzle": recipe.pretext_task("puzzle", tiles=2, dropout=0.0)}
        training = tiny.training(config)
        run = jax.jit(lambda s, b, training=training: step.train_step(training, s, b)[1])
        found[count] = float(run(state.create(training), batch)["skill/puzzle"])
    assert found[1] == pytest.approx(found[accumulate], abs=1e-6)


def test_an_evaluation_has_the_skill_of_the_split_on_masks_that_stay():
    config = tiny.config(8)
    config.pretexts.puzzle = recipe.pretext_task("puzzle", tiles=2)
    training = tiny.training(config)
    variables = state.evaluation_variables(state.create(training))
    run = jax.jit(lambda batch: infer.measure_step(training.program, variables, batch)["errors"])
    batch = tiny.batch(8)
    whole = run(batch)
    assert set(whole) == {"mae/rgb", "mae/lbp", "puzzle"}
    skills = evaluate.skills(jax.device_get(whole))
    assert set(skills["mae"]) == {"rgb/skill", "lbp/skill"} and set(skills["puzzle"]) == {"skill"}
    own, constant = np.asarray(whole["mae/rgb"], np.float64).sum(0)
    assert skills["mae"]["rgb/skill"] == pytest.approx(1 - own / constant)
    # A picture has its own masks, wherever it stands in a batch.
    turned = {name: np.roll(value, 3, axis=0) for name, value in batch.items()}
    np.testing.assert_allclose(
        np.roll(whole["puzzle"], 3, axis=0), run(turned)["puzzle"], atol=1e-6
    )
    np.testing.assert_allclose(
        np.roll(whole["mae/rgb"], 3, axis=0)[:, 0], run(turned)["mae/rgb"][:, 0], rtol=1e-4
    )

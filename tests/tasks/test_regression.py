"""Regression's losses equal their formulas in float64; missing numbers count nowhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hmtl_jax import errors
from hmtl_jax.tasks.regression import Regression

NAMES = ("valence", "arousal")
NAN = np.nan


def batch(n=8, missing=True, seed=0):
    rng = np.random.default_rng(seed)
    values = {name: rng.uniform(-1, 1, n).astype(np.float32) for name in NAMES}
    if missing:
        values["valence"][[0, 3]] = NAN
        values["arousal"][[3, 5]] = NAN
    return values


def outputs(n=8, seed=1):
    return np.random.default_rng(seed).normal(size=(n, 2)).astype(np.float32)


def losses_of(task, values, output):
    target, mask = task.target({name: jnp.asarray(value) for name, value in values.items()})
    return np.asarray(task.loss(jnp.asarray(output), target, mask)), np.asarray(mask)


@pytest.mark.parametrize(("objective", "of_error"), [("mse", np.square), ("l1", np.abs)])
def test_loss_is_the_mean_over_the_known_numbers(objective, of_error):
    values, output = batch(), outputs()
    losses, mask = losses_of(Regression(NAMES, objective=objective), values, output)
    error = output.astype(np.float64) - np.stack([values[name] for name in NAMES], 1)
    known = np.isfinite(error).any(axis=1)
    np.testing.assert_allclose(losses[known], np.nanmean(of_error(error[known]), 1), rtol=1e-5)
    assert mask.tolist() == known.tolist() and losses[3] == 0


def ccc(x, y):
    """Lin 1989, with population moments."""
    return 2 * np.cov(x, y, ddof=0)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)


def test_ccc_is_one_less_the_concordance_of_the_labelled_rows():
    values, output = batch(), outputs()
    losses, _ = losses_of(Regression(NAMES, objective="ccc"), values, output)
    expected = []
    for column, name in enumerate(NAMES):
        known = np.isfinite(values[name])
        x, y = output[known, column].astype(np.float64), values[name][known].astype(np.float64)
        expected.append(1 - ccc(x, y))
    np.testing.assert_allclose(losses, np.mean(expected), rtol=1e-5)


def test_ccc_leaves_out_rows_that_the_mask_hides_and_labels_that_no_row_has():
    values, output = batch(missing=False), outputs()
    task = Regression(NAMES, objective="ccc")
    target, mask = task.target({name: jnp.asarray(value) for name, value in values.items()})
    hidden = task.loss(jnp.asarray(output), target, mask.at[:3].set(0.0))
    few, _ = losses_of(task, {name: value[3:] for name, value in values.items()}, output[3:])
    np.testing.assert_allclose(hidden[3:], few, rtol=1e-5)
    one = values | {"arousal": np.full(8, NAN, np.float32)}
    x, y = output[:, 0].astype(np.float64), values["valence"].astype(np.float64)
    np.testing.assert_allclose(losses_of(task, one, output)[0], 1 - ccc(x, y), rtol=1e-5)


@pytest.mark.parametrize("objective", ["mse", "l1", "ccc"])
def test_rows_without_labels_and_constant_batches_have_finite_gradients(objective):
    task = Regression(NAMES, objective=objective)
    for value in (NAN, 0.5):
        values = {name: jnp.full(4, value, jnp.float32) for name in NAMES}
        target, mask = task.target(values)
        gradient = jax.grad(lambda x, t=target, m=mask: jnp.sum(task.loss(x, t, m)))(
            jnp.full((4, 2), 0.5)
        )
        assert np.isfinite(gradient).all()


def test_ages_are_learnt_in_units_of_the_scale():
    task = Regression(("age",), centre=40.0, scale=20.0)
    age = np.array([20, 60, 80], np.float32)
    losses, _ = losses_of(task, {"age": age}, np.zeros((3, 1), np.float32))
    np.testing.assert_allclose(losses, [1, 1, 4])
    np.testing.assert_allclose(task.predict(jnp.array([[-1.0], [1.0], [2.0]]))[:, 0], age)


def test_a_mixed_number_is_known_only_if_both_are():
    task = Regression(NAMES)
    values = {"valence": np.array([0.2, NAN], np.float32), "arousal": np.array([0.4, 0.8], "f")}
    target, mask = task.target({name: jnp.asarray(value) for name, value in values.items()})
    mixed = 0.25 * target[:1] + 0.75 * target[1:]
    loss = task.loss(jnp.zeros((1, 2)), mixed, mask[:1])
    np.testing.assert_allclose(loss, [(0.25 * 0.4 + 0.75 * 0.8) ** 2], rtol=1e-6)


def test_metrics_read_scalars_and_vectors_alike():
    values = batch()
    joined = {"affect": np.stack([values[name] for name in NAMES], 1)}
    apart = Regression(NAMES).metrics(outputs(), values)
    assert apart == Regression(("affect",), NAMES).metrics(outputs(), joined)
    assert apart["n"] == 7 and apart["per_label"]["arousal"]["n"] == 6


def test_a_mirror_changes_nothing():
    target, _ = Regression(NAMES).target({k: jnp.asarray(v) for k, v in batch().items()})
    np.testing.assert_array_equal(Regression(NAMES).flip(target, jnp.ones(8, bool)), target)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"objective": "cccc"}, "Did you mean 'ccc'"), ({"scale": 0.0}, "above 0")],
)
def test_unusable_settings_are_named(settings, words):
    with pytest.raises(errors.UserError, match=words):
        Regression(NAMES, **settings)

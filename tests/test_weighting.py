"""What each loss weighs in the total: each formula of its paper, once more by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hmtl_jax import weighting
from hmtl_jax.errors import UserError

NAMES = ("a", "b", "c")
OF = {"lam": 0.1, "lr": 0.05, "temperature": 2.0, "alpha": 1.5}


def constants(**weights):
    return {name: optax.constant_schedule(weight) for name, weight in weights.items()}


def make(name, per_epoch=2, **weights):
    weights = weights or dict.fromkeys(NAMES, 1.0)
    return weighting.WEIGHTINGS[name](constants(**weights), {}, OF, per_epoch)


def floats(weights):
    return {name: float(weight) for name, weight in weights.items()}


def all_but(*absent):
    return {name: jnp.bool_(name not in absent) for name in NAMES}


def at(made, losses, step=0, carried=None, present=None):
    losses = {name: jnp.float32(loss) for name, loss in losses.items()}
    carried = made.init() if carried is None else carried
    return floats(made.weights(carried, losses, present or all_but(), jnp.int32(step)))


def updated(made, carried, losses, grads=None, step=0, present=None):
    losses = {name: jnp.float32(loss) for name, loss in losses.items()}
    adam = isinstance(made, weighting.Uncertainty)  # Optax's has an integer counter
    with jax.numpy_dtype_promotion("standard" if adam else "strict"):
        return made.update(carried, losses, present or all_but(), grads, jnp.int32(step))


##### Fixed and scheduled, SSAT #####


def test_ssat_gives_lambda_to_tasks_and_the_rest_to_pretexts():
    made = weighting.ssat(constants(expression=1.0, pose=2.0), constants(mae=0.5), 0.1)
    assert at(made, {}) == {
        "expression": pytest.approx(0.1),
        "pose": pytest.approx(0.2),
        "mae": pytest.approx(0.45),
    }


def test_fixed_weights_are_those_of_the_recipe():
    made = weighting.WEIGHTINGS["fixed"](constants(a=1.0), constants(b=0.0), OF, 1)
    assert at(made, {}) == {"a": 1.0, "b": 0.0}


@pytest.mark.parametrize(
    ("kind", "quarter"),
    [("constant", 2.0), ("linear", 1.75), ("cosine", 1 + np.cos(np.pi / 8) ** 2)],
)
def test_a_scheduled_weight_goes_from_its_start_to_its_end(kind, quarter):
    weight = weighting.schedule("mae", 2.0, kind, 1.0, 100)
    assert float(weight(0)) == pytest.approx(2.0)
    assert float(weight(25)) == pytest.approx(quarter, rel=1e-5)
    assert float(weight(100)) == pytest.approx(2.0 if kind == "constant" else 1.0)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(UserError, match="weight_schedule of mae is 'steps'; known: constant"):
        weighting.schedule("mae", 1.0, "steps", 0.0, 10)


##### Geometric mean #####


def test_geometric_weights_are_the_slope_of_the_mean():
    losses = {"a": 4.0, "b": 1.0, "c": 0.25}
    made = make("geometric", a=1.0, b=2.0, c=1.0)
    found = at(made, losses)
    mean = 4.0**0.25 * 1.0**0.5 * 0.25**0.25
    for name, share in (("a", 0.25), ("b", 0.5), ("c", 0.25)):
        assert found[name] == pytest.approx(share * mean / losses[name], rel=1e-5)
    assert sum(found[name] * losses[name] for name in NAMES) == pytest.approx(mean, rel=1e-5)


def test_a_loss_of_zero_leaves_the_geometric_mean_finite():
    found = at(make("geometric"), {"a": 0.0, "b": 1.0, "c": 2.0})
    assert all(np.isfinite(weight) for weight in found.values())


def test_a_task_without_labels_is_left_out_of_the_geometric_mean():
    losses = {"a": 0.0, "b": 4.0, "c": 1.0}
    found = at(make("geometric"), losses, present=all_but("a"))
    others = at(make("geometric", b=1.0, c=1.0), {"b": 4.0, "c": 1.0})
    assert found == {"a": 0.0, **{n: pytest.approx(w, rel=1e-6) for n, w in others.items()}}
    assert at(make("geometric"), losses, present=all_but(*NAMES)) == dict.fromkeys(NAMES, 0.0)


def test_weights_that_all_start_at_zero_give_a_geometric_mean_of_nothing():
    found = at(make("geometric", a=0.0, b=0.0, c=0.0), {"a": 1.0, "b": 2.0, "c": 3.0})
    assert found == dict.fromkeys(NAMES, 0.0)


##### Uncertainty #####


def test_a_task_without_labels_does_not_become_certain():
    made = make("uncertainty")
    losses = {"a": 1.0, "b": 1.0, "c": 1.0}
    carried = updated(made, made.init(), losses)
    before = floats(carried["log_variance"])
    for step in range(1, 6):
        row = losses | {"a": 0.0}
        carried = updated(made, carried, row, step=step, present=all_but("a"))
    after = floats(carried["log_variance"])
    assert after["a"] == before["a"] and after["b"] > before["b"]


def test_uncertainty_descends_kendalls_total():
    made = make("uncertainty", a=1.0, b=3.0)
    losses = {"a": 2.0, "b": 0.1}
    carried = made.init()
    s, mean, square = np.zeros(2), np.zeros(2), np.zeros(2)
    base = np.array([1.0, 3.0])
    for t in range(1, 4):
        found = at(made, losses, carried=carried)
        np.testing.assert_allclose(list(found.values()), base * np.exp(-s), rtol=1e-5)
        np.testing.assert_allclose(
            made.offset(carried, jnp.int32(0)), base @ s / 2, rtol=1e-4, atol=1e-7
        )
        carried = updated(made, carried, losses)
        slope = 0.5 - np.exp(-s) * [2.0, 0.1]  # of exp(−s) · loss + s / 2
        mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
        s = s - 0.05 * (mean / (1 - 0.9**t)) / (np.sqrt(square / (1 - 0.999**t)) + 1e-8)
    # A loss above one half has more variance than weight, one below it less.
    assert s[0] > 0 > s[1]


##### Dynamic weight average #####


def test_dwa_follows_the_pace_of_the_last_two_epochs():
    made = make("dwa", per_epoch=2)
    losses = np.array([[4.0, 1, 1], [2, 1, 1], [2, 1, 1], [1, 1, 2], [9, 9, 9], [1, 1, 1]])
    carried = made.init()
    for step, row in enumerate(losses):
        found = list(at(made, {}, step, carried).values())
        if step < 4:
            np.testing.assert_allclose(found, 1.0, rtol=1e-6)
        else:
            pace = losses[2:4].mean(0) / losses[0:2].mean(0)
            wanted = 3 * np.exp(pace / 2) / np.exp(pace / 2).sum()
            np.testing.assert_allclose(found, wanted, rtol=1e-5)
        carried = updated(made, carried, dict(zip(NAMES, row, strict=True)), step=step)


def test_dwa_takes_no_pace_from_batches_without_the_loss():
    made = make("dwa", per_epoch=2)
    carried = made.init()
    # a is there in step 0 of the first epoch, never in the second, and always in the third.
    for step, a in enumerate((4.0, None, None, None, 2.0, 2.0)):
        present = all_but() if a else all_but("a")
        row = {"a": a or 0.0, "b": 1.0, "c": 1.0}
        assert at(made, {}, step, carried) == dict.fromkeys(NAMES, pytest.approx(1.0))
        carried = updated(made, carried, row, step=step, present=present)
    pace = np.array([0.5, 1.0, 1.0])
    wanted = 3 * np.exp(pace / 2) / np.exp(pace / 2).sum()
    np.testing.assert_allclose(list(at(made, {}, 6, carried).values()), wanted, rtol=1e-5)


##### GradNorm #####


def test_gradnorm_takes_a_loss_as_first_seen_and_leaves_it_alone_where_it_is_absent():
    made = make("gradnorm")
    nothing, some = {"encoder": jnp.zeros(2)}, {"encoder": jnp.array([0.6, 0.8])}
    grads = {"a": nothing, "b": some, "c": some}
    carried = made.init()
    for step in range(3):
        row = {"a": 0.0, "b": 1.0, "c": 1.0}
        carried = updated(made, carried, row, grads, step, all_but("a"))
        # b and c go at one pace with one norm: nothing moves, whatever a does.
        np.testing.assert_allclose(list(carried["weights"].values()), 1.0, rtol=1e-6)
    carried = updated(made, carried, {"a": 5.0, "b": 1.0, "c": 1.0}, grads | {"a": some}, 3)
    assert floats(carried["first"]) == {"a": 5.0, "b": 1.0, "c": 1.0}
    np.testing.assert_allclose(list(carried["weights"].values()), 1.0, rtol=1e-6)


def test_gradnorm_moves_weights_towards_even_norms():
    made = make("gradnorm", a=1.0, b=1.0)
    grads = {
        "a": {"encoder": jnp.array([3.0, 4.0]), "head": jnp.array([100.0])},
        "b": {"encoder": jnp.array([1.0, 0.0]), "head": jnp.array([0.0])},
    }
    carried = updated(made, made.init(), {"a": 2.0, "b": 1.0}, grads)
    # Step 0: equal pace, so both norms (5 and 1) shall be 3: w = 1 ∓ lr · norm, then Σ w = 2.
    w = np.array([1 - 0.05 * 5, 1 + 0.05 * 1])
    w = 2 * w / w.sum()
    np.testing.assert_allclose(list(carried["weights"].values()), w, rtol=1e-5)
    assert floats(carried["first"]) == {"a": 2.0, "b": 1.0}
    # Step 1: a has halved and b has not moved: b is behind and shall have the larger norm.
    carried = updated(made, carried, {"a": 1.0, "b": 1.0}, grads, 1)
    norms, pace = np.array([5.0, 1.0]), np.array([0.5, 1.0])
    target = (w * norms).mean() * (pace / pace.mean()) ** 1.5
    w = w - 0.05 * np.sign(w * norms - target) * norms
    np.testing.assert_allclose(list(carried["weights"].values()), 2 * w / w.sum(), rtol=1e-5)
    assert floats(carried["first"]) == {"a": 2.0, "b": 1.0}


def test_gradnorm_weights_stay_above_zero():
    made = make("gradnorm", a=1.0, b=1.0)
    grads = {"a": {"encoder": jnp.array([1e3])}, "b": {"encoder": jnp.array([1.0])}}
    carried = updated(made, made.init(), {"a": 1.0, "b": 1.0}, grads)
    assert 0 < float(carried["weights"]["a"]) < float(carried["weights"]["b"])


##### PCGrad #####


def surgery(grads, orders):
    """Algorithm 1 of the paper, in float64."""
    total = np.zeros_like(grads[0])
    for i, order in enumerate(orders):
        g = grads[i].copy()
        for j in order:
            if j != i and g @ grads[j] < 0:
                g -= (g @ grads[j]) / (grads[j] @ grads[j]) * grads[j]
        total += g
    return total


@pytest.mark.parametrize("seed", range(4))
def test_pcgrad_projects_conflicting_gradients(seed):
    vectors = np.random.default_rng(seed).normal(size=(3, 6))
    vectors[1] -= vectors[0]  # a conflict for certain
    trees = {
        name: {
            "x": jnp.asarray(v[:4].reshape(2, 2), jnp.float32),
            "y": jnp.asarray(v[4:], jnp.float32),
        }
        for name, v in zip(NAMES, vectors, strict=True)
    }
    weights = {"a": 1.0, "b": 2.0, "c": 0.5}
    key = jax.random.key(seed)
    found = make("pcgrad").combine(trees, weights, key)
    found = np.concatenate([np.ravel(found["x"]), found["y"]])
    orders = [jax.random.permutation(jax.random.fold_in(key, i), 3).tolist() for i in range(3)]
    wanted = surgery([weights[n] * v for n, v in zip(NAMES, vectors, strict=True)], orders)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    plain = sum(weights[n] * v for n, v in zip(NAMES, vectors, strict=True))
    assert np.abs(wanted - plain).max() > 0.01


def test_pcgrad_leaves_agreeing_gradients_alone():
    trees = {n: {"x": jnp.eye(3)[i] + 1.0} for i, n in enumerate(NAMES)}
    found = make("pcgrad").combine(trees, dict.fromkeys(NAMES, 1.0), jax.random.key(0))
    np.testing.assert_allclose(found["x"], 4.0, rtol=1e-6)

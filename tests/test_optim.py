"""Optimizers, schedules, decay and freezing do what a recipe's keys say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from hmtl_jax import optim, recipe, rules, state, step
from hmtl_jax.errors import UserError
from tests import tiny

B1, B2, DECAY = 0.8, 0.9, 0.1


def cfg(**settings):
    config = recipe.defaults().optim
    config.update({"b1": B1, "b2": B2, "weight_decay": DECAY} | settings)
    return config


def params():
    """Every kind of parameter that a model has."""
    rng = np.random.default_rng(0)
    shapes = {
        "encoder": {"cls": (1, 1, 4), "norm": {"scale": (4,)}, "fc1": {"kernel": (4, 3)}},
        "head": {"linear": {"kernel": (4, 2), "bias": (2,)}},
    }
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def grads(seed):
    """Gradients that Adam scales well: none is near zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(rng.uniform(0.5, 1, p.shape), jnp.float32), params())


def trained(settings, lr=0.01, steps=3):
    """Parameters after a few steps of a schedule lr, 2 lr, 3 lr …"""
    tx = optim.make_optimizer(settings, lambda count: lr * (count + 1))
    now = params()
    # Optax's Adam mixes a float with an integer counter.
    with jax.numpy_dtype_promotion("standard"):
        state = tx.init(now)
        for seed in range(steps):
            updates, state = jax.jit(tx.update)(grads(seed), state, now)
            now = jax.tree.map(jnp.add, now, updates)
    return now


def by_hand(update, lr=0.01, steps=3):
    """The same, one array at a time in float64; `update(memory, gradient, step) -> direction`."""

    def one(path, param, *gradients):
        param, memory = np.asarray(param, np.float64), {}
        decay = DECAY if path[-1].key == "kernel" else 0.0
        for at, gradient in enumerate(np.asarray(g, np.float64) for g in gradients):
            param = update(param, memory, gradient, at + 1, lr * (at + 1), decay)
        return param

    all_grads = [grads(seed) for seed in range(steps)]
    return jax.tree_util.tree_map_with_path(one, params(), *all_grads)


def adamw(param, memory, gradient, step, lr, decay):
    """Loshchilov 2019, algorithm 2."""
    memory["m"] = B1 * memory.get("m", 0) + (1 - B1) * gradient
    memory["v"] = B2 * memory.get("v", 0) + (1 - B2) * gradient**2
    m, v = memory["m"] / (1 - B1**step), memory["v"] / (1 - B2**step)
    return param - lr * (m / (np.sqrt(v) + 1e-8) + decay * param)


def lion(param, memory, gradient, step, lr, decay):
    """Chen 2023, algorithm 2."""
    del step
    m = memory.get("m", 0)
    memory["m"] = B2 * m + (1 - B2) * gradient
    return param - lr * (np.sign(B1 * m + (1 - B1) * gradient) + decay * param)


def sgd(param, memory, gradient, step, lr, decay):
    """Nesterov's momentum with L2 decay, as Sutskever 2013 and PyTorch write it."""
    del step
    gradient = gradient + decay * param
    memory["m"] = B1 * memory.get("m", 0) + gradient
    return param - lr * (gradient + B1 * memory["m"])


def assert_close(ours, theirs, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), ours, theirs)


@pytest.mark.parametrize("update", [adamw, lion, sgd])
def test_optimizers_equal_their_papers_and_decay_kernels_alone(update):
    assert_close(trained(cfg(name=update.__name__)), by_hand(update), rtol=2e-6, atol=1e-6)


def test_decay_acts_on_kernels_alone():
    found = optim.decay_mask(params())
    assert found == {
        "encoder": {"cls": False, "norm": {"scale": False}, "fc1": {"kernel": True}},
        "head": {"linear": {"kernel": True, "bias": False}},
    }


def test_paths_name_each_leaf():
    assert optim.paths(params())["head"]["linear"]["bias"] == "head/linear/bias"


@pytest.mark.parametrize(("clip", "scale"), [(0.5, None), (1e3, 1.0), (0.0, 1.0)])
def test_clipping_keeps_the_direction_of_the_whole(clip, scale):
    settings = cfg(name="sgd", b1=0.0, weight_decay=0.0, clip=clip)
    moved = jax.tree.map(jnp.subtract, params(), trained(settings, lr=1.0, steps=1))
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grads(0))))
    scale = clip / norm if scale is None else scale
    assert_close(moved, jax.tree.map(lambda g: scale * g, grads(0)), rtol=1e-5, atol=1e-6)


def test_frozen_parameters_stay_and_have_no_moments():
    settings = cfg(freeze="^encoder/")
    found = trained(settings)
    assert_close(found["encoder"], params()["encoder"], rtol=0)
    assert_close(found["head"], by_hand(adamw)["head"], rtol=2e-6, atol=1e-6)
    state = optim.make_optimizer(settings, lambda count: 0.1).init(params())
    assert {leaf.size for leaf in jax.tree.leaves(state)} <= {1, 2, 8}  # counters, bias, kernel


def test_what_to_freeze_must_be_a_regular_expression():
    with pytest.raises(UserError, match=r"optim\.freeze '\(' is no regular expression: missing"):
        optim.make_optimizer(cfg(freeze="("), lambda count: 0.1)


@pytest.mark.parametrize("freeze", ["encodre", "."])
def test_freezing_nothing_or_everything_is_refused(freeze):
    tx = optim.make_optimizer(cfg(freeze=freeze), lambda count: 0.1)
    with pytest.raises(UserError, match=r"optim\.freeze .* matches no parameter, or all of them"):
        tx.init(params())


def test_cosine_warms_up_from_zero_and_ends_at_its_final_rate():
    settings = cfg(lr=1e-3, final_lr=1e-6, schedule="cosine")
    found = [float(optim.make_schedule(settings, 100, 20)(at)) for at in (0, 10, 20, 60, 100, 150)]
    middle = 1e-6 + (1e-3 - 1e-6) / 2
    np.testing.assert_allclose(found, [0, 5e-4, 1e-3, middle, 1e-6, 1e-6], rtol=1e-5)


def test_constant_stays_after_its_warm_up():
    found = optim.make_schedule(cfg(lr=0.1, schedule="constant"), 100, 4)
    np.testing.assert_allclose([float(found(at)) for at in (0, 2, 4, 99)], [0, 0.05, 0.1, 0.1])


def test_without_a_warm_up_the_first_step_has_the_full_rate():
    assert float(optim.make_schedule(cfg(lr=0.1), 10, 0)(0)) == pytest.approx(0.1)


def test_a_warm_up_that_takes_the_whole_run_is_refused():
    with pytest.raises(UserError, match="takes 10 of the run's 10 steps"):
        optim.make_schedule(cfg(), 10, 10)


def test_unknown_names_list_the_known():
    with pytest.raises(UserError, match="Unknown optimizer 'adam'; known: adamw, lion, muon, sch"):
        optim.make_optimizer(cfg(name="adam"), lambda count: 0.1)
    with pytest.raises(UserError, match=r"Unknown schedule 'cosin'; known: constant, cosine.*Did"):
        optim.make_schedule(cfg(schedule="cosin"), 10, 0)


def layered(kind):
    """Parameters of an encoder of three layers of each kind, and of a head and a decoder."""
    row = jnp.ones((2,))
    stacked = {"kernel": jnp.ones((3, 4, 2)), "bias": jnp.ones((3, 2))}
    encoder = {
        "plain": {
            "cls": row,
            "positions_table": row,
            "embed": {"kernel": row},
            "blocks": {f"block0{i}": {"fc1": {"kernel": row}} for i in range(3)},
            "norm": {"scale": row},
        },
        "scanned": {
            "embed": {"kernel": row},
            "blocks": {"scanned": {"fc1": stacked}},
        },
        "stages": {
            "stem": {"kernel": row},
            "stem_norm": {"scale": row},
            "stage1_block0": {"conv1": {"kernel": row}},
            "stage2_block0": {"conv1": {"kernel": row}},
            "stage2_block1": {"conv1": {"kernel": row}},
            "stage3_block0": {"norm1": {"bias": row}},
            "last": {"kernel": row},
        },
    }
    decoder = {"blocks": {"block00": {"fc1": {"kernel": row}}}}
    return {"encoder": encoder[kind], "heads_a": {"kernel": row}, "decoders_mae": decoder}


# With a decay of one half and three layers: 1/16 below them, then 1/8, 1/4, 1/2, and 1 above.
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (
            "plain",
            {
                "cls": 1 / 16,
                "positions_table": 1 / 16,
                "embed/kernel": 1 / 16,
                "blocks/block00/fc1/kernel": 1 / 8,
                "blocks/block01/fc1/kernel": 1 / 4,
                "blocks/block02/fc1/kernel": 1 / 2,
                "norm/scale": 1,
            },
        ),
        (
            "scanned",
            {
                "embed/kernel": 1 / 16,
                "blocks/scanned/fc1/kernel": np.reshape([1 / 8, 1 / 4, 1 / 2], (3, 1, 1)),
                "blocks/scanned/fc1/bias": np.reshape([1 / 8, 1 / 4, 1 / 2], (3, 1)),
            },
        ),
        (
            "stages",
            {
                "stem/kernel": 1 / 16,
                "stem_norm/scale": 1 / 16,
                "stage1_block0/conv1/kernel": 1 / 8,
                "stage2_block0/conv1/kernel": 1 / 4,
                "stage2_block1/conv1/kernel": 1 / 4,
                "stage3_block0/norm1/bias": 1 / 2,
                "last/kernel": 1,
            },
        ),
    ],
)
def test_layers_below_the_top_take_shorter_steps(kind, expected):
    every = layered(kind)
    tx = optim.scale_by_layer(0.5)
    updates, _ = jax.jit(tx.update)(every, tx.init(every), every)
    expected = {f"encoder/{path}": scale for path, scale in expected.items()}
    expected |= {"heads_a/kernel": 1, "decoders_mae/blocks/block00/fc1/kernel": 1}
    names = jax.tree.leaves(optim.paths(updates))
    assert sorted(names) == sorted(expected)
    for path, update, one in zip(
        names, jax.tree.leaves(updates), jax.tree.leaves(every), strict=True
    ):
        np.testing.assert_array_equal(update, np.broadcast_to(expected[path], one.shape))
        assert update.dtype == one.dtype


def test_layer_decay_scales_the_whole_step():
    """An encoder without blocks has its token one step below the head."""
    settings = cfg(name="sgd", b1=0.0)
    whole = trained(settings, steps=1)
    with settings.unlocked():
        settings.layer_decay = 0.25
    found = trained(settings, steps=1)

    def moved(after):
        return jax.tree.map(jnp.subtract, after, params())

    expected = moved(whole)
    expected["encoder"]["cls"] *= 0.25
    assert_close(moved(found), expected, rtol=1e-5, atol=1e-7)


def test_without_layers_every_step_is_whole():
    tx = optim.scale_by_layer(0.5)
    updates, _ = tx.update({"heads_a": {"kernel": jnp.ones(3)}}, tx.init({}))
    np.testing.assert_array_equal(updates["heads_a"]["kernel"], np.ones(3))


##### Muon and schedule-free #####


def of_model():
    """Parameters in the places that a model has them, and gradients for them."""
    rng = np.random.default_rng(1)
    shapes = {
        "encoder/embed/kernel": (12, 8),
        "encoder/blocks/block00/qkv/kernel": (8, 24),
        "encoder/blocks/block00/qkv/bias": (24,),
        "encoder/blocks/scanned/fc1/kernel": (3, 8, 16),
        "encoder/stage1_block0/conv1/kernel": (3, 3, 4, 8),
        "encoder/stem/kernel": (3, 3, 4, 8),
        "encoder/positions_table": (5, 8),
        "decoders_mae/predict_rgb/kernel": (8, 6),
        "heads_expression/linear/kernel": (8, 4),
    }
    drawn = {key: jnp.asarray(rng.normal(size=shape), jnp.float32) for key, shape in shapes.items()}
    return traverse_util.unflatten_dict(drawn, sep="/")


MATRICES = {
    "encoder/blocks/block00/qkv/kernel": (8, 24),
    "encoder/blocks/scanned/fc1/kernel": (3, 8, 16),
    "encoder/stage1_block0/conv1/kernel": (36, 8),
}


def updates_of(name, steps=1, **settings):
    tx = optim.make_optimizer(cfg(name=name, weight_decay=0.0, **settings), lambda count: 0.01)
    given = now = of_model()
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        state = tx.init(now)
        for _ in range(steps):
            updates, state = jax.jit(tx.update)(given, state, now)
            now = jax.tree.map(jnp.add, now, updates)
    flat = {k: np.asarray(v) for k, v in traverse_util.flatten_dict(updates, sep="/").items()}
    return flat, state, now


def test_muon_makes_the_matrices_between_layers_orthogonal_and_leaves_the_rest_to_adamw():
    found, _, _ = updates_of("muon")
    # Optax's Muon gives the others Nesterov's momentum.
    nesterov = optax.adamw(0.01, B1, B2, weight_decay=0.0, nesterov=True)
    with jax.numpy_dtype_promotion("standard"):
        adamw, _ = nesterov.update(of_model(), nesterov.init(of_model()), of_model())
    adamw = traverse_util.flatten_dict(adamw, sep="/")
    for key, update in found.items():
        if key not in MATRICES:
            np.testing.assert_allclose(update, adamw[key], rtol=1e-4, err_msg=key)
            continue
        layers = update.reshape(MATRICES[key])
        for layer in layers if layers.ndim == 3 else [layers]:
            singular = np.linalg.svd(layer, compute_uv=False)
            # Its five iterations bring singular values near one, not to it.
            assert singular.max() / singular.min() < 2.5, key
            assert 0.0012 < np.sqrt(np.mean(layer**2)) < 0.0028, key  # 0.2 of the rate


def test_muon_decays_what_adamw_decays():
    tx = optim.make_optimizer(cfg(name="muon"), lambda count: 0.01)
    now = of_model()
    zero = jax.tree.map(jnp.zeros_like, now)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        updates, _ = jax.jit(tx.update)(zero, tx.init(now), now)
    found = traverse_util.flatten_dict(updates, sep="/")
    for key, param in traverse_util.flatten_dict(now, sep="/").items():
        if key.endswith("kernel"):
            np.testing.assert_allclose(found[key], -0.01 * DECAY * param, rtol=1e-4, err_msg=key)
        else:
            assert key.endswith(("bias", "positions_table"))


def test_schedule_free_is_its_definition():
    """The paper's equations, one array at a time, without momentum's first moment."""
    _, state, y = updates_of("schedule_free", steps=4)
    gradient = np.asarray(of_model()["heads_expression"]["linear"]["kernel"], np.float64)
    z = x = point = gradient.copy()  # gradients are the parameters' first values here
    second = np.zeros_like(z)
    for at in range(1, 5):
        second = B2 * second + (1 - B2) * gradient**2
        z = z - 0.01 * gradient / (np.sqrt(second / (1 - B2**at)) + 1e-8)
        x = (1 - 1 / at) * x + z / at
        point = (1 - B1) * z + B1 * x
    np.testing.assert_allclose(y["heads_expression"]["linear"]["kernel"], point, rtol=1e-4)
    averages = optim.averaged_params(state, y)
    np.testing.assert_allclose(averages["heads_expression"]["linear"]["kernel"], x, rtol=1e-4)
    assert optim.averaged_params(updates_of("adamw")[1], y) is None


def test_the_average_of_schedule_free_is_what_is_evaluated():
    config = tiny.config(8, name="schedule_free", clip=1.0, lr=0.01)
    training = tiny.training(config)
    current = state.create(training)
    run = jax.jit(functools.partial(step.train_step, training))
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(3):
            current, metrics = run(current, tiny.batch(8))
    wanted = optim.averaged_params(current.opt_state, current.params)
    found = state.evaluation_variables(current)["params"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, wanted)
    far = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), found, current.params)
    assert max(jax.tree.leaves(far)) > 1e-4
    assert metrics["lr"] == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("key", "value"), [("schedule", "cosine"), ("ema", 0.9), ("layer_decay", 0.7), ("freeze", "a")]
)
def test_schedule_free_takes_no_schedule_and_no_other_average(key, value):
    config = tiny.config(8, name="schedule_free")
    rules.check(config)
    config.optim[key] = value
    with pytest.raises(UserError, match=rf"'schedule_free' does not go with optim\.{key}"):
        rules.check(config)


@pytest.mark.parametrize(("encoder", "scan"), [("16x2x2/4", True), ("cnn24", False)])
@pytest.mark.slow
def test_muon_trains_every_encoder(encoder, scan):
    config = tiny.config(8, name="muon", clip=1.0)
    config.model.encoder, config.model.scan = encoder, scan
    training = tiny.training(config)
    current = state.create(training)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        new, metrics = jax.jit(functools.partial(step.train_step, training))(current, tiny.batch(8))
    assert np.isfinite(metrics["grad_norm"])
    form = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert form(new) == form(current)

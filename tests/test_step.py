"""One step equals a plain float64 re-computation; what must not change it does not."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from skimage.feature import local_binary_pattern

from hmtl_jax import build, infer, recipe, rules, state, step
from hmtl_jax.data import augment, order
from hmtl_jax.program import make_views
from hmtl_jax.state import evaluation_variables
from tests import reference, tiny

LAM, LR, MOMENTUM, DECAY, EMA, CLIP = 0.1, 0.5, 0.9, 0.05, 0.9, 0.05
WEIGHTS, SMOOTHING, OF_LBP = (1.0, 2.0, 4.0), 0.1, 0.5
# Of four micro-batches (row % 4) the first has no label at all, and the third one row that counts.
BATCH = tiny.batch(8, missing=(0, 1, 4), invalid=(6,))


def config_of(**optim):
    """SGD, because a step of it is linear in the gradient: parameters show gradients."""
    settings = {"name": "sgd", "lr": LR, "b1": MOMENTUM, "weight_decay": DECAY, "ema": EMA}
    config = tiny.config(8, **(settings | optim))
    config.tasks.expression = recipe.task(
        "classification", label="expression", class_weights=WEIGHTS, label_smoothing=SMOOTHING
    )
    config.pretexts.mae.target_weights = (1.0, OF_LBP)
    return config


@pytest.fixture(scope="module")
def training():
    return tiny.training(config_of())


@pytest.fixture(scope="module")
def before(training):
    return tiny.first_state(training)


@pytest.fixture(scope="module")
def train_step(training):
    return build.jitted(step.train_step, training)


@pytest.fixture(scope="module")
def after(train_step, before):
    return train_step(before, BATCH)


##### The golden step: if it changes on purpose, change tests/reference.py by the paper #####


@functools.cache
def targets():
    """Patches of the normalised pixels and of scikit-image's LBP, float64."""
    images = BATCH["image"].astype(np.float64)
    grey = np.round(images @ [0.299, 0.587, 0.114]).astype(np.uint8)
    lbp = np.stack([local_binary_pattern(image, 8, 1) for image in grey])[..., None] / 255
    rgb = reference.normalise(images / 255)
    return {"rgb": reference.patches(rgb, 4), "lbp": reference.patches(lbp, 4)}


def evaluated(training, state):
    variables = evaluation_variables(state)
    return build.jitted(infer.eval_step, training.program)(variables, BATCH)


def shapes(of, training, state):
    variables = evaluation_variables(state)
    return jax.eval_shape(functools.partial(of, training.program), variables, BATCH)


def kept(training, at: int):
    """The masks of a step: the one thing that the reference takes from the code under test."""
    keys = step.augmented(training, 0, jnp.int32(at), BATCH)["keys"]["mae"]
    ((view, _),) = training.program.pretexts["mae"].views(keys, jnp.zeros((8, 16, 16, 3)))
    return np.asarray(view.keep)


def reference_losses(params, keep_bk):
    """Losses of BATCH by name, without the code under test."""
    pixels = targets()["rgb"]
    tokens = reference.vit(params["encoder"], pixels, (4, 4), 2)
    logits = reference.dense(tokens[:, 0], params["heads_expression"]["linear"])
    valid, label = BATCH["valid"], BATCH["expression"]
    each = [
        reference.cross_entropy(logits[row], label[row], SMOOTHING, WEIGHTS)
        for row in np.flatnonzero(valid & (label >= 0))
    ]
    tokens = reference.vit(params["encoder"], pixels, (4, 4), 2, keep_bk)
    rebuilt = reference.decode(params["decoders_mae"], tokens, keep_bk, 4, 2)
    rebuilt["lbp"] = rebuilt["lbp"] + 0.5  # about which a code is predicted
    rgb, lbp = (
        reference.masked_mse(rebuilt[name], targets()[name], keep_bk)[valid].mean()
        for name in ("rgb", "lbp")
    )
    losses = {"expression": np.sum(each) / len(each), "mae/rgb": rgb, "mae/lbp": OF_LBP * lbp}
    losses["mae"] = rgb + OF_LBP * lbp
    return losses | {"total": LAM * losses["expression"] + (1 - LAM) * losses["mae"]}


def test_losses_equal_the_reference(training, before, after, train_step):
    metrics = after[1]
    wanted = reference_losses(tiny.float64(before.params), kept(training, 0))
    for name, value in wanted.items():
        assert float(metrics[f"loss/{name}"]) == pytest.approx(value, rel=1e-5), name
    # And those of the next step, with the parameters of this one and other masks.
    wanted = reference_losses(tiny.float64(after[0].params), kept(training, 1))
    metrics = train_step(after[0], BATCH)[1]
    for name, value in wanted.items():
        assert float(metrics[f"loss/{name}"]) == pytest.approx(value, rel=1e-5), name


def test_updated_parameters_equal_the_reference(training, before, after):
    """Along random directions of each array, by differences of the reference's loss."""
    rng, epsilon = np.random.default_rng(0), 1e-4
    keep = kept(training, 0)
    old, new = tiny.float64(before.params), tiny.float64(after[0].params)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(old)

    def loss(index, value):
        values = [value if i == index else leaf for i, (_, leaf) in enumerate(leaves)]
        return reference_losses(jax.tree.unflatten(treedef, values), keep)["total"]

    def directions(shape):
        for _ in range(2):
            dense = rng.normal(size=shape)
            yield dense / np.linalg.norm(dense)
        one = np.zeros(shape)
        one.flat[rng.integers(one.size)] = 1
        yield one

    moved = 0.0
    for index, (path, leaf) in enumerate(leaves):
        decayed = path[-1].key == "kernel"
        for d in directions(leaf.shape):
            slope = loss(index, leaf + epsilon * d) - loss(index, leaf - epsilon * d)
            gradient = slope / (2 * epsilon) + decayed * DECAY * np.sum(d * leaf)
            # Nesterov's first step: the gradient itself, and once more with the momentum.
            wanted = np.sum(d * leaf) - LR * (1 + MOMENTUM) * gradient
            found = np.sum(d * jax.tree.leaves(new)[index])
            assert found == pytest.approx(wanted, abs=1e-5), jax.tree_util.keystr(path)
            moved = max(moved, abs(wanted - np.sum(d * leaf)))
    assert moved > 0.1  # else the tolerance would say nothing


def test_total_is_weighted_by_lambda(after):
    metrics = after[1]
    assert float(metrics["weight/expression"]) == pytest.approx(LAM)
    assert float(metrics["weight/mae"]) == pytest.approx(1 - LAM)
    total = LAM * metrics["loss/expression"] + (1 - LAM) * metrics["loss/mae"]
    assert float(metrics["loss/total"]) == pytest.approx(float(total), rel=1e-6)
    parts = metrics["loss/mae/rgb"] + metrics["loss/mae/lbp"]
    assert float(metrics["loss/mae"]) == pytest.approx(float(parts), rel=1e-6)


def gradients(before, after):
    """What the first step of SGD was given, from the parameters that it left."""

    def one(path, old, new):
        decay = DECAY if path[-1].key == "kernel" else 0.0
        return (old - new) / (LR * (1 + MOMENTUM)) - decay * old

    return jax.tree_util.tree_map_with_path(
        one, tiny.float64(before.params), tiny.float64(after.params)
    )


def norm(tree):
    return np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(tree)))


def test_metrics_say_what_the_step_did(before, after):
    metrics = jax.device_get(after[1])
    assert {value.dtype for value in metrics.values()} == {np.dtype("float32")}
    assert metrics["grad_norm"] == pytest.approx(norm(gradients(before, after[0])), rel=1e-4)
    assert metrics["lr"] == pytest.approx(LR)
    assert metrics["nonfinite"] == 0 and metrics["skipped_images"] == 1


##### What a step must not depend on #####


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(ours), jax.device_get(theirs))


def test_equal_state_and_batch_give_equal_bits(train_step, before, after):
    assert_equal(train_step(before, BATCH), after)


def test_an_invalid_row_changes_nothing(train_step, before, after):
    other = {name: rows.copy() for name, rows in BATCH.items()}
    other["image"][6] = 255 - other["image"][6]
    other["expression"][6] = (other["expression"][6] + 1) % 3
    assert_equal(train_step(before, other), after)
    other["image"][7] = 255 - other["image"][7]
    changed = train_step(before, other)[1]
    assert float(changed["loss/total"]) != float(after[1]["loss/total"])


def test_a_row_without_a_label_still_trains_the_pretext(train_step, before, after):
    other = {name: rows.copy() for name, rows in BATCH.items()}
    other["image"][0] = 255 - other["image"][0]
    changed = train_step(before, other)[1]
    assert float(changed["loss/expression"]) == float(after[1]["loss/expression"])
    assert float(changed["loss/mae"]) != float(after[1]["loss/mae"])


def test_a_batch_without_any_label_has_no_supervised_loss(train_step, before):
    other = BATCH | {"expression": np.full(8, -1, np.int32)}
    new, metrics = train_step(before, other)
    assert float(metrics["loss/expression"]) == 0 and float(metrics["nonfinite"]) == 0
    head = lambda state: state.params["heads_expression"]["linear"]["bias"]  # noqa: E731
    np.testing.assert_array_equal(head(new), head(before))


def test_each_step_draws_anew(train_step, before, after):
    later = train_step(dataclasses.replace(before, step=jnp.int32(1)), BATCH)[1]
    assert float(later["loss/mae"]) != float(after[1]["loss/mae"])
    # Nothing is augmented here, so the clean view is that of any other step.
    assert float(later["loss/expression"]) == float(after[1]["loss/expression"])


def test_the_moving_average_warms_up_to_its_decay(train_step, before, after):
    for at, decay in ((0, 0.1), (1, 2 / 11), (1000, EMA)):
        double = jax.tree.map(lambda x: 2 * x, before.ema)
        old = dataclasses.replace(before, step=jnp.int32(at), ema=double)
        new, _ = train_step(old, BATCH)
        jax.tree.map(
            lambda ema, was, param, d=decay: np.testing.assert_allclose(
                ema, d * was + (1 - d) * param, rtol=1e-5, atol=1e-6
            ),
            *map(jax.device_get, (new.ema["params"], old.ema["params"], new.params)),
        )


##### Micro-batches, clipping, steps that are not finite #####


@pytest.fixture(scope="module")
def careful():
    """The same step in four micro-batches, clipped, and undone where it is not finite."""
    config = config_of(accumulate=4, clip=CLIP)
    config.nonfinite = "skip"
    training = tiny.training(config)
    return build.jitted(step.train_step, training), tiny.first_state(training)


@pytest.fixture(scope="module")
def carefully(careful):
    train_step, before = careful
    return train_step(before, BATCH)


def test_micro_batches_change_nothing(carefully, after):
    for name, value in after[1].items():
        if name.startswith("skill/"):
            continue  # the constant answer is that of the micro-batch: tests/pretext/test_skill.py
        assert float(carefully[1][name]) == pytest.approx(float(value), rel=1e-5), name


def test_clipping_scales_the_gradients_to_the_norm(carefully, before, after):
    plain, clipped = (gradients(before, done[0]) for done in (after, carefully))
    assert norm(plain) > 2 * CLIP
    assert norm(clipped) == pytest.approx(CLIP, rel=1e-4)
    scale = CLIP / norm(plain)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, scale * b, atol=1e-6), clipped, plain)


def test_a_step_that_is_not_finite_is_undone(careful):
    train_step, before = careful
    broken = jax.tree.map(jnp.copy, before.params)
    broken["encoder"]["cls"] = jnp.full_like(broken["encoder"]["cls"], jnp.nan)
    old = dataclasses.replace(before, params=broken)
    new, metrics = train_step(old, BATCH)
    assert float(metrics["nonfinite"]) == 1
    assert int(new.step) == 1
    assert_equal(dataclasses.replace(new, step=old.step), old)


##### Streams, fusion, and weightings that look at each gradient #####


def puzzled(**changes):
    """The tiny recipe with a puzzle of two sizes in place of the masked auto-encoder."""
    config = config_of()
    config.pretexts = {"puzzle": recipe.pretext_task("puzzle", tiles=2, dropout=0.0)}
    config.weighting.name = "fixed"
    config.update_from_flattened_dict(changes)
    rules.check(config)
    training = tiny.training(config)
    return training, tiny.first_state(training)


def logits_of(params, images_bhwc):
    """Without the code under test: the head's outputs for images in [0, 1]."""
    grid = images_bhwc.shape[1] // 4
    pixels = reference.patches(reference.normalise(images_bhwc), 4)
    tokens = reference.vit(params["encoder"], pixels, (grid, grid), 2)
    return reference.dense(tokens[:, 0], params["heads_expression"]["linear"])


def expression_loss(params, images_bhwc):
    logits = logits_of(params, images_bhwc)
    known = np.flatnonzero(BATCH["valid"] & (BATCH["expression"] >= 0))
    each = [
        reference.cross_entropy(logits[row], BATCH["expression"][row], SMOOTHING, WEIGHTS)
        for row in known
    ]
    return np.sum(each) / len(each)


def views_of(training):
    """The images of each view in the first step."""
    examples = step.augmented(training, 0, jnp.int32(0), BATCH)
    views, _ = make_views(training.program, examples["images"], examples["keys"])
    return {name: np.asarray(view.images, np.float64) for name, view in views.items()}


def test_one_stream_trains_the_task_on_the_pretexts_view_alone():
    training, before = puzzled(stream="one_stream")
    _, metrics = build.jitted(step.train_step, training)(before, BATCH)
    views, params = views_of(training), tiny.float64(before.params)
    wanted = expression_loss(params, views["puzzle"])
    assert float(metrics["loss/expression"]) == pytest.approx(wanted, rel=1e-5)
    assert wanted != pytest.approx(expression_loss(params, views["clean"]), rel=1e-3)
    # The clean view is not even encoded.
    both, _ = puzzled()
    flops = [
        build.jitted(step.train_step, p).lower(before, BATCH).cost_analysis()["flops"]
        for p in (training, both)
    ]
    assert flops[0] < 0.6 * flops[1]
    predictions = build.jitted(infer.eval_step, training.program)(
        evaluation_variables(before), BATCH
    )["predictions"]
    average = tiny.float64(before.ema["params"])
    wanted = reference.softmax(logits_of(average, views["clean"]))
    np.testing.assert_allclose(predictions["expression"], wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("stream", "accumulate"),
    [
        ("siamese", 1),
        ("siamese", 2),
        ("one_stream", 2),
    ],
)
@pytest.mark.slow
def test_several_views_give_the_geometric_mean_of_their_losses(stream, accumulate):
    sizes = {"pretexts.puzzle.sizes": (16, 8), "optim.accumulate": accumulate}
    training, before = puzzled(stream=stream, **sizes)
    after, metrics = build.jitted(step.train_step, training)(before, BATCH)
    views = views_of(training)
    assert {name: v.shape[1] for name, v in views.items()} == {
        "clean": 16, "puzzle/0": 16, "puzzle/1": 8,
    }  # fmt: skip
    if stream == "one_stream":
        del views["clean"]
    params = tiny.float64(before.params)

    def mean_of(params):
        return np.exp(np.mean([np.log(expression_loss(params, v)) for v in views.values()]))

    assert float(metrics["loss/expression"]) == pytest.approx(mean_of(params), rel=1e-5)
    for name, images in views.items():
        wanted = expression_loss(params, images)
        assert float(metrics[f"loss/expression/{name}"]) == pytest.approx(wanted, rel=1e-5)
    # The head's bias sees the supervised loss alone: its step is the slope of the mean.
    bias = params["heads_expression"]["linear"]["bias"]
    for index in range(len(bias)):
        moved = []
        for sign in (1, -1):
            bias[index] += sign * 1e-5
            moved.append(mean_of(params))
            bias[index] -= sign * 1e-5
        slope = (moved[0] - moved[1]) / 2e-5
        change = after.params["heads_expression"]["linear"]["bias"][index] - bias[index]
        assert float(change) == pytest.approx(-LR * (1 + MOMENTUM) * slope, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_batch_statistics_take_in_each_call_of_the_encoder_in_turn(accumulate):
    sizes = {"pretexts.puzzle.sizes": (16, 8), "optim.accumulate": accumulate}
    training, _ = puzzled(stream="siamese", **sizes)
    training = tiny.changed(training, model=training.program.model.clone(encoder=tiny.Normed()))
    before = tiny.first_state(training)
    after, _ = build.jitted(step.train_step, training)(before, BATCH)
    views = {name: reference.normalise(images) for name, images in views_of(training).items()}
    mean, variance = np.zeros(3), np.zeros(3)
    for part in range(accumulate):  # row r is in micro-batch r % accumulate
        one, other, small = (
            views[name][part::accumulate] for name in ("clean", "puzzle/0", "puzzle/1")
        )
        for seen in (np.concatenate([one, other]), small):
            mean = 0.9 * mean + 0.1 * seen.mean((0, 1, 2))
            variance = 0.9 * variance + 0.1 * seen.var((0, 1, 2))
    for found, share in ((after.batch_stats, 1.0), (after.ema["batch_stats"], 0.9)):
        norm_of = found["encoder"]["norm"]
        np.testing.assert_allclose(norm_of["mean"], share * mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(norm_of["var"], share * variance, rtol=1e-4, atol=1e-6)


def losses_alone(before, name):
    """The gradient of one loss of the tiny recipe on its own."""
    config = config_of()
    config.weighting.name = "fixed"
    for part in (config.tasks.expression, config.pretexts.mae):
        part.weight = 0.0
    {**config.tasks, **config.pretexts}[name].weight = 1.0
    done = build.jitted(step.train_step, tiny.training(config))(before, BATCH)
    return gradients(before, done[0])


@pytest.fixture(scope="module")
def alone(before):
    return {name: losses_alone(before, name) for name in ("expression", "mae")}


@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["geometric", "gradnorm", "pcgrad", "uncertainty", "dwa"])
def test_each_weighting_combines_the_gradients_by_its_formula(name, accumulate, before, alone):
    config = config_of(accumulate=accumulate)
    config.weighting.name = name
    training = tiny.training(config)
    first = dataclasses.replace(before, task_weights=training.weighting.init())
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam has an integer counter
        after, metrics = build.jitted(step.train_step, training)(first, BATCH)
    losses = {n: float(metrics[f"loss/{n}"]) for n in alone}
    wanted = dict.fromkeys(alone, 1.0)
    if name == "geometric":
        total = np.sqrt(losses["expression"] * losses["mae"])
        wanted = {n: total / (2 * loss) for n, loss in losses.items()}
    found = {n: float(metrics[f"weight/{n}"]) for n in alone}
    assert found == pytest.approx(wanted, rel=1e-4)
    total = sum(wanted[n] * losses[n] for n in alone)
    assert float(metrics["loss/total"]) == pytest.approx(total, rel=1e-4)
    combined = jax.tree.map(
        lambda a, b: wanted["expression"] * a + wanted["mae"] * b, *alone.values()
    )
    if name == "pcgrad":
        product = sum(jax.tree.leaves(jax.tree.map(lambda a, b: np.sum(a * b), *alone.values())))
        share = {n: min(product, 0) / norm(alone[n]) ** 2 for n in alone}
        combined = jax.tree.map(
            lambda a, b: (1 - share["expression"]) * a + (1 - share["mae"]) * b, *alone.values()
        )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5),
        gradients(first, after), combined,
    )  # fmt: skip
    moved = jax.tree.map(
        lambda a, b: not np.array_equal(a, b), after.task_weights, first.task_weights
    )
    assert any(jax.tree.leaves(moved)) == (name in ("gradnorm", "uncertainty", "dwa"))


@pytest.mark.slow
def test_a_weighting_knows_the_labels_of_the_whole_batch_and_of_none(before):
    """Labels in one micro-batch of two are there; without any, the pretext is the whole total."""
    config = config_of(accumulate=2)
    config.weighting.name = "geometric"
    training = tiny.training(config)
    train_step = build.jitted(step.train_step, training)
    _, metrics = train_step(before, tiny.batch(8, missing=(1, 3, 5, 7)))
    losses = {n: float(metrics[f"loss/{n}"]) for n in ("expression", "mae")}
    total = np.sqrt(losses["expression"] * losses["mae"])
    assert float(metrics["loss/total"]) == pytest.approx(total, rel=1e-4)
    after, metrics = train_step(before, tiny.batch(8, missing=range(8)))
    assert float(metrics["weight/expression"]) == 0 and float(metrics["weight/mae"]) == 1
    assert float(metrics["loss/total"]) == pytest.approx(float(metrics["loss/mae"]), rel=1e-6)
    assert norm(gradients(before, after)["decoders_mae"]) > 1e-3


@pytest.mark.parametrize("operator", ["concat", "sum", "cross_attention"])
@pytest.mark.slow
def test_a_fused_head_reads_the_pretexts_view_in_training_and_evaluation(operator):
    config = config_of()
    config.model.fusion = operator
    training = tiny.training(config)
    before = tiny.first_state(training)
    _, metrics = build.jitted(step.train_step, training)(before, BATCH)
    assert np.isfinite(float(metrics["loss/expression"]))
    evaluate = build.jitted(infer.eval_step, training.program)
    found = evaluate(evaluation_variables(before), BATCH)["predictions"]["expression"]
    assert_equal(evaluate(evaluation_variables(before), BATCH)["predictions"]["expression"], found)
    # An image's prediction does not hang on its place in the batch.
    turned = {name: np.roll(rows, 1, axis=0) for name, rows in BATCH.items()}
    again = evaluate(evaluation_variables(before), turned)["predictions"]["expression"]
    np.testing.assert_allclose(again, np.roll(found, 1, axis=0), atol=1e-6)
    plain = tiny.changed(training, model=training.program.model.clone(fuse=""))
    with pytest.raises(TypeError):  # the other view's stages are what the head asks for
        jax.eval_shape(
            functools.partial(infer.eval_step, plain.program), evaluation_variables(before), BATCH
        )


def test_tasks_may_read_a_texture(before):
    config = config_of()
    config.model.input = "lbp"
    training = tiny.training(config)
    found = evaluated(training, before)["predictions"]["expression"]
    images = BATCH["image"].astype(np.float64)
    grey = np.round(images @ [0.299, 0.587, 0.114]).astype(np.uint8)
    lbp = np.stack([local_binary_pattern(image, 8, 1) for image in grey])[..., None] / 255
    params = tiny.float64(before.ema["params"])
    wanted = reference.softmax(logits_of(params, np.repeat(lbp, 3, axis=-1)))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


##### Augmentation, mixing and seeds, before the model #####


def augmented(seed=0, **settings):
    training = tiny.training(config_of())
    moved = augment.Augment(image_size=16, **settings)
    training = dataclasses.replace(training, augment=moved)
    return jax.jit(functools.partial(step.augmented, training, seed))(jnp.int32(3), BATCH)


def test_mixing_gives_soft_labels_of_both_sources():
    found = jax.device_get(augmented(mixup=0.8))
    own = BATCH["image"].reshape(8, -1) / 255
    other = np.roll(own, 1, axis=0)
    # An example's own share is what its picture shows.
    mixed = found["images"].reshape(8, -1)
    share = np.sum((mixed - other) * (own - other), 1) / np.sum((own - other) ** 2, 1)
    assert len(np.unique(share.round(4))) == 8 and np.all((share > 0) & (share < 1))
    labelled = (BATCH["expression"] >= 0) & BATCH["valid"]
    one_hot = np.eye(3)[BATCH["expression"]] * (BATCH["expression"] >= 0)[:, None]
    soft = share[:, None] * one_hot + (1 - share[:, None]) * np.roll(one_hot, 1, axis=0)
    np.testing.assert_allclose(found["targets"]["expression"], soft, atol=1e-5)
    np.testing.assert_array_equal(found["masks"]["expression"], labelled & np.roll(labelled, 1))
    valid = BATCH["valid"] & np.roll(BATCH["valid"], 1)
    np.testing.assert_array_equal(found["masks"]["mae"], valid)


class Leaning:
    """A task whose label changes sign in a mirror."""

    @staticmethod
    def target(batch):
        return jnp.arange(1.0, 9.0), jnp.ones(8)

    @staticmethod
    def flip(target, flipped):
        return jnp.where(flipped, -target, target)


def test_each_task_mends_its_label_for_a_mirror(training):
    training = dataclasses.replace(
        tiny.changed(training, tasks={"pose": Leaning}), augment=augment.Augment(16, flip=0.5)
    )
    found = jax.device_get(step.augmented(training, 0, jnp.int32(0), BATCH))
    images = BATCH["image"] / np.float32(255)
    mirrored = found["targets"]["pose"] < 0
    assert 0 < mirrored.sum() < 8
    wanted = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
    np.testing.assert_allclose(found["images"], wanted, atol=1e-6)


def test_another_seed_draws_other_views_and_masks():
    ours, other = augmented(seed=0, flip=0.5), augmented(seed=1, flip=0.5)
    assert not np.array_equal(ours["images"], other["images"])
    bits, others = (jax.random.key_data(tree["keys"]["mae"]) for tree in (ours, other))
    assert not np.any(np.all(bits == others, axis=-1))


def test_another_name_changes_no_other_stream():
    bits = lambda keys: [jax.random.key_data(key).tolist() for key in keys]  # noqa: E731
    alone = bits(step.streams(0, jnp.int32(5), "view/mae"))
    several = bits(step.streams(0, jnp.int32(5), "augment", "view/mae", "view/puzzle"))
    assert several[1:2] == alone and len({tuple(key) for key in several}) == 3


##### Any recipe keeps the state's form; evaluation #####


@pytest.mark.parametrize(
    ("model", "optim"),
    [
        ({"dtype": "bfloat16"}, {"name": "adamw", "accumulate": 2}),
        ({"dtype": "bfloat16", "scan": True, "remat": True, "drop_path": 0.1}, {"name": "lion"}),
        ({"positions": "learned", "pool": "mean"}, {"freeze": "^encoder/"}),
    ],
)
def test_the_state_keeps_its_form(model, optim):
    config = config_of(**optim)
    config.model.update(model)
    config.nonfinite = "skip"
    training = tiny.training(config)
    old = jax.eval_shape(lambda: state.create(training))
    # Optax's Adam mixes a float with an integer counter.
    with jax.numpy_dtype_promotion("standard"):
        new, metrics = jax.eval_shape(functools.partial(step.train_step, training), old, BATCH)
    form = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert form(new) == form(old)
    assert {leaf.dtype for leaf in jax.tree.leaves(new.params)} == {jnp.dtype("float32")}
    assert {(x.shape, x.dtype) for x in metrics.values()} == {((), jnp.dtype("float32"))}


@pytest.mark.parametrize("without", ["tasks", "pretexts"])
def test_tasks_or_pretexts_alone(without):
    config = config_of()
    config[without] = {}
    config.weighting.name = "fixed"
    training = tiny.training(config)
    old = jax.eval_shape(lambda: state.create(training))
    _, metrics = jax.eval_shape(functools.partial(step.train_step, training), old, BATCH)
    gone, left = ("expression", "mae") if without == "tasks" else ("mae", "expression")
    assert f"loss/{left}" in metrics and f"loss/{gone}" not in metrics
    found = jax.eval_shape(
        functools.partial(infer.eval_step, training.program), evaluation_variables(old), BATCH
    )
    assert set(found["predictions"]) == ({"expression"} if without == "pretexts" else set())


def test_evaluation_predicts_from_the_clean_view_with_the_moving_average(training, before):
    average = tiny.random_like(before.params, seed=5)
    del average["decoders_mae"]  # evaluation has no use for it
    other = dataclasses.replace(before, ema={"params": average, "batch_stats": {}})
    found = evaluated(training, other)
    params = tiny.float64(average)
    tokens = reference.vit(params["encoder"], targets()["rgb"], (4, 4), 2)
    logits = reference.dense(tokens[:, 0], params["heads_expression"]["linear"])
    wanted = reference.softmax(logits)
    np.testing.assert_allclose(found["predictions"]["expression"], wanted, atol=1e-5)
    assert_equal(found["labels"], {k: v for k, v in BATCH.items() if k != "image"})


def test_pictures_show_what_each_pretext_sees_and_makes(training, before):
    found = jax.eval_shape(
        functools.partial(infer.pretext_step, training.program), evaluation_variables(before), BATCH
    )
    assert set(found) == {"images", "views", "targets", "outputs"}
    assert found["views"]["mae"].keep.shape == (8, 4)
    assert {name: x.shape for name, x in found["outputs"]["mae"].items()} == {
        "rgb": (8, 16, 48),
        "lbp": (8, 16, 16),
    }


##### What stays, and what is skipped #####


@pytest.mark.slow
def test_a_frozen_encoder_keeps_its_statistics_and_costs_no_backward_pass():
    config = tiny.config(8, name="sgd")
    config.pretexts, config.weighting.name = ConfigDict(), "fixed"
    config.model.encoder = "resnet18-small"
    flops = {}
    for freeze in ("", "^encoder"):
        config.optim.freeze = freeze
        training = tiny.training(config)
        before = jax.jit(functools.partial(state.create, training))()
        compiled = build.jitted(step.train_step, training).lower(before, BATCH).compile()
        flops[freeze] = compiled.cost_analysis()["flops"]
    after, metrics = compiled(before, BATCH)
    assert jax.tree.all(jax.tree.map(np.array_equal, after.batch_stats, before.batch_stats))
    assert jax.tree.all(
        jax.tree.map(np.array_equal, after.params["encoder"], before.params["encoder"])
    )
    # A backward pass costs about twice a forward one.
    assert flops["^encoder"] < 0.5 * flops[""]
    heads = [jax.tree.leaves(s.params["heads_expression"])[0] for s in (before, after)]
    assert not np.array_equal(*heads)
    # What is applied is the gradient of the head, on the features that evaluation sees.
    predictions = evaluated(training, before)["predictions"]["expression"]
    known = (BATCH["expression"] >= 0) & BATCH["valid"]
    of_truth = predictions[known, BATCH["expression"][known]]
    assert metrics["loss/expression"] == pytest.approx(-np.log(of_truth).mean(), rel=1e-4)


def test_the_logged_rate_is_that_of_the_applied_update():
    config = config_of(schedule="cosine")
    config.nonfinite = "skip"
    training = tiny.training(config)
    train_step = build.jitted(step.train_step, training)
    state = tiny.first_state(training)
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), state.params)
    with jax.numpy_dtype_promotion("standard"):  # Optax's cosine wants it
        skipped, _ = train_step(dataclasses.replace(state, params=broken), BATCH)
        _, metrics = train_step(dataclasses.replace(skipped, params=state.params), BATCH)
        first, second = (float(training.schedule(at)) for at in (0, 1))
    assert int(skipped.step) == 1
    assert float(metrics["lr"]) == first != second


##### Pictures whose labels are hidden #####


@pytest.mark.slow
def test_hidden_labels_count_as_missing_for_tasks_and_not_for_pretexts():
    training = tiny.training(tiny.config(8, name="sgd"))
    current = state.create(training)
    run = jax.jit(functools.partial(step.train_step, training))
    hidden = np.array([False, True] * 4)
    _, told = run(current, tiny.batch(8) | {"labelled": ~hidden})
    _, missing = run(current, tiny.batch(8, missing=tuple(np.flatnonzero(hidden))))
    assert told["count/expression"] == 4 and told["count/mae"] == 8
    for name, value in missing.items():
        np.testing.assert_allclose(told[name], value, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("stream, accumulate", [("clean", 1), ("clean", 2), ("siamese", 1)])
def test_what_has_no_label_is_not_encoded_whole_and_nothing_else_changes(stream, accumulate):
    """Against the step that encodes every row of the clean view, of which no loss reads half."""
    training, before = puzzled(
        **{
            "stream": stream,
            "optim.accumulate": accumulate,
            "data.labelled": 0.5,
            "data.unlabelled_share": 0.5,
        }
    )
    assert training.layout == (1, 2)
    batch = tiny.batch(8, missing=(2,), invalid=(4,)) | {"labelled": np.array([True, False] * 4)}
    whole = dataclasses.replace(training, layout=order.WHOLE)
    done, flops = [], []
    for one in (training, whole):
        compiled = build.jitted(step.train_step, one).lower(before, batch).compile()
        done.append(compiled(before, batch))
        flops.append(compiled.cost_analysis()["flops"])
    (ours, metrics), (theirs, wanted) = done
    assert metrics["count/expression"] == 2 and metrics["count/puzzle"] == 7
    for name, value in wanted.items():
        assert float(metrics[name]) == pytest.approx(float(value), rel=1e-5), name
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        ours.params, theirs.params,
    )  # fmt: skip
    if accumulate == 1:
        assert flops[0] < 0.9 * flops[1]


def test_the_clean_view_stays_whole_where_a_pretext_reads_it_or_micro_batches_are_uneven():
    few = {"data.labelled": 0.5, "data.unlabelled_share": 0.25}
    training, _ = puzzled(**few)
    assert training.layout_of(8) == training.layout == (3, 4) and training.layout_of(2) == (1, 1)
    assert training.program.tasks_alone_read_clean
    config = config_of()
    config.pretexts = {"drloc": recipe.pretext_task("drloc", pairs=4, dim=8)}
    assert not tiny.training(config).program.tasks_alone_read_clean
    fused, _ = puzzled(**{"model.fusion": "sum"})
    assert not fused.program.tasks_alone_read_clean


def test_the_parts_of_a_step_are_named_where_a_trace_shows_them(training):
    """`augment`, `views` and the others stand in operations' names; modules name their own."""
    jitted = build.jitted(step.train_step, training)
    shapes = jax.eval_shape(lambda: state.create(training))
    with jax.numpy_dtype_promotion("standard"):
        text = jitted.lower(shapes, BATCH).as_text(debug_info=True)
    names = ("augment", "views", "encoder", "heads_expression", "decoders_mae", "losses")
    for name in (*names, "optimizer"):
        assert re.search(rf"[\"/(]{name}[/)\"]", text), name

"""One run on one device, on eight, and on two times four: the same numbers, each array split."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from hmtl_jax import build, recipe, sharding, state, step
from hmtl_jax.data import order
from hmtl_jax.errors import UserError
from hmtl_jax.models.hybrid import interleaved, separated
from tests import tiny

# 80 rows: no other axis of the model is as long, nor as a micro-batch of 40.
ROWS = 80
MESHES = {"one": (1, 1), "data": (8, 1), "fsdp": (2, 4)}


@pytest.fixture(scope="module")
def training():
    """All that could tell devices apart: every kind of randomness, missing rows, micro-batches."""
    config = tiny.config(
        ROWS, name="sgd", lr=0.1, b1=0.9, clip=1.0, ema=0.9, accumulate=2, weight_decay=0.05
    )
    config.augment.update({"flip": 0.5, "mixup": 0.8})
    config.model.update({"scan": True, "drop_path": 0.4, "head_dropout": 0.2})
    config.pretexts.mae.targets = ("rgb",)
    return tiny.training(config)


@dataclasses.dataclass
class Done:
    """Three steps on one mesh: the metrics of each, the state, and the compiled program's text."""

    metrics: list
    state: state.TrainState
    text: str


@pytest.fixture(scope="module")
def run(training):
    """`run(name)`: three steps on that mesh, made once."""
    return functools.cache(functools.partial(three_steps, training))


def three_steps(training, name, more=None):
    data, fsdp = MESHES[name]
    mesh = sharding.make_mesh(data, fsdp, jax.devices()[: data * fsdp])
    rows = tiny.batch(ROWS, missing=(0, 2, 4, 6, 8, 50), invalid=(3, 79)) | (more or {})
    with jax.set_mesh(mesh):
        where = jax.tree.map(lambda leaf: leaf.sharding, state.abstract(training, mesh))
        current = jax.device_put(tiny.first_state(training), where)
        batch = sharding.to_devices(rows, mesh)
        train_step = build.jitted(
            step.train_step, training, out_shardings=(where, sharding.replicated(mesh))
        )
        compiled = train_step.lower(current, batch).compile()
        metrics = []
        for _ in range(3):
            current, found = compiled(current, batch)
            metrics.append(jax.device_get(found))
    return Done(metrics, current, compiled.as_text())


@pytest.mark.parametrize("name", [pytest.param("data", marks=pytest.mark.slow), "fsdp"])
def test_devices_change_neither_metrics_nor_parameters(training, run, name):
    one, many = run("one"), run(name)
    for wanted, found in zip(one.metrics, many.metrics, strict=True):
        for key, value in wanted.items():
            assert found[key] == pytest.approx(value, rel=2e-5), key
    start = tiny.first_state(training)
    for field in ("params", "ema", "opt_state"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            *(jax.device_get(getattr(done.state, field)) for done in (many, one)),
        )
    moved = jax.tree.map(
        lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), one.state.params, start.params
    )
    assert min(jax.tree.leaves(moved)) > 1e-4


def test_metrics_change_from_step_to_step(run):
    losses = [metrics["loss/total"] for metrics in run("one").metrics]
    assert len({float(loss) for loss in losses}) == 3


@pytest.mark.parametrize("name", ["data", "fsdp"])
def test_no_device_holds_the_activations_of_the_whole_batch(run, name):
    """Nothing of three axes or more, such as images or tokens, has all rows on one device."""
    whole = r"\b[a-z]+\d+\[(?:2,)?(?:80|40),(?:2,)?\d+,\d+[\d,]*\]"
    assert re.search(whole, run("one").text)
    assert set(re.findall(whole, run(name).text)) == set()


def test_the_state_stays_split_over_fsdp(run):
    after = run("fsdp").state
    kernels = 0
    for field in (after.params, after.ema, after.opt_state):
        for path, leaf in jax.tree_util.tree_leaves_with_path(field):
            part = 4 if jax.tree_util.keystr(path).endswith("['kernel']") else 1
            shards = leaf.addressable_shards
            assert {shard.data.size for shard in shards} == {leaf.size // part}, path
            assert len({str(shard.index) for shard in shards}) == part
            kernels += part > 1
    assert kernels > 3 * 9


def test_views_that_share_a_call_stay_on_their_devices():
    rows = sharding.to_devices({"image": np.zeros((80, 4, 4, 3), np.float32)}, sharding.make_mesh())

    def encode(a, b):
        return jnp.sin(interleaved(a, b)).reshape(-1, 2, *a.shape[1:])[:, 1]

    text = jax.jit(encode).lower(rows["image"], rows["image"]).compile().as_text()
    assert not re.search(r"all-gather|all-to-all|collective-permute|\[(80|160),", text)


def test_rows_with_labels_are_taken_and_encoded_where_they_are():
    rows = sharding.to_devices({"image": np.zeros((80, 4, 4, 3), np.float32)}, sharding.make_mesh())

    def encode(clean, puzzled):
        clean = order.Layout.of(80, 0.5).known(clean)
        return separated(jnp.sin(interleaved(clean, puzzled)), (40, 80))

    text = jax.jit(encode).lower(rows["image"], rows["image"]).compile().as_text()
    assert not re.search(r"all-gather|all-to-all|collective-permute|\[(40|80|120),", text)


def test_devices_change_nothing_where_few_rows_have_labels():
    config = tiny.config(ROWS, name="sgd", lr=0.1)
    config.data.update(labelled=0.5, unlabelled_share=0.5)
    config.pretexts = {"puzzle": recipe.pretext_task("puzzle", tiles=2)}
    config.augment.update(mixup=0.8)
    training = tiny.training(config)
    rows = {"labelled": training.layout.laid(np.arange(ROWS) < ROWS // 2)}
    one, many = (three_steps(training, name, rows) for name in ("one", "data"))
    assert one.metrics[0]["count/expression"] > 30
    for wanted, found in zip(one.metrics, many.metrics, strict=True):
        for key, value in wanted.items():
            assert found[key] == pytest.approx(value, rel=2e-5), key


@pytest.mark.parametrize(
    "weighting",
    [
        "dwa",
        pytest.param("gradnorm", marks=pytest.mark.slow),
        pytest.param("uncertainty", marks=pytest.mark.slow),
    ],
)
def test_devices_change_neither_batch_statistics_nor_what_a_weighting_learns(weighting):
    """Statistics of every view and micro-batch, and a task that one batch of two lacks."""
    config = tiny.config(ROWS, name="sgd", lr=0.1, ema=0.9, accumulate=2)
    config.pretexts = {"puzzle": recipe.pretext_task("puzzle", tiles=2, sizes=(16, 8))}
    config.stream, config.weighting.name, config.weighting.lr = "siamese", weighting, 0.05
    training = tiny.training(config)
    training = tiny.changed(training, model=training.program.model.clone(encoder=tiny.Normed()))
    batches = [tiny.batch(ROWS, missing=range(ROWS)), tiny.batch(ROWS, invalid=(3, 79))]
    done = {}
    for name in ("one", "data"):
        data, fsdp = MESHES[name]
        mesh = sharding.make_mesh(data, fsdp, jax.devices()[: data * fsdp])
        with jax.set_mesh(mesh), jax.numpy_dtype_promotion("standard"):
            where = jax.tree.map(lambda leaf: leaf.sharding, state.abstract(training, mesh))
            start = dataclasses.replace(
                tiny.first_state(training), task_weights=training.weighting.init()
            )
            current = jax.device_put(start, where)
            train_step = build.jitted(
                step.train_step, training, out_shardings=(where, sharding.replicated(mesh))
            )
            for batch in batches:
                current, metrics = train_step(current, sharding.to_devices(batch, mesh))
        done[name] = jax.device_get((current, metrics))
    (one, _), (many, metrics) = done["one"], done["data"]
    for field in ("params", "batch_stats", "ema", "task_weights"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            getattr(many, field), getattr(one, field),
        )  # fmt: skip
    for key, value in done["one"][1].items():
        assert metrics[key] == pytest.approx(value, rel=1e-4), key
    mean = one.batch_stats["encoder"]["norm"]["mean"]
    assert np.abs(mean).min() > 0.01
    changed = jax.tree.map(lambda a, b: np.any(a != b), one.task_weights, start.task_weights)
    assert any(jax.tree.leaves(changed))


##### Meshes, batches and the table of rules #####


def test_a_mesh_takes_all_devices():
    assert dict(sharding.make_mesh().shape) == {"data": 8, "fsdp": 1}
    assert dict(sharding.make_mesh(fsdp=4).shape) == {"data": 2, "fsdp": 4}
    assert dict(sharding.make_mesh(2, -1).shape) == {"data": 2, "fsdp": 4}
    one = sharding.make_mesh(devices=jax.devices()[3:4])
    assert dict(one.shape) == {"data": 1, "fsdp": 1}
    assert list(one.devices.flat) == jax.devices()[3:4]


@pytest.mark.parametrize("shape", [(3, 1), (-1, 3), (-1, -1), (0, 8), (8, 2), (-2, -4)])
def test_a_mesh_that_does_not_fit_is_refused(shape):
    with pytest.raises(UserError, match=r"mesh\.data=.* don't fit the 8 devices at hand"):
        sharding.make_mesh(*shape)


def test_a_batch_that_devices_do_not_divide_is_refused():
    mesh = sharding.make_mesh()
    sharding.check_batch(48, 2, mesh)
    with pytest.raises(UserError, match=r"batch_size 50 .* 8 devices .* multiple of 8, such as 48"):
        sharding.check_batch(50, 1, mesh)
    with pytest.raises(UserError, match=r"optim\.accumulate 4; .* multiple of 32, such as 32"):
        sharding.check_batch(40, 4, mesh)
    with pytest.raises(UserError, match="such as 8"):
        sharding.check_batch(0, 1, mesh)


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("/params/encoder/embed/kernel", (48, 16), PartitionSpec("fsdp", None)),
        ("/params/encoder/blocks/block00/fc1/kernel", (16, 64), PartitionSpec(None, "fsdp")),
        ("/opt_state/1/mu/encoder/blocks/scanned/kernel", (2, 8, 8), PartitionSpec(None, "fsdp")),
        ("/ema/encoder/positions_table", (65, 16), PartitionSpec(None, "fsdp")),
        ("/params/head/linear/kernel", (10, 7), PartitionSpec()),  # nothing that 4 divides
        ("/params/encoder/blocks/block00/fc1/bias", (64,), PartitionSpec()),
        ("/step", (), PartitionSpec()),
    ],
)
def test_the_table_of_rules(path, shape, spec):
    found = sharding.spec_for(path, shape, fsdp=4)
    pad = len(shape) - len(found)
    assert tuple(found) + (None,) * pad == tuple(spec) + (None,) * (len(shape) - len(spec))
    assert sharding.spec_for(path, shape, fsdp=1) == PartitionSpec()


def test_a_batch_is_split_over_both_axes():
    mesh = sharding.make_mesh(2, 4)
    rows = np.arange(16)
    batch = sharding.to_devices({"index": rows}, mesh)["index"]
    np.testing.assert_array_equal(batch, rows)
    assert [shard.data.tolist() for shard in batch.addressable_shards] == [
        [row, row + 1] for row in range(0, 16, 2)
    ]
    whole = jax.device_put(batch, sharding.replicated(mesh))
    assert {shard.data.shape for shard in whole.addressable_shards} == {(16,)}

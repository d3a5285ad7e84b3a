"""What a run would take: counted parts, collectives by hand, and a batch that fits and no more."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest

from hmtl_jax import build, plan, recipe, sharding, state, step
from hmtl_jax.errors import UserError
from tests import runs, tiny


def config(**changes):
    found = tiny.config(16)
    found.optim.weight_decay = 0.0
    with found.unlocked():
        found.data.data_dir = "nowhere"
        found.plan.labels = "expression=3"
        for key, value in changes.items():
            found.plan[key] = value
    return found


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam mixes a float with a counter
        yield


@pytest.fixture(scope="module")
def planned():
    """By mesh, the plan of the tiny recipe."""
    found, cfg = {}, config()
    data = plan.Data.of(cfg, plan.training_split(cfg))
    for name, shape in {"one": (1, 1), "data": (8, 1), "fsdp": (2, 4)}.items():
        mesh = sharding.make_mesh(*shape, jax.devices()[: shape[0] * shape[1]])
        with jax.set_mesh(mesh), jax.numpy_dtype_promotion("standard"):
            found[name] = plan.Planned.of(cfg, data, mesh, 16)
    return found


def test_parts_and_checkpoint_are_those_of_the_state(planned):
    training = tiny.training(config())
    abstract = jax.eval_shape(lambda: state.create(training))
    assert set(planned["one"].parts) == {"encoder", "heads_expression", "decoders_mae"}
    assert sum(planned["one"].parts.values()) == state.count(abstract.params)
    assert {of.checkpoint for of in planned.values()} == {state.nbytes(abstract)}
    assert planned["one"].steps == 10


def test_a_part_of_the_examples_has_its_own_steps_and_its_pictures_count_where_they_are_kept():
    cfg = config(examples=320)
    cfg.pretexts, cfg.steps, cfg.epochs, cfg.data.subset = {}, 0, 2.0, 0.5
    mesh = sharding.make_mesh(8, 1)
    with jax.set_mesh(mesh):
        anew = plan.Data.of(cfg, plan.training_split(cfg))
        assert anew.examples == 161  # of classes of 107, 107 and 106, each rounded
        found = plan.Planned.of(cfg, anew, mesh, 16)
        assert found.steps == 2 * (161 // 16)
        # A search beyond what there is finds what would fit.
        assert plan.Planned.of(cfg, anew, mesh, 512).steps == 2
        cfg.data.cache = "device"
        kept = plan.Data.of(cfg, plan.training_split(cfg))
        size = cfg.data.image_size
        assert kept.kept == 161 * size * size * 3 and anew.kept == 0
        there = plan.Planned.of(cfg, kept, mesh, 16).arguments
        assert there == found.arguments + kept.kept // 8


@pytest.mark.parametrize("subset", [1.0, 0.1, 0.03])
def test_labels_that_are_told_fill_a_batch_of_a_subset(subset):
    cfg = config(labels="expression=7")
    cfg.data.subset = subset
    assert plan.Data.of(cfg, plan.training_split(cfg)).examples >= cfg.batch_size


def test_a_device_of_eight_does_an_eighth_and_holds_less(planned):
    one, data, fsdp = (planned[name] for name in ("one", "data", "fsdp"))
    assert 0.1 < data.operations / one.operations < 0.3
    assert one.peak > data.peak > 0 and fsdp.arguments < data.arguments < one.arguments


def test_every_row_of_a_convolution_counts():
    """The step of a CNN takes three times the operations of its forward pass, on any platform."""
    cfg = config()
    cfg.model.encoder, cfg.data.image_size, cfg.pretexts = "cnn16", 48, {}
    with jax.set_mesh(mesh := sharding.make_mesh(1, 1, jax.devices()[:1])):
        found = plan.Planned.of(cfg, plan.Data.of(cfg, plan.training_split(cfg)), mesh, 16)
    model = tiny.training(cfg).program.model
    images = jax.ShapeDtypeStruct((16, 48, 48, 3), jnp.float32)
    variables = jax.eval_shape(tiny.training(cfg).program.init_model, jax.random.key(0))
    forward = jax.jit(functools.partial(model.apply, method="features")).trace(variables, images)
    assert 2.5 < found.operations / plan.operations(forward) < 3.5


def test_what_devices_send_each_other(planned):
    """Data-parallel devices sum gradients and gather nothing; fsdp gathers weights."""
    weights = 4 * sum(planned["data"].parts.values())
    assert planned["one"].sent == {}
    assert set(planned["data"].sent) == {"all-reduce"}
    assert 0.9 * weights < planned["data"].sent["all-reduce"] < 2.2 * weights
    assert planned["fsdp"].sent["all-gather"] > 0


@pytest.mark.parametrize(
    "encoder",
    [
        "32x2x2/8",
        "cnn16",
        pytest.param("resnet18-small", marks=pytest.mark.slow),
        pytest.param("efficientnet_b0-small", marks=pytest.mark.slow),
    ],
)
def test_fsdp_moves_weights_and_no_rows(encoder):
    """With four times the rows, devices send each other hardly more."""
    cfg = config()
    cfg.model.encoder, cfg.pretexts = encoder, {}
    data, mesh = plan.Data.of(cfg, plan.training_split(cfg)), sharding.make_mesh(1, 8)
    with jax.set_mesh(mesh), jax.numpy_dtype_promotion("standard"):
        few, many = (plan.Planned.of(cfg, data, mesh, rows).sent for rows in (16, 64))
    weights = few["all-gather"]
    assert weights > 0
    assert all(many[kind] - few.get(kind, 0) < 0.02 * weights for kind in many), (few, many)


def test_a_scan_over_blocks_gathers_the_weights_of_one_at_a_time():
    cfg = config()
    cfg.model.encoder, cfg.model.scan, cfg.pretexts = "32x3x2/8", True, {}
    mesh, rows = sharding.make_mesh(1, 8), 16
    with jax.set_mesh(mesh), jax.numpy_dtype_promotion("standard"):
        training = tiny.training(cfg)
        where = sharding.placed(jax.eval_shape(lambda: state.create(training)), mesh)
        batch = sharding.to_devices(tiny.batch(rows), mesh)
        text = build.jitted(step.train_step, training).lower(where, batch).compile().as_text()
    gathered = re.findall(r"= f32\[([\d,]+)\]\S* all-gather\(", text)
    assert "32,96" in gathered or "96,32" in gathered  # of qkv
    assert not [shape for shape in gathered if shape.startswith("3,") and shape.count(",") == 2]


def test_collectives_are_read_off_a_program():
    text = """
      %all-reduce.1 = (f32[4,3]{1,0}, bf16[10]{0}) all-reduce(%a, %b), replica_groups={}
      ROOT %ag = s32[] all-gather-start(%c)
      %name-of-all-reduce = f32[100]{0} add(%x, %y)
    """
    assert plan.collectives(text) == {"all-reduce": 4 * 12 + 2 * 10, "all-gather": 4}


@pytest.mark.slow
def test_the_largest_batch_fits_and_one_of_an_eighth_more_does_not():
    cfg = config(gib=0.02)
    cfg.pretexts = {}  # what a step holds is searched for in the same way
    data, mesh = plan.Data.of(cfg, plan.training_split(cfg)), sharding.make_mesh(8, 1)
    with jax.set_mesh(mesh):
        first = plan.Planned.of(cfg, data, mesh, 16)
        rows, needed = plan.largest_batch(cfg, data, mesh, first)
        assert rows % 8 == 0 and rows > 16
        assert needed == plan.Planned.of(cfg, data, mesh, rows).peak <= 0.02 * plan.GIB
        more = -(-rows * 9 // 8 // 8) * 8
        assert plan.Planned.of(cfg, data, mesh, more).peak > 0.02 * plan.GIB
        cfg.plan.gib = 1e-6
        assert plan.largest_batch(cfg, data, mesh, first)[0] == 0


def test_what_is_counted_once_is_said(planned):
    cfg = config()
    mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
    assert "counted once" not in "".join(plan.text(cfg, planned["one"], mesh))
    cfg.optim.accumulate, cfg.model.scan = 2, True
    (line,) = (line for line in plan.text(cfg, planned["one"], mesh) if "GFLOP" in line)
    assert line.endswith("(a scanned block and a micro-batch counted once)")


@pytest.mark.slow
def test_the_job_says_it_and_leaves_nothing(tiny_data, tmp_path):
    found = runs.config(tiny_data, job="plan")
    printed = runs.run(found, tmp_path / "run")
    assert [line.split("  ")[0] for line in printed] == [
        "parameters", "batch", "a step, a device", "memory, a device", "between devices",
        "checkpoint",
    ]  # fmt: skip
    assert f"{runs.STEPS} steps" in printed[1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("labels", ["expression", "expression:8", "=3", "a=b", "expression=8,,"])
def test_labels_that_are_not_told_well_are_refused(labels):
    assert "write LABEL=CLASSES" in tiny.refused(plan.training_split, config(labels=labels))


def test_missing_data_may_be_told(tmp_path):
    found = config(labels="")
    found.data.data_dir = str(tmp_path)
    assert "--config.plan.labels=expression=8" in tiny.refused(plan.training_split, found)


def test_told_labels_make_every_kind_of_task():
    found = config(labels="expression=3,expression_soft=3,valence=0,head=3,units=12,fake=2")
    found.tasks = {
        "expression": recipe.task("classification", label="expression", soft=True),
        "affect": recipe.task("regression", labels=("valence",)),
        "pose": recipe.task("pose", labels=("head",)),
        "units": recipe.task("multilabel", labels=("units",)),
        "fake": recipe.task("binary", label="fake"),
    }
    told = plan.training_split(found)
    assert told.column("expression").tolist() == [index % 3 for index in range(32)]
    shapes = {label: told.column(label).shape[1:] for label in told.labels}
    assert shapes == dict.fromkeys(("expression", "valence", "fake"), ()) | {
        "expression_soft": (3,),
        "head": (3,),
        "units": (12,),
    }
    assert build.TrainingData(told, told.column("expression")).classes("valence") == ()
    made = build.make_tasks(found, told)
    assert {name: task.num_outputs for name, task in made.items()} == {
        "expression": 3, "affect": 1, "pose": 6, "units": 12, "fake": 1,
    }  # fmt: skip


def test_more_devices_than_this_process_has_are_refused():
    with pytest.raises(UserError, match="has 8 devices already"):
        plan.pretended(9)
    assert len(plan.pretended(4)) == 4 and len(plan.pretended(0)) == 8

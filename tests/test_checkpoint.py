"""What stays of a run's checkpoints, what they restore onto, and what damaged ones say."""

import dataclasses
import logging
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hmtl_jax import checkpoint, recipe, sharding
from hmtl_jax.errors import UserError
from hmtl_jax.state import TrainState, with_encoder

BEST = "expression/accuracy"


def config(lr=0.1):
    found = recipe.defaults()
    found.optim.lr = lr
    return found


def tree(encoder=(4, 8), layers=2, seed=0):
    """Parameters of an encoder with `layers` kernels, of a head and of a decoder."""
    numbers = np.random.default_rng(seed)

    def kernel(*shape):
        return {"kernel": jnp.asarray(numbers.normal(size=shape), jnp.float32)}

    return {
        "encoder": {f"block{i}": kernel(*encoder) for i in range(layers)},
        "heads_expression": kernel(encoder[1], 3),
        "decoders_mae": {"first": kernel(encoder[1], 5), "last": kernel(5, 7)},
    }


def state(step=0, ema=True, **shape):
    params = tree(**shape)
    return TrainState(
        seed=jnp.uint32(0),
        step=jnp.int32(step),
        params=params,
        batch_stats={},
        opt_state=(jax.tree.map(jnp.zeros_like, params), jnp.int32(step)),
        ema={"params": jax.tree.map(lambda x: x + 1, params), "batch_stats": {}} if ema else {},
        task_weights={},
        frozen={},
    )


def meta(step, lr=0.1):
    return {
        "step": step,
        "data": {"step": step},
        "clock": {"images": 8 * step, "seconds": 0.5},
        "recipe": recipe.flat(config(lr)),
    }


def abstract(of, mesh):
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        of,
        sharding.tree_shardings(of, mesh),
    )


def save(folder, scores, keep=2, **shape):
    """Checkpoints of steps 1, 2, … with these scores; returns their manager, still open."""
    found = checkpoint.Checkpoints(folder, keep, best=BEST)
    for step, score in enumerate(scores, start=1):
        found.save(state(step, seed=step, **shape), meta(step), score)
    found.wait()
    return found


def with_encoder_of(path, before):
    """The state with the encoder of a run, and the paths taken and left."""
    ours = {"params": before.params["encoder"]} if "encoder" in before.params else {}
    found, taken, left = checkpoint.load_encoder(pathlib.Path(path), ours)
    return with_encoder(before, found), taken, left


def kept(folder):
    return sorted(int(path.name) for path in folder.iterdir())


def equal(ours, theirs):
    return jax.tree.all(jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), ours, theirs))


##### What stays #####


@pytest.mark.parametrize(
    "scores, keep, stay, best",
    [
        ([0.1, 0.9, 0.3, 0.2], 1, [2, 4], 2),
        ([0.1, 0.9, 0.3, 0.9], 1, [4], 4),  # the newest of equals
        ([0.9, 0.1, 0.3, None], 2, [1, 3, 4], 1),  # the last was not evaluated
        ([-3.0, -1.0, -2.0], 1, [2, 3], 2),
        ([None, None, None], 2, [2, 3], None),
    ],
)
def test_the_last_and_the_best_stay(tmp_path, scores, keep, stay, best):
    found = save(tmp_path, scores, keep)
    assert (found.latest(), found.best_step()) == (len(scores), best)
    found.close()
    assert kept(tmp_path) == stay
    again = checkpoint.Checkpoints(tmp_path, keep, best=BEST)
    assert (again.latest(), again.best_step()) == (len(scores), best)
    again.close()


def test_nothing_is_latest_at_first(tmp_path):
    found = checkpoint.Checkpoints(tmp_path / "new", 1)
    assert (found.latest(), found.best_step()) == (None, None)
    found.close()


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    save(tmp_path, [0.1, 0.2]).close()
    (tmp_path / "3.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    found = checkpoint.Checkpoints(tmp_path, 2)
    assert found.latest() == 2
    found.close()
    checkpoint.remove_partial(tmp_path)
    assert kept(tmp_path) == [1, 2]


##### Restoring #####


@pytest.mark.parametrize("fsdp", [1, 4, 8])
def test_restores_bit_for_bit_onto_other_devices(tmp_path, fsdp):
    found = save(tmp_path, [0.1])
    mesh = sharding.make_mesh(fsdp=fsdp)
    restored = found.restore(1, abstract(state(), mesh))
    found.close()
    assert equal(restored, state(1, seed=1))
    kernel = restored.params["encoder"]["block0"]["kernel"]
    assert len(kernel.sharding.device_set) == 8
    assert kernel.addressable_shards[0].data.size * fsdp == kernel.size


def test_sharded_state_restores_onto_one_layout_or_another(tmp_path):
    mesh = sharding.make_mesh(fsdp=4)
    sharded = jax.device_put(state(1), sharding.tree_shardings(state(1), mesh))
    found = checkpoint.Checkpoints(tmp_path, 1)
    found.save(sharded, meta(1), None)
    found.wait()
    assert equal(found.restore(1, abstract(state(), sharding.make_mesh(fsdp=1))), state(1))
    found.close()


def test_meta_is_what_was_saved(tmp_path):
    found = save(tmp_path, [0.1])
    assert found.meta(1) == meta(1)
    found.close()


@pytest.mark.parametrize("name", ["with#hash", "with?mark", "with%20pct", "ä b"])
def test_a_path_may_hold_any_sign(tmp_path, name):
    found = save(tmp_path / name, [0.1])
    assert found.meta(1) == meta(1)
    assert equal(found.restore(1, abstract(state(), sharding.make_mesh())), state(1, seed=1))
    found.close()


def test_a_score_of_another_metric_does_not_count(tmp_path):
    save(tmp_path, [0.9, 0.1], keep=2).close()
    other = checkpoint.Checkpoints(tmp_path, 2, best="expression/nll")
    assert (other.latest(), other.best_step()) == (2, None)
    other.save(state(3), meta(3), -5.0)
    other.save(state(4), meta(4), -4.0)
    other.wait()
    assert other.best_step() == 4
    other.close()
    assert checkpoint.chosen(tmp_path, "expression/nll") == (4, "the best by expression/nll")
    assert checkpoint.chosen(tmp_path, "other/nll") == (4, "the last")
    assert checkpoint.chosen(tmp_path / "none", "") is None


@pytest.mark.parametrize("fsdp", [1, 4])
@pytest.mark.parametrize("ema", [True, False])
def test_evaluation_reads_what_it_uses_and_nothing_else(tmp_path, monkeypatch, ema, fsdp):
    save(tmp_path, [0.1], ema=ema).close()
    asked = []
    load = checkpoint.ocp.load

    def spy(path, tree):
        asked.append(jax.tree.leaves(tree))
        return load(path, tree)

    monkeypatch.setattr(checkpoint.ocp, "load", spy)
    found = checkpoint.load_variables(tmp_path / "1", sharding.make_mesh(fsdp=fsdp))
    wanted = state(1, seed=1, ema=ema)
    wanted = wanted.ema or {"params": wanted.params, "batch_stats": {}}
    assert equal(found, wanted)
    assert (
        found["params"]["encoder"]["block0"]["kernel"].addressable_shards[0].data.size == 32 // fsdp
    )
    read = [leaf for leaf in asked[0] if leaf is not checkpoint.ocp.PLACEHOLDER]
    assert len(read) == len(jax.tree.leaves(wanted)) < len(asked[0])


##### Damage #####


def truncate(path):
    for file in path.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    "part, damage",
    [
        ("state", shutil.rmtree),
        ("state/_METADATA", truncate),
        ("state/_METADATA", lambda path: path.unlink()),
        ("state/manifest.ocdbt", lambda path: path.unlink()),
        ("state/d", shutil.rmtree),
        ("state/d", truncate),
        ("_CHECKPOINT_METADATA", lambda path: path.unlink()),
        ("_CHECKPOINT_METADATA", lambda path: path.write_bytes(path.read_bytes()[:100])),
        ("metrics", truncate),
        ("", truncate),
    ],
)
def test_a_checkpoint_cut_short_is_one_sentence(tmp_path, part, damage, caplog):
    save(tmp_path, [0.1, 0.2]).close()
    target = tmp_path / "2" / part
    if damage is truncate and target.is_file():
        target.write_bytes(target.read_bytes()[: target.stat().st_size // 2])
    else:
        damage(target)
    caplog.clear()
    with pytest.raises(UserError) as caught:
        found = checkpoint.Checkpoints(tmp_path, 2, best=BEST)
        step = found.latest()
        found.meta(step)
        found.restore(step, abstract(state(), sharding.make_mesh()))
    text = str(caught.value)
    assert "is damaged or cut short (" in text
    if part in ("", "metrics"):  # damage that keeps the whole list from being read
        assert text.startswith(f"A checkpoint in {tmp_path} is damaged")
        assert "move the folder of that step away, most likely the newest" in text
    else:
        assert text.startswith(f"The checkpoint {tmp_path / '2'} is damaged")
        assert "move that folder away to go on from the one before it" in text
    assert "\n" not in text
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    # And that mend helps.
    shutil.rmtree(tmp_path / "2")
    again = checkpoint.Checkpoints(tmp_path, 2, best=BEST)
    assert equal(again.restore(again.latest(), abstract(state(), sharding.make_mesh())),
                 state(1, seed=1))  # fmt: skip
    again.close()


def test_an_older_checkpoint_that_was_half_deleted_is_no_hindrance(tmp_path):
    save(tmp_path, [0.1, 0.2, 0.3], keep=3).close()
    shutil.rmtree(tmp_path / "1" / "state")
    (tmp_path / "1" / "_CHECKPOINT_METADATA").unlink()
    found = checkpoint.Checkpoints(tmp_path, 2, best=BEST)
    assert (found.latest(), found.best_step()) == (3, 3)
    found.save(state(4), meta(4), 0.4)
    found.close()
    assert kept(tmp_path) == [3, 4]


##### The encoder of another run #####


def newest(folder, **shape):
    """A folder of checkpoints; the one of step 1."""
    save(folder, [0.5], **shape).close()
    return folder / "1"


def test_init_from_takes_the_encoders_average_and_nothing_else(tmp_path):
    before = state(0, seed=9)
    after, taken, left = with_encoder_of(newest(tmp_path), before)
    theirs = state(1, seed=1).ema["params"]["encoder"]
    assert equal(after.params["encoder"], theirs)
    assert equal(after.ema["params"]["encoder"], theirs)
    for name in ("heads_expression", "decoders_mae"):
        assert equal(after.params[name], before.params[name])
        assert equal(after.ema["params"][name], before.ema["params"][name])
    assert equal(after.opt_state, before.opt_state)
    assert int(after.step) == 0
    assert taken == ["encoder/block0/kernel", "encoder/block1/kernel"]
    assert left == [
        "decoders_mae/first/kernel",
        "decoders_mae/last/kernel",
        "heads_expression/kernel",
    ]


def test_init_from_takes_the_weights_where_no_average_is_kept(tmp_path):
    after, _, _ = with_encoder_of(newest(tmp_path, ema=False), state(0, seed=9, ema=False))
    assert equal(after.params["encoder"], state(1, seed=1).params["encoder"])
    assert after.ema == {}


def test_the_taken_encoder_lives_where_ours_did_and_may_be_donated(tmp_path):
    mesh = sharding.make_mesh(fsdp=4)
    before = jax.device_put(state(0), sharding.tree_shardings(state(0), mesh))
    after, _, _ = with_encoder_of(newest(tmp_path), before)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.sharding, b.sharding), after, before)
    doubled = jax.jit(lambda s: jax.tree.map(lambda x: x * 2, s), donate_argnums=0)(after)
    wanted = 2 * np.asarray(state(1, seed=1).ema["params"]["encoder"]["block0"]["kernel"])
    np.testing.assert_array_equal(doubled.params["encoder"]["block0"]["kernel"], wanted)


@pytest.mark.parametrize(
    "theirs, said",
    [
        ({"encoder": (4, 16)}, r"2 arrays differ: block0/kernel \(4, 16\) → \(4, 8\); block1"),
        ({"layers": 1}, r"1 arrays differ: block1/kernel none → \(4, 8\)"),
        ({"layers": 3}, r"1 arrays differ: block2/kernel \(4, 8\) → none"),
    ],
)
def test_an_encoder_of_another_shape_is_refused(tmp_path, theirs, said):
    with pytest.raises(UserError, match=said):
        with_encoder_of(newest(tmp_path, **theirs), state(0))


def test_a_state_without_encoder_is_refused(tmp_path):
    found = checkpoint.Checkpoints(tmp_path, 1)
    bare = dataclasses.replace(state(1), params={"other": jnp.zeros(3)}, ema={})
    found.save(bare, meta(1), None)
    found.close()
    with pytest.raises(UserError, match=r"holds no encoder, only \['other'\]"):
        with_encoder_of(tmp_path / "1", state(0))


def test_paths_are_grouped_by_their_first_two_parts():
    paths = ["encoder/cls", "encoder/blocks/0/kernel", "encoder/blocks/1/kernel", "head/kernel"]
    assert checkpoint.grouped(paths) == "encoder/blocks (2), encoder/cls, head/kernel"

"""DrLoc: distances between pairs of cells of the clean view's last feature map."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hmtl_jax import recipe, state, step
from hmtl_jax.errors import UserError
from hmtl_jax.models.decoders import PairHeads
from hmtl_jax.pretext.drloc import DrLoc
from hmtl_jax.view import View
from tests import tiny

BATCH, SIZE = 4, 16


def keys(count=BATCH):
    return jax.random.split(jax.random.key(0), count)


def test_offsets_are_those_of_the_named_cells(images_bhwc):
    ((view, target),) = DrLoc(4, SIZE, pairs=200).views(keys(), images_bhwc)
    first, second = np.split(np.asarray(view.keep), 2, axis=1)
    rows = np.abs(first // 4 - second // 4) / 4
    columns = np.abs(first % 4 - second % 4) / 4
    np.testing.assert_allclose(target["offset"], np.stack([rows, columns], -1))
    assert set(np.unique(view.keep)) == set(range(16))
    assert (np.asarray(view.keep)[0] != np.asarray(view.keep)[1]).any()


def test_the_network_reads_the_features_of_its_cells():
    rng = np.random.default_rng(0)
    patches = jnp.asarray(rng.normal(size=(2, 3, 3, 5)), jnp.float32)
    keep = jnp.asarray([[0, 8, 4, 4], [1, 2, 3, 5]], jnp.int32)
    model, view = PairHeads(7), View(jnp.zeros((2, 12, 12, 3)), keep)
    variables = model.init(jax.random.key(0), {"patches": patches}, view, train=False)
    found = model.apply(variables, {"patches": patches}, view, train=True)
    cells = np.asarray(patches).reshape(2, 9, 5)
    p = variables["params"]
    for row, (a, b) in ((0, (0, 4)), (1, (2, 5))):
        x = np.concatenate([cells[row, a], cells[row, b]])
        for name in ("hidden0", "hidden1"):
            x = np.maximum(x @ p[name]["kernel"] + p[name]["bias"], 0)
        at = 0 if row == 0 else 1
        wanted = x @ p["predict"]["kernel"] + p["predict"]["bias"]
        np.testing.assert_allclose(found[row, at], wanted, atol=1e-5)


def test_loss_is_the_mean_absolute_error_and_skill_counts_from_the_mean():
    pretext = DrLoc(4, SIZE, pairs=64)
    ((_, target),) = pretext.views(keys(64), jnp.zeros((64, SIZE, SIZE, 3)))
    offset = target["offset"]
    np.testing.assert_allclose(
        pretext.losses(offset + 0.25, target, None)["offset"], 0.25, rtol=1e-5
    )
    for output, wanted in ((offset, 1.0), (jnp.broadcast_to(offset.mean((0, 1)), offset.shape), 0)):
        own, constant = pretext.skill(output, target, jnp.ones(64))["offset"]
        assert 1 - float(own.sum() / constant.sum()) == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("encoder", ["16x2x2/4", "cnn24"])
def test_it_costs_no_pass_of_the_encoder(encoder):
    config = tiny.config(8, name="sgd")
    config.data.image_size, config.model.encoder = 32, encoder
    config.pretexts = {"drloc": recipe.pretext_task("drloc", weight=0.1, pairs=8, dim=8)}
    config.weighting.name = "fixed"
    training = tiny.training(config)
    current = state.create(training)
    calls = []
    encoder_class = type(training.program.model.encoder)
    plain = encoder_class.__call__

    def counted(self, *args, **kwargs):
        calls.append(args[0].shape)
        return plain(self, *args, **kwargs)

    batch = tiny.batch(8) | {"image": np.zeros((8, 32, 32, 3), np.uint8)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder_class, "__call__", counted)
        _, metrics = jax.eval_shape(functools.partial(step.train_step, training), current, batch)
    assert {shape[0] for shape in calls} == {8} and "loss/drloc" in metrics
    assert set(current.params) == {"encoder", "heads_expression", "decoders_drloc"}


def test_it_can_stand_alone():
    config = tiny.config(8, name="sgd")
    config.tasks = {}
    config.pretexts = {"drloc": recipe.pretext_task("drloc", pairs=8, dim=8)}
    config.weighting.name = "fixed"
    training = tiny.training(config)
    _, metrics = jax.jit(functools.partial(step.train_step, training))(
        state.create(training), tiny.batch(8)
    )
    assert metrics["loss/drloc"] > 0 and np.isfinite(metrics["skill/drloc"])


def test_one_cell_and_a_stream_of_its_own_are_refused():
    with pytest.raises(UserError, match=r"pretexts\.drloc: the last feature map .* is one cell"):
        DrLoc(16, 16)
    config = tiny.config(8)
    config.pretexts = {"drloc": recipe.pretext_task("drloc")}
    config.stream = "one_stream"
    with pytest.raises(UserError, match=r"pretexts\.drloc has no view of its own .* stream to"):
        tiny.training(config)

"""One encoder for every view: views of equal shape share its call, and none mixes with another."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hmtl_jax.models.heads import LinearHead
from hmtl_jax.models.hybrid import Hybrid
from hmtl_jax.view import View
from tests import reference


class Encoder(nn.Module):
    """Stages that tell whose image and which patches they come from; reports its calls."""

    called: Callable

    @nn.compact
    def __call__(self, images_bhwc, keep_bk=None, *, train=False):
        self.called((images_bhwc.shape, None if keep_bk is None else keep_bk.shape))
        self.param("seen", nn.initializers.zeros, (1,), jnp.float32)
        stages = {"pooled": images_bhwc[:, 0, 0], "tokens": images_bhwc.reshape(-1, 16, 3)}
        if keep_bk is not None:
            stages["tokens"] = keep_bk
        return stages


class Decoder(nn.Module):
    """Returns what it is given, and fails where it should not be asked."""

    allowed: bool = True

    @nn.compact
    def __call__(self, stages, view, *, train):
        assert self.allowed, "evaluation ran a decoder"
        self.param("bias", nn.initializers.zeros, (1,), jnp.float32)
        return {"tokens": stages["tokens"], "keep": view.keep}


def hybrid(calls: list, **decoders):
    return Hybrid(
        encoder=Encoder(calls.append),
        heads={"expression": LinearHead(5)},
        decoders=decoders,
        reads={"expression": ("clean",)},
    )


def view(seed, kept=None, batch=2):
    rng = np.random.default_rng(seed)
    images = jnp.asarray(rng.uniform(size=(batch, 4, 4, 3)), jnp.float32)
    if kept is None:
        return View(images)
    return View(images, jnp.asarray(rng.integers(0, 16, (batch, kept)), jnp.int32))


@pytest.fixture(scope="module")
def variables():
    views = {"clean": view(0), "a": view(1, 3), "b": view(2, 3)}
    return hybrid([], a=Decoder(), b=Decoder()).init(jax.random.key(0), views)


def test_views_of_equal_shape_share_a_call_and_keep_their_rows(variables):
    calls: list = []
    model = hybrid(calls)
    views = {
        "clean": view(0), "a": view(1, 3), "b": view(2, 3), "c": view(3, 5), "puzzled": view(4),
    }  # fmt: skip
    encode = lambda views: model.apply(variables, views, method="encode")  # noqa: E731
    together = encode(views)
    image = (4, 4, 4, 3)
    assert sorted(calls, key=str) == sorted(
        [(image, None), (image, (4, 3)), ((2, 4, 4, 3), (2, 5))], key=str
    )
    assert set(together) == set(views)
    for name, one in views.items():
        alone = encode({name: one})[name]
        assert set(alone) == set(together[name])
        for stage, value in alone.items():
            np.testing.assert_array_equal(together[name][stage], value)


def test_views_of_fewer_rows_share_the_call_too(variables):
    calls: list = []
    views = {"clean": view(0, batch=4), "a": view(1, batch=6), "b": view(2, 3, batch=6)}
    encode = lambda views: hybrid(calls).apply(variables, views, method="encode")  # noqa: E731
    together = encode(views)
    assert sorted(calls, key=str) == sorted(
        [((10, 4, 4, 3), None), ((6, 4, 4, 3), (6, 3))], key=str
    )
    for name, one in views.items():
        for stage, value in encode({name: one})[name].items():
            np.testing.assert_array_equal(together[name][stage], value)


def test_the_encoder_reads_normalised_images(variables):
    stages = hybrid([]).apply(variables, {"clean": view(0)}, method="encode")["clean"]
    wanted = reference.normalise(np.asarray(view(0).images, np.float64))[:, 0, 0]
    np.testing.assert_allclose(stages["pooled"], wanted, rtol=1e-5)


def test_each_decoder_reads_the_view_of_its_name(variables):
    views = {"clean": view(0), "a": view(1, 3), "b": view(2, 3)}
    outputs = hybrid([], a=Decoder(), b=Decoder()).apply(variables, views, train=True)
    for name in ("a", "b"):
        np.testing.assert_array_equal(outputs[name][name]["tokens"], views[name].keep)
        np.testing.assert_array_equal(outputs[name][name]["keep"], views[name].keep)


def test_evaluation_on_the_clean_view_touches_no_decoder(variables):
    params = {k: v for k, v in variables["params"].items() if not k.startswith("decoders")}
    assert set(params) == {"encoder", "heads_expression"}
    model = hybrid([], a=Decoder(allowed=False), b=Decoder(allowed=False))
    outputs = model.apply({"params": params}, {"clean": view(0)})["clean"]
    assert set(outputs) == {"expression"} and outputs["expression"].shape == (2, 5)
    # The views that a fused head reads are no reason to decode them either.
    views = {"clean": view(0), "a": view(1, 3)}
    assert set(model.apply({"params": params}, views, decode=False)["a"]) == set()


def test_a_head_whose_view_is_not_given_does_not_run(variables):
    outputs = hybrid([], a=Decoder()).apply(variables, {"a": view(1, 3)}, train=True)
    assert set(outputs) == {"a"} and set(outputs["a"]) == {"a"}


def test_a_head_runs_on_every_view_that_it_reads(variables):
    model = hybrid([], a=Decoder()).clone(reads={"expression": ("a",)})
    views = {"clean": view(0), "a/0": view(1, 3), "a/1": view(2, 3), "b": view(2, 3)}
    outputs = model.apply(variables, views, train=True)
    assert {name: set(found) for name, found in outputs.items()} == {
        "clean": {"expression"},
        "a/0": {"a", "expression"},
        "a/1": {"a", "expression"},
        "b": set(),
    }
    alone = hybrid([]).apply(variables, {"clean": views["a/1"]})["clean"]["expression"]
    np.testing.assert_array_equal(outputs["a/1"]["expression"], alone)


def test_head_drops_out_in_training_alone_and_returns_f32():
    stages = {"pooled": jnp.ones((64, 8))}
    head = LinearHead(3, dropout=0.5, dtype=jnp.bfloat16)
    variables = head.init(jax.random.key(0), stages, train=False)
    calm, again = (head.apply(variables, stages, train=False) for _ in range(2))
    np.testing.assert_array_equal(calm, again)
    assert calm.dtype == jnp.float32 and len(np.unique(np.asarray(calm), axis=0)) == 1
    shaken = head.apply(variables, stages, train=True, rngs={"dropout": jax.random.key(1)})
    assert len(np.unique(np.asarray(shaken), axis=0)) > 32

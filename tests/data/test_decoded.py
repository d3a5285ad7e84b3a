"""Batches of a split that is decoded once: the very ones that are read anew, on host and device."""

import jax
import numpy as np
import pytest

from hmtl_jax import build, errors, sharding, train
from hmtl_jax.data import decoded, pipeline
from tests import runs
from tests.data.test_pipeline import Records, assert_equal, evaluation, take
from tests.data.test_pipeline import train as batches_of

OPTIONS = [
    {},
    {"subset": 0.5, "stratify": "expression"},
    {"labelled": 0.5, "stratify": "expression", "unlabelled_share": 0.25},
    {"labelled": 0.5, "pictures": Records(6)},
    {"process_index": 1, "process_count": 2},
    {"tolerate_corrupt": True, "batch_size": 8},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_kept_pictures_make_the_very_batches(options):
    source = Records(30, damaged=(5, 6) if "tolerate_corrupt" in options else ())
    anew = take(batches_of(source, **options), 9)
    assert_equal(take(batches_of(source, cache="host", **options), 9), anew)

    on_device = batches_of(source, cache="device", **options)
    pictures = on_device.take_images()
    assert pictures.dtype == np.uint8
    found = take(on_device, 9)
    assert {name: (len(b), *b.shape[1:]) for name, b in found[0].items()} == {
        name: shape for name, (shape, _) in on_device.abstract(len(found[0]["index"])).items()
    }
    for batch in found:
        batch["image"] = pictures[batch["image"]]
    assert_equal(found, anew)


@pytest.mark.parametrize("cache", ["host", "device"])
def test_a_position_is_taken_over(cache):
    source = Records(11)
    whole = take(batches_of(source), 7)
    kept = batches_of(source, cache=cache)
    pictures = kept.take_images() if cache == "device" else None
    kept.set_state({"step": 4})
    found = take(kept, 3)
    if pictures is not None:
        found = [{**batch, "image": pictures[batch["image"]]} for batch in found]
    assert_equal(found, whole[4:])


def test_a_picture_is_decoded_once(monkeypatch):
    seen, real = [], pipeline.decode.decode
    monkeypatch.setattr(pipeline.decode, "decode", lambda *given: seen.append(1) or real(*given))
    source = Records(12)
    take(batches_of(source, cache="host"), 9)
    assert len(seen) == 12
    kept = evaluation(source, keep=True)
    first = list(kept)
    assert len(seen) == 24
    assert_equal(list(kept), first)
    assert len(seen) == 24


def test_a_corrupt_picture_is_named_before_training():
    with pytest.raises(errors.UserError, match="Record 'face-005'"):
        batches_of(Records(8, damaged=(5,)), cache="host")


def test_too_little_memory_is_told(monkeypatch):
    monkeypatch.setattr(decoded, "free_memory", lambda: 1000)
    with pytest.raises(errors.UserError, match="host's memory has 0"):
        batches_of(Records(8), cache="host")


def test_the_host_tells_its_memory():
    free = decoded.free_memory()
    assert free is not None and 1e7 < free < 1e14


@pytest.mark.parametrize("data, fsdp", [(8, 1), (2, 4), (1, 1)])
def test_rows_on_devices_are_taken_as_on_the_host(data, fsdp):
    mesh = sharding.make_mesh(data, fsdp, jax.devices()[: data * fsdp])
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (21, 4, 4, 3), np.uint8)
    index_b = rng.integers(0, 21, 16).astype(np.int32)
    with jax.set_mesh(mesh):
        placed = sharding.rows_to_devices(rows, mesh)
        given = sharding.to_devices({"image": index_b}, mesh)["image"]
        found = jax.jit(sharding.taken)(placed, given)
    assert len({shard.data.shape for shard in placed.addressable_shards}) == 1
    assert found.sharding.is_equivalent_to(given.sharding, 4)
    np.testing.assert_array_equal(found, rows[index_b])


@pytest.mark.slow
def test_a_run_equals_one_that_reads_anew(tiny_data, compile_cache, tmp_path):
    """On eight devices, every line of metrics, evaluations of validation among them."""
    found = {}
    for cache in ("none", "host", "device"):
        config = runs.config(tiny_data, supervised=True, epochs=2.0, data__cache=cache)
        runs.run(config, tmp_path / cache)
        found[cache] = runs.metrics(tmp_path / cache)
    assert found["none"] == found["host"] == found["device"]


def test_a_device_without_room_is_told(tiny_data, monkeypatch):
    class Full:
        device_kind = "Tiny 1"

        def memory_stats(self):
            return {"bytes_limit": 2_000_000, "bytes_in_use": 1_999_000}

    config = runs.config(tiny_data, data__cache="device")
    source = train.open_splits(config)["train"]
    batches = train.train_batches(config, source, build.make_tasks(config, source))

    class Mesh:
        local_devices, size = [Full()], 1

    with pytest.raises(errors.UserError, match="the device Tiny 1 has 0"):
        train.pictures_on_devices(config, batches, Mesh())

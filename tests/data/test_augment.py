"""Crop, flip, erasing and the evaluation transform against Pillow, NumPy and their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hmtl_jax.data import augment as aug
from hmtl_jax.errors import UserError
from hmtl_jax.images import IMAGENET_MEAN, IMAGENET_STD, denormalise, normalise

AUGMENT = jax.jit(aug.augment, static_argnums=2)
RESAMPLE = jax.jit(aug.resample, static_argnums=3)
TO_FLOAT = jax.jit(aug.to_float, static_argnums=1)


def pictures(batch=8, height=40, width=40, seed=0):
    """Smooth blobs with noise on top: something a resampling error would show on."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    phase = rng.uniform(0, 6, (batch, 1, 1, 3))
    waves = np.sin(9 * y[None, :, :, None] + phase) * np.cos(7 * x[None, :, :, None] - phase)
    noisy = 127 + 90 * waves + rng.normal(0, 15, (batch, height, width, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def pillow_resize(image_u8, box, size):
    """Pillow's float bilinear of one box [top, left, height, width], by channel, in [0, 1]."""
    top, left, height, width = (float(v) for v in box)
    edges = (left, top, left + width, top + height)
    planes = [PIL.Image.fromarray(image_u8[..., c].astype(np.float32)) for c in range(3)]
    resized = [p.resize((size, size), PIL.Image.Resampling.BILINEAR, box=edges) for p in planes]
    return np.stack([np.asarray(p) for p in resized], axis=-1) / 255


def draw_boxes(count, height, width, scale, ratio, seed=0):
    keys = jax.random.split(jax.random.key(seed), count)
    draw = jax.vmap(lambda key: aug.crop_box(key, (height, width), scale, ratio))
    return np.asarray(jax.jit(draw)(keys))


def test_everything_off_is_the_evaluation_transform():
    images = pictures()
    view, flipped = AUGMENT(jax.random.key(0), images, aug.Augment(image_size=40))
    assert view.dtype == jnp.float32 and not flipped.any()
    np.testing.assert_array_equal(view, images.astype(np.float32) * np.float32(1 / 255))


@pytest.mark.parametrize("size", [17, 40, 64])
def test_off_resizes_as_pillow_does(size):
    images = pictures(batch=2, height=40, width=52)
    view, _ = AUGMENT(jax.random.key(0), images, aug.Augment(image_size=size))
    expected = [pillow_resize(image, (0, 0, 40, 52), size) for image in images]
    np.testing.assert_allclose(view, expected, atol=2e-6)


@pytest.mark.parametrize("size", [16, 40, 56])
def test_crop_contents_equal_pillow(size):
    images = pictures(batch=12, height=40, width=52)
    boxes = draw_boxes(12, 40, 52, (0.1, 1.0), (0.5, 2.0))
    flipped = np.arange(12) % 2 == 1
    crops = RESAMPLE(images, boxes, flipped, size)
    for image, box, mirror, crop in zip(images, boxes, flipped, crops, strict=True):
        expected = pillow_resize(image, box, size)
        expected = expected[:, ::-1] if mirror else expected
        np.testing.assert_allclose(crop, expected, atol=1e-4)


def test_a_crop_of_full_scale_and_ratio_one_is_the_resize():
    images = pictures()
    boxes = draw_boxes(8, 40, 40, (1.0, 1.0), (1.0, 1.0))
    crops = RESAMPLE(images, boxes, np.zeros(8, bool), 24)
    np.testing.assert_allclose(crops, TO_FLOAT(images, 24), atol=1e-6)


def test_boxes_lie_inside_and_fill_the_asked_ranges():
    boxes = draw_boxes(4000, 60, 80, (0.2, 0.9), (3 / 4, 4 / 3))
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= 60 + 1e-3).all() and (left + width <= 80 + 1e-3).all()
    area, ratio = height * width / 4800, width / height
    assert 0.2 - 1e-4 <= area.min() < 0.21 and 0.88 < area.max() <= 0.9 + 1e-4
    assert 3 / 4 - 1e-4 <= ratio.min() < 0.76 and 1.31 < ratio.max() <= 4 / 3 + 1e-4
    small = area < 0.4  # boxes that always fit are drawn without rejection
    np.testing.assert_allclose(area[small].mean(), 0.3, atol=0.01)
    np.testing.assert_allclose(np.log(ratio[small]).mean(), 0.0, atol=0.02)


def test_a_box_that_cannot_fit_becomes_the_central_one():
    boxes = draw_boxes(5, 30, 100, (1.0, 1.0), (3 / 4, 4 / 3))
    np.testing.assert_allclose(boxes, np.tile([0, 30, 30, 40], (5, 1)), atol=1e-4)


@pytest.mark.parametrize("crop_scale", [(1.0, 1.0), (0.3, 1.0)])
def test_a_flip_is_the_mirror_of_the_unflipped_view(crop_scale):
    images, rng = pictures(), jax.random.key(3)
    straight, none = AUGMENT(rng, images, aug.Augment(40, crop_scale=crop_scale))
    mirrored, every = AUGMENT(rng, images, aug.Augment(40, crop_scale=crop_scale, flip=1.0))
    assert every.all() and not none.any()
    np.testing.assert_array_equal(mirrored, np.flip(straight, axis=2))


def test_flip_is_drawn_per_example_with_its_probability():
    images = pictures(batch=2000, height=4, width=4)
    view, flipped = AUGMENT(jax.random.key(1), images, aug.Augment(4, flip=0.25))
    assert abs(flipped.mean() - 0.25) < 0.03
    expected = np.where(np.asarray(flipped)[:, None, None, None], images[:, :, ::-1], images)
    np.testing.assert_array_equal(view, expected.astype(np.float32) * np.float32(1 / 255))


def test_normalise_is_the_formula_and_denormalise_undoes_it():
    images = TO_FLOAT(pictures(), 40)
    normal = normalise(images)
    mean, std = np.float32(IMAGENET_MEAN), np.float32(IMAGENET_STD)
    np.testing.assert_allclose(normal, (np.asarray(images) - mean) / std, atol=1e-6)
    np.testing.assert_allclose(denormalise(normal), images, atol=1e-6)


def test_float_images_are_refused():
    with pytest.raises(TypeError, match="uint8"):
        aug.to_float(jnp.zeros((1, 4, 4, 3)), 4)


def erased(count=3000, size=40, probability=1.0):
    """Erases flat images of a value that noise never takes; returns (views, changed pixels)."""
    flat = jnp.full((size, size, 3), 0.123)
    keys = jax.random.split(jax.random.key(2), count)
    views = jax.jit(jax.vmap(lambda key: aug.erase(key, flat, probability)))(keys)
    return np.asarray(views), np.asarray((views != 0.123).any(-1))


def test_erasing_replaces_one_rectangle_and_nothing_else():
    _, changed = erased()
    rows, columns = changed.any(2), changed.any(1)
    np.testing.assert_array_equal(changed, rows[:, :, None] & columns[:, None, :])
    for line in (rows, columns):  # no gap: it rises and falls once
        assert (np.abs(np.diff(line.astype(int), axis=1)).sum(1) <= 2).all()


def test_erased_areas_and_aspects_fill_their_ranges():
    _, changed = erased()
    heights, widths = changed.any(2).sum(1), changed.any(1).sum(1)
    area = heights * widths / 1600
    assert 0.015 < area.min() < 0.03 and 0.31 < area.max() < 0.35  # edges are whole pixels
    small = area < 0.2  # of such area every aspect fits, so none is drawn again
    assert abs(area[small].mean() - 0.11) < 0.005
    aspect = np.log(heights / widths)
    assert abs(aspect[small].mean()) < 0.05
    assert -1.45 < aspect.min() < -1.0 and 1.0 < aspect.max() < 1.45  # ln 3.33 is 1.2
    assert changed[:, 0].any() and changed[:, -1].any()
    assert changed[:, :, 0].any() and changed[:, :, -1].any()


def test_erasing_has_its_probability_and_draws_noise_per_pixel():
    views, changed = erased(probability=0.25)
    assert abs(changed.any((1, 2)).mean() - 0.25) < 0.03
    noise = views[changed]
    np.testing.assert_allclose(noise.mean(0), IMAGENET_MEAN, atol=0.01)
    np.testing.assert_allclose(noise.std(0), IMAGENET_STD, atol=0.015)
    correlation = np.corrcoef(noise[:-1, 0], noise[1:, 0])[0, 1]
    assert abs(correlation) < 0.02 and abs(np.corrcoef(noise.T)[0, 1]) < 0.02


SETTINGS = {
    "crop": aug.Augment(32, crop_scale=(0.2, 1.0)),
    "flip": aug.Augment(32, flip=0.5),
    "randaugment": aug.Augment(40, randaugment=(2, 9)),
    "color_jitter": aug.Augment(40, color_jitter=(0.4, 0.4, 0.4, 0.1)),
    "erasing": aug.Augment(40, erasing=0.5),
    "all": aug.Augment(
        32,
        crop_scale=(0.2, 1.0),
        flip=0.5,
        color_jitter=(0.4, 0.4, 0.4, 0.1),
        randaugment=(2, 9),
        erasing=0.5,
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_views_are_in_range_repeat_with_the_key_and_differ_between_examples(name):
    images = np.repeat(pictures(batch=1), 16, axis=0)
    view, _ = AUGMENT(jax.random.key(5), images, SETTINGS[name])
    again, _ = AUGMENT(jax.random.key(5), images, SETTINGS[name])
    other, _ = AUGMENT(jax.random.key(6), images, SETTINGS[name])
    size = SETTINGS[name].image_size
    assert view.shape == (16, size, size, 3) and view.dtype == jnp.float32
    assert view.min() >= 0 and view.max() <= 1
    np.testing.assert_array_equal(view, again)
    assert not np.array_equal(view, other)
    assert len(np.unique(np.asarray(view).reshape(16, -1), axis=0)) > 1


def test_switching_one_part_on_leaves_the_draws_of_the_others():
    images, rng = pictures(), jax.random.key(4)
    crop = {"crop_scale": (0.2, 1.0), "flip": 0.5}
    alone, flipped = AUGMENT(rng, images, aug.Augment(32, **crop))
    with_erasing, same_flipped = AUGMENT(rng, images, aug.Augment(32, erasing=1.0, **crop))
    np.testing.assert_array_equal(flipped, same_flipped)
    kept = np.isclose(alone, with_erasing, atol=1e-6).all(-1)
    assert (kept.mean((1, 2)) > 0.6).all() and (kept.mean((1, 2)) < 1).all()


def test_jitter_and_randaugment_of_no_strength_change_nothing():
    images = pictures()
    plain = TO_FLOAT(images, 40)
    still = AUGMENT(jax.random.key(0), images, aug.Augment(40, color_jitter=(0, 0, 0, 0)))[0]
    np.testing.assert_array_equal(still, plain)
    none = AUGMENT(jax.random.key(0), images, aug.Augment(40, randaugment=(0, 9)))[0]
    np.testing.assert_array_equal(none, plain)


@pytest.mark.parametrize("name", SETTINGS)
def test_sharding_does_not_change_the_values(name):
    images = pictures(batch=16)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    spread = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
    whole, flipped = AUGMENT(jax.random.key(5), images, SETTINGS[name])
    parts, parts_flipped = AUGMENT(jax.random.key(5), spread, SETTINGS[name])
    assert len(parts.sharding.device_set) == 8
    # A value is a chain of some thirty float32 operations on numbers near 1, which processors with
    # other vector units fuse in other ways: thirty times their rounding. A grey level is 0.004.
    np.testing.assert_allclose(parts, whole, rtol=0, atol=32 * np.finfo(np.float32).eps)
    np.testing.assert_array_equal(parts_flipped, flipped)


@pytest.mark.parametrize(
    "bad",
    [
        {"image_size": 0},
        {"crop_scale": (0.0, 1.0)},
        {"crop_scale": (0.9, 0.5)},
        {"crop_ratio": (-1.0, 1.0)},
        {"flip": 1.5},
        {"color_jitter": (0.1, 0.1, 0.1, 0.6)},
        {"color_jitter": 0.4},
        {"randaugment": (2, 11)},
        {"randaugment": (2.0, 9)},
        {"erasing": -0.1},
        {"mixup": float("nan")},
        {"cutmix": -1.0},
    ],
)
def test_a_value_out_of_range_is_refused_by_name(bad):
    with pytest.raises(UserError, match=f"augment.{next(iter(bad))} is .*; give "):
        aug.Augment(**({"image_size": 32} | bad))


def test_a_recipe_from_json_gives_the_same_hashable_settings():
    assert hash(aug.Augment(32, randaugment=[2, 9])) == hash(aug.Augment(32, randaugment=(2, 9)))

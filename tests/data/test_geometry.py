"""Moved crops against SciPy's interpolation, and what each strength may reach."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from hmtl_jax.data import augment as aug
from hmtl_jax.data import geometry

AUGMENT = jax.jit(aug.augment, static_argnums=2)
SAMPLE = jax.jit(geometry.sample, static_argnames=("size", "samples"))
STILL = geometry.Movement(jnp.eye(2), jnp.zeros(2))


def picture(height=40, width=40):
    y, x = np.mgrid[:height, :width].astype(np.float32)
    waves = [np.sin(y / 5 + c) * np.cos(x / 4 - c) for c in range(3)]
    return (0.5 + 0.4 * np.stack(waves, -1)).astype(np.float32)


def moved(angle=0.0, slope=0.0, factor=1.0, shift=(0.0, 0.0)):
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = factor * turn @ np.array([[1.0, 0.0], [slope, 1.0]])
    return geometry.Movement(jnp.float32(matrix), jnp.float32(shift))


@pytest.mark.parametrize(
    "movement",
    [moved(angle=0.4), moved(slope=0.3), moved(factor=0.7), moved(0.3, -0.2, 1.2, (0.1, -0.15))],
)
def test_a_moved_picture_is_scipys_affine_transform(movement):
    image = picture()
    whole = jnp.float32([0, 0, 40, 40])
    found = SAMPLE(image, whole, jnp.bool_(False), movement, size=40, samples=1)
    matrix = np.asarray(movement.matrix, np.float64)
    offset = 19.5 - matrix @ (19.5, 19.5) + 40 * np.asarray(movement.shift, np.float64)
    for channel in range(3):
        wanted = ndimage.affine_transform(
            image[..., channel], matrix, offset, order=1, mode="nearest"
        )
        np.testing.assert_allclose(found[..., channel], wanted, atol=1e-5)


def test_a_box_that_does_not_move_is_the_crop():
    image = (picture(30, 44) * 255).astype(np.uint8)
    box = jnp.float32([2.5, 7.25, 20, 20])
    unit = jnp.float32(image) / 255
    for flipped in (False, True):
        found = SAMPLE(unit, box, jnp.bool_(flipped), STILL, size=20, samples=1)
        wanted = aug.resample(image[None], box[None], jnp.array([flipped]), 20)[0]
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_picture_that_shrinks_is_averaged_and_not_skipped_over():
    stripes = np.zeros((64, 64, 3), np.float32)
    stripes[:, ::2] = 1.0
    samples = geometry.samples_a_side(64 / 16)
    whole = jnp.float32([0, 0, 64, 64])
    found = SAMPLE(stripes, whole, jnp.bool_(False), STILL, size=16, samples=samples)
    np.testing.assert_allclose(found, 0.5, atol=1e-5)


def test_strengths_are_drawn_up_to_their_limits():
    cfg = aug.Augment(8, rotation=30.0, shear=0.2, zoom=0.25, shift=0.1)
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.jit(jax.vmap(lambda key: geometry.draw(key, cfg)))(keys)
    matrix, shift = np.asarray(drawn.matrix), np.asarray(drawn.shift)
    factor = np.sqrt(np.linalg.det(matrix))
    assert 0.75 <= factor.min() < 0.76 and 1.24 < factor.max() <= 1.25
    # A shear of columns by rows leaves the second basis vector turned alone.
    angle = np.degrees(np.arctan2(-matrix[:, 0, 1], matrix[:, 1, 1]))
    assert -30 <= angle.min() < -29.5 and 29.5 < angle.max() <= 30.001
    turned = matrix / factor[:, None, None]
    slope = np.einsum("ni,ni->n", turned[:, :, 0], turned[:, :, 1])
    assert -0.201 < slope.min() < -0.19 and 0.19 < slope.max() < 0.201
    assert np.abs(shift).max() <= 0.1 and (np.abs(shift).max(0) > 0.099).all()
    for values in (angle / 30, slope / 0.2, shift[:, 0] / 0.1, shift[:, 1] / 0.1):
        assert abs(values.mean()) < 0.05 and abs(values.std() - 3**-0.5) < 0.02


def test_movements_are_each_pictures_own_and_mirrored_with_it():
    images = np.repeat((picture() * 255).astype(np.uint8)[None], 4, 0)
    cfg = aug.Augment(40, rotation=20.0, shift=0.1, crop_scale=(0.5, 1.0))
    mirrored = aug.Augment(40, rotation=20.0, shift=0.1, crop_scale=(0.5, 1.0), flip=1.0)
    straight, _ = AUGMENT(jax.random.key(1), images, cfg)
    turned, flipped = AUGMENT(jax.random.key(1), images, mirrored)
    assert flipped.all() and np.ptp(np.asarray(straight), axis=0).max() > 0.1
    np.testing.assert_allclose(turned, np.flip(straight, axis=2), atol=1e-5)
    assert straight.min() >= 0 and straight.max() <= 1

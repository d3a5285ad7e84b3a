"""Head pose: rotations are SciPy's, losses are those of their papers, mirrors mirror."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from hmtl_jax import errors
from hmtl_jax.data import synthetic_scene
from hmtl_jax.tasks import pose
from hmtl_jax.tasks.pose import Pose

NAN = np.nan


def angles(n=200, limit=(89, 170, 170), seed=0):
    """Yaw, pitch, roll in degrees [n, 3]."""
    share = np.random.default_rng(seed).uniform(-1, 1, (n, 3))
    return (share * limit).astype(np.float32)


def scipy_rotation(angles_n3):
    return Rotation.from_euler("xyz", np.asarray(angles_n3, np.float64)[:, [1, 0, 2]], degrees=True)


def of_6d(matrix_n33):
    """The first two columns, as 6 numbers."""
    return np.concatenate([matrix_n33[:, :, 0], matrix_n33[:, :, 1]], axis=1)


def test_matrices_are_scipys():
    ours = pose.matrix_of_euler(jnp.asarray(angles()))
    np.testing.assert_allclose(ours, scipy_rotation(angles()).as_matrix(), atol=1e-6)


def test_angles_survive_the_round_trip():
    found = pose.euler_of_matrix(pose.matrix_of_euler(jnp.asarray(angles())))
    np.testing.assert_allclose(found, angles(), atol=2e-3)


@pytest.mark.parametrize("yaw", [90.0, -90.0])
def test_gimbal_lock_keeps_the_rotation(yaw):
    locked = jnp.array([[yaw, 20.0, 35.0]])
    matrix = pose.matrix_of_euler(locked)
    again = pose.matrix_of_euler(pose.euler_of_matrix(matrix))
    np.testing.assert_allclose(again, matrix, atol=2e-3)


def test_gram_schmidt_returns_a_rotation_and_finds_its_own_columns():
    vectors = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32) * 3
    matrix = np.asarray(pose.matrix_of_6d(jnp.asarray(vectors)), np.float64)
    np.testing.assert_allclose(
        matrix @ matrix.transpose(0, 2, 1), np.tile(np.eye(3), (50, 1, 1)), atol=1e-5
    )
    np.testing.assert_allclose(np.linalg.det(matrix), 1, atol=1e-5)
    exact = scipy_rotation(angles(50)).as_matrix()
    scaled = of_6d(exact) * 2.5
    np.testing.assert_allclose(
        pose.matrix_of_6d(jnp.asarray(scaled, jnp.float32)), exact, atol=1e-6
    )


def test_geodesic_is_scipys_angle():
    one, two = angles(300), angles(300, seed=1)
    two[:20] = one[:20] + 0.01
    expected = (scipy_rotation(one).inv() * scipy_rotation(two)).magnitude()
    ours = pose.geodesic(
        pose.matrix_of_euler(jnp.asarray(one)), pose.matrix_of_euler(jnp.asarray(two))
    )
    np.testing.assert_allclose(ours, expected, atol=3e-6)


@pytest.mark.parametrize("turn", [0.0, 180.0])
def test_geodesic_has_a_finite_gradient_where_that_of_the_arc_cosine_has_none(turn):
    task, target = Pose(), jnp.array([[turn, 0.0, 0.0]])
    gradient = jax.grad(lambda x: task.loss(x, target, jnp.ones(1))[0])
    assert np.isfinite(gradient(jnp.array([[1.0, 0, 0, 0, 1, 0]]))).all()
    assert np.isfinite(gradient(jnp.zeros((1, 6)))).all()


def test_the_6d_loss_is_the_geodesic_of_the_predicted_angles():
    task, outputs = Pose(), np.random.default_rng(2).normal(size=(30, 6)).astype(np.float32)
    truth = angles(30, (60, 40, 40))
    target, mask = task.target({k: jnp.asarray(truth[:, i]) for i, k in enumerate(task.labels)})
    losses = np.asarray(task.loss(jnp.asarray(outputs), target, mask))
    predicted = np.asarray(task.predict(jnp.asarray(outputs)))
    apart = (scipy_rotation(predicted).inv() * scipy_rotation(truth)).magnitude()
    np.testing.assert_allclose(losses, apart, atol=1e-4)
    assert task.num_outputs == 6 and task.mixes is False


def test_hopenets_loss_in_float64():
    task = Pose(("pose",), representation="bins", alpha=0.5)
    logits = np.random.default_rng(3).normal(size=(5, 198)).astype(np.float32)
    truth = np.array([[0, 1, 2], [99, -99, 3], [-4, 4, 98.9], [-0.1, 0.1, 50], [7, 8, 9]], "f")
    target, mask = task.target({"pose": jnp.asarray(truth)})
    losses = task.loss(jnp.asarray(logits), target, mask)
    centres = np.arange(-97.5, 99, 3)
    edges = np.arange(-99, 100, 3)
    for row in range(5):
        expected = 0.0
        for axis in range(3):
            x = logits[row].reshape(3, 66)[axis].astype(np.float64)
            p = np.exp(x) / np.exp(x).sum()
            place = min(np.digitize(truth[row, axis], edges) - 1, 65)
            assert abs(centres[place] - truth[row, axis]) <= 1.5 + 1e-4
            expected += -np.log(p[place]) + 0.5 * (p @ centres - truth[row, axis]) ** 2
        assert losses[row] == pytest.approx(expected, rel=1e-4)
    assert task.num_outputs == 198


def test_bins_predict_the_expectation():
    logits = np.full((1, 3, 66), -1e3, np.float32)
    logits[0, [0, 1, 2], [0, 33, 65]] = 0
    predicted = Pose(representation="bins").predict(jnp.asarray(logits.reshape(1, 198)))
    np.testing.assert_allclose(predicted, [[-97.5, 1.5, 97.5]], atol=1e-4)


def test_missing_and_out_of_range_rows_are_masked_and_finite():
    truth = np.array([[1, 2, 3], [NAN, 2, 3], [120, 0, 0]], np.float32)
    for representation, expected in (("6d", [1, 0, 1]), ("bins", [1, 0, 0])):
        task = Pose(("pose",), representation=representation)
        target, mask = task.target({"pose": jnp.asarray(truth)})
        assert mask.tolist() == expected and np.isfinite(target).all()


def test_a_mirror_negates_yaw_and_roll_as_mirroring_the_space_does():
    task, truth = Pose(("pose",)), jnp.asarray(angles(40))
    flipped = np.asarray(task.flip(truth, jnp.arange(40) % 2 == 0))
    np.testing.assert_array_equal(flipped[::2], np.asarray(truth)[::2] * [-1, 1, -1])
    np.testing.assert_array_equal(flipped[1::2], np.asarray(truth)[1::2])
    mirror = np.diag([-1.0, 1, 1])
    mirrored = mirror @ scipy_rotation(truth).as_matrix() @ mirror
    ours = pose.matrix_of_euler(task.flip(truth, jnp.ones(40, bool)))
    np.testing.assert_allclose(ours, mirrored, atol=1e-6)


def test_distances_are_those_of_the_synthetic_heads():
    """The renderer's convention may differ by axes, but not in how far two poses are apart."""
    one, two = angles(60, (50, 28, 28)), angles(60, (50, 28, 28), seed=1)
    drawn = [Rotation.from_matrix(synthetic_scene.rotation(*rows.T)) for rows in (one, two)]
    ours = pose.geodesic(*(pose.matrix_of_euler(jnp.asarray(rows)) for rows in (one, two)))
    np.testing.assert_allclose(ours, (drawn[0].inv() * drawn[1]).magnitude(), atol=1e-5)


def test_metrics_read_one_vector_or_three_numbers():
    truth = angles(20)
    apart = dict(zip(("yaw", "pitch", "roll"), truth.T, strict=True))
    found = Pose().metrics(truth + 1, apart)
    assert found == Pose(("pose",)).metrics(truth + 1, {"pose": truth})
    assert found["mae"] == pytest.approx(1, abs=1e-4) and found["n"] == 20


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"representation": "bin"}, "Did you mean 'bins'"),
        ({"alpha": -1.0}, "alpha is -1.0; give a weight"),
        ({"labels": ("x",), "names": ("pitch", "yaw", "roll")}, "hold pitch, yaw, roll; name"),
    ],
)
def test_unusable_settings_are_named(settings, words):
    with pytest.raises(errors.UserError, match=words):
        Pose(**settings)

"""Faces cut out of pictures, and turned upright by five points."""

import cv2
import numpy as np
import pytest

from hmtl_jax.data import decode, detect, faces
from hmtl_jax.errors import UserError
from tests.data.prepared import keys, picture, read, refusal


def face(turned, side, shift, size=240):
    """A grey picture with a white dot at each of the template's points, moved; and the points."""
    angle = np.radians(turned)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = (faces.TEMPLATE - 0.5) * side @ turn.T + shift
    image = np.full((size, size, 3), 60, np.uint8)
    for x, y in points:
        cv2.circle(image, (round(x), round(y)), max(2, round(side / 40)), (255, 255, 255), -1)
    return image, points


def dots(image_hwc):
    """The middles of the white dots, those above and on the left first."""
    white = (image_hwc[..., 0] > 160).astype(np.uint8)
    count, _, _, middles = cv2.connectedComponentsWithStats(white)
    assert count == 6
    return middles[1:][np.argsort(middles[1:, 1].round(-1) * 1000 + middles[1:, 0])]


@pytest.mark.parametrize("turned, side", [(0, 112), (25, 100), (-40, 150), (170, 60), (10, 200)])
def test_five_points_meet_the_template(turned, side):
    image, points = face(turned, side, (118.0, 121.0))
    aligned = faces.align(image, points, 112)
    wanted = faces.TEMPLATE * 112
    wanted = wanted[np.argsort(wanted[:, 1].round(-1) * 1000 + wanted[:, 0])]
    np.testing.assert_allclose(dots(aligned), wanted, atol=1.2)
    assert aligned.shape == (112, 112, 3)


def test_points_that_do_not_fit_meet_it_as_nearly_as_a_similarity_can():
    """Against SciPy's own least squares over scale, angle and shift."""
    from scipy.optimize import least_squares

    rng = np.random.default_rng(0)
    points = faces.TEMPLATE * 90 + rng.normal(0, 4, (5, 2)) + (20, 30)
    target = faces.TEMPLATE * 64

    def moved(p, at=points):
        scale, angle, x, y = p
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        return at @ turn.T + (x, y)

    best = least_squares(lambda p: (moved(p) - target).ravel(), (0.7, 0.0, 0.0, 0.0)).x
    image = np.full((240, 240, 3), 60, np.uint8)
    place = (70.0, 60.0)
    cv2.circle(image, (70, 60), 3, (255, 255, 255), -1)
    aligned = faces.align(image, points, 64)
    rows, columns = np.nonzero(aligned[..., 0] > 120)
    np.testing.assert_allclose(
        (columns.mean(), rows.mean()), moved(best, np.array([place]))[0], atol=0.7
    )


def test_points_in_one_place_are_refused():
    with pytest.raises(UserError, match="all in one place"):
        faces.align(np.zeros((8, 8, 3), np.uint8), np.ones((5, 2)), 8)


def blobs(image_hwc):
    """A stand-in for a detector: the box and the dots of a picture that has any."""
    white = np.argwhere(image_hwc[..., 0] > 160)
    if len(white) < 20:
        return None
    (top, left), (bottom, right) = white.min(0), white.max(0)
    return detect.Face((float(left), float(top), float(right), float(bottom)), dots(image_hwc))


@pytest.mark.parametrize("align", [False, True])
def test_own_pictures_are_cut_by_a_detector_and_those_without_a_face_are_listed(
    tmp_path, monkeypatch, align
):
    monkeypatch.setattr(detect, "YuNet", lambda weights: blobs)
    rng = np.random.default_rng(0)
    for index in range(12):
        image, _ = face(0, 90 + index, rng.uniform(100, 140, 2))
        path = tmp_path / "mine" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image)
    cv2.imwrite(str(tmp_path / "mine" / "a" / "none.png"), np.full((50, 50, 3), 60, np.uint8))
    options = {"detector": "yunet.onnx", "image_size": 64, "align": align}
    found = read("folder", tmp_path / "mine", tmp_path / "data", **options)
    assert sum(len(rows) for rows in found.values()) == 12
    assert not any("a/none.png" in keys(found, split) for split in found)
    listed = tmp_path / "data" / "folder" / "1.0.0" / "pictures_without_a_face.txt"
    assert listed.read_text() == "a/none.png (a/none.png): no face was found\n"
    for record in found["train"]:
        image = decode.decode(record["image"])
        assert max(image.shape[:2]) <= 64
        if align:
            wanted = faces.TEMPLATE * 64
            assert abs(dots(image).mean(0) - wanted.mean(0)).max() < 1


def test_alignment_wants_a_detector_and_a_size(tmp_path):
    picture(tmp_path / "mine" / "a" / "0.jpg", 0)
    assert "by the points of a detector, to a square of --image_size" in refusal(
        "folder", tmp_path / "mine", align=True
    )

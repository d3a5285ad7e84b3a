"""Readers of head poses: 300W-LP, AFLW2000 and BIWI."""

import math

import cv2
import numpy as np
import scipy.io
from scipy.spatial import transform

from hmtl_jax.data import decode
from hmtl_jax.data.readers import biwi, pose_mats, w300_lp
from tests.data.prepared import keys, picture, read, refusal


def mat(path, pitch, yaw, roll, points=((30.0, 30.0), (70.0, 60.0)), name="pt2d", **more):
    """A MATLAB file with angles in degrees, stored in radians, as the authors have them."""
    angles = np.radians([[pitch, yaw, roll, 0, 0, 0, 1e-3]])
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {"Pose_Para": angles, name: np.array(points).T, **more})


def lp_tree(root):
    """Twelve photographs of three turns each, some mirrored."""
    for part in w300_lp.PARTS:
        for photograph in range(3):
            for turn in range(3):
                stem = root / part / f"{part}_{photograph}_1_{turn}"
                seed = (w300_lp.PARTS.index(part), photograph, turn)
                picture(stem.with_suffix(".jpg"), *seed, size=(100, 100))
                mat(stem.with_suffix(".mat"), -10 * turn, 50 * turn, 5)
                flipped = root / f"{part}_Flip" / stem.name
                picture(flipped.with_suffix(".jpg"), *seed, 1, size=(100, 100))
                mat(flipped.with_suffix(".mat"), -10 * turn, -50 * turn, -5)
    (root / "Code").mkdir()
    return root


def test_300w_lp_keeps_a_photograph_in_one_split(tmp_path, capsys):
    source = lp_tree(tmp_path / "source" / "300W_LP").parent
    found = read("300w_lp", source, tmp_path / "data", validation=0.2, test=0.2)
    photographs = [{w300_lp.photograph(key) for key in keys(found, split)} for split in found]
    assert sum(map(len, photographs)) == 12 == len(set().union(*photographs))
    assert "Left out: 12 faces with an angle beyond 99 degrees." in capsys.readouterr().out
    for record in found["train"]:
        turn = int(record["key"][-1])
        np.testing.assert_allclose(record["pose"], [50 * turn, -10 * turn, 5], atol=1e-4)
        # Of a box of 40 x 30: 40 * 1.12 ** 2 wide with k = 0.2, 30 * 1.8 * 1.24 high with 0.4.
        side = decode.decode(record["image"]).shape[0]
        assert 50 <= side <= 67
    both = read(
        "300w_lp", source, tmp_path / "both", validation=0.2, test=0.2, mirrored=True
    )  # fmt: skip
    assert sum(map(len, both.values())) == 2 * sum(map(len, found.values()))
    together = [{w300_lp.photograph(key) for key in keys(both, split)} for split in both]
    assert together == photographs


def test_the_margins_are_those_of_hopenet():
    """Its own lines, on one box: left, then right of what is wider by then."""
    k, (left, top, right, bottom) = 0.25, (10.0, 20.0, 50.0, 70.0)
    left -= 0.6 * k * abs(right - left)
    top -= 2 * k * abs(bottom - top)
    right += 0.6 * k * abs(right - left)
    bottom += 0.6 * k * abs(bottom - top)
    margins = pose_mats.Margins(0.6, 0.2, 0.4, lambda name: 0.25)
    assert margins.around((10.0, 20.0, 50.0, 70.0), "any") == (left, top, right, bottom)


def aflw_tree(root):
    points = ((30.0, 30.0, 0.0), (70.0, 60.0, 9.0))
    for index in range(4):
        stem = root / f"image{index:05d}"
        picture(stem.with_suffix(".jpg"), index, size=(100, 100))
        more = {"pt2d": np.array([[-1.0, 70.0], [-1.0, 60.0]])}
        mat(stem.with_suffix(".mat"), -index, 40 * index, 2, points, "pt3d_68", **more)
    return root


def test_aflw2000_has_a_test_split_alone(tmp_path, capsys):
    source = aflw_tree(tmp_path / "AFLW2000")
    found = read("aflw2000", source.parent, tmp_path / "data")
    assert list(found) == ["test"] and len(found["test"]) == 3
    for index, record in enumerate(found["test"]):
        np.testing.assert_allclose(record["pose"], [40 * index, -index, 2], atol=1e-4)
    assert "Left out: 1 faces with an angle beyond 99 degrees." in capsys.readouterr().out
    wide = read("aflw2000", source, tmp_path / "wide", points="pt2d")
    sides = [decode.decode(one["test"][0]["image"]).shape[0] for one in (found, wide)]
    assert sides[1] > 1.5 * sides[0]  # HopeNet's code takes the -1 of a hidden point for a place


def test_the_samples_of_aflw2000_are_read_as_they_are(shared_data, tmp_path):
    """Angles against the rotation that SciPy makes of the same numbers; and the face is whole."""
    source = shared_data / "formats" / "aflw2000_samples"
    found = read("aflw2000", source, tmp_path / "data", image_size=0)["test"]
    paths = sorted(source.glob("*.mat"))
    by_key = {record["key"]: record for record in found}
    for path in paths:
        pitch, yaw, roll = scipy.io.loadmat(path)["Pose_Para"][0, :3]
        if max(abs(pitch), abs(yaw), abs(roll)) > math.radians(99):
            assert path.stem not in by_key
            continue
        expected = transform.Rotation.from_euler("xyz", [pitch, yaw, roll]).as_matrix()
        yaw, pitch, roll = by_key[path.stem]["pose"].astype(float)
        ours = transform.Rotation.from_euler("xyz", [pitch, yaw, roll], degrees=True).as_matrix()
        np.testing.assert_allclose(ours, expected, atol=1e-6)
    assert len(found) >= 12


def test_a_mirrored_sample_of_300w_lp_turns_yaw_and_roll(shared_data, tmp_path):
    source = shared_data / "formats" / "300w_lp_samples"
    found = read("300w_lp", source, tmp_path / "data", validation=0, test=0, mirrored=True)
    poses = {record["key"]: record["pose"] for record in found["train"]}
    for key, (yaw, pitch, roll) in poses.items():
        part, name = key.split("/")
        if not part.endswith("_Flip"):
            mirrored = poses[f"{part}_Flip/{name}"]
            np.testing.assert_allclose(mirrored, [-yaw, pitch, -roll], atol=3)
    assert len(poses) == 8


def test_mats_with_something_wrong(tmp_path):
    source = aflw_tree(tmp_path / "source")
    file = source / "image00001.mat"
    scipy.io.savemat(file, {"pt3d_68": np.zeros((3, 68))})
    assert "image00001.mat lacks Pose_Para, as numbers; it holds pt3d_68." in refusal(
        "aflw2000", source
    )
    scipy.io.savemat(file, {"Pose_Para": np.array([[np.nan, 0, 0]]), "pt3d_68": np.ones((3, 68))})
    assert "Pose_Para does not begin with three angles" in refusal("aflw2000", source)
    scipy.io.savemat(file, {"Pose_Para": "pitch", "pt3d_68": np.ones((3, 68))})
    assert "lacks Pose_Para, as numbers" in refusal("aflw2000", source)
    file.write_bytes(b"MATLAB, or not")
    assert "image00001.mat is damaged, or no MATLAB file" in refusal("aflw2000", source)
    file.unlink()
    assert "image00001.mat is missing" in refusal("aflw2000", source)
    (tmp_path / "empty").mkdir()
    assert "should hold imageNNNNN.jpg and .mat" in refusal("aflw2000", tmp_path / "empty")
    assert "should hold the folders AFW, HELEN" in refusal("300w_lp", tmp_path / "empty")
    assert "should hold the folders 01 to 24" in refusal("biwi", tmp_path / "empty")


FOCAL, MIDDLE = 517.7, (320.0, 240.5)


def biwi_tree(root, recordings=10):
    """A white head of 100 mm on dark noise, at known places and turned by known angles."""
    for number in range(1, recordings + 1):
        folder = root / f"{number:02d}"
        folder.mkdir(parents=True)
        camera = f"{FOCAL} 0 {MIDDLE[0]} \n0 {FOCAL} {MIDDLE[1]} \n0 0 1 \n\n0 0 0 0 \n\n"
        (folder / "rgb.cal").write_text(camera + "1 0 0 \n0 1 0 \n0 0 1 \n\n-25 0 0 \n\n640 480\n")
        for frame in range(3):
            centre = np.array([20.0 * frame - 30, 10.0 * number - 40, 900.0 + 50 * frame])
            angles = [5.0 * frame, 10.0 - 5 * number, 3.0]  # pitch, yaw, roll
            turned = transform.Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
            rng = np.random.default_rng((number, frame))
            image = rng.integers(0, 60, (480, 640, 3)).astype(np.uint8)
            u, v = (FOCAL * centre[:2] / centre[2] + MIDDLE).round().astype(int)
            cv2.circle(image, (int(u), int(v)), round(FOCAL * 50 / centre[2]), (255, 255, 255), -1)
            cv2.imwrite(str(folder / f"frame_{frame:05d}_rgb.png"), image)
            rows = "\n".join(" ".join(map(str, row)) for row in turned)
            words = " ".join(map(str, centre))
            (folder / f"frame_{frame:05d}_pose.txt").write_text(f"{rows}\n\n{words}\n")
    return root


def test_biwi_cuts_the_head_out_by_its_distance(tmp_path):
    found = read("biwi", biwi_tree(tmp_path / "source" / "hpdb").parent, tmp_path / "data")
    recordings = [{int(one["recording"]) for one in rows} for rows in found.values()]
    assert sum(map(len, recordings)) == 10 == len(set().union(*recordings))
    assert {split: len(rows) for split, rows in found.items()} == {
        "train": 18, "validation": 3, "test": 9,
    }  # fmt: skip
    for record in found["train"]:
        white = decode.decode(record["image"])[..., 0] > 128
        side = white.shape[0]
        rows, columns = np.nonzero(white)
        # A third of the square is the head, and in its middle.
        assert abs(np.ptp(columns) / side - 1 / 3) < 0.03
        assert abs(columns.mean() / side - 0.5) < 0.02 and abs(rows.mean() / side - 0.5) < 0.02


def test_biwi_turns_as_hopenet_does(tmp_path):
    """Of one matrix the three lines of its authors' code."""
    rotation = transform.Rotation.from_euler("xyz", [20, -30, 10], degrees=True).as_matrix()
    r = np.transpose(rotation)
    roll = -np.arctan2(r[1][0], r[0][0]) * 180 / np.pi
    yaw = -np.arctan2(-r[2][0], np.sqrt(r[2][1] ** 2 + r[2][2] ** 2)) * 180 / np.pi
    pitch = np.arctan2(r[2][1], r[2][2]) * 180 / np.pi
    np.testing.assert_allclose(biwi.euler(rotation), [yaw, pitch, roll])
    assert np.ptp(biwi.euler(np.eye(3))) == 0


def test_biwi_refuses(tmp_path):
    source = biwi_tree(tmp_path / "source", recordings=4)
    file = source / "01" / "frame_00001_pose.txt"
    text = file.read_text()
    file.write_text(text[:40])
    assert "frame_00001_pose.txt should begin with 12 numbers; it has" in refusal("biwi", source)
    file.write_text("left " + text)
    assert "frame_00001_pose.txt: a value is no number" in refusal("biwi", source)
    file.write_text(text.replace("950.0", "-950.0"))
    assert "the head is -950 mm before the camera" in refusal("biwi", source)
    assert "--test 1 is no share" in refusal("biwi", source, test=1)

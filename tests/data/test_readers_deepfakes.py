"""Readers of deepfakes: videos in the official layouts, their pairs, people and test lists."""

import collections
import json

import numpy as np
import pytest

from hmtl_jax.data import decode, detect
from hmtl_jax.data.readers import celeb_df, faceforensics, videos
from tests.data.films import film, number_of
from tests.data.prepared import edit, keys, read, refusal

PAIRS = {"train": [["000", "003"], ["001", "002"]], "val": [["004", "005"]], "test": [["6", "7"]]}


def ff_tree(root, methods=("Deepfakes", "FaceSwap"), compression="c23"):
    for split, pairs in PAIRS.items():
        (root / "splits").mkdir(parents=True, exist_ok=True)
        (root / "splits" / f"{split}.json").write_text(json.dumps(pairs))
        for a, b in pairs:
            for name in (a, b):
                place = root / "original_sequences" / "youtube" / compression / "videos"
                film(place / f"{name}.mp4", 12 + int(name))
            for name in (f"{a}_{b}", f"{b}_{a}"):
                for index, method in enumerate(methods):
                    place = root / "manipulated_sequences" / method / compression / "videos"
                    film(place / f"{name}.mp4", 20 + index + int(a))
    return root


def test_faceforensics_keeps_pairs_in_one_split(tmp_path):
    options = {"methods": ("Deepfakes", "FaceSwap"), "frames": 4, "whole_frames": True}
    found = read("faceforensics", ff_tree(tmp_path / "source"), tmp_path / "data", **options)
    assert {split: len(rows) for split, rows in found.items()} == {
        "train": 48, "validation": 24, "test": 24,
    }  # fmt: skip
    for split, pairs in PAIRS.items():
        names = {name for pair in pairs for name in pair}
        rows = found["validation" if split == "val" else split]
        assert {one for row in rows for one in row["key"].split("/")[1].split("_")} == names
        for row in rows:
            method = row["key"].split("/")[0]
            assert row["fake"] == (method != "original")
            assert faceforensics.LABELS["method"].names[row["method"]] == method
        per_video = collections.Counter(int(row["video"]) for row in rows)
        assert set(per_video.values()) == {4}
    every = [int(row["video"]) for rows in found.values() for row in rows]
    assert len(set(every)) == 24
    first = [number_of(decode.decode(row["image"])) for row in found["test"][:4]]
    assert first == [2, 6, 11, 15]  # of 18 frames, the middle of each quarter


def test_faceforensics_refuses(tmp_path):
    source = ff_tree(tmp_path / "source")
    options = {"methods": ("Deepfakes",), "frames": 2, "whole_frames": True}

    def said(**more):
        return refusal("faceforensics", source, **{**options, **more})

    assert "--methods takes those that are there" in said(methods=("Face2Face",))
    assert "name the weights of a detector by --detector" in said(whole_frames=False)
    assert "one of the two" in said(detector="yunet.onnx")
    assert "yunet.onnx does not exist" in said(whole_frames=False, detector="yunet.onnx")
    assert "--frames 0: a video gives at least one" in said(frames=0)
    assert "--compression 'c24' is none of c23, c40, raw" in said(compression="c24")
    assert "c40/videos/000.mp4 is missing" in said(compression="c40")
    edit(source / "splits" / "val.json", "[[", "[[[")
    assert "val.json is no list of pairs" in said()
    (source / "splits" / "val.json").unlink()
    assert "lacks val.json, in itself or in splits/" in said()
    (tmp_path / "bad.onnx").write_bytes(b"no network")
    assert "is no YuNet as ONNX" in said(whole_frames=False, detector=str(tmp_path / "bad.onnx"))


def test_the_official_pairs_are_the_published_ones(shared_data):
    root = shared_data / "formats" / "faceforensics"
    seen = []
    for split, file in faceforensics.SPLITS.items():
        pairs = faceforensics._pairs(root, file)
        assert len(pairs) == faceforensics.PUBLISHED[split]
        seen += [name for pair in pairs for name in pair]
    assert len(seen) == len(set(seen)) == 1000


def faced(reader):
    """By a stand-in for a detector: one box in every frame but those of number 3."""

    def detector(image_hwc):
        face = detect.Face((20.0, 10.0, 40.0, 30.0), np.zeros((5, 2)))
        return None if number_of(image_hwc) == 3 else face

    return detect.Cutter(detector, reader.image_size)


def test_a_face_is_its_box_times_1_3_and_a_frame_without_one_is_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(faceforensics, "cutter", faced)
    source = ff_tree(tmp_path / "source")
    options = {"methods": ("Deepfakes",), "frames": 5}
    found = read("faceforensics", source, tmp_path / "data", **options)
    sides = {decode.decode(row["image"]).shape for row in found["train"]}
    assert sides == {(26, 26, 3)}
    folder = tmp_path / "data" / "faceforensics" / "1.0.0"
    listed = (folder / "pictures_without_a_face.txt").read_text().splitlines()
    metadata = json.loads((folder / "metadata.json").read_text())
    assert len(listed) == metadata["left_out"]["pictures without a face"] > 0
    assert all("no face in this frame" in line for line in listed)
    total = sum(len(rows) for rows in found.values())
    assert total + len(listed) == 16 * 5


def test_a_video_is_decoded_once_and_its_fault_is_that_of_each_frame(tmp_path, monkeypatch):
    calls = []
    real = videos.video.frames

    def counted(path, count):
        calls.append(path)
        return real(path, count)

    monkeypatch.setattr(videos.video, "frames", counted)
    rows = list(videos.rows(film(tmp_path / "a.mp4"), "a", {}, 5, detect.cutter("", 32)))
    images = [decode.decode(row.image()) for row in rows]
    assert len(calls) == 1 and [number_of(image) for image in images] == [3, 9, 15, 21, 27]
    assert images[0].shape == (24, 32, 3)
    (tmp_path / "b.mp4").write_bytes(b"no video")
    for row in videos.rows(tmp_path / "b.mp4", "b", {}, 2, detect.cutter("", 32)):
        with pytest.raises(Exception, match=r"b\.mp4 is damaged"):
            row.image()
    assert len(calls) == 2


def celeb_tree(root):
    tested = []
    for number in range(12):
        film(root / "Celeb-real" / f"id{number}_0000.mp4", 8 + number)
        other = (number + 1) % 12
        film(root / "Celeb-synthesis" / f"id{number}_id{other}_0000.mp4", 25 - number)
        film(root / "YouTube-real" / f"{number:05d}.mp4", 10 + number)
        if number < 3:
            tested += [f"1 Celeb-real/id{number}_0000.mp4", f"1 YouTube-real/{number:05d}.mp4"]
            tested += [f"0 Celeb-synthesis/id{number}_id{other}_0000.mp4"]
    (root / celeb_df.LIST).write_text("\n".join(tested) + "\n")
    return root


def test_celeb_df_calls_one_real_and_parts_people(tmp_path, capsys):
    source = celeb_tree(tmp_path / "source")
    options = {"frames": 2, "whole_frames": True, "validation": 0.3}
    found = read("celeb_df", source, tmp_path / "data", **options)
    assert len(found["test"]) == 2 * 9
    for rows in found.values():
        for row in rows:
            assert row["fake"] == row["key"].startswith("Celeb-synthesis")
    people = {
        split: {
            one for key in keys(found, split) for one in celeb_df.people(key.rpartition("/")[0])
        }
        for split in ("train", "validation")
    }
    assert people["validation"] and not people["train"] & people["validation"]
    printed = capsys.readouterr().out
    assert "videos with one person in validation and one in train" in printed


def test_celeb_df_refuses(tmp_path):
    source = celeb_tree(tmp_path / "source")
    options = {"frames": 2, "whole_frames": True}
    edit(source / celeb_df.LIST, "1 Celeb-real/id0", "0 Celeb-real/id0")
    assert "calls Celeb-real/id0_0000.mp4 fake" in refusal("celeb_df", source, **options)
    edit(source / celeb_df.LIST, "0 Celeb-real/id0", "2 Celeb-real/id0")
    assert "line 1: '2 Celeb-real/id0_0000.mp4' is not 0 or 1" in refusal(
        "celeb_df", source, **options
    )
    edit(source / celeb_df.LIST, "2 Celeb-real/id0", "1 Celeb-real/id99")
    assert "id99_0000.mp4 is missing" in refusal("celeb_df", source, **options)
    (source / celeb_df.LIST).unlink()
    assert "should hold List_of_testing_videos.txt" in refusal("celeb_df", source, **options)


def test_the_official_test_list_is_read(shared_data):
    tested = celeb_df._tested(shared_data / "formats" / "celeb_df" / celeb_df.LIST)
    fakes = collections.Counter(tested.values())
    assert len(tested) in (517, 518) and fakes[1] == 340
    assert all(name.startswith("Celeb-synthesis") == bool(fake) for name, fake in tested.items())


def test_a_detector_wants_its_weights():
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(Exception, match=r"face_detection_yunet_2026may\.onnx"):
        detect.YuNet("nowhere.onnx")(image)

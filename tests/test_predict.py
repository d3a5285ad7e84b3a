"""A run asked about pictures: the answers of its evaluation, and a row for all that is asked."""

import csv
import json

import cv2
import jax
import numpy as np
import pyarrow.parquet
import pytest

from hmtl_jax import build, evaluate, infer, predict, sharding, trained
from hmtl_jax.data import detect, records
from tests import tiny
from tests.data.films import film

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def predictor(whole_run):
    return predict.Predictor(whole_run.workdir, batch_size=8)


@pytest.fixture
def pictures(tmp_path, whole_run):
    """The test split's pictures as files, in its order."""
    data_dir = json.loads((whole_run.workdir / "config.json").read_text())["data.data_dir"]
    source = records.open_split(data_dir, "synthetic", "test")
    folder = tmp_path / "faces"
    folder.mkdir()
    for index in range(len(source)):
        (folder / f"{index:03d}.png").write_bytes(source[index]["image"])
    return folder, source


def test_the_answers_are_those_of_evaluation(whole_run, predictor, pictures):
    folder, source = pictures
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
        run = trained.load(whole_run.workdir, mesh)
        step = build.jitted(infer.eval_step, run.program, out_shardings=sharding.replicated(mesh))
        found = evaluate.predictions_of(step, run.program, run.variables, source, run.config)
    rows = list(predictor([folder]))
    classes = run.program.tasks["expression"].classes
    ours = np.array([[row[f"expression/{name}"] for name in classes] for row in rows])
    # To rounding: the batches are of other sizes.
    np.testing.assert_allclose(ours, found["predictions"]["expression"], rtol=1e-5)
    best = found["predictions"]["expression"].argmax(1)
    assert [row["expression"] for row in rows] == [classes[index] for index in best]
    assert [row["expression_probability"] for row in rows] == ours.max(1).tolist()


def test_in_three_lines_of_python(whole_run, pictures):
    predictor = predict.Predictor(whole_run.workdir)
    rows = list(predictor([pictures[0]]))
    assert len(rows) == len(pictures[1]) and not any(row["error"] for row in rows)
    image = cv2.imread(str(pictures[0] / "003.png"))[..., ::-1]
    alone = predictor.predict([np.ascontiguousarray(image)])["expression"][0]
    assert alone.max() == pytest.approx(rows[3]["expression_probability"], rel=1e-5)


def test_whatever_is_asked_has_a_row(predictor, pictures, tmp_path):
    folder, _ = pictures
    (folder / "text.jpg").write_text("no picture")
    (folder / "empty.png").write_bytes(b"")
    whole = (folder / "000.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("left out")
    film(folder / "a.mp4", 12)
    (folder / "b.mp4").write_bytes(b"no film")
    rows = {(row["input"].rpartition("/")[2], row["frame"]): row for row in predictor([folder])}
    for name in ("text.jpg", "empty.png", "cut.png", "b.mp4"):
        assert "damaged" in rows[name, None]["error"] and rows[name, None]["expression"] is None
    frames = sorted(frame for name, frame in rows if name == "a.mp4")
    assert len(frames) == 8 and all(rows["a.mp4", frame]["expression"] for frame in frames)
    assert not any(name == "notes.txt" for name, _ in rows)
    (tmp_path / "list.csv").write_text("path,who\nfaces/001.png,a\nfaces/none.png,b\n")
    found = list(predictor([tmp_path / "list.csv", str(folder / "00[23].png")]))
    names = [row["input"].rpartition("/")[2] for row in found]
    assert names == ["001.png", "none.png", "002.png", "003.png"]
    assert "none.png is missing" in found[1]["error"]


class Halves:
    """A stand-in for a detector: both halves of a picture, or none in a dark one."""

    def __init__(self, weights):
        pass

    def all(self, image):
        height, width = image.shape[:2]
        if image.max() < 10:
            return []
        middle = width / 2
        return [
            detect.Face((x, 0.0, x + middle, float(height)), np.zeros((5, 2)))
            for x in (0.0, middle)
        ]


def test_each_face_has_a_row_and_a_picture_without_one_has_one(
    whole_run, pictures, tmp_path, monkeypatch
):
    monkeypatch.setattr(detect, "YuNet", Halves)
    folder, _ = pictures
    cv2.imwrite(str(folder / "dark.png"), np.zeros((40, 40, 3), np.uint8))
    predictor = predict.Predictor(whole_run.workdir, detector="yunet.onnx", batch_size=8)
    rows = list(predictor([folder / "000.png", folder / "dark.png"]))
    assert [row["left"] for row in rows] == [0.0, 16.0, None]
    assert rows[0]["expression"] and rows[2]["error"] == "no face was found"
    out = tmp_path / "drawn"
    monkeypatch.setattr(predict, "Predictor", lambda *args, **kwargs: predictor)
    arguments = [str(whole_run.workdir), str(folder / "000.png"), "--draw", str(out)]
    assert predict.main(arguments) == 0
    assert cv2.imread(str(out / "000.png")).shape == (480, 780, 3)


@pytest.mark.parametrize("suffix", predict.FORMATS)
def test_tables_of_each_form_hold_the_same(predictor, pictures, tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(predict, "Predictor", lambda *args, **kwargs: predictor)
    out = tmp_path / f"answers{suffix}"
    arguments = ["run", str(pictures[0]), "--out", str(out)]
    assert predict.main(arguments) == 0
    if suffix == ".csv":
        with open(out, newline="") as file:
            read = list(csv.DictReader(file))
    elif suffix == ".jsonl":
        read = [json.loads(line) for line in out.read_text().splitlines()]
    else:
        read = pyarrow.parquet.read_table(out).to_pylist()
    rows = list(predictor([pictures[0]]))
    assert len(read) == len(rows)
    for ours, theirs in zip(rows, read, strict=True):
        assert theirs["expression"] == ours["expression"]
        assert float(theirs["expression/fear"]) == ours["expression/fear"]
    assert predict.main(arguments) == 1
    assert predict.main([*arguments, "--overwrite"]) == 0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_where_the_model_looks_is_drawn_beside_the_answers(predictor):
    grey = np.random.default_rng(0).integers(0, 256, (predictor.size, predictor.size, 1), np.uint8)
    grey = np.tile(grey, 3)  # all warmth is that of the map
    seen = list(predictor.look([predict.Sight("grey.png", grey, grey)]))
    plain, more = (predict.drawn(predictor, seen, attention) for attention in (False, True))
    assert more.shape == (plain.shape[0], plain.shape[1] + 120, 3)
    np.testing.assert_array_equal(more[:, : plain.shape[1]], plain)
    (strength,) = predictor.attention([grey])["rollout"]
    assert strength.shape == (predictor.size,) * 2
    warm = more[:100, plain.shape[1] :, 0].astype(int) - more[:100, plain.shape[1] :, 2]
    heat = cv2.applyColorMap((255 * strength).astype(np.uint8), cv2.COLORMAP_TURBO).astype(int)
    wanted = cv2.resize(0.45 * (heat[..., 2] - heat[..., 0]), (120, 120))[:100]
    assert np.corrcoef(warm.ravel(), wanted.ravel())[0, 1] > 0.95


def test_what_can_not_be_asked(whole_run, tmp_path, capsys):
    def said(*arguments):
        assert predict.main(list(map(str, arguments))) == 1
        return capsys.readouterr().err

    (tmp_path / "empty").mkdir()
    (tmp_path / "list.csv").write_text("name\n1\n")
    assert "There is no" in said(whole_run.workdir, tmp_path / "none.png")
    assert "holds no picture and no video" in said(whole_run.workdir, tmp_path / "empty")
    assert "has no column path; it has name" in said(whole_run.workdir, tmp_path / "list.csv")
    (tmp_path / "a.png").write_bytes(b"")
    assert "must end in one of .csv" in said(
        whole_run.workdir, tmp_path / "a.png", "--out", "x.txt"
    )
    assert "--frames 0: give 1 or more" in said(
        whole_run.workdir, tmp_path / "a.png", "--frames", "0"
    )
    assert "--max_pixels 0: give 1 or more" in said(
        whole_run.workdir, tmp_path / "a.png", "--max_pixels", "0"
    )
    assert "is neither a workdir with checkpoints" in said(tmp_path, tmp_path / "a.png")
    assert tiny.refused(predict.Predictor, whole_run.workdir, align=True).startswith(
        "Faces are aligned by the points of a detector"
    )

"""Pictures are written, show what they were given, and are equal for equal input."""

import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from hmtl_jax import errors, figures
from hmtl_jax.metrics import writer


def pixels(path):
    with PIL.Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def write_log(workdir, lines):
    with writer.Writer(workdir) as out:
        for step, metrics in lines:
            out.write(step, metrics)
    return workdir / "metrics.jsonl"


def full_log(workdir):
    training = [
        (s, {"loss/total": 2.0 / (s + 1), "loss/lbp": 0.1, "images_per_second": 90.0 + s})
        for s in range(20)
    ]
    return write_log(workdir, [*training, (19, {"eval/val/accuracy": 0.5, "eval/val/nll": 1.2})])


def draw_grid(path, _):
    rng = np.random.default_rng(0)
    columns = {"input": rng.random((3, 16, 16, 3)), "target": rng.random((3, 16, 16, 1))}
    figures.reconstruction_grid(path, columns)


def draw_curves(path, workdir):
    figures.training_curves(path, full_log(workdir))


def draw_confusion(path, _):
    figures.confusion_matrix(path, [[90, 10], [0, 0]], ["real", "fake"])


@pytest.mark.parametrize("draw", [draw_grid, draw_curves, draw_confusion])
def test_equal_input_gives_equal_bytes(draw, tmp_path):
    draw(tmp_path / "first.png", tmp_path / "run1")
    draw(tmp_path / "second.png", tmp_path / "run2")
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    assert pixels(tmp_path / "first.png").std() > 10, "not an empty page"


def test_grid_shows_the_images_in_their_columns(tmp_path):
    red = np.zeros((2, 8, 8, 3)) + np.array([1.0, 0, 0])
    figures.reconstruction_grid(
        tmp_path / "grid.png", {"input": red, "map": np.full((2, 8, 8, 1), 0.5)}
    )
    picture = pixels(tmp_path / "grid.png")
    height, width, _ = picture.shape
    for row in (height // 4, 3 * height // 4):
        np.testing.assert_array_equal(picture[row, width // 4], [255, 0, 0])
        assert set(picture[row, 3 * width // 4]) <= {127, 128}


def test_grid_clips_what_a_decoder_overshoots(tmp_path):
    overshoot = np.full((1, 8, 8, 1), 7.0)
    overshoot[0, 0, 0] = np.nan
    figures.reconstruction_grid(tmp_path / "grid.png", {"reconstruction": overshoot})
    picture = pixels(tmp_path / "grid.png")
    np.testing.assert_array_equal(picture[picture.shape[0] // 2, picture.shape[1] // 2], 255)


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"input": np.zeros((2, 8, 8))},
        {"input": np.zeros((2, 8, 8, 2))},
        {"input": np.zeros((0, 8, 8, 3))},
        {"input": np.zeros((2, 8, 8, 3)), "target": np.zeros((3, 8, 8, 1))},
    ],
)
def test_grid_names_bad_shapes(columns, tmp_path):
    with pytest.raises(errors.UserError, match="one N of at least 1"):
        figures.reconstruction_grid(tmp_path / "grid.png", columns)
    assert not (tmp_path / "grid.png").exists()


def test_curves_go_to_their_panels_and_leave_nulls_out(tmp_path):
    log = write_log(
        tmp_path,
        [
            (0, {"loss/total": 4.0, "lr": 1e-3, "images_per_second": 5.0}),
            (1, {"loss/total": float("nan"), "eval/val/accuracy": 0.5, "eval/val/nll": 2.0}),
            (2, {"loss/total": 2.0}),
        ],
    )
    panels = figures._panels(writer.read(log))
    assert {title: list(series) for title, series in panels.items()} == {
        "Training loss": ["total"],
        "Evaluation": ["val accuracy"],
        "Evaluation errors": ["val nll"],
        "Images per second": ["training"],
    }
    steps, values = panels["Training loss"]["total"]
    assert (steps.tolist(), values.tolist()) == ([0, 2], [4, 2])


@pytest.mark.parametrize("loss", [0.0, -1.0, 1e-9])
def test_curves_draw_losses_that_no_logarithm_has(loss, tmp_path):
    log = write_log(tmp_path, [(0, {"loss/total": 1.0}), (1, {"loss/total": loss})])
    figures.training_curves(tmp_path / "curves.png", log)
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_curves_of_an_empty_log_are_refused(tmp_path):
    log = write_log(tmp_path, [(0, {"lr": 1.0})])
    with pytest.raises(errors.UserError, match="holds no metrics"):
        figures.training_curves(tmp_path / "curves.png", log)


def test_confusion_is_shaded_by_the_share_of_its_row(tmp_path):
    # The rare class is all right and the common one mostly wrong: counts alone would say less.
    figures.confusion_matrix(tmp_path / "few.png", [[10, 990], [0, 5]], ["a", "b"])
    figures.confusion_matrix(tmp_path / "same.png", [[20, 1980], [0, 10]], ["a", "b"])
    few, same = (pixels(tmp_path / name).astype(int) for name in ("few.png", "same.png"))
    assert np.mean(np.abs(few - same) > 60) < 0.02, "equal shares differ in their text only"


def test_confusion_of_many_classes_is_drawn(tmp_path):
    figures.confusion_matrix(
        tmp_path / "many.png", np.eye(40, dtype=int).tolist(), [str(i) for i in range(40)]
    )
    assert pixels(tmp_path / "many.png").std() > 10


def test_confusion_names_a_wrong_shape(tmp_path):
    with pytest.raises(errors.UserError, match="2 classes"):
        figures.confusion_matrix(tmp_path / "x.png", [[1, 2, 3]], ["a", "b"])


def test_import_is_light_and_drawing_leaves_pyplot_alone(tmp_path):
    program = (
        "import sys; from hmtl_jax import figures\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"figures.confusion_matrix({str(tmp_path / 'x.png')!r}, [[1]], ['a'])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)

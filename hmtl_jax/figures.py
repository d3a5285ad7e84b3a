"""Pictures of a run, as PNG files that are equal for equal input.

matplotlib is imported where it draws, and never through pyplot, whose state is global.
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hmtl_jax import errors
from hmtl_jax.metrics import names, writer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which stay apart for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_GREY = "#555555"
_DPI = 144


def line(index: int) -> dict[str, Any]:
    """Colour and style of a figure's line, by its number; colours come again with other dashes."""
    again, number = divmod(index, len(COLOURS))
    return {"color": COLOURS[number], "linestyle": ("-", "--", ":")[again % 3]}


def reconstruction_grid(path: str | os.PathLike, columns: Mapping[str, np.ndarray]) -> None:
    """Draws examples as rows and the views of each one as titled columns.

    Args:
      path: PNG to write.
      columns: title -> images [N, H, W, 3] or maps [N, H, W, 1] in [0, 1] (values outside are
        clipped, since a decoder's output is not bound), the same N in all. Usually input, masked,
        target, reconstruction.
    """
    arrays = {title: np.asarray(values, np.float32) for title, values in columns.items()}
    shapes = {title: values.shape for title, values in arrays.items()}
    drawable = all(len(shape) == 4 and shape[3] in (1, 3) for shape in shapes.values())
    rows = {shape[0] for shape in shapes.values() if shape}
    if not drawable or len(rows) != 1 or 0 in rows:
        raise errors.UserError(
            f"Columns must be [N, H, W, 1] or [N, H, W, 3] with one N of at least 1, not {shapes}."
        )
    (num_rows,) = rows
    cell, head, edge = 1.5, 0.34, 0.06  # inches
    width, height = cell * len(arrays) + 2 * edge, cell * num_rows + head + edge
    figure = blank(width, height, fitted=False)
    axes = figure.subplots(num_rows, len(arrays), squeeze=False)
    left, bottom, top = edge / width, edge / height, 1 - head / height
    figure.subplots_adjust(left, bottom, 1 - left, top, wspace=0.04, hspace=0.04)
    for column, (title, images) in enumerate(arrays.items()):
        axes[0, column].set_title(title, fontsize=9, pad=6)
        for row, image in enumerate(images):
            _show(axes[row, column], image)
    save(figure, path)


def training_curves(path: str | os.PathLike, metrics_jsonl: str | os.PathLike) -> None:
    """Draws what a run's metrics.jsonl holds over its steps.

    Panels: the loss and its parts, the pretexts' skills, evaluation scores (higher is better) and
    errors (lower is better), images per second; a panel without data is left out. Losses and errors
    are on a logarithmic axis where all are positive and span a factor of ten or more. A log without
    any of these raises UserError.

    Args:
      path: PNG to write.
      metrics_jsonl: log as `metrics.writer.Writer` writes it.
    """
    panels = _panels(writer.read(metrics_jsonl))
    if not panels:
        raise errors.UserError(f"{metrics_jsonl} holds no metrics to draw yet.")
    _draw_panels(path, panels)


def compared_curves(
    path: str | os.PathLike, logs: Mapping[str, str | os.PathLike], keys: Sequence[str]
) -> None:
    """Draws runs into the same panels: each task's training loss, and a metric as evaluated.

    Args:
      path: PNG to write.
      logs: name of a run -> its metrics.jsonl.
      keys: TASK/METRIC; a panel that no log has values for is left out.
    """
    read = {name: list(writer.read(log)) for name, log in logs.items()}
    logged = dict.fromkeys(name for rows in read.values() for row in rows for name in row)
    panels = {}
    for key in keys:
        loss = f"loss/{key.partition('/')[0]}"
        evaluated = [name for name in logged if re.fullmatch(f"eval/[^/]+/{re.escape(key)}", name)]
        for metric in [*evaluated, loss]:
            found = {name: _series(rows, metric) for name, rows in read.items()}
            series = {name: points for name, points in found.items() if points}
            if series:
                title = f"Training {metric}" if metric == loss else metric.removeprefix("eval/")
                panels[title] = series
    if not panels:
        raise errors.UserError(f"{', '.join(map(str, logs.values()))} hold none of {list(keys)}.")
    _draw_panels(path, panels)


def _draw_panels(path, panels):
    num_columns = min(2, len(panels))
    num_rows = -(-len(panels) // num_columns)
    figure = blank(5.4 * num_columns, 3.3 * num_rows)
    axes = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, series) in zip(axes, panels.items(), strict=False):
        _draw_panel(axis, title, series)
    save(figure, path)


def confusion_matrix(
    path: str | os.PathLike, confusion: Sequence[Sequence[int]], class_names: Sequence[str]
) -> None:
    """Draws counts [C, C] (rows = truth): colour is the share of the row, text share and count.

    A class without examples has an empty row. Above twenty classes a colour bar replaces the text.
    """
    counts = np.asarray(confusion)
    if counts.shape != (len(class_names), len(class_names)):
        raise errors.UserError(
            f"A confusion matrix of {len(class_names)} classes must be square with that side, not"
            f" {list(counts.shape)}."
        )
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    legible = len(class_names) <= 20
    side = max(2.4, 0.72 * len(class_names)) if legible else 9.0
    figure = blank(side + 1.6, side + 1.4)
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    correct = np.trace(counts) / max(counts.sum(), 1)
    axis.set_title(f"{correct:.1%} of {counts.sum():,} correct", fontsize=11)
    truths = [f"{name} ({n:,})" for name, n in zip(class_names, totals[:, 0], strict=True)]
    _name_cells(axis, class_names, truths)
    if legible:
        _write_counts(axis, counts, shares)
    else:
        bar = figure.colorbar(image, ax=axis, shrink=0.7, format=lambda share, _: f"{share:.0%}")
        bar.set_label("share of the true class")
    save(figure, path)


def _name_cells(axis, class_names, truths):
    ticks = np.arange(len(class_names))
    axis.set_xticks(ticks, class_names, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(ticks, truths)
    axis.set_xlabel("predicted")
    axis.set_ylabel("truth (examples)")
    axis.set_xticks(ticks[1:] - 0.5, minor=True)
    axis.set_yticks(ticks[1:] - 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=1.5)
    axis.tick_params(which="both", length=0)
    axis.spines[:].set_visible(False)


def _write_counts(axis, counts, shares):
    for row, column in np.ndindex(counts.shape):
        if not counts[row, column]:
            continue
        share = shares[row, column]
        colour = "white" if share > 0.55 else "#222222"
        place = {"ha": "center", "color": colour}
        axis.text(column, row, f"{share:.0%}", va="bottom", fontsize=9, **place)
        axis.text(column, row + 0.06, f"{counts[row, column]:,}", va="top", fontsize=6.5, **place)


def _show(axis, image):
    axis.set_axis_off()
    image = np.clip(np.nan_to_num(image), 0, 1)
    grey = image.shape[-1] == 1
    axis.imshow(
        image[..., 0] if grey else image,
        cmap="gray" if grey else None,
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )


def _panels(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, tuple]]:
    """Panel title -> {label: (steps, values)}, without empty ones."""
    panels: dict[str, dict[str, tuple]] = {
        "Training loss": {},
        "Pretext skill": {},
        "Evaluation": {},
        "Evaluation errors": {},
        "Images per second": {},
    }
    logged = dict.fromkeys(name for record in records for name in record if name != "step")
    for name in logged:
        place = _place(name)
        points = _series(records, name)
        if place and points:
            title, label = place
            panels[title][label] = points
    return {title: series for title, series in panels.items() if series}


def _series(records: Sequence[Mapping[str, Any]], name: str) -> tuple | None:
    """(steps, values) of what a log holds under a name; None where that is nothing."""
    points = [(record["step"], record[name]) for record in records if record.get(name) is not None]
    return tuple(np.array(points, float).T) if points else None


def _place(name: str) -> tuple[str, str] | None:
    """The panel and the label of a metric; None for those that are not drawn."""
    kind, _, rest = name.partition("/")
    if kind == "loss":
        return "Training loss", rest.replace("_", " ")
    if kind == "skill":
        return "Pretext skill", f"{rest} training".replace("_", " ")
    if name == "images_per_second":
        return "Images per second", "training"
    if kind == "eval":
        label = rest.replace("/", " ").replace("_", " ")
        if rest.endswith("/skill"):
            return "Pretext skill", label.removesuffix(" skill")
        is_error = not names.metric(rest).higher
        return ("Evaluation errors" if is_error else "Evaluation"), label
    return None


def _draw_panel(axis, title, series):
    for index, (label, (steps, values)) in enumerate(series.items()):
        axis.plot(
            steps,
            values,
            **line(index),
            linewidth=1.6,
            marker="o" if len(steps) <= 30 else None,
            markersize=3,
            label=f"{label}  {values[-1]:.4g}",
        )
    _scale(axis, title, np.concatenate([values for _, values in series.values()]))
    axis.set_title(title, fontsize=11, loc="left")
    axis.set_xlabel("step", color=_GREY)
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(colors=_GREY, labelsize=8)
    axis.legend(fontsize=8, frameon=False, title="last value", title_fontsize=7, alignment="left")


def _scale(axis, title, values):
    if title == "Images per second":
        axis.set_ylim(0, 1.2 * values.max() or 1)
    elif title not in ("Evaluation", "Pretext skill") and 0 < 10 * values.min() <= values.max():
        axis.set_yscale("log")


def blank(width: float, height: float, fitted: bool = True) -> "Figure":
    """A white page, its sides in inches; fitted: its parts find their own places."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layout = "constrained" if fitted else None
    figure = Figure(figsize=(width, height), dpi=_DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: "Figure", path: str | os.PathLike) -> None:
    """Writes a page as PNG: without matplotlib's version in it, equal pictures are equal bytes."""
    figure.savefig(path, format="png", metadata={"Software": None})

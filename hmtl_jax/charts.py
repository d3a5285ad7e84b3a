"""Charts as SVG for a page: their ink is the page's own text colour, so that they read in the dark.

matplotlib is imported where it draws, and never through pyplot, whose state is global.
"""

import io
import re
from collections.abc import Mapping, Sequence

import numpy as np

from hmtl_jax import figures

COLOURS = figures.COLOURS[:6]  # but for black and grey, which a dark page would hide
POINTS = 400  # of a line; longer ones are thinned by means
_INK = "#010203"  # stands for the text colour until the SVG is written


def lines(
    title: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    among: Sequence[str] = (),
    log: bool = False,
) -> str:
    """Name → (x, y) as lines in one panel.

    Lines of more than POINTS points are thinned: each stands for the mean of its neighbours.
    among: all names of the page, so that each has its colour in every chart. log: with a
    logarithmic axis, if values are positive and span a factor of ten.
    """
    figure, axis = _axis(4.6, 2.7, title)
    for name, (x, y) in series.items():
        number = list(among or series).index(name)
        x, y = (thinned(np.asarray(of, np.float64)) for of in (x, y))
        marker = "o" if len(x) < 3 else None
        axis.plot(x, y, color=_colour(number), label=name, linewidth=1.4, marker=marker)
    values = np.concatenate([np.asarray(y, np.float64) for _, y in series.values()])
    if log and values.min() > 0 and values.max() > 10 * values.min():
        axis.set_yscale("log")
    if len(among or series) > 1:
        _legend(figure)
    axis.set_xlabel("step", fontsize=8)
    return _svg(figure)


def dots(
    title: str,
    rows: Sequence[str],
    series: Mapping[str, Sequence[tuple[float, float, float] | None]],
    unit: str = "",
) -> str:
    """A row for each name, in it a dot with its interval for each series: (value, low, high)."""
    height = 0.9 + 0.22 * len(rows) * max(1, len(series))
    figure, axis = _axis(4.6, height, title)
    shift = 0.7 / max(1, len(series))
    for number, (name, cells) in enumerate(series.items()):
        at = np.array([row for row, cell in enumerate(cells) if cell], float)
        value, low, high = np.array([cell for cell in cells if cell]).reshape(-1, 3).T
        at = at + (number - (len(series) - 1) / 2) * shift
        # An interval by another way than the value may miss it by a hair.
        spread = np.maximum([value - low, high - value], 0)
        axis.errorbar(
            value, at, xerr=spread, fmt="o", color=_colour(number), label=name, markersize=4
        )
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlabel(unit, fontsize=8)
    axis.grid(axis="x", alpha=0.2)
    if len(series) > 1:
        _legend(figure)
    return _svg(figure)


def calibration(title: str, series: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """Name → (confidence [N], correct bool [N]): the share that is right, by confidence in tenths.

    A dot's size tells how many of the examples it stands for; on the diagonal a model is as right
    as it says (a reliability diagram, Guo 2017).
    """
    figure, axis = _axis(3.2, 3.0, title)
    axis.plot([0, 1], [0, 1], color=_INK, alpha=0.4, linewidth=1, linestyle=":")
    for number, (name, (confidence, correct)) in enumerate(series.items()):
        bins = np.clip((confidence * 10).astype(int), 0, 9)
        count = np.bincount(bins, minlength=10)
        there = count > 0
        x = np.bincount(bins, confidence, 10)[there] / count[there]
        y = np.bincount(bins, correct, 10)[there] / count[there]
        axis.plot(x, y, color=_colour(number), label=name, linewidth=1.2)
        axis.scatter(x, y, s=8 + 120 * count[there] / len(confidence), color=_colour(number))
    axis.set_xlabel("confidence", fontsize=8)
    axis.set_ylabel("share that is right", fontsize=8)
    if len(series) > 1:
        _legend(figure)
    return _svg(figure)


def thinned(values: np.ndarray) -> np.ndarray:
    """At most POINTS values: means of equally many neighbours."""
    if len(values) <= POINTS:
        return values
    edges = np.linspace(0, len(values), POINTS + 1).astype(int)
    return np.add.reduceat(values, edges[:-1]) / np.diff(edges)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _axis(width: float, height: float, title: str):
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    axis = figure.subplots()
    axis.set_title(title, fontsize=9, color=_INK, loc="left")
    axis.patch.set_alpha(0)
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_INK)
    axis.tick_params(colors=_INK, labelsize=8)
    axis.xaxis.label.set_color(_INK)
    axis.yaxis.label.set_color(_INK)
    return figure, axis


def _legend(figure) -> None:
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8, labelcolor=_INK)


def _svg(figure) -> str:
    import matplotlib

    made = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(made, format="svg", transparent=True, metadata={"Date": None})
    text = made.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    head, rest = text.split(">", 1)  # fixed sizes would not shrink on a phone
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return f"{head}>{rest}"

"""A table of few labels as a picture: what each method reaches for what its encoder has to read.

    python -m experiments.curve ferplus_5_cpu ferplus_20_cpu

Writes experiments/NAME.png from the cells that the table has. The horizontal axis is the number of
pictures through the encoder, every view counted, by that of the shortest supervised run; so at one
place stand methods of equal cost.
"""

import argparse
import pathlib
import re

import numpy as np

from experiments.tables import HERE, TABLES, Kept, Table
from hmtl_jax import figures
from hmtl_jax.metrics import names


def cost(table: Table, method: str) -> float | None:
    """Pictures through the encoder, by those of the first method; None where that is not said."""
    method = table.equal.get(method, method)
    if method == next(iter(table.methods)):
        return 1
    times = re.fullmatch(r"supervised_([\d.]+)x", method)
    return float(times[1]) if times else None


def points(table: Table, kept: Kept) -> dict[str, list[tuple[float, list[float]]]]:
    """Method without its `_2x` → (cost, test metric of each seed that is there), by cost."""
    found: dict[str, list[tuple[float, list[float]]]] = {}
    for method in table.methods:
        cells = [kept.score(method, seed) for seed in range(table.seeds)]
        values = [cell.value for cell in cells if cell]
        at = cost(table, method)
        if values and at:
            found.setdefault(re.sub(r"_[\d.]+x$", "", method), []).append((at, values))
    return {name: sorted(row) for name, row in found.items()}


def draw(path: pathlib.Path, table: Table, kept: Kept) -> None:
    """Means as dots, with the deviation over seeds where there are several."""
    scale, unit = names.shown_in(table.metric)
    figure = figures.blank(6.4, 4.6)
    axis = figure.add_subplot()
    for index, (name, row) in enumerate(points(table, kept).items()):
        x = [at for at, _ in row]
        y = [scale * np.mean(values) for _, values in row]
        spread = [scale * np.std(values, ddof=1) if len(values) > 1 else 0 for _, values in row]
        style = figures.line(index)
        axis.errorbar(x, y, yerr=spread, marker="o", label=name, capsize=3, **style)
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks := [1, 2, 3, 4, 6, 8], [f"{tick}×" for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("pictures through the encoder")
    axis.set_ylabel(f"test {table.metric}{f',{unit}' if unit else ''}")
    axis.set_title(table.title, fontsize=9)
    axis.grid(alpha=0.2)
    figure.legend(fontsize=8, loc="outside lower center", ncols=3)  # clear of every point
    figures.save(figure, path)


def main() -> None:
    """Draws what is there of some tables."""
    choices = sorted(name for name, table in TABLES.items() if table.equal)
    parser = argparse.ArgumentParser(description="Draws tables by cost.")
    parser.add_argument("tables", nargs="+", choices=choices, metavar="TABLE")
    for name in parser.parse_args().tables:
        table = TABLES[name]
        draw(HERE / f"{name}.png", table, Kept(HERE / "cells" / f"{name}.json", table))


if __name__ == "__main__":
    main()

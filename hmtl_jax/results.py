"""What lies in a run's folder when it is done: for the page, and for the card of a model."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.parquet

from hmtl_jax import workdir
from hmtl_jax.errors import UserError
from hmtl_jax.metrics import names, writer


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished or a growing workdir; what is read of it is read when it is asked for."""

    name: str
    folder: pathlib.Path
    config: Mapping[str, Any]

    @property
    def recipe(self) -> list[tuple[str, Any]]:
        """Its keys and values."""
        return sorted(self.config.items())

    @functools.cached_property
    def log(self) -> Sequence[Mapping[str, Any]]:
        """The lines of metrics.jsonl."""
        log = self.folder / writer.FILE_NAME
        return writer.read(log) if log.exists() else []

    @functools.cached_property
    def test(self) -> Mapping[str, Any]:
        """The newest report of its own test split; {} where there is none."""
        file = newest_report(self.folder, self.config["data.test"])
        return json.loads(file.read_text()) if file else {}

    @functools.cached_property
    def answers(self) -> Mapping[str, list]:
        """Every example's answers behind `test`; {} where they were not left."""
        file = newest_report(self.folder, self.config["data.test"])
        if file is None or not file.with_suffix(".parquet").is_file():
            return {}
        return pyarrow.parquet.read_table(file.with_suffix(".parquet")).to_pydict()


def opened(path: pathlib.Path) -> Run:
    """A workdir; UserError for a path that is none."""
    folder = path.resolve()
    if not (folder / workdir.CONFIG).is_file():
        raise UserError(f"{path} is no workdir of a run; it has no {workdir.CONFIG}.")
    return Run(folder.name, folder, workdir.read(folder, workdir.CONFIG))


def newest_report(folder: pathlib.Path, split: str) -> pathlib.Path | None:
    """The report of the highest step on a split of the run's own data, of unmirrored pictures."""
    reports = (folder / "eval").glob(f"{split}-*.json")
    plain = {of.stem.removeprefix(f"{split}-"): of for of in reports}
    steps = [step for step in plain if step.isdigit()]
    return plain[max(steps, key=int)] if steps else None


def measures(part: Mapping[str, Any]) -> dict[str, str]:
    """Each measure of a task, with its interval where the report has one."""
    found = {}
    for name, value in part.items():
        if isinstance(value, float):
            scale, unit = names.shown_in(name)
            found[name] = f"{scale * value:.2f}{unit}"
            interval = part.get("intervals", {}).get(name) or part.get(f"{name}_interval")
            if interval:
                low, high = (scale * bound for bound in interval)
                found[name] += f" ({low:.2f}–{high:.2f})"
    return found


def by_group(run: Run) -> tuple[str, Mapping[str, Any]]:
    """What the newest report of `hmtl_jax.fairness` is of, `DATA SPLIT`, and its tasks.

    TASK → {`metric`, `columns`}; {} where there is no report.
    """
    reports = (run.folder / "fairness").glob("*.json")
    newest = max(reports, key=lambda file: file.stat().st_mtime, default=None)
    if newest is None:
        return "", {}
    found = json.loads(newest.read_text())
    return f"{found['data']} {found['split']}", found["tasks"]

"""What lies in a run's folder when it is done: for the page, and for the card of a model."""

import dataclasses
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
    """A workdir as far as the page shows it; `answers` are those of the newest test report."""

    name: str
    folder: pathlib.Path
    config: Mapping[str, Any]
    log: Sequence[Mapping[str, Any]]
    test: Mapping[str, Any]
    answers: Mapping[str, list]

    @property
    def recipe(self) -> list[tuple[str, Any]]:
        """Its keys and values."""
        return sorted(self.config.items())


def opened(path: pathlib.Path) -> Run:
    """A workdir; UserError for a path that is none."""
    folder = path.resolve()
    if not (folder / workdir.CONFIG).is_file():
        raise UserError(f"{path} is no workdir of a run; it has no {workdir.CONFIG}.")
    log = folder / writer.FILE_NAME
    reports = [
        (json.loads(file.read_text()), file) for file in sorted((folder / "eval").glob("*.json"))
    ]
    config = workdir.read(folder, workdir.CONFIG)
    own = [
        (found, file) for found, file in reports
        if file.name == f"{config['data.test']}-{found['step']}.json"
    ]  # fmt: skip
    test, file = max(own, key=lambda one: one[0]["step"], default=({}, folder))
    table = file.with_suffix(".parquet")
    answers = pyarrow.parquet.read_table(table).to_pydict() if table.is_file() else {}
    return Run(folder.name, folder, config, writer.read(log) if log.exists() else [], test, answers)


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


def by_group(run: Run) -> Mapping[str, Any]:
    """TASK → {`metric`, `columns`}, as the newest report of `hmtl_jax.fairness` has it; {}."""
    reports = (run.folder / "fairness").glob("*.json")
    newest = max(reports, key=lambda file: file.stat().st_mtime, default=None)
    return json.loads(newest.read_text())["tasks"] if newest else {}

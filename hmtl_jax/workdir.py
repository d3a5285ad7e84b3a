"""The folder of a run: whose it is, whether it can take the run, and what it says of itself."""

import json
import pathlib
import shutil
from importlib import metadata
from typing import Any

import jax
from ml_collections import ConfigDict

from hmtl_jax import checkpoint, cluster, files, recipe
from hmtl_jax.errors import UserError

CONFIG, VERSIONS = "config.json", "versions.json"


def check(folder: pathlib.Path, config: ConfigDict) -> None:
    """Raises UserError if another recipe has claimed the folder or nothing can be written there."""
    try:
        if (folder / CONFIG).exists():
            checkpoint.check_recipe(_read(folder / CONFIG), config, f"The workdir {folder}")
        if cluster.lead():
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / ".probe"
            probe.write_bytes(b"\0")
            probe.unlink()
    except OSError as error:
        raise UserError(
            f"The workdir {folder} cannot be written ({error.strerror}); choose another --workdir."
        ) from error


def recipe_of(path: pathlib.Path) -> dict[str, Any]:
    """The flat recipe of a run, from its workdir or from one of its checkpoints."""
    for folder in (path, path.parent.parent):
        if (folder / CONFIG).exists():
            return _read(folder / CONFIG)
    raise UserError(f"init_from: {path} is neither a workdir nor a checkpoint in one.")


def check_space(folder: pathlib.Path, state_bytes: int, keep: int) -> None:
    """Raises UserError if the disk cannot hold the run's checkpoints.

    They are the last `keep`, the best one, and one that is being written; what stands there from
    an earlier part of the run is counted as theirs.
    """
    needed = state_bytes * (keep + 2)
    there = sum(
        file.stat().st_size for file in (folder / "checkpoints").rglob("*") if file.is_file()
    )
    free = shutil.disk_usage(folder).free
    if free < needed - there:
        raise UserError(
            f"The disk of the workdir {folder} has {_size(free)} free, but {keep + 2} checkpoints "
            f"of {_size(state_bytes)} need {_size(needed)}; free the disk, lower checkpoint.keep, "
            "or choose another --workdir."
        )


def _size(number: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def claim(folder: pathlib.Path, config: ConfigDict) -> None:
    """Leaves the recipe and the versions in the folder: from now on it belongs to that recipe."""
    if cluster.lead():
        files.write_json(folder / CONFIG, recipe.flat(config))
        files.write_json(folder / VERSIONS, versions())


def versions() -> dict[str, str]:
    """What the numbers of this run were made with."""
    names = ("hmtl_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "source"
    devices = jax.devices()
    return found | {"device": devices[0].device_kind, "devices": str(len(devices))}


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}); delete it, or choose another --workdir."
        ) from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no recipe; delete it, or choose another --workdir.")
    return found

"""The folder of a run: whose it is, whether it can take the run, and what it says of itself."""

import pathlib
import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax
from ml_collections import ConfigDict

from hmtl_jax import cluster, files, images, recipe
from hmtl_jax.errors import UserError

# The recipe; its tasks as they were made for the data; the data; how a picture is read; versions.
CONFIG, TASKS, DATA = "config.json", "tasks.json", "data.json"
PREPROCESSING, VERSIONS = "preprocessing.json", "versions.json"


def check(folder: pathlib.Path, config: ConfigDict) -> None:
    """Raises UserError if the folder belongs to another recipe, or to an earlier version's run."""
    if (folder / CONFIG).exists():
        check_recipe(files.read_json(folder / CONFIG), config, f"The workdir {folder}")
        for name in (TASKS, DATA):
            read(folder, name)


def check_writable(folder: pathlib.Path) -> None:
    """Makes the folder where it is missing; raises UserError if nothing can be written there."""
    if "\\" in str(folder.absolute()):
        raise UserError(
            f"The workdir {folder} has a backslash in its path, in which checkpoints cannot be "
            "stored; choose another --workdir."
        )
    try:
        if cluster.lead():
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / ".probe"
            probe.write_bytes(b"\0")
            probe.unlink()
    except OSError as error:
        raise UserError(
            f"The workdir {folder} cannot be written ({error.strerror}); choose another --workdir."
        ) from error


def _without(folder: pathlib.Path, name: str) -> UserError:
    return UserError(
        f"The run {folder} has no {name}: an earlier version of hmtl_jax made it, and it cannot go "
        "on nor be evaluated with this one; take that version, or train again in another --workdir."
    )


def check_recipe(kept: Mapping[str, Any], config: ConfigDict, where: str) -> None:
    """Raises UserError that lists the differing keys if `where` belongs to another recipe."""
    found = recipe.differences(recipe.flat(config), kept)
    if found:
        raise UserError(
            f"{where} belongs to another recipe; these keys differ: {'; '.join(found)}. "
            "Set them back, or choose another --workdir; --config.init_from with this one starts "
            "there from its encoder."
        )


def check_data(folder: pathlib.Path, identity: Mapping[str, Any]) -> None:
    """Raises UserError if the run in the folder was trained on other data than `identity` names."""
    if not (folder / DATA).exists():
        return
    kept = files.read_json(folder / DATA)
    if "unlabelled" in kept and "unlabelled" in identity and kept["digest"] == identity["digest"]:
        kept, identity = kept["unlabelled"], identity["unlabelled"]
    if kept["digest"] != identity["digest"]:
        raise UserError(
            f"The run {folder} was trained on {described(kept)}, but data.data_dir now holds "
            f"{described(identity)}, and a run does not go on with other data; name the former in "
            "data.data_dir, or choose another --workdir."
        )


def described(identity: Mapping[str, Any]) -> str:
    """A prepared set in a few words: its name, version, options and digest."""
    options = ", ".join(f"{key}={value}" for key, value in identity["options"].items())
    return (
        f"{identity['name']} {identity['version']} ({options + '; ' if options else ''}"
        f"digest {identity['digest'][:8]})"
    )


def run_of(path: pathlib.Path) -> pathlib.Path:
    """The workdir that a path names: the path itself, or the one that its checkpoint lies in.

    Raises UserError for a path that is neither.
    """
    for folder in (path, path.parent.parent):
        if (folder / CONFIG).exists():
            return folder
    raise UserError(f"{path} is neither a workdir nor a checkpoint in one.")


def read(run: pathlib.Path, name: str) -> dict[str, Any]:
    """One of the files that a run says of itself; raises UserError where it lacks it."""
    if not (run / name).exists():
        raise _without(run, name)
    return files.read_json(run / name)


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


def claim(
    folder: pathlib.Path,
    config: ConfigDict,
    made_tasks: Mapping[str, Any],
    identity: Mapping[str, Any],
) -> None:
    """Leaves in the folder what the run is: from now on it belongs to that recipe and those data.

    made_tasks: by name, as `trained.tasks_to_json` makes them. identity: of the data, as
    `records.identity` tells it.
    """
    if cluster.lead():
        files.write_json(folder / TASKS, made_tasks)
        files.write_json(folder / DATA, identity)
        files.write_json(folder / PREPROCESSING, preprocessing(config))
        files.write_json(folder / VERSIONS, versions())
        files.write_json(folder / CONFIG, recipe.flat(config))  # the last: what makes it a run


def preprocessing(config: ConfigDict) -> dict[str, Any]:
    """How a picture becomes what the encoder reads, in evaluation."""
    size = config.data.image_size
    return {
        "channels": "RGB",
        "image_size": size,
        "decode_size": config.data.decode_size or size,
        "resize": images.RESIZE,
        "scale": [0.0, 1.0],
        "input": config.model.input,
        "mean": list(images.IMAGENET_MEAN),
        "std": list(images.IMAGENET_STD),
    }


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
    commit = {"commit": commit_of(pathlib.Path(__file__).parent)}
    return found | commit | {"device": devices[0].device_kind, "devices": str(len(devices))}


def commit_of(folder: pathlib.Path) -> str:
    """The Git commit of the code in `folder`, with "+" if files differ from it; "" if none is."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return found.stdout.strip()

    try:
        if not git("ls-files", "."):  # installed into somebody else's repository
            return ""
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return ""

"""What a recipe can be asked to do in a workdir."""

import pathlib
from collections.abc import Callable

from ml_collections import ConfigDict

from hmtl_jax import evaluate, export, files, probe, rules, train, workdir
from hmtl_jax.errors import UserError


def run(config: ConfigDict, folder: str) -> None:
    """Does the recipe's job in the workdir `folder`; raises UserError for one that cannot be."""
    rules.check(config)
    path = files.local(folder, "--workdir")
    if config.job in ("evaluate", "export"):
        if not (path / "checkpoints").is_dir():
            raise UserError(f"The workdir {path} holds no checkpoint to {config.job}; train first.")
        # Evaluation may read other data than those that the run was trained on.
        free = ("data.name", "data.test", "eval_flip") if config.job == "evaluate" else ()
        kept = workdir.read(path, workdir.CONFIG)
        workdir.check_recipe(kept, config, f"The workdir {path}", free)
    workdir.check_writable(path)
    JOBS[config.job](config, path)


JOBS: dict[str, Callable[[ConfigDict, pathlib.Path], None]] = {
    "train": train.run,
    "evaluate": evaluate.run,
    "export": export.run,
    "probe": probe.run,
}

"""What a recipe can be asked to do in a workdir."""

import pathlib
from collections.abc import Callable

from ml_collections import ConfigDict

from hmtl_jax import files, plan, probe, rules, train, workdir


def run(config: ConfigDict, folder: str) -> None:
    """Does the recipe's job in the workdir `folder`; raises UserError for one that cannot be.

    A plan leaves nothing, and needs none.
    """
    rules.check(config)
    if config.job == "plan":
        plan.run(config)
        return
    path = files.local(folder, "--workdir")
    workdir.check_writable(path)
    JOBS[config.job](config, path)


JOBS: dict[str, Callable[[ConfigDict, pathlib.Path], None]] = {
    "train": train.run,
    "probe": probe.run,
}

"""A finished run opened again, on whatever devices: no data, no optimizer, no training batch."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from hmtl_jax import build, checkpoint, recipe, tasks, workdir
from hmtl_jax.errors import UserError, lookup
from hmtl_jax.program import Program


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a run has become.

    run: its workdir. step, why: of the checkpoint, and for what it was taken. config: the recipe
    that it was trained by. variables: {"params": …, "batch_stats": …} that evaluation reads, the
    moving average where the run kept one. data: which data it was trained on, as
    `records.identity` told it.
    """

    run: pathlib.Path
    step: int
    why: str
    config: ConfigDict
    program: Program
    variables: Mapping[str, Any]
    data: Mapping[str, Any]


def load(path: pathlib.Path, mesh: Mesh) -> Trained:
    """Opens a workdir at its best checkpoint, else its last; or the one checkpoint that is named.

    Reads from disk what evaluation uses, and nothing else, onto the devices of `mesh`. Raises
    UserError for a path that is no run, or one of an earlier version, and for a damaged checkpoint.
    """
    folder, why = find(path)
    run = workdir.run_of(folder)
    config = recipe_of(run)
    made_tasks = tasks_from_json(workdir.read(run, workdir.TASKS))
    return Trained(
        run=run,
        step=int(folder.name),
        why=why,
        config=config,
        program=build.program(config, made_tasks),
        variables=checkpoint.load_variables(folder, mesh),
        data=workdir.read(run, workdir.DATA),
    )


def find(path: pathlib.Path) -> tuple[pathlib.Path, str]:
    """The folder of the checkpoint that a path stands for, and why it is that one.

    A link may be called as it likes: `latest` for checkpoints/120.
    """
    path = path.resolve()
    if (path / "checkpoints").is_dir():
        best = workdir.read(path, workdir.CONFIG).get("checkpoint.best", "")
        found = checkpoint.chosen(path / "checkpoints", best)
        if found is None:
            raise UserError(f"The workdir {path} holds no checkpoint; train first.")
        return path / "checkpoints" / str(found[0]), found[1]
    if path.is_dir() and path.name.isdigit():
        return path, "as named"
    raise UserError(f"{path} is neither a workdir with checkpoints nor a checkpoint in one.")


def recipe_of(path: pathlib.Path) -> ConfigDict:
    """The recipe of a run, from its workdir or from one of its checkpoints."""
    return recipe.unflat(workdir.read(workdir.run_of(path.resolve()), workdir.CONFIG))


def tasks_to_json(made_tasks: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each task's kind and fields, names, weights and priors of the data among them."""
    kinds = {cls: kind for kind, cls in tasks.TASKS.items()}
    return {
        name: {"kind": kinds[type(task)], **dataclasses.asdict(task)}
        for name, task in made_tasks.items()
    }


def tasks_from_json(kept: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The tasks that `tasks_to_json` told of; a field that was not there yet has its default."""
    made = {}
    for name, fields in kept.items():
        cls = lookup(tasks.TASKS, fields["kind"], "task")
        made[name] = cls(**{k: recipe.tuples(v) for k, v in fields.items() if k != "kind"})
    return made

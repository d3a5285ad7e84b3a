"""Checkpoints: state, data position and clock in one atomic step. The only file that imports Orbax.

A checkpoint is the state's arrays plus a small JSON: the position of the data iterator, the clock
and the recipe. All three are taken at the same moment, before the iterator moves on.
"""

import collections
import dataclasses
import json
import logging
import os
import pathlib
import shutil
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import tensorstore
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

from hmtl_jax import cluster, recipe
from hmtl_jax.errors import UserError
from hmtl_jax.state import TrainState

# Orbax's policies do not fit its own type hints.
_preservation: Any = ocp.training.preservation_policies
_saving: Any = ocp.training.save_decision_policies


@dataclasses.dataclass
class Checkpoints:
    """The checkpoints of one run: the last `keep`, and the one with the best score if `best`."""

    folder: pathlib.Path
    keep: int
    best: bool = False

    def __post_init__(self):
        if self.keep < 1:
            raise UserError(f"checkpoint.keep must be at least 1, not {self.keep}.")
        policies = [_preservation.LatestN(self.keep)]
        if self.best:
            policies.append(
                _preservation.BestN(
                    get_metric_fn=lambda found: found["best"],
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        with _readable(self.folder):
            self.manager = ocp.training.Checkpointer(
                os.path.abspath(self.folder),
                preservation_policy=_preservation.AnyPreservationPolicy(policies),
                save_decision_policy=_saving.FixedIntervalPolicy(1),
            )

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self.manager.latest.step if self.manager.latest else None

    def best_step(self) -> int | None:
        """The step with the highest score, the newest of equals; None without any."""
        known: Any = [c for c in self.manager.checkpoints if c.metrics and "best" in c.metrics]
        return max(known, key=lambda c: (c.metrics["best"], c.step)).step if known else None

    def save(self, state: TrainState, meta: Mapping[str, Any], score: float | None) -> None:
        """Starts to write the state of `meta["step"]`; waits only for the copy off the devices."""
        metrics: Any = None if score is None else {"best": score}
        self.manager.save_async(
            meta["step"], _as_dict(state), metrics=metrics, custom_metadata=dict(meta),
            overwrite=False,
        )  # fmt: skip

    def meta(self, step: int, config: ConfigDict) -> dict[str, Any]:
        """The JSON beside the state of a step; comes before `restore`.

        Raises UserError for a checkpoint that is damaged, or another recipe's.
        """
        with _readable(self.folder / str(step)):
            _check_arrays(self.folder / str(step))
            found: Any = self.manager.metadata(step).custom_metadata
            kept = found["recipe"]
        check_recipe(kept, config, f"The checkpoint {self.folder / str(step)}")
        return found

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The state of a step, onto the devices that `abstract` names."""
        with _readable(self.folder / str(step)):
            return TrainState(**self.manager.load(step, _as_dict(abstract)))

    def wait(self) -> None:
        """Waits for what is being written."""
        self.manager.wait()

    def close(self) -> None:
        """Waits for what is being written, and ends."""
        self.manager.close()


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}


def remove_partial(folder: pathlib.Path) -> None:
    """Removes checkpoints that a killed process has not finished writing.

    Only for the run whose folder it is: another process may be writing to it.
    """
    if cluster.lead():
        for path in folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(path, ignore_errors=True)
    cluster.wait("partial checkpoints removed")


class _readable:
    """Turns whatever Orbax says of a damaged checkpoint, in many lines, into one sentence."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def __enter__(self):
        self.disabled = logging.root.manager.disable
        logging.disable(logging.CRITICAL)

    def __exit__(self, kind, error, trace):
        logging.disable(self.disabled)
        if not isinstance(error, Exception) or isinstance(error, UserError):
            return
        reason = textwrap.shorten(str(error) or kind.__name__, 160, placeholder=" …")
        if not self.folder.name.isdigit():
            raise UserError(
                f"A checkpoint in {self.folder} is damaged or cut short ({reason}); delete the "
                "folder of that step, most likely the newest, and keep the others."
            ) from error
        raise UserError(
            f"The checkpoint {self.folder} is damaged or cut short ({reason}); "
            "delete that folder to go on from the one before it."
        ) from error


def _check_arrays(folder: pathlib.Path) -> None:
    """Reads all arrays of a checkpoint once; raises ValueError for the first that can't be read.

    Orbax reads them concurrently. Where one fails it closes its event loop over the others, and
    each of them prints a traceback from a thread that nobody can silence.
    """
    if not cluster.lead():
        return
    base = f"file://{os.path.abspath(folder)}/state/"
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    keys = store.list().result()
    if not keys:
        raise ValueError("it holds no arrays")
    for some in (keys[start : start + 64] for start in range(0, len(keys), 64)):
        for reading in [store.read(key) for key in some]:
            reading.result()


def check_recipe(kept: Mapping[str, Any], config: ConfigDict, where: str) -> None:
    """Raises UserError that lists the differing keys if `where` belongs to another recipe."""
    ours = json.loads(json.dumps(recipe.flat(config)))
    found = recipe.differences(ours, json.loads(json.dumps(kept)))
    if found:
        raise UserError(
            f"{where} belongs to another recipe; these keys differ: {'; '.join(found)}. "
            "Choose another --workdir, or set them back."
        )


def load_encoder(path: str, ours: Mapping[str, Any]) -> tuple[dict, list[str], list[str]]:
    """The encoder of another run, in the place of ours.

    path: a workdir (its best checkpoint, else its last) or one checkpoint's folder. ours:
    {"params": …, "batch_stats": …} of an encoder, as arrays or as their shapes with shardings. The
    moving average is taken where that run kept one. Returns the same tree, and the paths taken and
    left.
    Raises UserError for an encoder of another shape, or with arrays that ours has no place for.
    """
    folder = os.path.abspath(_checkpoint_folder(pathlib.Path(path)))
    with _readable(pathlib.Path(folder)):
        _check_arrays(pathlib.Path(folder))
        saved: Any = ocp.metadata(folder).metadata
    # The moving average has the same two parts as the state itself.
    source = saved["ema"] or saved
    if "encoder" not in source["params"]:
        raise UserError(f"init_from: {folder} holds no encoder, only {sorted(source['params'])}.")
    # Only the encoder is read, and each of its arrays goes straight to where ours lives.
    tree = jax.tree.map(lambda _: ocp.PLACEHOLDER, saved)
    wanted = tree["ema"] if saved["ema"] else tree
    for part, encoder in ours.items():
        _check_fit(folder, encoder, source[part].get("encoder", {}))
        wanted[part]["encoder"] = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), encoder
        )
    with _readable(pathlib.Path(folder)):
        found = ocp.load(folder, tree)
    found = found["ema"] if saved["ema"] else found
    encoder = {part: found[part]["encoder"] for part in ours}
    taken = [f"encoder/{name}" for name in _flat(encoder["params"])]
    left = [name for name in _flat(source["params"]) if name not in taken]
    return encoder, taken, left


def _check_fit(folder: str, ours: Any, theirs: Any) -> None:
    ours, theirs = _flat(ours), _flat(theirs)

    def shape(arrays: Mapping[str, Any], name: str) -> Any:
        return tuple(arrays[name].shape) if name in arrays else "none"

    wrong = [
        f"{name} {shape(theirs, name)} → {shape(ours, name)}"
        for name in sorted(ours | theirs)
        if shape(theirs, name) != shape(ours, name)
    ]
    if wrong:
        raise UserError(
            f"init_from: the encoder in {folder} does not fit the recipe's model; "
            f"{len(wrong)} arrays differ: {'; '.join(wrong[:4])}{'; …' if len(wrong) > 4 else ''}."
        )


def grouped(paths: Iterable[str]) -> str:
    """`encoder/blocks (24), encoder/cls, …`: array paths by their first two parts, counted."""
    counts = collections.Counter("/".join(path.split("/")[:2]) for path in paths)
    return ", ".join(f"{name} ({n})" if n > 1 else name for name, n in sorted(counts.items()))


def _checkpoint_folder(path: pathlib.Path) -> pathlib.Path:
    if (path / "checkpoints").is_dir():
        runs = Checkpoints(path / "checkpoints", keep=1 << 30)
        best, latest = runs.best_step(), runs.latest()
        runs.close()
        step = latest if best is None else best
        if step is not None:
            return path / "checkpoints" / str(step)
    elif path.is_dir() and path.name.isdigit():
        return path
    raise UserError(f"init_from: {path} is neither a workdir with checkpoints nor a checkpoint.")


def _flat(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}

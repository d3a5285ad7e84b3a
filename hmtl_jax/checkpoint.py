"""Checkpoints: state, data position and clock in one atomic step. The only file that imports Orbax.

A checkpoint is the state's arrays plus a small JSON: the position of the data iterator, the clock
and the recipe. All three are taken at the same moment, before the iterator moves on. Beside them
stands the score that chooses the best one, under the name of its metric.
"""

import collections
import dataclasses
import json
import logging
import math
import os
import pathlib
import re
import shutil
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import tensorstore
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from hmtl_jax import cluster, sharding
from hmtl_jax.errors import UserError
from hmtl_jax.state import TrainState

# Orbax's policies do not fit its own type hints.
_preservation: Any = ocp.training.preservation_policies
_saving: Any = ocp.training.save_decision_policies


@dataclasses.dataclass
class Checkpoints:
    """The checkpoints of one run: the last `keep`, and the best one.

    best: the metric whose score chooses it, "" for none. A score of another metric does not count.
    """

    folder: pathlib.Path
    keep: int
    best: str = ""

    def __post_init__(self):
        policies = [_preservation.LatestN(self.keep)]
        if self.best:
            policies.append(
                _preservation.BestN(
                    get_metric_fn=lambda found: found.get(self.best, -math.inf),
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
        known: Any = [c for c in self.manager.checkpoints if c.metrics and self.best in c.metrics]
        return max(known, key=lambda c: (c.metrics[self.best], c.step)).step if known else None

    def save(self, state: TrainState, meta: Mapping[str, Any], score: float | None) -> None:
        """Starts to write the state of `meta["step"]`; waits only for the copy off the devices.

        score: of the metric `best`, the more the better; None where it was not measured.
        """
        metrics: Any = None if score is None else {self.best: score}
        self.manager.save_async(
            meta["step"], _as_dict(state), metrics=metrics, custom_metadata=dict(meta),
            overwrite=False,
        )  # fmt: skip

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON beside the state of a step; comes before `restore`.

        Raises UserError for a checkpoint that is damaged.
        """
        with _readable(self.folder / str(step)):
            _check_whole(self.folder / str(step))
            found: Any = self.manager.metadata(step).custom_metadata
            return dict(found)

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The state of a step, onto the devices that `abstract` names."""
        with _readable(self.folder / str(step), whole=True):
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
    """Turns whatever Orbax says of a checkpoint that it can't read, in many lines, into a sentence.

    whole: whether its arrays were read already, so that what fails now is no damage of theirs.
    """

    def __init__(self, folder: pathlib.Path, whole: bool = False):
        self.folder, self.whole = folder, whole

    def __enter__(self):
        self.disabled = logging.root.manager.disable
        logging.disable(logging.CRITICAL)

    def __exit__(self, kind, error, trace):
        logging.disable(self.disabled)
        if not isinstance(error, Exception) or isinstance(error, UserError):
            return
        reason = textwrap.shorten(str(error) or kind.__name__, 160, placeholder=" …")
        raise UserError(self._sentence(reason)) from error

    def _sentence(self, reason: str) -> str:
        if re.search("permission|denied|not permitted", reason, re.IGNORECASE):
            return f"{self.folder} cannot be read ({reason}); mend its permissions."
        if self.whole:
            return (
                f"The checkpoint {self.folder} is whole, but does not fit this program ({reason}); "
                "take the version of hmtl_jax that versions.json names."
            )
        if not self.folder.name.isdigit():
            return (
                f"A checkpoint in {self.folder} is damaged or cut short ({reason}); move the "
                "folder of that step away, most likely the newest, and keep the others."
            )
        return (
            f"The checkpoint {self.folder} is damaged or cut short ({reason}); "
            "move that folder away to go on from the one before it."
        )


def _check_whole(folder: pathlib.Path) -> None:
    """Reads all of a checkpoint once; raises an error for the first part that can't be read.

    Orbax reads arrays concurrently. Where one fails it closes its event loop over the others, and
    each of them prints a traceback from a thread that nobody can silence.
    """
    if not cluster.lead():
        return
    for name in ("_CHECKPOINT_METADATA", "state/_METADATA"):
        json.loads((folder / name).read_text())
    # A path in parts, not as the address file://…, in which `#`, `?` and `%` mean something else.
    base = {"driver": "file", "path": f"{os.path.abspath(folder)}/state/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    keys = store.list().result()
    if not keys:
        raise ValueError("it holds no arrays")
    for some in (keys[start : start + 64] for start in range(0, len(keys), 64)):
        for reading in [store.read(key) for key in some]:
            reading.result()


def chosen(folder: pathlib.Path, best: str) -> tuple[int, str] | None:
    """The step to use of a finished run's checkpoints, and why it is that; None without any.

    The best by the metric `best`, else the last.
    """
    runs = Checkpoints(folder, keep=1 << 30, best=best)
    found, latest = runs.best_step(), runs.latest()
    runs.close()
    if found is not None:
        return found, f"the best by {best}"
    return None if latest is None else (latest, "the last")


def load_variables(folder: pathlib.Path, mesh: Mesh) -> dict[str, Any]:
    """What is evaluated of one checkpoint: {"params": …, "batch_stats": …}, and nothing else.

    The moving average where the run kept one. Each array goes straight to where `mesh` wants it.
    Raises UserError for a checkpoint that is damaged.
    """
    return _load(folder, lambda shapes: sharding.placed(shapes, mesh))


def load_encoder(
    folder: pathlib.Path, ours: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str], list[str]]:
    """The encoder of one checkpoint, in the place of ours.

    ours: {"params": …, "batch_stats": …} of an encoder, as arrays or as their shapes with
    shardings. The moving average is taken where that run kept one. Returns the same tree, and the
    paths taken and left. Raises UserError for a damaged checkpoint, an encoder of another shape, or
    one with arrays that ours has no place for.
    """
    names: list[str] = []

    def placed(saved):
        names.extend(_flat(saved["params"]))
        if "encoder" not in saved["params"]:
            raise UserError(
                f"init_from: {folder} holds no encoder, only {sorted(saved['params'])}."
            )
        tree = jax.tree.map(lambda _: ocp.PLACEHOLDER, saved)
        for part, encoder in ours.items():
            _check_fit(folder, encoder, saved[part].get("encoder", {}))
            tree[part]["encoder"] = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), encoder
            )
        return tree

    found = _load(folder, placed)
    encoder = {part: found[part]["encoder"] for part in ours}
    taken = [f"encoder/{name}" for name in _flat(encoder["params"])]
    return encoder, taken, [name for name in names if name not in taken]


def _load(folder: pathlib.Path, placed: Callable[[dict], dict]) -> dict[str, Any]:
    """The evaluated variables of a checkpoint; `placed` says of their shapes what is read whereto.

    What it leaves as a PLACEHOLDER, and the rest of the state, is not read from disk.
    """
    path = os.path.abspath(folder)
    with _readable(folder):
        _check_whole(folder)
        saved: Any = ocp.metadata(path).metadata
    tree = jax.tree.map(lambda _: ocp.PLACEHOLDER, saved)
    # The moving average has the same two parts as the state itself.
    if saved["ema"]:
        tree["ema"] = placed(saved["ema"])
    else:
        tree |= placed({part: saved[part] for part in ("params", "batch_stats")})
    with _readable(folder, whole=True):
        found = ocp.load(path, tree)
    found = found["ema"] or found
    return {part: found[part] for part in ("params", "batch_stats")}


def _check_fit(folder: pathlib.Path, ours: Any, theirs: Any) -> None:
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


def _flat(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}

"""python -m hmtl_jax.main --config=RECIPE --config.job=plan: what a run would take, before it runs.

    python -m hmtl_jax.main --config=configs/affectnet_mae_lbp.py --config.job=plan \
        --config.plan.labels=expression=8 --config.plan.examples=280000 --config.plan.devices=8

Parameters by part, operations and memory of the step as compiled, bytes that devices send to each
other, the checkpoint, the steps, and the largest batch that a device of some size holds. Needs
neither data, where `plan.labels` tells their labels, nor an accelerator: XLA compiles the very step
for as many pretended processors. Operations are counted before any backend's own forms; the other
figures are those of the CPU backend: another one fuses otherwise, and keeps more or less between
forward and backward pass.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from hmtl_jax import build, recipe, sharding, state, tasks, train
from hmtl_jax.cluster import say
from hmtl_jax.errors import UserError, lookup

GIB = 2**30
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def run(config: ConfigDict, folder: pathlib.Path | None = None) -> None:
    """The job `plan`: says what the recipe would take, and leaves nothing."""
    del folder
    devices = pretended(config.plan.devices)
    mesh = sharding.make_mesh(**config.mesh, devices=devices)
    sharding.check_batch(config.batch_size, config.optim.accumulate, mesh)
    data = Data.of(config, training_split(config))
    with jax.set_mesh(mesh):
        found = Planned.of(config, data, mesh, config.batch_size)
        for line in text(config, found, mesh):
            say(line)
        if config.plan.gib:
            largest, needed = largest_batch(config, data, mesh, found)
            say(
                f"largest batch     {largest:,} ({largest // mesh.size:,} a device: "
                f"{needed / GIB:.2f} of {config.plan.gib:g} GiB)"
                if largest
                else f"largest batch     none: {mesh.size * config.optim.accumulate} need "
                f"{needed / GIB:.2f} of {config.plan.gib:g} GiB a device"
            )


def pretended(count: int) -> list[Any]:
    """So many processors, made up of this one; 0: the devices that are there."""
    if not count:
        return jax.devices()
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        pass  # JAX has looked at the devices already, as in a notebook: they must do
    found = jax.devices()
    if len(found) < count:
        raise UserError(
            f"plan.devices is {count}, and this process has {len(found)} devices already; plan in "
            "a new one."
        )
    return found[:count]


@dataclasses.dataclass(frozen=True)
class Told:
    """A training split whose labels the recipe tells: {label: classes, or 0 for a number}.

    vectors: those of which each example has a number for every class, with the names of these where
    the task that reads them wants its own.
    """

    sizes: Mapping[str, int]
    count: int
    vectors: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    name: str = "told"
    split: str = "train"

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels' names."""
        return tuple(self.sizes)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        found = {label: self.column(label)[index % self.count] for label in self.sizes}
        return found | {"image": b"", "key": str(index)}

    def class_names(self, label: str) -> tuple[str, ...] | None:
        """Names of a label's classes or entries: numbers, where nothing wants others."""
        numbered = tuple(f"{label}{at}" for at in range(self.sizes[label]))
        return self.vectors.get(label) or numbered or None

    def column(self, label: str) -> np.ndarray:
        """Each class in turn; vectors, and single numbers, of zeros."""
        size = self.sizes[label]
        if not size:
            return np.zeros(self.count, np.float32)
        if label in self.vectors:
            return np.zeros((self.count, size), np.float32)
        return np.arange(self.count, dtype=np.int32) % size


def training_split(config: ConfigDict) -> Any:
    """The prepared split, or what `plan.labels` tells of it."""
    if not config.plan.labels:
        try:
            return train.open_splits(config)[config.data.train]
        except UserError as error:
            raise UserError(
                f"{str(error).rstrip('.')}; or tell the labels that the tasks read, with the "
                "number of their classes, as --config.plan.labels=expression=8,valence=0."
            ) from None
    # A subset rounds each class by itself: of as many as two batches leave, one has enough.
    enough = 2 * math.ceil(config.batch_size / config.data.subset)
    return told(config, config.plan.labels, config.plan.examples or enough)


def told(config: ConfigDict, labels: str, count: int) -> Told:
    """A split of `count` examples with `labels`, as the recipe's tasks read them.

    labels: `LABEL=CLASSES`, or 0 for a number, with commas. UserError for what is not like this.
    """
    sizes = {}
    for part in labels.split(","):
        label, _, number = part.strip().partition("=")
        if not label.isidentifier() or not number.isdigit():
            raise UserError(
                f"plan.labels holds {part!r}; write LABEL=CLASSES, or LABEL=0 for a number, with "
                "commas between them."
            )
        sizes[label] = int(number)
    # What a task lists among several is read number by number; one label alone is a class.
    vectors: dict[str, tuple[str, ...]] = {name: () for name in sizes if name.endswith("_soft")}
    for part in config.tasks.values():
        names = lookup(tasks.TASKS, part.kind, "task").outputs
        own = names if isinstance(names, tuple) else ()  # as a pose has; or the data give them
        vectors |= dict.fromkeys(part.get("labels", ()), own)
    return Told(sizes, count, vectors)


@dataclasses.dataclass(frozen=True)
class Data:
    """What a step has of a training split.

    examples: those that take part. arrays: name → shape and dtype of an example's part of a batch.
    kept: bytes of all pictures, where `data.cache` puts them on the devices.
    """

    tasks: Mapping[str, Any]
    examples: int
    arrays: Mapping[str, tuple[tuple[int, ...], np.dtype]]
    kept: int

    @classmethod
    def of(cls, config: ConfigDict, source: Any) -> "Data":
        """Reads labels, and no picture."""
        with (config := config.copy_and_resolve_references()).unlocked():
            cache, config.data.cache = config.data.cache, "none"
        made = build.make_tasks(config, source)
        others = None if isinstance(source, Told) else train.unlabelled(config)
        batches = train.train_batches(config, cast(Any, source), made, others)
        of_one = {name: (shape[1:], dtype) for name, (shape, dtype) in batches.abstract(1).items()}
        if config.data.labelled < 1 or config.data.unlabelled:
            of_one["labelled"] = ((), np.dtype(bool))
        picture = math.prod(of_one["image"][0]) * of_one["image"][1].itemsize
        kept = batches.num_examples * picture if cache == "device" else 0
        return cls(made, batches.num_examples, of_one, kept)

    def batch(self, rows: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of each array of a batch."""
        return {name: ((rows, *shape), dtype) for name, (shape, dtype) in self.arrays.items()}


@dataclasses.dataclass(frozen=True)
class Planned:
    """A compiled step, by what matters. Bytes and operations are those of one device.

    parts: parameters by part of the model. steps: of the run. arguments: state, batch, and
    pictures that are kept there; temporaries: what comes and goes in a step; sent: bytes that each
    kind of collective makes.
    """

    parts: Mapping[str, int]
    steps: int
    operations: float
    moved: float
    arguments: int
    temporaries: int
    output: int
    checkpoint: int
    sent: Mapping[str, int]

    @property
    def peak(self) -> int:
        """Bytes that a device holds at once: the new state takes the place of the old one."""
        return self.arguments + self.temporaries + self.output

    @classmethod
    def of(cls, config: ConfigDict, data: Data, mesh: Mesh, rows: int) -> "Planned":
        """Compiles the recipe's step for a batch of `rows` over the mesh."""
        with (config := config.copy_and_resolve_references()).unlocked():
            config.batch_size = rows
        examples = max(data.examples, rows)
        training = build.training(config, data.tasks, examples)
        abstract = state.abstract(training, mesh)
        batch = sharding.of_batch(data.batch(rows), mesh)
        traced = build.train_step(training, abstract, mesh).trace(abstract, batch)
        compiled = traced.lower().compile()
        costs, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
        if memory is None:
            raise UserError(
                f"The backend {jax.default_backend()} tells no memory of its programs; plan on "
                "pretended processors, with plan.devices."
            )
        return cls(
            parts={name: state.count(tree) for name, tree in abstract.params.items()},
            steps=recipe.total_steps(config, examples),
            operations=operations(traced) / mesh.size,
            moved=costs.get("bytes accessed", math.nan),
            arguments=memory.argument_size_in_bytes + data.kept // mesh.size,
            temporaries=memory.temp_size_in_bytes,
            output=memory.output_size_in_bytes - memory.alias_size_in_bytes,
            checkpoint=state.nbytes(abstract),
            sent=collectives(compiled.as_text() or ""),
        )


def operations(traced: jax.stages.Traced) -> float:
    """Floating-point operations of a program, over all devices; NaN where nobody counts them.

    As lowered for a TPU, which has forms of its own for nothing: the gradient of a convolution is
    a loop on a CPU, whose body XLA counts once, and attention can be a call on a GPU, which it
    does not look into.
    """
    costs = traced.lower(lowering_platforms=("tpu",)).cost_analysis()
    return costs["flops"] if costs else math.nan


def collectives(program: str) -> dict[str, int]:
    """Bytes that each kind of collective leaves on a device, from a compiled program's text."""
    found = dict.fromkeys(COLLECTIVES, 0)
    kinds = "|".join(COLLECTIVES)
    for shape, kind in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", program):
        for dtype, sizes in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shape):
            bits = int(re.sub(r"\D", "", dtype)[:2] or 8)
            count = math.prod(int(size) for size in sizes.split(",") if size)
            found[kind] += count * max(bits, 8) // 8
    return {kind: count for kind, count in found.items() if count}


def text(config: ConfigDict, found: Planned, mesh: Mesh) -> list[str]:
    """The plan as lines."""
    parts = ", ".join(f"{name} {count:,}" for name, count in found.parts.items())
    of = f"{mesh.shape['data']} × {mesh.shape['fsdp']} (data × fsdp)"
    sent = ", ".join(f"{kind} {count / 1e6:,.1f} MB" for kind, count in found.sent.items())
    loops = {"scanned block": config.model.scan, "micro-batch": config.optim.accumulate > 1}
    told_once = " and ".join(f"a {body}" for body, there in loops.items() if there)
    once = f" ({told_once} counted once)" if told_once else ""
    return [
        f"parameters        {sum(found.parts.values()):,}: {parts}",
        f"batch             {config.batch_size:,} on {of} devices, {found.steps:,} steps",
        f"a step, a device  {found.operations / 1e9:,.1f} GFLOP, {found.moved / 1e9:,.1f} GB read "
        f"and written{once}",
        f"memory, a device  {found.peak / GIB:.2f} GiB: state and batch "
        f"{found.arguments / GIB:.2f}, between {found.temporaries / GIB:.2f}, output "
        f"{found.output / GIB:.2f}",
        f"between devices   {sent or 'nothing'}{once if sent else ''}",
        f"checkpoint        {found.checkpoint / 1e9:.2f} GB, {config.checkpoint.keep} of them kept",
    ]


def largest_batch(
    config: ConfigDict, data: Data, mesh: Mesh, found: Planned
) -> tuple[int, int]:  # fmt: skip
    """The largest batch whose step fits `plan.gib` on each device, and its bytes.

    What a step holds grows with the batch, all but evenly: from two compiled programs follows a
    guess, which is compiled too, and bisected from there to a sixteenth of it. (0, bytes) where not
    even one row a device and micro-batch fits.
    """
    unit, room = mesh.size * config.optim.accumulate, config.plan.gib * GIB
    known = {config.batch_size: found.peak}

    def needed(rows: int) -> int:
        if rows not in known:
            known[rows] = Planned.of(config, data, mesh, rows).peak
        return known[rows]

    if needed(unit) > room:
        return 0, needed(unit)
    fits, first = unit, max(config.batch_size, 2 * unit)
    slope = (needed(first) - needed(unit)) / (first - unit)
    guess = unit * max(1, int((room - needed(unit)) / max(slope, 1) / unit) + 1)
    while needed(guess) <= room:
        fits, guess = guess, guess + unit * max(1, guess // unit // 8)
    while guess - fits > max(unit, fits // 16):
        middle = (fits + guess) // 2 // unit * unit
        if needed(middle) <= room:
            fits = middle
        else:
            guess = middle
    return fits, needed(fits)

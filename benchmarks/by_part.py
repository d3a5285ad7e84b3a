"""Where a step's time goes, by part of the model, from a profile of the compiled step.

    python -m benchmarks.by_part --config=ferplus_few_labels:cpu,supervised
    python -m benchmarks.by_part --config=affectnet_mae_lbp --rows 16 --labels expression=8

The step of a recipe of configs/ runs on noise, a few times under JAX's profiler. Each operation of
the compiled program carries the path of the scope that it was traced in: the module, or `augment`,
`views`, `losses`, `optimizer`; and whether it was pulled back. A fusion has the path of its last
operation, so that some work stands beside the part that it belongs to. Times are those that threads
spend in operations, added up over threads; what an operation does within others counts once.
--picture draws the last step: a row a thread, a bar an operation, coloured by its part.
"""

import argparse
import collections
import importlib
import pathlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.train_step import machine
from hmtl_jax import build, figures, plan, sharding, state

# Of a path's scopes, what is a part; the first that occurs.
SCOPES = ("augment", "views", "losses", "optimizer")
MODULES = ("encoder", "heads", "decoders")


def part_of(path: str) -> str:
    """`jit(train_step)/transpose(jvp(Hybrid))/encoder/…/conv1/…` → `encoder, backward`."""
    names = re.split(r"[/().]", path)
    for scope in SCOPES:
        if scope in names:
            return scope
    for module in MODULES:
        if any(name == module or name.startswith(f"{module}_") for name in names):
            return f"{module}, {'backward' if 'transpose(' in path else 'forward'}"
    return "other"


def kind_of(operation: str) -> str:
    """The operation's own name without its number: `dot_general`, `convolution` …"""
    return re.sub(r"[.\d]+$", "", operation)


def paths(program: str) -> dict[str, str]:
    """Operation → the path of its scope, from a compiled program's text."""
    found = re.findall(
        r"^\s*(?:ROOT )?%?([\w.\-]+) = .*op_name=\"([^\"]*)\"", program, re.MULTILINE
    )
    return dict(found)


class Seen(NamedTuple):
    """An operation as a profile has it: seconds, and which thread and step it was in."""

    operation: str
    start: float
    seconds: float
    thread: str
    step: str


def operations(folder: pathlib.Path, module: str) -> Iterator[Seen]:
    """Each operation of the module that a profile has seen."""
    (file,) = folder.rglob("*.xplane.pb")
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            for event in line.events:
                told = dict(event.stats)
                if told.get("hlo_module") == module and "hlo_op" in told:
                    start, seconds = event.start_ns / 1e9, event.duration_ns / 1e9
                    step = str(told.get("run_id"))
                    yield Seen(str(told["hlo_op"]), start, seconds, line.name, step)


def draw(file: str, seen: Sequence[Seen], scope: Mapping[str, str]) -> None:
    """The last step as a PNG."""
    last = max(seen, key=lambda one: one.start).step
    seen = [one for one in seen if one.step == last]
    begin, threads = min(one.start for one in seen), sorted({one.thread for one in seen})
    parts = sorted({part_of(scope.get(one.operation, "")) for one in seen})
    figure = figures.blank(10, 1.2 + 0.5 * len(threads))
    axes = figure.subplots()
    for number, part in enumerate(parts):
        for row, thread in enumerate(threads):
            bars = [
                (1e3 * (one.start - begin), 1e3 * one.seconds)
                for one in seen
                if one.thread == thread and part_of(scope.get(one.operation, "")) == part
            ]
            label = part if row == 0 else None
            axes.broken_barh(bars, (row - 0.4, 0.8), facecolor=f"C{number}", label=label)
    axes.set(xlabel="milliseconds of a step", yticks=range(len(threads)))
    axes.set_yticklabels([f"thread {row + 1}" for row in range(len(threads))])
    figure.legend(loc="outside upper center", ncols=5, fontsize=8)
    figures.save(figure, file)


def noise(shapes: Mapping[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """A batch of those shapes: pictures of noise, labels of the first two classes."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, (shape, dtype) in shapes.items():
        high = 256 if dtype == np.uint8 else 2
        made[name] = rng.integers(0, high, shape).astype(dtype)
    made["index"] = np.arange(len(made["image"]), dtype=np.int32)
    return made


def main() -> None:
    """Prints a table of parts, and one of the longest operations."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="a recipe of configs/, with its argument")
    parser.add_argument("--rows", type=int, default=0, help="of a batch; 0: the recipe's")
    parser.add_argument(
        "--labels", default="expression=8,expression_soft=8", help="as --config.plan.labels"
    )
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--picture", help="a PNG to draw the last step into")
    args = parser.parse_args()
    name, _, argument = args.config.partition(":")
    config = importlib.import_module(f"configs.{name}").get_config(argument)
    config.batch_size = args.rows or config.batch_size
    config.data.cache = "none"
    config.plan.labels, config.plan.examples = args.labels, 10_000
    data = plan.Data.of(config, plan.training_split(config))
    mesh = sharding.make_mesh(**config.mesh)
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as folder:
        training = build.training(config, data.tasks, data.examples)
        abstract = state.abstract(training, mesh)
        current = state.create_sharded(training, abstract, config.seed)
        batch = sharding.to_devices(noise(data.batch(config.batch_size)), mesh)
        step = build.train_step(training, abstract, mesh)
        compiled = step.lower(current, batch).compile()
        current, _ = compiled(current, batch)
        jax.block_until_ready(current)
        with jax.profiler.trace(folder):
            for _ in range(args.steps):
                current, metrics = compiled(current, batch)
            jax.block_until_ready(metrics)
        program = compiled.as_text() or ""
        module = re.findall(r"HloModule ([\w.\-]+)", program)[0]
        scope = paths(program)
        parts: dict[str, float] = collections.defaultdict(float)
        kinds: dict[str, float] = collections.defaultdict(float)
        seen = list(operations(pathlib.Path(folder), module))
        for one in seen:
            part = part_of(scope.get(one.operation, ""))
            parts[part] += one.seconds / args.steps
            kinds[f"{kind_of(one.operation)} | {part}"] += one.seconds / args.steps
    if args.picture:
        draw(args.picture, seen, scope)
    whole = sum(parts.values())
    print(f"{args.config}, {config.batch_size} rows of {config.data.image_size} px; {machine()}\n")
    print("| part | ms of threads a step | share |\n|---|---|---|")
    for part, seconds in sorted(parts.items(), key=lambda row: -row[1]):
        print(f"| {part} | {1e3 * seconds:.1f} | {seconds / whole:.0%} |")
    print("\n| operation | part | ms | share |\n|---|---|---|---|")
    for kind, seconds in sorted(kinds.items(), key=lambda row: -row[1])[:12]:
        print(f"| {kind} | {1e3 * seconds:.1f} | {seconds / whole:.0%} |")


if __name__ == "__main__":
    main()

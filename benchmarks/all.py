"""What a GPU or TPU does with the train step, in ten minutes, the most important rows first.

    python -m benchmarks.all --minutes 10 --out runs/benchmarks
    python -m benchmarks.all --minutes 10 --peer_python=PYTHON_WITH_TORCH
    python -m benchmarks.all --rehearse        # every row at a size for a CPU, in a few minutes

Each row is printed, and appended to OUT/rows.jsonl, as soon as it is there; OUT/table.md is written
anew after each. A group's programs are compiled side by side, then timed one after the other. A
row: images/s at the best of its batch sizes, of the ceiling (the step's operations, as XLA counts
them before it optimises, over the best product of square matrices), peak memory, compile time. The
peer is benchmarks/torch_peer.py, compiled, in bfloat16, with fused attention; rounds alternate.
`parity` is the loss of twenty steps in float32 and bfloat16, here and on the processor beside it.
"""

import argparse
import dataclasses
import importlib
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks import compile_time, train_step
from hmtl_jax import build, plan, state, step
from hmtl_jax.models import layers

PICTURES = 25_000  # of a small set that stays on the device


@dataclasses.dataclass(frozen=True)
class Case:
    """A recipe's step at some batch sizes. kept: pictures lie on the device, gathered by the step.

    peer: the encoder that torch_peer.py takes, and its method; none where empty.
    """

    name: str
    config: ConfigDict
    batches: tuple[int, ...]
    kept: bool = False
    peer: tuple[str, str] = ("", "")


def vit(encoder: str, method: str, size: int) -> ConfigDict:
    """The step that the peer computes too."""
    args = argparse.Namespace(encoder=encoder, dtype="bfloat16", image_size=size, batch_size=8)
    return train_step.config_of(method, args)


def of_recipe(name: str, argument: str = "", **changes: Any) -> ConfigDict:
    """A recipe of configs/ with changes, `__` for the dots."""
    config = importlib.import_module(f"configs.{name}").get_config(argument)
    with config.unlocked():
        flat = {key.replace("__", "."): value for key, value in changes.items()}
        config.update_from_flattened_dict(flat)
    return config


def groups(small: bool) -> Iterator[tuple[str, list[Case]]]:
    """What is measured, by group; `small`: at sizes for a CPU."""
    px, many = (32, (8, 16)) if small else (224, (128, 256))
    names = ["16x2x2/8"] if small else ["B/16", "S/16", "Ti/16"]
    methods = ("ssat", "supervised")
    for encoder in names:
        cases = [Case(f"{encoder} {m}", vit(encoder, m, px), many) for m in methods]
        yield f"ViT-{encoder}, {px} px", cases
    yield (
        f"ViT-{names[0]}, {px} px, beside compiled PyTorch",
        [
            Case(f"{names[0]} {m}", vit(names[0], m, px), many[-1:], peer=(names[0], m))
            for m in methods
        ],
    )
    faces = {"data__image_size": 16} if small else {}
    rows = (8,) if small else (256,)
    encoder = "cnn16" if small else "cnn64"
    yield (
        "48 px, pictures on the device",
        [
            Case(
                f"{name}, {of}",
                of_recipe(recipe, words, model__encoder=of, model__dtype="bfloat16", **faces),
                rows,
                kept=True,
            )
            for name, recipe, words, of in (
                ("supervised", "ferplus_supervised", "", encoder),
                ("puzzle", "ferplus_few_labels", "puzzle", encoder),
                ("masksub", "ferplus_few_labels", "masksub", encoder),
                ("supervised", "ferplus_supervised", "", "cnn16" if small else "resnet18-small"),
                ("supervised", "ferplus_supervised", "", "16x2x2/8" if small else "192x6x3/8"),
            )
        ],
    )  # fmt: skip
    yield (
        f"convolutions, {px} px",
        [
            Case(f"{name} supervised", vit(name, "supervised", px), many)
            for name in (("cnn16",) if small else ("resnet50", "efficientnet_b0"))
        ],
    )


class Program:
    """A case's step at one batch size, compiled."""

    def __init__(self, case: Case, rows: int):
        self.case, self.rows = case, rows
        config = case.config.copy_and_resolve_references()
        with config.unlocked():
            config.batch_size = rows
        tasks = build.make_tasks(config, compile_time.faces(config))
        self.training = build.training(config, tasks, 10**5)
        batch = compile_time.batch_of(config, rows)
        if case.kept:
            rng, size = np.random.default_rng(0), config.data.image_size
            count = min(PICTURES, 50 * rows)
            batch["pictures"] = rng.integers(0, 256, (count, size, size, 3)).astype(np.uint8)
            batch["image"] = rng.integers(0, count, rows).astype(np.int32)
        self.batch = batch
        self.abstract = jax.eval_shape(lambda: state.create(self.training))
        jitted = build.jitted(step.train_step, self.training, donate_argnums=0)
        traced = jitted.trace(self.abstract, batch)
        self.flops = plan.operations(traced)
        started = time.perf_counter()
        self.compiled = traced.lower().compile()
        self.compile_seconds = time.perf_counter() - started
        memory = self.compiled.memory_analysis()
        self.bytes = memory.temp_size_in_bytes + memory.argument_size_in_bytes if memory else 0

    def start(self) -> None:
        """Puts the state and the batch on the device, and runs three steps."""
        self.state = jax.device_put(compile_time.noisy_state(self.abstract))
        self.on_device = jax.device_put(self.batch)
        self.seconds(3)

    def seconds(self, steps: int) -> float:
        """Wall time of `steps` steps."""
        self.state, seconds = train_step.stepped(self.compiled, self.state, self.on_device, steps)
        return seconds

    def end(self) -> None:
        """Frees the device."""
        del self.state, self.on_device


def timed(run: Callable[[int], float], seconds: float) -> list[float]:
    """Seconds a step in three rounds of about `seconds` together."""
    steps = max(2, min(200, int(seconds / 3 / max(run(2) / 2, 1e-6))))
    return [run(steps) / steps for _ in range(3)]


class Rows:
    """What was measured, on the screen and in files, row by row."""

    def __init__(self, folder: pathlib.Path, about: str):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.about, self.tables = folder, about, {}

    def add(self, table: str, row: Mapping[str, Any]) -> None:
        """Adds a row to a table, whose columns are those of its first row."""
        self.tables.setdefault(table, []).append(dict(row))
        with (self.folder / "rows.jsonl").open("a") as file:
            file.write(json.dumps({"table": table, **row}) + "\n")
        print(f"{table}: " + ", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        (self.folder / "table.md").write_text(self.text())

    def text(self) -> str:
        """All tables as Markdown."""
        parts = [self.about]
        for table, rows in self.tables.items():
            heads = list(rows[0])
            lines = [f"#### {table}", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
            lines += [f"| {' | '.join(str(row.get(h, '–')) for h in heads)} |" for row in rows]
            parts.append("\n".join(lines))
        return "\n\n".join(parts) + "\n"


def parity(rows: Rows, small: bool, compilers: int) -> None:
    """Twenty steps' losses: float32 and bfloat16 here, beside float32 on the processor."""
    size = {"data__image_size": 16 if small else 48}
    cases = {
        "ViT SSAT": lambda dtype: of_recipe(
            "ferplus_mae_rgb", "cpu", model__dtype=dtype,
            model__encoder="16x2x2/8" if small else "96x3x3/8", **size,
        ),
        "CNN and puzzle": lambda dtype: of_recipe(
            "ferplus_few_labels", "cpu,puzzle", model__dtype=dtype,
            model__encoder="cnn16", **size,
        ),
    }  # fmt: skip
    here, cpu = jax.devices()[0], jax.local_devices(backend="cpu")[0]
    arms = {
        "processor, float32": (cpu, "float32", None),
        "float32": (here, "float32", "highest"),
        "float32, default products": (here, "float32", None),
        "bfloat16": (here, "bfloat16", None),
    }

    def losses(name: str, arm: str) -> np.ndarray:
        device, dtype, precision = arms[arm]
        with jax.default_device(device), jax.default_matmul_precision(precision):
            return twenty(cases[name](dtype), 32)

    with futures.ThreadPoolExecutor(compilers) as pool:
        found = {(name, arm): pool.submit(losses, name, arm) for name in cases for arm in arms}
    for (name, arm), future in found.items():
        mine, wanted = future.result(), found[name, next(iter(arms))].result()
        off = np.abs(mine / wanted - 1)
        rows.add(
            f"Losses of twenty steps beside float32 on the processor: {name}",
            {
                "arm": arm, "first": f"{mine[0]:.5f}", "last": f"{mine[-1]:.5f}",
                "off at step 1": f"{off[0]:.1e}", "off at most": f"{off.max():.1e}",
            },
        )  # fmt: skip


def twenty(config: ConfigDict, rows: int) -> np.ndarray:
    """The total losses of twenty steps on five batches of noise, float64 [20]."""
    with config.unlocked():
        config.batch_size = rows
    tasks = build.make_tasks(config, compile_time.faces(config))
    training = build.training(config, tasks, 10**5)
    run = build.jitted(step.train_step, training)
    abstract = jax.eval_shape(lambda: state.create(training))
    current, losses = compile_time.noisy_state(abstract), []
    batch = compile_time.batch_of(config, rows)
    rng = np.random.default_rng(1)
    batches = [
        batch | {
            "image": rng.integers(0, 256, batch["image"].shape).astype(np.uint8),
            "expression_soft": rng.dirichlet(np.ones(8), rows).astype(np.float32),
            "expression": rng.integers(0, 8, rows).astype(np.int32),
        }
        for _ in range(5)
    ]  # fmt: skip
    for at in range(20):
        current, metrics = run(current, batches[at % 5])
        losses.append(float(metrics["loss/total"]))
    return np.array(losses)


LAYERS = {
    "layer norm": (
        lambda x, s: layers.layer_norm(x, s, s, 1e-6, x.dtype),
        lambda x, s: (layers.standardised(x, 1e-6)[0] * s + s).astype(x.dtype),
    ),
    "GELU": (
        lambda x, s: layers.gelu(x),
        lambda x, s: jax.nn.gelu(x, approximate=False),
    ),
    "dense, to four times the width": (
        lambda x, s: layers.affine(x, wide(s), s[:1].repeat(4 * len(s))),
        lambda x, s: x @ wide(s).astype(x.dtype) + s[:1].repeat(4 * len(s)).astype(x.dtype),
    ),
}


def wide(scale: jax.Array) -> jax.Array:
    """A matrix [D, 4 D] that hangs on a vector [D]."""
    return scale[:, None] * jnp.linspace(-0.1, 0.1, 4 * len(scale))


def of_layers(rows: Rows, small: bool, compilers: int) -> None:
    """Forward and backward of the project's own layers over those of autodiff, at ViT-B's size."""
    shape = (4, 17, 32) if small else (256, 197, 768)
    x = jax.random.normal(jax.random.key(0), shape, jnp.bfloat16)
    scale = jnp.ones(shape[-1])
    heads = 2 if small else 12
    q_bnhd = x.reshape(*shape[:2], heads, -1)

    def slope(function: Callable) -> Callable:
        def loss(*given):
            out = function(*given)
            return jnp.sum(out.astype(jnp.float32) * jnp.cos(out.astype(jnp.float32)))

        return jax.jit(jax.grad(loss, argnums=(0, 1)))

    def ready(function: Callable, given: tuple) -> Callable:
        return slope(function).lower(*given).compile()

    arms: dict[str, Any] = {
        name: ((own, (x, scale)), (plain, (x, scale))) for name, (own, plain) in LAYERS.items()
    }
    for length in (5, 17) if small else (37, 50, 145, 197):
        part = (q_bnhd[:, :length],) * 2
        own = lambda q, k: layers.attention(q, k, k)  # noqa: E731
        plain = lambda q, k: jax.nn.dot_product_attention(q, k, k)  # noqa: E731
        arms[f"attention of {length} tokens"] = ((own, part), (plain, part))
        if layers.has_cudnn():
            fused = lambda q, k: layers.one_kernel(q, k, k)  # noqa: E731
            arms[f"cuDNN's attention of {length} tokens"] = ((fused, part), (own, part))
    with futures.ThreadPoolExecutor(compilers) as pool:
        compiled = {name: [pool.submit(ready, *way) for way in pair] for name, pair in arms.items()}
    for name, pair in arms.items():
        ways = []
        for (_, given), future in zip(pair, compiled[name], strict=True):
            run = failed(future.result)
            if isinstance(run, str):
                rows.add("Failed", {"why": f"{name}: {run}"})
                continue
            jax.block_until_ready(run(*given))

            def many(count: int, run=run, given=given) -> float:
                started = time.perf_counter()
                for _ in range(count):
                    out = run(*given)
                jax.block_until_ready(out)
                return time.perf_counter() - started

            ways.append(many)
        if len(ways) < len(pair):
            continue
        taken = [[run(20) / 20 for run in ways] for _ in range(3)]
        ours, theirs = (statistics.median(column) for column in zip(*taken, strict=True))
        rows.add(
            f"Layers, forward and backward, bfloat16 {list(shape)}",
            {
                "layer": name, "ms": f"{1e3 * ours:.3f}",
                "ms of what it stands beside": f"{1e3 * theirs:.3f}",
                "ratio": f"{ours / theirs:.2f}",
            },
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Timing:
    """Images/s of a program: the median of its rounds, the slowest and the fastest; its peer's."""

    program: Program
    speed: float
    low: float
    high: float
    peer: float = 0.0


def timed_beside(program: Program, peer: train_step.Peer | None, seconds: float) -> Timing:
    """A program's speed, in turn with its peer's where it has one."""
    program.start()
    found, theirs = timed(program.seconds, seconds), []
    if peer:
        for _ in range(2):
            theirs += [peer.seconds(program.case.peer[1], 20) / 20 for _ in range(2)]
            found += timed(program.seconds, seconds)
    program.end()
    rows = program.rows
    return Timing(
        program,
        rows / statistics.median(found),
        rows / max(found),
        rows / min(found),
        rows / statistics.median(theirs) if theirs else 0.0,
    )


def steps(rows: Rows, args: argparse.Namespace, group: str, cases: list[Case], ceiling: float):
    """One row for each case of a group, at the best of its batch sizes."""
    wanted = [(case, count) for case in cases for count in case.batches]
    peers = {}
    if args.peer_python:
        for case in cases:
            encoder, _ = case.peer
            if encoder:
                of = argparse.Namespace(
                    encoder=encoder, image_size=case.config.data.image_size,
                    batch_size=max(case.batches),
                )  # fmt: skip
                peers[case.name] = train_step.Peer(
                    args.peer_python, of, train_step.PEERS["torch bfloat16, compiled"]
                )
    with futures.ThreadPoolExecutor(args.compilers) as pool:
        warm = {
            name: pool.submit(peers[name].seconds, case.peer[1], 3)
            for case in cases
            if (name := case.name) in peers
        }
        programs = list(pool.map(lambda pair: failed(Program, *pair), wanted))
        for name, future in warm.items():
            if isinstance(failed(future.result), str):
                peers.pop(name).close()
    for case in cases:
        timings: list[Timing] = []
        said = [made for made in programs if isinstance(made, str)]
        for program in (p for p in programs if isinstance(p, Program) and p.case is case):
            timing = failed(timed_beside, program, peers.get(case.name), args.seconds)
            if isinstance(timing, Timing):
                timings.append(timing)
            else:
                said.append(f"{program.rows}: {timing}")
        if not timings:
            rows.add(group, {"step": case.name, "images/s": "; ".join(said)[:300]})
            continue
        best = max(timings, key=lambda timing: timing.speed)
        image = best.program.flops / best.program.rows
        of_peer = next((timing for timing in timings if timing.peer), None)
        rows.add(
            group,
            {
                "step": case.name,
                "images/s": f"{best.speed:,.0f} ({best.low:,.0f}–{best.high:,.0f})",
                "by batch": "; ".join(f"{t.program.rows}: {t.speed:,.0f}" for t in timings),
                "GFLOP an image": f"{image / 1e9:.2f}",
                "of ceiling": f"{image * best.speed / ceiling:.0%}",
                "program GB": f"{best.program.bytes / 1e9:.2f}",
                "compile s": f"{best.program.compile_seconds:.0f}",
                "peer's images/s": f"{of_peer.peer:,.0f}" if of_peer else "–",
                "ours / its": f"{of_peer.speed / of_peer.peer:.2f}" if of_peer else "–",
                "peer GB": f"{peers[case.name].bytes / 1e9:.2f}" if of_peer else "–",
            },
        )
    for peer in peers.values():
        peer.close()


def failed(call: Callable, *given: Any) -> Any:
    """The result, or in words why there is none: one case must not cost the others."""
    try:
        return call(*given)
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"


def main() -> None:
    """Measures in the order of importance until the time is over."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.6")  # the peer needs some too
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=1.5, help="that a step is timed for")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/benchmarks"))
    parser.add_argument("--peer_python", default=train_step.torch_python())
    parser.add_argument("--compilers", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--rehearse", action="store_true", help="at sizes for a CPU")
    args = parser.parse_args()
    end, small = time.monotonic() + 60 * args.minutes, args.rehearse
    rows = Rows(args.out, train_step.machine())
    side = 512 if small else 8192
    ceiling = max(train_step.matmul_ceiling("bfloat16", side) for _ in range(5))
    rows.add("Ceiling", {"product of": f"{side}²", "TFLOP/s in bfloat16": f"{ceiling / 1e12:.1f}"})

    def of(group: str, cases: list[Case]) -> Callable[[], None]:
        return lambda: steps(rows, args, group, cases, ceiling)

    *vits, beside, small_pictures, convolutions = (of(*group) for group in groups(small))
    work = [
        vits[0],
        small_pictures,
        lambda: of_layers(rows, small, args.compilers),
        lambda: parity(rows, small, args.compilers),
        *([beside] if args.peer_python else []),
        convolutions,
        *vits[1:],
    ]
    for part in work:
        if time.monotonic() > end:
            print("the time is over; what is missing was not measured")
            break
        problem = failed(part)
        if isinstance(problem, str):
            rows.add("Failed", {"why": problem})
    print(f"see {args.out / 'table.md'}")


if __name__ == "__main__":
    main()

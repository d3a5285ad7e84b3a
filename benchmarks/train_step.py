"""The train step, supervised and SSAT, beside the same step in PyTorch, alternating in one run.

    launch/local.sh --module benchmarks.train_step -- --peer_python=PYTHON_WITH_TORCH --write
    python -m benchmarks.train_step --check --peer_python=PYTHON_WITH_TORCH

Prints ms a step, images/s, the compiled program's FLOPs and their share of the matmul ceiling that
is measured beside them, compile time and peak memory, and the ratio to each peer. Each round runs
every arm once, in turn, so that whatever else the machine does meets them all; the table has the
median over rounds, the ratio the median of the rounds' ratios with their range. `--check` compares
loss and gradient norm of the two sides on equal parameters, images and masks instead.
"""

import argparse
import dataclasses
import datetime
import importlib.util
import os
import pathlib
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from hmtl_jax import build, optim, plan, recipe, rules, state, step
from hmtl_jax.models import encoders, vit
from hmtl_jax.program import make_views

# Name -> options of torch_peer.py.
PEERS = {
    "torch float32": ["--dtype=float32"],
    "torch float32, compiled": ["--dtype=float32", "--compile"],
    "torch bfloat16": ["--dtype=bfloat16"],
    "torch bfloat16, compiled": ["--dtype=bfloat16", "--compile"],
}
RESULTS = pathlib.Path(__file__).with_name("RESULTS.md")
CLASSES = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")


class Labels:
    """Stands for a data set: the step needs to know its labels, not its images."""

    labels = ("expression",)

    def __len__(self):
        return 1

    def class_names(self, label):
        """The eight expressions."""
        return CLASSES


def drops_tokens(encoder: str) -> bool:
    """Whether it can be a masked auto-encoder's."""
    return encoders.parse(encoder).drops_tokens


def methods_of(encoder: str) -> tuple[str, ...]:
    """What is measured of an encoder."""
    return ("supervised", "ssat") if drops_tokens(encoder) else ("supervised",)


class Ours:
    """One compiled train step of the project with its state on the devices."""

    def __init__(self, config: ConfigDict, args: argparse.Namespace):
        self.encoder = args.encoder
        made = build.make_tasks(config, Labels())
        self.training = build.training(config, made, 100 * args.batch_size)
        self.state = jax.jit(lambda: state.create(self.training))()
        self.batch = batch_of(args)
        jitted = build.jitted(step.train_step, self.training, donate_argnums=0)
        started = time.perf_counter()
        traced = jitted.trace(self.state, self.batch)
        self.step = traced.lower().compile()
        self.compile_seconds = time.perf_counter() - started
        memory, self.flops = self.step.memory_analysis(), plan.operations(traced)
        assert memory is not None, "this backend analyses no programs"
        self.bytes = memory.temp_size_in_bytes + memory.argument_size_in_bytes

    def seconds(self, steps: int) -> float:
        """Wall time of `steps` steps."""
        self.state, seconds = stepped(self.step, self.state, self.batch, steps)
        return seconds


def stepped(compiled: Any, current: Any, batch: Any, steps: int) -> tuple[Any, float]:
    """The state after `steps` steps on a batch, and their wall time."""
    started = time.perf_counter()
    for _ in range(steps):
        current, metrics = compiled(current, batch)
    jax.block_until_ready(metrics)
    return current, time.perf_counter() - started


class Peer:
    """benchmarks/torch_peer.py in a process of its own."""

    def __init__(self, python: str, args: argparse.Namespace, options: list[str]):
        encoder = args.encoder
        if drops_tokens(encoder):
            size = vit.parse(encoder)
            encoder = f"{size.dim}x{size.depth}x{size.heads}/{size.patch}"
        command = [
            python, str(pathlib.Path(__file__).with_name("torch_peer.py")), f"--encoder={encoder}",
            f"--image_size={args.image_size}", f"--batch_size={args.batch_size}", *options,
        ]  # fmt: skip
        self.command = " ".join(command)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout and self.process.stdin
        self.answers, self.questions, self.bytes = self.process.stdout, self.process.stdin, 0.0
        if self.answers.readline().strip() != "ready":
            sys.exit(f"error: the peer did not start: {self.command}")

    def ask(self, word: str, value: object) -> tuple[float, float]:
        """The two numbers that it answers; torch_peer.py says which."""
        self.questions.write(f"{word} {value}\n")
        self.questions.flush()
        answer = self.answers.readline().split()
        if len(answer) != 2:
            sys.exit(f"error: the peer ended; run it by hand: {self.command}")
        return float(answer[0]), float(answer[1])

    def seconds(self, method: str, steps: int) -> float:
        """Wall time of `steps` steps there."""
        taken, self.bytes = self.ask(method, steps)
        return taken

    def close(self) -> None:
        """Ends the process: it serves until its input does."""
        self.questions.close()
        self.process.wait()
        self.answers.close()


def config_of(method: str, args: argparse.Namespace):
    """The recipe that both sides compute: no augmentation, AdamW, label smoothing, λ = 0.1."""
    config = recipe.defaults()
    config.data.name = "random"
    config.batch_size, config.steps = args.batch_size, 10_000
    config.data.image_size = args.image_size
    config.model.encoder, config.model.dtype = args.encoder, args.dtype
    config.optim.warmup_epochs = 0.0
    config.tasks.expression = recipe.task("classification", label="expression", label_smoothing=0.1)
    if method == "ssat":
        config.pretexts.mae = recipe.pretext_task("mae")
        config.weighting.name = "ssat"
    return config


def batch_of(args: argparse.Namespace) -> dict[str, jax.Array]:
    """A random batch on the devices; zeros run faster than real data on some of them."""
    rng, shape = np.random.default_rng(0), (args.batch_size, args.image_size, args.image_size, 3)
    return {
        "image": jnp.asarray(rng.integers(0, 256, shape, dtype=np.uint8)),
        "expression": jnp.asarray(rng.integers(0, 8, args.batch_size), jnp.int32),
        "valid": jnp.ones(args.batch_size, bool),
    }


def matmul_ceiling(dtype: str, side: int) -> float:
    """FLOP/s of a square product of random matrices in `dtype`."""
    a = jax.random.normal(jax.random.key(0), (side, side)).astype(dtype)
    product = jax.jit(lambda a, b: a @ b)
    jax.block_until_ready(product(a, a))
    started = time.perf_counter()
    jax.block_until_ready(product(a, a))
    return 2 * side**3 / (time.perf_counter() - started)


def measure(args: argparse.Namespace) -> str:
    """Runs all arms in turn and returns the tables as Markdown."""
    methods, wanted = methods_of(args.encoder), args.peers or args.dtype
    if not any(wanted in name for name in PEERS):
        sys.exit(f"error: no peer has {wanted!r} in its name; they are: {'; '.join(PEERS)}.")
    ours = {method: Ours(config_of(method, args), args) for method in methods}
    peers = {}
    if args.peer_python:
        peers = {
            name: Peer(args.peer_python, args, options)
            for name, options in PEERS.items()
            if wanted in name
        }
    arms = {("hmtl_jax", m): ours[m].seconds for m in methods}
    for name, peer in peers.items():
        arms |= {(name, m): lambda n, p=peer, m=m: p.seconds(m, n) for m in methods}
    for run in arms.values():
        run(2)  # compiles the peer, warms all
    times = {arm: [] for arm in arms}
    ceilings: dict[str, float] = dict.fromkeys(rules.DTYPES, 0.0)
    for _ in range(args.rounds):
        for arm, run in arms.items():
            run(1)  # the first step after another arm's pays for that one's caches and memory
            times[arm].append(run(args.steps) / args.steps)
        for dtype, best in ceilings.items():
            ceilings[dtype] = max(best, matmul_ceiling(dtype, args.matmul))
    for peer in peers.values():
        peer.close()
    return "\n\n".join([own_table(args, ours, times, ceilings), peer_table(args, peers, times)])


def own_table(args, ours, times, ceilings: Mapping[str, float]) -> str:
    """What our step takes, as Markdown."""
    lines = [
        "| method | ms/step | images/s | GFLOP/step | of ceiling | compile s | program MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, mine in ours.items():
        seconds = statistics.median(times["hmtl_jax", method])
        lines.append(
            f"| {method} | {1e3 * seconds:.0f} | {args.batch_size / seconds:.1f} | "
            f"{mine.flops / 1e9:.1f} | {mine.flops / seconds / ceilings[args.dtype]:.0%} | "
            f"{mine.compile_seconds:.0f} | {mine.bytes / 1e6:.0f} |"
        )
    found = ", ".join(f"{dtype} {flops / 1e9:.0f}" for dtype, flops in ceilings.items())
    cost = ""
    if "ssat" in ours:
        cost = ratio(times["hmtl_jax", "ssat"], times["hmtl_jax", "supervised"])
        cost = f"SSAT costs {cost} a supervised step. "
    lines += [
        "",
        f"Ceiling: the best product of {args.matmul} × {args.matmul} matrices, GFLOP/s: {found}. "
        f"{cost}Peak memory {peak_bytes() / 1e6:.0f} MB "
        "(all programs in one process).",
    ]
    return "\n".join(lines)


def peer_table(args, peers, times) -> str:
    """Ours beside the peers, as Markdown."""
    lines = ["| peer | method | its images/s | ours / its | its peak MB |", "|---|---|---|---|---|"]
    for (name, method), found in times.items():
        if name in peers:
            speed = args.batch_size / statistics.median(found)
            faster = ratio(found, times["hmtl_jax", method])
            memory = peers[name].bytes / 1e6
            lines.append(f"| {name} | {method} | {speed:.1f} | {faster} | {memory:.0f} |")
    return "\n".join(lines) if peers else "No peer: no Python with PyTorch was named."


def peak_bytes() -> int:
    """Most memory held so far: the device's, or that of the process."""
    statistics_of_device = jax.devices()[0].memory_stats()
    if statistics_of_device:
        return statistics_of_device["peak_bytes_in_use"]
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def check(args: argparse.Namespace) -> str:
    """Both sides' SSAT loss and gradient norm in float32; exits where they differ by over 1e-4."""
    args.dtype = "float32"
    ours, peer = (
        Ours(config_of("ssat", args), args),
        Peer(args.peer_python, args, PEERS["torch float32"]),
    )
    # Biases start at zero and scales at one, where a wrong use of them would not show.
    noise = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: x + jnp.asarray(noise.normal(0.0, 0.05, x.shape), x.dtype), ours.state.params
    )
    ours.state = dataclasses.replace(ours.state, params=params)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "step.npz")
        np.savez(path, allow_pickle=False, **exported(ours))
        theirs = peer.ask("check", path)
    peer.close()
    _, metrics = ours.step(ours.state, ours.batch)
    mine = float(metrics["loss/total"]), float(metrics["grad_norm"])
    text = (
        f"loss {mine[0]:.7f} and {theirs[0]:.7f}, gradient norm {mine[1]:.7f} and {theirs[1]:.7f}"
    )
    if not np.allclose(mine, theirs, rtol=1e-4, atol=0):
        sys.exit(f"error: the two sides differ: {text}")
    return f"equal to 1e-4: {text}"


def exported(ours: Ours) -> dict[str, np.ndarray]:
    """Parameters under the peer's names, and the batch with the masks of the coming step."""
    size = vit.parse(ours.encoder)
    grid = ours.batch["image"].shape[1] // size.patch
    paths = jax.tree.leaves(optim.paths(ours.state.params))
    leaves = map(np.asarray, jax.tree.leaves(ours.state.params))
    arrays = {
        peer_name(path): leaf.T if path.endswith("kernel") else leaf
        for path, leaf in zip(paths, leaves, strict=True)
    }
    arrays["encoder.positions"] = vit.sincos_positions(grid, grid, size.dim)[None]
    width = arrays["decoder.mask_token"].shape[-1]
    table = np.pad(vit.sincos_positions(grid, grid, width), ((1, 0), (0, 0)))
    arrays["decoder.positions"] = table[None]
    arrays["images"] = np.asarray(ours.batch["image"])
    arrays["labels"] = np.asarray(ours.batch["expression"], np.int64)
    examples = step.augmented(ours.training, ours.state.seed, ours.state.step, ours.batch)
    views, _ = make_views(ours.training.program, examples["images"], examples["keys"])
    # Its argsort begins with the kept patches in their order; that of the others does not matter.
    noise = np.full((len(arrays["images"]), grid**2), grid**2, np.float32)
    keep = np.asarray(views["mae"].keep)
    np.put_along_axis(noise, keep, np.arange(keep.shape[1], dtype=np.float32)[None], axis=1)
    return arrays | {"noise": noise}


def peer_name(path: str) -> str:
    """`encoder/blocks/block00/qkv/kernel` → `encoder.blocks.0.qkv.weight`."""
    for pattern, name in (
        (r"^decoders_mae/", "decoder/"),
        (r"^heads_expression/linear/", "head/"),
        (r"block0*(\d+)/", r"\1/"),
        (r"(kernel|scale)$", "weight"),
    ):
        path = re.sub(pattern, name, path)
    return path.replace("/", ".")


def ratio(above: list[float], below: list[float]) -> str:
    """Median of the rounds' ratios with their range."""
    found = [a / b for a, b in zip(above, below, strict=True)]
    return f"{statistics.median(found):.2f}× ({min(found):.2f}–{max(found):.2f})"


def heading(args: argparse.Namespace) -> str:
    """What was measured, when and on what."""
    return (
        f"### Train step: {args.encoder}, {args.image_size} px, batch {args.batch_size}, "
        f"{args.dtype}\n\n{machine()}; {args.rounds} rounds of {args.steps} steps, arms "
        f"in turn; load average {os.getloadavg()[0]:.1f} at the start, "
        f"GLIBC_TUNABLES={os.environ.get('GLIBC_TUNABLES', '')}.\n"
    )


def machine() -> str:
    """The day, and what is measured on."""
    device = jax.devices()[0]
    hardware = device.device_kind if device.platform != "cpu" else cpu_model()
    return (
        f"{datetime.date.today()}, {hardware}, {os.cpu_count()} cores, JAX {jax.__version__}, "
        f"Python {platform.python_version()}"
    )


def cpu_model() -> str:
    """The processor's name where Linux tells it."""
    path = pathlib.Path("/proc/cpuinfo")
    names = [line for line in path.read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.processor()


def arguments() -> argparse.Namespace:
    """The command line, with defaults by device."""
    accelerated = jax.default_backend() != "cpu"
    parser = argparse.ArgumentParser(description="The train step beside its peers.")
    parser.add_argument("--encoder", default="B/16" if accelerated else "Ti/16")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=128 if accelerated else 32)
    parser.add_argument("--dtype", choices=tuple(rules.DTYPES), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20 if accelerated else 2)
    parser.add_argument("--matmul", type=int, default=8192 if accelerated else 2048)
    parser.add_argument("--peer_python", default=torch_python(), help="a Python with PyTorch")
    parser.add_argument("--peers", default="", help="a part of their names; default: --dtype")
    parser.add_argument("--check", action="store_true", help="compare numbers, not speed")
    parser.add_argument("--write", action="store_true", help=f"append to {RESULTS.name}")
    return parser.parse_args()


def torch_python() -> str:
    """This Python where it has PyTorch, else none."""
    return sys.executable if importlib.util.find_spec("torch") else ""


def main() -> None:
    """Measures and prints, and on request appends to RESULTS.md; or checks."""
    # Peers share the device: take of it what is needed, not three quarters.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    args = arguments()
    if args.check:
        print(check(args))
        return
    text = f"{heading(args)}\n{measure(args)}\n"
    print(text)
    if args.write:
        with RESULTS.open("a") as file:
            file.write(f"\n{text}")


if __name__ == "__main__":
    main()

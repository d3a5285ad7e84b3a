"""Several small trainings on one device at a time: what each gets, and what all get together.

    python -m benchmarks.several --processes 1,2,4,8 --recipe ferplus_supervised
    python -m benchmarks.several --processes 1,2 --words cpu --seeds 2

Each is a process with its part of the memory that takes steps of the recipe on noise, its pictures
on the device. All compile first; then the first k of them step side by side for some seconds. With
--seeds, at last as many trainings as one vectorised program.
"""

import argparse
import datetime
import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any


def serve(args: argparse.Namespace) -> None:
    """A process: `ready`, then for each line `SECONDS` its images/s over that time."""
    from benchmarks import all as benchmark

    config = benchmark.of_recipe(args.recipe, args.words, **dict(args.change))
    program = benchmark.Program(benchmark.Case("one", config, (), kept=True), args.batch_size)
    if args.serve > 1:
        steps = vectorised(program, args.serve)
        steps(1)
    else:
        program.start()
        steps = program.seconds
    print("ready", flush=True)
    for line in sys.stdin:
        start, images = time.perf_counter(), 0
        while time.perf_counter() < start + float(line):
            steps(2)
            images += 2 * args.serve * args.batch_size
        print(images / (time.perf_counter() - start), flush=True)


def vectorised(program: Any, seeds: int) -> Callable[[int], float]:
    """Steps of as many trainings as one program, which share the pictures and nothing else."""
    import jax

    from benchmarks import compile_time, train_step
    from hmtl_jax import step

    def of_all(tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.numpy.stack([x] * seeds), tree)

    kept = {"pictures": program.batch["pictures"]}
    batch = of_all({name: rows for name, rows in program.batch.items() if name not in kept}) | kept
    axes = {name: None if name in kept else 0 for name in batch}
    training = program.training
    run = jax.jit(jax.vmap(functools.partial(step.train_step, training), in_axes=(0, axes)))
    current = of_all(compile_time.noisy_state(program.abstract))

    def steps(count: int) -> float:
        nonlocal current
        current, seconds = train_step.stepped(run, current, batch, count)
        return seconds

    return steps


def start(count: int, seeds: int = 1) -> subprocess.Popen:
    """One of `count` processes, which trains so many seeds."""
    share = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / count:.3f}"}
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.several", *sys.argv[1:], f"--serve={seeds}"],
        env={**os.environ, **share}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(processes: Sequence[subprocess.Popen]) -> None:
    """Returns when all of them have compiled and said so; ends the program if one has not."""
    for process in processes:
        assert process.stdout
        if process.stdout.readline().strip() != "ready":
            sys.exit("error: a process did not start; see above.")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", default="1,2,4,8")
    parser.add_argument("--recipe", default="ferplus_supervised")
    parser.add_argument("--words", default="", help="the recipe's argument")
    parser.add_argument(
        "--change",
        action="append",
        default=[],
        help="KEY__KEY=VALUE of the recipe",
        type=lambda text: tuple(text.split("=", 1)),
    )
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--seeds", type=int, default=0, help="that train as one program, at last")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args)
        return
    counts = sorted(map(int, args.processes.split(",")))
    running = [start(counts[-1])]
    wait_for(running)  # what the first one compiles the others read, where it is kept
    running += [start(counts[-1]) for _ in range(counts[-1] - 1)]
    wait_for(running[1:])
    print(f"{datetime.date.today()}, {args.recipe}, batch {args.batch_size}")
    print("| trainings | images/s of each | images/s together | over one |\n|---|---|---|---|")
    alone = 0.0
    for count in counts:
        total = speed(running[:count], args.seconds)
        alone = alone or total
        print(row(f"{count}", count, total, alone), flush=True)
    for process in running:
        process.terminate()
    if args.seeds:
        together = [start(1, args.seeds)]
        wait_for(together)
        total = speed(together, args.seconds)
        print(row(f"{args.seeds} in one program", args.seeds, total, alone), flush=True)
        together[0].terminate()


def speed(processes: Sequence[subprocess.Popen], seconds: float) -> float:
    """Images/s of the processes together, which take steps side by side for some seconds."""
    for process in processes:
        assert process.stdin
        process.stdin.write(f"{seconds}\n")
        process.stdin.flush()
    return sum(float(process.stdout.readline()) for process in processes if process.stdout)


def row(name: str, count: int, total: float, alone: float) -> str:
    """A line of the table."""
    return f"| {name} | {total / count:,.0f} | {total:,.0f} | {total / alone:.2f} |"


if __name__ == "__main__":
    main()

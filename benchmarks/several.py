"""Several small trainings on one device at a time: what each gets, and what all get together.

    python -m benchmarks.several --processes 1,2,4,8 --recipe ferplus_supervised

Each is a process with its part of the memory that takes steps of the recipe on noise, its pictures
on the device. All compile first; then the first k of them step side by side for some seconds.
"""

import argparse
import datetime
import os
import subprocess
import sys
import time
from collections.abc import Sequence


def serve(args: argparse.Namespace) -> None:
    """One training: `ready`, then for each line `SECONDS` the images that it took in that time."""
    from benchmarks import all as benchmark

    config = benchmark.of_recipe(args.recipe, args.words, **dict(args.change))
    program = benchmark.Program(benchmark.Case("one", config, (), kept=True), args.batch_size)
    program.start()
    print("ready", flush=True)
    for line in sys.stdin:
        end, images = time.perf_counter() + float(line), 0
        while time.perf_counter() < end:
            program.seconds(10)
            images += 10 * args.batch_size
        print(images, flush=True)


def start(count: int) -> subprocess.Popen:
    """One of `count` processes."""
    share = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / count:.3f}"}
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.several", "--serve", *sys.argv[1:]],
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
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
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
    print("| processes | images/s of each | images/s together | over one |\n|---|---|---|---|")
    alone = 0.0
    for count in counts:
        for process in running[:count]:
            assert process.stdin
            process.stdin.write(f"{args.seconds}\n")
            process.stdin.flush()
        found = [
            int(process.stdout.readline()) / args.seconds
            for process in running[:count]
            if process.stdout
        ]
        alone = alone or sum(found)
        total = sum(found)
        print(
            f"| {count} | {total / count:,.0f} | {total:,.0f} | {total / alone:.2f} |", flush=True
        )
    for process in running:
        process.terminate()


if __name__ == "__main__":
    main()

"""What each pretext costs in training: step time, memory and compile time over supervised only.

    launch/local.sh --module benchmarks.pretexts -- --write
    launch/local.sh --module benchmarks.pretexts -- --encoder=resnet18-small

Each round runs every method once, in turn; ratios are the medians of the rounds' ratios with their
range. Memory is what the compiled program asks for. At inference all of them cost the same.
"""

import argparse
import statistics
from collections.abc import Callable

from ml_collections import ConfigDict

from benchmarks import train_step
from hmtl_jax import recipe, rules
from hmtl_jax.errors import UserError

MAE = {"decoder_heads": 4}


def with_pretext(stream: str, kind: str, **settings) -> Callable[[ConfigDict], None]:
    """What turns the supervised recipe into one with a pretext."""

    def change(config: ConfigDict) -> None:
        config.pretexts[kind] = recipe.pretext_task(kind, **settings)
        config.stream, config.optim.ema = stream, 0.999

    return change


def supervised(config: ConfigDict) -> None:
    """No pretext; the moving average is kept in all arms."""
    config.optim.ema = 0.999


def methods(size: int) -> dict[str, Callable[[ConfigDict], None]]:
    """Name → change of the supervised recipe, for images of `size` px."""
    smaller = (size, size * 2 // 3, size // 3)
    return {
        "supervised": supervised,
        "puzzle, one stream": with_pretext("one_stream", "puzzle", tiles=3),
        "puzzle beside the clean view": with_pretext("clean", "puzzle", tiles=3),
        "puzzle, siamese, 3 sizes": with_pretext("siamese", "puzzle", tiles=3, sizes=smaller),
        "rotation, one stream": with_pretext("one_stream", "rotation", tiles=3),
        "inpaint, one stream": with_pretext("one_stream", "inpaint"),
        "inpaint, one stream, L1 alone": with_pretext("one_stream", "inpaint", perceptual=0.0),
        "inpaint beside the clean view": with_pretext("clean", "inpaint"),
        "mae, pixels": with_pretext("clean", "mae", targets=("rgb",), **MAE),
        "mae, LBP": with_pretext("clean", "mae", targets=("lbp",), **MAE),
        "mae, pixels and LDP": with_pretext("clean", "mae", targets=("rgb", "ldp"), **MAE),
    }


def measure(args: argparse.Namespace) -> str:
    """Runs all methods in turn; returns the table as Markdown."""
    arms, refused = {}, []
    for name, change in methods(args.image_size).items():
        config = train_step.config_of("supervised", args)
        config.model.pool = "mean"
        change(config)
        try:
            arms[name] = train_step.Ours(config, args)
        except UserError as error:
            refused.append(f"{name}: {error}")
    times: dict[str, list[float]] = {name: [] for name in arms}
    for arm in arms.values():
        arm.seconds(2)
    for _ in range(args.rounds):
        for name, arm in arms.items():
            times[name].append(arm.seconds(args.steps) / args.steps)
    lines = [
        "| method | ms/step | over supervised | program MB | compile s |",
        "|---|---|---|---|---|",
    ]
    base = arms["supervised"]
    for name, arm in arms.items():
        over = train_step.ratio(times[name], times["supervised"])
        lines.append(
            f"| {name} | {1e3 * statistics.median(times[name]):.0f} | {over} | "
            f"{arm.bytes / 1e6:.0f} ({arm.bytes / base.bytes:.2f}×) | {arm.compile_seconds:.0f} |"
        )
    return "\n".join([*lines, *(f"\nLeft out: {line}" for line in refused)])


def main() -> None:
    """Measures and prints, and on request appends to RESULTS.md."""
    parser = argparse.ArgumentParser(description="What each pretext costs in training.")
    parser.add_argument("--encoder", default="192x6x3/8")
    parser.add_argument("--image_size", type=int, default=48)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--dtype", choices=tuple(rules.DTYPES), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--write", action="store_true", help="append to RESULTS.md")
    args = parser.parse_args()
    title = train_step.heading(args).replace("Train step", "Cost of pretexts")
    text = f"{title}\n{measure(args)}\n"
    print(text)
    if args.write:
        with train_step.RESULTS.open("a") as file:
            file.write(f"\n{text}")


if __name__ == "__main__":
    main()

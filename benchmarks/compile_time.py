"""How long the train step of every recipe takes to compile, and whether it runs.

    launch/local.sh --module benchmarks.compile_time -- --write
    python -m benchmarks.compile_time --only affectnet_mae

Each recipe in each form that its docstring shows, at its own encoder and image size, for one device
and without a cache of compiled programs; then one step on a batch of noise, of which every loss and
the gradient must be finite. Beside the wall time stands the processor's, which other work on the
machine hardly changes. ViT-B is compiled with and without a scan over its blocks.
"""

import argparse
import dataclasses
import datetime
import importlib
import inspect
import os
import pathlib
import re
import time
from collections.abc import Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import train_step
from hmtl_jax import build, plan, state, step

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
VIT_B = {"model.encoder": "B/16", "model.drop_path": 0.0}
LABELS = (
    "age_group=8,arousal=0,attributes=40,expression=8,expression_soft=8,fake=2,gender=8,pose=3,"
    "race=8,valence=0"
)


def faces(config: ConfigDict) -> plan.Told:
    """Stands for any of the data sets: labels of every kind, and no pictures."""
    return plan.told(config, LABELS, count=8)


def arguments_of(name: str, module) -> list[str]:
    """What the recipe's docstring shows behind its colon, and nothing where it may stand alone."""
    shown = set(re.findall(rf"configs/{name}\.py:([\w,]+)", module.__doc__))
    parameters = inspect.signature(module.get_config).parameters.values()
    alone = all(p.default is not inspect.Parameter.empty for p in parameters)
    return sorted(shown | {""} if alone else shown)


def recipes() -> Iterator[tuple[str, ConfigDict]]:
    """Every recipe that trains, in every form, by NAME or NAME:ARGUMENT."""
    for path in sorted(CONFIGS.glob("[a-z]*.py")):
        module = importlib.import_module(f"configs.{path.stem}")
        for argument in arguments_of(path.stem, module):
            config = module.get_config(argument) if argument else module.get_config()
            if config.job == "train":
                yield f"{path.stem}{argument and ':' + argument}", config
    for scan in (True, False):
        config = importlib.import_module("configs.affectnet_mae_lbp").get_config()
        with config.unlocked():
            config.update_from_flattened_dict(VIT_B | {"model.scan": scan})
        yield f"affectnet_mae_lbp, ViT-B/16{', scanned' if scan else ''}", config


def batch_of(config: ConfigDict, rows: int) -> dict[str, np.ndarray]:
    """A batch of noise with every label."""
    size, rng = config.data.decode_size or config.data.image_size, np.random.default_rng(0)
    first = faces(config)[0]
    batch = {name: np.stack([value] * rows) for name, value in first.items() if name != "key"}
    return batch | {
        "image": rng.integers(0, 256, (rows, size, size, 3)).astype(np.uint8),
        "valid": np.ones(rows, bool),
        "index": np.arange(rows, dtype=np.int32),
    }


def noise(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    """Small random weights, and ones where a scale or a variance is asked for."""
    if not np.issubdtype(leaf.dtype, np.floating):
        return np.zeros(leaf.shape, leaf.dtype)
    ones = path[-1].key in ("scale", "var") if hasattr(path[-1], "key") else False
    random = np.random.default_rng(leaf.size).standard_normal(leaf.shape, np.float32)
    return (float(ones) + 0.02 * random * (not ones)).astype(leaf.dtype)


def noisy_state(abstract: state.TrainState) -> state.TrainState:
    """A state of such noise on the host, without the time to compile its initialisers."""
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract)
    params = jax.tree_util.tree_map_with_path(noise, abstract.params)
    statistics = jax.tree_util.tree_map_with_path(noise, abstract.batch_stats)
    averages = {"params": params, "batch_stats": statistics} if abstract.ema else {}
    return dataclasses.replace(zeros, params=params, batch_stats=statistics, ema=averages)


def measure(config: ConfigDict, rows: int) -> tuple[int, float, float]:
    """Parameters in training, and wall and processor seconds to trace, lower and compile."""
    training = build.training(config, build.make_tasks(config, faces(config)), 25_000)
    abstract = jax.eval_shape(lambda: state.create(training))
    batch = batch_of(config, rows)
    jitted = build.jitted(step.train_step, training)
    started, processor = time.perf_counter(), time.process_time()
    compiled = jitted.lower(abstract, batch).compile()
    wall, processor = time.perf_counter() - started, time.process_time() - processor
    _, metrics = compiled(noisy_state(abstract), batch)
    bad = [name for name, value in metrics.items() if not np.isfinite(value)]
    if bad:
        raise SystemExit(f"error: {', '.join(bad)} of the first step are not finite")
    return state.count(abstract.params), wall, processor


def main() -> None:
    """Prints the table, and adds it to RESULTS.md if told to."""
    parser = argparse.ArgumentParser(description="Compiles the train step of every recipe.")
    parser.add_argument("--only", default="", help="recipes whose name holds this")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--write", action="store_true", help="add the table to RESULTS.md")
    args = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    lines = ["| recipe | million parameters | seconds | processor seconds |", "|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    for name, config in recipes():
        if args.only in name:
            params, wall, processor = measure(config, args.batch_size)
            jax.clear_caches()
            lines.append(f"| {name} | {params / 1e6:.1f} | {wall:.0f} | {processor:.0f} |")
            print(lines[-1], flush=True)
    if args.write:
        date = datetime.date.today()
        about = (
            f"JAX {jax.__version__}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, "
            f"batch of {args.batch_size}. Each step then ran, with finite losses."
        )
        text = f"\n## {date}: compile time of every recipe's step\n\n{about}\n\n"
        with train_step.RESULTS.open("a") as file:
            file.write(text + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

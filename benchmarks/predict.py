"""Pictures per second of `hmtl_jax.predict`, beside timm's way on the same files and weights.

    python -m benchmarks.predict
    python -m benchmarks.predict --peer_python OTHER/bin/python     # with torch, torchvision, timm

A ViT-Ti/16 at 224 px in float32 is trained for a step on drawn faces and exported; both then read
the same folder of 256-px JPEGs and write a csv. timm's side does what its repository's inference.py
does: an image folder, its loader with one worker a core, its evaluation transform, softmax, a
table; our weights come to it as TASK.safetensors. Each command runs on a quarter of the pictures
and on all, in alternation; the difference in wall time over that in pictures leaves start and
compilation out, which are told apart. Probabilities of both on the same 224-px pictures are held
against each other first.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from benchmarks.input_pipeline import draw_set, drawn_image, jpeg
from hmtl_jax import export, jobs, predict, recipe

HERE = pathlib.Path(__file__).parent


def run_of(folder: pathlib.Path, encoder: str) -> pathlib.Path:
    """A workdir of that encoder, trained for one step on drawn faces."""
    draw_set(folder / "data", "drawn", 224, 32, jpeg)
    config = recipe.defaults()
    config.steps, config.batch_size = 1, 8
    config.data.name, config.data.data_dir = "drawn", str(folder / "data")
    config.data.validation = config.data.test = ""
    config.data.image_size = 224
    config.model.encoder, config.model.dtype = encoder, "float32"
    config.optim.warmup_epochs = 0.0
    config.tasks.expression = recipe.task("classification", label="expression")
    jobs.run(config.lock(), str(folder / "run"))
    export.write(folder / "run")
    return folder / "run"


def seconds(command: list[str]) -> float:
    """The wall time of a command."""
    started = time.monotonic()
    subprocess.run(command, cwd=HERE.parent, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def apart(run: pathlib.Path, peer: list[str], folder: pathlib.Path) -> float:
    """The largest difference of both sides' probabilities of the same pictures."""
    rng = np.random.default_rng(1)
    images = [drawn_image(rng, 224) for _ in range(8)]
    np.save(folder / "images.npy", np.stack(images))
    ours = predict.Predictor(run).predict(images)["expression"]
    answer = folder / "answer.npy"
    same = [*peer, "--images", str(folder / "images.npy"), "--out", str(answer)]
    subprocess.run(same, cwd=HERE.parent, check=True)
    return float(np.abs(ours - np.load(answer)).max())


def main() -> None:
    """Prints one line a side."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", default="Ti/16")
    parser.add_argument("--pictures", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer_python", default="", help="an interpreter with torch and timm")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        rng = np.random.default_rng(0)
        for part, count in (("few", args.pictures // 4), ("all", args.pictures)):
            (folder / part).mkdir()
            for index in range(count):
                (folder / part / f"{index}.jpg").write_bytes(jpeg(drawn_image(rng, 256)))
        run = run_of(folder, args.encoder)
        peer = [args.peer_python, str(HERE / "timm_peer.py"), str(run / "expression.safetensors")]
        sides = {
            "ours": [sys.executable, "-m", "hmtl_jax.predict", str(run), "--overwrite", "--out"]
        }
        if args.peer_python:
            sides["timm"] = [*peer, "--out"]
            print(f"the same pictures: {apart(run, peer, folder):.1e} apart")
        spent: dict[tuple[str, str], list[float]] = {}
        for _ in range(args.rounds):
            for part in ("few", "all"):
                for side, command in sides.items():
                    flag = ["--folder"] if side == "timm" else []
                    whole = [*command, str(folder / f"{side}.csv"), *flag, str(folder / part)]
                    spent.setdefault((side, part), []).append(seconds(whole))
        more = args.pictures - args.pictures // 4
        rates = {}
        for side in sides:
            few, whole = (statistics.median(spent[side, part]) for part in ("few", "all"))
            rates[side] = more / (whole - few)
            start = few - (args.pictures // 4) / rates[side]
            print(f"{side}: {rates[side]:.1f} pictures/s, {start:.1f} s before the first")
        if "timm" in rates:
            print(f"ours over timm: {rates['ours'] / rates['timm']:.2f}")
        about = {"devices": str(jax.devices()), "cores": os.cpu_count(), "encoder": args.encoder}
        print(json.dumps(about))


if __name__ == "__main__":
    main()

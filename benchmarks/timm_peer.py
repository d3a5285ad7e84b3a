"""timm's side of benchmarks.predict: weights that we exported, an image folder, a csv.

python benchmarks/timm_peer.py expression.safetensors --out answers.csv --folder FOLDER
"""

import argparse
import csv
import os

import numpy as np
import safetensors
import timm  # pyright: ignore[reportMissingImports]
import timm.data  # pyright: ignore[reportMissingImports]
import torch  # pyright: ignore[reportMissingImports]
from safetensors.torch import load_file


def model_of(path):
    """The model that the file's own metadata describe, in evaluation, and the metadata."""
    with safetensors.safe_open(path, "pt") as file:
        about = file.metadata()
    made = eval(about["timm"], {"timm": timm})
    made.load_state_dict(load_file(path), strict=True)
    return made.eval(), about


@torch.inference_mode()
def main():
    """Classifies a folder, or an array of pictures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("weights")
    parser.add_argument("--folder")
    parser.add_argument("--images", help="npy of pictures of the model's size, instead of a folder")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    model, about = model_of(args.weights)
    mean, std = (tuple(map(float, about[key].split(","))) for key in ("mean", "std"))
    size = int(about["image_size"])
    if args.images:
        images = torch.from_numpy(np.load(args.images)).permute(0, 3, 1, 2).float() / 255
        images = (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        np.save(args.out, model(images).softmax(-1).numpy())
        return
    loader = timm.data.create_loader(
        timm.data.create_dataset("", args.folder, class_map=""),
        input_size=(3, size, size), batch_size=64, use_prefetcher=False, mean=mean, std=std,
        interpolation="bicubic", crop_pct=1.0, num_workers=os.cpu_count(), device="cpu",
    )  # fmt: skip
    rows = [model(images).softmax(-1) for images, _ in loader]
    names = loader.dataset.filenames(basename=True)
    with open(args.out, "w", newline="") as file:
        csv.writer(file).writerows(
            [name, *row] for name, row in zip(names, torch.cat(rows).tolist(), strict=True)
        )


if __name__ == "__main__":
    main()

"""Textures on device, each beside its peer on the host, in one run.

    python -m benchmarks.textures [--repeats 5]

The peer of LBP, HOG and Sobel is scikit-image, image by image; that of LDP, which scikit-image
lacks, is NumPy and SciPy on the whole batch. Arms alternate, the fastest of the repeats counts, and
the codes are compared before the clock starts. XLA uses all cores, the peers one each, as anyone
would run them. Takes a few minutes on two cores.
"""

import argparse
import os
import time
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from scipy import ndimage
from skimage.feature import hog as hog_of_one
from skimage.feature import local_binary_pattern
from skimage.filters import sobel as sobel_of_one

from hmtl_jax.textures.hog import hog
from hmtl_jax.textures.lbp import lbp
from hmtl_jax.textures.ldp import ldp
from hmtl_jax.textures.sobel import sobel

BATCH = 64
SIZES = (48, 224)


def skimage_lbp(gray_bhw, points, radius, method):
    """LBP of a batch, in float64, as scikit-image gives it."""
    return np.stack([local_binary_pattern(gray, points, radius, method) for gray in gray_bhw])


def numpy_ldp(gray_bhw, k=3):
    """LDP of a batch by eight correlations and a stable sort."""
    ring = [(1, 2), (0, 2), (0, 1), (0, 0), (1, 0), (2, 0), (2, 1), (2, 2)]
    responses = []
    for direction in range(8):
        mask = np.full((1, 3, 3), -3)
        for turn in (-1, 0, 1):
            mask[0][ring[(direction + turn) % 8]] = 5
        mask[0, 1, 1] = 0
        responses.append(ndimage.correlate(gray_bhw.astype(np.int32), mask, mode="nearest"))
    order = np.argsort(-np.abs(np.stack(responses)), axis=0, kind="stable")
    return np.sum(1 << order[:k], axis=0)


def skimage_hog(gray_bhw, cell=8, bins=9):
    """HOG of a batch without larger blocks, each cell's histogram at each of its pixels."""
    settings = {"feature_vector": False, "block_norm": "L2"}
    cells = np.stack(
        [
            hog_of_one(gray.astype(np.float64), bins, (cell, cell), (1, 1), **settings)[:, :, 0, 0]
            for gray in gray_bhw
        ]
    )
    return cells.repeat(cell, 1).repeat(cell, 2)


def skimage_sobel(gray_bhw):
    """Sobel of a batch, on levels, so that sums are exact, then in our scale."""
    found = np.stack([sobel_of_one(gray.astype(np.float64)) for gray in gray_bhw])
    return found * np.sqrt(8 / 5) / 255


def cases() -> dict[str, tuple[Callable, Callable]]:
    """Name -> (ours, peer), both from uint8 [B, H, W] to codes or maps."""
    circles = [(8, 1, method) for method in ("default", "ror", "uniform", "var")]
    lbps = {
        f"lbp P={points} R={radius} {method}": (
            partial(lbp, points=points, radius=radius, method=method),
            partial(skimage_lbp, points=points, radius=radius, method=method),
        )
        for points, radius, method in [*circles, (16, 2, "default"), (24, 3, "uniform")]
    }
    others = {
        "ldp k=3": (ldp, numpy_ldp),
        "hog cell=8": (hog, skimage_hog),
        "sobel": (sobel, skimage_sobel),
    }
    return lbps | others


def race(ours: Callable, peer: Callable, repeats: int) -> tuple[float, float]:
    """Fastest seconds of each arm, which alternate."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for arm, times in zip((ours, peer), seconds, strict=True):
            start = time.perf_counter()
            arm()
            times.append(time.perf_counter() - start)
    return min(seconds[0]), min(seconds[1])


def measure(name: str, ours: Callable, peer: Callable, size: int, repeats: int) -> str:
    """One line of the table."""
    gray_bhw = np.random.default_rng(0).integers(0, 256, (BATCH, size, size), dtype=np.uint8)
    on_device = jax.device_put(gray_bhw)
    compiled = jax.jit(ours).lower(on_device).compile()
    mine, theirs = np.asarray(compiled(on_device)), peer(gray_bhw)
    # What is no code is float32 here and float64 there; codes are integers and must be equal.
    differing = np.mean(~np.isclose(mine, theirs, rtol=1e-4, atol=0))
    fast, slow = race(
        lambda: compiled(on_device).block_until_ready(), lambda: peer(gray_bhw), repeats
    )
    return (
        f"| {size} | {name} | {fast * 1e3:.2f} | {slow * 1e3:.1f} | {slow / fast:.0f}x"
        f" | {differing:.1e} |"
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Textures beside scikit-image and NumPy.")
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    device = jax.devices()[0]
    print(f"{device.device_kind} ({os.cpu_count()} host cores), JAX {jax.__version__}, B={BATCH}\n")
    print("| px | texture | ours, ms | peer, ms | ratio | codes that differ |")
    print("|---|---|---|---|---|---|")
    for size in SIZES:
        for name, (ours, peer) in cases().items():
            print(measure(name, ours, peer, size, repeats), flush=True)


if __name__ == "__main__":
    main()

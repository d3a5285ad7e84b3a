"""Images per second of the input pipeline, by threads and worker processes, against a step's need.

    python -m benchmarks.input_pipeline --need 3000
    python -m benchmarks.input_pipeline --data_dir DATA --name ferplus --need 3000

Without --name two drawn sets are prepared in a temporary folder: 48-px grey PNGs, as in FER+, and
224-px JPEGs of about 18 KB, as AffectNet's faces are. Each figure is the median of three stretches.
`read` and `decode` are one thread's loops over the same records without the pipeline; together they
bound what a core can do. Where PyTorch and Pillow are installed (launch/setup.sh
requirements-bench.txt), a DataLoader reads the same pictures, each from its own file as its users
have them, with Pillow and with our decoder, shuffled, as uint8 batches: the peers. A busy machine
lowers images/s; images in a second of CPU time hold nearly still. --need is what the training step
takes (see benchmarks.train_step): a ratio above 1 means that the step would not wait, if the cores
counted here were free for the data.
Takes about five minutes on two cores.
"""

import argparse
import itertools
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg

from hmtl_jax.data import decode, pipeline, records
from hmtl_jax.data.labels import Label

STRETCHES = 3


def drawn_image(rng: np.random.Generator, size: int) -> np.ndarray:
    """Blobs with some grain [size, size, 3]: they compress about as photographs of faces do."""
    blobs = cv2.GaussianBlur(rng.normal(size=(size, size, 3)), (0, 0), size / 24)
    blobs = 20 + 215 * (blobs - blobs.min()) / np.ptp(blobs)
    return np.clip(blobs + rng.normal(0, 4, (size, size, 1)), 0, 255).astype(np.uint8)


def png(image_hwc: np.ndarray) -> bytes:
    """A grey PNG."""
    return cv2.imencode(".png", image_hwc[..., 0])[1].tobytes()


def jpeg(image_hwc: np.ndarray) -> bytes:
    """A colour JPEG."""
    return simplejpeg.encode_jpeg(image_hwc, quality=90)


def draw_set(
    folder: pathlib.Path, name: str, size: int, count: int, encode: Callable
) -> records.Source:
    """Prepares a drawn set and opens it."""
    rng = np.random.default_rng(0)
    labels = {"expression": Label("class", tuple(map(str, range(8))))}
    rows = (
        {"image": encode(drawn_image(rng, size)), "key": str(i), "expression": i % 8}
        for i in range(count)
    )
    records.write(folder, name, "1.0.0", labels, {"train": rows}, {})
    return records.open_split(folder, name, "train")


class Speed(NamedTuple):
    """Images per second, and per second of CPU time of this process (all its threads)."""

    wall: float
    cpu: float


def measure(step: Callable[[], int], seconds: float) -> Speed:
    """The speed of a step that returns how many images it made; medians of the stretches."""
    walls, cpus = [], []
    for _ in range(STRETCHES):
        images, start, cpu_start = 0, time.perf_counter(), time.process_time()
        while (passed := time.perf_counter() - start) < seconds / STRETCHES:
            images += step()
        walls.append(images / passed)
        cpus.append(images / (time.process_time() - cpu_start))
    return Speed(statistics.median(walls), statistics.median(cpus))


class Files:
    """The pictures of a set as files, as a dataset of PyTorch: (uint8 [3, S, S], class)."""

    def __init__(self, folder: pathlib.Path, source: records.Source, size: int, pillow: bool):
        self.size, self.pillow, self.rows = size, pillow, []
        folder.mkdir(exist_ok=True)
        for index in range(len(source)):
            record = source[index]
            path = folder / str(index)
            path.write_bytes(record["image"])
            self.rows.append((path, int(record["expression"])))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int):
        import torch  # pyright: ignore[reportMissingImports]
        from PIL import Image

        path, label = self.rows[index]
        if self.pillow:
            with Image.open(path) as image:
                image = image.convert("RGB")
                if image.size != (self.size, self.size):
                    image = image.resize((self.size, self.size))
                image_hwc = np.array(image)
        else:
            image_hwc = decode.decode(path.read_bytes(), self.size)
        return torch.from_numpy(image_hwc).permute(2, 0, 1), label


def loaders(
    source: records.Source, size: int, batch: int, seconds: float
) -> Iterator[tuple[str, Speed]]:
    """PyTorch's DataLoader on the same pictures, in this process and with workers."""
    try:
        import PIL  # noqa: F401
        import torch.utils.data  # pyright: ignore[reportMissingImports]
    except ImportError:
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for pillow in (True, False):
            files = Files(pathlib.Path(folder) / str(pillow), source, size, pillow)
            for workers in (0, 1, 2):
                loader = torch.utils.data.DataLoader(
                    files, batch, shuffle=True, num_workers=workers, drop_last=True,
                    persistent_workers=workers > 0,
                )  # fmt: skip
                batches = itertools.chain.from_iterable(itertools.repeat(loader))

                def step(batches: Iterator = batches) -> int:
                    return len(next(batches)[0])

                for _ in range(4 + 2 * workers):
                    step()
                with_ = "Pillow" if pillow else "our decoder"
                yield f"DataLoader, {with_}, {workers} workers", measure(step, seconds)


def bounds(source: records.Source, size: int, seconds: float) -> Iterator[tuple[str, Speed]]:
    """One thread reading, and one decoding, records in random order."""
    order = np.random.default_rng(0).integers(0, len(source), 2048).tolist()
    images = [source[index]["image"] for index in order]

    def read() -> int:
        return len([source[index] for index in order[:256]])

    def decode_some() -> int:
        return len([decode.decode(image, size) for image in images[:256]])

    yield "read", measure(read, seconds)
    yield "decode", measure(decode_some, seconds)


def pipelines(
    source: records.Source, size: int, batch: int, seconds: float
) -> Iterator[tuple[str, Speed]]:
    """The whole pipeline, by threads and workers."""
    label = next(label for label in source.labels if source.class_names(label))
    for workers, threads in [(0, 1), (0, 2), (0, 4), (1, 1), (2, 1)]:
        batches = pipeline.train_batches(
            source, labels=[label], image_size=size, batch_size=batch, seed=0,
            threads=threads, workers=workers,
        )  # fmt: skip

        def step(batches: pipeline.TrainBatches = batches) -> int:
            return len(next(batches)["image"])

        # What was read ahead while the first batch was made must not count as speed.
        for _ in range(threads + 4 + 2 * workers):
            step()
        name = f"{workers} workers" if workers else f"{threads} threads"
        yield name, measure(step, seconds)
        batches.close()


def report(source: records.Source, size: int, args: argparse.Namespace) -> None:
    """Prints the table of one set."""
    nbytes = statistics.mean(len(source[index]["image"]) for index in range(min(500, len(source))))
    print(f"\n{source.name}: {size} px, {nbytes / 1e3:.1f} KB an image, batch {args.batch_size}\n")
    print(f"| {'':34} | images/s | a CPU-second | images/s / {args.need:.0f} |")
    print("|---|---|---|---|")
    parts = (
        bounds(source, size, args.seconds),
        pipelines(source, size, args.batch_size, args.seconds),
        loaders(source, size, args.batch_size, args.seconds),
    )
    for name, speed in itertools.chain(*parts):
        # What workers use is not counted in this process.
        cpu = "" if "worker" in name and " 0 workers" not in name else f"{speed.cpu:.0f}"
        print(
            f"| {name:34} | {speed.wall:.0f} | {cpu} | {speed.wall / args.need:.2f} |", flush=True
        )


def main() -> None:
    """Measures one prepared set, or the two drawn ones."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data_dir", default="data", help="where prepared sets stand")
    parser.add_argument("--name", help="a prepared set; default: two drawn ones")
    parser.add_argument("--split", default="train")
    parser.add_argument("--image_size", type=int, default=48, help="of the set named by --name")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--need", type=float, default=3000, help="images/s of the training step")
    parser.add_argument("--seconds", type=float, default=6, help="for each row")
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the start")
    if args.name:
        report(records.open_split(args.data_dir, args.name, args.split), args.image_size, args)
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, size, count, encode in [("png48", 48, 4096, png), ("jpeg224", 224, 2048, jpeg)]:
            report(draw_set(pathlib.Path(folder), name, size, count, encode), size, args)


if __name__ == "__main__":
    main()

"""python -m hmtl_jax.predict RUN PATH …: what a run says of pictures, as a table.

    python -m hmtl_jax.predict runs/mine faces/ holiday.jpg "more/*.png" --out answers.csv

PATH is a picture, a video, a folder (every picture in it), a pattern, or a csv whose column `path`
names pictures. A row for each picture, for each face of it with --detector, and for each frame of a
video; also where a picture can't be read or has no face, which then stands in `error`. The picture
goes the very way of evaluation. Without --out the table is printed, as csv. In Python:

    predictor = predict.Predictor("runs/mine")
    rows = list(predictor(["faces/"]))
"""

import argparse
import csv
import dataclasses
import glob
import json
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import cv2
import jax
import numpy as np
import tqdm

from hmtl_jax import build, compiled, files, infer, pictures, sharding, trained
from hmtl_jax.data import decode, detect, video
from hmtl_jax.data.readers import own
from hmtl_jax.data.readers.tree import Tree
from hmtl_jax.errors import UserError

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")
FORMATS = (".csv", ".jsonl", ".parquet")
THREADS = min(8, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True)
class Sight:
    """One thing to look at, or why there is none: a picture, a frame of a video, a face in either.

    image: uint8 [S, S, 3], as the network gets it; None with an error. whole: the picture that it
    is of, [H, W, 3]. frame: of a video, from 0. box: of the face, in pixels of the whole.
    """

    input: str
    image: np.ndarray | None
    whole: np.ndarray | None = None
    frame: int | None = None
    box: tuple[float, ...] | None = None
    error: str = ""


class Predictor:
    """`predictor(paths)` yields a row for each thing to look at: a dict, ready for a table.

    A row holds input, frame, left, top, right, bottom (of the face), error, and for each task:
    of classes TASK (the most probable one), TASK_probability and a TASK/CLASS each; of a binary
    task TASK (the probability of yes); of others TASK/NAME each, in the labels' own unit.
    """

    def __init__(
        self, run: str | os.PathLike[str], *, detector: str = "", align: bool = False,
        batch_size: int = 64, frames: int = 8, max_pixels: int = decode.MAX_PIXELS,
    ):  # fmt: skip
        """run: a workdir, or a checkpoint in one. detector: weights of YuNet; "": whole pictures.

        align: turn each face upright by the detector's points. frames: evenly spaced ones of each
        video. max_pixels: of a picture; a larger one is not read. UserError for a run without
        tasks, and for what `trained.load` refuses.
        """
        self._mesh = sharding.make_mesh()
        with jax.set_mesh(self._mesh):
            self._run = trained.load(pathlib.Path(run), self._mesh)
            self._step = build.jitted(
                infer.eval_step, self._run.program, out_shardings=sharding.replicated(self._mesh)
            )
            self._attend = build.jitted(
                infer.attention_step, self._run.program,
                out_shardings=sharding.replicated(self._mesh),
            )  # fmt: skip
        self.tasks = dict(self._run.program.tasks)
        if not self.tasks:
            raise UserError(f"The run {run} has no task, and nothing to predict.")
        data = self._run.config.data
        self.size = int(data.decode_size or data.image_size)
        self.batch_size = sharding.divisible(batch_size, self._mesh)
        self._frames, self._max_pixels = frames, max_pixels
        # Large enough to be resized by the one rule that evaluation has.
        self._cutter = detect.cutter(detector, 4 * self.size if detector else 0, False)
        if align:
            self._cutter = detect.cutter(detector, self.size, True)

    def __call__(self, paths: Iterable[str | os.PathLike[str]]) -> Iterator[dict[str, Any]]:
        for sight, predicted in self.look(self.sights(inputs(paths))):
            yield self.row(sight, predicted)

    def sights(self, found: Iterable[str]) -> Iterator[Sight]:
        """What is to be looked at in these files, read on threads, in their order."""
        with futures.ThreadPoolExecutor(THREADS) as pool:
            ahead: list[futures.Future] = []
            for path in found:
                ahead.append(pool.submit(self._sights_of, path))
                if len(ahead) > 4 * THREADS:
                    yield from ahead.pop(0).result()
            for one in ahead:
                yield from one.result()

    def look(self, sights: Iterable[Sight]) -> Iterator[tuple[Sight, dict[str, Any] | None]]:
        """Each sight with its predictions by task, float32 [K] or []; None beside an error."""
        waiting: list[Sight] = []
        images = 0
        for sight in sights:
            waiting.append(sight)
            images += sight.image is not None
            if images == self.batch_size:
                yield from self._answered(waiting)
                waiting, images = [], 0
        yield from self._answered(waiting)

    def predict(self, images: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Predictions by task [N, …] of uint8 RGB pictures of any sizes, or of cut faces."""
        return self._in_batches(self._step, images)["predictions"]

    def attention(self, images: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Where the model looks in pictures, as `infer.attention_step` tells: NAME → [N, S, S].

        In [0, 1] and of the size that the network gets.
        """
        shape = (self.size, self.size)
        return {
            name: np.stack([cv2.resize(one, shape) for one in maps])
            for name, maps in self._in_batches(self._attend, images).items()
        }

    def row(self, sight: Sight, predicted: Mapping[str, Any] | None) -> dict[str, Any]:
        """A sight and its predictions as a row of the table."""
        box = sight.box or (None,) * 4
        found: dict[str, Any] = {"input": sight.input, "frame": sight.frame}
        found |= dict(zip(("left", "top", "right", "bottom"), box, strict=True))
        found["error"] = sight.error
        for name, task in self.tasks.items():
            values = None if predicted is None else np.asarray(predicted[name])
            found |= _columns(name, task, values)
        return found

    def _sights_of(self, path: str) -> list[Sight]:
        try:
            if path.lower().endswith(VIDEOS):
                return [
                    sight
                    for number, image in video.frames(path, self._frames)
                    for sight in self._faces(path, image, number)
                ]
            file = pathlib.Path(path)
            encoded = Tree(file.parent).read(file.name)
            return self._faces(path, decode.decode(encoded, max_pixels=self._max_pixels), None)
        except UserError as error:
            return [Sight(path, None, error=str(error))]

    def _faces(self, path: str, image: np.ndarray, frame: int | None) -> list[Sight]:
        if self._cutter.detector is None:
            return [Sight(path, decode.resize(image, self.size), image, frame)]
        found = self._cutter.detector.all(image)
        if not found:
            return [Sight(path, None, image, frame, error="no face was found")]
        return [
            Sight(
                path,
                decode.resize(self._cutter.cut(image, face), self.size),
                image,
                frame,
                face.box,
            )
            for face in found
        ]

    def _answered(self, waiting: list[Sight]) -> Iterator[tuple[Sight, dict[str, Any] | None]]:
        images = [sight.image for sight in waiting if sight.image is not None]
        predicted = self._batch(self._step, images)["predictions"] if images else {}
        place = 0
        for sight in waiting:
            if sight.image is None:
                yield sight, None
                continue
            yield sight, {name: rows[place] for name, rows in predicted.items()}
            place += 1

    def _in_batches(self, step: Any, images: Sequence[np.ndarray]) -> dict[str, Any]:
        """What a step makes of pictures of any sizes, a row each."""
        resized = [decode.resize(image, self.size) for image in images]
        parts = [
            self._batch(step, resized[at : at + self.batch_size])
            for at in range(0, len(resized), self.batch_size)
        ]
        return jax.tree.map(lambda *rows: np.concatenate(rows), *parts)

    def _batch(self, step: Any, images: Sequence[np.ndarray]) -> dict[str, Any]:
        """One compiled shape for all: what a batch lacks is zeros, and cut off again."""
        batch = np.zeros((self.batch_size, self.size, self.size, 3), np.uint8)
        batch[: len(images)] = images
        with jax.set_mesh(self._mesh):
            on_devices = sharding.to_devices({"image": batch}, self._mesh)
            found = jax.device_get(step(self._run.variables, on_devices))
        return jax.tree.map(lambda rows: rows[: len(images)], found)


def _columns(name: str, task: Any, values: np.ndarray | None) -> dict[str, Any]:
    if not task.outputs:
        return {name: None if values is None else float(values)}
    found = {}
    if hasattr(task, "classes"):
        best = None if values is None else int(values.argmax())
        found[name] = None if best is None else task.outputs[best]
        found[f"{name}_probability"] = (
            None if values is None or best is None else float(values[best])
        )
    for at, output in enumerate(task.outputs):
        found[f"{name}/{output}"] = None if values is None else float(values[at])
    return found


def inputs(paths: Iterable[str | os.PathLike[str]]) -> Iterator[str]:
    """The pictures and videos that paths stand for; UserError for one that stands for none."""
    for given in paths:
        path = os.fspath(given)
        place = pathlib.Path(path)
        if place.is_dir():
            found = [name for name in Tree(place).walk("") if _is_input(name)]
            if not found:
                raise UserError(f"The folder {path} holds no picture and no video.")
            yield from (os.fspath(place / name) for name in found)
        elif place.is_file() and place.suffix.lower() in (".csv", ".tsv"):
            yield from _listed(place)
        elif place.exists():
            yield path
        else:
            found = sorted(glob.glob(path, recursive=True))
            if not found:
                raise UserError(f"There is no {path}, and nothing that it is a pattern of.")
            yield from found


def _is_input(name: str) -> bool:
    return own.is_picture(name) or name.lower().endswith(VIDEOS)


def _listed(file: pathlib.Path) -> Iterator[str]:
    tree, mark = Tree(file.parent), "\t" if file.suffix.lower() == ".tsv" else ","
    rows = csv.DictReader(tree.lines(file.name), delimiter=mark)
    names = rows.fieldnames or []
    column = next(
        (name for name in names if name.strip().lower() in ("path", "file", "image")), None
    )
    if column is None:
        raise UserError(f"{file} has no column path; it has {', '.join(names) or 'none'}.")
    for row in rows:
        path = pathlib.Path((row[column] or "").strip())
        yield os.fspath(path if path.is_absolute() else file.parent / path)


def write(rows: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    """Writes rows as csv, JSON lines or parquet, by the name's end; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        files.write_parquet(
            path, {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
        )
    elif path.suffix == ".jsonl":
        lines = (f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
        files.write_text(path, "".join(lines))
    else:
        files.write_text(path, files.as_csv(rows))


def drawn(
    predictor: Predictor, seen: Sequence[tuple[Sight, Any]], attention: bool = False
) -> np.ndarray:
    """A picture with the boxes of its faces, their axes of pose, and bars of likely classes.

    attention: with each face beside it, red where the model looks.
    """
    whole = seen[0][0].whole
    assert whole is not None
    scale = 480 / max(whole.shape[:2])
    image = cv2.resize(whole, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    panel = np.full((image.shape[0], 300, 3), 255, np.uint8)
    line = 0
    for number, (sight, predicted) in enumerate(seen):
        if predicted is None:
            continue
        left, top, right, bottom = sight.box or (0, 0, whole.shape[1], whole.shape[0])
        corners = [round(scale * side) for side in (left, top, right, bottom)]
        if sight.box:
            cv2.rectangle(image, corners[:2], corners[2:], (40, 160, 40), 2)
            cv2.putText(image, str(number), corners[:2], 0, 0.6, (40, 160, 40), 2)
        for name, task in predictor.tasks.items():
            values = np.atleast_1d(predicted[name])
            if task.outputs == ("yaw", "pitch", "roll"):
                _draw_axes(image, corners, values)
            outputs = task.outputs or (name,)
            for at in np.argsort(-values)[: 3 if hasattr(task, "classes") else 6]:
                line += 1
                share = float(np.clip(values[at], 0, 1)) if hasattr(task, "classes") else 0.0
                y = 18 * line
                cv2.rectangle(
                    panel, (8, y - 12), (8 + round(284 * share), y + 2), (200, 220, 255), -1
                )
                said = f"{number} {outputs[at]} {values[at]:.2f}"
                cv2.putText(panel, said, (10, y), 0, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    found = [image, panel]
    faces = [sight.image for sight, _ in seen if sight.image is not None]
    if attention and faces:
        found.append(_looks(predictor, faces, image.shape[0]))
    return np.concatenate(found, axis=1)


def _looks(predictor: Predictor, faces: Sequence[np.ndarray], height: int) -> np.ndarray:
    """A row for each face that fits, a column for each map: red is looked at, blue is not."""
    maps, side = predictor.attention(faces), 120
    panel = np.full((height, side * len(maps), 3), 255, np.uint8)
    for column, (name, of) in enumerate(maps.items()):
        for row, (face, strength) in enumerate(zip(faces, of, strict=True)):
            top = row * side
            if top + side > height:
                break
            (mixed,) = (255 * pictures.heated(face[None] / 255, strength[None])).astype(np.uint8)
            tile = cv2.resize(mixed, (side, side), interpolation=cv2.INTER_AREA)
            cv2.putText(tile, name, (4, side - 6), 0, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
            panel[top : top + side, column * side : (column + 1) * side] = tile
    return panel


def _draw_axes(image: np.ndarray, corners: Sequence[int], angles: np.ndarray) -> None:
    """Where the head's right, down and front point to, in red, green and blue."""
    yaw, pitch, roll = np.radians(angles)
    left, top, right, bottom = corners
    middle, length = np.array([(left + right) / 2, (top + bottom) / 2]), (right - left) / 2
    cy, sy, cp, sp, cr, sr = (f(a) for a in (-yaw, pitch, roll) for f in (np.cos, np.sin))
    ends = {
        (220, 40, 40): (cy * cr, cp * sr + cr * sp * sy),
        (40, 180, 40): (-cy * sr, cp * cr - sp * sy * sr),
        (40, 40, 220): (sy, -cy * sp),
    }
    for colour, end in ends.items():
        there = middle + length * np.array(end)
        cv2.line(image, middle.astype(int).tolist(), there.astype(int).tolist(), colour, 2)


def main(argv: Sequence[str] | None = None) -> int:
    """Looks at pictures; returns 0, or 1 after one sentence on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m hmtl_jax.predict",
        description=(__doc__ or "").split(":", 1)[1].split("\n")[0],
    )
    parser.add_argument("run", help="a workdir, or a checkpoint in one")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="pictures, videos, folders, csv")
    parser.add_argument("--out", type=pathlib.Path, help=f"a file: {', '.join(FORMATS)}")
    parser.add_argument("--overwrite", action="store_true", help="replace --out")
    parser.add_argument("--draw", type=pathlib.Path, help="a folder for pictures with the answers")
    parser.add_argument("--attention", action="store_true", help="draw where the model looks too")
    parser.add_argument("--detector", default="", help="weights of YuNet: a row for each face")
    parser.add_argument("--align", action="store_true", help="turn faces upright by their points")
    parser.add_argument("--frames", type=int, default=8, help="of each video")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--max_pixels", type=int, default=decode.MAX_PIXELS, help="of a picture")
    args = parser.parse_args(argv)
    try:
        _run(args)
    except UserError as error:
        print(f"predict: {error}", file=sys.stderr)
        return 1
    return 0


def _run(args: argparse.Namespace) -> None:
    if args.out and args.out.suffix not in FORMATS:
        raise UserError(f"--out {args.out} must end in one of {', '.join(FORMATS)}.")
    if args.out and args.out.exists() and not args.overwrite:
        raise UserError(f"{args.out} is there already; pass --overwrite, or another name.")
    for name in ("frames", "batch_size", "max_pixels"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: give 1 or more.")
    if args.attention and not args.draw:
        raise UserError("--attention needs --draw, a folder for the pictures.")
    found = list(inputs(args.paths))
    predictor = Predictor(
        files.local(args.run, "RUN"), detector=args.detector, align=args.align,
        batch_size=args.batch_size, frames=args.frames, max_pixels=args.max_pixels,
    )  # fmt: skip
    sights = predictor.sights(tqdm.tqdm(found, unit=" files", disable=None))
    rows, group = [], []
    for sight, predicted in predictor.look(sights):
        rows.append(predictor.row(sight, predicted))
        if args.draw:
            if group and (group[0][0].input, group[0][0].frame) != (sight.input, sight.frame):
                _draw(predictor, args.draw, group, args.attention)
                group = []
            group.append((sight, predicted))
    if group:
        _draw(predictor, args.draw, group, args.attention)
    if args.out:
        write(rows, args.out)
        failed = sum(bool(row["error"]) for row in rows)
        print(f"{len(rows):,} rows in {args.out}{f', {failed:,} with an error' if failed else ''}")
    else:
        print(files.as_csv(rows), end="")


def _draw(predictor: Predictor, folder: pathlib.Path, group: Sequence, attention: bool) -> None:
    first = group[0][0]
    if first.whole is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    stem = pathlib.Path(first.input).stem + ("" if first.frame is None else f"-{first.frame}")
    path, number = folder / f"{stem}.png", 1
    while path.exists():
        path, number = folder / f"{stem}-{number}.png", number + 1
    cv2.imwrite(str(path), drawn(predictor, group, attention)[..., ::-1])


if __name__ == "__main__":
    compiled.keep()
    sys.exit(main())

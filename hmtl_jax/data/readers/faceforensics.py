"""FaceForensics++ (Rössler et al. 2019): real videos, and five ways to swap their faces."""

import collections
import dataclasses
import json
import os
import pathlib
from typing import ClassVar

from hmtl_jax import errors, files
from hmtl_jax.data import detect
from hmtl_jax.data.labels import Label
from hmtl_jax.data.readers import videos
from hmtl_jax.data.readers.reader import Row, Survey, Track, option

METHODS = ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures", "FaceShifter")
LABELS = {
    "fake": Label("class", ("real", "fake")),
    "method": Label("class", ("original", *METHODS)),
    "video": Label("int"),
}
SPLITS = {"train": "train.json", "validation": "val.json", "test": "test.json"}
PUBLISHED = {"train": 360, "validation": 70, "test": 70}  # pairs of videos
# As the download script names the compressions, and as folders are named.
COMPRESSIONS = ("c23", "c40", "raw")


@dataclasses.dataclass(frozen=True)
class FaceForensics:
    """The folder of original_sequences and manipulated_sequences, and the official split files.

    Labels: fake, method, and video int32: the frames of one video share it, so that evaluation can
    go by video. Both videos of an official pair and their fakes are in one split.
    """

    name: ClassVar[str] = "faceforensics"
    version: ClassVar[str] = "1.0.0"
    needs_source: ClassVar[bool] = True
    obtain: ClassVar[str] = (
        "original_sequences/youtube and manipulated_sequences by the authors' script, and "
        "train.json, val.json, test.json of their repository beside them or in splits/; on request"
    )

    compression: str = option("c23", "of the videos", COMPRESSIONS)
    methods: tuple[str, ...] = option(METHODS, "of manipulation", METHODS)
    frames: int = option(32, "frames of each video, evenly spaced")
    detector: str = option("", "weights of YuNet (see data/detect.py); a face is its box times 1.3")
    whole_frames: bool = option(False, "store whole frames, without a detector")
    image_size: int = option(256, "longest side of a stored image; larger ones shrink, 0 keeps all")

    @property
    def label_rule(self) -> str:
        """As in `Reader`."""
        what = "whole frames" if self.whole_frames else "the largest face's box times 1.3"
        return (
            f"official pairs and splits, {self.compression}; {self.frames} evenly spaced frames a "
            f"video, of each {what}."
        )

    def survey(self, source: str | os.PathLike[str], track: Track) -> Survey:
        """As in `Reader`."""
        root, cut = files.local(source, "--source"), cutter(self)
        if not root.is_dir():
            raise errors.UserError(f"{root} is no folder; unpack the videos.")
        rows: dict[str, list[Row]] = {}
        number = 0
        for split, file in SPLITS.items():
            pairs, found = _pairs(root, file), []
            for method, names in track(_videos(pairs, self.methods), f"{split} videos"):
                for name in names:
                    path = self._path(root, method, name)
                    labels = {
                        "fake": int(method != "original"),
                        "method": LABELS["method"].names.index(method),
                        "video": number,
                    }
                    number += 1
                    key = f"{method}/{name}"
                    found.extend(videos.rows(path, key, labels, self.frames, cut))
            rows[split] = found
        return Survey(rows, LABELS, collections.Counter())

    def check(self, survey: Survey) -> list[str]:
        """Every video of the official pairs, of the methods that were asked for."""
        wrong = []
        for split, pairs in PUBLISHED.items():
            expected = 2 * pairs * (1 + len(self.methods))
            found = len(survey.splits[split]) // self.frames
            if found != expected:
                wrong.append(f"{split} has {found:,} videos instead of {expected:,}")
        return wrong

    def _path(self, root: pathlib.Path, method: str, name: str) -> pathlib.Path:
        kind = "original_sequences/youtube" if method == "original" else (
            f"manipulated_sequences/{method}"
        )  # fmt: skip
        compressions = ("raw", "c0") if self.compression == "raw" else (self.compression,)
        for compression in compressions:
            path = root / kind / compression / "videos" / f"{name}.mp4"
            if path.is_file():
                return path
        raise errors.UserError(
            f"{path} is missing; fetch {method} with the authors' script, or leave it out: "
            "--methods takes those that are there."
        )


def cutter(reader) -> detect.Cutter:
    """That of a reader with the fields `frames`, `detector`, `whole_frames` and `image_size`."""
    if reader.frames < 1:
        raise errors.UserError(f"--frames {reader.frames}: a video gives at least one.")
    if reader.whole_frames == bool(reader.detector):
        raise errors.UserError(
            "Videos have no boxes of faces: name the weights of a detector by --detector (see "
            "hmtl_jax/data/detect.py), or pass --whole_frames; one of the two."
        )
    return detect.cutter(reader.detector, reader.image_size)


def _pairs(root: pathlib.Path, file: str) -> list[tuple[str, str]]:
    path = next((one for one in (root / file, root / "splits" / file) if one.is_file()), None)
    if path is None:
        raise errors.UserError(
            f"{root} lacks {file}, in itself or in splits/; it is in the authors' repository."
        )
    try:
        pairs = [(str(a), str(b)) for a, b in json.loads(path.read_text())]
    except (ValueError, TypeError) as error:
        raise errors.UserError(f"{path} is no list of pairs of videos; fetch it again.") from error
    return pairs


def _videos(pairs: list[tuple[str, str]], methods) -> list[tuple[str, list[str]]]:
    """The originals of pairs, and of each method both that are made of a pair: TARGET_SOURCE."""
    originals = [name for pair in pairs for name in pair]
    fakes = [f"{target}_{source}" for a, b in pairs for target, source in ((a, b), (b, a))]
    return [("original", originals), *((method, fakes) for method in methods)]

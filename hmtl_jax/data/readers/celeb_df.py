"""Celeb-DF v2 (Li et al. 2020): 590 real videos of celebrities, 5,639 fakes, 300 more real ones."""

import collections
import dataclasses
import os
import pathlib
import re
from typing import ClassVar

from hmtl_jax import errors, files
from hmtl_jax.data.labels import Label
from hmtl_jax.data.readers import videos
from hmtl_jax.data.readers.faceforensics import cutter
from hmtl_jax.data.readers.held_out import check_share, digest
from hmtl_jax.data.readers.reader import Row, Survey, Track, option

FOLDERS = {"Celeb-real": 0, "YouTube-real": 0, "Celeb-synthesis": 1}  # 1: fake
LIST = "List_of_testing_videos.txt"
LABELS = {"fake": Label("class", ("real", "fake")), "video": Label("int")}
PUBLISHED = {"videos": 6_529, "test": 518}


@dataclasses.dataclass(frozen=True)
class CelebDf:
    """The folders Celeb-real, Celeb-synthesis, YouTube-real and List_of_testing_videos.txt.

    Labels: fake (in the official list 1 means real), and video int32. Validation is drawn by
    person: a video with one of its people there and another in train is in neither.
    """

    name: ClassVar[str] = "celeb_df"
    version: ClassVar[str] = "2.0.0"  # of Celeb-DF itself
    needs_source: ClassVar[bool] = True
    obtain: ClassVar[str] = "Celeb-DF-v2.zip of the authors, on request, unpacked; for research"

    frames: int = option(32, "frames of each video, evenly spaced")
    detector: str = option("", "weights of YuNet (see data/detect.py); a face is its box times 1.3")
    whole_frames: bool = option(False, "store whole frames, without a detector")
    image_size: int = option(256, "longest side of a stored image; larger ones shrink, 0 keeps all")
    validation: float = option(0.1, "share of the people outside of the test list: validation")
    seed: int = option(0, "another seed draws other people")

    @property
    def label_rule(self) -> str:
        """As in `Reader`."""
        what = "whole frames" if self.whole_frames else "the largest face's box times 1.3"
        return (
            f"official test list; validation is {self.validation:.0%} of the other people (seed "
            f"{self.seed}); {self.frames} evenly spaced frames a video, of each {what}."
        )

    def survey(self, source: str | os.PathLike[str], track: Track) -> Survey:
        """As in `Reader`."""
        check_share(self.validation)
        root, cut = files.local(source, "--source"), cutter(self)
        if not (root / LIST).is_file():
            raise errors.UserError(f"{root} should hold {LIST} and {', '.join(FOLDERS)}.")
        tested, left_out = _tested(root / LIST), collections.Counter()
        names = [
            f"{folder}/{path.name}"
            for folder in FOLDERS
            for path in sorted((root / folder).glob("*.mp4"))
            if not path.name.startswith("._")
        ]
        missing = sorted(set(tested) - set(names))
        if missing:
            raise errors.UserError(f"{root / missing[0]} is missing, which {LIST} names.")
        others = sorted({one for name in names if name not in tested for one in people(name)})
        ordered = sorted(others, key=lambda one: digest(self.seed, one))
        held = set(ordered[: round(self.validation * len(ordered))])
        splits: dict[str, list[Row]] = collections.defaultdict(list)
        for number, name in track(list(enumerate(names)), "videos"):
            inside = {one in held for one in people(name)}
            if name in tested:
                split = "test"
            elif len(inside) > 1:
                left_out["videos with one person in validation and one in train"] += 1
                continue
            else:
                split = "validation" if inside == {True} else "train"
            fake = FOLDERS[name.split("/")[0]]
            if tested.get(name, fake) != fake:
                raise errors.UserError(f"{LIST} calls {name} {'fake' if not fake else 'real'}.")
            labels, key = {"fake": fake, "video": number}, name.removesuffix(".mp4")
            splits[split].extend(videos.rows(root / name, key, labels, self.frames, cut))
        return Survey(dict(splits), LABELS, left_out)

    def check(self, survey: Survey) -> list[str]:
        """All videos, and those of the test list."""
        left = sum(survey.left_out.values())
        found = {
            "videos": left + sum(map(len, survey.splits.values())) // self.frames,
            "test": len(survey.splits.get("test", ())) // self.frames,
        }
        return [
            f"it has {found[what]:,} {'videos' if what == 'videos' else 'videos to test'} instead "
            f"of {size:,}"
            for what, size in PUBLISHED.items()
            if found[what] != size
        ]


def people(name: str) -> tuple[str, ...]:
    """`Celeb-synthesis/id1_id2_0003.mp4` → id1, id2; a video of YouTube is a person of its own."""
    return tuple(re.findall(r"id\d+", name)) or (name,)


def _tested(path: pathlib.Path) -> dict[str, int]:
    """The videos of the official list → whether they are fake; it says 1 for real."""
    found = {}
    for line, text in enumerate(path.read_text().splitlines(), start=1):
        words = text.split()
        if not words:
            continue
        if len(words) != 2 or words[0] not in ("0", "1"):
            raise errors.UserError(
                f"{path.name}, line {line}: {text!r} is not 0 or 1 (real) and a video."
            )
        found[words[1]] = 1 - int(words[0])
    return found

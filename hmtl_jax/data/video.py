"""Frames of a video, evenly spaced and the same wherever they are taken: PyAV, from start to end.

A video is decoded in order, never by seeking: with B-frames or a changing frame rate a seek lands
on other frames, by the codec's and the container's leave.
"""

import pathlib

import numpy as np

from hmtl_jax.errors import UserError


def frames(path: str | pathlib.Path, count: int) -> list[tuple[int, np.ndarray]]:
    """Returns `count` frames as (number from 0 on, uint8 [H, W, 3] RGB), upright.

    The frame in the middle of each of `count` equal parts of the video; each frame once where it
    has fewer. Needs the package av.

    Raises:
      UserError: no video, one without pictures, or one that is damaged or cut short.
    """
    try:
        import av  # optional: only sets of videos need it
        import av.error
    except ImportError as error:
        raise UserError(
            "Videos need the package av: .venv/bin/python -m pip install -r requirements-video.txt."
        ) from error
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(f"{path} has no pictures, only sound.")
            stream = container.streams.video[0]
            total = sum(1 for packet in container.demux(stream) if packet.size)
        if not total:
            raise UserError(f"{path} has no frame.")
        wanted = {int((part + 0.5) * total / count) for part in range(count)}
        found = []
        with av.open(str(path)) as container:
            container.streams.video[0].thread_type = "AUTO"
            for number, frame in enumerate(container.decode(video=0)):
                if number in wanted:
                    found.append((number, _upright(frame)))
                    if len(found) == len(wanted):
                        return found
    except av.error.FFmpegError as error:
        raise UserError(f"{path} is damaged, cut short or no video ({error}).") from error
    raise UserError(
        f"{path} is cut short: only {len(found)} of {len(wanted)} frames could be decoded."
    )


def _upright(frame) -> np.ndarray:
    """As it is shown: phones store a portrait lying, with the turn beside it."""
    image_hwc = frame.to_ndarray(format="rgb24")
    quarters = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image_hwc, quarters))

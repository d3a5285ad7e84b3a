"""Small real mp4 files, encoded by PyAV: each frame tells its own number by its grey."""

import fractions
import struct
import zlib

import av
import numpy as np

SHAPE = (48, 64)


def grey(number):
    """The grey level of a frame, far enough from the next that coding does not hide it."""
    return 16 + 7 * number


def film(path, count=30, *, b_frames=0, times=None, sound=False, pictures=True):
    """Writes `count` frames in H.264; the left quarter of each is white, whatever its grey, and
    the middle has a colour of the film's own.

    times: of each frame, in units of 1/30 s, for a changing frame rate.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        if pictures:
            stream = container.add_stream("libx264", rate=30)
            stream.height, stream.width = SHAPE
            stream.pix_fmt = "yuv420p"
            stream.options = {"bf": str(b_frames), "crf": "12", "g": "12"}
            stream.codec_context.time_base = fractions.Fraction(1, 30)
        if sound:
            voice = container.add_stream("aac", rate=16000)
            voice.codec_context.layout = "mono"
        if pictures:
            for number in range(count):
                image = np.full((*SHAPE, 3), grey(number), np.uint8)
                image[:, : SHAPE[1] // 4] = 255
                image[8:-8, 24:48] = list(zlib.crc32(str(path).encode()).to_bytes(4))[:3]
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts = times[number] if times else number
                frame.time_base = fractions.Fraction(1, 30)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        if sound:
            noise = np.zeros((1, 1024), np.float32)
            for number in range(20):
                frame = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 16000, 1024 * number
                frame.time_base = fractions.Fraction(1, 16000)
                container.mux(voice.encode(frame))
            container.mux(voice.encode(None))
    return path


def turn(path):
    """Makes a film one of a phone held upright: its track header turns it by 90 degrees."""
    whole = bytearray(path.read_bytes())
    at = whole.index(b"tkhd") + 4 + 40  # version and flags, times, and what else stands before it
    matrix = struct.unpack_from(">9i", whole, at)
    assert matrix[0] == matrix[4] == 1 << 16 and matrix[8] == 1 << 30
    struct.pack_into(">9i", whole, at, 0, 1 << 16, 0, -(1 << 16), 0, 0, SHAPE[0] << 16, 0, 1 << 30)
    path.write_bytes(whole)
    return path


def number_of(image_hwc):
    """The number of the frame that a picture is of, by the grey of its last column."""
    return round((float(image_hwc[:, -4:].mean()) - 16) / 7)

"""Encoded pictures to uint8 RGB arrays: simplejpeg for JPEG, OpenCV for everything else.

What the many formats become (ours, chosen to match what most face loaders do):

- EXIF orientation is honoured, as by any viewer: an own photograph is upright.
- Alpha is dropped, not composited; grey and palette pictures become three channels.
- CMYK becomes RGB as in Pillow: each of C, M, Y times K, without a colour profile.
- 16-bit pictures are scaled to 8 bits (65535 becomes 255), not clipped or cut to the low byte.
- Of an animation the first frame is taken.
"""

import io
import struct

import cv2
import imagesize
import numpy as np
import simplejpeg

from hmtl_jax import errors

# Images are decoded by many threads at once; OpenCV's own pool would only fight with them.
cv2.setNumThreads(1)
# Our error names the record, which OpenCV's lines on stderr can't.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

# A picture with a shorter side has no texture to learn, and the gradients of textures need two.
MIN_SIDE = 2
# What prepare takes at most, 8192 x 8192: above every camera for portraits, and 200 MB decoded.
MAX_PIXELS = 2**26
END_OF_JPEG = b"\xff\xd9"


def decode(encoded: bytes, size: int | None = None, max_pixels: int | None = None) -> np.ndarray:
    """Returns the picture as uint8 [H, W, 3], RGB.

    Args:
      encoded: JPEG, PNG, WebP, TIFF, BMP or another format that OpenCV reads.
      size: H = W = size, without regard to the aspect ratio (area averages along a side that
        shrinks, bicubic along one that grows); None leaves the picture's own size.
      max_pixels: a picture whose header tells more is refused before it is decoded; None: any.

    A JPEG that lacks its end marker alone, or has zeros in its place, is read as if whole.

    Raises:
      UserError: bytes that are damaged, cut short or no picture; pixels that are no integers; a
        side shorter than `MIN_SIDE`; too many pixels.
    """
    if max_pixels is not None:
        _check_pixels(encoded, max_pixels)
    is_jpeg = encoded[:2] == b"\xff\xd8"
    image_hwc = _read_jpeg(encoded, size) if is_jpeg else _read_other(encoded)
    height, width = image_hwc.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise errors.UserError(
            f"The image has {height} x {width} pixels; {MIN_SIDE} x {MIN_SIDE} is the least."
        )
    return image_hwc if size is None else resize(image_hwc, size)


def _check_pixels(encoded: bytes, most: int) -> None:
    """A small file can hold a picture that fills the memory of each thread that decodes it."""
    try:
        width, height = imagesize.get(io.BytesIO(encoded))
    except Exception:  # a header that it can't read; the decoder will say what is wrong
        return
    if int(width) * int(height) > most:
        raise errors.UserError(
            f"The image has {height} x {width} pixels, more than the {most:,} that are allowed; "
            "shrink it, or allow more with --max_pixels."
        )


def resize(image_hwc: np.ndarray, size: int) -> np.ndarray:
    """Returns uint8 [size, size, 3]; area averages along a shrinking side, else bicubic."""
    height, width = image_hwc.shape[:2]
    # OpenCV's area average is a true one only if no side grows: so first all that shrinks.
    shrunk = (min(width, size), min(height, size))
    if shrunk != (width, height):
        image_hwc = cv2.resize(image_hwc, shrunk, interpolation=cv2.INTER_AREA)
    if shrunk != (size, size):
        image_hwc = cv2.resize(image_hwc, (size, size), interpolation=cv2.INTER_CUBIC)
    return image_hwc


def _read_jpeg(encoded: bytes, size: int | None) -> np.ndarray:
    try:
        colorspace = simplejpeg.decode_jpeg_header(encoded)[2]
    except ValueError as error:
        if simplejpeg.is_jpeg(encoded):  # whole, but of a kind that TurboJPEG doesn't take
            return _read_other(encoded)
        raise _damaged(error) from error
    is_cmyk = colorspace in ("CMYK", "YCCK")
    try:
        image_hwc = _pixels_of_jpeg(encoded, "CMYK" if is_cmyk else "RGB", size)
    except ValueError as error:
        try:
            # With an end marker, what still is missing is the pixels' own.
            ended = encoded.rstrip(b"\0") + END_OF_JPEG
            image_hwc = _pixels_of_jpeg(ended, "CMYK" if is_cmyk else "RGB", size)
        except ValueError:
            raise _damaged(error) from error
    if is_cmyk:
        # 255 stands for no ink, as Adobe writes it and all readers take it, so this is the light
        # that each ink lets through, and black's scales the other three.
        light_hwc = image_hwc.astype(np.uint16)
        image_hwc = ((light_hwc[..., :3] * light_hwc[..., 3:] + 127) // 255).astype(np.uint8)
    return _upright(image_hwc, _orientation(encoded))


def _pixels_of_jpeg(encoded: bytes, colorspace: str, size: int | None) -> np.ndarray:
    # A large photograph is decoded at 1/2, 1/4 or 1/8, still not below `size`: several times
    # faster. Factors under 2 would be slower than the whole picture.
    return simplejpeg.decode_jpeg(
        encoded,
        colorspace=colorspace,
        min_height=size or 0,
        min_width=size or 0,
        min_factor=2 if size else 1,
    )


def _read_other(encoded: bytes) -> np.ndarray:
    # OpenCV asserts that there are bytes.
    buffer = np.frombuffer(encoded or b"\0", np.uint8)
    try:
        # Not as RGB: of a 16-bit TIFF, OpenCV 5.0 then hands out memory that nobody has written.
        image_hwc = cv2.imdecode(buffer, cv2.IMREAD_COLOR_BGR | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:
        raise _damaged(error.err) from error
    if image_hwc is None:
        raise _damaged(f"{len(encoded)} bytes that no decoder takes")
    image_hwc = np.ascontiguousarray(image_hwc[..., ::-1])
    if image_hwc.dtype == np.uint16:
        return ((image_hwc.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    if image_hwc.dtype != np.uint8:
        raise errors.UserError(
            f"The image has {image_hwc.dtype} pixels; convert it to 8 or 16 bits per channel."
        )
    return image_hwc


def _damaged(reason: object) -> errors.UserError:
    return errors.UserError(f"The image is damaged, cut short or no picture ({reason}).")


def _orientation(jpeg: bytes) -> int:
    """The EXIF tag 0x0112 of a JPEG, 1 to 8; 1 (upright) where there is none."""
    start = jpeg.find(b"Exif\0\0", 0, 65536) + 6
    if start < 6:
        return 1
    endian = "<" if jpeg[start : start + 2] == b"II" else ">"
    try:
        (offset,) = struct.unpack_from(f"{endian}I", jpeg, start + 4)
        (entries,) = struct.unpack_from(f"{endian}H", jpeg, start + offset)
        for entry in range(entries):
            position = start + offset + 2 + 12 * entry
            tag, _, _, value = struct.unpack_from(f"{endian}HHIH", jpeg, position)
            if tag == 0x0112:
                return value if 1 <= value <= 8 else 1
    except struct.error:  # a damaged header; the picture itself may still be fine
        pass
    return 1


def _upright(image_hwc: np.ndarray, orientation: int) -> np.ndarray:
    if orientation >= 5:
        image_hwc = image_hwc.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image_hwc = image_hwc[::-1]
    if orientation in (2, 3, 6, 7):
        image_hwc = image_hwc[:, ::-1]
    return np.ascontiguousarray(image_hwc)

"""Faces cut out of pictures: the square around a box, shrunk to what is stored, as JPEG."""

import cv2
import numpy as np
import simplejpeg

from hmtl_jax import errors

QUALITY = 95  # of the JPEG that a cut is stored as


def square(
    left: float, top: float, right: float, bottom: float, scale: float = 1.0
) -> tuple[int, int, int]:
    """Left, top and side, in whole pixels, of the square around a box, `scale` times as large."""
    width, height = right - left, bottom - top
    side = max(width, height) * scale
    return round(left + (width - side) / 2), round(top + (height - side) / 2), max(2, round(side))


def cut(image_hwc: np.ndarray, left: int, top: int, side: int) -> np.ndarray:
    """Returns [side, side, 3]; where the square leaves the image, its border is repeated.

    UserError if the square lies outside of the image.
    """
    height, width = image_hwc.shape[:2]
    if not (-side < left < width and -side < top < height):
        raise errors.UserError(
            f"The face box at {left}, {top} lies outside of the image of {width} x {height} pixels."
        )
    rows = np.clip(np.arange(top, top + side), 0, height - 1)
    columns = np.clip(np.arange(left, left + side), 0, width - 1)
    return np.ascontiguousarray(image_hwc[rows[:, None], columns[None, :]])


def scale_of(longest: float, size: int) -> float:
    """How much a picture of that longest side shrinks to `size`; 1 if it is small or size is 0."""
    return min(1.0, size / longest) if size else 1.0


def shrink(image_hwc: np.ndarray, size: int) -> np.ndarray:
    """With `size` as its longest side (area averages); a smaller one, or size 0: as it is."""
    height, width = image_hwc.shape[:2]
    scale = scale_of(max(height, width), size)
    if scale == 1:
        return image_hwc
    shape = (max(2, round(width * scale)), max(2, round(height * scale)))
    return cv2.resize(image_hwc, shape, interpolation=cv2.INTER_AREA)


def jpeg(image_hwc: np.ndarray) -> bytes:
    """Encodes uint8 RGB."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image_hwc), quality=QUALITY)

"""Faces cut out of pictures: the square around a box, or upright by five points; stored as JPEG."""

import cv2
import numpy as np
import simplejpeg

from hmtl_jax import errors

QUALITY = 95  # of the JPEG that a cut is stored as
# Where ArcFace (Deng 2019) has both eyes, the nose and both corners of the mouth, in a square of
# 112; those on the left of the picture come first.
TEMPLATE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655),
     (70.7299, 92.2041)]
) / 112  # fmt: skip


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


def upright(points_52: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """What brings five points closest to TEMPLATE in a square of `size` (Umeyama 1991).

    points_52: x and y in pixels of both eyes, nose, and both corners of the mouth, those on the
    left of the picture first. Returns float64 turn [2, 2], a rotation times a scale, and shift [2]:
    a point is at turn @ point + shift in the square. UserError for points all in one place.
    """
    points, target = np.asarray(points_52, np.float64), TEMPLATE * size
    from_, to = points - points.mean(0), target - target.mean(0)
    spread = (from_**2).sum()
    if not spread > 0:
        raise errors.UserError("The five points of a face are all in one place.")
    # The similarity as a complex number: z → a z + b, the best a in closed form.
    a = (to @ [1, 1j] * (from_ @ [1, -1j])).sum() / spread
    turn = np.array([[a.real, -a.imag], [a.imag, a.real]])
    return turn, target.mean(0) - turn @ points.mean(0)


def align(image_hwc: np.ndarray, points_52: np.ndarray, size: int) -> np.ndarray:
    """Returns [size, size, 3]: turned, shifted and scaled as `upright` says.

    What lies outside of the picture repeats its border.
    """
    turn, shift = upright(points_52, size)
    scale = np.hypot(*turn[0])
    if scale < 1:  # a resample alone would alias; so the picture shrinks first
        small = cv2.resize(image_hwc, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        ratio = np.array(image_hwc.shape[1::-1]) / small.shape[1::-1]
        shift = shift + turn @ (ratio / 2 - 0.5)  # of the middles of pixels
        turn, image_hwc = turn * ratio, small
    matrix = np.concatenate([turn, shift[:, None]], axis=1)
    return cv2.warpAffine(
        image_hwc, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )


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

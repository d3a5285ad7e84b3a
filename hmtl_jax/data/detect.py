"""Where the faces of a picture are, for sets that don't say: OpenCV's YuNet (Wu et al. 2023).

Its weights (MIT licence, face_detection_yunet_2026may.onnx in OpenCV's model zoo) are the user's to
fetch and to point at; nothing is fetched here. The file of 2023 has a fixed size of pictures, which
OpenCV 5 does not change.
"""

import dataclasses
import pathlib
import threading
from collections.abc import Callable

import cv2
import numpy as np

from hmtl_jax import files
from hmtl_jax.data import decode, faces
from hmtl_jax.errors import UserError

CONFIDENCE = 0.6  # of a face; YuNet's own default is 0.9, which misses profiles and blurred faces
LONGEST = 640  # pixels of the side that is searched; a face of a tenth of it is found


SCALE = 1.3  # of a face's box, as all who report on FaceForensics++ have it


class NoFace(UserError):
    """A picture has no face to cut out: it is left out and listed, which is no fault."""


@dataclasses.dataclass(frozen=True)
class Face:
    """Where a face is, in pixels: left, top, right, bottom, and five points as in faces.align."""

    box: tuple[float, float, float, float]
    points: np.ndarray  # float [5, 2]


Detector = Callable[[np.ndarray], Face | None]


@dataclasses.dataclass(frozen=True)
class Cutter:
    """`cutter(image) -> image`: its largest face, or, without a detector, the whole.

    image_size: the longest side of what comes out; larger ones shrink, 0 keeps all. upright: the
    face is turned by its five points, to a square of image_size. Raises NoFace.
    """

    detector: Detector | None
    image_size: int
    upright: bool = False

    def __post_init__(self):
        if self.upright and not (self.detector and self.image_size):
            raise UserError(
                "Faces are aligned by the points of a detector, to a square of --image_size; give "
                "both, or leave out --align."
            )

    def __call__(self, image_hwc: np.ndarray) -> np.ndarray:
        if self.detector is None:
            return faces.shrink(image_hwc, self.image_size)
        face = self.detector(image_hwc)
        if face is None:
            raise NoFace("no face was found")
        return self.cut(image_hwc, face)

    def cut(self, image_hwc: np.ndarray, face: Face) -> np.ndarray:
        """One face of a picture, as it is stored."""
        if self.upright:
            return faces.align(image_hwc, face.points, self.image_size)
        return faces.shrink(faces.cut(image_hwc, *faces.square(*face.box, SCALE)), self.image_size)

    def stored(self, encoded: bytes) -> bytes:
        """A picture's own bytes if it stays as it is, else those of a JPEG."""
        if self.detector is None and not self.image_size:
            return encoded
        image_hwc = decode.decode(encoded)
        cut_hwc = self(image_hwc)
        return encoded if cut_hwc is image_hwc else faces.jpeg(cut_hwc)


def cutter(weights: str, image_size: int, upright: bool = False) -> Cutter:
    """By the detector of these weights; "" for none."""
    return Cutter(YuNet(weights) if weights else None, image_size, upright)


class YuNet:
    """`detector(image) -> Face`, the largest one, or None; `detector.all(image)`: every face.

    image: uint8 [H, W, 3], RGB. Safe to call from many threads: each has its own network.
    """

    def __init__(self, weights: str | pathlib.Path):
        """UserError unless `weights` is a YuNet as ONNX."""
        self._weights = files.local(weights, "--detector")
        if not self._weights.is_file():
            raise UserError(
                f"--detector {weights} does not exist; it is the file "
                "face_detection_yunet_2026may.onnx of OpenCV's model zoo, fetched by you."
            )
        self._local = threading.local()
        self._network()

    def __call__(self, image_hwc: np.ndarray) -> Face | None:
        return next(iter(self.all(image_hwc)), None)

    def all(self, image_hwc: np.ndarray) -> list[Face]:
        """The faces of a picture, the largest first."""
        height, width = image_hwc.shape[:2]
        scale = min(1.0, LONGEST / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        searched = cv2.resize(image_hwc, size, interpolation=cv2.INTER_AREA)
        network = self._network()
        network.setInputSize(size)
        _, found = network.detect(np.ascontiguousarray(searched[..., ::-1]))
        faces_n14 = np.zeros((0, 14)) if found is None else found[:, :14].astype(float) / scale
        faces_n14 = faces_n14[np.argsort(-faces_n14[:, 2] * faces_n14[:, 3], kind="stable")]
        # The person's right eye comes first, which is on the left of the picture.
        return [
            Face((left, top, left + width, top + height), np.array(points).reshape(5, 2))
            for left, top, width, height, *points in faces_n14.tolist()
        ]

    def _network(self):
        if not hasattr(self._local, "network"):
            try:
                self._local.network = cv2.FaceDetectorYN.create(
                    str(self._weights), "", (320, 320), CONFIDENCE
                )
            except cv2.error as error:
                raise UserError(f"--detector {self._weights} is no YuNet as ONNX.") from error
        return self._local.network

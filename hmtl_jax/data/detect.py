"""Where the faces of a picture are, for sets that don't say: OpenCV's YuNet (Wu et al. 2023).

Its weights (MIT licence, face_detection_yunet_2023mar.onnx in OpenCV's model zoo) are the user's to
fetch and to point at; nothing is fetched here.
"""

import pathlib
import threading

import cv2
import numpy as np

from hmtl_jax import files
from hmtl_jax.errors import UserError

CONFIDENCE = 0.6  # of a face; YuNet's own default is 0.9, which misses profiles and blurred faces
LONGEST = 640  # pixels of the side that is searched; a face of a tenth of it is found


class YuNet:
    """`detector(image) -> (left, top, right, bottom)` of the largest face, or None.

    image: uint8 [H, W, 3], RGB. Safe to call from many threads: each has its own network.
    """

    def __init__(self, weights: str | pathlib.Path):
        """UserError unless `weights` is a YuNet as ONNX."""
        self._weights = files.local(weights, "--detector")
        if not self._weights.is_file():
            raise UserError(
                f"--detector {weights} does not exist; it is the file "
                "face_detection_yunet_2023mar.onnx of OpenCV's model zoo, fetched by you."
            )
        self._local = threading.local()
        self._network()

    def __call__(self, image_hwc: np.ndarray) -> tuple[float, float, float, float] | None:
        height, width = image_hwc.shape[:2]
        scale = min(1.0, LONGEST / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        searched = cv2.resize(image_hwc, size, interpolation=cv2.INTER_AREA)
        network = self._network()
        network.setInputSize(size)
        _, found = network.detect(np.ascontiguousarray(searched[..., ::-1]))
        if found is None or not len(found):
            return None
        left, top, width, height = max(found, key=lambda face: face[2] * face[3])[:4] / scale
        return float(left), float(top), float(left + width), float(top + height)

    def _network(self):
        if not hasattr(self._local, "network"):
            try:
                self._local.network = cv2.FaceDetectorYN.create(
                    str(self._weights), "", (320, 320), CONFIDENCE
                )
            except cv2.error as error:
                raise UserError(f"--detector {self._weights} is no YuNet as ONNX.") from error
        return self._local.network

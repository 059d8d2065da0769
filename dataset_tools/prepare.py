"""The one way from a crop to what a network takes: training, evaluation and scoring all call it.

Everything else (scaling to a value range) is a layer of the network itself.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dataset_tools.detection import RgbImage
from schemas.model import ModelSpec


def prepare(crop: RgbImage, spec: ModelSpec) -> NDArray[np.uint8]:
    """(height, width, 3) RGB uint8 of any size → (input_px, input_px, channels) uint8, as `spec` says."""
    pixels: NDArray[Any] = crop
    if spec.colour == "grey":
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    size = (spec.input_px, spec.input_px)
    if pixels.shape[:2] != size:
        shrinks = pixels.shape[0] > spec.input_px
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    if spec.equalise:
        pixels = _equalised(pixels)
    return np.ascontiguousarray(pixels.reshape(*size, -1).astype(np.uint8, copy=False))


def _equalised(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Histogram equalisation of the luminance; colours keep their hue."""
    if pixels.ndim == 2:
        return cv2.equalizeHist(pixels).astype(np.uint8, copy=False)
    luminance, *chroma = cv2.split(cv2.cvtColor(pixels, cv2.COLOR_RGB2YCrCb))
    merged = cv2.merge([cv2.equalizeHist(luminance), *chroma])
    return cv2.cvtColor(merged, cv2.COLOR_YCrCb2RGB).astype(np.uint8, copy=False)

"""One face's pixels, cut from the original picture into a square: aligned by its five landmarks, or its upright box.

Pixels come from the original and never from the shrunken copy that a detector looked at. A large face is sampled finely
and averaged down, because a single bilinear step from 1,500 px to 224 px keeps every fifth pixel and aliases.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dataset_tools.detection import Face, RgbImage

_ARCFACE_112 = (
    complex(38.2946, 51.6963),
    complex(73.5318, 51.5014),
    complex(56.0252, 71.7366),
    complex(41.5493, 92.3655),
    complex(70.7299, 92.2041),
)
"""Where the landmarks stand in ArcFace's square of 112 px (Deng et al., 2019), as x + iy."""
_ARCFACE_SIDE = 112.0
_LEAST_SAMPLES = 3
"""Of averaged blocks along a crop pixel: with two the crops lose 5 % of their sharpness, with three 2 %."""
_SPACING_PX = 1.5
"""Between bilinear samples at most. Each reaches over two pixels, so that none is left out, and samples √2 px apart
spread just as wide as the average over the area: closer ones blur, and cost more."""

CROP_FORMATS = ("jpeg", "png", "webp")


@dataclass(frozen=True)
class CropRecipe:
    """aligned: by the similarity transform of the landmarks to ArcFace's template. margin: added on each side, as a
    fraction of the square's side (the longer side of the box, or the template's square). size_px: side of the crop.
    format, quality: how it is encoded."""

    aligned: bool = True
    margin: float = 0.2
    size_px: int = 224
    format: str = "jpeg"
    quality: int = 95

    def __post_init__(self) -> None:
        if not 0 <= self.margin <= 2:
            raise ValueError(f"margin must be from 0 to 2, not {self.margin}")
        if not 16 <= self.size_px <= 2048:
            raise ValueError(f"crop size must be from 16 to 2048 px, not {self.size_px}")
        if self.format not in CROP_FORMATS:
            raise ValueError(f"crop format must be one of {', '.join(CROP_FORMATS)}, not {self.format!r}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must be from 1 to 100, not {self.quality}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def crop_face(pixels: RgbImage, face: Face, recipe: CropRecipe) -> tuple[RgbImage, bool]:
    """The crop, (size, size, 3) uint8, and whether it is aligned.

    Landmarks that coincide define no transform: that face is cut by its box even if the recipe aligns, and the second
    value says so. Where the square reaches over the picture's edge, the picture is reflected.
    """
    matrix = _align(face, recipe) if recipe.aligned else None
    aligned = matrix is not None
    return _sample(pixels, _upright(face, recipe) if matrix is None else matrix, recipe.size_px), aligned


def _align(face: Face, recipe: CropRecipe) -> NDArray[np.float64] | None:
    """Least squares over scale, rotation and shift, closed form: with points as complex numbers it is w = a·z + b."""
    scale = recipe.size_px / (_ARCFACE_SIDE * (1 + 2 * recipe.margin))
    # Python's own numbers: numpy takes several times as long over five.
    z = [complex(x, y) for x, y in face.landmarks]
    w = [(point + recipe.margin * complex(_ARCFACE_SIDE, _ARCFACE_SIDE)) * scale for point in _ARCFACE_112]
    z_mean, w_mean = sum(z) / len(z), sum(w) / len(w)
    spread = sum(abs(point - z_mean) ** 2 for point in z)
    if spread < 1.0:
        return None
    a = sum((p - z_mean).conjugate() * (q - w_mean) for p, q in zip(z, w, strict=True)) / spread
    if abs(a) < 1e-6:
        return None
    b = w_mean - a * z_mean
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def _upright(face: Face, recipe: CropRecipe) -> NDArray[np.float64]:
    x1, y1, x2, y2 = face.box
    side = max(x2 - x1, y2 - y1, 1.0) * (1 + 2 * recipe.margin)
    scale = recipe.size_px / side
    left, top = (x1 + x2 - side) / 2, (y1 + y2 - side) / 2
    return np.array([[scale, 0.0, -left * scale], [0.0, scale, -top * scale]])


def _sample(pixels: RgbImage, matrix: NDArray[np.float64], size: int) -> RgbImage:
    """Averages k × k bilinear samples a crop pixel.

    Where one spans six and more original pixels along a side, whole blocks of these are averaged first, and three or
    more of those sampled: four levels of 255 beside sampling every pixel at most, and a third of the time.
    """
    shrink = 1 / math.hypot(matrix[0, 0], matrix[1, 0])
    # Only the part under the square is handed over: OpenCV's warp takes no side of more than 32,767 px.
    corners = np.array([[0, size, 0, size], [0, 0, size, size], [1, 1, 1, 1]])
    source = cv2.invertAffineTransform(matrix) @ corners
    height, width = pixels.shape[:2]
    block = max(1, int(shrink / _LEAST_SAMPLES))
    # Sampling looks beyond the square: by whole blocks, and floor with a hair against the noise of floats, so that
    # blocks stand under crop pixels where they can.
    edge = 2 * block
    x0, y0 = (
        max(0, min(math.floor(low + 1e-6) - edge, side - 1))
        for low, side in zip(source.min(1), (width, height), strict=True)
    )
    x1, y1 = (
        max(1, min(math.floor(high) + edge + 1, side))
        for high, side in zip(source.max(1), (width, height), strict=True)
    )
    part = pixels[y0:y1, x0:x1]
    block = min(block, *part.shape[:2])
    if block > 1:
        rows, columns = part.shape[0] // block, part.shape[1] // block
        whole = part[: rows * block, : columns * block]
        part = cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    k = max(1, math.ceil(shrink / block / (1 if block > 1 else _SPACING_PX)))
    fine = matrix * k
    fine[:, 2] += fine[:, 0] * x0 + fine[:, 1] * y0
    fine[:, :2] *= block
    # warpAffine counts positions from pixel centres, the matrix from pixel corners.
    fine[:, 2] += 0.5 * (fine[:, 0] + fine[:, 1]) - 0.5
    samples = cv2.warpAffine(
        part, fine, (size * k, size * k), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    if k > 1:
        samples = cv2.resize(samples, (size, size), interpolation=cv2.INTER_AREA)
    return samples.astype(np.uint8, copy=False)

"""What can be measured on one face without a model: sharpness, luminance, distance between the eyes, head roll.

The names are those of ISO/IEC 29794-5 (face image quality); the measures are the plain ones behind them, so that a
reader can recompute them. Screening holds a face back by these, and the ledger counts it.
"""

import math
from dataclasses import dataclass

import cv2

from dataset_tools.detection import Face, RgbImage

_SHARPNESS_SIDE_PX = 112


@dataclass(frozen=True)
class Quality:
    """sharpness: variance of the Laplacian of the luminance (0 to 255) on the crop at 112 px, so that crop sizes
    compare. luminance_mean: 0 to 1. inter_eye_distance_px: between the eye landmarks, in pixels of the original.
    head_roll_deg: of the line between the eyes, positive when the eye on the right of the image is lower."""

    sharpness: float
    luminance_mean: float
    inter_eye_distance_px: float
    head_roll_deg: float


@dataclass(frozen=True)
class Screen:
    """Bounds a face must meet to be written; None asks nothing. Luminance as in Quality, roll in either direction."""

    min_sharpness: float | None = None
    min_luminance: float | None = None
    max_luminance: float | None = None
    min_inter_eye_px: float | None = None
    max_roll_deg: float | None = None

    def passes(self, quality: Quality) -> bool:
        return (
            (self.min_sharpness is None or quality.sharpness >= self.min_sharpness)
            and (self.min_luminance is None or quality.luminance_mean >= self.min_luminance)
            and (self.max_luminance is None or quality.luminance_mean <= self.max_luminance)
            and (self.min_inter_eye_px is None or quality.inter_eye_distance_px >= self.min_inter_eye_px)
            and (self.max_roll_deg is None or abs(quality.head_roll_deg) <= self.max_roll_deg)
        )


def measure(crop: RgbImage, face: Face) -> Quality:
    """Quality of one face; crop: (size, size, 3) uint8 RGB."""
    grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
    small = grey
    if grey.shape[0] != _SHARPNESS_SIDE_PX:
        small = cv2.resize(grey, (_SHARPNESS_SIDE_PX, _SHARPNESS_SIDE_PX), interpolation=cv2.INTER_AREA)
    (left_x, left_y), (right_x, right_y) = face.landmarks[:2]
    return Quality(
        sharpness=float(cv2.meanStdDev(cv2.Laplacian(small, cv2.CV_16S))[1][0, 0] ** 2),
        luminance_mean=cv2.mean(grey)[0] / 255,
        inter_eye_distance_px=math.hypot(right_x - left_x, right_y - left_y),
        head_roll_deg=math.degrees(math.atan2(right_y - left_y, right_x - left_x)),
    )

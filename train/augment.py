"""Random changes of training faces, on the host and outside the model: uint8 faces and targets in, the same out.

A layer that draws at random inside a saved model is a trap: called without `training=` it may train at serving, and it
does not export. Here a generator seeded by (seed, epoch, step, rank) draws everything, so that a resumed epoch sees the
same pixels as an undisturbed one. One warp does mirror, rotation, shift and zoom: every resampling blurs a 48 px face.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from train.recipes_io import Augment

Images = NDArray[np.uint8]
Targets = NDArray[np.float32]


def generator(seed: int, epoch: int, step: int, rank: int) -> np.random.Generator:
    """The same draws for the same step of the same worker, whatever happened before."""
    return np.random.default_rng(np.random.SeedSequence([seed, epoch, step, rank]))


def augment(
    images: Images, targets: Targets, strengths: Augment, random: np.random.Generator
) -> tuple[Images, Targets]:
    """(n, side, side, channels) uint8 and (n, classes) targets → new arrays of the same shapes.

    Every face gets its own draws but for mixup, whose partners are other faces of the batch.
    """
    if strengths == Augment():
        return images, targets
    changed = np.empty_like(images)
    for number, face in enumerate(images):
        changed[number] = _one(face, strengths, random).reshape(face.shape)
    if strengths.mixup > 0:
        return mixed(changed, targets, strengths.mixup, random)
    return changed, targets


def mixed(images: Images, targets: Targets, alpha: float, random: np.random.Generator) -> tuple[Images, Targets]:
    """Each face blended with another of the batch, and its target likewise (Zhang et al., 2018)."""
    share = random.beta(alpha, alpha, len(images)).astype(np.float32)
    share = np.maximum(share, 1 - share)  # the face itself stays the greater part, so its class weight fits
    partner = random.permutation(len(images))
    wide = share[:, None, None, None]
    blended = np.rint(wide * images + (1 - wide) * images[partner]).astype(np.uint8)
    return blended, share[:, None] * targets + (1 - share[:, None]) * targets[partner]


def _one(face: Images, strengths: Augment, random: np.random.Generator) -> NDArray[Any]:
    # Drawn in full for every face, so that one strength set to 0 leaves the draws of the others as they were.
    draws = random.random(16)
    signed = 2 * draws - 1
    pixels: NDArray[Any] = face
    if strengths.rotate_deg or strengths.shift or strengths.zoom:
        pixels = _warped(pixels, strengths, signed, mirror=bool(draws[0] < strengths.mirror))
    elif draws[0] < strengths.mirror:
        pixels = cv2.flip(pixels, 1)
    if draws[5] < strengths.blur:
        pixels = cv2.GaussianBlur(pixels, (0, 0), max(0.1, strengths.blur_px * draws[6]))
    if strengths.brightness or strengths.contrast:
        levels = np.arange(256, dtype=np.float32)
        levels = (
            (levels - 127.5) * (1 + strengths.contrast * signed[7]) + 127.5 + 255 * strengths.brightness * signed[8]
        )
        pixels = cv2.LUT(pixels, np.clip(np.rint(levels), 0, 255).astype(np.uint8))
    if draws[9] < strengths.erase:
        pixels = _erased(pixels, draws[10:15])
    return pixels


def _warped(pixels: NDArray[Any], strengths: Augment, signed: NDArray[np.float64], *, mirror: bool) -> NDArray[Any]:
    side = pixels.shape[0]
    centre = (side - 1) / 2
    matrix = cv2.getRotationMatrix2D((centre, centre), strengths.rotate_deg * signed[1], 1 + strengths.zoom * signed[2])
    matrix[:, 2] += side * strengths.shift * signed[3:5]
    if mirror:
        matrix[:, 2] += matrix[:, 0] * (side - 1)
        matrix[:, 0] *= -1
    return cv2.warpAffine(pixels, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def _erased(pixels: NDArray[Any], draws: NDArray[np.float64]) -> NDArray[Any]:
    """A rectangle of 2 to 20 % of the face, one shade throughout (Zhong et al., 2020)."""
    side = pixels.shape[0]
    area, ratio = 0.02 + 0.18 * draws[0], np.exp((2 * draws[1] - 1) * np.log(3))
    height, width = (min(side, max(1, round(side * float(np.sqrt(area * part))))) for part in (ratio, 1 / ratio))
    top, left = int(draws[2] * (side - height + 1)), int(draws[3] * (side - width + 1))
    pixels = pixels.copy()
    pixels[top : top + height, left : left + width] = int(256 * draws[4])
    return pixels

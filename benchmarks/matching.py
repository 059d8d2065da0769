"""Boxes against boxes: recall and precision against annotations, and parity of one detector with another.

In: faces as detectors return them, annotations as a csv of WIDER FACE's form. Out: plain counts, which add up over
photos. The rule is the one COCO made customary, so that an undecidable box costs nobody anything.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dataset_tools.detection import Face

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Annotation:
    """One annotated face: x1, y1, x2, y2 in pixels. invalid: its annotator could not tell, so it counts for nothing."""

    box: Box
    invalid: bool = False


@dataclass(frozen=True)
class Counts:
    """found: faces that a detection matched. missed: faces that none did. wrong: detections that matched nothing."""

    found: int = 0
    missed: int = 0
    wrong: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.found + other.found, self.missed + other.missed, self.wrong + other.wrong)

    @property
    def recall(self) -> float:
        """Share of the annotated faces that were found; nan where there are none."""
        return self.found / (self.found + self.missed) if self.found + self.missed else float("nan")

    @property
    def precision(self) -> float:
        """Share of the counted detections that were right; nan where there are none."""
        return self.found / (self.found + self.wrong) if self.found + self.wrong else float("nan")


def read_annotations(text: str) -> dict[str, list[Annotation]]:
    """Image path to its annotations, from csv text with the columns image, x, y, w, h (top left, pixels) and invalid.

    Boxes without area are left out, as the official file has some. An image whose boxes all are keeps its empty list.
    """
    annotations: dict[str, list[Annotation]] = {}
    for row in csv.DictReader(io.StringIO(text)):
        of_image = annotations.setdefault(row["image"], [])
        x, y, w, h = (float(row[column]) for column in ("x", "y", "w", "h"))
        if w > 0 and h > 0:
            of_image.append(Annotation((x, y, x + w, y + h), invalid=row["invalid"] == "1"))
    return annotations


def iou_matrix(first: Sequence[Box], second: Sequence[Box]) -> NDArray[np.float64]:
    """Intersection over union of each box of `first` (rows) with each of `second` (columns): (len, len) float64."""
    a = np.asarray(first, dtype=np.float64).reshape(-1, 1, 4)
    b = np.asarray(second, dtype=np.float64).reshape(1, -1, 4)
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    shared = sides[..., 0] * sides[..., 1]
    area_a, area_b = np.prod(a[..., 2:] - a[..., :2], axis=-1), np.prod(b[..., 2:] - b[..., :2], axis=-1)
    union = area_a + area_b - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def count_matches(
    faces: Sequence[Face], annotations: Sequence[Annotation], *, min_face_px: float = 0, min_iou: float = 0.5
) -> Counts:
    """How one image's detections fare against its annotations. A face's size is its box's longer side.

    From the highest score down, each detection takes the free countable annotation it overlaps most, if by `min_iou`.
    An annotation that is invalid or smaller than `min_face_px` is not countable: a detection that is left over is
    forgiven when it overlaps one by `min_iou`, or when it is itself smaller than `min_face_px`. Any other is wrong, a
    second detection of the same face too.
    """
    countable = np.array([not a.invalid and _size_px(a.box) >= min_face_px for a in annotations], dtype=bool)
    ranked = sorted(faces, key=lambda face: -face.score)
    overlaps = iou_matrix([face.box for face in ranked], [a.box for a in annotations])
    free = countable.copy()
    wrong = 0
    for face, overlap in zip(ranked, overlaps, strict=True):
        candidates = np.where(free, overlap, 0.0)
        best = int(candidates.argmax()) if len(annotations) else -1
        if best >= 0 and candidates[best] >= min_iou:
            free[best] = False
        elif _size_px(face.box) >= min_face_px and not (overlap[~countable] >= min_iou).any():
            wrong += 1
    missed = int(free.sum())
    return Counts(int(countable.sum()) - missed, missed, wrong)


def count_same(reference: Sequence[Face], faces: Sequence[Face], *, min_iou: float = 0.9) -> int:
    """How many faces of `reference` have a partner of their own in `faces`, the closest pairs first."""
    overlaps = iou_matrix([face.box for face in reference], [face.box for face in faces])
    same = 0
    while overlaps.size and overlaps.max() >= min_iou:
        row, column = np.unravel_index(overlaps.argmax(), overlaps.shape)
        overlaps[row, :] = overlaps[:, column] = -1.0
        same += 1
    return same


def _size_px(box: Box) -> float:
    return max(box[2] - box[0], box[3] - box[1])

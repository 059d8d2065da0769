"""One image of a labelled set: its bytes and its annotation in, its ledger row and its face row out.

Three ways, by what the set gives: a picture that is a crop already keeps its pixels, and its bytes where it can; a
photo with a box is cut by that box; and with `detect` the face is found first. The last two go through
`process_image`, as every other photo does.
"""

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dataset_tools import encoding, images, quality, splits
from dataset_tools.detection import Detector, DetectorSettings, Face, RgbImage
from dataset_tools.faces import ImageResult, Recipe, failed, process_image
from dataset_tools.importers.affectnet import NO_FACE
from dataset_tools.importers.annotations import DROPPED, Annotation, Box
from dataset_tools.importers.fer2013 import CSV_ROW, to_png
from schemas.outcomes import Failure, Status
from schemas.tables import FaceRow, LedgerRow

GIVEN = DetectorSettings(name="given", min_face_px=0)
"""In the place of a detector's settings where boxes come from the set."""
_NO_POINTS = ((0.0, 0.0),) * 5


@dataclass(frozen=True)
class ImportRecipe:
    """faces: limits, crop and drawn splits, and with `detect` the detector. validation: the share of the training
    images that is moved to validation, drawn by their perceptual hash."""

    faces: Recipe = field(default_factory=Recipe)
    detect: bool = False
    validation: float = 0.0

    def to_dict(self, *, crops: bool) -> dict[str, Any]:
        """For the manifest. crops: whether faces are cut out at all."""
        everything = self.faces.to_dict()
        names = ["limits", *(["crop"] if crops else []), *(["detector"] if self.detect else [])]
        return {name: everything[name] for name in names}


def import_image(
    annotation: Annotation, data: bytes | Failure, recipe: ImportRecipe, detector: Detector | None
) -> ImageResult:
    """data: the encoded image, or for a row of FER-2013's csv its 48 × 48 grey bytes, or why there are none."""
    key = annotation.ref.key
    if annotation.failure is not None:
        return failed(key, annotation.failure)
    if isinstance(data, Failure):
        return failed(key, data)
    if detector is None and annotation.box is None:
        result = _as_it_is(annotation, data, recipe.faces)
    else:
        result = _cut_out(annotation, data, recipe.faces, detector)
    return _annotated(result, annotation, recipe)


def _as_it_is(annotation: Annotation, data: bytes, recipe: Recipe) -> ImageResult:
    started = time.perf_counter()
    key, sha256, stored = annotation.ref.key, hashlib.sha256(data).hexdigest(), data
    if annotation.ref.kind == CSV_ROW:
        stored = to_png(data)
    image = images.decode(stored, recipe.limits)
    if isinstance(image, Failure):
        return failed(key, image, data, time.perf_counter() - started)
    kept = image.stored_upright and image.stored_rgb and image.format in ("JPEG", "PNG")
    height, width = image.pixels.shape[:2]
    face = Face((0.0, 0.0, float(width), float(height)), annotation.landmarks or _NO_POINTS, 0.0)
    measured = quality.measure(image.pixels, face)
    phash = images.perceptual_hash(image.pixels)
    split = splits.split_of(phash, recipe.split, recipe.seed)
    row = FaceRow(
        image={
            "bytes": stored if kept else encoding.encode(image.pixels, "png"),
            "path": f"{sha256[:16]}-000.{'jpg' if kept and image.format == 'JPEG' else 'png'}",
        },
        label=None,
        key=key,
        source_sha256=sha256,
        source_phash=phash,
        face_index=0,
        bbox=face.box,
        landmarks=face.landmarks,
        score=None,
        crop_aligned=None,
        crop_margin=None,
        crop_size_px=max(width, height),
        **asdict(measured),
        source_width_px=width,
        source_height_px=height,
        valence=None,
        arousal=None,
        split=split,
    )
    ledger = LedgerRow(
        key=key,
        sha256=sha256,
        bytes=len(data),
        format="CSV" if annotation.ref.kind == CSV_ROW else image.format,
        width_px=width,
        height_px=height,
        status=Status.OK,
        reason=None,
        detail=None,
        faces=1,
        faces_screened=0,
        phash=phash,
        split=split,
        seconds=time.perf_counter() - started,
    )
    return ImageResult(ledger, (row,), (face,), image)


def _cut_out(annotation: Annotation, data: bytes, recipe: Recipe, detector: Detector | None) -> ImageResult:
    if annotation.ref.kind == CSV_ROW:
        data = to_png(data)
    box = annotation.box

    def given(pixels: RgbImage) -> list[Face]:
        height, width = pixels.shape[:2]
        inside = box is not None and _overlap(box, (0.0, 0.0, float(width), float(height))) > 0
        return [Face(box, annotation.landmarks or _NO_POINTS, 0.0)] if box is not None and inside else []

    def chosen(pixels: RgbImage) -> list[Face]:
        found = [] if detector is None else detector(pixels)
        return best_face([face for face in found if _longer_side(face.box) >= recipe.detector.min_face_px], box)

    if detector is not None:
        return process_image(annotation.ref.key, data, chosen, recipe)
    result = process_image(annotation.ref.key, data, given, replace(recipe, detector=GIVEN))
    if result.ledger.status == Status.NO_FACE:
        return replace(result, ledger=replace(result.ledger, detail="the given box lies outside of the picture"))
    return replace(result, faces=tuple(replace(face, score=None) for face in result.faces))


def best_face(found: Sequence[Face], box: Box | None) -> list[Face]:
    """Of the faces in a photo the one that is meant: most like the given box, or the largest. None or one."""
    if box is None:
        return sorted(found, key=lambda face: _area(face.box))[-1:]
    return sorted((face for face in found if _overlap(face.box, box) > 0), key=lambda face: _overlap(face.box, box))[
        -1:
    ]


def _annotated(result: ImageResult, annotation: Annotation, recipe: ImportRecipe) -> ImageResult:
    """The result with what the set says of it."""
    if result.image is None:
        return result
    split = annotation.split or result.ledger.split
    if split == "train" and recipe.validation:
        share = recipe.validation
        split = splits.split_of(str(result.ledger.phash), (1 - share, share, 0.0), recipe.faces.seed)
    ledger = replace(result.ledger, split=split, pixels_sha256=pixels_digest(result.image.pixels))
    if annotation.dropped == NO_FACE:
        ledger = replace(ledger, status=Status.NO_FACE, detail=NO_FACE, faces=0)
        return replace(result, ledger=ledger, faces=())
    if annotation.dropped is not None:
        ledger = replace(ledger, detail=DROPPED + annotation.dropped, faces=0, faces_screened=len(result.faces))
        return replace(result, ledger=ledger, faces=())
    said = {name: getattr(annotation, name) for name in ("label", "valence", "arousal", "votes")}
    said |= {"split": split, "pixels_sha256": ledger.pixels_sha256}
    faces = tuple(_without_points(replace(face, **said)) for face in result.faces)
    return replace(result, ledger=ledger, faces=faces)


def _without_points(face: FaceRow) -> FaceRow:
    if face.landmarks != _NO_POINTS:
        return face
    unknown = ((math.nan, math.nan),) * 5
    return replace(face, landmarks=unknown, inter_eye_distance_px=None, head_roll_deg=None)


def pixels_digest(pixels: RgbImage) -> str:
    """SHA-256 of a picture's shape and pixels: the same for copies in files of any lossless form."""
    digest = hashlib.sha256(f"{pixels.shape[1]}x{pixels.shape[0]}:".encode())
    digest.update(pixels.tobytes())
    return digest.hexdigest()


def _longer_side(box: Box) -> float:
    return max(box[2] - box[0], box[3] - box[1])


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / (_area(a) + _area(b) - width * height)

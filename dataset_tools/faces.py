"""The one pure step of the whole house: an image's bytes in, its ledger row and its face rows out.

Dask and Beam both call it. Nothing here knows of shards, stores or engines, and no image can raise: what goes wrong
with one is a status and a reason in its row.
"""

import hashlib
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from dataset_tools import encoding, images, quality, splits
from dataset_tools.crop import CropRecipe, crop_face
from dataset_tools.detection import Detector, DetectorSettings, Face
from dataset_tools.limits import Limits
from schemas.outcomes import Failure, Reason, Status
from schemas.tables import FaceRow, LedgerRow


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what comes out of an image. split: fractions of train, validation and test."""

    detector: DetectorSettings = field(default_factory=DetectorSettings)
    crop: CropRecipe = field(default_factory=CropRecipe)
    screen: quality.Screen = field(default_factory=quality.Screen)
    limits: Limits = field(default_factory=Limits)
    split: tuple[float, float, float] = (1.0, 0.0, 0.0)
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ImageResult:
    """ledger: the image's one row. faces: those that passed the screen. found: all of them, for labels: a face that is
    held back for its quality is a face nonetheless. image: the pixels, when they could be read."""

    ledger: LedgerRow
    faces: tuple[FaceRow, ...] = ()
    found: tuple[Face, ...] = ()
    image: images.DecodedImage | None = None


def process_image(key: str, data: bytes | Failure, detector: Detector, recipe: Recipe) -> ImageResult:
    """Decode, detect, crop and measure one image; data: its encoded bytes, or why they could not be read."""
    started = time.perf_counter()
    if isinstance(data, Failure):
        return failed(key, data)
    found = find_faces(data, detector, recipe)
    if isinstance(found, Failure):
        return failed(key, found, data, time.perf_counter() - started)
    image, faces = found
    return _result(key, data, image, faces, recipe, started)


def find_faces(data: bytes, detector: Detector, recipe: Recipe) -> tuple[images.DecodedImage, list[Face]] | Failure:
    """The decoded picture and its faces of at least the smallest size, in the detector's order; or what went wrong."""
    image = images.decode(data, recipe.limits)
    if isinstance(image, Failure):
        return image
    try:
        return image, [face for face in detector(image.pixels) if _longer_side(face) >= recipe.detector.min_face_px]
    except Exception as error:  # whatever a runtime raises on one image must not cost the other images of the shard
        return Failure(Reason.DETECTOR_CRASH, f"the detector raised {type(error).__name__}")


def failed(key: str, failure: Failure, data: bytes | None = None, seconds: float = 0.0) -> ImageResult:
    """The result of an image that gave nothing; data: its bytes, if they were read."""
    row = LedgerRow(
        key=key,
        sha256=None if data is None else hashlib.sha256(data).hexdigest(),
        bytes=None if data is None else len(data),
        format=None,
        width_px=None,
        height_px=None,
        status=Status.FAILED,
        reason=failure.reason,
        detail=failure.detail,
        faces=0,
        faces_screened=0,
        phash=None,
        split=None,
        seconds=seconds,
    )
    return ImageResult(row)


def _result(
    key: str, data: bytes, image: images.DecodedImage, found: list[Face], recipe: Recipe, started: float
) -> ImageResult:
    height, width = image.pixels.shape[:2]
    sha256 = hashlib.sha256(data).hexdigest()
    phash = images.perceptual_hash(image.pixels)
    split = splits.split_of(phash, recipe.split, recipe.seed)
    rows: list[FaceRow] = []
    for index, face in enumerate(found):
        crop, aligned = crop_face(image.pixels, face, recipe.crop)
        measured = quality.measure(crop, face)
        if not recipe.screen.passes(measured):
            continue
        rows.append(
            FaceRow(
                image={
                    "bytes": encoding.encode(crop, recipe.crop.format, recipe.crop.quality),
                    "path": crop_name(sha256, index, recipe.crop),
                },
                label=None,
                key=key,
                source_sha256=sha256,
                source_phash=phash,
                face_index=index,
                bbox=face.box,
                landmarks=face.landmarks,
                score=face.score,
                crop_aligned=aligned,
                crop_margin=recipe.crop.margin,
                crop_size_px=recipe.crop.size_px,
                **asdict(measured),
                source_width_px=width,
                source_height_px=height,
                valence=None,
                arousal=None,
                split=split,
            )
        )
    ledger = LedgerRow(
        key=key,
        sha256=sha256,
        bytes=len(data),
        format=image.format,
        width_px=width,
        height_px=height,
        status=Status.OK if found else Status.NO_FACE,
        reason=None,
        detail=None,
        faces=len(rows),
        faces_screened=len(found) - len(rows),
        phash=phash,
        split=split,
        seconds=time.perf_counter() - started,
    )
    return ImageResult(ledger, tuple(rows), tuple(found), image)


def crop_name(sha256: str, index: int, crop: CropRecipe) -> str:
    """The crop's file name: of its photo's content and the face's index, so that it never depends on the run."""
    return f"{sha256[:16]}-{index:03d}.{'jpg' if crop.format == 'jpeg' else crop.format}"


def face_digest(row: FaceRow) -> int:
    """A face row as a number of 256 bits: what was cut, from which photo, where. The key is left out, so that a
    collection that moved still gives the same digest."""
    digest = hashlib.sha256()
    digest.update(f"{row.source_sha256}:{row.face_index}:{row.split}:{row.label}:".encode())
    digest.update(np.array([*row.bbox, *np.ravel(row.landmarks), row.score], "<f4").tobytes())
    stated = (row.valence, row.arousal, *(row.votes or ()))
    if any(value is not None for value in stated):
        digest.update(np.array(stated, "<f4").tobytes())
    digest.update(row.image["bytes"])
    return int.from_bytes(digest.digest())


def _longer_side(face: Face) -> float:
    x1, y1, x2, y2 = face.box
    return max(x2 - x1, y2 - y1)

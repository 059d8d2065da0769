"""Scoring without an engine: a unit of a collection in, pieces of prepared faces out, scored pieces into tables.

    unit ──read_pieces──▶ Piece (faces as the network takes them) ──score_piece──▶ ScoredPiece ──SegmentWriter──▶ parts

A plain loop over these functions is a whole scoring run; Beam calls the same ones. A piece is small, so memory is
bounded by one image and one piece, whatever the size of an archive. Every name and byte that is written is decided by
the input, so a unit that is run again, or twice at the same time, writes the same files.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import dropwhile

import numpy as np
from numpy.typing import NDArray

from dataset_tools.crop import CropRecipe, crop_face
from dataset_tools.detection import Detector, Face
from dataset_tools.faces import Recipe, find_faces
from dataset_tools.images import decode
from dataset_tools.limits import Limits
from dataset_tools.prepare import prepare
from dataset_tools.sources import ImageRef, read_images
from dataset_tools.streaming import Streamed, stream_archive
from infer.predictor import BATCH, Predictor
from schemas.model import ModelSpec
from schemas.outcomes import Failure, Reason

PIECE_FACES = BATCH
_PIECE_IMAGES = 256
"""Of a piece that has few faces or none, so that progress is seen."""
_NO_LANDMARKS = ((float("nan"),) * 2,) * 5


@dataclass(frozen=True)
class Segment:
    """What becomes one part: `number`-th run of segment_images images of a unit."""

    unit: int
    number: int


@dataclass(frozen=True)
class Outcome:
    """What became of an image before any face of it was scored. faces: found in it. stage: where it failed."""

    key: str
    faces: int = 0
    failure: Failure | None = None
    stage: str = ""
    bytes: int = 0


@dataclass(frozen=True)
class FoundFace:
    """One face to be scored; of a given face, the box is the whole picture and the score None."""

    key: str
    source_sha256: str
    index: int
    box: tuple[float, float, float, float]
    landmarks: tuple[tuple[float, float], ...]
    score: float | None


@dataclass(frozen=True)
class Piece:
    """Some images and faces of one segment, in their order; a crowd's faces may reach over several pieces.

    inputs: (faces, input_px, input_px, channels) uint8. number: of the piece in its segment. ends: the segment's last.
    last: the unit's last. ignored: what was passed over. read_s: spent reading, decoding, detecting and cropping.
    """

    segment: Segment
    number: int
    images: tuple[Outcome, ...]
    faces: tuple[FoundFace, ...]
    inputs: NDArray[np.uint8]
    ends: bool = False
    last: bool = False
    ignored: Counter[str] = field(default_factory=Counter)
    read_s: float = 0.0


@dataclass(frozen=True)
class ScoredPiece:
    """logits: (faces, classes) float32; nan throughout for a face that the network failed on."""

    piece: Piece
    logits: NDArray[np.float32]
    score_s: float = 0.0


@dataclass(frozen=True)
class FaceSource:
    """How faces come out of an image. recipe: detector, crop and limits. detect: False takes the image as a face."""

    recipe: Recipe
    spec: ModelSpec
    detect: bool = True


@dataclass(frozen=True)
class Unit:
    """The work of one worker at a time: rows start to before stop of OUT/listing.parquet."""

    number: int
    start: int
    stop: int


@dataclass(frozen=True)
class Scoring:
    """What a worker needs to know. model: its folder. runtime: onnx or keras. segment_images: the most of one part.
    versions: of the client, for workers elsewhere to compare with their own."""

    out: str
    model: str
    runtime: str
    source: FaceSource
    segment_images: int
    versions: dict[str, str] = field(default_factory=dict)


def crop_recipe(spec: ModelSpec) -> CropRecipe | None:
    """The crop that the model was trained on, None when its model.json does not tell. Raises ValueError."""
    known = CropRecipe.__dataclass_fields__
    stated = {name: value for name, value in spec.crop.items() if name in known}
    return CropRecipe(**stated) if "aligned" in stated else None


def read_pieces(
    unit: int,
    refs: list[ImageRef],
    source: FaceSource,
    detector: Detector,
    segment_images: int,
    done: int = 0,
    blamed: Callable[[str], bool] = lambda _key: False,
) -> Iterator[Piece]:
    """The pieces of a unit: images and files, or one whole archive.

    done: segments of it that are on the store already; their images are read past. blamed: asked before an image is
    worked on; True makes it fail instead, as one that has killed its process before.
    """
    filling = _Filling(unit, done, source.spec)
    items = _after(_items(refs, source.recipe.limits), done * segment_images)
    in_segment = 0
    started = time.perf_counter()
    for item in items:
        if isinstance(item, str):
            filling.ignored[item] += 1
            continue
        if in_segment == segment_images:  # only now is it known that another image follows
            yield filling.take(started, ends=True)
            started, in_segment = time.perf_counter(), 0
        ref, data = item
        in_segment += 1
        failure = Failure(Reason.DETECTOR_CRASH, "its worker process died each time") if blamed(ref.key) else None
        outcome, faces = _faces_of(ref.key, failure or data, source, detector)
        filling.images.append(outcome)
        for face, pixels in faces:
            filling.add(face, pixels)
            if len(filling.faces) == PIECE_FACES:
                yield filling.take(started)
                started = time.perf_counter()
        if len(filling.images) >= _PIECE_IMAGES:
            yield filling.take(started)
            started = time.perf_counter()
    yield filling.take(started, ends=True, last=True)


class _Filling:
    """The piece that is being filled."""

    def __init__(self, unit: int, segment: int, spec: ModelSpec) -> None:
        self.images: list[Outcome] = []
        self.faces: list[FoundFace] = []
        self.ignored: Counter[str] = Counter()
        self._inputs: list[NDArray[np.uint8]] = []
        self._unit, self._segment, self._number = unit, segment, 0
        self._shape = spec.input_px, spec.input_px, 1 if spec.colour == "grey" else 3

    def add(self, face: FoundFace, pixels: NDArray[np.uint8]) -> None:
        self.faces.append(face)
        self._inputs.append(pixels)

    def take(self, started: float, *, ends: bool = False, last: bool = False) -> Piece:
        piece = Piece(
            Segment(self._unit, self._segment),
            self._number,
            tuple(self.images),
            tuple(self.faces),
            np.stack(self._inputs) if self._inputs else np.zeros((0, *self._shape), np.uint8),
            ends,
            last,
            self.ignored,
            time.perf_counter() - started,
        )
        self.images, self.faces, self._inputs, self.ignored = [], [], [], Counter()
        self._number = 0 if ends else self._number + 1
        self._segment += ends
        return piece


def _items(refs: list[ImageRef], limits: Limits) -> Iterator[Streamed]:
    if len(refs) == 1 and refs[0].kind == "archive":
        return stream_archive(refs[0], limits)
    return read_images(refs, limits)


def _after(items: Iterator[Streamed], images: int) -> Iterator[Streamed]:
    """Without the first so many images, and without what was passed over among them and up to the next: that was
    counted with them."""
    left = images
    while left and (item := next(items, None)) is not None:
        left -= not isinstance(item, str)
    return dropwhile(lambda item: isinstance(item, str), items) if images else items


def _faces_of(
    key: str, data: bytes | Failure, source: FaceSource, detector: Detector
) -> tuple[Outcome, Iterable[tuple[FoundFace, NDArray[np.uint8]]]]:
    """What became of the image, and its faces as the network takes them, made one by one."""
    if isinstance(data, Failure):
        crashed = data.reason == Reason.DETECTOR_CRASH
        return Outcome(key, failure=data, stage="detect" if crashed else "read"), ()
    sha256 = hashlib.sha256(data).hexdigest()
    if not source.detect:
        image = decode(data, source.recipe.limits)
        if isinstance(image, Failure):
            return Outcome(key, failure=image, stage="decode", bytes=len(data)), ()
        height, width = image.pixels.shape[:2]
        face = FoundFace(key, sha256, 0, (0.0, 0.0, float(width), float(height)), _NO_LANDMARKS, None)
        return Outcome(key, 1, bytes=len(data)), [(face, prepare(image.pixels, source.spec))]
    found = find_faces(data, detector, source.recipe)
    if isinstance(found, Failure):
        stage = "detect" if found.reason == Reason.DETECTOR_CRASH else "decode"
        return Outcome(key, failure=found, stage=stage, bytes=len(data)), ()
    image, faces = found

    def prepared(index: int, face: Face) -> tuple[FoundFace, NDArray[np.uint8]]:
        crop, _ = crop_face(image.pixels, face, source.recipe.crop)
        return FoundFace(key, sha256, index, face.box, face.landmarks, face.score), prepare(crop, source.spec)

    return Outcome(key, len(faces), bytes=len(data)), (prepared(index, face) for index, face in enumerate(faces))


def score_piece(piece: Piece, predictor: Predictor) -> ScoredPiece:
    """The logits of every face; where the network fails on all of them, it is asked one by one."""
    started = time.perf_counter()
    classes = len(predictor.spec.label_names)
    logits = np.full((len(piece.faces), classes), np.nan, np.float32)
    if len(piece.faces):
        try:
            logits[:] = predictor.network(piece.inputs)
        except Exception:  # whatever a runtime raises for one face must not cost the others
            for number in range(len(piece.faces)):
                try:
                    logits[number] = predictor.network(piece.inputs[number : number + 1])[0]
                except Exception:
                    continue
    logits[~np.isfinite(logits).all(axis=1)] = np.nan
    return ScoredPiece(piece, logits, time.perf_counter() - started)

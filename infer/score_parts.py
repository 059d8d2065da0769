"""Scored pieces in, the parts of one segment on the store: predictions, failures, a few samples, and its marker last.

The marker `done/UNIT-SEGMENT.json` holds the counts and means that the segment is complete, so a run that was cut off
goes on after the last one. All of it is decided by the input: written again, it is the same.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dataset_tools import parquet, storage
from dataset_tools.encoding import encode
from dataset_tools.predictions import Predictions
from infer.predictor import Predictor
from infer.score_counts import FINGERPRINT_MODULUS, ScoreCounts
from infer.scoring import FoundFace, Outcome, ScoredPiece, Segment
from schemas.outcomes import Reason
from schemas.scored import FAILURES, predictions_schema, probability_columns

SAMPLES = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("key", pa.string()),
        ("face_index", pa.int32()),
        ("expression", pa.string()),
        ("confidence", pa.float32()),
    ]
)
"""Faces as the network saw them, for the report: of each segment the surest of each class and the least sure."""
_SAMPLES = 3


@dataclass(frozen=True)
class _Sample:
    face: FoundFace
    expression: str
    confidence: float
    pixels: NDArray[np.uint8]

    def row(self) -> dict[str, Any]:
        colour = np.repeat(self.pixels, 3, axis=2) if self.pixels.shape[2] == 1 else self.pixels
        name = f"{self.face.source_sha256[:16]}-{self.face.index:03d}.jpg"
        return {
            "image": {"bytes": encode(colour, "jpeg"), "path": name},
            "key": self.face.key,
            "face_index": self.face.index,
            "expression": self.expression,
            "confidence": self.confidence,
        }


class SegmentWriter:
    """Takes the pieces of one segment in their order; `add` returns its counts with the last one, when all is written.

    Raises StorageError when the store does not take the parts, ValueError for a piece out of order.
    """

    def __init__(self, out: str, segment: Segment, predictor: Predictor) -> None:
        self._out, self._segment, self._predictor = out, segment, predictor
        self._schema = predictions_schema(predictor.spec)
        self._tables: list[pa.Table] = []
        self._failures: list[dict[str, Any]] = []
        self._images: list[Outcome] = []
        self._faces_scored: Counter[str] = Counter()
        self._samples: dict[str, list[tuple[float, _Sample]]] = {}
        self._counts = ScoreCounts()
        self._pieces = 0

    def add(self, scored: ScoredPiece) -> ScoreCounts | None:
        piece = scored.piece
        if piece.segment != self._segment or piece.number != self._pieces:
            raise ValueError(
                f"piece {piece.number} of {piece.segment} came where {self._pieces} of {self._segment} was due"
            )
        self._pieces += 1
        self._images += piece.images
        self._counts.ignored.update(piece.ignored)
        self._counts.read_s += piece.read_s
        self._counts.score_s += scored.score_s
        good: NDArray[np.bool_] = ~np.any(np.isnan(scored.logits), axis=1)
        if good.any():
            self._add_faces([face for face, ok in zip(piece.faces, good, strict=True) if ok], scored, good)
        for face in (face for face, ok in zip(piece.faces, good, strict=True) if not ok):
            self._counts.faces_failed += 1
            self._failures.append(
                _failure(face.key, face.index, "score", Reason.MODEL_ERROR, "the network gave no number")
            )
        return self._finish(last=piece.last) if piece.ends else None

    def _add_faces(self, faces: list[FoundFace], scored: ScoredPiece, good: NDArray[np.bool_]) -> None:
        found = self._predictor.from_logits(scored.logits[good])
        table = predictions_table(faces, found, self._predictor.spec.fingerprint, self._schema)
        self._tables.append(table)
        self._faces_scored.update(face.key for face in faces)
        self._counts.faces += len(faces)
        self._counts.not_sure += int(found.not_sure.sum())
        self._counts.expressions.update(table["expression"].to_pylist())
        for face, logits in zip(faces, found.logits, strict=True):
            self._counts.fingerprint = (self._counts.fingerprint + _digest(face, logits)) % FINGERPRINT_MODULUS
        self._sample(faces, table, scored.piece.inputs[good])

    def _sample(self, faces: list[FoundFace], table: pa.Table, inputs: NDArray[np.uint8]) -> None:
        named = zip(table["expression"].to_pylist(), table["confidence"].to_pylist(), strict=True)
        for face, (name, confidence), pixels in zip(faces, named, inputs, strict=True):
            for group, rank in ((name, -confidence), ("", confidence)):
                best = self._samples.setdefault(group, [])
                if len(best) < _SAMPLES or rank < best[-1][0]:
                    best.append((rank, _Sample(face, name, confidence, pixels)))
                    best.sort(key=lambda entry: entry[0])  # stable: of equal ones the first stays
                    del best[_SAMPLES:]

    def _finish(self, *, last: bool) -> ScoreCounts:
        for image in self._images:
            self._count_image(image)
        part = part_name(self._segment)
        predictions = pa.concat_tables([self._schema.empty_table(), *self._tables])
        parquet.write_part(storage.join(self._out, "predictions", part), predictions)
        parquet.write_part(storage.join(self._out, "failures", part), pa.Table.from_pylist(self._failures, FAILURES))
        kept = {(one.face.key, one.face.index): one for group in self._samples.values() for _, one in group}
        samples = [kept[place].row() for place in sorted(kept)]
        parquet.write_part(storage.join(self._out, "samples", part), pa.Table.from_pylist(samples, SAMPLES))
        marker = {"unit": self._segment.unit, "segment": self._segment.number, "last": last} | self._counts.to_dict()
        storage.write_bytes(done_marker(self._out, self._segment), json.dumps(marker).encode())
        return self._counts

    def _count_image(self, image: Outcome) -> None:
        counts = self._counts
        counts.images += 1
        counts.bytes += image.bytes
        if self._faces_scored[image.key]:
            counts.scored += 1
            return
        if image.failure is not None:
            reason, stage, detail = str(image.failure.reason), image.stage, image.failure.detail
        elif image.faces:
            reason, stage, detail = str(Reason.MODEL_ERROR), "score", f"none of its {image.faces} faces could be scored"
        else:
            reason, stage, detail = "no_face", "detect", None
        if reason == "no_face":
            counts.no_face += 1
        else:
            counts.failed += 1
            counts.reasons[reason] += 1
        self._failures.append(_failure(image.key, None, stage, reason, detail))


def predictions_table(faces: list[FoundFace], found: Predictions, model: str, schema: pa.Schema) -> pa.Table:
    """PREDICTIONS of these faces, in their order. found: of the same faces."""
    best = found.logits.argmax(axis=1)
    columns: dict[str, Any] = {
        "key": [face.key for face in faces],
        "source_sha256": [face.source_sha256 for face in faces],
        "face_index": [face.index for face in faces],
        "bbox": [face.box for face in faces],
        "landmarks": [face.landmarks for face in faces],
        "score": [face.score for face in faces],
        "expression": [found.names[number] for number in best],
        "confidence": found.probabilities.max(axis=1).astype(np.float32),
        "not_sure": found.not_sure,
        "model": [model] * len(faces),
    }
    columns |= dict(zip(probability_columns(found.names), found.probabilities.T.astype(np.float32), strict=True))
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def part_name(segment: Segment) -> str:
    return f"{segment.unit:06d}-{segment.number:04d}.parquet"


def done_marker(out: str, segment: Segment) -> str:
    return storage.join(out, "done", f"{segment.unit:06d}-{segment.number:04d}.json")


def segments_done(out: str, unit: int) -> int:
    """How many segments of a unit are complete, from its first on."""
    number = 0
    while storage.exists(done_marker(out, Segment(unit, number))):
        number += 1
    return number


def read_markers(out: str, known: Collection[str] = ()) -> Iterator[tuple[str, Segment, bool, ScoreCounts]]:
    """(name, segment, whether it is its unit's last, counts) of every complete segment, but for the names known."""
    folder = storage.join(out, "done")
    if not storage.is_folder(folder):
        return
    names = [url for url, _ in storage.list_files(folder) if url not in known and url.endswith(".json")]
    for url, data in zip(names, storage.read_each(names), strict=True):
        values = json.loads(data)
        yield url, Segment(values["unit"], values["segment"]), values["last"], ScoreCounts.from_dict(values)


def _failure(key: str, face: int | None, stage: str, reason: str, detail: str | None) -> dict[str, Any]:
    return {"key": key, "face_index": face, "stage": stage, "reason": str(reason), "detail": detail}


def _digest(face: FoundFace, logits: NDArray[np.float32]) -> int:
    """A prediction as a number of 256 bits: which face, and what the network said. Without the key, as in FACES: a
    collection that moved gives the same."""
    digest = hashlib.sha256(f"{face.source_sha256}:{face.index}:".encode())
    digest.update(np.array([*face.box, -1.0 if face.score is None else face.score], "<f4").tobytes())
    digest.update(np.ascontiguousarray(logits, "<f4").tobytes())
    return int.from_bytes(digest.digest())

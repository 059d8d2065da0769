"""What became of a number of images, as sums that can be added up: of a shard, of a run.

The fingerprint is a sum as well, of one digest a face, so it is the same for any number of workers and shards, and
equal fingerprints mean equal faces.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dataset_tools.faces import face_digest
from schemas.outcomes import Status
from schemas.tables import FaceRow, LedgerRow

_DIGEST_MODULUS = 2**256


@dataclass
class Counts:
    """What became of a number of images. fingerprint: sum of the faces' digests, so that neither order nor shards
    matter. pixels: of the images that were read. seconds: of workers, together."""

    images: int = 0
    ok: int = 0
    no_face: int = 0
    failed: int = 0
    faces: int = 0
    faces_screened: int = 0
    bytes: int = 0
    pixels: int = 0
    seconds: float = 0.0
    fingerprint: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)

    def add_image(self, row: LedgerRow, faces: Iterable[FaceRow]) -> None:
        self.images += 1
        self.ok += row.status == Status.OK
        self.no_face += row.status == Status.NO_FACE
        self.failed += row.status == Status.FAILED
        self.faces_screened += row.faces_screened
        self.bytes += row.bytes or 0
        self.pixels += (row.width_px or 0) * (row.height_px or 0)
        self.seconds += row.seconds
        if row.reason is not None:
            self.reasons[str(row.reason)] += 1
        for face in faces:
            self.faces += 1
            self.splits[face.split] += 1
            self.fingerprint = (self.fingerprint + face_digest(face)) % _DIGEST_MODULUS

    def add(self, other: "Counts") -> None:
        for name in ("images", "ok", "no_face", "failed", "faces", "faces_screened", "bytes", "pixels", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.fingerprint = (self.fingerprint + other.fingerprint) % _DIGEST_MODULUS
        self.reasons.update(other.reasons)
        self.splits.update(other.splits)

    def to_dict(self) -> dict[str, Any]:
        return vars(self) | {
            "reasons": dict(self.reasons),
            "splits": dict(self.splits),
            "fingerprint": f"{self.fingerprint:064x}",
            "seconds": round(self.seconds, 3),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Counts":
        known = {name: values[name] for name in cls.__dataclass_fields__}
        known |= {"reasons": Counter(values["reasons"]), "splits": Counter(values["splits"])}
        return cls(**known | {"fingerprint": int(values["fingerprint"], 16)})

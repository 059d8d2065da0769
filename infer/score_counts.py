"""What became of a number of images that were scored, as sums that can be added up: of a segment, of a run.

The fingerprint is a sum of one digest a face, so neither order nor parts matter, and equal ones mean equal predictions.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FINGERPRINT_MODULUS = 2**256
_SUMS = ("images", "scored", "no_face", "failed", "faces", "faces_failed", "not_sure", "bytes", "read_s", "score_s")
_COUNTERS = ("reasons", "expressions", "ignored")


@dataclass
class ScoreCounts:
    """images = scored + no_face + failed. faces: with a prediction; faces_failed: found, and not to be scored.
    not_sure: of the faces. bytes: encoded, of images that could be read. read_s: of workers, reading, decoding,
    detecting and cropping; score_s: in the network. reasons: of failed images. expressions: faces by top-1."""

    images: int = 0
    scored: int = 0
    no_face: int = 0
    failed: int = 0
    faces: int = 0
    faces_failed: int = 0
    not_sure: int = 0
    bytes: int = 0
    read_s: float = 0.0
    score_s: float = 0.0
    fingerprint: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    expressions: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)

    def add(self, other: "ScoreCounts") -> None:
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in _COUNTERS:
            getattr(self, name).update(getattr(other, name))
        self.fingerprint = (self.fingerprint + other.fingerprint) % FINGERPRINT_MODULUS

    def to_dict(self) -> dict[str, Any]:
        # Not `asdict`, which counts the pairs of a Counter.
        return (
            vars(self)
            | {name: dict(sorted(getattr(self, name).items())) for name in _COUNTERS}
            | {name: round(getattr(self, name), 3) for name in ("read_s", "score_s")}
            | {"fingerprint": f"{self.fingerprint:064x}"}
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ScoreCounts":
        known = {name: values[name] for name in _SUMS} | {name: Counter(values[name]) for name in _COUNTERS}
        return cls(**known, fingerprint=int(values["fingerprint"], 16))

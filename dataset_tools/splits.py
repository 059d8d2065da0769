"""Which split a photo belongs to: decided by its own pixels, so that no face of it leaks into another split.

The photo's perceptual hash is hashed to a number in [0, 1). All faces of a photo therefore fall on one side, with
those of its copies of the same hash, and photos added later never move those already there. A copy whose hash differs
by a bit may fall elsewhere; the report counts such near-duplicates.
"""

import hashlib
import math

from schemas.tables import SPLITS


def parse_fractions(text: str) -> tuple[float, float, float]:
    """`0.8,0.1,0.1` → fractions for train, validation and test. Raises ValueError unless they add up to 1."""
    try:
        fractions = tuple(float(part) for part in text.split(","))
    except ValueError:
        fractions = ()
    if len(fractions) != 3 or min(fractions) < 0 or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        raise ValueError(f"--split takes three fractions that add up to 1, such as 0.8,0.1,0.1, not {text!r}")
    return fractions[0], fractions[1], fractions[2]


def split_of(phash: str, fractions: tuple[float, float, float], seed: int = 0) -> str:
    """train, validation or test, for a photo with this perceptual hash. seed: draws another, equally stable split."""
    digest = hashlib.sha256(f"{seed}:{phash}".encode()).digest()
    position = int.from_bytes(digest[:8]) / 2**64
    edge = 0.0
    for name, fraction in zip(SPLITS, fractions, strict=True):
        edge += fraction
        if position < edge:
            return name
    return next(name for name, fraction in zip(reversed(SPLITS), reversed(fractions), strict=True) if fraction > 0)

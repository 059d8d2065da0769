"""The bounds that hostile or broken input meets. They decide what fails, so they are part of a run's parameters."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """max_image_bytes and max_pixels: one image, encoded and as declared by its header. max_side_ratio: long side over
    short side. min_side_px: below this no face fits. max_members: of one archive. max_archive_bytes: the sum of the
    sizes that one archive's members declare (or unpack to, for a compressed tar)."""

    max_image_bytes: int = 256 * 2**20
    max_pixels: int = 128_000_000
    max_side_ratio: float = 100.0
    min_side_px: int = 12
    max_members: int = 20_000_000
    max_archive_bytes: int = 16 * 2**40

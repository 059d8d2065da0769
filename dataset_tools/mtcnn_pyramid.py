"""MTCNN's image pyramid: an RGB array and scales in, strips of all shrunken levels out, ready for P-Net.

The levels are exact area averages in float32, as `mtcnn` makes them, in one pass over the photo. A band of 32 rows is
turned into rows of all levels at once by one matrix product; only these few rows are then narrowed. Shrinking the photo
level by level reads all of it ten times, at more than twice the cost; and no float copy of the photo ever exists.
"""

from collections.abc import Callable, Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from dataset_tools.detection import RgbImage

Pixels = NDArray[np.float32]
MixRows = Callable[[Pixels, NDArray[np.uint8]], Pixels]
"""weights (m, r) and uint8 rows (r, n) to their product (m, n)."""

OVERLAP_PX = 10
"""P-Net looks at 12 px in steps of 2: with 10 rows in common, two strips have all cells of the whole and none twice."""
_BAND_ROWS = 32
_NARROW_ROWS = 8
_STRIP_ROWS = 96


class _Level:
    """One level being filled from the top: mixed rows of full width come in, full strips of narrowed rows go out."""

    def __init__(self, height: int, width: int) -> None:
        self.shape = height, width
        self.partial: Pixels | None = None  # the row that the last band left unfinished
        self.waiting: list[Pixels] = []  # finished rows that are too few to be narrowed
        self.narrowed = 0
        self.strip = np.empty((min(_STRIP_ROWS, height), width, 3), np.float32)
        self.top = 0
        self.filled = 0

    def add(self, rows: Pixels, complete: int) -> Iterator[tuple[int, Pixels]]:
        """Take a band's rows, the first `complete` of them finished; yield (first row, strip) when a strip is full."""
        if self.partial is not None:
            rows[0] += self.partial
        self.partial = rows[complete] if complete < len(rows) else None
        if not complete:
            return
        rows = rows[:complete]
        height, width = self.shape
        count = complete + sum(map(len, self.waiting))
        last = self.narrowed + count == height
        if count < _NARROW_ROWS and not last:
            self.waiting.append(rows.copy())  # a copy, or it would keep the whole band in memory
            return
        if self.waiting:
            rows = np.concatenate([*self.waiting, rows])
            self.waiting = []
        self.narrowed += count
        while len(rows):
            count = min(len(rows), len(self.strip) - self.filled)
            target = self.strip[self.filled : self.filled + count]
            cv2.resize(rows[:count], (width, count), dst=target, interpolation=cv2.INTER_AREA)
            rows = rows[count:]
            self.filled += count
            if self.filled == len(self.strip) or (last and not len(rows)):
                # Without a row beyond the overlap there is no cell that the strip before has not had.
                if self.filled > OVERLAP_PX:
                    yield self.top, self.strip[: self.filled]
                self.strip[:OVERLAP_PX] = self.strip[self.filled - OVERLAP_PX : self.filled]
                self.top += self.filled - OVERLAP_PX
                self.filled = OVERLAP_PX


def pyramid_strips(mix_rows: MixRows, image: RgbImage, scales: list[float]) -> Iterator[tuple[int, int, Pixels]]:
    """(level, first row, strip) of every level; a strip is (rows, width, 3) float32 from 0 to 255.

    A level is the image at its scale, rounded down; it must have at least 11 rows and columns. Its strips come from the
    top down, overlapping by OVERLAP_PX rows and beginning at even rows; those of different levels come interleaved. A
    strip is valid until the next one is asked for.
    """
    full_height, full_width = image.shape[:2]
    tops = np.arange(0, full_height, _BAND_ROWS)
    bottoms = np.minimum(tops + _BAND_ROWS, full_height)
    levels = [_Level(int(full_height * scale), int(full_width * scale)) for scale in scales]
    edges = [np.arange(level.shape[0] + 1) * (full_height / level.shape[0]) for level in levels]
    for level_edges in edges:
        level_edges[-1] = full_height
    begin, end = np.concatenate([e[:-1] for e in edges]), np.concatenate([e[1:] for e in edges])
    # Which rows of which levels lie in which band, sorted by band; a row may lie in two and more.
    first_band = (begin // _BAND_ROWS).astype(int)
    times = np.ceil(end / _BAND_ROWS).astype(int) - first_band
    rows = np.repeat(np.arange(len(begin)), times)
    bands = np.arange(len(rows)) + np.repeat(first_band - np.cumsum(times) + times, times)
    by_band = np.argsort(bands, kind="stable")
    bands, rows = bands[by_band], rows[by_band]
    begin, end = begin[rows, None], end[rows, None]
    source = tops[bands, None] + np.arange(_BAND_ROWS)
    covered = np.minimum(end, source + 1) - np.maximum(begin, source)
    weights = (np.maximum(covered, 0) / (end - begin)).astype(np.float32)
    level_of_row = np.repeat(np.arange(len(levels)), [level.shape[0] for level in levels])[rows]
    # Per band and level: rows in the band, and how many of them it finishes.
    counts = np.zeros((2, len(tops), len(levels)), int)
    np.add.at(counts[0], (bands, level_of_row), 1)
    np.add.at(counts[1], (bands, level_of_row), end[:, 0] <= bottoms[bands])
    at = 0
    for top, bottom, touched, complete in zip(tops.tolist(), bottoms.tolist(), *counts.tolist(), strict=True):
        band = image[top:bottom].reshape(bottom - top, -1)
        mixed = mix_rows(weights[at : at + sum(touched), : bottom - top], band).reshape(-1, full_width, 3)
        at += len(mixed)
        start = 0
        for index, level in enumerate(levels):
            stop = start + touched[index]
            for strip_top, strip in level.add(mixed[start:stop], complete[index]):
                yield index, strip_top, strip
            start = stop

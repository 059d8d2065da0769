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
_NARROW_ROWS = 16
_STRIP_ROWS = 96


class _Level:
    """One level being filled from the top: mixed rows of full width, then a strip of narrowed rows."""

    def __init__(self, height: int, width: int, full_width: int) -> None:
        self.shape = height, width
        self.mixed = np.empty((_NARROW_ROWS + _BAND_ROWS + 1, full_width, 3), np.float32)
        self.narrowed = 0  # rows of the level that have left `mixed`
        self.touched = 0  # rows of the level that have begun
        self.strip = np.empty((min(_STRIP_ROWS, height), width, 3), np.float32)
        self.top = 0
        self.filled = 0

    def add(self, first: int, rows: Pixels) -> None:
        """Take rows from `first` on; the first may continue the last one of the previous band."""
        begun = self.touched - first
        at = first - self.narrowed
        self.mixed[at : at + begun] += rows[:begun]
        self.mixed[at + begun : at + len(rows)] = rows[begun:]
        self.touched = first + len(rows)

    def strips(self, complete: int) -> Iterator[tuple[int, Pixels]]:
        """Narrow the rows before `complete` once they are worth a call; yield (first row, strip) when one is full."""
        height, width = self.shape
        ready = complete - self.narrowed
        if ready < _NARROW_ROWS and complete < height:
            return
        taken = 0
        while taken < ready:
            count = min(ready - taken, len(self.strip) - self.filled)
            target = self.strip[self.filled : self.filled + count]
            cv2.resize(self.mixed[taken : taken + count], (width, count), dst=target, interpolation=cv2.INTER_AREA)
            self.filled += count
            taken += count
            if self.filled == len(self.strip) or (taken == ready and complete == height):
                # Without a row beyond the overlap there is no cell that the strip before has not had.
                if self.filled > OVERLAP_PX:
                    yield self.top, self.strip[: self.filled]
                self.strip[:OVERLAP_PX] = self.strip[self.filled - OVERLAP_PX : self.filled]
                self.top += self.filled - OVERLAP_PX
                self.filled = OVERLAP_PX
        left = self.touched - complete
        self.mixed[:left] = self.mixed[ready : ready + left]
        self.narrowed = complete


def pyramid_strips(mix_rows: MixRows, image: RgbImage, scales: list[float]) -> Iterator[tuple[int, int, Pixels]]:
    """(level, first row, strip) of every level; a strip is (rows, width, 3) float32 from 0 to 255.

    A level is the image at its scale, rounded down; it must have at least 11 rows and columns. Its strips come from the
    top down, overlapping by OVERLAP_PX rows and beginning at even rows; those of different levels come interleaved. A
    strip is valid until the next one is asked for.
    """
    full_height, full_width = image.shape[:2]
    tops = np.arange(0, full_height, _BAND_ROWS)
    bottoms = np.minimum(tops + _BAND_ROWS, full_height)
    levels = [_Level(int(full_height * scale), int(full_width * scale), full_width) for scale in scales]
    begins, ends, spans = [], [], []
    for level in levels:
        edges = np.arange(level.shape[0] + 1) * (full_height / level.shape[0])
        edges[-1] = full_height
        begins.append(edges[:-1])
        ends.append(edges[1:])
        spans.append(
            np.stack(
                [
                    np.searchsorted(edges[1:], tops, "right"),  # first row that lies in the band
                    np.searchsorted(edges[:-1], bottoms, "left"),  # first that lies below it
                    np.searchsorted(edges[1:], bottoms, "right"),  # rows complete with this band
                ],
                axis=1,
            ).tolist()
        )
    for band, (top, bottom) in enumerate(zip(tops.tolist(), bottoms.tolist(), strict=True)):
        begin = np.concatenate([b[span[band][0] : span[band][1]] for b, span in zip(begins, spans, strict=True)])[
            :, None
        ]
        end = np.concatenate([e[span[band][0] : span[band][1]] for e, span in zip(ends, spans, strict=True)])[:, None]
        source = np.arange(top, bottom)
        covered = np.minimum(end, source + 1) - np.maximum(begin, source)
        weights = (np.maximum(covered, 0) / (end - begin)).astype(np.float32)
        mixed = mix_rows(weights, image[top:bottom].reshape(bottom - top, -1)).reshape(-1, full_width, 3)
        at = 0
        for index, (level, span) in enumerate(zip(levels, spans, strict=True)):
            first, stop, complete = span[band]
            level.add(first, mixed[at : at + stop - first])
            at += stop - first
            for strip_top, strip in level.strips(complete):
                yield index, strip_top, strip

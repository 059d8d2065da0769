"""Non-maximum suppression by MTCNN's own rule: boxes and scores in, the indices of the survivors out.

The `mtcnn` package compares all boxes with all others at once: a box dies when *any* better-scored box overlaps it too
much, even one that is dead itself. Greedy suppression keeps more boxes and moves the final ones, so the rule is kept;
its N x N arrays are not, since a phone photo of 8 MP asked for gigabytes.
"""

import numpy as np
from numpy.typing import NDArray

_BLOCK = 128


def best_first(scores: NDArray[np.floating]) -> NDArray[np.intp]:
    """Indices from the highest score to the lowest; among equal scores the later one first, as in `mtcnn`."""
    return np.argsort(scores, kind="stable")[::-1]


def survivors(boxes: NDArray[np.float64], threshold: float, *, of_smaller: bool = False) -> NDArray[np.intp]:
    """Indices of the boxes that no earlier box overlaps by more than `threshold`.

    boxes: (n, 4) x1, y1, x2, y2, best score first. The overlap is a share of the union, or of the smaller box with
    `of_smaller`. Memory grows with n, not with its square.
    """
    # float32 takes two thirds of the time.
    x1, y1, x2, y2 = np.ascontiguousarray(boxes.T, dtype=np.float32)
    areas = np.maximum(x2 - x1, 0) * np.maximum(y2 - y1, 0)
    # shared / (a + b - shared) > t is shared > t / (1 + t) * (a + b): shares of the areas spare a pass over all pairs.
    shares = areas * np.float32(threshold if of_smaller else threshold / (1 + threshold))
    join = np.minimum if of_smaller else np.add
    alive = np.arange(len(boxes))
    for start in range(0, len(boxes), _BLOCK):
        # Dead or not, these boxes kill; only those that still live need to be looked at.
        killers = np.arange(start, min(start + _BLOCK, len(boxes)))[:, None]
        later = np.searchsorted(alive, start)
        victims = alive[later:]
        shared = np.minimum(x2[killers], x2[victims])
        shared -= np.maximum(x1[killers], x1[victims])
        height = np.minimum(y2[killers], y2[victims])
        height -= np.maximum(y1[killers], y1[victims])
        shared *= np.maximum(height, 0, out=height)
        overlaps = shared > join(shares[killers], shares[victims])
        inside = np.searchsorted(victims, killers[-1, 0], "right")
        overlaps[:, :inside] &= killers < victims[:inside]
        alive = np.concatenate([alive[:later], victims[~overlaps.any(axis=0)]])
    return alive

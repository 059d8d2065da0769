"""Groups of faces in which a model may do better or worse: columns of the face table in, named groups out.

Fixed edges where a number means the same everywhere (pixels of the photo, degrees), so that reports compare; thirds of
the faces at hand where it depends on the detector or the crop.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dataset_tools.metrics import Floats

_SIZE_EDGES_PX = (48.0, 96.0, 192.0)
_ROLL_EDGES_DEG = (10.0, 20.0)


@dataclass(frozen=True)
class Slice:
    """Some of the faces, by a measure: faces is (faces,) bool."""

    measure: str
    name: str
    faces: NDArray[np.bool_]


def slices_of(faces: pa.Table) -> list[Slice]:
    """Faces by size (longer side of the box), sharpness, head roll and detection score; a measure that does not tell
    the faces apart is left out. faces: columns of FACES."""
    boxes = faces["bbox"].combine_chunks()
    corners = np.full((len(faces), 4), np.nan)
    given = boxes.is_valid().to_numpy(zero_copy_only=False)
    corners[given] = _numbers(boxes.flatten()).reshape(-1, 4)
    roll = np.abs(_numbers(faces["head_roll_deg"]))
    size_px = np.maximum(corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1])
    return [
        *_sliced("face size", size_px, _SIZE_EDGES_PX, " px"),
        *_sliced("sharpness", _numbers(faces["sharpness"]), None, ""),
        *_sliced("head roll", roll, _ROLL_EDGES_DEG, "°"),
        *_sliced("detection score", _numbers(faces["score"]), None, ""),
    ]


def _sliced(measure: str, values: Floats, edges: tuple[float, ...] | None, unit: str) -> list[Slice]:
    known = values[np.isfinite(values)]
    if edges is None:
        edges = tuple(dict.fromkeys(np.quantile(known, [1 / 3, 2 / 3]))) if len(known) else ()
    bounds = (-math.inf, *edges, math.inf)
    found = []
    for low, high in pairwise(bounds):
        inside = (values >= low) & (values < high)
        first, last = (f"{edge:,.4g}{unit}" if abs(edge) < 100 else f"{edge:,.0f}{unit}" for edge in (low, high))
        name = f"under {last}" if low == -math.inf else f"{first} and up" if high == math.inf else f"{first} to {last}"
        found.append(Slice(measure, name, inside))
    found.append(Slice(measure, "not given", ~np.isfinite(values)))
    found = [one for one in found if one.faces.any()]
    return found if len(found) > 1 else []


def _numbers(column: pa.ChunkedArray | pa.Array) -> Floats:
    return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)

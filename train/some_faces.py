"""A face data set in, a few of its faces out, as the network takes them: what two files of one model are compared on.

They need no label. They are spread evenly over a split, since a data set may be in the order of its classes.
"""

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dataset_tools import parquet, storage
from dataset_tools.images import DecodedImage, decode
from dataset_tools.limits import Limits
from dataset_tools.prepare import prepare
from schemas.model import ModelSpec
from train.data import DataError
from train.export import COMPARED

_ORDER = ("validation", "test", "train")
_GROUPS = 8
"""Row groups that are read: a remote set is not fetched whole for a few faces."""


def some_faces(dataset: str, spec: ModelSpec, count: int = COMPARED) -> tuple[NDArray[np.uint8], str]:
    """(faces, side, side, channels), at most `count`, and the split that they are from: the first there is.

    Faces that cannot be decoded are left out. Raises DataError where none is left.
    """
    groups: dict[str, list[tuple[str, int, int]]] = {}
    for split, part in parquet.data_parts(dataset):
        with storage.open_read(part) as file:
            about = pq.ParquetFile(file).metadata
        rows = [about.row_group(group).num_rows for group in range(about.num_row_groups)]
        groups.setdefault(split, []).extend((part, group, count) for group, count in enumerate(rows) if count)
    split = next((one for one in _ORDER if groups.get(one)), "")
    if not split:
        raise DataError(f"{storage.redact(dataset)} is no face data set: it has no face in data/*.parquet")
    picked = [groups[split][place] for place in _spread(_GROUPS, len(groups[split]))]
    faces = []
    for part, group, rows in picked:
        with storage.open_read(part) as file:
            column = pq.ParquetFile(file).read_row_group(group, columns=["image"])["image"]
        chosen = column.combine_chunks().field("bytes").take(_spread(-(-count // len(picked)), rows)).to_pylist()
        decoded = (decode(data or b"", Limits()) for data in chosen)
        faces += [prepare(one.pixels, spec) for one in decoded if isinstance(one, DecodedImage)]
    if not faces:
        raise DataError(f"{storage.redact(dataset)} has no face in its {split} split that can be decoded")
    return np.stack(faces[:count]), split


def _spread(count: int, of: int) -> NDArray[np.int64]:
    """At most `count` of the numbers below `of`, evenly spread."""
    return np.unique(np.linspace(0, of - 1, min(count, of)).round().astype(np.int64))

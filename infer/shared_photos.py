"""Which faces of a split a model may have seen: its faces and those of other splits in, the shared ones out.

A photo is shared when its bytes are (source_sha256), when its pixels are (pixels_sha256, which labelled sets have), or
when its perceptual hash is equal, which finds copies that were saved again. A hash of fewer than eight bits is that of
a flat picture and says nothing. `dataset_tools.leaks` looks before training, at the ledger; here the faces count that
are really there, of any data set that a model was trained on.
"""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dataset_tools import storage

WAYS = {
    "source_sha256": "the same file",
    "pixels_sha256": "the same pixels",
    "source_phash": "the same perceptual hash",
}
_MIN_BITS = 8


def photo_of(faces: pa.Table) -> NDArray[np.int64]:
    """(faces,): the number of the photo of each, from 0 up; one for all copies of an equal perceptual hash."""
    hashes = faces["source_phash"].to_pylist()
    names = [
        phash if tells else sha256
        for phash, tells, sha256 in zip(hashes, _telling(hashes), faces["source_sha256"].to_pylist(), strict=True)
    ]
    numbers: dict[str | int, int] = {}
    # A face that names no photo at all is a photo of its own.
    return np.array([numbers.setdefault(name or place, len(numbers)) for place, name in enumerate(names)], np.int64)


def shared_with(faces: pa.Table, parts: Iterable[str]) -> dict[str, NDArray[np.bool_]]:
    """For each of WAYS, (faces,): whether some face in these parts is equal in it. faces: has the columns WAYS."""
    shared = {name: np.zeros(len(faces), np.bool_) for name in WAYS}
    for part in parts:
        with storage.open_read(part) as file:
            there = pq.ParquetFile(file)
            known = there.read(columns=[name for name in WAYS if name in there.schema_arrow.names])
        for name in known.column_names:
            values = known[name].combine_chunks().drop_null()
            shared[name] |= pc.is_in(faces[name], value_set=values).to_numpy()
    shared["source_phash"] &= np.array(_telling(faces["source_phash"].to_pylist()), np.bool_)
    return shared


def _telling(hashes: list[str | None]) -> list[bool]:
    return [bool(text) and int(text or "0", 16).bit_count() >= _MIN_BITS for text in hashes]

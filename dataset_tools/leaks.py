"""Photos that lie in more than one split: a ledger in, groups of copies and what to leave out of training out.

Copies are exact when their pixels are (whatever the files), and near when their perceptual hashes differ in a few bits.
A model that saw a test photo in training is tested on its memory. The test split is never touched: its copies are left
out of validation and training, and copies of validation out of training.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dataset_tools import near_duplicates, parquet, storage
from schemas.tables import SPLITS

_COLUMNS = ["key", "sha256", "pixels_sha256", "phash", "split", "faces", "detail"]


@dataclass(frozen=True)
class Leaks:
    """groups of copies, over more than one split (`exact`, `near`) and in all; images are those in groups over several
    splits. to_drop: keys that have a copy in a split that counts more. tainted: keys of validation and test images
    that have a copy in a split below, as long as nothing is dropped."""

    exact_groups: int
    exact_images: int
    near_groups: int
    near_images: int
    copies: int
    to_drop: frozenset[str]
    tainted: frozenset[str]

    def to_dict(self) -> dict[str, int]:
        """For summary.json: counts alone."""
        names = ("exact_groups", "exact_images", "near_groups", "near_images", "copies")
        return {name: getattr(self, name) for name in names} | {"tainted": len(self.tainted)}


def find(
    keys: Sequence[str], contents: Sequence[str], phashes: Sequence[str], splits: Sequence[str], *, near: bool = True
) -> Leaks:
    """Compare images, one entry each: its key, a digest of its content, its perceptual hash, its split.

    near: whether near-duplicates are to be dropped and taint as well; they are counted in any case.
    """
    split = np.array([SPLITS.index(name) for name in splits], np.int64)
    _, exact = np.unique(np.array(contents, object).astype(str), return_inverse=True)
    alike = near_duplicates.group_of(near_duplicates.parse_hashes(phashes))
    alone = np.flatnonzero(alike < 0)
    alike = alike.copy()
    alike[alone] = np.arange(len(alone)) + alike.max(initial=-1) + 1
    highest, lowest = split.copy(), split.copy()
    for groups in (exact, alike) if near else (exact,):
        of_group = _ends(groups, split)
        highest, lowest = np.maximum(highest, of_group[0][groups]), np.minimum(lowest, of_group[1][groups])
    exact_over, near_over = _over_splits(exact, split), _over_splits(alike, split)
    _, sizes = np.unique(exact, return_counts=True)
    return Leaks(
        exact_groups=int(exact_over.sum()),
        exact_images=int(exact_over[exact].sum()),
        near_groups=int(near_over.sum()),
        near_images=int(near_over[alike].sum()),
        copies=int((sizes - 1).sum()) if len(sizes) else 0,
        to_drop=frozenset(keys[row] for row in np.flatnonzero(highest > split).tolist()),
        tainted=frozenset(keys[row] for row in np.flatnonzero(lowest < split).tolist()),
    )


def _ends(groups: NDArray[np.int64], split: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each group, the highest and the lowest number of a split in it."""
    count = int(groups.max(initial=-1)) + 1
    highest, lowest = np.full(count, -1, np.int64), np.full(count, len(SPLITS), np.int64)
    np.maximum.at(highest, groups, split)
    np.minimum.at(lowest, groups, split)
    return highest, lowest


def _over_splits(groups: NDArray[np.int64], split: NDArray[np.int64]) -> NDArray[np.bool_]:
    highest, lowest = _ends(groups, split)
    return highest > lowest


def of_data_set(out: str, *, near: bool = True, dropped: str | None = None) -> Leaks:
    """The leaks of a data set folder, by its ledger: of the images that have faces in it.

    dropped: a detail of ledger rows that also count, those that were dropped for being leaks. A ledger without digests
    of pixels, as crop-faces writes, compares the files.
    """
    tables = []
    for part in parquet.parts(storage.join(out, "ledger")):
        table = parquet.read_part(part, _COLUMNS)
        wanted = pc.greater(table["faces"], 0)
        if dropped is not None:
            wanted = pc.or_(wanted, pc.equal(pc.fill_null(table["detail"], ""), dropped))
        tables.append(table.filter(wanted))
    if not tables:
        return find([], [], [], [], near=near)
    rows = pa.concat_tables(tables)
    contents = pc.coalesce(rows["pixels_sha256"], rows["sha256"]).to_pylist()
    return find(rows["key"].to_pylist(), contents, rows["phash"].to_pylist(), rows["split"].to_pylist(), near=near)

"""The folder of a run: what stands there, whether it may be continued, and how it is cleared.

manifest.json: what the run is; listing.parquet: its images; done/NNNNN.json: the counts of a shard that is complete.
"""

import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dataset_tools import storage
from dataset_tools.archives import STREAMED
from dataset_tools.counts import Counts
from schemas.manifest import Manifest, differences

_FOLDERS = ("data", "ledger", "predictions", "failures", "samples", "done", "yolo", "attempts")
_FILES = ("summary.json", "README.md", "report.html", "listing.parquet", "manifest.json")
_MOST_STREAMS = 8


class FolderError(ValueError):
    """The folder holds something else than the run that was asked for; one line that names the next step."""


@dataclass(frozen=True)
class RunFolder:
    """out: normalised path or URL of the data set folder."""

    out: str

    def at(self, *parts: str) -> str:
        return storage.join(self.out, *parts)

    def manifest(self) -> Manifest | None:
        """The manifest of the run here, or None. Raises FolderError when the folder holds something else."""
        if storage.exists(self.at("manifest.json")):
            return Manifest.from_json(storage.read_bytes(self.at("manifest.json")))
        if not storage.is_folder(self.out):
            return None
        for url, _ in storage.list_files(self.out):
            if url != self.at("listing.parquet"):  # all that a run killed before its manifest leaves behind
                raise FolderError(f"{self.out} is not empty and holds no run of facemill: choose another --out")
        return None

    def done(self) -> dict[int, Counts]:
        """The counts of every complete shard."""
        if not storage.is_folder(self.at("done")):
            return {}
        markers = map(json.loads, storage.read_each(url for url, _ in storage.list_files(self.at("done"))))
        return {int(values["shard"]): Counts.from_dict(values) for values in markers}

    def clear(self) -> None:
        """Delete what a run wrote here, and nothing else. The manifest goes last, so that a clearing that was cut off
        is still known as a run."""
        for name in _FOLDERS:
            storage.remove_tree(self.at(name))
        for name in _FILES:
            storage.remove(self.at(name))


def refuse_difference(before: Manifest, now: dict[str, object], sources: tuple[str, ...], out: str) -> None:
    """Raises FolderError when a run that exists has other sources or parameters, naming the first differences."""
    changes = differences({"source": before.sources} | before.parameters, {"source": sources} | now)
    if changes:
        more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
        raise FolderError(
            f"{out} holds a run with other parameters ({'; '.join(changes[:3])}{more}): "
            "choose another --out, or start anew with --overwrite"
        )


def listing_starts(table: pa.Table, shard_images: int) -> list[int]:
    """`shard_starts` of a table with the columns container and kind of a listing; a whole archive is one shard."""
    containers = table["container"].combine_chunks().indices.fill_null(-1).to_numpy()
    kinds = table["kind"].combine_chunks()
    apart = [code for code, kind in enumerate(kinds.dictionary.to_pylist()) if kind in (*STREAMED, "archive")]
    return shard_starts(containers, np.isin(kinds.indices.to_numpy(), apart), shard_images)


def shard_starts(containers: NDArray[np.int32], streamed: NDArray[np.bool_], shard_images: int) -> list[int]:
    """Where each shard starts, and at the end where the last one stops: rows of the listing.

    containers: the number of each image's container, (images,). streamed: whether it has to be read from its start, as
    a compressed tar; such a one has shards of its own, and at most 8 of them, since every one begins at the beginning.
    """
    total = len(containers)
    changes = np.flatnonzero((np.diff(containers) != 0) & (streamed[1:] | streamed[:-1])) + 1
    starts: list[int] = []
    for start, stop in zip([0, *changes.tolist()], [*changes.tolist(), total], strict=True):
        images = shard_images
        if start < total and streamed[start]:
            images = max(images, -(-(stop - start) // _MOST_STREAMS))
        starts += range(start, stop, images)
    return [*starts, total]

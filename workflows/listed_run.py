"""A run over a listing of images: the one that stands in OUT and is continued, or a new one, planned and noted."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from dataset_tools import storage
from dataset_tools.listing import Listing
from dataset_tools.run_folder import FolderError, RunFolder, listing_starts, refuse_difference
from schemas.manifest import Manifest


def standing(
    folder: RunFolder, command: str, told: Sequence[str], parameters: Mapping[str, Any]
) -> tuple[Listing, Manifest] | None:
    """The run to be continued, None where there is none yet. told: its sources, without secrets.

    Raises FolderError for another command's run, or one with other sources or parameters.
    """
    before = folder.manifest()
    if before is None:
        return None
    if before.command != command:
        raise FolderError(f"{folder.out} holds a run of {before.command}: choose another --out, or use --overwrite")
    refuse_difference(before, dict(parameters), tuple(told), folder.out)
    return Listing.from_parquet(folder.at("listing.parquet")), before


def begin(
    folder: RunFolder,
    command: str,
    told: Sequence[str],
    parameters: Mapping[str, Any],
    listing: Listing,
    shard_images: int,
) -> Manifest:
    """Write listing.parquet and, last, manifest.json. An earlier run is deleted only now: listing might have failed."""
    if folder.manifest() is not None:
        folder.clear()
    listing.to_parquet(folder.at("listing.parquet"))
    manifest = Manifest(
        command=command,
        sources=tuple(told),
        images=len(listing),
        bytes=listing.total_bytes,
        ignored=dict(listing.ignored),
        listing_fingerprint=listing.fingerprint(),
        shards=len(listing_starts(listing.table, shard_images)) - 1,
        shard_images=shard_images,
        parameters=dict(parameters),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    storage.write_bytes(folder.at("manifest.json"), manifest.to_json())
    return manifest

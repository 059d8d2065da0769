"""The sums at the end of a run, of any command that leaves shards with counts: added up, checked, with the speed."""

import json
from dataclasses import dataclass
from typing import Any

from dataset_tools import storage
from dataset_tools.counts import Counts
from dataset_tools.run_folder import RunFolder
from schemas.manifest import Manifest
from workflows import cli

_SPEED = ("wall_seconds", "workers", "images_per_second")


@dataclass(frozen=True)
class Effort:
    """images that were processed now, in wall_s seconds, by this number of workers."""

    images: int
    wall_s: float
    workers: int


def add_up(folder: RunFolder, manifest: Manifest, effort: Effort, *, listed_in: str) -> dict[str, Any]:
    """The totals of all shards, with the speed of this run, or of an earlier one where nothing was left to do.

    Raises cli.RunError when they are not those of what was listed; listed_in: what the message calls that.
    """
    total = Counts()
    for counts in folder.done().values():
        total.add(counts)
    if total.images != manifest.images or total.images != total.ok + total.no_face + total.failed:
        raise cli.RunError(
            f"the ledger has {total.images} images and the {listed_in} {manifest.images}: repeat the command, "
            "and report this if it stays"
        )
    earlier = folder.at("summary.json")
    if effort.images == 0 and storage.exists(earlier):
        before = json.loads(storage.read_bytes(earlier))
        speed = {name: before[name] for name in _SPEED}
    else:
        rate = round(effort.images / max(effort.wall_s, 1e-9), 2)
        speed = dict(zip(_SPEED, (round(effort.wall_s, 1), effort.workers, rate), strict=True))
    return total.to_dict() | speed | {"images_processed": effort.images}


def write_summary(folder: RunFolder, summary: dict[str, Any]) -> None:
    """Clear what killed writers left, then write summary.json."""
    storage.remove_partials(folder.out)
    storage.write_bytes(folder.at("summary.json"), json.dumps(summary, indent=2).encode())

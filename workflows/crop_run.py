"""The story of one crop-faces run: list and plan, or continue; crop shard by shard; add up; write cards and report."""

import argparse
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from dataset_tools import cards, parquet, report, sources, storage, yolo
from dataset_tools.counts import Counts
from dataset_tools.detection import DetectorError, load_detector
from dataset_tools.estimate import estimate
from dataset_tools.faces import Recipe
from dataset_tools.run_folder import FolderError, RunFolder, listing_starts
from dataset_tools.shards import ShardTask, YoloOptions
from schemas.labels import UnknownLabelError, label_set
from schemas.manifest import Manifest, ManifestError
from schemas.outcomes import Reason
from workflows import cli, dask_engine
from workflows.listed_run import begin, standing
from workflows.places import places
from workflows.progress import Progress, duration, size
from workflows.sums import Effort, add_up, write_summary

_SHARD_IMAGES = 512
_MOST_SHARDS = 20_000
"""Of a large collection, whose shards grow instead: each costs some objects on the store, and a look when continued."""
_MOST_SHARD_IMAGES = 4096
"""A third of a megabyte of names in each task, and some minutes of work lost when a worker dies."""
_SHARDS_PER_WORKER = 4
"""Of a small collection, so that no worker waits long for the last shard of another."""
_CLUSTER_WORKERS = 32


@dataclass(frozen=True)
class Job:
    """A crop-faces run, checked: normalised sources, the folder, and everything that decides what comes out."""

    sources: tuple[str, ...]
    folder: RunFolder
    recipe: Recipe
    yolo: YoloOptions
    label_set: str
    parameters: dict[str, Any]
    limit: int | None
    where: dask_engine.Where


def crop_faces(args: argparse.Namespace, recipe: Recipe) -> int:
    """Run the command; returns its exit code. Raises cli.UserError and cli.RunError."""
    try:
        job = _job(args, recipe)
        if args.dry_run:
            return _dry_run(job, as_json=args.json)
        listing, manifest = _plan(job, args)
        started = time.monotonic()
        processed = _run_shards(job, listing, manifest, args.retry_failed)
        summary = _finish(job, manifest, processed, time.monotonic() - started)
    except (sources.SourceError, FolderError, ManifestError, UnknownLabelError, DetectorError) as error:
        raise cli.UserError(str(error)) from None
    except (storage.MissingFileError, storage.DeniedError) as error:
        raise cli.UserError(str(error)) from None
    except (OSError, dask_engine.EngineError) as error:  # a full disk, a store that refuses, a cluster that is gone
        raise cli.RunError(f"{error} (the same command continues)") from None
    cli.result(_told(summary, job.folder), summary | {"out": job.folder.out}, as_json=args.json)
    return cli.exit_code_for(summary["failed"], summary["images"], args.max_failed)


def _job(args: argparse.Namespace, recipe: Recipe) -> Job:
    named, out = places(args.source, args.out, "faces")
    images = args.yolo_images or ("copy" if storage.is_local(out) else "none")
    parameters: dict[str, Any] = {
        "recipe": recipe.to_dict(),
        "label_set": label_set(args.label_set).name,
        "yolo": args.yolo,
        "yolo_images": images,
        "limit": args.limit,
    }
    if recipe.detector.model is not None:
        parameters["recipe"]["detector"]["model"] = storage.redact(recipe.detector.model)
        parameters["detector_model_sha256"] = hashlib.sha256(storage.read_bytes(recipe.detector.model)).hexdigest()
    return Job(
        sources=named,
        folder=RunFolder(out),
        recipe=recipe,
        yolo=YoloOptions(args.yolo, images == "copy"),
        label_set=parameters["label_set"],
        parameters=parameters,
        limit=args.limit,
        where=dask_engine.Where(
            workers=args.workers or len(os.sched_getaffinity(0)),
            scheduler=args.scheduler,
            in_process=any(name.startswith("memory://") for name in (out, *named)),
        ),
    )


def _plan(job: Job, args: argparse.Namespace) -> tuple[sources.Listing, Manifest]:
    """The listing and the manifest: of the run that stands in OUT, or of a new one."""
    told = tuple(storage.redact(source) for source in job.sources)
    if args.retry_failed is not None and (args.overwrite or job.folder.manifest() is None):
        raise cli.UserError(f"--retry-failed: there is no run in {job.folder.out} to be retried")
    run = None if args.overwrite else standing(job.folder, "crop-faces", told, job.parameters)
    if run is not None:
        return run
    if job.where.scheduler is None:
        load_detector(job.recipe.detector)  # what is missing is told now, and not by a worker after the listing
    cli.note(f"listing {', '.join(told)}")
    listing = _list(job)
    images = args.shard_size or _shard_images(len(listing), job.where)
    return listing, begin(job.folder, "crop-faces", told, job.parameters, listing, images)


def _list(job: Job) -> sources.Listing:
    listing = sources.list_images(job.sources, job.recipe.limits)
    return listing if job.limit is None else replace(listing, table=listing.table.slice(0, job.limit))


def _shard_images(images: int, where: dask_engine.Where) -> int:
    workers = _CLUSTER_WORKERS if where.scheduler else where.workers
    if images > _SHARD_IMAGES * _MOST_SHARDS:
        return min(_MOST_SHARD_IMAGES, -(-images // _MOST_SHARDS))
    return min(_SHARD_IMAGES, max(1, -(-images // (_SHARDS_PER_WORKER * workers))))


def _run_shards(job: Job, listing: sources.Listing, manifest: Manifest, retry: str | None) -> int:
    """Run what is not done; returns the number of images that were processed now."""
    done = job.folder.done()
    again = _to_retry(job.folder, retry, done)
    starts = listing_starts(listing.table, manifest.shard_images)
    waiting = [shard for shard in range(manifest.shards) if shard not in done or shard in again]
    if not waiting:
        return 0
    tally = _Tally(manifest.images, {shard: counts for shard, counts in done.items() if shard not in again})
    already = tally.images

    def tasks() -> Iterator[ShardTask]:
        for shard in waiting:
            yield ShardTask(
                out=job.folder.out,
                shard=shard,
                shards=manifest.shards,
                refs=tuple(listing.refs(starts[shard], starts[shard + 1])),
                recipe=job.recipe,
                yolo=job.yolo,
                label_set=job.label_set,
                retry=again.get(shard),
            )

    if already or again:
        cli.note(
            f"continuing: {already:,} of {manifest.images:,} images are done "
            f"(as listed {manifest.created}; files added since need another --out, or --overwrite)"
        )
    try:
        for finished in dask_engine.run(tasks(), job.where, job.recipe.detector, tally.heard):
            tally.finished(finished.shard, finished.counts)
    finally:
        tally.close()
    return (
        sum(len(keys) for keys in again.values())
        + manifest.images
        - already
        - sum(starts[shard + 1] - starts[shard] for shard in again)
    )


def _to_retry(folder: RunFolder, reason: str | None, done: dict[int, Counts]) -> dict[int, frozenset[str]]:
    """The keys to process again, by shard; reason: None asks for none, an empty one for every failure."""
    if reason is None:
        return {}
    if reason and reason not in set(Reason):
        raise cli.UserError(f"--retry-failed: no reason is called {reason!r}; there are {', '.join(Reason)}")
    found: dict[int, frozenset[str]] = {}
    for shard, counts in done.items():
        if counts.reasons[reason] if reason else counts.failed:
            rows = parquet.read_part(parquet.ledger_part(folder.out, shard), ["key", "reason"]).to_pylist()
            found[shard] = frozenset(row["key"] for row in rows if row["reason"] and reason in ("", row["reason"]))
    return found


class _Tally:
    """Counts of the shards that are done and of those that run, for the progress line. A cluster reports often and has
    many shards, so what is done is held as its sums."""

    def __init__(self, images: int, done: dict[int, Counts]) -> None:
        self._lock = threading.Lock()
        self._finished = set(done)
        self._sums = [0, 0, 0]
        self._running: dict[int, tuple[int, int, int]] = {}
        for counts in done.values():
            self._add(counts.images, counts.faces, counts.failed)
        self._progress = Progress(images, self.images)

    @property
    def images(self) -> int:
        return self._sums[0]

    def heard(self, shard: int, counts: dict[str, int]) -> None:
        with self._lock:
            if shard not in self._finished:
                self._add(*(-value for value in self._running.get(shard, ())))
                self._running[shard] = counts["images"], counts["faces"], counts["failed"]
                self._add(*self._running[shard])
            self._progress.show(*self._sums)

    def finished(self, shard: int, counts: Counts) -> None:
        with self._lock:
            self._add(*(-value for value in self._running.pop(shard, ())))
            if shard not in self._finished:
                self._finished.add(shard)
                self._add(counts.images, counts.faces, counts.failed)
            self._progress.show(*self._sums)

    def close(self) -> None:
        with self._lock:
            self._progress.close(*self._sums)

    def _add(self, *values: int) -> None:
        for at, value in enumerate(values):
            self._sums[at] += value


def _finish(job: Job, manifest: Manifest, processed: int, wall_s: float) -> dict[str, Any]:
    """Add up, then write the YOLO index, the card and the report; `summary.json` last, as the sign of completeness."""
    folder = job.folder
    effort = Effort(processed, wall_s, job.where.workers)
    summary = add_up(folder, manifest, effort, listed_in="listing")
    if job.yolo.labels != "off":
        yolo.write_index(folder.out, images=job.yolo.images, pose=job.yolo.labels == "pose")
    storage.remove_tree(folder.at("attempts"))
    write_summary(folder, summary)
    cards.write_card(folder.out)
    report.write_report(folder.out)
    return summary


def _told(summary: dict[str, Any], folder: RunFolder) -> list[str]:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(summary["reasons"].items()))
    splits = ", ".join(f"{split} {count:,}" for split, count in sorted(summary["splits"].items()))
    return [
        f"{summary['images']:,} images = {summary['ok']:,} with faces + {summary['no_face']:,} without "
        f"+ {summary['failed']:,} failed" + (f" ({reasons})" if reasons else ""),
        f"{summary['faces']:,} faces written ({splits or 'none'}), "
        f"{summary['faces_screened']:,} held back by screening",
        f"{duration(summary['wall_seconds'])} at {summary['images_per_second']} images/s",
        f"fingerprint {summary['fingerprint']}",
        f"data set    {folder.out}",
        f"report      {folder.at('report.html')}",
    ]


def _dry_run(job: Job, *, as_json: bool) -> int:
    listing = _list(job)
    images = len(listing)
    values = estimate(listing, job.recipe, load_detector(job.recipe.detector), seed=job.recipe.seed)
    cores = job.where.workers
    seconds = values.seconds_per_image * images / cores
    faces = round(values.faces_per_image * images)
    written = (values.face_bytes_per_image + (values.bytes_per_image if job.yolo.images else 0)) * images
    lines = [
        f"{images:,} images, {size(listing.total_bytes)}; ignored by name: {sum(listing.ignored.values()):,} files",
        f"about {duration(seconds)} on {cores} cores, from {values.sampled} images timed one by one",
        f"about {faces:,} faces, {size(written)} to be written to {job.folder.out}",
    ]
    result = {
        "images": images,
        "bytes": listing.total_bytes,
        "ignored": dict(listing.ignored),
        "sampled": values.sampled,
        "workers": cores,
        "seconds": round(seconds, 1),
        "faces": faces,
        "bytes_written": round(written),
        "out": job.folder.out,
    }
    cli.result(lines, result, as_json=as_json)
    return 0

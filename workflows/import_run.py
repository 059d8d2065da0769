"""The story of one import-labels run: read the set, or continue; make the shards; add up and report."""

import argparse
import hashlib
import json
import os
import time
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dataset_tools import storage
from dataset_tools.counts import Counts
from dataset_tools.crop import CropRecipe
from dataset_tools.detection import DetectorError, DetectorSettings, load_detector
from dataset_tools.faces import Recipe
from dataset_tools.importers import formats
from dataset_tools.importers.annotations import (
    CUSTOM,
    LabelledSet,
    UnmappedError,
    mapped,
    read_table,
    to_table,
    write_table,
)
from dataset_tools.importers.rehearsal import rehearse
from dataset_tools.importers.shard import ImportTask
from dataset_tools.importers.step import ImportRecipe
from dataset_tools.listing import SourceError
from dataset_tools.run_folder import FolderError, RunFolder, listing_starts, refuse_difference
from dataset_tools.splits import parse_fractions
from schemas.labels import LabelSet, UnknownLabelError, label_set
from schemas.manifest import Manifest, ManifestError
from workflows import cli, import_pool, import_sums
from workflows.progress import Progress, duration
from workflows.sums import Effort

_SHARD_IMAGES = 2048
_DETECTED_IMAGES = 128
"""In a shard when faces are detected, so that little is lost when a run is stopped."""
_ALONE_IMAGES = 4096
"""A set of so many crops is imported in this process: starting others takes longer."""


@dataclass(frozen=True)
class Job:
    """An import-labels run, checked. asked: the label set that the user named, if any."""

    source: str
    folder: RunFolder
    form: str
    options: formats.Options
    recipe: ImportRecipe
    asked: LabelSet | None
    drop_unmapped: bool
    drop_leaks: str | None
    limit: int | None
    workers: int

    @property
    def detector(self) -> DetectorSettings | None:
        return self.recipe.faces.detector if self.recipe.detect else None

    def parameters(self, labels: LabelSet, *, crops: bool) -> dict[str, Any]:
        """All that decides what comes out. crops: whether faces are cut out of photos at all."""
        values: dict[str, Any] = {
            "format": self.form,
            "images": self.options.images and storage.redact(self.options.images),
            "votes": self.options.votes and storage.redact(self.options.votes),
            "label_set": labels.name,
            "label_names": list(labels.names),
            "drop_unmapped": self.drop_unmapped,
            "drop_leaks": self.drop_leaks,
            "split": list(self.recipe.faces.split),
            "validation": self.recipe.validation,
            "seed": self.recipe.faces.seed,
            "detect": self.recipe.detect,
            "recipe": self.recipe.to_dict(crops=crops),
            "limit": self.limit,
        }
        return values


def import_labels(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code. Raises cli.UserError and cli.RunError."""
    try:
        job = _job(args)
        if args.dry_run:
            return _dry_run(job, as_json=args.json)
        table, notes, manifest = _plan(job, args)
        started = time.monotonic()
        processed = _run_shards(job, table, manifest, retry=args.retry_failed)
        effort = Effort(processed, time.monotonic() - started, job.workers)
        summary = import_sums.finish(job.folder, manifest, effort)
    except (SourceError, FolderError, ManifestError, UnknownLabelError, UnmappedError, DetectorError) as error:
        raise cli.UserError(str(error)) from None
    except (storage.MissingFileError, storage.DeniedError) as error:
        raise cli.UserError(str(error)) from None
    except BrokenProcessPool:
        raise cli.RunError("a worker process died, perhaps of too little memory (the same command continues)") from None
    except OSError as error:
        raise cli.RunError(f"{error} (the same command continues)") from None
    lines = [f"{job.form}: {note}" for note in notes] + import_sums.told(summary, job.folder)
    cli.result(lines, summary | {"out": job.folder.out}, as_json=args.json)
    return cli.exit_code_for(summary["failed"], summary["images"], args.max_failed)


def _job(args: argparse.Namespace) -> Job:
    source = storage.normalize(args.source)
    out = storage.normalize(args.out or f"{source.rsplit('/', 1)[-1].split('.')[0] or 'labelled'}-faces")
    if out == source or out.startswith(f"{source}/"):
        raise cli.UserError(f"OUT {out} lies inside SOURCE {source}: choose an --out beside it")
    detector = cli.detector_from(args)
    if not 0 <= args.validation < 1:
        raise cli.UserError("--validation takes a share below 1, such as 0.1")
    asked = label_set(args.label_set) if args.label_set else None
    aligned = args.detect if args.align is None else args.align
    try:
        faces = Recipe(
            detector=detector,
            crop=CropRecipe(aligned, args.margin, args.size, args.crop_format, args.quality),
            limits=cli.limits_from(args),
            split=parse_fractions(args.split),
            seed=args.seed,
        )
    except ValueError as error:
        raise cli.UserError(str(error)) from None
    options = formats.Options(
        limits=faces.limits,
        images=storage.normalize(args.images) if args.images else None,
        votes=storage.normalize(args.votes) if args.votes else None,
        detect=args.detect,
        label_set=asked,
    )
    form = args.format
    if form == "auto":
        form = formats.detect_format(source, options)
        cli.note(f"format {form}, by what lies in {storage.redact(source)}")
    return Job(
        source=source,
        folder=RunFolder(out),
        form=form,
        options=options,
        recipe=ImportRecipe(faces, args.detect, args.validation),
        asked=asked,
        drop_unmapped=args.drop_unmapped,
        drop_leaks=args.drop_leaks,
        limit=args.limit,
        workers=args.workers or len(os.sched_getaffinity(0)),
    )


# --- The plan ---------------------------------------------------------------------------------------------------------


def _plan(job: Job, args: argparse.Namespace) -> tuple[pa.Table, tuple[str, ...], Manifest]:
    """The annotations and the manifest: of the run that stands in OUT, or of a new one."""
    folder = job.folder
    before = folder.manifest()
    told = (storage.redact(job.source),)
    if before is not None and not args.overwrite:
        if before.command != "import-labels":
            raise FolderError(f"{folder.out} holds a run of {before.command}: choose another --out, or use --overwrite")
        refuse_difference(before, _parameters_like(job, before), told, folder.out)
        return *read_table(folder.at("listing.parquet")), before
    if args.retry_failed:
        raise cli.UserError(f"--retry-failed: there is no run in {folder.out} to be retried")
    if job.detector is not None:
        load_detector(job.detector)  # what is missing is told now, and not by a worker
    cli.note(f"reading {told[0]}")
    found = _read(job)  # before the earlier run is deleted: this may be refused
    if before is not None:
        folder.clear()
    table = to_table(found.annotations)
    write_table(folder.at("listing.parquet"), table, found.notes)
    images = args.shard_size or (_DETECTED_IMAGES if job.recipe.detect else _SHARD_IMAGES)
    crops = job.recipe.detect or any(one.box is not None for one in found.annotations)
    manifest = Manifest(
        command="import-labels",
        sources=told,
        images=len(table),
        bytes=int(pc.sum(table["size"]).as_py() or 0),
        ignored=dict(found.ignored),
        listing_fingerprint=_fingerprint(table),
        shards=len(listing_starts(table, images)) - 1,
        shard_images=images,
        parameters=job.parameters(found.labels, crops=crops),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    storage.write_bytes(folder.at("manifest.json"), manifest.to_json())
    return table, found.notes, manifest


def _read(job: Job) -> LabelledSet:
    found = formats.read(job.source, job.form, job.options)
    if job.limit is not None:
        found = replace(found, annotations=found.annotations[: job.limit])
    return found if job.asked is None else mapped(found, job.asked, drop_unmapped=job.drop_unmapped)


def _parameters_like(job: Job, before: Manifest) -> dict[str, Any]:
    """The parameters of this command for a run that exists: what only reading the set would tell is taken from it."""
    known = before.parameters
    if job.asked is not None:
        labels = job.asked
    elif known.get("label_set") == CUSTOM or job.form not in _OWN_LABELS:
        labels = LabelSet(CUSTOM, tuple(known.get("label_names", ())))
    else:
        labels = label_set(_OWN_LABELS[job.form])
    return job.parameters(labels, crops=job.recipe.detect or "crop" in known.get("recipe", {}))


_OWN_LABELS = {"affectnet": "affectnet-8", "fer2013": "fer2013", "ferplus": "ferplus", "raf-db": "raf-db"}


def _fingerprint(table: pa.Table) -> str:
    digest = hashlib.sha256()
    for batch in table.drop_columns(["container", "kind", "packed", "crc32"]).to_batches(max_chunksize=16384):
        digest.update(json.dumps(batch.to_pylist()).encode())
    return digest.hexdigest()


# --- The shards -------------------------------------------------------------------------------------------------------


def _run_shards(job: Job, table: pa.Table, manifest: Manifest, *, retry: bool) -> int:
    """Make what is not done; returns the number of images that were processed now."""
    done = job.folder.done()
    if retry:
        done = {shard: counts for shard, counts in done.items() if not counts.failed}
    waiting = [shard for shard in range(manifest.shards) if shard not in done]
    if not waiting:
        return 0
    total = Counts()
    for counts in done.values():
        total.add(counts)
    already = total.images
    if already:
        cli.note(f"continuing: {already:,} of {manifest.images:,} images are done")
    starts = listing_starts(table, manifest.shard_images)
    labels = _labels_of(manifest)
    tasks = (
        ImportTask(
            out=job.folder.out,
            shard=shard,
            shards=manifest.shards,
            rows=table.slice(starts[shard], starts[shard + 1] - starts[shard]),
            labels=labels,
            recipe=job.recipe,
            recipe_told=manifest.parameters["recipe"],
        )
        for shard in waiting
    )
    progress = Progress(manifest.images, already)
    few = manifest.images - already <= _ALONE_IMAGES and not job.recipe.detect
    workers = 1 if few or "memory://" in f"{job.folder.out}{job.source}" else min(job.workers, len(waiting))
    try:
        for counts in import_pool.run(tasks, job.detector, workers):
            total.add(counts)
            progress.show(total.images, total.faces, total.failed)
    finally:
        progress.close(total.images, total.faces, total.failed)
    return manifest.images - already


def _labels_of(manifest: Manifest) -> LabelSet:
    return LabelSet(manifest.parameters["label_set"], tuple(manifest.parameters["label_names"]))


def _dry_run(job: Job, *, as_json: bool) -> int:
    """Read the set and say what is in it; write nothing. A few of its images are processed for the time."""
    found = _read(job)
    detector = load_detector(job.detector) if job.detector else None
    values = rehearse(found, job.recipe, detector)
    seconds = values.pop("seconds_per_image") * len(found.annotations) / job.workers
    told = {"format": job.form, "label_set": found.labels.name, "workers": job.workers, "seconds": round(seconds, 1)}
    lines = [
        *(f"{job.form}: {note}" for note in found.notes),
        f"{values['images']:,} images, {values['dropped']:,} to be dropped, {values['failed']:,} with a bad annotation",
        *import_sums.class_lines(values["classes"], found.labels.name),
        f"about {duration(seconds)} on {job.workers} cores, from {values['sampled']} images timed one by one",
        f"to be written to {job.folder.out}",
    ]
    cli.result(lines, told | values | {"out": job.folder.out}, as_json=as_json)
    return 0

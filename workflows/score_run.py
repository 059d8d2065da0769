"""The story of one scoring run: check model and options; list and plan, or continue; run the Beam job until nothing is
left; add up; write the report.

The plan is rows of OUT/listing.parquet, the result is what lies in OUT: a marker for each segment that is complete. So
the same command continues after anything, and a job on a cluster needs no way back to this process.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from dataset_tools import sources, storage
from dataset_tools.archives import STREAMED, archive_suffix_kinds
from dataset_tools.crop import CropRecipe
from dataset_tools.detection import DetectorError, load_detector
from dataset_tools.faces import Recipe
from dataset_tools.run_folder import FolderError, RunFolder, listing_starts
from infer import score_journal, score_page, score_parts
from infer.predictor import RUNTIMES, Predictor, PredictorError, load_predictor
from infer.score_counts import ScoreCounts
from infer.scoring import FaceSource, Scoring, Unit, crop_recipe, read_pieces, score_piece
from schemas.manifest import Manifest, ManifestError
from schemas.versions import installed_versions
from workflows import beam_job, cli
from workflows.background import repeating
from workflows.listed_run import begin, standing
from workflows.places import places
from workflows.progress import Progress, duration, size

SHIPPED_MODEL = Path(__file__).parent.parent / "models" / "compact48_fer2013"
_SEGMENT_IMAGES = 2048
_UNITS_PER_WORKER = 16
"""Beam deals the units out beforehand, so many small ones even out what some take longer."""
_CLUSTER_WORKERS = 32
_TRIES_WITHOUT_GAIN = 8
"""A death in the dark, two with each image noted, and the try that leaves the image alone; two units may take turns."""
_MOST_GIVEN_UP = 8
"""So many images in units that are not complete look like a broken installation, which would kill for each image."""
_LOOK_S = 1.0
_LOOK_REMOTE_S = 15.0
_LOOK_REST = 20
"""Times as long as a look took, until the next: with a hundred thousand markers it takes seconds, and requests."""
_SAMPLE_IMAGES = 24


@dataclass(frozen=True)
class Job:
    """A scoring run, checked."""

    sources: tuple[str, ...]
    folder: RunFolder
    model: str
    predictor: Predictor
    runtime: str
    source: FaceSource
    parameters: dict[str, Any]
    limit: int | None
    where: beam_job.Where


def score_archive(args: argparse.Namespace, options: Sequence[str]) -> int:
    """Run the command; returns its exit code. options: Beam's. Raises cli.UserError and cli.RunError."""
    if importlib.util.find_spec("apache_beam") is None:
        raise cli.UserError("just score needs the extra score: uv pip install 'facemill[score]'")
    try:
        job = _job(args, tuple(options))
        if args.dry_run:
            return _dry_run(job, as_json=args.json)
        listing, manifest = _plan(job, args)
        started = time.monotonic()
        counters = _run(job, listing, manifest)
        summary = _finish(job, listing, manifest, counters, time.monotonic() - started)
    except (sources.SourceError, FolderError, ManifestError, DetectorError, PredictorError) as error:
        raise cli.UserError(str(error)) from None
    except storage.MissingFileError as error:
        raise cli.UserError(str(error)) from None
    except (OSError, beam_job.EngineError) as error:
        raise cli.RunError(f"{error} (the same command continues)") from None
    cli.result(_told(summary, job.folder), summary | {"out": job.folder.out}, as_json=args.json)
    return cli.exit_code_for(summary["failed"], summary["images"], args.max_failed)


def _job(args: argparse.Namespace, options: tuple[str, ...]) -> Job:
    named, out = places(args.source, args.out, "scores")
    if args.model is None and not SHIPPED_MODEL.is_dir():
        raise cli.UserError("name a model folder with --model: there is none at models/ of this installation")
    model = storage.normalize(args.model or str(SHIPPED_MODEL))
    predictor = load_predictor(model, args.runtime, threads=1)
    detect = args.faces == "detect"
    try:
        crop = crop_recipe(predictor.spec)
    except (TypeError, ValueError) as error:
        raise cli.UserError(f"{predictor.folder}: model.json has a crop recipe that is none: {error}") from None
    if detect and crop is None:
        cli.note(f"{predictor.folder} does not say how its faces were cropped: they are cropped as crop-faces does")
    recipe = Recipe(detector=cli.detector_from(args), crop=crop or CropRecipe(), limits=cli.limits_from(args))
    remote = [name for name in (out, model, *named) if not storage.is_local(name)]
    where = beam_job.Where(
        options=options,
        workers=args.workers or len(os.sched_getaffinity(0)),
        in_process=any(name.startswith("memory://") for name in remote),
        verbose=args.verbose,
    )
    if where.runner == "dataflowrunner" and storage.is_local(out):
        raise cli.UserError(f"Dataflow's workers cannot write to {out} on this machine: name a gs:// URL with --out")
    network = storage.read_bytes(storage.join(model, RUNTIMES[args.runtime]))
    parameters: dict[str, Any] = {
        "model": predictor.spec.fingerprint,
        "network_sha256": hashlib.sha256(network).hexdigest(),
        "runtime": args.runtime,
        "temperature": predictor.spec.temperature,
        "threshold": predictor.spec.threshold,
        "label_names": list(predictor.spec.label_names),
        "faces": args.faces,
        "limits": asdict(recipe.limits),
        "limit": args.limit,
    }
    if detect:
        parameters |= {"detector": asdict(recipe.detector), "crop": recipe.crop.to_dict()}
        if recipe.detector.model is not None:
            parameters["detector"]["model"] = storage.redact(recipe.detector.model)
    source = FaceSource(recipe, predictor.spec, detect)
    return Job(named, RunFolder(out), model, predictor, args.runtime, source, parameters, args.limit, where)


def _plan(job: Job, args: argparse.Namespace) -> tuple[sources.Listing, Manifest]:
    """The listing and the manifest: of the run that stands in OUT, or of a new one."""
    told = tuple(storage.redact(source) for source in job.sources)
    run = None if args.overwrite else standing(job.folder, "score", told, job.parameters)
    if run is not None:
        return run
    if job.source.detect:
        load_detector(job.source.recipe.detector)  # what is missing is told now, and not by a worker
    cli.note(f"listing {', '.join(told)}")
    listing = _list(job)
    images = min(_SEGMENT_IMAGES, max(1, -(-len(listing) // (_UNITS_PER_WORKER * _workers(job)))))
    return listing, begin(job.folder, "score", told, job.parameters, listing, images)


def _list(job: Job) -> sources.Listing:
    """Archives stay whole where they cannot be entered in the middle, and where there are more of them than workers: a
    walk over all their headers from here would take longer than the workers take to read them."""
    if job.limit is not None:
        listing = sources.list_images(job.sources, job.source.recipe.limits)
        return replace(listing, table=listing.table.slice(0, job.limit))
    closed = sources.list_images(job.sources, job.source.recipe.limits, whole=archive_suffix_kinds())
    if _archives(closed) > _workers(job):
        return closed
    return sources.list_images(job.sources, job.source.recipe.limits, whole=STREAMED)


def _archives(listing: sources.Listing) -> int:
    return int(pc.sum(pc.equal(listing.table["kind"], "archive")).as_py() or 0)


def _workers(job: Job) -> int:
    return job.where.workers if job.where.local else _CLUSTER_WORKERS


def _run(job: Job, listing: sources.Listing, manifest: Manifest) -> dict[str, int]:
    """Run the job on what is not done, again after each death of a worker here; returns Beam's counters."""
    starts = listing_starts(listing.table, manifest.shard_images)
    versions = {} if job.where.local else installed_versions()
    scoring = Scoring(job.folder.out, job.model, job.runtime, job.source, _SEGMENT_IMAGES, versions)
    counters: dict[str, int] = {}
    watched = _Watch(job, manifest, whole=bool(_archives(listing)))
    if watched.done:
        cli.note(
            f"continuing: {watched.total.images:,} images are done "
            f"(as listed {manifest.created}; files added since need another --out, or --overwrite)"
        )
    tries = 0
    while waiting := [unit for unit in range(manifest.shards) if unit not in watched.done]:
        segments, given_up = watched.segments, score_journal.given_up(job.folder.out)
        units = [Unit(unit, starts[unit], starts[unit + 1]) for unit in waiting]
        try:
            with watched.watching():
                found = beam_job.run(units, scoring, job.where)
        except beam_job.WorkerDiedError as error:
            watched.look()
            further = watched.segments > segments or given_up < score_journal.given_up(job.folder.out) <= _MOST_GIVEN_UP
            tries = 0 if further else tries + 1
            if tries == _TRIES_WITHOUT_GAIN:
                raise beam_job.EngineError(f"{error} {tries} times without getting any further") from None
            cli.note(f"{error}; going on with what is left")
            continue
        except KeyboardInterrupt:
            score_journal.acquit(job.folder.out)
            raise
        counters = {name: counters.get(name, 0) + value for name, value in found.items()}
        watched.look()
        if left := [unit for unit in waiting if unit not in watched.done]:
            raise beam_job.EngineError(f"the job ended well but left {len(left)} of {len(waiting)} units undone")
    watched.close()
    return counters


class _Watch:
    """What lies in OUT/done, seen from here while the job runs: for the progress line, and to know what is left."""

    def __init__(self, job: Job, manifest: Manifest, *, whole: bool) -> None:
        self.done: set[int] = set()
        self.total = ScoreCounts()
        self._seen: set[str] = set()
        self._job = job
        self._every_s = _LOOK_S if job.where.local and storage.is_local(job.folder.out) else _LOOK_REMOTE_S
        self._whole = whole
        self.look(show=False)
        # The number of images in archives that were not gone through is known at the end only.
        total = manifest.shards if whole else manifest.images
        self._progress = Progress(total, self._so_far(), noun="units" if whole else "images")

    @property
    def segments(self) -> int:
        return len(self._seen)

    def look(self, *, show: bool = True) -> None:
        """Take in the markers that are new."""
        for name, marker, last, counts in score_parts.read_markers(self._job.folder.out, self._seen):
            self._seen.add(name)
            self.total.add(counts)
            if last:
                self.done.add(marker.unit)
        if show:
            self._progress.show(self._so_far(), self.total.faces, self.total.failed)

    @contextmanager
    def watching(self) -> Iterator[None]:
        took_s = 0.0

        def watch() -> None:
            nonlocal took_s
            started = time.monotonic()
            with suppress(storage.StorageError):  # the job has its own word on a store that fails
                self.look()
            took_s = time.monotonic() - started

        with repeating(watch, lambda: max(self._every_s, _LOOK_REST * took_s)):
            yield

    def close(self) -> None:
        self._progress.close(self._so_far(), self.total.faces, self.total.failed)

    def _so_far(self) -> int:
        return len(self.done) if self._whole else self.total.images


def _finish(
    job: Job, listing: sources.Listing, manifest: Manifest, counters: dict[str, int], wall_s: float
) -> dict[str, Any]:
    """Add up, and write the report; summary.json last, as the sign of completeness."""
    total = ScoreCounts()
    for _, _, _, counts in score_parts.read_markers(job.folder.out):
        total.add(counts)
    planned = total.images if _archives(listing) else manifest.images
    if total.images != planned or total.images != total.scored + total.no_face + total.failed:
        raise cli.RunError(
            f"{total.images} images were accounted for and {planned} were listed: repeat the command, and report "
            "this if it stays"
        )
    total.ignored.update(manifest.ignored)
    earlier = job.folder.at("summary.json")
    if not counters and storage.exists(earlier):
        before = json.loads(storage.read_bytes(earlier))
        speed = {name: before[name] for name in ("wall_seconds", "workers", "images_per_second", "counters")}
    else:
        processed = counters.get("images", total.images)
        speed = {
            "wall_seconds": round(wall_s, 1),
            "workers": job.where.workers if job.where.local else None,
            "images_per_second": round(processed / max(wall_s, 1e-9), 2),
            "counters": counters,
        }
    summary = total.to_dict() | speed | {"model": job.predictor.folder, "label_set": job.predictor.spec.label_set}
    storage.remove_tree(job.folder.at("attempts"))
    storage.remove_partials(job.folder.out)
    score_page.write_report(job.folder.out, manifest, summary, job.predictor.spec)
    storage.write_bytes(earlier, (json.dumps(summary, indent=2) + "\n").encode())
    return summary


def _told(summary: dict[str, Any], folder: RunFolder) -> list[str]:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(summary["reasons"].items()))
    names = sorted(summary["expressions"].items(), key=lambda pair: -pair[1])
    lines = [
        f"{summary['images']:,} images = {summary['scored']:,} scored + {summary['no_face']:,} without a face "
        f"+ {summary['failed']:,} failed" + (f" ({reasons})" if reasons else ""),
        f"{summary['faces']:,} faces: " + (", ".join(f"{name} {count:,}" for name, count in names) or "none"),
    ]
    if summary["not_sure"]:
        lines.append(f"{summary['not_sure']:,} of them not sure")
    if summary["faces_failed"]:
        lines.append(f"{summary['faces_failed']:,} faces could not be scored")
    counters = summary["counters"]
    lines += [
        f"{duration(summary['wall_seconds'])} at {summary['images_per_second']} images/s; "
        f"{size(counters.get('bytes', summary['bytes']))} read, {summary['read_s']:.1f} s of workers for reading and "
        f"finding faces, {summary['score_s']:.1f} s in the network",
        f"fingerprint {summary['fingerprint']}",
        f"predictions {folder.at('predictions')}",
        f"report      {folder.at('report.html')}",
    ]
    return lines


def _dry_run(job: Job, *, as_json: bool) -> int:
    """Times some images one by one and writes nothing."""
    listing = _list(job)
    refs = listing.refs(0, 1 if _archives(listing) else _SAMPLE_IMAGES)
    detector = load_detector(job.source.recipe.detector) if job.source.detect else (lambda _: [])
    images = faces = 0
    started = time.perf_counter()
    for piece in read_pieces(0, refs, job.source, detector, segment_images=_SAMPLE_IMAGES):
        score_piece(piece, job.predictor)
        images, faces = images + len(piece.images), faces + len(piece.faces)
        if piece.ends:
            break
    each_s = (time.perf_counter() - started) / max(images, 1)
    whole = _archives(listing)
    total_bytes = sum(listing.archives.values()) if whole else listing.total_bytes
    values = {
        "images": None if whole else len(listing),
        "archives": whole,
        "bytes": total_bytes,
        "ignored": listing.ignored,
        "sampled": images,
        "seconds_per_image": round(each_s, 4),
        "faces_per_image": round(faces / max(images, 1), 2),
        "seconds": None if whole else round(each_s * len(listing) / job.where.workers, 1),
        "workers": job.where.workers,
        "out": job.folder.out,
    }
    what = f"{whole:,} archives, each read by one worker" if whole else f"{len(listing):,} images"
    took = f"{1000 * each_s:.0f} ms an image on one core, {values['faces_per_image']} faces in each"
    whole_run = "" if whole else f"; about {duration(each_s * len(listing) / job.where.workers)} on {job.where.workers}"
    lines = [
        f"{what}, {size(total_bytes)}; ignored by name: {sum(listing.ignored.values()):,} files",
        f"{took}, from the first {images}{whole_run}",
        f"model {job.predictor.folder}: {', '.join(job.predictor.spec.label_names)}",
        f"would write {job.folder.out}",
    ]
    cli.result(lines, values, as_json=as_json)
    return 0

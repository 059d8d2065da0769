"""Whole scoring runs for tests: the command line, its tables, and the plain loop that they must equal."""

import json
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import pyarrow as pa

from benchmarks.score import plain_loop
from dataset_tools import parquet
from dataset_tools.archives import STREAMED
from dataset_tools.detection import Detector, load_detector
from dataset_tools.faces import Recipe
from dataset_tools.listing import read_refs
from dataset_tools.sources import list_images
from infer.predictor import load_predictor
from infer.score_counts import ScoreCounts
from infer.score_parts import SegmentWriter, segments_done
from infer.scoring import FaceSource, Scoring, Unit, read_pieces, score_piece
from tests.collection import ROOT
from workflows.beam_job import Where


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "workflows.score_archive", *map(str, arguments)]


def score(*arguments: object, **options) -> subprocess.CompletedProcess:
    """Run the command to its end; its output is text."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, cwd=ROOT, **options)


def summary(done: subprocess.CompletedProcess) -> dict:
    """What a run with --json printed; fails with its errors."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def loop(
    sources: Sequence[Path],
    model: Path,
    out: Path,
    *,
    detect: Detector | None = None,
    whole: Collection[str] = tuple(STREAMED),
    images: int = 500,
) -> ScoreCounts:
    """The plain loop. detect: None takes the images as faces. whole: kinds of archives that are streamed. images: of a
    unit."""
    predictor = load_predictor(str(model), threads=1)
    source = FaceSource(Recipe(), predictor.spec, detect=detect is not None)
    listing = list_images([str(path) for path in sources], source.recipe.limits, whole=whole)
    scoring = Scoring(str(out), str(model), "onnx", source, 2048)
    counts = plain_loop(listing, scoring, images, predictor, detect or (lambda _: []))
    counts.ignored.update(listing.ignored)
    return counts


def run_here(units: Sequence[Unit], scoring: Scoring, _where: Where) -> dict[str, int]:
    """In the place of `beam_job.run`: the same work without Beam, which takes seconds to start."""
    predictor = load_predictor(scoring.model, scoring.runtime, threads=1)
    detector = load_detector(scoring.source.recipe.detector) if scoring.source.detect else lambda _: []
    images = 0
    for unit in units:
        refs = read_refs(f"{scoring.out}/listing.parquet", unit.start, unit.stop)
        done = segments_done(scoring.out, unit.number)
        writer = None
        for piece in read_pieces(unit.number, refs, scoring.source, detector, scoring.segment_images, done):
            writer = writer or SegmentWriter(scoring.out, piece.segment, predictor)
            images += len(piece.images)
            if writer.add(score_piece(piece, predictor)) is not None:
                writer = None
    return {"images": images}


def predictions(out: Path | str) -> list[dict]:
    return _rows(f"{out}/predictions")


def failures(out: Path | str) -> list[dict]:
    return _rows(f"{out}/failures")


def _rows(folder: str) -> list[dict]:
    parts = [parquet.read_part(part) for part in parquet.parts(folder)]
    if not parts:
        return []
    rows = pa.concat_tables(parts).sort_by([("key", "ascending"), ("face_index", "ascending")]).to_pylist()
    # The landmarks of a given face are no numbers, and such a one equals nothing, not even itself.
    return [row | {"landmarks": repr(row["landmarks"])} if "landmarks" in row else row for row in rows]

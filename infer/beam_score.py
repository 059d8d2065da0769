"""The scoring pipeline: the only module of infer/ that knows Beam, and it knows little else.

    units | Reshuffle | FindFaces | RunInference | WriteParts

After the reshuffle everything is fused, so a piece goes from reading to its part within one process and no pixels
cross the network; a runner that cut the pipeline open there would be noticed, not believed (see `finish_bundle`). Parts
and not the pipeline's output are the result: a unit that is done is on the store at once, whatever becomes of the job.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.metrics.metric import Metrics
from apache_beam.ml.inference.base import ModelHandler, RunInference

from dataset_tools import storage
from dataset_tools.detection import Detector, load_detector
from dataset_tools.listing import read_refs
from infer import score_journal, score_parts
from infer.predictor import Predictor, load_predictor
from infer.score_parts import SegmentWriter
from infer.scoring import Piece, ScoredPiece, Scoring, Segment, Unit, read_pieces, score_piece
from schemas.versions import compare, installed_versions

NAMESPACE = "facemill"


def build(pipeline: beam.Pipeline, units: Sequence[Unit], scoring: Scoring) -> None:
    """Add the scoring of these units to a pipeline."""
    (
        pipeline
        | "Units" >> beam.Create(units)
        | "Spread over workers" >> beam.Reshuffle()
        | "Read and find faces" >> beam.ParDo(FindFaces(scoring))
        | "Score" >> RunInference(FacesHandler(scoring.model, scoring.runtime))
        | "Write parts" >> beam.ParDo(WriteParts(scoring))
    )


class FindFaces(beam.DoFn):
    """A unit to its pieces, each as a batch of one; segments that are on the store already are read past."""

    def __init__(self, scoring: Scoring) -> None:
        self._scoring = scoring
        self._images = Metrics.counter(NAMESPACE, "images")
        self._bytes = Metrics.counter(NAMESPACE, "bytes")
        self._faces = Metrics.counter(NAMESPACE, "faces")
        self._read_ms = Metrics.distribution(NAMESPACE, "piece_read_ms")

    def setup(self) -> None:
        if self._scoring.versions and (line := compare(self._scoring.versions, installed_versions(), "Beam")):
            logging.getLogger("facemill").warning(line)
        source = self._scoring.source
        self._detector: Detector = load_detector(source.recipe.detector) if source.detect else _no_detector

    def process(self, unit: Unit) -> Iterator[list[Piece]]:
        scoring = self._scoring
        journal = score_journal.Journal(scoring.out, unit.number)
        refs = read_refs(storage.join(scoring.out, "listing.parquet"), unit.start, unit.stop)
        done = score_parts.segments_done(scoring.out, unit.number)
        pieces = read_pieces(
            unit.number, refs, scoring.source, self._detector, scoring.segment_images, done, journal.blamed
        )
        for piece in pieces:
            self._count(piece)
            yield [piece]
            if piece.ends:  # and written, since what follows is fused
                journal.calm()

    def _count(self, piece: Piece) -> None:
        self._images.inc(len(piece.images))
        self._bytes.inc(sum(image.bytes for image in piece.images))
        self._faces.inc(len(piece.faces))
        self._read_ms.update(round(1000 * piece.read_s))
        for image in piece.images:
            if image.failure is not None:
                Metrics.counter(NAMESPACE, f"failed_{image.failure.reason}").inc()


class FacesHandler(ModelHandler[Piece, ScoredPiece, Predictor]):
    """A model folder behind RunInference."""

    def __init__(self, folder: str, runtime: str) -> None:
        super().__init__()
        self._folder, self._runtime = folder, runtime

    def load_model(self) -> Predictor:
        return _predictor(self._folder, self._runtime)

    def run_inference(
        self, batch: Sequence[Piece], model: Predictor, inference_args: dict[str, Any] | None = None
    ) -> list[ScoredPiece]:
        del inference_args
        return [score_piece(piece, model) for piece in batch]

    def should_skip_batching(self) -> bool:
        """A piece is a batch already. Beam's batches (2.77), of size 1 too, hold each element back until the next one
        comes: a complete segment would wait for the next unit, and be lost with it."""
        return True

    def get_num_bytes(self, batch: Sequence[Piece]) -> int:
        return sum(piece.inputs.nbytes for piece in batch)  # Beam's own way would pickle the pixels to measure them

    def get_metrics_namespace(self) -> str:
        return NAMESPACE


class WriteParts(beam.DoFn):
    """Scored pieces to the parts of their segment."""

    def __init__(self, scoring: Scoring) -> None:
        self._scoring = scoring
        self._score_ms = Metrics.distribution(NAMESPACE, "piece_score_ms")
        self._parts = Metrics.counter(NAMESPACE, "parts")

    def setup(self) -> None:
        self._predictor = _predictor(self._scoring.model, self._scoring.runtime)

    def start_bundle(self) -> None:
        self._open: dict[Segment, SegmentWriter] = {}

    def process(self, scored: ScoredPiece) -> None:
        segment = scored.piece.segment
        if segment not in self._open:
            self._open[segment] = SegmentWriter(self._scoring.out, segment, self._predictor)
        self._score_ms.update(round(1000 * scored.score_s))
        if self._open[segment].add(scored) is None:
            return
        del self._open[segment]
        self._parts.inc()
        if scored.piece.last:
            score_journal.forget(self._scoring.out, segment.unit)

    def finish_bundle(self) -> None:
        if self._open:
            raise RuntimeError(f"the runner cut {sorted(self._open, key=str)[0]} in two: report this, with the runner")


_loaded: dict[tuple[int, str, str], Predictor] = {}


def _predictor(folder: str, runtime: str) -> Predictor:
    """One for each process, of one thread, since there is a process for each core."""
    key = os.getpid(), folder, runtime
    if key not in _loaded:
        _loaded[key] = load_predictor(folder, runtime, threads=1)
    return _loaded[key]


def _no_detector(_pixels: Any) -> list[Any]:
    raise AssertionError("a given face needs no detector")

"""`just bench-score`: what Beam costs beside a plain loop over the same functions, and what a second process gains.

Each run is a process of its own, and its CPU time is that of all processes below it. Every way is run on one image too,
which is its start-up, and taken off: what is left is the cost of an image. The ways take turns, so that what else the
machine does hits all alike; medians of the rounds, and of the ratios within a round. `--fer` sets the PyPI package
`fer` beside them, in an environment of its own, on photos that it can open.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.detector import cpu_name, write_doc
from dataset_tools.crop import CropRecipe
from dataset_tools.detection import Detector, DetectorSettings, load_detector
from dataset_tools.faces import Recipe
from dataset_tools.limits import Limits
from dataset_tools.run_folder import listing_starts
from dataset_tools.sources import Listing, list_images, read_images
from infer.predictor import Predictor, load_predictor
from infer.score_counts import ScoreCounts
from infer.score_parts import SegmentWriter
from infer.scoring import FaceSource, Scoring, crop_recipe, read_pieces, score_piece

FER = "fer==25.10.3"
FER_NEEDS = (
    "moviepy<2",
    "opencv-contrib-python<5",
    "pandas<3",
    "pillow",
    "requests",
    "setuptools<81",
    "tensorflow",
    "tqdm",
)
"""Not all that it asks for: torch with CUDA is some gigabytes, and is imported for its second detector only."""
ENVIRONMENT = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "facemill" / "fer"
_SEGMENT_IMAGES = 2048
_LOOP, _ONE, _TWO = "plain loop", "Beam, 1 process", "Beam, 2 processes"
_FER_SCRIPT = """
import sys, cv2
from fer.fer import FER
detector = FER()
faces = 0
for name in sys.argv[1:]:
    image = cv2.imread(name)
    faces += len(detector.detect_emotions(image)) if image is not None else 0
print(faces)
"""


@dataclass(frozen=True)
class Spent:
    """cpu_s: of the process and all below it that it waited for. peak_mb: of the largest of them."""

    cpu_s: float
    wall_s: float
    peak_mb: float

    def less(self, start: "Spent") -> "Spent":
        return Spent(self.cpu_s - start.cpu_s, self.wall_s - start.wall_s, self.peak_mb)


def plain_loop(
    listing: Listing, scoring: Scoring, unit_images: int, predictor: Predictor, detector: Detector
) -> ScoreCounts:
    """What the Beam job does, in this process and without it; returns the sum of all segments."""
    total = ScoreCounts()
    starts = listing_starts(listing.table, unit_images)
    for unit in range(len(starts) - 1):
        refs = listing.refs(starts[unit], starts[unit + 1])
        writer = None
        for piece in read_pieces(unit, refs, scoring.source, detector, scoring.segment_images):
            writer = writer or SegmentWriter(scoring.out, piece.segment, predictor)
            if (counts := writer.add(score_piece(piece, predictor))) is not None:
                total.add(counts)
                writer = None
    return total


def run_loop(args: argparse.Namespace) -> None:
    """The process that is measured as the plain loop."""
    predictor = load_predictor(args.model, threads=1)
    recipe = Recipe(DetectorSettings(args.detector), crop_recipe(predictor.spec) or CropRecipe())
    source = FaceSource(recipe, predictor.spec, args.faces == "detect")
    listing = list_images(args.source, recipe.limits)
    listing = Listing(listing.table.slice(0, args.limit), listing.ignored, listing.archives)
    detector = load_detector(recipe.detector) if source.detect else lambda _: []
    with tempfile.TemporaryDirectory() as out:
        units = min(_SEGMENT_IMAGES, -(-len(listing) // 16))
        scoring = Scoring(out, args.model, "onnx", source, _SEGMENT_IMAGES)
        print(plain_loop(listing, scoring, units, predictor, detector).fingerprint)


def measure(command: Sequence[str]) -> tuple[Spent, str]:
    """Run a command to its end; what it spent, and what it wrote to stdout. Raises CalledProcessError."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        for file in (out, err):
            file.seek(0)
        said = out.read().decode()
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command, said, err.read().decode())
    return Spent(usage.ru_utime + usage.ru_stime, wall_s, usage.ru_maxrss / 1024), said


def run_way(way: str, args: argparse.Namespace, images: int) -> Spent:
    """One run of a way over so many images. Raises ValueError when it says something else than the way before."""
    given = ["--faces", args.faces, "--model", args.model, "--detector", args.detector, "--limit", str(images)]
    with tempfile.TemporaryDirectory() as folder:
        if way == _LOOP:
            spent, said = measure([sys.executable, "-m", "benchmarks.score", *args.source, "--loop", *given])
            found = int(said)
        else:
            workers = ["--workers", "2" if way == _TWO else "1", "--out", str(Path(folder) / "out"), "--json"]
            spent, said = measure([sys.executable, "-m", "workflows.score_archive", *args.source, *given, *workers])
            found = int(json.loads(said)["fingerprint"], 16)
    if args.fingerprints.setdefault(images, found) != found:
        raise ValueError(f"{way} gave other predictions of {images} images than the ways before it")
    return spent


def compare(args: argparse.Namespace, images: int) -> list[str]:
    """The table of the three ways."""
    ways = (_LOOP, _ONE, _TWO)
    rounds: list[dict[str, tuple[Spent, Spent]]] = []
    for _ in range(args.rounds):
        rounds.append({way: (run_way(way, args, 1), run_way(way, args, images)) for way in ways})
    lines = [
        "| way | start-up, CPU s | an image, CPU ms | against the loop | images/s | peak MB |",
        "|---|---|---|---|---|---|",
    ]
    for way in ways:
        start, work, ratio, rate, peak = (
            statistics.median(values)
            for values in zip(*(_figures(found, way, images) for found in rounds), strict=True)
        )
        lines.append(f"| {way} | {start:.1f} | {work:.2f} | {ratio:.2f} | {rate:.1f} | {peak:.0f} |")
    gains = [_figures(found, _TWO, images)[3] / _figures(found, _ONE, images)[3] for found in rounds]
    seconds = statistics.median(found[_ONE][1].wall_s for found in rounds)
    return [*lines, "", f"Two processes are {statistics.median(gains):.2f} times one, in a run of {seconds:.0f} s."]


def _figures(found: dict[str, tuple[Spent, Spent]], way: str, images: int) -> tuple[float, float, float, float, float]:
    start, whole = found[way]
    loop_start, loop = found[_LOOP]
    work = whole.less(start)
    return (
        start.cpu_s,
        1000 * work.cpu_s / (images - 1),
        work.cpu_s / loop.less(loop_start).cpu_s,
        (images - 1) / max(work.wall_s, 1e-9),
        whole.peak_mb,
    )


def compare_fer(args: argparse.Namespace, images: int) -> list[str]:
    """The table of `fer` and ours on the same photos, one process each; a line that says why not."""
    python = ENVIRONMENT / "bin" / "python"
    try:
        if not python.exists():
            subprocess.run(
                ["uv", "venv", "--quiet", "--python", "3.11", str(ENVIRONMENT)], check=True, capture_output=True
            )
        install = ["uv", "pip", "install", "--quiet", "--python", str(python)]
        subprocess.run([*install, "--no-deps", FER], check=True, capture_output=True, text=True)
        subprocess.run([*install, *FER_NEEDS], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return [f"`{FER}` could not be installed: {str(getattr(error, 'stderr', error)).strip().splitlines()[-1]}"]
    lines = ["| on the same photos | an image, CPU ms | images/s | CPU against ours |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        photos = _unpacked(args, images, Path(folder))
        ours = [run_way(_ONE, args, images).less(run_way(_ONE, args, 1)) for _ in range(args.rounds)]
        each = statistics.median(spent.cpu_s for spent in ours) * 1000 / (images - 1)
        rate = (images - 1) / statistics.median(spent.wall_s for spent in ours)
        lines.append(f"| just score, 1 process | {each:.1f} | {rate:.2f} | |")
        command = [str(python), "-c", _FER_SCRIPT]
        spent = measure([*command, *photos])[0].less(measure([*command, photos[0]])[0])
        other = 1000 * spent.cpu_s / (images - 1)
        lines.append(f"| `{FER}`, its default | {other:.1f} | {(images - 1) / spent.wall_s:.2f} | {other / each:.1f} |")
    return lines


def _unpacked(args: argparse.Namespace, images: int, folder: Path) -> list[str]:
    refs = list_images(args.source, Limits()).refs(0, images)
    names = []
    for number, (ref, data) in enumerate(read_images(refs, Limits())):
        if isinstance(data, bytes):
            names.append(str(folder / f"{number:06d}{Path(ref.key).suffix}"))
            Path(names[-1]).write_bytes(data)
    return names


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="just bench-score", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("source", nargs="+", metavar="ARCHIVE", help="what `just score` takes")
    parser.add_argument("--model", required=True, metavar="MODEL", help="model folder")
    parser.add_argument("--faces", choices=("detect", "given"), default="detect", help="default detect")
    parser.add_argument("--detector", choices=("mtcnn", "yunet"), default="mtcnn", help="default mtcnn")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default 3")
    parser.add_argument("--fer", type=int, default=0, metavar="N", help="compare with `fer` on the first N photos")
    parser.add_argument("--write", action="store_true", help="keep the tables in docs/benchmarks.md")
    parser.add_argument("--loop", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.loop:
        run_loop(args)
        return 0
    args.fingerprints = {}
    images = min(args.limit or sys.maxsize, len(list_images(args.source, Limits())))
    if images < 2:
        parser.error("takes two images or more: one of them measures the start-up")
    told = " ".join(Path(name).name for name in args.source)
    head = (
        f"{datetime.now(UTC):%Y-%m-%d}, {cpu_name()}, {len(os.sched_getaffinity(0))} cores; {images:,} images of "
        f"{told}, faces {args.faces}" + (f" by {args.detector}" if args.faces == "detect" else "")
    )
    try:
        lines = [f"{head}, {args.rounds} rounds.", "", *compare(args, images)]
        if args.fer:
            lines += ["", *compare_fer(args, min(args.fer, images))]
    except subprocess.CalledProcessError as error:
        print(f"bench-score: {(error.stderr or str(error)).strip().splitlines()[-1]}", file=sys.stderr)
        return 1
    print("\n".join(lines))
    if args.write:
        write_doc("\n".join(lines), name=f"bench-score-{args.faces}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

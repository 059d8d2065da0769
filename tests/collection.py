"""A small collection of real pictures for whole runs, and the command line to run them with."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
from skimage import data

from dataset_tools import parquet
from dataset_tools.encoding import encode

ROOT = Path(__file__).parent.parent


def portrait(number: int, side: int = 256) -> np.ndarray:
    """A picture with one face of about 100 px, each number another picture."""
    x, y = 60 + 7 * (number % 8), 5 * (number // 8 % 8)
    cut = np.ascontiguousarray(data.astronaut()[y : y + 260, x : x + 260])
    cut[-20:, :60] = (number * 37 % 256, number * 91 % 256, number * 53 % 256)
    return cv2.resize(cut, (side, side), interpolation=cv2.INTER_AREA)


def make(folder: Path, faces: int = 9, side: int = 256) -> Path:
    """`faces` portraits, three pictures without a face, two broken files and two files to be passed over."""
    folder.mkdir(parents=True)
    (folder / "below").mkdir()
    for number in range(faces):
        place = folder / "below" if number % 3 == 0 else folder
        (place / f"portrait-{number:03d}.jpg").write_bytes(encode(portrait(number, side), "jpeg", 95))
    for number in range(3):
        texture = np.roll(data.brick(), 31 * number, axis=0)[:200, : 200 + number]
        (folder / f"wall-{number}.png").write_bytes(encode(cv2.cvtColor(texture, cv2.COLOR_GRAY2RGB), "png", 95))
    (folder / "cut.jpg").write_bytes(encode(portrait(90), "jpeg", 95)[:4000])
    (folder / "page.jpg").write_bytes(b"<html><body>404</body></html>")
    (folder / "notes.txt").write_text("ignored")
    (folder / "Thumbs.db").write_bytes(b"ignored")
    return folder


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "workflows.crop_faces", *map(str, arguments)]


def crop_faces(*arguments: object, **options) -> subprocess.CompletedProcess:
    """Run the command to its end; its output is text."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, cwd=ROOT, **options)


def summary(done: subprocess.CompletedProcess) -> dict:
    """What a run with --json printed; fails with its errors."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def ledger(out: Path) -> list[dict]:
    return [row for part in parquet.parts(str(out / "ledger")) for row in parquet.read_part(part).to_pylist()]


def faces(out: Path) -> pa.Table:
    return pa.concat_tables([parquet.read_part(part) for _, part in parquet.data_parts(str(out))])


def outcome(out: Path) -> list[tuple]:
    """The ledger but for the time it took: equal for equal runs."""
    return sorted(tuple(value for name, value in row.items() if name != "seconds") for row in ledger(out))

"""Small labelled sets in exactly the forms in which the real ones are published, made of pictures of noise."""

import csv
import io
import json
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tests.collection import ROOT

POINTS_68 = np.array([(10 + point, 20 + point / 2) for point in range(68)])
"""Landmarks on a line, so that every mean is easily told."""
FIVE_POINTS = ((48.5, 39.25), (54.5, 42.25), (40.0, 35.0), (58.0, 44.0), (64.0, 47.0))


def pixels(number: int, side: int = 48) -> np.ndarray:
    """A grey picture of coarse noise, each number another."""
    coarse = np.random.default_rng(number).integers(0, 256, (side // 6, side // 6), np.uint8)
    return np.kron(coarse, np.ones((6, 6), np.uint8))


def write(path: Path, number: int, side: int = 48, colour: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels(number, side))
    (image.convert("RGB") if colour else image).save(path, quality=95)
    return path


def fer_csv(path: Path, rows: list[tuple]) -> Path:
    """rows: (emotion, number of the picture or the text of its pixels, Usage)."""
    lines = ["emotion,pixels,Usage"]
    for emotion, picture, usage in rows:
        text = picture if isinstance(picture, str) else " ".join(map(str, pixels(picture).ravel()))
        lines.append(f"{emotion},{text},{usage}")
    path.write_text("\n".join(lines) + "\n")
    return path


VOTE_COLUMNS = (
    *("Usage", "Image name", "neutral", "happiness", "surprise", "sadness"),
    *("anger", "disgust", "fear", "contempt", "unknown", "NF"),
)


def votes_csv(path: Path, rows: list[tuple], columns: tuple[str, ...] = VOTE_COLUMNS) -> Path:
    write_csv(path, columns, rows)
    return path


def write_csv(path: Path, columns: tuple[str, ...], rows: list[tuple]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


FER_FOLDERS = (
    ("train/angry/Training_1.jpg", 1),
    ("train/happy/Training_2.jpg", 2),
    ("train/neutral/Training_3.jpg", 3),
    ("train/surprise/Training_4.jpg", 4),
    ("test/angry/PublicTest_5.jpg", 5),
    ("test/disgust/PublicTest_6.jpg", 6),
    ("test/happy/PrivateTest_7.jpg", 2),  # the same picture as in training
    ("test/sad/PrivateTest_8.jpg", 8),
)


def fer_folders(folder: Path) -> Path:
    for name, number in FER_FOLDERS:
        write(folder / name, number)
    return folder


def pack(folder: Path, archive: Path, mode: str = "w:xz") -> Path:
    with tarfile.open(archive, mode) as tar:
        for path in sorted(folder.rglob("*")):
            tar.add(path, path.relative_to(folder).as_posix(), recursive=False)
    return archive


AFFECTNET_COLUMNS = (
    *("subDirectory_filePath", "face_x", "face_y", "face_width", "face_height"),
    *("facial_landmarks", "expression", "valence", "arousal"),
)


def affectnet_row(path: str, expression: int, valence: float = 0.25, arousal: float = -0.5) -> tuple:
    landmarks = ";".join(f"{value:.2f}" for value in POINTS_68.ravel())
    return (path, 12, 18, 60, 66, landmarks, expression, valence, arousal)


def affectnet_full(folder: Path) -> Path:
    """Six training rows and one of validation; expressions 0, 7, 8, 9, 10 and 1 with a photo that is missing."""
    images = folder / "Manually_Annotated_Images"
    rows = [
        affectnet_row("1/a.jpg", 0),
        affectnet_row("1/b.jpg", 7, -2, -2),
        affectnet_row("2/c.jpg", 8, -2, -2),
        affectnet_row("2/d.jpg", 9, -2, -2),
        ("2/e.jpg", "NULL", "NULL", "NULL", "NULL", "", 10, -2, -2),
        affectnet_row("2/missing.jpg", 1),
    ]
    for number, row in enumerate(rows[:-1]):
        write(images / row[0], 30 + number, side=120, colour=True)
    write(images / "3" / "v.jpg", 39, side=120, colour=True)
    write_csv(folder / "Manually_Annotated_file_lists" / "training.csv", AFFECTNET_COLUMNS, rows)
    write_csv(
        folder / "Manually_Annotated_file_lists" / "validation.csv", AFFECTNET_COLUMNS, [affectnet_row("3/v.jpg", 6)]
    )
    return folder


def affectnet_later(folder: Path) -> Path:
    """Two training crops, one of contempt whose values are text, and one of validation."""
    for subset, name, expression, valence in (
        ("train_set", "0", np.array("1"), np.array("0.5")),
        ("train_set", "17", np.array("7"), np.array("-2")),
        ("val_set", "3", np.array(4), np.array(-0.75)),
    ):
        write(folder / subset / "images" / f"{name}.jpg", int(name) + 50, side=224, colour=True)
        annotations = folder / subset / "annotations"
        annotations.mkdir(parents=True, exist_ok=True)
        np.save(annotations / f"{name}_exp.npy", expression)
        np.save(annotations / f"{name}_val.npy", valence)
        np.save(annotations / f"{name}_aro.npy", valence)
        np.save(annotations / f"{name}_lnd.npy", POINTS_68.ravel())
    return folder


RAF_LINES = ("train_00001.jpg 5", "train_00002.jpg 1", "test_0001.jpg 7", "test_0002.jpg 4")


def raf_db(folder: Path, *, aligned: bool = True) -> Path:
    """Four pictures; the originals are larger and have boxes."""
    root = folder / "basic"
    (root / "EmoLabel").mkdir(parents=True)
    (root / "EmoLabel" / "list_patition_label.txt").write_text("\n".join(RAF_LINES) + "\n")
    for number, line in enumerate(RAF_LINES):
        stem = line.split(".")[0]
        if aligned:
            write(root / "Image" / "aligned" / f"{stem}_aligned.jpg", 70 + number, side=102, colour=True)
        write(root / "Image" / "original" / f"{stem}.jpg", 80 + number, side=180, colour=True)
        boxes = root / "Annotation" / "boundingbox"
        boxes.mkdir(parents=True, exist_ok=True)
        (boxes / f"{stem}_boundingbox.txt").write_text("30.5 40 130.5 150\n")
    return folder


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "workflows.import_labels", *map(str, arguments)]


def run(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(command(*arguments), capture_output=True, text=True, cwd=cwd)


@dataclass(frozen=True)
class Done:
    """What the command did, run in this process: exit code and what it said."""

    code: int
    out: str
    err: str

    @property
    def summary(self) -> dict:
        """The result of --json; fails with the command's errors."""
        assert self.code == 0, self.err
        return json.loads(self.out)


def import_labels(capsys, *arguments: object) -> Done:
    """The command in this process, which saves a second of imports: small sets are imported in the process anyway."""
    from workflows import cli
    from workflows.import_labels import build_parser
    from workflows.import_run import import_labels as start

    args = build_parser().parse_args([str(argument) for argument in arguments])
    capsys.readouterr()
    try:
        code = start(args)
    except cli.UserError as error:
        return Done(2, "", f"error: {error}")
    said = capsys.readouterr()
    return Done(code, said.out, said.err)


def decode(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)))

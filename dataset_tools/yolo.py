"""Faces as a YOLO tree: face rows in, label lines, data.yaml and index files out, and a check of what is there.

Ultralytics skips a picture, or all its labels, with no more than a warning. So what is written here keeps inside its
rules (those of 8.4), and `validate` says beforehand what a training run would leave out. The folders are YOLO's own:
`val` here is `validation` in the Parquet files.
"""

import csv
import hashlib
import io
import math
import re
import sys
import unicodedata
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from typing import IO, Any

import yaml  # type: ignore[import-untyped]
from PIL import Image, UnidentifiedImageError

from dataset_tools import parquet, storage
from dataset_tools.detection import Face
from schemas.outcomes import Status
from schemas.tables import SPLITS

FOLDERS = {"train": "train", "validation": "val", "test": "test"}
"""The splits of the Parquet files and their folders here."""

KEYPOINTS = 5
_STEM_CHARACTERS = 60
_SLACK = 0.01  # Ultralytics forgives this much beyond the picture, and drops all labels of a picture beyond it
_MIN_SIDE_PX = 10  # it refuses smaller pictures
_EXIF_ORIENTATION = 0x0112


def image_name(key: str) -> str:
    """The picture's file name in the tree: of any key (path, URL, `ARCHIVE#MEMBER`) one plain ASCII name of its own."""
    last = re.split(r"[/\\#]", key.rstrip("/\\#"))[-1]
    stem = re.sub(r"\.[A-Za-z0-9]{1,5}$", "", last)
    plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    plain = re.sub(r"[^A-Za-z0-9]+", "_", plain)[:_STEM_CHARACTERS].strip("_") or "image"
    return f"{plain}-{hashlib.sha256(key.encode(errors='surrogateescape')).hexdigest()[:12]}.jpg"


def image_url(out: str, split: str, name: str) -> str:
    """Where a photo's upright copy goes; name: by `image_name`."""
    return storage.join(out, "yolo", "images", FOLDERS[split], name)


def label_url(out: str, split: str, name: str) -> str:
    """Where a photo's labels go; an empty file says that it was looked at and has no face."""
    return storage.join(out, "yolo", "labels", FOLDERS[split], name.removesuffix(".jpg") + ".txt")


def label_lines(faces: Iterable[Face], width_px: int, height_px: int, *, pose: bool) -> str:
    """One photo's label file: `0 cx cy w h` a face, as fractions of the picture; pose adds `x y v` for each landmark.

    Boxes are clipped to the picture, and what lies inside it stays within a tenth of a pixel of the Parquet's box;
    one with nothing inside is left out, as is a repeated line. A landmark outside the picture is given as `0 0 0`.
    """
    lines = []
    for face in faces:
        x1, x2 = (_clip(x / width_px) for x in face.box[0::2])
        y1, y2 = (_clip(y / height_px) for y in face.box[1::2])
        box = [f"{value:.6f}" for value in ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)]
        if float(box[2]) <= 0 or float(box[3]) <= 0:
            continue
        points = [_keypoint(x / width_px, y / height_px) for x, y in face.landmarks] if pose else []
        lines.append(" ".join(["0", *box, *points]) + "\n")
    return "".join(dict.fromkeys(lines))


def data_yaml(splits: Collection[str], *, pose: bool, images: bool = True) -> str:
    """The tree's description, without `path:` so that the folder can move. splits: those that have photos.

    images: whether pictures are written; without them the splits are list files. Ultralytics refuses a file that lacks
    `train` or `val`, so a missing one points to the other, and a comment says so.
    """
    there = [split for split in SPLITS if split in splits] or ["train"]
    lines = ["# Faces found by facemill: one class, boxes" + (" and five key points" if pose else "")]
    for split in SPLITS:
        stand_in = split if split in there else there[0]
        if stand_in != split and split == "test":
            continue
        if stand_in != split:
            lines.append(f"# This data set has no {split} split. The key is required, so it names {stand_in} again;")
            lines.append("# figures measured on it say nothing about new photos.")
        folder = FOLDERS[stand_in]
        lines.append(f"{FOLDERS[split]}: {f'images/{folder}' if images else f'{folder}.txt'}")
    lines += ["names:", "  0: face"]
    if pose:
        lines += [
            f"kpt_shape: [{KEYPOINTS}, 3]  # eye on the left of the image, other eye, nose, mouth corners likewise",
            "flip_idx: [1, 0, 2, 4, 3]",
        ]
    return "\n".join(lines) + "\n"


def write_index(out: str, *, images: bool, pose: bool) -> None:
    """Write data.yaml and sources.csv (name, split, key), and list files when no pictures are, from OUT's ledger.

    The ledger is streamed. Photos that could not be read are in neither: they have no labels.
    """
    splits: set[str] = set()
    with ExitStack() as files:
        sources = files.enter_context(storage.open_write(storage.join(out, "yolo", "sources.csv")))
        sources.write(b"name,split,key\n")
        lists: dict[str, IO[bytes]] = {}
        for part in parquet.parts(storage.join(out, "ledger")):
            rows = parquet.read_part(part, ["key", "status", "split"]).to_pylist()
            readable = [row for row in rows if row["status"] != Status.FAILED]
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(
                (image_name(row["key"]), FOLDERS[row["split"]], row["key"]) for row in readable
            )
            sources.write(text.getvalue().encode())
            for split in {row["split"] for row in readable}:
                splits.add(split)
                if images:
                    continue
                if split not in lists:
                    url = storage.join(out, "yolo", f"{FOLDERS[split]}.txt")
                    lists[split] = files.enter_context(storage.open_write(url))
                names = (image_name(row["key"]) for row in readable if row["split"] == split)
                lists[split].write("".join(f"./images/{FOLDERS[split]}/{name}\n" for name in names).encode())
    described = data_yaml(splits, pose=pose, images=images)
    storage.write_bytes(storage.join(out, "yolo", "data.yaml"), described.encode())


def validate(folder: str) -> list[str]:
    """What Ultralytics would refuse, skip or repair in a YOLO tree, one line each; nothing when all is well."""
    config, problems = _read_config(folder)
    if config is None:
        return problems
    for split in dict.fromkeys(str(config[key]) for key in ("train", "val", "test") if config.get(key)):
        problems += _check_split(folder, split, config.get("kpt_shape", [0, 0]), len(config["names"]))
    return problems


def main(arguments: list[str]) -> int:
    """`python -m dataset_tools.yolo FOLDER`: 0 when the tree is fine, 1 with a line for each problem."""
    if len(arguments) != 1:
        print("usage: python -m dataset_tools.yolo FOLDER", file=sys.stderr)
        return 2
    problems = validate(arguments[0])
    print("\n".join(problems) or "no problems")
    return 1 if problems else 0


def _clip(fraction: float) -> float:
    return min(max(fraction, 0.0), 1.0)


def _keypoint(x: float, y: float) -> str:
    return f"{x:.6f} {y:.6f} 2" if 0 <= x <= 1 and 0 <= y <= 1 else "0 0 0"


def _read_config(folder: str) -> tuple[dict[str, Any] | None, list[str]]:
    url = storage.join(folder, "data.yaml")
    if not storage.exists(url):
        return None, ["data.yaml: missing"]
    try:
        config = yaml.safe_load(storage.read_bytes(url))
    except yaml.YAMLError:
        return None, ["data.yaml: not YAML"]
    if not isinstance(config, dict):
        return None, ["data.yaml: not a mapping"]
    problems = [f"data.yaml: lacks {key}" for key in ("train", "val", "names") if not config.get(key)]
    shape, flip = config.get("kpt_shape"), config.get("flip_idx")
    if shape is not None and (not isinstance(shape, list) or len(shape) != 2 or shape[1] not in (2, 3)):
        problems.append("data.yaml: kpt_shape is not [points, 2 or 3]")
    elif shape is not None and sorted(flip or []) != list(range(shape[0])):
        problems.append(f"data.yaml: flip_idx does not name each of the {shape[0]} key points once")
    return (None if problems else config), problems


def _check_split(folder: str, split: str, keypoints: list[int], classes: int) -> list[str]:
    """split: the value of a key of data.yaml, a folder below `images` or a list file. keypoints: how many, and of
    how many numbers each."""
    if split.endswith(".txt"):
        if not storage.exists(storage.join(folder, split)):
            return [f"{split}: missing"]
        lines = storage.read_bytes(storage.join(folder, split)).decode().splitlines()
        pictures = {_stem(line): storage.join(folder, line.removeprefix("./")) for line in lines}
        there = {_stem(url) for url, _ in _files(folder, f"images/{split.removesuffix('.txt')}")}
        absent = len(pictures.keys() - there)
        problems = [f"{split}: {absent} of its pictures are not there"] if absent else []
        present = {stem: url for stem, url in pictures.items() if stem in there}
        labels_folder = f"labels/{split.removesuffix('.txt')}"
    else:
        pictures = present = {_stem(url): url for url, _ in _files(folder, split)}
        problems = [] if pictures else [f"{split}: no pictures"]
        labels_folder = "labels" + split.removeprefix("images")
    labels = {_stem(url): url for url, _ in _files(folder, labels_folder)}
    problems += [f"{labels_folder}/{stem}.txt: no picture belongs to it" for stem in labels.keys() - pictures.keys()]
    problems += [f"{split}: {stem} has no label file" for stem in pictures.keys() - labels.keys()]
    for stem in sorted(labels):
        found = _label_problems(storage.read_bytes(labels[stem]).decode(errors="replace"), keypoints, classes)
        problems += [f"{labels_folder}/{stem}.txt: {problem}" for problem in found]
    for stem in sorted(present):
        problems += [f"{stem}: {problem}" for problem in _picture_problems(storage.read_bytes(present[stem]))]
    return sorted(problems)


def _files(folder: str, below: str) -> list[tuple[str, int]]:
    url = storage.join(folder, below)
    return list(storage.list_files(url)) if storage.exists(url) else []


def _stem(name: str) -> str:
    return name.rsplit("/", 1)[-1].rpartition(".")[0]


def _label_problems(text: str, keypoints: list[int], classes: int) -> list[str]:
    columns = 5 + keypoints[0] * keypoints[1]
    lines = [line.split() for line in text.splitlines() if line.strip()]
    problems = []
    for number, words in enumerate(lines, 1):
        where = f"line {number}: "
        try:
            values = [float(word) for word in words]
        except ValueError:
            values = [math.nan]
        if not all(map(math.isfinite, values)):
            problems.append(where + "not all numbers")
        elif len(values) == columns + 1:
            problems.append(where + "one column too many, as if it held a confidence")
        elif len(values) != columns:
            problems.append(where + f"{len(values)} columns instead of {columns}")
        elif values[0] != int(values[0]) or not 0 <= values[0] < classes:
            problems.append(where + f"class {words[0]} of {classes}")
        elif not all(-_SLACK <= value <= 1 + _SLACK for value in _positions(values, keypoints[1])):
            problems.append(where + "a position outside the picture")
        elif values[3] <= 0 or values[4] <= 0:
            problems.append(where + "a box without area")
    if len({tuple(words) for words in lines}) < len(lines):
        problems.append("the same line twice")
    return problems


def _positions(values: list[float], numbers_a_point: int) -> list[float]:
    """A line's numbers without the class and the key points' visibility, which is their third."""
    return values[1:5] + [value for place, value in enumerate(values[5:]) if place % numbers_a_point < 2]


def _picture_problems(data: bytes) -> list[str]:
    try:
        with Image.open(io.BytesIO(data)) as picture:  # reads the header only
            kind, size, orientation = picture.format, picture.size, picture.getexif().get(_EXIF_ORIENTATION, 1)
    except (UnidentifiedImageError, OSError):
        return ["not a picture"]
    problems = []
    if kind == "JPEG" and not data.endswith(b"\xff\xd9"):
        problems.append("a JPEG that does not end in FF D9")
    if orientation != 1:
        problems.append(f"EXIF orientation {orientation}: boxes are those of the upright picture")
    if min(size) < _MIN_SIDE_PX:
        problems.append(f"smaller than {_MIN_SIDE_PX} px")
    return problems


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

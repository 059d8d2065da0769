"""FER-2013 in both its forms: the csv of the challenge (`emotion,pixels,Usage`), and class folders of JPEGs.

The csv is gone through once for labels and the place of every row, and its pixels are read where the faces are made.
In the folders, the class is the folder's name (their alphabetical order is not the order of ids), and under test/ the
file's name tells the public test, which is for validation, from the private one.
"""

import re
from collections.abc import Iterator

import cv2
import numpy as np

from dataset_tools import storage
from dataset_tools.importers.annotations import Annotation, LabelledSet, bad
from dataset_tools.importers.files import SPLIT_NAMES, relative_name
from dataset_tools.listing import ImageRef, Listing, SourceError
from schemas.labels import FER_2013, UnknownLabelError
from schemas.outcomes import Failure, Reason

SIDE_PX = 48
CSV_ROW = "fer2013-row"
"""The kind of a ref whose bytes are a row of the csv."""

_LONGEST_ROW_BYTES = 1 << 16
_PLACE = re.compile(r"(?:^|/)(train|test|val|valid|validation)/([^/]+)/([^/]+)$", re.I)


def read_csv(url: str) -> LabelledSet:
    """Every row of the csv. Raises SourceError when it has other columns."""
    head: list[str] | None = None
    annotations: list[Annotation] = []
    for offset, line in _lines(url):
        values = [value.strip().strip('"').strip() for value in line.decode("utf-8-sig", "replace").split(",")]
        if head is None:
            head = [value.lower() for value in values]
            if not {"emotion", "pixels", "usage"} <= set(head):
                raise SourceError(f"{storage.redact(url)} is no FER-2013 csv: its columns are not emotion,pixels,Usage")
            continue
        if not line.strip():
            continue
        container = storage.as_text(url)
        key = f"{storage.redact(container)}#{len(annotations)}"
        ref = ImageRef(key, container, CSV_ROW, offset, len(line))
        annotations.append(_annotation(ref, head, values))
    if not annotations:
        raise SourceError(f"{storage.redact(url)} has no rows")
    return LabelledSet(FER_2013, annotations, archives={storage.as_text(url): storage.file_size(url) or 0})


def _annotation(ref: ImageRef, head: list[str], values: list[str]) -> Annotation:
    if len(values) != len(head):
        return bad(ref, f"the row has {len(values)} columns, not {len(head)}")
    row = dict(zip(head, values, strict=True))
    split = SPLIT_NAMES.get(row["usage"].lower())
    if split is None:
        return bad(ref, f"unknown Usage {ascii(row['usage'])[:40]}")
    if not re.fullmatch("[0-6]", row["emotion"]):
        return bad(ref, f"label {ascii(row['emotion'])[:40]} is not from 0 to 6")
    return Annotation(ref, int(row["emotion"]), split)


def _lines(url: str) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of a file; of a line longer than any row, only its beginning."""
    offset = 0
    with storage.open_read(url, block_bytes=4 * 2**20) as file:
        while line := file.readline(_LONGEST_ROW_BYTES):
            start, kept = offset, line
            while not line.endswith(b"\n") and line:
                offset += len(line)
                line = file.readline(_LONGEST_ROW_BYTES)
            offset += len(line)
            yield start, kept


def read_rows(refs: list[ImageRef]) -> Iterator[tuple[ImageRef, bytes | Failure]]:
    """The grey pixels of rows of one csv that follow each other, 48 × 48 bytes each, or why there are none."""
    first, last = refs[0], refs[-1]
    start, stop = first.offset or 0, (last.offset or 0) + (last.size or 0)
    # The header says where the pixels stand; it is short, and the csv's first line.
    head = [name.strip().strip('"').lower() for name in _first_line(first.container).split(",")]
    data = storage.read_bytes(first.container, start, stop)
    for ref in refs:
        at = (ref.offset or 0) - start
        yield ref, _pixels(data[at : at + (ref.size or 0)], head)


def _first_line(url: str) -> str:
    return storage.read_bytes(url, 0, 4096).split(b"\n")[0].decode("utf-8-sig", "replace")


def _pixels(line: bytes, head: list[str]) -> bytes | Failure:
    values = line.split(b",")
    text = values[head.index("pixels")] if len(values) == len(head) else b""
    try:
        numbers = [int(value) for value in text.strip(b'" \r\n').split()]
        pixels = bytes(numbers)
    except ValueError:
        return Failure(Reason.NOT_AN_IMAGE, "a pixel is no number from 0 to 255")
    if len(pixels) != SIDE_PX * SIDE_PX:
        return Failure(Reason.TRUNCATED, f"{len(pixels):,} pixels, not {SIDE_PX} × {SIDE_PX}")
    return pixels


def to_png(pixels: bytes) -> bytes:
    """A row's pixels as a grey PNG, without loss."""
    grey = np.frombuffer(pixels, np.uint8).reshape(SIDE_PX, SIDE_PX)
    _, data = cv2.imencode(".png", grey)
    return data.tobytes()


def read_folders(listing: Listing, source: str) -> LabelledSet:
    """Every image of train/CLASS/ and test/CLASS/, in a folder or an archive."""
    annotations = []
    for ref in listing.refs():
        found = _PLACE.search(relative_name(ref, source))
        if not found:
            annotations.append(Annotation(ref, dropped="it lies in no class folder of train/ or test/"))
            continue
        split, name, file = found.groups()
        split = SPLIT_NAMES[split.lower()]
        if split == "test" and file.lower().startswith("publictest"):
            split = "validation"
        try:
            annotations.append(Annotation(ref, FER_2013.id_of(name), split))
        except UnknownLabelError:
            annotations.append(bad(ref, f"{ascii(name)[:40]} is no class of FER-2013"))
    return LabelledSet(FER_2013, annotations, listing.ignored, listing.archives)

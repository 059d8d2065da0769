"""Names that a set gives for its files: inside its folder or refused, and rows of its lists with their header.

Lists come from strangers. A path in one never leads out of the folder, a line never fills the memory.
"""

import csv
import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from io import TextIOWrapper

from dataset_tools import storage
from dataset_tools.importers.annotations import Annotation
from dataset_tools.listing import ImageRef, SourceError
from schemas.outcomes import Failure, Reason

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "train_set", "trainset"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "val_set", "valset", "dev", "publictest"), "validation"),
    **dict.fromkeys(("test", "testing", "test_set", "testset", "privatetest"), "test"),
}
"""How sets write the names of splits, in lower case."""

_LONGEST_FIELD = 1 << 20


def file_ref(folder: str, relative: str) -> ImageRef | None:
    """The file of this name below a folder; None for a name that leads out of it, or is no name."""
    path = posixpath.normpath(relative.strip().replace("\\", "/"))
    if not relative.strip() or path.startswith(("/", "../")) or path in (".", "..") or ":" in path.split("/")[0]:
        return None
    if "\0" in path or any(0xD800 <= ord(sign) <= 0xDFFF for sign in path):
        return None
    container = storage.join(folder, path)
    return ImageRef(storage.redact(container), container)


def outside(list_url: str, row: int, relative: str) -> Annotation:
    """What becomes of a row whose file may not be touched."""
    ref = row_ref(list_url, row)
    return Annotation(ref, failure=Failure(Reason.UNREADABLE, f"the path leaves the folder: {ascii(relative)[:80]}"))


def row_ref(list_url: str, row: int) -> ImageRef:
    """A row of a list as an input of its own, for where it names no file: LIST#ROW, counted from 0."""
    return ImageRef(f"{storage.redact(storage.as_text(list_url))}#{row}", storage.as_text(list_url), "row")


def relative_name(ref: ImageRef, source: str) -> str:
    """The image's name below the folder or in the archive that it lies in."""
    if ref.container != ref.key:
        return ref.key[len(storage.redact(ref.container)) + 1 :]
    return ref.key.removeprefix(storage.redact(storage.as_text(source))).lstrip("/")


def rows(url: str, wanted: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Rows of a csv as dicts; names of columns in lower case. Raises SourceError when one that is wanted is missing."""
    with storage.open_read(url) as file:
        text = TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
        csv.field_size_limit(_LONGEST_FIELD)
        table = csv.reader(text, skipinitialspace=True)
        try:
            head = [name.strip().lower() for name in next(table, [])]
            missing = [name for name in wanted if name not in head]
            if missing:
                raise SourceError(f"{storage.redact(url)} has no column {', '.join(missing)}: it has {', '.join(head)}")
            for values in table:
                if values:
                    yield dict(zip(head, [*values, *[""] * (len(head) - len(values))], strict=False))
        except csv.Error as error:
            raise SourceError(f"{storage.redact(url)} cannot be read as csv: {error}") from None


def header(url: str) -> list[str]:
    """The names in the first line of a csv, in lower case; empty for what is no csv."""
    first = storage.read_bytes(url, 0, 4096).split(b"\n")[0].decode("utf-8-sig", "replace")
    return [re.sub(r'^\s*"?|"?\s*$', "", name).lower() for name in first.split(",")]


def without_repeats(annotations: list[Annotation]) -> list[Annotation]:
    """Keys made unique: the second annotation of one file gets ~2, as a photo with two faces has."""
    seen: Counter[str] = Counter()
    unique = []
    for one in annotations:
        seen[one.ref.key] += 1
        times = seen[one.ref.key]
        if times > 1:
            one = replace(one, ref=replace(one.ref, key=f"{one.ref.key}~{times}"))
        unique.append(one)
    return unique

"""What a labelled set says of its images: one Annotation each, kept with the run as a table, mapped between label sets.

A reader of a format gives a LabelledSet; nothing after it knows which format it was. What a set says wrongly of an
image is a failure of that image, never of the run.
"""

import contextlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dataset_tools import storage
from dataset_tools.listing import TABLE, ImageRef
from schemas.labels import LabelSet, UnknownLabelError, id_map
from schemas.outcomes import Failure, Reason

Box = tuple[float, float, float, float]
Landmarks = tuple[tuple[float, float], ...]

DROPPED = "dropped: "
"""How the ledger's detail begins for an image that is there and well but not wanted; what follows says why."""
BAD_ANNOTATION = Reason.UNSUPPORTED
"""For an image that may be fine but whose label, box or row makes no sense."""
CUSTOM = "custom"
"""The label set whose names are those that a set's own folders or rows give."""


class UnmappedError(ValueError):
    """Classes without a counterpart in the label set that was asked for: one line with their counts."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """What is said of one image. label: an id in the set's label set. split: None where it is to be drawn. box and
    landmarks (five, in MTCNN's order): pixels of the upright image; without a box the image is a crop already. votes:
    of annotators, for each class of the label set. dropped: why its face is not wanted. failure: why it is of no use.
    """

    ref: ImageRef
    label: int | None = None
    split: str | None = None
    box: Box | None = None
    landmarks: Landmarks | None = None
    valence: float | None = None
    arousal: float | None = None
    votes: tuple[int, ...] | None = None
    dropped: str | None = None
    failure: Failure | None = None


@dataclass(frozen=True)
class LabelledSet:
    """A set as its reader found it. ignored and archives: as in a Listing. notes: lines for the user."""

    labels: LabelSet
    annotations: Sequence[Annotation]
    ignored: dict[str, int] = field(default_factory=dict)
    archives: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def bad(ref: ImageRef, detail: str) -> Annotation:
    """An image of which the set says something that makes no sense."""
    return Annotation(ref, failure=Failure(BAD_ANNOTATION, detail))


def mapped(found: LabelledSet, target: LabelSet, *, drop_unmapped: bool) -> LabelledSet:
    """The same set with the ids and votes of another label set.

    A class without a counterpart raises UnmappedError, or with `drop_unmapped` its images are dropped. A target that is
    the beginning of the set's own names, as affectnet-7 is of affectnet-8, asks for that by its name.
    """
    ids = id_map(found.labels, target)
    counts = Counter(one.label for one in found.annotations if one.label is not None and one.dropped is None)
    lost = {found.labels.names[label]: counts[label] for label in sorted(counts) if ids[label] is None}
    is_part = found.labels.name != CUSTOM and target.names == found.labels.names[: len(target.names)]
    if lost and not (drop_unmapped or is_part):
        told = ", ".join(f"{name} ({count:,} images)" for name, count in lost.items())
        raise UnmappedError(f"{target.name} has no class for {told}: drop them with --drop-unmapped")
    notes = tuple(f"{count:,} images of {name} dropped: {target.name} lacks it" for name, count in lost.items())
    annotations = [_with_ids(one, found.labels, ids, target) for one in found.annotations]
    return replace(found, labels=target, annotations=annotations, notes=(*found.notes, *notes))


def _with_ids(one: Annotation, source: LabelSet, ids: tuple[int | None, ...], target: LabelSet) -> Annotation:
    label = None if one.label is None else ids[one.label]
    dropped = one.dropped
    if one.label is not None and label is None and dropped is None:
        dropped = f"{source.names[one.label]}, which {target.name} lacks"
    return replace(one, label=label, votes=votes_for(one.votes, ids, target), dropped=dropped)


def votes_for(votes: tuple[int, ...] | None, ids: tuple[int | None, ...], target: LabelSet) -> tuple[int, ...] | None:
    """Votes in the order of another label set; None when none is left."""
    if votes is None:
        return None
    moved = [0] * len(target.names)
    for count, label in zip(votes, ids, strict=True):
        if label is not None:
            moved[label] += count
    return tuple(moved) if any(moved) else None


def named_labels(names: Iterable[str], target: LabelSet | None) -> tuple[LabelSet, dict[str, int]]:
    """A label set for class names as they are written in a set, and the id of each of these spellings.

    With a target, a name or alias of it gets its name there; every other name stays, in lower case. Order: by name,
    or as the target has them, those that it lacks last.
    """
    written: dict[str, str] = {}
    for name in sorted(set(names)):
        written[name] = name.strip().lower() if target is not None else name.strip()
        if target is not None:
            with contextlib.suppress(UnknownLabelError):
                written[name] = target.names[target.id_of(name)]
    known = () if target is None else target.names
    classes = (*known, *sorted({name for name in written.values() if name not in known}))
    return LabelSet(CUSTOM, classes), {name: classes.index(own) for name, own in written.items()}


def number(text: object, least: float = -math.inf, most: float = math.inf) -> float | None:
    """A finite number from `least` to `most`, or None: for values that a file gives."""
    try:
        value = float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) and least <= value <= most else None


def box_of(x1: object, y1: object, x2: object, y2: object) -> Box | None:
    """A box of four finite numbers that has an area, or None."""
    values = (number(x1), number(y1), number(x2), number(y2))
    if None in values:
        return None
    left, top, right, bottom = (value or 0.0 for value in values)
    return (left, top, right, bottom) if right > left and bottom > top else None


# --- On disk ----------------------------------------------------------------------------------------------------------

LISTED = pa.schema(
    [
        *TABLE,
        ("label", pa.int64()),
        ("split", pa.string()),
        ("box", pa.list_(pa.float32())),
        ("landmarks", pa.list_(pa.list_(pa.float32()))),
        ("valence", pa.float32()),
        ("arousal", pa.float32()),
        ("votes", pa.list_(pa.int32())),
        ("dropped", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
"""A set's annotations as a table: where each image lies, as in a Listing, and what is said of it. Lists are of any size
although sizes are known: null ones of a fixed size cannot be read back from Parquet."""
_PLACE = TABLE.names
_SAID = ("label", "split", "box", "landmarks", "valence", "arousal", "votes", "dropped")


def to_table(annotations: Sequence[Annotation]) -> pa.Table:
    """The annotations as LISTED."""
    columns: dict[str, list[Any]] = {name: [getattr(one.ref, name) for one in annotations] for name in _PLACE}
    columns["container"] = [None if one.ref.container == one.ref.key else one.ref.container for one in annotations]
    columns |= {name: [getattr(one, name) for one in annotations] for name in _SAID}
    columns["reason"] = [one.failure and str(one.failure.reason) for one in annotations]
    columns["detail"] = [one.failure and one.failure.detail for one in annotations]
    return pa.Table.from_pydict(columns, schema=LISTED)


def from_table(table: pa.Table) -> Iterator[Annotation]:
    """What `to_table` was given."""
    for row in table.to_pylist():
        row["container"] = row["container"] or row["key"]
        reason, detail = row.pop("reason"), row.pop("detail")
        ref = ImageRef(**{name: row.pop(name) for name in _PLACE})
        for name in ("box", "votes"):
            row[name] = row[name] and tuple(row[name])
        row["landmarks"] = row["landmarks"] and tuple((x, y) for x, y in row["landmarks"])
        yield Annotation(ref, **row, failure=Failure(Reason(reason), detail) if reason else None)


def write_table(url: str, table: pa.Table, notes: Sequence[str]) -> None:
    """The table as one file, whole or not at all, with the reader's notes."""
    with storage.open_write(url) as file:
        told = table.replace_schema_metadata({"facemill": json.dumps({"notes": list(notes)})})
        pq.write_table(told, file, compression="zstd")


def read_table(url: str) -> tuple[pa.Table, tuple[str, ...]]:
    """What `write_table` wrote."""
    with storage.open_read(url, block_bytes=8 * 2**20) as file:
        table = pq.read_table(file)
    notes = json.loads((table.schema.metadata or {}).get(b"facemill", b"{}")).get("notes", ())
    return table.replace_schema_metadata(None).cast(LISTED), tuple(notes)

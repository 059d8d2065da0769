"""A list of pictures with labels: a csv or Parquet of (path, label[, split, x1, y1, x2, y2, valence, arousal]).

Paths are relative to the list. A label is a name or alias of the label set, or an id of it, where one was named.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow.parquet as pq

from dataset_tools import storage
from dataset_tools.importers.annotations import Annotation, LabelledSet, bad, box_of, named_labels, number
from dataset_tools.importers.files import SPLIT_NAMES, file_ref, outside, rows, without_repeats
from dataset_tools.listing import SourceError
from schemas.labels import LabelSet

COLUMNS = ("path", "label")
_BOX = ("x1", "y1", "x2", "y2")


def read(url: str, images: str | None, target: LabelSet | None) -> LabelledSet:
    """Every row of the list. images: the folder that paths start from, if not the list's own. Raises SourceError."""
    found = list(_rows(url))
    if not found:
        raise SourceError(f"{storage.redact(url)} has no rows")
    written = [_text(row["label"]) for row in found]
    if target is None and all(_is_id(text) for text in written if text):
        raise SourceError(
            f"the labels in {storage.redact(url)} are numbers: name the set they belong to with --label-set"
        )
    labels, ids = named_labels({text for text in written if text and not (target and _is_id(text))}, target)
    folder = images or url.rpartition("/")[0]
    annotations = [
        _annotation(url, row, values, text, folder, ids, target)
        for row, (values, text) in enumerate(zip(found, written, strict=True))
    ]
    return LabelledSet(labels, without_repeats(annotations))


def _annotation(
    url: str, row: int, values: dict[str, Any], label: str, folder: str, ids: dict[str, int], target: LabelSet | None
) -> Annotation:
    path = _text(values["path"])
    ref = file_ref(folder, path)
    if ref is None:
        return outside(url, row, path)
    split = _text(values.get("split"))
    if split and split.lower() not in SPLIT_NAMES:
        return bad(ref, f"split {ascii(split)[:40]} is none of train, validation and test")
    if not label:
        return bad(ref, "the row has no label")
    known = ids.get(label)
    if known is None:
        known = int(label) if target is not None and int(label) < len(target.names) else None
    if known is None:
        return bad(ref, f"label {ascii(label)[:40]} is no id of {target.name if target else ''}")
    corners = [values.get(name) for name in _BOX]
    box = box_of(*corners)
    if box is None and any(_text(value) for value in corners):
        return bad(ref, "the box has no area, or is not four numbers")
    valence, arousal = number(values.get("valence"), -1, 1), number(values.get("arousal"), -1, 1)
    return Annotation(ref, known, SPLIT_NAMES.get(split.lower()), box, None, valence, arousal)


def _rows(url: str) -> Iterator[dict[str, Any]]:
    if not url.lower().endswith(".parquet"):
        yield from rows(url, COLUMNS)
        return
    with storage.open_read(url) as file:
        table = pq.ParquetFile(file)
        names = {name.lower(): name for name in table.schema_arrow.names}
        missing = [name for name in COLUMNS if name not in names]
        if missing:
            raise SourceError(f"{storage.redact(url)} has no column {', '.join(missing)}: it has {', '.join(names)}")
        wanted = [name for name in (*COLUMNS, "split", *_BOX, "valence", "arousal") if name in names]
        for batch in table.iter_batches(columns=[names[name] for name in wanted]):
            for row in batch.to_pylist():
                yield {name: row[names[name]] for name in wanted}


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 6


def parquet_columns(url: str) -> Iterable[str]:
    """Names of the columns of a Parquet file, in lower case."""
    with storage.open_read(url) as file:
        return [name.lower() for name in pq.ParquetFile(file).schema_arrow.names]

"""The tables on disk: FACES, LEDGER and PREDICTIONS as Arrow schemas, with the metadata that others read.

Hugging Face `datasets` drops the image feature without a word unless the column is struct<bytes, path> in this order,
the label is int64, and the metadata key `huggingface` lists every column. So the metadata is derived from the schema,
column by column, and cannot fall behind it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from schemas.labels import LabelSet
from schemas.outcomes import Reason, Status

SPLITS = ("train", "validation", "test")

_POINT = pa.list_(pa.float32(), 2)

FACES = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("label", pa.int64()),
        ("key", pa.string()),
        ("source_sha256", pa.string()),
        ("source_phash", pa.string()),
        ("face_index", pa.int32()),
        ("bbox", pa.list_(pa.float32(), 4)),
        ("landmarks", pa.list_(_POINT, 5)),
        ("score", pa.float32()),
        ("crop_aligned", pa.bool_()),
        ("crop_margin", pa.float32()),
        ("crop_size_px", pa.int32()),
        ("sharpness", pa.float32()),
        ("luminance_mean", pa.float32()),
        ("inter_eye_distance_px", pa.float32()),
        ("head_roll_deg", pa.float32()),
        ("source_width_px", pa.int32()),
        ("source_height_px", pa.int32()),
        ("valence", pa.float32()),
        ("arousal", pa.float32()),
        ("split", pa.string()),
        ("votes", pa.list_(pa.int32())),
        ("pixels_sha256", pa.string()),
    ]
)
"""One row a face. bbox: x1, y1, x2, y2 and landmarks: five x, y, both in pixels of the upright original. Of a face that
no detector found, score is null, and where the source gives no landmarks, all their numbers are nan: a list of fixed
size that is null can be written to Parquet but not read back (apache/arrow#35692). votes: how many annotators chose
each class, in the order of the label set, where the source tells. pixels_sha256: of the decoded photo, in a labelled
set, where exact copies are looked for: copies may be stored in different files."""

LEDGER = pa.schema(
    [
        ("key", pa.string()),
        ("sha256", pa.string()),
        ("bytes", pa.int64()),
        ("format", pa.string()),
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("faces", pa.int32()),
        ("faces_screened", pa.int32()),
        ("phash", pa.string()),
        ("split", pa.string()),
        ("seconds", pa.float32()),
        ("pixels_sha256", pa.string()),
    ]
)
"""One row an input image: what became of it. faces counts those written, faces_screened those held back by a quality
bound or, in a labelled set, for what `detail` says. seconds is the time spent on it by a worker. pixels_sha256: as in
FACES."""

PREDICTIONS = pa.schema(
    [
        ("model", pa.string()),
        ("key", pa.string()),
        ("source_sha256", pa.string()),
        ("face_index", pa.int32()),
        ("label", pa.string()),
        ("predicted", pa.string()),
        ("confidence", pa.float32()),
        ("not_sure", pa.bool_()),
        ("probabilities", pa.list_(pa.float32())),
        ("logits", pa.list_(pa.float32())),
        ("shared", pa.bool_()),
        ("reason", pa.string()),
    ]
)
"""One row a face and model, of an evaluation or of the validation faces of a training run. label: of the data set.
predicted, confidence, probabilities: calibrated, in the order of the model's names, which the metadata `facemill`
lists. shared: the photo is in another split too. reason: why there is no prediction, else null. Without a prediction
all but the face's own columns is null."""


def faces_schema(labels: LabelSet, recipe: Mapping[str, Any]) -> pa.Schema:
    """FACES with its metadata: `huggingface` (the features) and `facemill` (label set and crop recipe, as JSON)."""
    return _with_metadata(FACES, labels, {"label_set": labels.name, "label_names": list(labels.names), **recipe})


def ledger_schema() -> pa.Schema:
    """LEDGER with the metadata that Hugging Face `datasets` reads."""
    return _with_metadata(LEDGER, None, {})


def facemill_metadata(schema: pa.Schema) -> dict[str, Any]:
    """What `faces_schema` wrote under `facemill`; empty for a table that is not ours."""
    return json.loads((schema.metadata or {}).get(b"facemill", b"{}"))


def _with_metadata(schema: pa.Schema, labels: LabelSet | None, facemill: Mapping[str, Any]) -> pa.Schema:
    features = {column.name: _feature(column.type) for column in schema}
    if "image" in features:
        features["image"] = {"_type": "Image"}
    if labels is not None:
        features["label"] = {"names": list(labels.names), "_type": "ClassLabel"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}}), "facemill": json.dumps(facemill)}
    return schema.with_metadata(metadata)


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_fixed_size_list(kind):
        return {"feature": _feature(kind.value_type), "length": kind.list_size, "_type": "List"}
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    if pa.types.is_struct(kind):
        return {child.name: _feature(child.type) for child in kind}
    names = {pa.float32(): "float32", pa.bool_(): "bool"}
    return {"dtype": names.get(kind, str(kind)), "_type": "Value"}


@dataclass(frozen=True)
class FaceRow:
    """One row of FACES: its fields are the columns, in order. image: encoded crop and its name."""

    image: dict[str, Any]
    label: int | None
    key: str
    source_sha256: str
    source_phash: str
    face_index: int
    bbox: tuple[float, ...]
    landmarks: tuple[tuple[float, float], ...]
    score: float | None
    crop_aligned: bool | None
    crop_margin: float | None
    crop_size_px: int | None
    sharpness: float
    luminance_mean: float
    inter_eye_distance_px: float | None
    head_roll_deg: float | None
    source_width_px: int
    source_height_px: int
    valence: float | None
    arousal: float | None
    split: str
    votes: tuple[int, ...] | None = None
    pixels_sha256: str | None = None


@dataclass(frozen=True)
class LedgerRow:
    """One row of LEDGER: its fields are the columns, in order."""

    key: str
    sha256: str | None
    bytes: int | None
    format: str | None
    width_px: int | None
    height_px: int | None
    status: Status
    reason: Reason | None
    detail: str | None
    faces: int
    faces_screened: int
    phash: str | None
    split: str | None
    seconds: float
    pixels_sha256: str | None = None


def to_table(rows: Sequence[FaceRow] | Sequence[LedgerRow], schema: pa.Schema) -> pa.Table:
    """Rows as an Arrow table of this schema."""
    columns = {name: [getattr(row, name) for row in rows] for name in schema.names}
    return pa.Table.from_pydict(columns, schema=schema)

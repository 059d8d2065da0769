"""A split of a face data set through one or more models: parts in, the logits of every model for the same faces out.

Crops are decoded once for all models and held for one batch only; what stays is a row of numbers a face. Every face of
the split is accounted for: scored, without a label, of a class that a model does not have, or not to be scored, with
the reason.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dataset_tools import parquet, storage
from dataset_tools.detection import RgbImage
from dataset_tools.images import decode
from dataset_tools.limits import Limits
from infer.predictor import Predictor
from schemas.labels import LabelSet, UnknownLabelError, id_map
from schemas.outcomes import Failure
from schemas.tables import FACES, SPLITS, facemill_metadata

FACE_COLUMNS = ["label", "key", "source_sha256", "source_phash", "face_index", "bbox", "score", "sharpness"]
FACE_COLUMNS += ["head_roll_deg"]
_NOT_ALWAYS = "pixels_sha256"
"""A column that data sets of earlier versions lack."""
NO_NUMBER = "no_number"
"""The reason of a face for which a network gave something that is not a number."""

_BATCH_ROWS = 64


class DataSetError(ValueError):
    """This is no face data set, or it does not fit the model; one line that names the next step."""


@dataclass(frozen=True)
class DataSet:
    """folder: normalised. parts: of each split that has any. labels: the classes that its ids number."""

    folder: str
    labels: LabelSet
    parts: Mapping[str, tuple[str, ...]]

    def rows(self, split: str) -> int:
        """Faces in a split, as the footers of its parts say."""
        total = 0
        for part in self.parts.get(split, ()):
            with storage.open_read(part) as file:
                total += pq.ParquetFile(file).metadata.num_rows
        return total


def open_data_set(folder: str, split: str) -> DataSet:
    """A folder that crop-faces or import-labels wrote, which has this split. Raises DataSetError."""
    place = storage.normalize(folder)
    told = storage.redact(place)
    parts: dict[str, list[str]] = {}
    for name, part in parquet.data_parts(place):
        parts.setdefault(name, []).append(part)
    if not parts:
        raise DataSetError(f"{told} has no data/*.parquet: name the folder that import-labels or crop-faces wrote")
    if split not in parts:
        there = ", ".join(name for name in SPLITS if name in parts)
        raise DataSetError(f"{told} has no {split} split: choose --split from {there}")
    with storage.open_read(parts[split][0]) as file:
        schema = pq.ParquetFile(file).schema_arrow
    missing = [name for name in ("image", *FACE_COLUMNS) if name not in schema.names]
    facts = facemill_metadata(schema)
    if missing or "label_names" not in facts:
        what = f"lacks {', '.join(missing)}" if missing else "does not say what its labels mean"
        raise DataSetError(f"{told}: its table {what}: make it with import-labels or crop-faces")
    labels = LabelSet(facts.get("label_set", "labels"), tuple(facts["label_names"]))
    return DataSet(place, labels, {name: tuple(found) for name, found in parts.items()})


def class_map(
    labels: LabelSet, spec_labels: LabelSet, model: str, given: Mapping[str, str] | None, *, allow_drop: bool
) -> tuple[int | None, ...]:
    """For each class of the data set its id in the model, None for one whose faces are left out.

    given: None when the user asked for no map, so that only equal sets pass; else names of the data set to names of the
    model, for those that are neither called the same nor by a known alias (angry, anger). Raises DataSetError, which
    names the classes.
    """
    if labels.names == spec_labels.names:
        return tuple(range(len(labels.names)))
    of_data, of_model = ", ".join(labels.names), ", ".join(spec_labels.names)
    if given is None:
        raise DataSetError(
            f"the data set has {of_data} ({labels.name}) and {model} has {of_model} ({spec_labels.name}): "
            "--label-map names maps by name, --label-map contempt=disgust also what is called otherwise"
        )
    found = [
        _id_of(spec_labels, name) if target is None and _has(spec_labels, name) else target
        for name, target in zip(labels.names, id_map(labels, spec_labels), strict=True)
    ]
    try:
        for name, target_name in given.items():
            found[_id_of(labels, name)] = _id_of(spec_labels, target_name)
    except UnknownLabelError as error:
        raise DataSetError(f"--label-map: {error}") from None
    without = [name for name, target in zip(labels.names, found, strict=True) if target is None]
    if len(without) == len(found):
        raise DataSetError(f"{model} ({of_model}) and the data set ({of_data}) have no class in common")
    if without and not allow_drop:
        raise DataSetError(
            f"{model} has no {', '.join(without)} (it has {of_model}): --allow-drop leaves these faces out, "
            f"--label-map {without[0]}=… gives them a class"
        )
    return tuple(found)


def _id_of(labels: LabelSet, name: str) -> int:
    """By its very name first: a set of other people's folders may call a class by what is an alias elsewhere."""
    return labels.names.index(name) if name in labels.names else labels.id_of(name)


def _has(labels: LabelSet, name: str) -> bool:
    try:
        labels.id_of(name)
    except UnknownLabelError:
        return False
    return True


@dataclass
class Scores:
    """The faces that have a label of a class that every model has, in the order of the data set.

    faces: FACE_COLUMNS and pixels_sha256, with `part` (number in parts) and `row`. logits: of each model, (faces, its
    classes), nan where there are none. reasons: (faces,), "" for one that every model scored. rows: faces of the split
    that were looked at.
    """

    faces: pa.Table
    parts: tuple[str, ...]
    logits: list[NDArray[np.float32]]
    reasons: NDArray[np.object_]
    rows: int
    unlabelled: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    @property
    def scored(self) -> NDArray[np.bool_]:
        """(faces,): every model gave numbers for it."""
        return np.asarray(self.reasons == "", np.bool_)


def score_split(
    data: DataSet,
    split: str,
    predictors: Sequence[Predictor],
    maps: Sequence[Sequence[int | None]],
    limit: int | None = None,
    heard: Callable[[int, int, int], object] = lambda *_: None,
) -> Scores:
    """Predict the faces of a split. maps: of each model, as `class_map` gives it. limit: only the first faces.

    heard: called with the faces looked at, scored and failed so far. Raises DataSetError for a label that is no class.
    """
    rows = unlabelled = failed = 0
    dropped: Counter[str] = Counter()
    tables: list[pa.Table] = []
    logits: list[list[NDArray[np.float32]]] = [[] for _ in predictors]
    reasons: list[str] = []
    seconds = [0.0] * len(predictors)
    shared = [all(of_model[label] is not None for of_model in maps) for label in range(len(data.labels.names))]
    for number, start, table in _batches(data.parts[split], limit):
        labels = table["label"].to_pylist()
        strange = [label for label in labels if label is not None and not 0 <= label < len(shared)]
        if strange:
            raise DataSetError(f"label {strange[0]} is no class of {data.labels.name}: import the data set again")
        kept = [place for place, label in enumerate(labels) if label is not None and shared[label]]
        rows, unlabelled = rows + len(labels), unlabelled + labels.count(None)
        dropped.update(data.labels.names[label] for label in labels if label is not None and not shared[label])
        taken = table.take(pa.array(kept, pa.int64()))
        images = taken["image"].to_pylist()
        taken = taken.drop_columns("image").append_column("part", pa.array([number] * len(kept), pa.int32()))
        tables.append(taken.append_column("row", pa.array([start + place for place in kept], pa.int64())))

        crops = [_crop(image) for image in images]
        good = [place for place, crop in enumerate(crops) if not isinstance(crop, str)]
        told = [crop if isinstance(crop, str) else "" for crop in crops]
        for model, predictor in enumerate(predictors):
            found = np.full((len(crops), len(predictor.spec.label_names)), np.nan, np.float32)
            before = perf_counter()
            found[good] = predictor.predict([crops[place] for place in good]).logits  # type: ignore[misc]
            seconds[model] += perf_counter() - before
            logits[model].append(found)
            for place in np.flatnonzero(~np.isfinite(found).all(axis=1)):
                told[place] = told[place] or NO_NUMBER
        reasons += told
        failed += sum(map(bool, told))
        heard(rows, len(reasons) - failed, failed)
    return Scores(
        faces=pa.concat_tables(tables) if tables else _no_faces(),
        parts=data.parts[split],
        logits=[_joined(found, predictor) for found, predictor in zip(logits, predictors, strict=True)],
        reasons=np.array(reasons, object),
        rows=rows,
        unlabelled=unlabelled,
        dropped=dropped,
        seconds=seconds,
    )


def _batches(parts: Sequence[str], limit: int | None) -> Iterator[tuple[int, int, pa.Table]]:
    """(number of the part, first row, faces) for short stretches, `limit` faces in all."""
    left = limit
    for number, part in enumerate(parts):
        with storage.open_read(part) as file:
            faces, start = pq.ParquetFile(file), 0
            columns = [name for name in ("image", *FACE_COLUMNS, _NOT_ALWAYS) if name in faces.schema_arrow.names]
            for batch in faces.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
                table = pa.Table.from_batches([batch.slice(0, left)])
                if _NOT_ALWAYS not in columns:
                    table = table.append_column(_NOT_ALWAYS, pa.nulls(len(table), pa.string()))
                yield number, start, table
                start += len(batch)
                if left is not None:
                    left -= len(table)
                    if left <= 0:
                        return


def _crop(image: dict[str, Any] | None) -> RgbImage | str:
    """The pixels, or the reason why there are none."""
    found = decode((image or {}).get("bytes") or b"", Limits(min_side_px=1))
    return str(found.reason) if isinstance(found, Failure) else found.pixels


def _joined(found: list[NDArray[np.float32]], predictor: Predictor) -> NDArray[np.float32]:
    return np.concatenate(found) if found else np.zeros((0, len(predictor.spec.label_names)), np.float32)


def _no_faces() -> pa.Table:
    kinds = [FACES.field(name) for name in (*FACE_COLUMNS, _NOT_ALWAYS)]
    return pa.schema([*kinds, ("part", pa.int32()), ("row", pa.int64())]).empty_table()

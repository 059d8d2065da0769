"""What models said about each face, as a table: one row a face and model, those that could not be scored among them."""

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infer.predictor import Predictor
from infer.split_scores import Scores

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
"""label: of the data set. predicted, confidence, probabilities: calibrated, in the order of the model's names, which
the metadata `facemill` lists. shared: the photo is in another split too. reason: why there is no prediction, else null.
Without a prediction all but the face's own columns is null."""


def predictions_table(
    scores: Scores,
    label_names: Sequence[str],
    models: Sequence[tuple[str, Predictor]],
    shared: NDArray[np.bool_],
) -> pa.Table:
    """PREDICTIONS of every face for the first model, then for the next. models: (name, predictor)."""
    good = scores.scored
    missing = pa.array(~good)
    faces = scores.faces
    labels = pa.array([label_names[label] for label in faces["label"].to_pylist()], pa.string())
    tables = []
    for (name, predictor), logits in zip(models, scores.logits, strict=True):
        found = predictor.from_logits(np.where(good[:, None], logits, 0).astype(np.float32))
        best = found.logits.argmax(axis=1)
        columns = {
            "model": pa.array([name] * len(good), pa.string()),
            "key": faces["key"],
            "source_sha256": faces["source_sha256"],
            "face_index": faces["face_index"],
            "label": labels,
            "predicted": _masked([found.names[number] for number in best], ~good, pa.string()),
            "confidence": _masked(found.probabilities.max(axis=1, initial=0.0), ~good, pa.float32()),
            "not_sure": _masked(found.not_sure, ~good, pa.bool_()),
            "probabilities": _lists(found.probabilities, missing),
            "logits": _lists(found.logits, missing),
            "shared": pa.array(shared),
            "reason": _masked(scores.reasons, good, pa.string()),
        }
        tables.append(pa.table(columns, schema=PREDICTIONS))
    facts = {"models": [{"name": name, "label_names": one.spec.label_names} for name, one in models]}
    return pa.concat_tables(tables).replace_schema_metadata({"facemill": json.dumps(facts)})


def _masked(values: Sequence[object] | NDArray[np.generic], hidden: NDArray[np.bool_], kind: pa.DataType) -> pa.Array:
    """Null where hidden."""
    shown = np.asarray(values, None if isinstance(values, np.ndarray) else object)
    return pa.array(shown, mask=hidden).cast(kind)


def _lists(values: NDArray[np.generic], missing: pa.Array) -> pa.Array:
    rows, classes = values.shape
    flat = pa.array(values.astype(np.float32).ravel())
    starts = pa.array(np.arange(rows + 1, dtype=np.int32) * classes)
    return pa.ListArray.from_arrays(starts, flat, mask=missing)

"""The tables of a scoring run: PREDICTIONS with a row for each face, FAILURES with a row for what gave none.

A model's classes are columns of their own, `p_happiness` and so on, so that any reader can filter and average them.
"""

import json
from collections.abc import Sequence

import pyarrow as pa

from schemas.model import ModelSpec

_POINT = pa.list_(pa.float32(), 2)

_FACE = [
    ("key", pa.string()),
    ("source_sha256", pa.string()),
    ("face_index", pa.int32()),
    ("bbox", pa.list_(pa.float32(), 4)),
    ("landmarks", pa.list_(_POINT, 5)),
    ("score", pa.float32()),
    ("expression", pa.string()),
    ("confidence", pa.float32()),
    ("not_sure", pa.bool_()),
]

FAILURES = pa.schema(
    [
        ("key", pa.string()),
        ("face_index", pa.int32()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
"""One row for each image without a prediction, and for each face that could not be scored. face_index: null for an
image. stage: read, decode, detect or score. reason: `no_face`, or one of schemas.outcomes."""


def predictions_schema(spec: ModelSpec) -> pa.Schema:
    """PREDICTIONS for one model: one row a face.

    bbox and landmarks: pixels of the upright original, as in FACES; the landmarks of a face that was given are nan.
    score: of the detector, null for a given face. expression, confidence: the class of the highest calibrated
    probability and that probability. not_sure: it is below the model's threshold. p_NAME: calibrated probability of
    each class. model: sha256 of model.keras.
    """
    columns = [
        *_FACE,
        *((column, pa.float32()) for column in probability_columns(spec.label_names)),
        ("model", pa.string()),
    ]
    told = {"label_set": spec.label_set, "label_names": list(spec.label_names), "temperature": spec.temperature}
    return pa.schema(columns, {"facemill": json.dumps(told | {"model": spec.fingerprint})})


def probability_columns(label_names: Sequence[str]) -> list[str]:
    return [f"p_{name}" for name in label_names]

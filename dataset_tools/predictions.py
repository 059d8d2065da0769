"""Logits in, what a model says of each face out: calibrated probabilities and who is not sure, also as a table.

Training writes the table for its validation faces and an evaluation for those of its split, so a validation figure can
be looked into face by face with the same code as a test figure.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dataset_tools.metrics import softmax
from schemas.model import ModelSpec
from schemas.tables import PREDICTIONS


@dataclass(frozen=True)
class Predictions:
    """logits, probabilities: (faces, classes); the latter are calibrated and add up to 1. names: of the classes.
    not_sure: (faces,), the best probability is below the model's threshold; one that is no number is not sure."""

    logits: NDArray[np.float32]
    probabilities: NDArray[np.float64]
    names: tuple[str, ...]
    not_sure: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.logits)

    def top(self, k: int) -> list[list[tuple[str, float]]]:
        """For each face its k best (name, probability), best first; of equal ones the lower id comes first."""
        order = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :k]
        return [
            [(self.names[number], float(row[number])) for number in best]
            for best, row in zip(order, self.probabilities, strict=True)
        ]


def calibrated(logits: NDArray[np.float32], spec: ModelSpec) -> Predictions:
    """What a model with this model.json says of faces for which its network gave these logits."""
    probabilities = softmax(logits, spec.temperature)
    not_sure = ~(probabilities.max(axis=1, initial=0.0) >= spec.threshold)
    return Predictions(logits, probabilities, spec.label_names, not_sure)


def predictions_table(
    faces: pa.Table,
    labels: Sequence[str],
    models: Sequence[tuple[str, ModelSpec, NDArray[np.float32]]],
    reasons: NDArray[np.object_],
    shared: NDArray[np.bool_],
) -> pa.Table:
    """PREDICTIONS of every face for the first model, then for the next.

    faces: has the columns key, source_sha256 and face_index. labels: the name of each face's. models: (name, spec,
    logits (faces, classes)). reasons: (faces,), "" for one that was scored; the logits of another do not count.
    shared: (faces,).
    """
    scored = reasons == ""
    missing = pa.array(~scored)
    tables = []
    for name, spec, logits in models:
        found = calibrated(np.where(scored[:, None], logits, 0).astype(np.float32), spec)
        best = found.logits.argmax(axis=1)
        columns = {
            "model": pa.array([name] * len(scored), pa.string()),
            "key": faces["key"],
            "source_sha256": faces["source_sha256"],
            "face_index": faces["face_index"],
            "label": pa.array(labels, pa.string()),
            "predicted": _masked([found.names[number] for number in best], ~scored, pa.string()),
            "confidence": _masked(found.probabilities.max(axis=1, initial=0.0), ~scored, pa.float32()),
            "not_sure": _masked(found.not_sure, ~scored, pa.bool_()),
            "probabilities": _lists(found.probabilities, missing),
            "logits": _lists(found.logits, missing),
            "shared": pa.array(shared),
            "reason": _masked(reasons, scored, pa.string()),
        }
        tables.append(pa.table(columns, schema=PREDICTIONS))
    facts = {"models": [{"name": name, "label_names": spec.label_names} for name, spec, _ in models]}
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

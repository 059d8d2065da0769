"""What a training run leaves: the trained network in, every file of the model folder out, metrics.json last.

Everything that is said of the validation faces, figures, plots and table, comes from the same logits.
"""

import csv
import io
import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dataset_tools import metrics, parquet, storage
from dataset_tools.images import decode
from dataset_tools.limits import Limits
from dataset_tools.predictions import predictions_table
from infer.shared_photos import WAYS, shared_with
from schemas.model import ModelSpec
from schemas.outcomes import Failure
from train import plots
from train.calibration import fit_temperature
from train.card import model_card, with_export
from train.checkpoint import State
from train.data import Rows, load
from train.export import COMPARED, FORMATS, export, logits_of, save_keras
from train.job import Job, split_rows
from train.loop import HISTORY
from train.recipes_io import About
from workflows import cli

PREDICTIONS_FILE = "predictions_validation.parquet"
_FILES = ("metrics.json", "README.md", "model.json", "model.keras", "history.csv", PREDICTIONS_FILE)
_FOLDERS = ("plots", "tensorboard")

_NOT_SURE_BELOW = 0.5
"""Of a calibrated confidence: below it the answer is more often wrong than right."""


def clear(out: str) -> None:
    """Remove what `write_model_folder` and exports have left, metrics.json first: without it no model is complete."""
    exports = [form.file for form in FORMATS.values()]
    for name in (*_FILES, *(file for file in exports if "." in file)):
        storage.remove(storage.join(out, name))
    for name in (*_FOLDERS, *(file for file in exports if "." not in file)):
        storage.remove_tree(storage.join(out, name))


def write_model_folder(
    out: str, job: Job, about: About, model: Any, state: State, counts: dict[str, int], command: str
) -> dict[str, Any]:
    """Write all of it; returns what metrics.json holds. counts: training faces by class name. command: for the card."""
    rows = split_rows(job, "validation")
    faces, readable = load(rows, job.spec)
    labels = rows.labels[readable]
    logits = logits_of(model, faces)
    temperature = float(fit_temperature(logits, labels))
    spec = replace(job.spec, temperature=temperature, threshold=_NOT_SURE_BELOW)
    kept = max(at for at, row in enumerate(state.history) if row["best"])
    best = state.history[kept]
    figures = _figures(logits, labels, spec)
    figures |= {"best_epoch": best["epoch"], "best_stage": best["stage"], "epochs": len(state.history)}
    with tempfile.TemporaryDirectory(prefix="facemill-model-") as folder:
        at = Path(folder)
        spec = save_keras(model, spec, at / "model.keras")
        agreement = export(model, "onnx", at, _varied(faces, labels), spec.temperature)
        if not agreement.tells:
            cli.note(
                "all faces get nearly the same probabilities: that model.onnx agrees with model.keras says nothing"
            )
        figures["onnx"] = asdict(agreement)
        texts = {
            "model.json": spec.to_json(),
            "history.csv": _history(state),
            "plots/learning_curves.svg": plots.learning_curves(state.history, kept).encode(),
            "plots/confusion_matrix.svg": plots.confusion(figures["confusion_matrix"], spec.label_names).encode(),
            "plots/reliability.svg": plots.reliability(_reliability(logits, labels, spec.temperature)).encode(),
        }
        for name in ("model.keras", "model.onnx"):
            storage.write_bytes(storage.join(out, name), (at / name).read_bytes())
        card = model_card(spec, job.recipe, about, figures, counts, model.count_params(), command)
        texts["README.md"] = with_export(card, "model.onnx", agreement, (at / "model.onnx").stat().st_size).encode()
    for name, data in texts.items():
        storage.write_bytes(storage.join(out, name), data)
    table = _predictions(out, job, spec, rows, logits, readable)
    parquet.write_part(storage.join(out, PREDICTIONS_FILE), table)
    storage.write_bytes(storage.join(out, "metrics.json"), (json.dumps(figures, indent=2) + "\n").encode())
    return figures


def _predictions(
    out: str, job: Job, spec: ModelSpec, rows: Rows, logits: NDArray[np.float32], readable: NDArray[np.bool_]
) -> pa.Table:
    """The table of all validation faces, the few that could not be decoded among them."""
    faces = _columns(rows, sorted({"key", "source_sha256", "face_index", *WAYS}))
    whole = np.zeros((len(rows), logits.shape[1]), np.float32)
    whole[readable] = logits
    reasons = np.full(len(rows), "", object)
    if not readable.all():
        lost = _columns(rows.take(~readable), ["image"])["image"].to_pylist()
        reasons[~readable] = [_reason(image) for image in lost]
    shared = np.zeros(len(rows), np.bool_)
    if job.fold is None:  # folds are made of photos, so they share none
        parts = [part for split, part in parquet.data_parts(job.dataset) if split == "train"]
        shared = np.any(list(shared_with(faces, parts).values()), axis=0)
    names = [spec.label_names[label] for label in rows.labels]
    return predictions_table(faces, names, [(out.rsplit("/", 1)[-1], spec, whole)], reasons, shared)


def _columns(rows: Rows, names: list[str]) -> pa.Table:
    """These columns of the faces, in their order; null where a data set of an earlier version lacks one."""
    tables = []
    for number, part in enumerate(rows.parts):
        own = rows.row[rows.part == number]
        with storage.open_read(part) as file:
            there = pq.ParquetFile(file)
            table = there.read(columns=[name for name in names if name in there.schema_arrow.names])
        tables.append(table.take(own))
    found = pa.concat_tables(tables)
    for name in names:
        if name not in found.column_names:
            found = found.append_column(name, pa.nulls(len(found), pa.string()))
    return found


def _reason(image: dict[str, Any] | None) -> str:
    found = decode((image or {}).get("bytes") or b"", Limits())
    return str(found.reason) if isinstance(found, Failure) else ""


def _figures(logits: NDArray[np.float32], labels: NDArray[np.int64], spec: ModelSpec) -> dict[str, Any]:
    probabilities = metrics.softmax(logits, spec.temperature)
    matrix = metrics.confusion_matrix(labels, probabilities.argmax(-1), len(spec.label_names))
    classes = metrics.per_class(matrix)
    return {
        "split": "validation",
        "faces": len(labels),
        "accuracy": float(metrics.accuracy(matrix)),
        "balanced_accuracy": float(metrics.balanced_accuracy(matrix)),
        "macro_f1": float(metrics.macro_f1(matrix)),
        "weighted_f1": float(metrics.weighted_f1(matrix)),
        "log_loss": metrics.log_loss(labels, probabilities),
        "ece": metrics.ece(_reliability(logits, labels, spec.temperature)),
        "temperature": spec.temperature,
        "confusion_matrix": matrix.tolist(),
        "per_class": {
            name: {
                key: float(np.nan_to_num(getattr(classes, key)[at])) for key in ("precision", "recall", "f1", "support")
            }
            for at, name in enumerate(spec.label_names)
        },
    }


def _reliability(logits: NDArray[np.float32], labels: NDArray[np.int64], temperature: float) -> metrics.Reliability:
    probabilities = metrics.softmax(logits, temperature)
    return metrics.reliability(probabilities.max(-1), (probabilities.argmax(-1) == labels).astype(float))


def _varied(faces: NDArray[np.uint8], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Some faces of every class, for the comparison of two files."""
    order = np.argsort([np.sum(labels[:at] == label) for at, label in enumerate(labels[:2000])], kind="stable")
    return faces[order[:COMPARED]]


def _history(state: State) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, HISTORY, lineterminator="\n")
    writer.writeheader()
    writer.writerows(state.history)
    return text.getvalue().encode()

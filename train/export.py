"""A trained network in, the files that others load out: model.keras, the master, and model.onnx, held against it.

The comparison runs on real faces of which the outputs differ: on an untrained network, or on faces that all look alike,
any two files agree, and the check says nothing.
"""

import contextlib
import hashlib
import io
import logging
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from dataset_tools.metrics import softmax
from schemas.model import ModelSpec

TOLERANCE = 1e-4


class ExportError(RuntimeError):
    """An exported file that does not do what the master does; one line with the figures."""


@dataclass(frozen=True)
class Agreement:
    """faces: compared. largest_difference: of a probability. same_best: every face has the same best class in both.
    spread: the largest difference of a probability between two of the faces; near 0 the comparison says nothing."""

    faces: int
    largest_difference: float
    same_best: bool
    spread: float


def save_keras(model: keras.Model, spec: ModelSpec, path: Path) -> ModelSpec:
    """Write model.keras without an optimizer; returns `spec` with its fingerprint and the versions that wrote it."""
    model.save(path)
    versions = {"keras": keras.__version__, "tensorflow": _version("tensorflow"), "facemill": _version("facemill")}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return replace(spec, fingerprint=digest, versions={name: one for name, one in versions.items() if one})


def save_onnx(model: keras.Model, path: Path) -> None:
    """Write model.onnx: (n, side, side, channels) uint8 → (n, classes) logits, n free."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _quiet("tf2onnx", "absl", "tensorflow"):
        warnings.simplefilter("ignore")  # tf2onnx and TensorFlow's converter warn of their own old calls
        model.export(path, format="onnx", verbose=False)


def compare(model: keras.Model, onnx_path: Path, faces: NDArray[np.uint8], temperature: float = 1.0) -> Agreement:
    """The master and the ONNX file on the same faces. Raises ExportError where they disagree."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx_path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: faces})
    master = softmax(logits_of(model, faces), temperature)
    found = softmax(logits, temperature)
    agreement = Agreement(
        faces=len(faces),
        largest_difference=float(np.abs(master - found).max()),
        same_best=bool((master.argmax(-1) == found.argmax(-1)).all()),
        spread=float(np.ptp(master, axis=0).max()),
    )
    if agreement.largest_difference > TOLERANCE or not agreement.same_best:
        raise ExportError(
            f"model.onnx differs from model.keras by {agreement.largest_difference:.1e} in a probability of "
            f"{agreement.faces} faces (allowed: {TOLERANCE:g}); report this, with the recipe"
        )
    return agreement


def logits_of(model: keras.Model, faces: NDArray[np.uint8], batch: int = 256) -> NDArray[np.float32]:
    """(n, classes) logits of (n, side, side, channels) faces, as in serving."""
    parts = [np.asarray(model(faces[at : at + batch], training=False)) for at in range(0, len(faces), batch)]
    return np.concatenate(parts).astype(np.float32)


def _version(package: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


@contextlib.contextmanager
def _quiet(*names: str) -> Any:
    loggers = [logging.getLogger(name) for name in names]
    before = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for one, level in zip(loggers, before, strict=True):
            one.setLevel(level)

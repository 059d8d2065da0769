"""A trained network in, the files that others load out: model.keras, the master, and exports, each held against it.

The comparison runs on real faces of which the outputs differ: on an untrained network, or on faces that all look alike,
any two files agree, and the check says nothing.
"""

import contextlib
import hashlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from dataset_tools import storage
from dataset_tools.metrics import softmax
from schemas.model import ModelSpec, ModelSpecError

MASTER = "model.keras"
TOLERANCE = 1e-4
LEAST_SPREAD = 0.01
COMPARED = 64
"""Faces: enough that every class is among them, few enough for a large network on one core."""

Network = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""(n, input_px, input_px, channels) uint8 → (n, classes) logits."""


class ExportError(RuntimeError):
    """An exported file that does not do what the master does; one line with the figures."""


class MasterError(ValueError):
    """A folder that holds no model to export; one line that names the next step."""


@dataclass(frozen=True)
class Agreement:
    """faces: compared. largest_difference: of a probability. same_best: every face has the same best class in both.
    spread: the largest difference of a probability between two of the faces."""

    faces: int
    largest_difference: float
    same_best: bool
    spread: float

    @property
    def tells(self) -> bool:
        """Whether the outputs differ enough between faces for the comparison to say anything."""
        return self.spread >= LEAST_SPREAD


def save_keras(model: keras.Model, spec: ModelSpec, path: Path) -> ModelSpec:
    """Write model.keras without an optimizer; returns `spec` with its fingerprint and the versions that wrote it."""
    model.save(path)
    versions = {"keras": keras.__version__, "tensorflow": _version("tensorflow"), "facemill": _version("facemill")}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return replace(spec, fingerprint=digest, versions={name: one for name, one in versions.items() if one})


def load_master(folder: str) -> tuple[keras.Model, ModelSpec]:
    """The network of a model folder, a path or a URL, in safe mode, with its model.json. Raises MasterError."""
    told = storage.redact(storage.normalize(folder))
    try:
        spec = ModelSpec.from_json(storage.read_bytes(storage.join(folder, "model.json")))
        data = storage.read_bytes(storage.join(folder, MASTER))
    except storage.MissingFileError as error:
        raise MasterError(f"{error}: name the folder that just train wrote") from None
    except ModelSpecError as error:
        raise MasterError(f"{told}: {error}") from None
    with tempfile.TemporaryDirectory(prefix="facemill-export-") as local:  # Keras reads from a disk only
        path = Path(local) / MASTER
        path.write_bytes(data)
        try:
            return keras.models.load_model(path, compile=False, safe_mode=True), spec
        except Exception as error:  # whatever a file that is not ours makes Keras raise
            line = " ".join(str(error).split())[:200]
            raise MasterError(f"{told}/{MASTER} cannot be loaded: {line}") from None


def save_onnx(model: keras.Model, path: Path) -> None:
    """Write model.onnx: (n, side, side, channels) uint8 → (n, classes) logits, n free, as all exports."""
    with _quietly():
        model.export(path, format="onnx", verbose=False)


def save_savedmodel(model: keras.Model, path: Path) -> None:
    """Write a TensorFlow SavedModel folder with the signature serving_default."""
    with _quietly():
        model.export(path, format="tf_saved_model", verbose=False)


def save_litert(model: keras.Model, path: Path) -> None:
    """Write model.tflite of built-in operators only: Keras' own export would let in those that a phone lacks."""
    with tempfile.TemporaryDirectory(prefix="facemill-export-") as folder, _quietly():
        model.export(folder, format="tf_saved_model", verbose=False)
        path.write_bytes(tf.lite.TFLiteConverter.from_saved_model(folder).convert())


def load_onnx(path: Path) -> Network:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda faces: session.run(None, {session.get_inputs()[0].name: faces})[0]


def load_savedmodel(path: Path) -> Network:
    serve = tf.saved_model.load(str(path)).signatures["serving_default"]
    (name,) = serve.structured_input_signature[1]
    return lambda faces: next(iter(serve(**{name: tf.constant(faces)}).values())).numpy()


def load_litert(path: Path) -> Network:
    with _quietly():
        interpreter = tf.lite.Interpreter(str(path))
    (given,), (found,) = interpreter.get_input_details(), interpreter.get_output_details()

    def network(faces: NDArray[np.uint8]) -> NDArray[np.float32]:
        interpreter.resize_tensor_input(given["index"], faces.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(given["index"], faces)
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(found["index"]))

    return network


@dataclass(frozen=True)
class Format:
    """file: its name in the model folder; a SavedModel is a folder itself. save, load: the network to and from it."""

    file: str
    save: Callable[[keras.Model, Path], None]
    load: Callable[[Path], Network]


FORMATS = {
    "onnx": Format("model.onnx", save_onnx, load_onnx),
    "savedmodel": Format("savedmodel", save_savedmodel, load_savedmodel),
    "litert": Format("model.tflite", save_litert, load_litert),
}


def export(
    model: keras.Model, kind: str, folder: Path, faces: NDArray[np.uint8], temperature: float = 1.0
) -> Agreement:
    """Write one of FORMATS into a local folder, and hold it against the master on these faces.

    Raises ExportError where they disagree. Whether the agreement says anything is for the caller to look at.
    """
    form = FORMATS[kind]
    master = softmax(logits_of(model, faces), temperature)  # first: Keras exports no model that was never called
    form.save(model, folder / form.file)
    found = softmax(form.load(folder / form.file)(faces), temperature)
    agreement = Agreement(
        faces=len(faces),
        largest_difference=float(np.abs(master - found).max()),
        same_best=bool((master.argmax(-1) == found.argmax(-1)).all()),
        spread=float(np.ptp(master, axis=0).max()),
    )
    # Written so that a difference that is no number fails as well. Among outputs that are all alike the best class is
    # a matter of the last digit, and says as little as the rest.
    same_best = agreement.same_best or not agreement.tells
    if not (agreement.largest_difference <= TOLERANCE and same_best):
        raise ExportError(
            f"{form.file} differs from {MASTER} by {agreement.largest_difference:.1e} in a probability of "
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
def _quietly() -> Any:
    """Converters warn of their own old calls, print and log: nothing of it helps a user."""
    loggers = [logging.getLogger(name) for name in ("tf2onnx", "absl", "tensorflow")]
    before = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, before, strict=True):
            one.setLevel(level)

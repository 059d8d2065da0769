"""A model folder in, a predictor out: crops to calibrated probabilities, the best names, and who is not sure.

model.json says how a crop becomes the network's input, `dataset_tools.prepare` does it, as in training. The network is
model.onnx on ONNX Runtime, or model.keras; TensorFlow is imported only for the latter. What is missing or does not fit
together is told in one line when the folder is loaded, not by a wrong number later.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataset_tools import storage
from dataset_tools.detection import RgbImage
from dataset_tools.predictions import Predictions, calibrated
from dataset_tools.prepare import prepare
from schemas.labels import LABEL_SETS
from schemas.model import ModelSpec, ModelSpecError

RUNTIMES = {"onnx": "model.onnx", "keras": "model.keras"}
BATCH = 64

Network = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""(n, input_px, input_px, channels) uint8 → (n, classes) logits, n being at least 1."""


class PredictorError(ValueError):
    """The model folder lacks something, or what is in it does not fit together; one line that names the next step."""


@dataclass(frozen=True)
class Predictor:
    """spec: the model.json. folder: where it came from, without secrets. Call `predict`."""

    spec: ModelSpec
    network: Network
    folder: str

    @property
    def name(self) -> str:
        """The last part of the folder's name."""
        return self.folder.rstrip("/").rsplit("/", 1)[-1]

    def predict(self, crops: Sequence[RgbImage], batch: int = BATCH) -> Predictions:
        """crops: (height, width, 3) uint8 RGB of any sizes. batch: how many go through the network at once.

        Raises ValueError for an array of another shape or kind.
        """
        parts = [np.zeros((0, len(self.spec.label_names)), np.float32)]
        for start in range(0, len(crops), batch):
            pixels = [prepare(_checked(crop), self.spec) for crop in crops[start : start + batch]]
            parts.append(self.network(np.stack(pixels)))
        return self.from_logits(np.concatenate(parts))

    def from_logits(self, logits: NDArray[np.float32]) -> Predictions:
        """What `predict` makes of (faces, classes) logits that it gave before."""
        return calibrated(logits, self.spec)


def load_predictor(folder: str, runtime: str = "onnx", threads: int | None = None) -> Predictor:
    """The predictor of a model folder, a path or a URL.

    runtime: `onnx`, or `keras` for model.keras, loaded in safe mode and not compiled. threads: for ONNX Runtime; None
    is one per core, 1 is for a process among others. Raises PredictorError.
    """
    if runtime not in RUNTIMES:
        raise PredictorError(f"unknown runtime {runtime!r}: choose {', '.join(RUNTIMES)}")
    place = storage.normalize(folder)
    told = storage.redact(place)
    try:
        spec = ModelSpec.from_json(_read(place, told, "model.json"))
    except ModelSpecError as error:
        raise PredictorError(f"{told}: {error}") from None
    _check_labels(spec, told)
    data = _read(place, told, RUNTIMES[runtime])
    if runtime == "onnx":
        network = _onnx_network(data, spec, f"{told}/model.onnx", threads)
    else:
        network = _keras_network(data, spec, f"{told}/model.keras")
    return Predictor(spec, network, told)


def _read(place: str, told: str, name: str) -> bytes:
    try:
        return storage.read_bytes(storage.join(place, name))
    except storage.MissingFileError:
        there = [
            file for file in RUNTIMES.values() if name != "model.json" and storage.exists(storage.join(place, file))
        ]
        step = f"it holds {' and '.join(there)}" if there else "name the folder that training wrote"
        raise PredictorError(f"{told} has no {name}: {step}") from None


def _check_labels(spec: ModelSpec, told: str) -> None:
    known = LABEL_SETS.get(spec.label_set)
    if known is not None and known.names != spec.label_names:
        raise PredictorError(
            f"{told}: model.json says {spec.label_set}, which has {', '.join(known.names)}, "
            f"but its classes are {', '.join(spec.label_names)}"
        )
    if len(set(spec.label_names)) < max(2, len(spec.label_names)):
        raise PredictorError(f"{told}: model.json needs two classes or more of different names")


def _check_shapes(spec: ModelSpec, file: str, takes: Sequence[Any], gives: Sequence[Any]) -> None:
    """Shapes of the network's one input and output, with an int for each fixed axis; the first axis is the batch."""
    channels = 3 if spec.colour == "rgb" else 1
    for what, shape, wanted in (
        ("takes", takes, (None, spec.input_px, spec.input_px, channels)),
        ("gives", gives, (None, len(spec.label_names))),
    ):
        fits = len(shape) == len(wanted) and all(
            not isinstance(size, int) or size == asked for size, asked in zip(shape, wanted, strict=True)
        )
        if not fits:
            raise PredictorError(
                f"{file} {what} {_shape(shape)}, and model.json says {_shape(wanted)}: they are of different models, "
                "or the export has a fixed batch"
            )


def _shape(sizes: Sequence[Any]) -> str:
    return "x".join(str(size) if isinstance(size, int) else "N" for size in sizes) or "a single number"


def _checked(crop: RgbImage) -> RgbImage:
    if crop.ndim != 3 or crop.shape[2] != 3 or crop.dtype != np.uint8 or not crop.size:
        raise ValueError(f"a crop is (height, width, 3) uint8 RGB, not {crop.shape} {crop.dtype}")
    return crop


def _onnx_network(data: bytes, spec: ModelSpec, file: str, threads: int | None) -> Network:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that spin while they wait take the cores of the processes beside them.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's classes have no common base but this
        raise PredictorError(f"{file} cannot be loaded: {_line(error)}") from None
    inputs, outputs = session.get_inputs(), session.get_outputs()
    _check_one(file, len(inputs), len(outputs))
    _check_shapes(spec, file, inputs[0].shape, outputs[0].shape)
    kinds = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}
    if inputs[0].type not in kinds:
        raise PredictorError(f"{file} takes {inputs[0].type}: export it with uint8 or float32 pixels")
    kind, name = kinds[inputs[0].type], inputs[0].name

    def network(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.asarray(session.run(None, {name: pixels.astype(kind, copy=False)})[0], np.float32)

    return network


def _keras_network(data: bytes, spec: ModelSpec, file: str) -> Network:
    try:
        import keras
    except ImportError:
        raise PredictorError("runtime keras needs the extra train: uv pip install 'facemill[train]'") from None

    with tempfile.TemporaryDirectory() as folder:  # Keras reads a .keras file from a disk only
        path = Path(folder) / "model.keras"
        path.write_bytes(data)
        try:
            model = keras.models.load_model(path, compile=False, safe_mode=True)
        except Exception as error:  # whatever a file that is not ours makes Keras raise
            raise PredictorError(f"{file} cannot be loaded: {_line(error)}") from None
    _check_one(file, len(model.inputs), len(model.outputs))
    _check_shapes(spec, file, model.inputs[0].shape, model.outputs[0].shape)

    def network(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        # Called and not `predict`, which compiles a function for each batch size, and the last batch has its own.
        return np.asarray(keras.ops.convert_to_numpy(model(pixels, training=False)), np.float32)

    return network


def _check_one(file: str, inputs: int, outputs: int) -> None:
    if (inputs, outputs) != (1, 1):
        raise PredictorError(f"{file} has {inputs} inputs and {outputs} outputs: a model here has one of each")


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:200]}…"

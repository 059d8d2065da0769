"""A model folder whose every output is known: logits are GAIN times the mean of each colour, from 0 to 1.

A red crop gives (GAIN, 0, 0). The network is built with onnx.helper, so no test needs TensorFlow to have a model.
"""

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from schemas.model import ModelSpec

GAIN = 4.0
NAMES = ("anger", "fear", "neutral")
"""Of red, green and blue."""
SIDE_PX = 8


def spec(**values: Any) -> ModelSpec:
    known = {"architecture": "toy", "input_px": SIDE_PX, "colour": "rgb", "label_set": "toy", "label_names": NAMES}
    return ModelSpec(**{**known, "crop": {}, **values})


def network(
    channels: int = 3, gain: Any = None, side_px: Any = SIDE_PX, batch: Any = "N", outputs: int = 1, kind: int = 2
) -> bytes:
    """gain: (channels, classes), by default GAIN on the diagonal. kind: of the pixels, 2 is TensorProto.UINT8."""
    matrix = np.asarray(GAIN * np.eye(channels) if gain is None else gain, np.float32) / 255
    nodes = [
        helper.make_node("Cast", ["pixels"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["numbers"], ["means"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["means", "gain"], ["logits"]),
        helper.make_node("Identity", ["logits"], ["copy"]),
    ]
    gives = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, matrix.shape[1]]) for name in ("logits", "copy")
    ]
    takes = helper.make_tensor_value_info("pixels", kind, [batch, side_px, side_px, channels])
    graph = helper.make_graph(nodes, "toy", [takes], gives[:outputs], [numpy_helper.from_array(matrix, "gain")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return model.SerializeToString()


def folder(path: Path, data: bytes | None = None, **values: Any) -> Path:
    """A model folder; values: of its model.json."""
    path.mkdir(parents=True)
    (path / "model.json").write_bytes(spec(**values).to_json())
    (path / "model.onnx").write_bytes(network() if data is None else data)
    return path


def crop(red: float, green: float, blue: float, side_px: int = SIDE_PX) -> np.ndarray:
    """A crop of one colour, from 0 to 1."""
    return np.full((side_px, side_px, 3), np.array([red, green, blue]) * 255, np.uint8)

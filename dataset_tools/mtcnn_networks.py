"""MTCNN's three networks: the weights shipped in the `mtcnn` package in, ONNX Runtime sessions out.

The graphs are written here, not exported, for two reasons: a crop worker must not import TensorFlow (seconds and half a
gigabyte), and rewrites that keep the numbers make them twice as fast. Pixels stay 0 to 255, the normalisation is in
the first convolution; heads are merged, and the two class outputs become one, their difference in logits; PReLU
costs one pass instead of three (`_Graph.conv_prelu`) and before a pooling a quarter of that (`_pooled_prelu`,
`_first_layer`).
"""

import functools
import hashlib
import importlib.util
import io
from pathlib import Path

import joblib
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

WEIGHTS_SHA256 = {
    "pnet.lz4": "ea6b0c3e685ebee3165326ad6484acc95f2ef78f1c94fbf40a55704fa989f7b5",
    "rnet.lz4": "cb00e6460f3c98b0bfafaba3c0a0ded4bdf6e62cee7174d969e8670d7e757fee",
    "onet.lz4": "94f6ea2f4cf985275ee958cdd762d17b6009348a4fb9d8c6be39ba73ffd22ca3",
}
_MEAN, _SPREAD = 127.5, 128.0
_INPUT = "x"

Array = NDArray[np.float64]


def weights_folder() -> Path:
    """Where the installed `mtcnn` package keeps its weights; the package itself is not imported."""
    spec = importlib.util.find_spec("mtcnn")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the detector needs the weights of the package mtcnn: pip install mtcnn==1.0.0")
    return Path(spec.origin).parent / "assets" / "weights"


def read_weights(folder: Path, name: str) -> list[Array]:
    """The arrays of one network, in Keras' order and layout (kernels are height, width, in, out).

    Raises ValueError when the file is not the one of mtcnn 1.0.0: other weights find other faces, and the file is a
    pickle, which may only be opened when it is known.
    """
    content = (folder / name).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != WEIGHTS_SHA256[name]:
        raise ValueError(
            f"{folder / name} has sha256 {digest[:12]}…, not {WEIGHTS_SHA256[name][:12]}…: install mtcnn==1.0.0"
        )
    return [np.asarray(array, dtype=np.float64) for array in joblib.load(io.BytesIO(content))]


class _Graph:
    """Collects ONNX nodes and constants; each method adds a layer and returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, operator: str, *inputs: str, **attributes: int | list[int]) -> str:
        output = f"v{len(self.nodes)}"
        node = helper.make_node(operator, list(inputs), [output])
        node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
        self.nodes.append(node)
        return output

    def constant(self, values: Array) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values, dtype=np.float32), name))
        return name

    def conv_on_pixels(self, kernel: Array, bias: Array) -> str:
        """The first layer, for pixels of 0 to 255 instead of (pixel - 127.5) / 128, on the input as it lies in memory.

        Its rows of R, G, B, R, G, B, ... are one channel of three times the width, over which the kernel moves by
        three: the same sums, and no pass over the pixels that puts the channels first.
        """
        height, width, channels, filters = kernel.shape
        flat = (kernel / _SPREAD).reshape(height, width * channels, 1, filters)
        return self.conv(_INPUT, flat, bias - kernel.sum((0, 1, 2)) * _MEAN / _SPREAD, strides=[1, channels])

    def conv(self, x: str, kernel: Array, bias: Array | None = None, **attributes: int | list[int]) -> str:
        """kernel: (height, width, in, out) as Keras keeps it."""
        inputs = [x, self.constant(kernel.transpose(3, 2, 0, 1))]
        if bias is not None:
            inputs.append(self.constant(bias))
        return self.add("Conv", *inputs, **attributes)

    def per_channel(self, x: str, factors: Array) -> str:
        """A depthwise 1x1 convolution, which ONNX Runtime fuses with the addition that follows."""
        return self.conv(x, factors.reshape(1, 1, 1, -1), group=factors.size)

    def conv_prelu(self, x: str, kernel: Array, bias: Array, slopes: Array) -> str:
        """PReLU is a*y + (1-a)*relu(y) for slopes a. With z = (1-a)*y, scaled in the kernel, it is a/(1-a)*z + relu(z).

        So one fused pass after the relu instead of two. It needs slopes below 1.
        """
        a = slopes.ravel()
        return self.prelu_of_scaled(self.conv(x, kernel * (1 - a), bias * (1 - a)), a)

    def prelu_of_scaled(self, z: str, a: Array) -> str:
        """PReLU for slopes a, of what comes scaled by 1-a."""
        return self.add("Add", self.per_channel(z, a / (1 - a)), self.add("Relu", z))

    def dense(self, x: str, kernel: Array, bias: Array) -> str:
        return self.add("Gemm", x, self.constant(kernel), self.constant(bias))

    def session(self, output: str, input_shape: list[int | str]) -> onnxruntime.InferenceSession:
        """input_shape: count, 1, height, three times the width."""
        graph = helper.make_graph(
            self.nodes,
            "mtcnn",
            [helper.make_tensor_value_info(_INPUT, TensorProto.FLOAT, input_shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            self.constants,
        )
        return _session(graph)


def _session(graph: onnx.GraphProto) -> onnxruntime.InferenceSession:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    options = onnxruntime.SessionOptions()
    # Parallelism is one process per core, so each process keeps to its own.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Memory patterns are kept per input shape, and photos have all shapes.
    options.enable_mem_pattern = False
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _difference(kernel: Array, bias: Array) -> tuple[Array, Array]:
    """One output, logit of face minus logit of no face, in place of the two."""
    return kernel[..., 1:] - kernel[..., :1], bias[1:] - bias[:1]


def _pnet(weights: list[Array]) -> onnxruntime.InferenceSession:
    k1, b1, a1, k2, b2, a2, k3, b3, a3, k_box, b_box, k_face, b_face = weights
    graph = _Graph()
    x = _pooled_prelu(graph, k1, b1, a1.ravel())
    # _pooled_prelu negates the channels of slopes above 1: so does this kernel.
    x = graph.conv_prelu(x, k2 * np.where(a1.ravel() > 1, -1.0, 1.0)[:, None], b2, a2)
    k_face, b_face = _difference(k_face, b_face)
    heads, biases = np.concatenate([k_box, k_face], axis=-1), np.concatenate([b_box, b_face])
    # The last PReLU as in conv_prelu, but the heads take its two parts, each for itself, and add up only five channels.
    a = a3.ravel()
    z = graph.conv(x, k3 * (1 - a), b3 * (1 - a))
    linear = graph.conv(z, heads * (a / (1 - a))[:, None], biases)
    return graph.session(graph.add("Add", linear, graph.conv(graph.add("Relu", z), heads)), [1, 1, "height", "values"])


def _pooled_prelu(graph: _Graph, kernel: Array, bias: Array, slopes: Array) -> str:
    """P-Net's first layer, convolution, PReLU and 2x2 max pooling, with the pooling done before the PReLU.

    PReLU then works on a quarter of the cells. For a slope a >= 0 the order does not matter. For a < 0, PReLU is
    max(y, a*y), so its maximum over the window is the larger of two, of y and of a*y: the six negative slopes add
    six channels, 10 + 6 = 16, just what a vector register holds. Both kinds end as linear(m) + relu(linear(m)); for the
    slope above 1 that gives the negated channel.
    """
    channels = slopes.size
    negative = np.flatnonzero(slopes < 0)
    kernel = np.concatenate([kernel, kernel[..., negative] * slopes[negative]], axis=-1)
    bias = np.concatenate([bias, bias[negative] * slopes[negative]])
    pooled = graph.add("MaxPool", graph.conv_on_pixels(kernel, bias), kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    inside, outside = np.zeros((2, bias.size, channels))  # each (in, out)
    for channel in np.flatnonzero(slopes >= 0):
        sign = -1.0 if slopes[channel] > 1 else 1.0
        inside[channel, channel] = sign * (1 - slopes[channel])
        outside[channel, channel] = sign * slopes[channel]
    for extra, channel in enumerate(negative, start=channels):
        # max(m, n) is n + relu(m - n).
        inside[channel, channel], inside[extra, channel] = 1.0, -1.0
        outside[extra, channel] = 1.0
    return graph.add(
        "Add", graph.conv(pooled, outside[None, None]), graph.add("Relu", graph.conv(pooled, inside[None, None]))
    )


def _flat(kernel: Array, side: int) -> Array:
    """Rows of a dense kernel reordered from Keras' (width, height, channel) to ONNX's (channel, height, width)."""
    channels = kernel.shape[0] // side**2
    return kernel.reshape(side, side, channels, -1).transpose(2, 1, 0, 3).reshape(kernel.shape)


def _first_layer(graph: _Graph, kernel: Array, bias: Array, slopes: Array, following: Array) -> tuple[str, Array]:
    """R-Net's and O-Net's first convolution, PReLU and 3x3 max pooling, and the next kernel for the output's channels.

    A PReLU with a slope of 0 and more rises, so it may follow the pooling, where it has a quarter of the work. ONNX
    Runtime works on blocks of 16 channels: those with the largest slopes come first, as many whole blocks as have no
    negative one, the rest is pooled last. R-Net's 28 channels are filled up to 32, or it would leave its blocks.
    """
    pool = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]}
    spare = -bias.size % 16
    kernel, bias = np.pad(kernel, [(0, 0)] * 3 + [(0, spare)]), np.pad(bias, (0, spare))
    slopes = np.pad(slopes.ravel(), (0, spare))
    order = np.argsort(-slopes, kind="stable")
    first = order[: np.count_nonzero(slopes >= 0) // 16 * 16]
    rest = order[first.size :]
    late = graph.add("MaxPool", graph.conv_on_pixels(kernel[..., first], bias[first]), **pool)
    # For a slope a > 1 this gives the negated channel, as a*m + (1-a)*relu(m) is -(relu((a-1)*m) - a*m).
    sign = np.where(slopes > 1, -1.0, 1.0)
    inside = graph.per_channel(late, (sign * (1 - slopes))[first])
    late = graph.add("Add", graph.per_channel(late, (sign * slopes)[first]), graph.add("Relu", inside))
    a = slopes[rest]
    z = graph.conv_on_pixels(kernel[..., rest] * (1 - a), bias[rest] * (1 - a))
    early = graph.add("MaxPool", graph.prelu_of_scaled(z, a), **pool)
    following = np.pad(following, [(0, 0)] * 2 + [(0, spare), (0, 0)]) * sign[:, None]
    return graph.add("Concat", late, early, axis=1), following[:, :, order]


def _rnet(weights: list[Array]) -> onnxruntime.InferenceSession:
    k1, b1, a1, k2, b2, a2, k3, b3, a3, k4, b4, a4, k_box, b_box, k_face, b_face = weights
    graph = _Graph()
    x, k2 = _first_layer(graph, k1, b1, a1, k2)
    x = graph.conv_prelu(x, k2, b2, a2)
    x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2])
    x = graph.conv_prelu(x, k3, b3, a3)
    x = graph.add("PRelu", graph.dense(graph.add("Flatten", x), _flat(k4, 3), b4), graph.constant(a4))
    k_face, b_face = _difference(k_face, b_face)
    x = graph.dense(x, np.concatenate([k_box, k_face], axis=-1), np.concatenate([b_box, b_face]))
    return graph.session(x, ["faces", 1, 24, 3 * 24])


def _onet(weights: list[Array]) -> onnxruntime.InferenceSession:
    k1, b1, a1, k2, b2, a2, k3, b3, a3, k4, b4, a4, k5, b5, a5, k_box, b_box, k_points, b_points, k_face, b_face = (
        weights
    )
    graph = _Graph()
    x, k2 = _first_layer(graph, k1, b1, a1, k2)
    x = graph.conv_prelu(x, k2, b2, a2)
    x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2])
    x = graph.conv_prelu(x, k3, b3, a3)
    x = graph.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = graph.conv_prelu(x, k4, b4, a4)
    x = graph.add("PRelu", graph.dense(graph.add("Flatten", x), _flat(k5, 3), b5), graph.constant(a5))
    k_face, b_face = _difference(k_face, b_face)
    kernel = np.concatenate([k_box, k_points, k_face], axis=-1)
    x = graph.dense(x, kernel, np.concatenate([b_box, b_points, b_face]))
    return graph.session(x, ["faces", 1, 48, 3 * 48])


def _row_mixer() -> onnxruntime.InferenceSession:
    """weights (m, r) @ uint8 rows (r, n): a matrix product on one thread, which numpy does not promise."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["rows"], ["x"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["weights", "x"], ["y"]),
        ],
        "rows",
        [
            helper.make_tensor_value_info("rows", TensorProto.UINT8, ["r", "n"]),
            helper.make_tensor_value_info("weights", TensorProto.FLOAT, ["m", "r"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", "n"])],
    )
    return _session(graph)


class Networks:
    """The three networks and the row mixer, loaded. Pixels are float32 RGB from 0 to 255, channels last."""

    def __init__(self) -> None:
        folder = weights_folder()
        self._pnet = _pnet(read_weights(folder, "pnet.lz4"))
        self._rnet = _rnet(read_weights(folder, "rnet.lz4"))
        self._onet = _onet(read_weights(folder, "onet.lz4"))
        self._rows = _row_mixer()

    def propose(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """P-Net: (height, width, 3) to (5, rows, columns) of cells: four box offsets and the logit of a face."""
        return _run(self._pnet, pixels[None])[0]

    def refine(self, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        """R-Net: (n, 24, 24, 3) to (n, 5): four box offsets and the logit of a face."""
        return _run(self._rnet, patches)

    def decide(self, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        """O-Net: (n, 48, 48, 3) to (n, 15): four box offsets, five x and five y of landmarks, the logit of a face."""
        return _run(self._onet, patches)

    def mix_rows(self, weights: NDArray[np.float32], rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        """weights (m, r) times rows (r, n)."""
        return self._rows.run(None, {"weights": weights, "rows": rows})[0]


def _run(network: onnxruntime.InferenceSession, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    count, height, width, channels = pixels.shape
    return network.run(None, {_INPUT: pixels.reshape(count, 1, height, width * channels)})[0]


@functools.cache
def networks() -> Networks:
    """The networks of this process, loaded once."""
    return Networks()

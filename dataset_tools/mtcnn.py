"""Faces by MTCNN: an upright RGB array in, faces with five landmarks out, the same that the `mtcnn` package finds.

Three networks in a row: P-Net proposes boxes on a pyramid of shrunken images, R-Net refines them, O-Net decides and
places the landmarks. At 20 px the numbers follow `mtcnn` 1.0.0 given one photo at a time, to the last float: scores
saturate near 1 and a small change of pixels lets another of several near-tied boxes win. The arrangement is our own, so
that time and memory stay near the floor: no full-size float copy, and strips that stay in the processor's cache.
"""

import math
from collections.abc import Callable, Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from dataset_tools.detection import Detector, Face, RgbImage
from dataset_tools.mtcnn_networks import Networks, networks
from dataset_tools.mtcnn_pyramid import OVERLAP_PX, Pixels, pyramid_strips
from dataset_tools.nms import best_first, survivors

SMALLEST_FACE_PX = 20
_CELL_PX, _STRIDE_PX = 12, 2
_SCALE_STEP = 0.709
_PROPOSE_MIN, _PROPOSE_MIN_FAST, _REFINE_MIN, _DECIDE_MIN = 0.6, 0.7, 0.7, 0.8
_TILE_PX = 320
_BATCH = 32
_REMAP_MAX_PX = 32_766


def load_mtcnn(*, min_face_px: int = 40, min_score: float | None = None) -> Detector:
    """Load the networks and return the detector, for one process and one thread.

    min_face_px: 20 finds the faces that `mtcnn` finds. Larger values stay on its lattice of scales and leave out the
    first, most costly levels: 28 leaves out one, 40 two. From 40 on, proposals come from a photo of half the size
    (80: a quarter, ...) and need a P-Net score of 0.7 instead of 0.6; R-Net and O-Net still look at the photo itself.
    min_score: O-Net's, 0.8 when None, as in `mtcnn`.

    The detector takes an image of any size, raises ValueError unless it is RGB uint8, and returns the best score first.
    Boxes are whole pixels, rounded as `mtcnn` does; landmarks are not rounded, and may lie outside of the image.

    Raises ValueError when min_face_px is below 20, or for a weight file that is not the one of mtcnn 1.0.0;
    ModuleNotFoundError when `mtcnn` is not installed.
    """
    dropped = dropped_levels(min_face_px)
    decide_min = _DECIDE_MIN if min_score is None else min_score
    # Two levels are a factor of two, so the first level is never larger than 0.61 of the shrunk photo.
    shrink = 2 ** (dropped // 2)
    propose_min = _PROPOSE_MIN if shrink == 1 else _PROPOSE_MIN_FAST
    nets = networks()
    cv2.setNumThreads(1)

    def detect(image: RgbImage) -> list[Face]:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"expected an RGB image (height, width, 3) of uint8, not {image.shape} of {image.dtype}")
        image = np.ascontiguousarray(image)  # a copy once, where OpenCV would make one in every call
        boxes = _proposals(nets, image, scales(image.shape[1], image.shape[0])[dropped:], shrink, propose_min)
        boxes = _refined(nets, image, boxes)
        return _decided(nets, image, boxes, decide_min)

    return detect


def dropped_levels(min_face_px: int) -> int:
    """How many levels of the lattice look only for faces smaller than min_face_px (to within 1 %)."""
    if min_face_px < SMALLEST_FACE_PX:
        raise ValueError(
            f"min_face_px is {min_face_px}: MTCNN finds no face below {SMALLEST_FACE_PX} px, use that or more"
        )
    return math.floor(math.log(min_face_px * 1.01 / SMALLEST_FACE_PX) / -math.log(_SCALE_STEP))


def scales(width: int, height: int) -> list[float]:
    """The scales of the full pyramid, 0.6 * 0.709**k, down to a level with a shorter side of about 12 px."""
    count = round(math.log(min(width, height) / _CELL_PX) / -math.log(_SCALE_STEP) - 1)
    return [_CELL_PX / SMALLEST_FACE_PX * _SCALE_STEP**level for level in range(count)]


def _proposals(
    nets: Networks, image: RgbImage, levels: list[float], shrink: int, min_score: float
) -> NDArray[np.float64]:
    """P-Net over the pyramid: (n, 5) squares x1, y1, x2, y2 in pixels of the image and score, best first."""
    if not levels:
        return np.empty((0, 5))
    found: list[list[NDArray[np.float64]]] = [[np.empty((7, 0))] for _ in levels]
    logit_min = math.log(min_score / (1 - min_score)) - 1e-3
    for level, top, strip in pyramid_strips(nets.mix_rows, _shrunk(image, shrink), [s * shrink for s in levels]):
        found[level].extend(_strip_cells(nets, strip, top, logit_min))
    kept = []
    for scale, pieces in zip(levels, found, strict=True):
        boxes = _cell_boxes(np.concatenate(pieces, axis=1), scale)
        boxes = boxes[boxes[:, 4] > min_score]
        kept.append(boxes[survivors(boxes[:, :4], 0.5)])
    boxes = np.concatenate(kept)
    boxes = boxes[best_first(boxes[:, 4])]
    return _squared(boxes[survivors(boxes[:, :4], 0.7)])


def _shrunk(image: RgbImage, factor: int) -> RgbImage:
    """The image at 1/factor of its size, without the last rows and columns that do not fill a pixel."""
    if factor == 1:
        return image
    height, width = image.shape[0] // factor, image.shape[1] // factor
    whole = image[: height * factor, : width * factor]
    return cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def _strip_cells(nets: Networks, strip: Pixels, top: int, logit_min: float) -> Iterator[NDArray[np.float64]]:
    """(7, n) of P-Net's cells that may hold a face: four box offsets, logit, and the cell's place x, y in the level."""
    steps = strip.shape[1] - OVERLAP_PX
    step = math.ceil(steps / math.ceil(steps / _TILE_PX) / _STRIDE_PX) * _STRIDE_PX
    for left in range(0, steps, step):
        cells = nets.propose(strip[:, left : left + step + OVERLAP_PX])
        rows, columns = np.nonzero(cells[4] > logit_min)
        if len(rows):
            place = columns * _STRIDE_PX + left, rows * _STRIDE_PX + top
            yield np.concatenate([cells[:, rows, columns], place])


def _cell_boxes(cells: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
    """(n, 5) of a level's cells, best first: x1, y1, x2, y2 in pixels of the image, and the score."""
    scores = _probability(cells[4].astype(np.float32))
    # Where a level was cut must not decide between equal scores: from the last cell to the first, column by column.
    order = np.lexsort((-cells[6], -cells[5], -scores))
    place = cells[5:, order].T
    # P-Net's window is [2i + 1, 2i + 12], regressed with a width of 11.
    boxes = np.concatenate([place + 1, place + _CELL_PX], axis=1) + cells[:4, order].T * (_CELL_PX - 1)
    return np.concatenate([boxes / scale, scores[order, None]], axis=1)


def _refined(nets: Networks, image: RgbImage, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    outputs = _run(nets.refine, image, boxes, 24, 5)
    boxes = _adjusted(boxes, outputs)
    boxes = boxes[boxes[:, 4] > _REFINE_MIN]
    boxes = boxes[best_first(boxes[:, 4])]
    return _squared(boxes[survivors(boxes[:, :4], 0.7)])


def _decided(nets: Networks, image: RgbImage, boxes: NDArray[np.float64], min_score: float) -> list[Face]:
    outputs = _run(nets.decide, image, boxes, 48, 15)
    corner, size = boxes[:, None, :2], (boxes[:, 2:4] - boxes[:, :2])[:, None, :] + 1
    points = outputs[:, 4:14].reshape(-1, 2, 5).transpose(0, 2, 1) * size + corner - 1
    boxes = _adjusted(boxes, outputs)
    order = best_first(boxes[:, 4])
    order = order[boxes[order, 4] > min_score]
    order = order[survivors(boxes[order, :4], 0.7, of_smaller=True)]
    height, width = image.shape[:2]
    faces = []
    for box, landmarks in zip(boxes[order], points[order], strict=True):
        clipped = np.clip(box[:4], 0, [width - 1, height - 1, width - 1, height - 1])
        # mtcnn rounds the corner and the size, each for itself.
        x, y = clipped[:2].round()
        w, h = (clipped[2:] - clipped[:2]).round()
        if w > 0 and h > 0:
            whole = (float(x), float(y), float(x + w), float(y + h))
            faces.append(Face(whole, tuple((float(px), float(py)) for px, py in landmarks), float(box[4])))
    return sorted(faces, key=lambda face: (-face.score, face.box, face.landmarks))


def _run(
    network: Callable[[Pixels], Pixels], image: RgbImage, boxes: NDArray[np.float64], side: int, outputs: int
) -> NDArray[np.float64]:
    return np.concatenate([np.empty((0, outputs)), *map(network, patches(image, boxes, side))])


def patches(image: RgbImage, boxes: NDArray[np.float64], side: int) -> Iterator[Pixels]:
    """Crops of the boxes, up to 32 at a time: (n, side, side, 3) float32 in 0 to 255; grey outside of the image.

    They are sampled bilinearly. The corners are scaled by (size - 1) / size, and all in float32: so `mtcnn` does
    through crop_and_resize.
    """
    height, width = image.shape[:2]
    y, down, row_inside = _samples(boxes[:, 1], boxes[:, 3], height, side)
    x, across, column_inside = _samples(boxes[:, 0], boxes[:, 2], width, side)
    across = np.repeat(across, 3, axis=1)
    for i in range(0, len(boxes), _BATCH):
        batch = slice(i, i + _BATCH)
        neighbours = _gathered(image, y[:, None, batch, :, None], x[None, :, batch, None, :])
        pixels = neighbours.reshape(2, 2, -1, side, side * 3).astype(np.float32)
        # Each step works on whole rows of side * 3 values in place: numpy is slow on short inner axes.
        left, right = pixels[:, 0], pixels[:, 1]
        right -= left
        right *= across[batch, None, :]
        left += right
        upper, lower = left
        lower -= upper
        lower *= down[batch, :, None]
        upper += lower
        values = upper.reshape(-1, side, side, 3)
        if not (row_inside[batch].all() and column_inside[batch].all()):
            values[~(row_inside[batch, :, None] & column_inside[batch, None, :])] = 127.5
        yield values


def _gathered(image: RgbImage, y: NDArray[np.int32], x: NDArray[np.int32]) -> RgbImage:
    """image[y, x], several times as fast: all samples in one call of OpenCV."""
    if max(image.shape) > _REMAP_MAX_PX:
        return image[y, x]
    # Each int32 is two int16, x in the lower half: the kind of map that remap takes without conversion.
    where = ((y << 16) + x).view(np.int16).reshape(-1, y.shape[-2], 2)
    return cv2.remap(image, where, np.empty(0), cv2.INTER_NEAREST).astype(np.uint8, copy=False)


def _samples(
    low: NDArray[np.float64], high: NDArray[np.float64], size: int, side: int
) -> tuple[NDArray[np.int32], Pixels, NDArray[np.bool_]]:
    """The samples of an axis: the pixels before and after, (2, n, side); the latter's share; is it in the image."""
    start, stop = (low / size).astype(np.float32), (high / size).astype(np.float32)
    span = np.float32(size - 1)
    step = (stop - start) * span / np.float32(side - 1)
    at = start[:, None] * span + np.arange(side, dtype=np.float32) * step[:, None]
    inside = (at >= 0) & (at <= span)
    at = np.clip(at, 0, span)
    before = np.floor(at)
    return np.stack([before, np.ceil(at)]).astype(np.int32), at - before, inside


def _adjusted(boxes: NDArray[np.float64], outputs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Boxes moved by the four offsets, in units of the box's size + 1, and the new score."""
    size = boxes[:, 2:4] - boxes[:, :2] + 1
    moved = boxes[:, :4] + outputs[:, :4] * np.tile(size, 2)
    return np.concatenate([moved, _probability(outputs[:, -1:].astype(np.float32))], axis=1)


def _squared(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Boxes grown to squares about their centres."""
    size = boxes[:, 2:4] - boxes[:, :2]
    side = size.max(axis=1, keepdims=True, initial=0)
    corner = boxes[:, :2] + size * 0.5 - side * 0.5
    return np.concatenate([corner, corner + side, boxes[:, 4:]], axis=1)


def _probability(logits: Pixels) -> NDArray[np.float64]:
    """In float32, like the softmax it replaces: where that saturates at 1 the order of boxes depends on it."""
    return (1 / (1 + np.exp(np.minimum(-logits, 80)))).astype(np.float64)

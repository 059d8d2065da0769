"""The MTCNN detector: its parts by exact values, the whole against the `mtcnn` package."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from dataset_tools import mtcnn_networks
from dataset_tools.mtcnn import dropped_levels, load_mtcnn, patches, scales
from dataset_tools.mtcnn_pyramid import pyramid_strips
from dataset_tools.nms import best_first, survivors


@pytest.fixture(scope="module")
def astronaut():
    data = pytest.importorskip("skimage.data")
    return data.astronaut()


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


# Suppression


def test_a_dead_box_still_kills():
    # Each overlaps its neighbour by 6/14 of their union; greedy suppression would keep the third.
    chain = np.array([[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]], dtype=float)
    assert survivors(chain, 0.4).tolist() == [0]
    assert survivors(chain, 0.5).tolist() == [0, 1, 2]


def test_overlap_can_be_a_share_of_the_smaller_box():
    nested = np.array([[0, 0, 10, 10], [0, 0, 4, 4]], dtype=float)
    assert survivors(nested, 0.5).tolist() == [0, 1]
    assert survivors(nested, 0.5, of_smaller=True).tolist() == [0]


def test_suppression_in_blocks_equals_all_pairs_at_once():
    random = np.random.default_rng(0)
    corner = random.random((700, 2)) * 200
    boxes = np.concatenate([corner, corner + 10 + random.random((700, 2)) * 30], axis=1)
    expected = [i for i, box in enumerate(boxes) if all(iou(box, earlier) <= 0.5 for earlier in boxes[:i])]
    assert survivors(boxes, 0.5).tolist() == expected
    assert 100 < len(expected) < 600


def test_suppression_of_nothing_is_nothing():
    assert survivors(np.empty((0, 4)), 0.5).tolist() == []


def test_among_equal_scores_the_later_box_comes_first():
    assert best_first(np.array([0.5, 0.9, 0.5])).tolist() == [1, 2, 0]


# The lattice of scales


def test_the_pyramid_starts_at_0_6_and_shrinks_by_0_709_down_to_12_px():
    assert scales(60, 100) == pytest.approx([0.6, 0.4254, 0.3016086, 0.2138405], abs=1e-7)
    assert int(60 * scales(60, 100)[-1]) == 12


@pytest.mark.parametrize(
    ("min_face_px", "dropped"), [(20, 0), (27, 0), (28, 1), (39, 1), (40, 2), (56, 3), (78, 3), (80, 4)]
)
def test_a_larger_smallest_face_drops_the_first_levels(min_face_px, dropped):
    assert dropped_levels(min_face_px) == dropped


def test_a_smallest_face_below_20_px_is_refused():
    with pytest.raises(ValueError, match="min_face_px is 19"):
        load_mtcnn(min_face_px=19)


# The pyramid


def areas(image, height, width):
    """Area averages by definition: one axis after the other, each with its full matrix."""

    def matrix(full, size):
        edges = np.arange(size + 1) * full / size
        low, high = edges[:-1, None], edges[1:, None]
        pixel = np.arange(full)
        return np.clip(np.minimum(high, pixel + 1) - np.maximum(low, pixel), 0, None) * size / full

    rows = np.tensordot(matrix(image.shape[0], height), image.astype(float), axes=1)
    return np.tensordot(rows, matrix(image.shape[1], width), axes=(1, 1)).transpose(0, 2, 1)


@pytest.mark.parametrize(("height", "width"), [(371, 250), (96, 33), (33, 96), (512, 100), (200, 20), (1210, 603)])
def test_strips_put_together_are_the_area_averages_of_all_levels(height, width):
    image = noise(height, width)
    wanted = [s for s in (0.9, 0.6, 0.4254, 0.1, 0.02) if min(height, width) * s >= 11]
    levels = [np.full((int(height * s), int(width * s), 3), np.nan) for s in wanted]
    for level, top, strip in pyramid_strips(mtcnn_networks.networks().mix_rows, image, wanted):
        assert top % 2 == 0
        levels[level][top : top + len(strip)] = strip
    for pixels in levels:
        assert pixels == pytest.approx(areas(image, *pixels.shape[:2]), abs=1e-3)


@pytest.mark.parametrize("rows", [182, 183, 187, 106, 107])
def test_cells_of_strips_are_the_cells_of_the_whole_level(rows):
    # A level of 107 rows leaves 11 for its second strip: one more cell, thanks to the half-filled pooling window.
    networks = mtcnn_networks.networks()
    image = noise(rows, 90)
    strips = [(top, strip.copy()) for _, top, strip in pyramid_strips(networks.mix_rows, image, [1.0])]
    cells = np.concatenate([networks.propose(strip) for _, strip in strips], axis=1)
    assert len(strips) > 1
    assert cells == pytest.approx(networks.propose(image.astype(np.float32)), abs=1e-5)


# The networks


def prelu(x, slopes):
    return np.where(x > 0, x, x * slopes.ravel())


def conv(x, kernel, bias):
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(0, 1))
    return np.einsum("yxchw,hwco->yxo", windows, kernel) + bias


def pool(x, size, stride):
    height, width = (-(-(n - size) // stride) for n in x.shape[:2])
    x = np.pad(x, [(0, size), (0, size), (0, 0)], constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(0, 1)).max((-1, -2))
    return windows[: height * stride + 1 : stride, : width * stride + 1 : stride]


def read(name):
    return mtcnn_networks.read_weights(mtcnn_networks.weights_folder(), name)


def test_pnet_as_rewritten_equals_its_layers():
    k1, b1, a1, k2, b2, a2, k3, b3, a3, k_box, b_box, k_face, b_face = read("pnet.lz4")
    image = noise(31, 44).astype(np.float32)
    x = pool(prelu(conv((image.astype(float) - 127.5) / 128, k1, b1), a1), 2, 2)
    x = prelu(conv(prelu(conv(x, k2, b2), a2), k3, b3), a3)
    cells = mtcnn_networks.networks().propose(image)
    assert cells[:4] == pytest.approx(np.moveaxis(conv(x, k_box, b_box), -1, 0), abs=1e-4)
    assert cells[4] == pytest.approx(np.diff(conv(x, k_face, b_face))[..., 0], abs=1e-4)


def test_rnet_as_rewritten_equals_its_layers():
    k1, b1, a1, k2, b2, a2, k3, b3, a3, k4, b4, a4, k_box, b_box, k_face, b_face = read("rnet.lz4")
    patch = noise(24, 24).astype(np.float32)
    x = pool(prelu(conv((patch.astype(float) - 127.5) / 128, k1, b1), a1), 3, 2)
    x = pool(prelu(conv(x, k2, b2), a2), 3, 2)
    x = prelu(conv(x, k3, b3), a3).transpose(1, 0, 2).ravel()
    x = prelu(x @ k4 + b4, a4)
    output = mtcnn_networks.networks().refine(patch[None])[0]
    assert output[:4] == pytest.approx(x @ k_box + b_box, abs=1e-4)
    assert output[4] == pytest.approx(np.diff(x @ k_face + b_face)[0], abs=1e-4)


def test_onet_as_rewritten_equals_its_layers():
    k1, b1, a1, k2, b2, a2, k3, b3, a3, k4, b4, a4, k5, b5, a5, *heads = read("onet.lz4")
    k_box, b_box, k_points, b_points, k_face, b_face = heads
    patch = noise(48, 48).astype(np.float32)
    x = pool(prelu(conv((patch.astype(float) - 127.5) / 128, k1, b1), a1), 3, 2)
    x = pool(prelu(conv(x, k2, b2), a2), 3, 2)
    x = pool(prelu(conv(x, k3, b3), a3), 2, 2)
    x = prelu(conv(x, k4, b4), a4).transpose(1, 0, 2).ravel()
    x = prelu(x @ k5 + b5, a5)
    output = mtcnn_networks.networks().decide(patch[None])[0]
    assert output[:4] == pytest.approx(x @ k_box + b_box, abs=1e-4)
    assert output[4:14] == pytest.approx(x @ k_points + b_points, abs=1e-4)
    assert output[14] == pytest.approx(np.diff(x @ k_face + b_face)[0], abs=1e-4)


def test_other_weights_are_refused_before_they_are_unpickled(tmp_path):
    (tmp_path / "pnet.lz4").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"sha256 .* install mtcnn==1\.0\.0"):
        mtcnn_networks.read_weights(tmp_path, "pnet.lz4")


def test_loading_imports_neither_tensorflow_nor_mtcnn():
    code = (
        "import sys; from dataset_tools.mtcnn import load_mtcnn; load_mtcnn();"
        "sys.exit(bool({'tensorflow', 'keras', 'mtcnn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Patches


def test_patches_are_sampled_at_corners_scaled_by_size_minus_one():
    # Values rise by 1 a pixel, so a sample's value is its position: 0 to 23 of 24 px, times 23/24.
    image = np.repeat(np.arange(24, dtype=np.uint8)[None, :, None], 24, axis=0).repeat(3, axis=2)
    ((patch,),) = patches(image, np.array([[0.0, 0, 24, 24]]), 24)
    assert patch[5, :, 1] == pytest.approx(np.arange(24), abs=1e-5)
    ((patch,),) = patches(image, np.array([[0.0, 0, 12, 12]]), 24)
    assert patch[5, :, 1] == pytest.approx(np.arange(24) * 0.5, abs=1e-5)


def test_patches_are_grey_outside_of_the_image():
    ((patch,),) = patches(np.full((48, 48, 3), 200, np.uint8), np.array([[-24.0, 0, 24, 48]]), 24)
    assert np.unique(patch[:, :12]).tolist() == [127.5]
    assert np.unique(patch[:, 12:]).tolist() == [200.0]


def test_images_beyond_opencv_s_size_are_sampled_all_the_same():
    small = noise(30, 40)
    long = np.concatenate([small, np.zeros((30, 32_800 - 40, 3), np.uint8)], axis=1)
    # Equal up to the change of (width - 1) / width, which stretches the grid by 2 %.
    box = np.array([[4.0, 4, 16, 16]])
    squeezed = box * [32_800 / 32_799 * 39 / 40, 1, 32_800 / 32_799 * 39 / 40, 1]
    assert next(patches(long, squeezed, 24)) == pytest.approx(next(patches(small, box, 24)), abs=2)


# The whole


def test_the_astronaut_has_one_face_at_its_known_place(astronaut):
    for min_face_px in (20, 28, 40):
        (face,) = load_mtcnn(min_face_px=min_face_px)(astronaut)
        assert face.box == (182.0, 64.0, 265.0, 171.0)
        assert face.score == pytest.approx(0.999, abs=1e-3)
        assert face.landmarks[2] == pytest.approx((224.3, 126.5), abs=0.2)
        left_eye, right_eye, nose, left_mouth, right_mouth = face.landmarks
        assert left_eye[0] < nose[0] < right_eye[0]
        assert left_mouth[0] < right_mouth[0]
        assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])


def test_faces_are_python_floats_best_first_and_the_same_after_any_other_image(astronaut):
    detect = load_mtcnn(min_face_px=40)
    group = np.concatenate([astronaut, astronaut[:, ::-1], cv2.GaussianBlur(astronaut, (0, 0), 3)], axis=1)
    first = detect(group)
    for size in ((37, 300), (500, 41), (700, 701)):
        detect(noise(*size))
    detect(astronaut)
    assert detect(group) == first
    assert len(first) == 3
    assert [face.score for face in first] == sorted((face.score for face in first), reverse=True)
    values = {
        type(v) for face in first for v in (*face.box, face.score, *(p for point in face.landmarks for p in point))
    }
    assert values == {float}
    assert all(value == round(value) for face in first for value in face.box)


def test_a_view_that_is_not_contiguous_gives_the_faces_of_its_copy(astronaut):
    detect = load_mtcnn()
    assert detect(astronaut[:, ::-1]) == detect(astronaut[:, ::-1].copy()) != []


def test_boxes_stay_within_the_image(astronaut):
    for face in load_mtcnn(min_score=0.5)(astronaut[80:, 190:]):
        assert min(face.box) >= 0
        assert face.box[2] <= 512 - 190 - 1
        assert face.box[3] <= 512 - 80 - 1


def test_a_higher_score_leaves_out_faces_and_changes_no_other(astronaut):
    faces = load_mtcnn(min_score=0.0)(astronaut)
    assert load_mtcnn()(astronaut) == [face for face in faces if face.score > 0.8]
    assert load_mtcnn(min_score=0.9999999)(astronaut) == []


@pytest.mark.parametrize("min_face_px", [20, 40, 80, 1000])
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (11, 11), (20, 20), (23, 24), (25, 61), (81, 39)])
def test_tiny_images_have_no_faces(size, min_face_px):
    assert load_mtcnn(min_face_px=min_face_px)(noise(*size)) == []


@pytest.mark.parametrize(
    "image", [np.zeros((50, 50), np.uint8), np.zeros((50, 50, 4), np.uint8), np.zeros((50, 50, 3), np.float32)]
)
def test_what_is_not_rgb_is_refused(image):
    with pytest.raises(ValueError, match="expected an RGB image"):
        load_mtcnn()(image)


# Against the package


def photos(most=8, max_mp=1.5):
    """Small photos of the project's data, where there are any: (name, RGB array)."""
    folder = Path(os.environ.get("FACEMILL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    archives = sorted(folder.rglob("photos.tar")) if folder.is_dir() else []
    if not archives:
        pytest.skip(f"no photos.tar below {folder}; name its folder in FACEMILL_DATA")
    found = []
    with tarfile.open(archives[0]) as archive:
        for member in sorted(archive.getmembers(), key=lambda m: m.name):
            if len(found) == most or not member.name.endswith(".jpg"):
                continue
            image = cv2.imdecode(np.frombuffer(archive.extractfile(member).read(), np.uint8), cv2.IMREAD_COLOR_RGB)
            if image is not None and image.shape[0] * image.shape[1] <= max_mp * 1e6:
                found.append((member.name, image))
    return found


def reference_faces(reference, image):
    faces = reference.detect_faces(image)
    return [(x, y, x + w, y + h) for x, y, w, h in (face["box"] for face in faces)]


@pytest.fixture(scope="module")
def reference():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    pytest.importorskip("tensorflow")
    from mtcnn import MTCNN

    return MTCNN()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_astronaut_s_face_is_that_of_mtcnn(reference, astronaut):
    (face,) = reference.detect_faces(astronaut)
    (own,) = load_mtcnn(min_face_px=20)(astronaut)
    x, y, w, h = face["box"]
    assert own.box == (x, y, x + w, y + h)
    assert own.score == pytest.approx(face["confidence"], abs=1e-5)
    names = ["left_eye", "right_eye", "nose", "mouth_left", "mouth_right"]
    for point, name in zip(own.landmarks, names, strict=True):
        assert point == pytest.approx(face["keypoints"][name], abs=0.51)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_faces_are_those_of_mtcnn_photo_by_photo(reference):
    detect = load_mtcnn(min_face_px=20)
    same = total = 0
    for name, image in photos():
        expected, own = reference_faces(reference, image), [face.box for face in detect(image)]
        assert len(own) == len(expected), name
        total += len(expected)
        same += sum(any(iou(box, other) >= 0.9 for other in own) for box in expected)
    assert total > 20
    assert same >= 0.995 * total

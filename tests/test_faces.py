import cv2
import numpy as np
import pytest

from dataset_tools.crop import CropRecipe
from dataset_tools.detection import DetectorSettings, Face
from dataset_tools.encoding import encode
from dataset_tools.faces import Recipe, face_digest, process_image
from dataset_tools.quality import Screen
from schemas.outcomes import Failure, Reason, Status

POINTS = ((40.0, 40.0), (60.0, 40.0), (50.0, 50.0), (42.0, 60.0), (58.0, 60.0))
PICTURE = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8), (5, 5), 2)
PNG = encode(PICTURE, "png", 95)
RECIPE = Recipe(crop=CropRecipe(size_px=64))


def finds(*boxes):
    return lambda pixels: [Face(box, POINTS, 0.9) for box in boxes]


def test_an_image_with_a_face_gives_its_rows():
    result = process_image("k", PNG, finds((30.0, 30.0, 70.0, 75.0)), RECIPE)
    ledger = result.ledger
    assert (ledger.key, ledger.status, ledger.reason, ledger.faces) == ("k", Status.OK, None, 1)
    assert (ledger.bytes, ledger.format, ledger.width_px, ledger.height_px) == (len(PNG), "PNG", 160, 120)
    (face,) = result.faces
    assert face.bbox == (30.0, 30.0, 70.0, 75.0)
    assert (face.key, face.face_index, face.split, face.label) == ("k", 0, "train", None)
    assert (face.source_sha256, face.source_phash) == (ledger.sha256, ledger.phash)
    assert (face.crop_aligned, face.crop_size_px) == (True, 64)
    assert face.inter_eye_distance_px == 20
    crop = cv2.imdecode(np.frombuffer(face.image["bytes"], np.uint8), cv2.IMREAD_COLOR)
    assert crop.shape == (64, 64, 3)
    assert face.image["path"] == f"{ledger.sha256[:16]}-000.jpg"


def test_an_image_without_a_face_is_no_failure():
    result = process_image("k", PNG, finds(), RECIPE)
    assert (result.ledger.status, result.ledger.reason, result.faces) == (Status.NO_FACE, None, ())
    assert result.ledger.phash is not None


def test_faces_smaller_than_asked_for_are_not_written():
    result = process_image("k", PNG, finds((0, 0, 39, 39), (0, 0, 20, 40)), RECIPE)
    assert [face.bbox for face in result.faces] == [(0, 0, 20, 40)]
    assert Recipe().detector.min_face_px == 40


def test_a_face_held_back_is_counted():
    sharp = Recipe(screen=Screen(min_inter_eye_px=21))
    result = process_image("k", PNG, finds((30, 30, 70, 75), (20, 20, 80, 80)), sharp)
    assert (result.ledger.status, result.ledger.faces, result.ledger.faces_screened) == (Status.OK, 0, 2)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (Failure(Reason.UNREADABLE, "gone"), Reason.UNREADABLE),
        (b"", Reason.NOT_AN_IMAGE),
        (b"hello", Reason.NOT_AN_IMAGE),
        (PNG[: len(PNG) // 2], Reason.TRUNCATED),
    ],
)
def test_what_cannot_be_read_is_a_row_with_a_reason(data, reason):
    result = process_image("k", data, finds(), RECIPE)
    assert (result.ledger.status, result.ledger.reason, result.ledger.faces) == (Status.FAILED, reason, 0)
    assert result.image is None


def test_a_detector_that_raises_costs_one_image():
    def broken(pixels):
        raise MemoryError("secret path")

    ledger = process_image("k", PNG, broken, RECIPE).ledger
    assert (ledger.reason, ledger.detail) == (Reason.DETECTOR_CRASH, "the detector raised MemoryError")


def test_the_digest_knows_the_content_and_not_the_place():
    at = finds((30.0, 30.0, 70.0, 75.0))
    (here,), (there,) = process_image("a", PNG, at, RECIPE).faces, process_image("b", PNG, at, RECIPE).faces
    assert face_digest(here) == face_digest(there)
    (moved,) = process_image("a", PNG, finds((30.0, 30.0, 70.0, 76.0)), RECIPE).faces
    assert face_digest(moved) != face_digest(here)
    other = Recipe(crop=CropRecipe(size_px=65), detector=DetectorSettings())
    assert face_digest(process_image("a", PNG, at, other).faces[0]) != face_digest(here)

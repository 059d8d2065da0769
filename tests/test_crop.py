import cv2
import numpy as np
import pytest

from dataset_tools.crop import CropRecipe, crop_face
from dataset_tools.detection import Face

TEMPLATE_112 = [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def face(box, landmarks=((0.0, 0.0),) * 5):
    return Face(box, tuple(landmarks), 1.0)


def test_an_upright_crop_at_the_size_of_its_box_is_the_box():
    picture = noise(100, 120)
    crop, aligned = crop_face(picture, face((10, 20, 58, 68)), CropRecipe(aligned=False, margin=0, size_px=48))
    assert not aligned
    np.testing.assert_array_equal(crop, picture[20:68, 10:58])


def test_the_margin_is_added_on_each_side_of_the_longer_side():
    picture = noise(200, 200)
    crop, _ = crop_face(picture, face((80, 60, 100, 100)), CropRecipe(aligned=False, margin=0.5, size_px=80))
    np.testing.assert_array_equal(crop, picture[40:120, 50:130])


def test_a_shrunken_crop_is_the_mean_of_the_original_pixels():
    picture = noise(100, 120)
    crop, _ = crop_face(picture, face((10, 20, 74, 84)), CropRecipe(aligned=False, margin=0, size_px=32))
    mean = picture[20:84, 10:74].reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(crop - mean).max() <= 0.5


def test_a_very_large_face_is_the_mean_of_the_original_pixels():
    picture = noise(700, 720)
    crop, _ = crop_face(picture, face((20, 30, 596, 606)), CropRecipe(aligned=False, margin=0, size_px=32))
    mean = picture[30:606, 20:596].reshape(32, 18, 32, 18, 3).mean((1, 3))
    assert np.abs(crop - mean).max() <= 1


def test_a_crop_that_shrinks_a_little_is_as_sharp_as_the_average_over_the_area():
    """Each crop pixel spans one and a half: with closer samples the crop has 0.97 of the contrast."""
    picture = cv2.GaussianBlur(noise(136, 136), (0, 0), 1.0)
    crop, _ = crop_face(picture, face((20, 20, 116, 116)), CropRecipe(aligned=False, margin=0, size_px=64))
    mean = picture[20:116, 20:116].repeat(2, 0).repeat(2, 1).reshape(64, 3, 64, 3, 3).mean((1, 3))
    assert np.abs(crop - mean).mean() < 2
    assert crop.std() / mean.std() == pytest.approx(1.0, abs=0.02)


def test_a_crop_over_the_edge_reflects_the_picture():
    picture = noise(100, 100)
    crop, _ = crop_face(picture, face((-10, 30, 30, 70)), CropRecipe(aligned=False, margin=0, size_px=40))
    np.testing.assert_array_equal(crop[:, 10:], picture[30:70, 0:30])
    np.testing.assert_array_equal(crop[:, :10], picture[30:70, 1:11][:, ::-1])


def test_landmarks_that_stand_in_the_template_are_cut_without_change():
    picture = noise(300, 300)
    moved = [(x + 50, y + 60) for x, y in TEMPLATE_112]
    crop, aligned = crop_face(picture, face((0, 0, 9, 9), moved), CropRecipe(margin=0, size_px=112))
    assert aligned
    np.testing.assert_array_equal(crop, picture[60:172, 50:162])


def test_a_face_that_lies_on_its_side_is_turned_upright():
    picture = noise(300, 300)
    # The template turned a quarter: its x runs down the picture, its y to the left.
    turned = [(199 - y, 60 + x) for x, y in TEMPLATE_112]
    crop, _ = crop_face(picture, face((0, 0, 9, 9), turned), CropRecipe(margin=0, size_px=112))
    np.testing.assert_array_equal(crop, np.rot90(picture[60:172, 87:199]))


def test_landmarks_that_coincide_fall_back_to_the_box_and_say_so():
    picture = noise(100, 100)
    crop, aligned = crop_face(picture, face((10, 10, 58, 58), [(5, 5)] * 5), CropRecipe(margin=0, size_px=48))
    assert not aligned
    np.testing.assert_array_equal(crop, picture[10:58, 10:58])


def test_a_picture_wider_than_opencv_can_warp_is_cut():
    picture = np.zeros((60, 40_000, 3), np.uint8)
    picture[:, 39_900:39_940] = 200
    crop, _ = crop_face(picture, face((39_900, 10, 39_940, 50)), CropRecipe(aligned=False, margin=0, size_px=40))
    assert (crop == 200).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"margin": -0.1}, "margin must be from 0 to 2"),
        ({"size_px": 8}, "crop size must be from 16 to 2048"),
        ({"format": "bmp"}, "crop format must be one of"),
        ({"quality": 0}, "quality must be from 1 to 100"),
    ],
)
def test_values_that_make_no_sense_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        CropRecipe(**values)

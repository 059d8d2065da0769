import math

import numpy as np
import pytest

from dataset_tools.detection import Face
from dataset_tools.quality import Quality, Screen, measure


def face(left_eye, right_eye):
    return Face((0, 0, 1, 1), (left_eye, right_eye, (0, 0), (0, 0), (0, 0)), 1.0)


def test_a_flat_crop_has_no_sharpness_and_its_own_luminance():
    found = measure(np.full((224, 224, 3), 51, np.uint8), face((10, 20), (40, 60)))
    assert found.sharpness == 0
    assert found.luminance_mean == pytest.approx(0.2)


def test_distance_and_roll_follow_from_the_eyes():
    found = measure(np.zeros((112, 112, 3), np.uint8), face((10, 20), (40, 60)))
    assert found.inter_eye_distance_px == 50
    assert found.head_roll_deg == pytest.approx(math.degrees(math.atan2(40, 30)))
    assert measure(np.zeros((112, 112, 3), np.uint8), face((10, 20), (40, 20))).head_roll_deg == 0


def test_sharpness_is_the_variance_of_the_laplacian_at_112_px():
    crop = np.zeros((112, 112, 3), np.uint8)
    crop[:, ::2] = 255  # stripes of one pixel: the Laplacian is ±2·255 everywhere (edges are reflected)
    assert measure(crop, face((0, 0), (1, 0))).sharpness == pytest.approx((2 * 255) ** 2)


def test_crop_sizes_compare():
    small = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    large = small.repeat(2, axis=0).repeat(2, axis=1)
    eyes = face((0, 0), (1, 0))
    assert measure(large, eyes).sharpness == measure(small, eyes).sharpness


@pytest.mark.parametrize(
    ("screen", "passes"),
    [
        (Screen(), True),
        (Screen(min_sharpness=100), True),
        (Screen(min_sharpness=100.5), False),
        (Screen(min_luminance=0.6), False),
        (Screen(max_luminance=0.4), False),
        (Screen(min_inter_eye_px=31), False),
        (Screen(max_roll_deg=10), False),
        (Screen(max_roll_deg=12), True),
    ],
)
def test_a_screen_holds_back_what_misses_a_bound(screen, passes):
    assert screen.passes(Quality(100, 0.5, 30, -12)) is passes

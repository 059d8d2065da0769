import cv2
import numpy as np
import pytest

from dataset_tools.prepare import prepare
from schemas.model import ModelSpec, ModelSpecError

CROP = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)


def spec(**values):
    return ModelSpec(
        **{"architecture": "a", "input_px": 96, "colour": "rgb", "label_set": "fer2013"}
        | {"label_names": ("anger", "fear"), "crop": {}}
        | values
    )


def test_a_crop_of_the_right_size_is_taken_as_it_is():
    np.testing.assert_array_equal(prepare(CROP, spec()), CROP)


def test_grey_has_one_channel():
    found = prepare(CROP, spec(colour="grey"))
    assert (found.shape, found.dtype) == ((96, 96, 1), np.uint8)
    np.testing.assert_array_equal(found[..., 0], cv2.cvtColor(CROP, cv2.COLOR_RGB2GRAY))


def test_shrinking_takes_the_mean_of_the_area():
    found = prepare(CROP, spec(input_px=48))
    assert np.abs(found - CROP.reshape(48, 2, 48, 2, 3).mean((1, 3))).max() <= 0.5


def test_equalising_spreads_a_flat_picture_over_the_whole_range():
    dull = (CROP // 8 + 100).astype(np.uint8)
    found = prepare(dull, spec(colour="grey", equalise=True))
    assert (found.min(), found.max()) == (0, 255)
    assert prepare(dull, spec(equalise=True)).shape == (96, 96, 3)


def test_a_spec_comes_back_as_it_was():
    before = spec(temperature=1.5, crop={"aligned": True, "margin": 0.2}, threshold=0.4)
    assert ModelSpec.from_json(before.to_json()) == before


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"format": 1}', b'{"format": 1, "label_names": 3}'])
def test_what_is_no_model_json_is_refused(data):
    with pytest.raises(ModelSpecError, match="not one that facemill wrote"):
        ModelSpec.from_json(data)


def test_values_that_make_no_sense_are_refused():
    with pytest.raises(ModelSpecError, match="temperature must be above 0"):
        spec(temperature=0)
    with pytest.raises(ModelSpecError, match="colour must be one of rgb, grey, not 'bgr'"):
        spec(colour="bgr")

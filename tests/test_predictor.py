"""A model folder as a predictor: what it gives is known to the last digit, what does not fit is told in one line."""

import json
import math

import numpy as np
import pytest

from dataset_tools import storage
from dataset_tools.prepare import prepare
from infer.predictor import PredictorError, load_predictor
from tests.toy_model import GAIN, NAMES, crop, folder, network

RED, GREEN, BLUE = crop(1, 0, 0), crop(0, 1, 0), crop(0, 0, 1)


def refused(path, match, **options):
    with pytest.raises(PredictorError, match=match) as error:
        load_predictor(str(path), **options)
    assert "\n" not in str(error.value)


def test_probabilities_are_the_softmax_of_logits_by_temperature(tmp_path):
    found = load_predictor(str(folder(tmp_path / "m", temperature=2.0))).predict([RED, BLUE])
    np.testing.assert_allclose(found.logits, [[GAIN, 0, 0], [0, 0, GAIN]], rtol=1e-6)
    high = math.exp(GAIN / 2) / (math.exp(GAIN / 2) + 2)
    np.testing.assert_allclose(found.probabilities[:, [0, 2]], [[high, (1 - high) / 2], [(1 - high) / 2, high]])
    assert found.names == NAMES


def test_top_names_come_best_first_and_of_equal_ones_the_lower_id(tmp_path):
    (best,) = load_predictor(str(folder(tmp_path / "m"))).predict([GREEN]).top(2)
    assert [name for name, _ in best] == ["fear", "anger"]
    assert best[0][1] == pytest.approx(math.exp(GAIN) / (math.exp(GAIN) + 2))


def test_not_sure_is_a_best_probability_below_the_threshold(tmp_path):
    grey = crop(0.5, 0.5, 0.5)
    found = load_predictor(str(folder(tmp_path / "m", threshold=0.5))).predict([RED, grey])
    assert found.not_sure.tolist() == [False, True]
    assert not load_predictor(str(folder(tmp_path / "just", threshold=1 / 3))).predict([grey]).not_sure.any()
    assert not load_predictor(str(folder(tmp_path / "always"))).predict([grey]).not_sure.any()


def test_what_is_no_number_is_not_sure(tmp_path):
    predictor = load_predictor(str(folder(tmp_path / "m")))
    assert predictor.from_logits(np.full((1, 3), np.nan, np.float32)).not_sure.tolist() == [True]


def test_batches_change_nothing_and_no_crops_give_no_rows(tmp_path):
    predictor = load_predictor(str(folder(tmp_path / "m")), threads=1)
    crops = [crop(n / 10, 0.3, 1 - n / 10) for n in range(10)]
    np.testing.assert_array_equal(predictor.predict(crops, batch=3).logits, predictor.predict(crops).logits)
    assert predictor.predict([]).probabilities.shape == (0, 3)
    assert predictor.predict([]).top(2) == []


def test_crops_of_any_size_go_through_prepare(tmp_path):
    path = folder(tmp_path / "m", network(1, [[GAIN, 0.0]]), colour="grey", label_names=NAMES[:2], equalise=True)
    predictor = load_predictor(str(path))
    noise = np.random.default_rng(0).integers(0, 256, (40, 31, 3), dtype=np.uint8)
    expected = GAIN * prepare(noise, predictor.spec).mean() / 255
    np.testing.assert_allclose(predictor.predict([noise]).logits, [[expected, 0]], rtol=1e-6)


@pytest.mark.parametrize("wrong", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8)])
def test_an_array_that_is_no_crop_is_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"a crop is \(height, width, 3\) uint8 RGB"):
        load_predictor(str(folder(tmp_path / "m"))).predict([wrong])


def test_float_pixels_are_taken_as_well(tmp_path):
    found = load_predictor(str(folder(tmp_path / "m", network(kind=1)))).predict([RED])
    np.testing.assert_allclose(found.logits, [[GAIN, 0, 0]], rtol=1e-6)


def test_a_model_is_loaded_from_a_url(tmp_path):
    local = folder(tmp_path / "m")
    for name in ("model.json", "model.onnx"):
        storage.write_bytes(f"memory://models/toy/{name}", (local / name).read_bytes())
    predictor = load_predictor("memory://models/toy")
    assert predictor.predict([RED]).top(1)[0][0][0] == "anger"
    assert predictor.name == "toy"


# --- What does not fit ------------------------------------------------------------------------------------------------


def test_missing_files_are_named(tmp_path):
    refused(tmp_path / "nowhere", "has no model.json: name the folder that training wrote")
    path = folder(tmp_path / "m")
    refused(path, "has no model.keras: it holds model.onnx", runtime="keras")
    (path / "model.onnx").unlink()
    refused(path, "has no model.onnx: name the folder")


def test_a_model_json_of_others_is_refused(tmp_path):
    path = folder(tmp_path / "m")
    (path / "model.json").write_text(json.dumps({"hidden_size": 768}))
    refused(path, "model.json is not one that facemill wrote")


def test_a_known_label_set_must_have_its_names_in_its_order(tmp_path):
    refused(
        folder(tmp_path / "m", label_set="fer2013"), "says fer2013, which has anger, disgust, fear, .* but its classes"
    )


def test_classes_have_different_names(tmp_path):
    refused(folder(tmp_path / "m", label_names=("a", "a", "b")), "two classes or more of different names")
    refused(folder(tmp_path / "n", network(3, np.ones((3, 1))), label_names=("a",)), "two classes or more")


def test_shapes_of_another_model_are_refused(tmp_path):
    refused(folder(tmp_path / "a", label_names=("a", "b")), r"gives Nx3, and model.json says Nx2")
    refused(folder(tmp_path / "b", input_px=48), r"takes Nx8x8x3, and model.json says Nx48x48x3")
    refused(folder(tmp_path / "c", colour="grey"), r"takes Nx8x8x3, and model.json says Nx8x8x1")


def test_a_fixed_batch_is_refused_and_free_sides_are_not(tmp_path):
    refused(folder(tmp_path / "a", network(batch=1)), r"takes 1x8x8x3, .* fixed batch")
    assert len(load_predictor(str(folder(tmp_path / "b", network(side_px="S")))).predict([RED])) == 1


def test_what_is_no_network_of_one_input_and_output_is_refused(tmp_path):
    refused(folder(tmp_path / "a", b"no network"), "model.onnx cannot be loaded: ")
    refused(folder(tmp_path / "b", network(outputs=2)), "has 1 inputs and 2 outputs")
    refused(folder(tmp_path / "c", network(kind=6)), r"takes tensor\(int32\): export it with uint8 or float32 pixels")


def test_an_unknown_runtime_is_refused(tmp_path):
    refused(tmp_path, "unknown runtime 'torch': choose onnx, keras", runtime="torch")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras 3.15 with NumPy 2.4
def test_keras_and_onnx_give_the_same_and_keras_is_loaded_in_safe_mode(tmp_path):
    keras = pytest.importorskip("keras")
    path = folder(tmp_path / "m", input_px=8)
    draws = np.random.default_rng(2)
    gain = (GAIN * (np.eye(3) + draws.normal(size=(3, 3)) / 4)).astype(np.float32)
    (path / "model.onnx").write_bytes(network(3, gain))
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3), dtype="uint8"),
            keras.layers.Rescaling(1 / 255),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, use_bias=False),
        ]
    )
    model.layers[-1].set_weights([gain])
    model.save(path / "model.keras")
    crops = [crop(*draws.random(3), 11) // 4 * 3 + draws.integers(0, 64, (11, 11, 3), np.uint8) for _ in range(70)]
    onnx_found = load_predictor(str(path)).predict(crops)
    keras_found = load_predictor(str(path), runtime="keras").predict(crops)
    np.testing.assert_allclose(keras_found.probabilities, onnx_found.probabilities, atol=1e-4)
    assert onnx_found.probabilities.std(axis=0).min() > 0.05  # a constant output would agree with anything

    unsafe = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Lambda(lambda x: x[:, 0, 0, :])])
    unsafe.save(path / "model.keras")
    refused(path, "model.keras cannot be loaded: .*", runtime="keras")
    (path / "model.keras").write_bytes(b"no archive")
    refused(path, "model.keras cannot be loaded: .*", runtime="keras")

"""The networks: what they take and give, that they load in safe mode, and what freezing freezes."""

import numpy as np
import pytest

from schemas.model import ModelSpec
from tests import train_toy

keras = pytest.importorskip("keras")
from train import models  # noqa: E402

# Keras asks a TensorFlow variable for an array in the way of numpy 1 (keras/src/backend/tensorflow/core.py).
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NAMES = tuple("abcdefgh")


def spec(name, side, colour="rgb"):
    return ModelSpec(name, side, colour, "affectnet-8", NAMES, {})


def faces(side, channels, count=3):
    return np.random.default_rng(0).integers(0, 256, (count, side, side, channels), np.uint8)


def test_alexnet_flattens_2048_values_at_224_px():
    model = models.build("alexnet_light", spec("alexnet_light", 224))
    assert models.base_of(model).output_shape == (None, 4, 4, 128)
    filters = [layer for layer in models.base_of(model).layers if isinstance(layer, keras.layers.Conv2D)]
    assert [(one.kernel_size[0], one.filters) for one in filters] == [(9, 16), (7, 32), (5, 64), (3, 128), (3, 128)]
    assert [layer.units for layer in model.layers if isinstance(layer, keras.layers.Dense)] == [1024, 1024, 8]


def test_resnet34_has_3_4_6_3_blocks_and_a_stem_for_its_input():
    small = models.base_of(models.build("resnet34", spec("resnet34", 48, "grey")))
    assert small.output_shape == (None, 6, 6, 512)
    strided = [one for one in small.layers if isinstance(one, keras.layers.Conv2D) and one.kernel_size == (3, 3)]
    assert [sum(one.filters == filters for one in strided) for filters in (64, 128, 256, 512)] == [7, 8, 12, 6]
    large = models.base_of(models.build("resnet34", spec("resnet34", 224)))
    assert large.output_shape == (None, 7, 7, 512)
    assert large.layers[1].kernel_size == (7, 7)


def test_the_compact_network_is_small_and_loads_in_safe_mode(tmp_path):
    model = models.build("compact48", spec("compact48", 48, "grey"))
    assert model.count_params() < 1_500_000
    assert (model.input_shape, model.output_shape) == ((None, 48, 48, 1), (None, 8))
    given = faces(48, 1)
    logits = np.asarray(model(given))
    assert logits.dtype == np.float32
    assert np.ptp(logits, axis=0).max() > 0
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    assert np.array_equal(np.asarray(loaded(given)), logits)


def test_a_mirrored_model_gives_both_sides_of_a_face_the_same_and_loads_in_safe_mode(tmp_path):
    plain = models.build("compact48", spec("compact48", 48, "grey"))
    given = faces(48, 1)
    apart = np.asarray(plain(given)), np.asarray(plain(given[:, :, ::-1]))
    assert np.abs(apart[0] - apart[1]).max() > 0.01
    models.mirrored(plain).save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    assert (loaded.input_shape, loaded.output_shape) == ((None, 48, 48, 1), (None, 8))
    assert np.allclose(loaded(given), (apart[0] + apart[1]) / 2, atol=1e-6)
    assert np.allclose(loaded(given), loaded(given[:, :, ::-1]), atol=1e-6)
    again = models.build("compact48", spec("compact48", 48, "grey"), str(tmp_path))
    assert np.allclose(again(given), apart[0], atol=1e-6)


def test_mobilenet_takes_weights_from_a_file_and_grey_faces_as_three_channels(tmp_path):
    source = keras.applications.MobileNetV2(input_shape=(96, 96, 3), include_top=False, weights=None)
    source.save_weights(tmp_path / "mine.weights.h5")
    model = models.build("mobilenet_v2", spec("mobilenet_v2", 96, "grey"), str(tmp_path / "mine.weights.h5"), 0.0)
    for mine, theirs in zip(models.base_of(model).get_weights(), source.get_weights(), strict=True):
        assert np.array_equal(mine, theirs)
    rgb = models.build("mobilenet_v2", spec("mobilenet_v2", 96), str(tmp_path / "mine.weights.h5"), 0.0)
    rgb.get_layer("logits").set_weights(model.get_layer("logits").get_weights())
    grey = faces(96, 1)
    assert np.allclose(model(grey), rgb(grey.repeat(3, axis=-1)), atol=1e-5)


def test_from_scratch_batchnorm_learns_fast_enough_to_validate():
    model = models.build("mobilenet_v2", spec("mobilenet_v2", 96))
    assert {layer.momentum for layer in models.batchnorms(model)} == {0.9}
    assert len(models.batchnorms(model)) == 52


def test_a_model_keras_gives_its_base_to_other_classes(tmp_path):
    first = models.build("linear", train_toy.SPEC)
    first.save(tmp_path / "model.keras")
    again = models.build("linear", train_toy.SPEC, str(tmp_path))
    assert np.array_equal(again.get_layer("logits").kernel, first.get_layer("logits").kernel)
    other = models.build("linear", ModelSpec("linear", 16, "grey", "x", NAMES, {}), str(tmp_path / "model.keras"))
    assert other.output_shape == (None, 8)


def test_missing_imagenet_weights_say_what_to_fetch_and_where_to_put_it():
    with pytest.raises(models.ModelError) as raised:
        models.build("mobilenet_v2", spec("mobilenet_v2", 100), "/nowhere/w.h5")
    assert (
        "there is no weights file /nowhere/w.h5: fetch mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_96"
        in str(raised.value)
    )
    assert "put it there or name its place with --weights" in str(raised.value)
    with pytest.raises(models.ModelError, match=r"resnet50_weights_tf_dim_ordering_tf_kernels_notop\.h5"):
        models.build("resnet50", spec("resnet50", 224), "/nowhere/w.h5")
    with pytest.raises(models.ModelError, match="no ImageNet weights for resnet18"):
        models.build("resnet18", spec("resnet18", 48), "/nowhere/w.h5")


def test_an_unknown_model_names_those_there_are():
    with pytest.raises(models.ModelError, match="choose mobilenet_v2, resnet18"):
        models.build("resnet", spec("resnet", 48))


def test_a_frozen_base_keeps_weights_and_statistics_and_fine_tuning_keeps_batchnorm():
    model = train_toy.tiny_model()
    models.set_stage(model, base=False, batchnorm=True)
    assert [one.path for one in model.trainable_variables] == ["logits/kernel", "logits/bias"]
    models.set_stage(model, base=True, batchnorm=False)
    assert len(model.trainable_variables) == 3
    (norm,) = models.batchnorms(model)
    before = np.asarray(norm.moving_mean).copy()
    model(faces(16, 1, 8), training=True)
    assert np.array_equal(norm.moving_mean, before)
    models.set_stage(model, base=True, batchnorm=True)
    model(faces(16, 1, 8), training=True)
    assert not np.array_equal(norm.moving_mean, before)


def test_serving_is_deterministic_and_training_is_not():
    model = train_toy.tiny_model(dropout=0.5)
    given = faces(16, 1, 8)
    assert np.array_equal(model(given), model(given))
    assert not np.array_equal(model(given, training=True), model(given, training=True))

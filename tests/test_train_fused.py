"""BatchNorm as one operation in training: what Keras computes, in Keras' files, and where bfloat16 pays."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")
import tensorflow as tf  # noqa: E402
from keras import layers  # noqa: E402

from schemas.model import ModelSpec  # noqa: E402
from train import loop, models  # noqa: E402
from train.fused import fused  # noqa: E402

# Keras asks a TensorFlow variable for an array in the way of numpy 1 (keras/src/backend/tensorflow/core.py).
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SPEC = ModelSpec("compact48", 48, "grey", "toy-3", ("left", "middle", "right"), {})


def drawn(model):
    """Weights that no initializer gives, so that a swap of two tensors of one shape shows."""
    random = np.random.default_rng(0)
    model.set_weights([abs(random.normal(1, 0.2, one.shape)) for one in model.get_weights()])
    return model


def small(axis=-1, **norm):
    inputs = x = keras.Input((6, 5, 3))
    x = layers.BatchNormalization(axis=axis, momentum=0.9, **norm)(layers.Conv2D(4, 3, use_bias=False)(x))
    base = keras.Model(inputs, x, name="base")
    faces = keras.Input((6, 5, 3))
    return drawn(keras.Model(faces, layers.Dense(2)(layers.Flatten()(base(faces)))))


def step(model, images):
    """Output, gradients and what the statistics are afterwards, of one step in training."""
    with tf.GradientTape() as tape:
        given = model(images, training=True)
        loss = tf.reduce_sum(given**2)
    found = tape.gradient(loss, [one.value for one in model.trainable_variables])
    return [given, *found, *(one.numpy() for one in model.non_trainable_variables)]


def kinds(model):
    return {type(one).__name__ for one in models.batchnorms(model)}


@pytest.mark.parametrize("options", [{}, {"center": False}, {"scale": False}, {"axis": 2}])
def test_a_step_gives_what_keras_gives(options):
    images = np.random.default_rng(1).normal(0, 1, (7, 6, 5, 3)).astype(np.float32)
    model = small(**options)
    copy = fused(model)
    assert (kinds(model), kinds(copy)) == ({"BatchNormalization"}, {"_FusedBatchNorm"})
    for ours, theirs in zip(step(copy, images), step(model, images), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())


def test_the_statistics_kept_are_the_batchs_own_and_not_the_populations():
    images = np.random.default_rng(1).normal(0, 2, (2, 3, 1, 1)).astype(np.float32)
    inputs = keras.Input((3, 1, 1))
    copy = fused(keras.Model(inputs, layers.BatchNormalization(momentum=0.0)(inputs)))
    copy(images, training=True)
    mean, variance = (float(one[0]) for one in copy.get_weights()[2:])
    assert (mean, variance) == pytest.approx((images.mean(), images.var()), rel=1e-6)


def test_a_frozen_norm_uses_its_statistics_and_keeps_them():
    copy = fused(small())
    models.set_stage(copy, base=False, batchnorm=False)
    images = np.random.default_rng(1).normal(3, 2, (7, 6, 5, 3)).astype(np.float32)
    before = copy.get_weights()
    np.testing.assert_array_equal(copy(images, training=True), copy(images, training=False))
    assert all(np.array_equal(a, b) for a, b in zip(before, copy.get_weights(), strict=True))


def test_a_frozen_norm_passes_gradients_on_as_kerass_does():
    images = np.random.default_rng(1).normal(3, 2, (7, 6, 5, 3)).astype(np.float32)
    model = small()
    copy = fused(model)
    for one in (model, copy):
        for norm in models.batchnorms(one):
            norm.trainable = False
    ours, theirs = step(copy, images), step(model, images)
    assert len(ours) == 1 + 3 + 4  # the convolution's kernel, the head's two, and a norm's four that stay
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * np.abs(other).max())


def test_a_copy_may_have_another_precision():
    model = small()
    copy = fused(model, "mixed_bfloat16")
    images = np.random.default_rng(1).normal(0, 1, (7, 6, 5, 3)).astype(np.float32)
    given, expected = copy(images, training=False), model(images, training=False)
    assert (given.dtype, model.compute_dtype) == ("bfloat16", "float32")
    np.testing.assert_allclose(np.asarray(given, float), expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["compact48", "mobilenet_v2"])
def test_a_copy_of_a_network_answers_like_it(name):
    model = models.build(name, SPEC)
    keep = [one.path for one in model.weights]
    random = np.random.default_rng(0)
    model.set_weights([one + abs(random.normal(0, 0.05, one.shape)) for one in model.get_weights()])
    copy = fused(model)
    faces = random.integers(0, 256, (3, 48, 48, 1), np.uint8)
    np.testing.assert_allclose(copy(faces, training=False), model(faces, training=False), rtol=2e-6)
    assert [one.path.rsplit("/", 2)[-2:] for one in copy.weights] == [one.rsplit("/", 2)[-2:] for one in keep]
    assert [one.momentum for one in models.batchnorms(copy)] == [0.9] * len(models.batchnorms(model))


@pytest.mark.parametrize(("flags", "answer"), [("avx512f amx_bf16 amx_tile", True), ("avx512f avx512_bf16", False)])
def test_bfloat16_pays_on_a_cpu_that_multiplies_it_in_tiles(monkeypatch, tmp_path, flags, answer):
    monkeypatch.setattr(loop, "on_gpu", lambda: False)
    monkeypatch.setattr(loop, "_CPU", tmp_path / "cpuinfo")
    assert loop.has_bfloat16() is False  # a system without that file
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: {flags}\n")
    assert loop.has_bfloat16() is answer

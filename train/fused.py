"""BatchNorm as the one operation that TensorFlow has for it.

Keras 3 computes it from a mean, a variance and four passes over the activations, and in float32 even where they are
bfloat16: a third to half of the time that a small network's step takes.
"""

from typing import Any

import keras
import tensorflow as tf
from keras import layers


def fused(model: keras.Model, policy: str | None = None) -> keras.Model:
    """A copy of the model to train, or to learn from, its weights equal and in the same order. To be saved is the
    model, not the copy: a file with a layer of our own would not load in safe mode.

    policy: the precision of every layer of the copy, instead of what each has in the model.
    """

    def copied(layer: layers.Layer) -> layers.Layer:
        kind = _FusedBatchNorm if type(layer) is layers.BatchNormalization else type(layer)
        config = layer.get_config()
        if policy:
            config["dtype"] = policy
        return kind.from_config(config)

    copy = keras.models.clone_model(model, clone_function=copied, recursive=True)
    copy.set_weights(model.get_weights())
    return copy


class _FusedBatchNorm(layers.BatchNormalization):
    """(n, height, width, channels), channels last; what else there is goes Keras' way."""

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if len(inputs.shape) != 4 or self.axis not in (-1, 3):
            return super().call(inputs, training=training, mask=mask)
        gamma = self.gamma.value if self.scale else tf.ones([inputs.shape[-1]])
        beta = self.beta.value if self.center else tf.zeros([inputs.shape[-1]])
        norm = tf.compat.v1.nn.fused_batch_norm
        if not (training and self.trainable):
            kept_mean, kept_variance = self.moving_mean.value, self.moving_variance.value
            return norm(inputs, gamma, beta, kept_mean, kept_variance, epsilon=self.epsilon, is_training=False)[0]
        outputs, mean, variance = norm(inputs, gamma, beta, epsilon=self.epsilon, is_training=True)
        # TensorFlow gives the variance of the population that the batch was drawn from, Keras keeps the batch's own.
        count = tf.cast(tf.size(inputs) // inputs.shape[-1], tf.float32)
        for kept, found in ((self.moving_mean, mean), (self.moving_variance, variance * (count - 1) / count)):
            kept.assign(kept * self.momentum + found * (1 - self.momentum))
        return outputs

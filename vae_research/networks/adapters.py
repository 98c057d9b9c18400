"""Layers that connect a network from elsewhere to a likelihood."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="vae_research")
class ProbabilitiesToLogits(keras.layers.Layer):
    """Turns `probabilities`, the output of a decoder that ends in a sigmoid, into `logits`.

    For networks that cannot be changed. A sigmoid saturates: the largest float32 below one is
    1 - 6e-8, so logits are cut at about 16, and a pixel that is wrong there has no gradient. In a
    network of your own, leave the sigmoid out and name the output `logits`.
    """

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)

    def call(self, probabilities: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns `log(p / (1 - p))`, with p cut to [1e-7, 1 - 1e-7]."""
        # The same cut as in keras.losses.binary_crossentropy.
        clipped = tf.clip_by_value(tf.cast(probabilities, tf.float32), 1e-7, 1.0 - 1e-7)
        return {"logits": tf.math.log(clipped) - tf.math.log1p(-clipped)}

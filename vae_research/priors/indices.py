"""Priors of indices of codes, for quantised latents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from vae_research.arguments import checked_integer
from vae_research.priors.prior import INDICES, Prior
from vae_research.randomness import fold_in, gumbel


@keras.saving.register_keras_serializable(package="vae_research")
class UniformPrior(Prior):
    """Every index has the same probability, wherever it stands.

    Other priors of indices derive from it. Codes are int32 `[rows, ...]`, from 0 to
    `num_codes - 1`; densities are probabilities.

    Args:
        num_codes: number of indices, at least 2.

    Raises:
        ValueError: `num_codes` is not such an integer.
    """

    of = INDICES

    def __init__(self, num_codes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_codes = checked_integer("num_codes", num_codes, 2)

    def log_prob(self, z: tf.Tensor) -> tf.Tensor:
        """Returns log p of indices, `[rows]`, nats."""
        return tf.fill(tf.shape(z)[:1], -self.size * math.log(self.num_codes))

    def sample(self, count: int, seed: tf.Tensor) -> tf.Tensor:
        """Returns `[count, ...]` independent indices."""
        shape = [count, *self.event_shape]
        return tf.random.stateless_uniform(shape, seed, 0, self.num_codes, tf.int32, alg="philox")

    def get_config(self) -> dict[str, Any]:
        """Returns the settings."""
        return {**super().get_config(), "num_codes": self.num_codes}


@keras.saving.register_keras_serializable(package="vae_research")
class AutoregressivePrior(UniformPrior):
    """The probability of each index depends on those before it, row by row of a map.

    Causal convolutions with gates over the sequence of indices, with embeddings of indices and of
    positions: van den Oord et al. 2016 (arXiv:1609.03499), equation 2. Before training it is
    uniform.

    Args:
        num_codes: number of indices, at least 2.
        units: channels of each layer.
        dilations: of the layers, whose kernels have 3 taps: an index depends on as many before it
            as twice their sum, plus 1.

    Raises:
        ValueError: a number is not a positive integer.
    """

    def __init__(
        self,
        num_codes: int,
        *,
        units: int = 64,
        dilations: Sequence[int] = (1, 2, 4, 8, 16),
        **kwargs: Any,
    ) -> None:
        super().__init__(num_codes, **kwargs)
        self.units = checked_integer("units", units, 1)
        self.dilations = [checked_integer("dilations", dilation, 1) for dilation in dilations]

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Makes the layers."""
        super().build(input_shape)
        # Not a keras.layers.Embedding: the sum of its gradients has no fixed order.
        self.embedding = keras.layers.Dense(self.units, use_bias=False, dtype="float32")
        self.embedding.build([None, self.size, self.num_codes])
        self.positions = self.add_weight(
            shape=(self.size, self.units), initializer="normal", name="positions", dtype="float32"
        )
        self.convolutions = []
        for dilation in self.dilations:
            layer = keras.layers.Conv1D(
                2 * self.units, 3, padding="causal", dilation_rate=dilation, dtype="float32"
            )
            layer.build([None, self.size, self.units])
            self.convolutions.append(layer)
        self.head = keras.layers.Dense(self.num_codes, kernel_initializer="zeros", dtype="float32")
        self.head.build([None, self.size, self.units])

    def logits(self, indices: tf.Tensor) -> tf.Tensor:
        """Returns `[rows, size, num_codes]`: of each index given those before it.

        Args:
            indices: `[rows, size]`, row by row of a map.
        """
        embedded = self.embedding(tf.one_hot(indices, self.num_codes))
        before = tf.pad(embedded, [[0, 0], [1, 0], [0, 0]])[:, :-1]
        features = before + self.positions
        for layer in self.convolutions:
            signal, gate = tf.split(layer(features), 2, axis=2)
            features += tf.tanh(signal) * tf.sigmoid(gate)
        return self.head(features)

    def log_prob(self, z: tf.Tensor) -> tf.Tensor:
        """Returns log p of indices, `[rows]`, nats."""
        indices = tf.reshape(z, [-1, self.size])
        of_each = tf.nn.sparse_softmax_cross_entropy_with_logits(indices, self.logits(indices))
        return -tf.reduce_sum(of_each, axis=1)

    def sample(self, count: int, seed: tf.Tensor) -> tf.Tensor:
        """Returns `[count, ...]`, one index after the other."""

        def add(place: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            logits = tf.gather(self.logits(indices), place, axis=1)
            noise = gumbel(tf.shape(logits), fold_in(seed, place))
            drawn = tf.argmax(logits + noise, axis=1, output_type=tf.int32)
            here = tf.range(self.size) == place
            return place + 1, tf.where(here, drawn[:, tf.newaxis], indices)

        first = tf.constant(0), tf.zeros([count, self.size], tf.int32)
        _, indices = tf.while_loop(lambda place, _: place < self.size, add, first)
        return tf.reshape(indices, [-1, *self.event_shape])

    def get_config(self) -> dict[str, Any]:
        """Returns the settings."""
        return {**super().get_config(), "units": self.units, "dilations": self.dilations}

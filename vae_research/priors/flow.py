"""A normalising flow."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from vae_research import probability
from vae_research.arguments import checked_integer
from vae_research.priors.prior import Prior
from vae_research.randomness import standard_normal

# Bound of the logarithm of a scale: a coupling can neither explode nor lose its digits.
_LOG_SCALE_BOUND = 2.0


@keras.saving.register_keras_serializable(package="vae_research")
class RealNVPPrior(Prior):
    """A normalising flow of affine couplings over standard normal numbers.

    Each coupling scales and shifts one half of the values by functions of the other half; the
    halves change places from one to the next. Before training it is the standard normal.
    Dinh et al. 2017 (arXiv:1605.08803), equations 7 to 9.

    Args:
        couplings: their number, at least 2.
        hidden_units: sizes of the layers of each coupling's network.

    Raises:
        ValueError: a size is not a positive integer, or codes have a single value.
    """

    def __init__(
        self, couplings: int = 6, *, hidden_units: Sequence[int] = (64, 64), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.couplings = checked_integer("couplings", couplings, 2)
        self.hidden_units = [checked_integer("hidden_units", size, 1) for size in hidden_units]

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Makes the networks of the couplings."""
        super().build(input_shape)
        if self.size < 2:
            raise ValueError(
                "RealNVPPrior needs codes of two or more values: a coupling reads one half of them "
                "to change the other. MixturePrior takes one."
            )
        first = self.size - self.size // 2
        dense = functools.partial(keras.layers.Dense, dtype="float32")
        self.networks = []
        for number in range(self.couplings):
            read = first if number % 2 == 0 else self.size - first
            head = dense(2 * (self.size - read), kernel_initializer="zeros")
            layers = [*(dense(size, activation="relu") for size in self.hidden_units), head]
            network = keras.Sequential(layers, name=f"coupling_{number}")
            network.build([None, read])
            self.networks.append(network)

    def log_prob(self, z: tf.Tensor) -> tf.Tensor:
        """Returns log p(z), `[rows]`, nats."""
        values = tf.reshape(tf.cast(z, tf.float32), [-1, self.size])
        log_determinant = tf.zeros(tf.shape(values)[:1])
        for number in reversed(range(self.couplings)):
            kept, changed = self._halves(values, number)
            log_scale, shift = self._affine(kept, number)
            changed = (changed - shift) * tf.exp(-log_scale)
            log_determinant -= tf.reduce_sum(log_scale, axis=1)
            values = self._joined(kept, changed, number)
        density = probability.sum_over_event(probability.standard_normal_log_density(values))
        return density + log_determinant

    def sample(self, count: int, seed: tf.Tensor) -> tf.Tensor:
        """Returns `[count, ...]`."""
        values = standard_normal([count, self.size], seed)
        for number in range(self.couplings):
            kept, changed = self._halves(values, number)
            log_scale, shift = self._affine(kept, number)
            values = self._joined(kept, changed * tf.exp(log_scale) + shift, number)
        return tf.reshape(values, [-1, *self.event_shape])

    def _halves(self, values: tf.Tensor, number: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the half that a coupling reads, and the one that it changes."""
        first = self.size - self.size // 2
        head, tail = values[:, :first], values[:, first:]
        return (head, tail) if number % 2 == 0 else (tail, head)

    def _joined(self, kept: tf.Tensor, changed: tf.Tensor, number: int) -> tf.Tensor:
        return tf.concat([kept, changed] if number % 2 == 0 else [changed, kept], axis=1)

    def _affine(self, kept: tf.Tensor, number: int) -> tuple[tf.Tensor, tf.Tensor]:
        log_scale, shift = tf.split(self.networks[number](kept), 2, axis=1)
        return _LOG_SCALE_BOUND * tf.tanh(log_scale / _LOG_SCALE_BOUND), shift

    def get_config(self) -> dict[str, Any]:
        """Returns the settings."""
        settings = {"couplings": self.couplings, "hidden_units": self.hidden_units}
        return {**super().get_config(), **settings}

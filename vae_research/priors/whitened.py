"""A prior of whitened codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vae_research.priors.prior import REAL_NUMBERS, Prior

# The smallest variance that a direction of the codes is taken to have, over the largest one: a
# latent that no example uses has a variance of zero, and its density would be infinite.
_SMALLEST_VARIANCE = 1e-6


@keras.saving.register_keras_serializable(package="vae_research")
class WhitenedPrior(Prior):
    """Another prior, of codes that were shifted and scaled to mean zero and covariance one.

    `z = mean + L u`, of which `u` has the other prior and `L` is the lower triangular root of the
    covariance. Both are computed by `adapt` and not trained; before that, z is u.

    Args:
        prior: of the whitened codes.

    Raises:
        ValueError: `prior` is not a `Prior`, or not one of real numbers.
    """

    def __init__(self, prior: Prior, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if isinstance(prior, Mapping):  # of a saved configuration
            prior = keras.saving.deserialize_keras_object(prior)
        if not isinstance(prior, Prior):
            raise ValueError(f"WhitenedPrior needs a Prior, got {prior!r}.")
        if prior.of != REAL_NUMBERS:
            raise ValueError(
                f"WhitenedPrior needs a prior of {REAL_NUMBERS}; {type(prior).__name__} is a prior "
                f"of {prior.of}."
            )
        self.prior = prior
        self.has_density = prior.has_density

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Makes the mean and the root of the covariance."""
        super().build(input_shape)
        self.prior.build_for(self.event_shape)
        self.mean = self.add_weight(
            shape=(self.size,), initializer="zeros", name="mean", trainable=False
        )
        self.root = self.add_weight(
            shape=(self.size, self.size), initializer="identity", name="root", trainable=False
        )

    def adapt(self, values: np.ndarray, seed: int) -> None:
        """Computes mean and covariance of codes `[rows, ...]`, and adapts the other prior."""
        flat = np.reshape(values, [len(values), -1]).astype(np.float64)
        covariance = np.atleast_2d(np.cov(flat, rowvar=False, bias=True))
        smallest = _SMALLEST_VARIANCE * max(covariance.diagonal().max(), 1e-12)
        self.mean.assign(flat.mean(axis=0))
        self.root.assign(np.linalg.cholesky(covariance + smallest * np.eye(self.size)))
        self.prior.adapt(self._whitened(tf.constant(values, tf.float32)).numpy(), seed)

    def log_prob(self, z: tf.Tensor) -> tf.Tensor:
        """Returns log p(z), `[rows]`, nats."""
        return self.prior.log_prob(self._whitened(z)) - self._log_determinant()

    def training_loss(self, z: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Returns that of the other prior, `[rows]`, nats, for codes that are not whitened."""
        return self.prior.training_loss(self._whitened(z), seed) + self._log_determinant()

    def sample(self, count: int, seed: tf.Tensor) -> tf.Tensor:
        """Returns `[count, ...]`."""
        flat = tf.reshape(self.prior.sample(count, seed), [-1, self.size])
        codes = self.mean + tf.matmul(flat, self.root, transpose_b=True)
        return tf.reshape(codes, [-1, *self.event_shape])

    def _whitened(self, z: tf.Tensor) -> tf.Tensor:
        centered = tf.reshape(z, [-1, self.size]) - self.mean
        solved = tf.linalg.triangular_solve(tf.convert_to_tensor(self.root), tf.transpose(centered))
        return tf.reshape(tf.transpose(solved), [-1, *self.event_shape])

    def _log_determinant(self) -> tf.Tensor:
        return tf.reduce_sum(tf.math.log(tf.linalg.diag_part(tf.convert_to_tensor(self.root))))

    def get_config(self) -> dict[str, Any]:
        """Returns the settings."""
        prior = keras.saving.serialize_keras_object(self.prior)
        return {**super().get_config(), "prior": prior}

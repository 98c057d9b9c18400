"""The uniform distribution on a sphere."""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras
import tensorflow as tf

from vae_research.priors.prior import SPHERE, Prior
from vae_research.randomness import standard_normal


def log_area(size: int) -> float:
    """Returns the logarithm of the area of the unit sphere in so many dimensions.

    >>> round(math.exp(log_area(3)) / math.pi, 6)
    4.0
    """
    return math.log(2.0) + 0.5 * size * math.log(math.pi) - math.lgamma(0.5 * size)


@keras.saving.register_keras_serializable(package="vae_research")
class SphericalUniformPrior(Prior):
    """Every direction has the same density: that of the area of the unit sphere.

    Codes are vectors of length 1 in their last axis, `[rows, ..., size]`, independent of each
    other. Davidson et al. 2018 (arXiv:1804.00891), section 3.
    """

    of = SPHERE

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Notes the shape of codes; raises ValueError if a vector has a single value."""
        super().build(input_shape)
        if self.event_shape[-1] < 2:
            raise ValueError(
                f"A sphere has 2 dimensions or more; codes have the shape {self.event_shape}."
            )

    def log_prob(self, z: tf.Tensor) -> tf.Tensor:
        """Returns log p(z), `[rows]`, nats, by the area of the sphere."""
        dimensions = self.event_shape[-1]
        vectors = self.size // dimensions
        return tf.fill(tf.shape(z)[:1], -vectors * log_area(dimensions))

    def sample(self, count: int, seed: tf.Tensor) -> tf.Tensor:
        """Returns `[count, ...]` vectors of length 1."""
        return tf.math.l2_normalize(standard_normal([count, *self.event_shape], seed), axis=-1)

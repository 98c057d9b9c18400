"""The base of priors, and the standard normal prior."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from vae_research import probability
from vae_research.randomness import standard_normal

# What a prior is a distribution of.
REAL_NUMBERS = "real numbers"
DIAGONAL_POSTERIORS = "codes with diagonal normal posteriors"
INDICES = "indices of codes"
SPHERE = "points on a sphere"


class Prior(keras.layers.Layer):
    """The distribution p(z) of one latent; subclasses write `log_prob` and `sample`.

    A prior is a part of a bottleneck, `GaussianBottleneck(20, prior=MixturePrior(10))`, which tells
    it the shape of its latent. Variables are made in `build`, and trained with the model. All
    values are float32 under every precision policy.

    Attributes:
        event_shape: of one code; known when the bottleneck has the prior.
        has_density: whether `log_prob` is one; otherwise the prior is only fitted and sampled.
        of: what it is a distribution of; a bottleneck refuses the prior of something else. A prior
            of integers has "indices of codes".
    """

    of: ClassVar[str] = REAL_NUMBERS
    event_shape: tuple[int, ...]
    has_density = True

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Notes the shape of codes `[rows, ...]`; a subclass makes its variables after this."""
        self.event_shape = tuple(size for size in input_shape[1:] if size is not None)
        self.built = True

    def build_for(self, event_shape: Sequence[int]) -> None:
        """Builds a new prior, for codes of this shape.

        Raises:
            ValueError: it was built for codes of another shape.
        """
        if not self.built:
            self.build((None, *event_shape))
        if self.event_shape != tuple(event_shape):
            raise ValueError(
                f"{type(self).__name__} {self.name!r} is the prior of codes of shape "
                f"{self.event_shape}, and cannot be that of {tuple(event_shape)}: give each latent "
                "a prior of its own."
            )

    @property
    def size(self) -> int:
        """The number of values of one code."""
        return math.prod(self.event_shape)

    def adapt(self, values: np.ndarray, seed: int) -> None:
        """Computes what a fit to these codes `[rows, ...]` begins with, by default nothing."""

    def training_loss(self, z: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Returns what `fit_prior` minimises, `[rows]`, nats: -log p(z), or a bound of it."""
        return -self.log_prob(z)

    def log_prob(self, z: tf.Tensor) -> tf.Tensor:
        """Returns log p(z), `[rows]`, nats, of codes `[rows, ...]`."""
        raise TypeError(f"{type(self).__name__} must define log_prob(self, z).")

    def sample(self, count: int, seed: tf.Tensor) -> tf.Tensor:
        """Returns codes `[count, ...]`; `seed` is a stateless key, `[2]`."""
        raise TypeError(f"{type(self).__name__} must define sample(self, count, seed).")


@keras.saving.register_keras_serializable(package="vae_research")
class StandardNormalPrior(Prior):
    """Independent standard normal values. Kingma and Welling 2014 (arXiv:1312.6114)."""

    def log_prob(self, z: tf.Tensor) -> tf.Tensor:
        """Returns log p(z), `[rows]`, nats."""
        return probability.sum_over_event(probability.standard_normal_log_density(z))

    def sample(self, count: int, seed: tf.Tensor) -> tf.Tensor:
        """Returns `[count, ...]` independent numbers."""
        return standard_normal([count, *self.event_shape], seed)

"""A mixture of normal distributions, and what such mixtures share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from vae_research import probability
from vae_research.arguments import checked_integer
from vae_research.priors.prior import Prior
from vae_research.randomness import fold_in, standard_normal


def mixture_log_density(
    values: tf.Tensor, logits: tf.Tensor, mean: tf.Tensor, log_var: tf.Tensor
) -> tf.Tensor:
    """Returns the log-density of a mixture of diagonal normal distributions, `[rows]`, nats.

    Args:
        values: `[rows, size]`.
        logits: of the components' weights, `[components]`.
        mean, log_var: of the components, `[components, size]`.
    """
    density = probability.normal_log_density(values[:, tf.newaxis], mean, log_var)
    by_component = tf.reduce_sum(density, axis=2) + tf.nn.log_softmax(logits)
    return tf.reduce_logsumexp(by_component, axis=1)


def mixture_sample(
    count: int, seed: tf.Tensor, logits: tf.Tensor, mean: tf.Tensor, log_var: tf.Tensor
) -> tf.Tensor:
    """Returns draws from a mixture of diagonal normal distributions, `[count, size]`.

    A component is drawn as the largest of its logit and Gumbel noise (Gumbel 1954).

    Args:
        count: number of draws.
        seed: a stateless key, `[2]`.
        logits, mean, log_var: as for `mixture_log_density`.
    """
    uniform = tf.random.stateless_uniform(
        [count, tf.shape(logits)[0]], fold_in(seed, 0), minval=1e-7, alg="philox"
    )
    component = tf.argmax(logits - tf.math.log(-tf.math.log(uniform)), axis=1)
    mean, log_var = tf.gather(mean, component), tf.gather(log_var, component)
    return mean + tf.exp(0.5 * log_var) * standard_normal(tf.shape(mean), fold_in(seed, 1))


@keras.saving.register_keras_serializable(package="vae_research")
class MixturePrior(Prior):
    """A trained mixture of diagonal normal distributions.

    Args:
        components: their number.
        spread: standard deviation of the means before training: equal components would stay equal.

    Raises:
        ValueError: `components` is not a positive integer.
    """

    def __init__(self, components: int = 10, *, spread: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.components = checked_integer("components", components, 1)
        self.spread = float(spread)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Makes weights, means and variances."""
        super().build(input_shape)
        shape = (self.components, self.size)
        means = keras.initializers.RandomNormal(stddev=self.spread)
        self.logits = self.add_weight(
            shape=shape[:1], initializer="zeros", name="logits", dtype="float32"
        )
        self.mean = self.add_weight(shape=shape, initializer=means, name="mean", dtype="float32")
        self.log_var = self.add_weight(
            shape=shape, initializer="zeros", name="log_var", dtype="float32"
        )

    def log_prob(self, z: tf.Tensor) -> tf.Tensor:
        """Returns log p(z), `[rows]`, nats."""
        values = tf.reshape(z, [-1, self.size])
        return mixture_log_density(values, *self._parameters())

    def sample(self, count: int, seed: tf.Tensor) -> tf.Tensor:
        """Returns `[count, ...]`."""
        values = mixture_sample(count, seed, *self._parameters())
        return tf.reshape(values, [-1, *self.event_shape])

    def _parameters(self) -> list[tf.Tensor]:
        return [tf.convert_to_tensor(value) for value in (self.logits, self.mean, self.log_var)]

    def get_config(self) -> dict[str, Any]:
        """Returns the settings."""
        settings = {"components": self.components, "spread": self.spread}
        return {**super().get_config(), **settings}

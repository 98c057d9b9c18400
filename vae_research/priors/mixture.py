"""A mixture of normal distributions, and what such mixtures share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vae_research import probability
from vae_research.arguments import checked_integer
from vae_research.priors.prior import Prior
from vae_research.randomness import fold_in, gumbel, standard_normal

# Of EM: steps, and the least variance of a component over that of all codes.
_EM_STEPS, _LEAST_VARIANCE = 50, 1e-3


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

    A component is drawn as the one with the largest sum of logit and Gumbel noise (Gumbel 1954).

    Args:
        count: number of draws.
        seed: a stateless key, `[2]`.
        logits, mean, log_var: as for `mixture_log_density`.
    """
    noise = gumbel([count, tf.shape(logits)[0]], fold_in(seed, 0))
    component = tf.argmax(logits + noise, axis=1)
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

    def adapt(self, values: np.ndarray, seed: int) -> None:
        """Sets the components to what EM finds for these codes, beginning with distant ones.

        Dempster et al. 1977. A variance is at least a thousandth of that of all codes: a component
        with a single code would have an infinite density.
        """
        flat = np.reshape(values, [len(values), -1]).astype(np.float64)
        squared, least = np.square(flat), _LEAST_VARIANCE * flat.var(axis=0) + 1e-12
        mean = _spread_out(flat, self.components, np.random.default_rng(seed))
        variance = np.tile(flat.var(axis=0) + 1e-12, [self.components, 1])
        log_weight = np.full(self.components, -np.log(self.components))
        for _ in range(_EM_STEPS):
            # log N(z; m, v) up to a constant, of all codes and components: z^2/v - 2 z m/v + m^2/v
            distance = squared @ (1 / variance).T - 2 * flat @ (mean / variance).T
            distance += (mean**2 / variance + np.log(variance)).sum(axis=1)
            log_joint = log_weight - 0.5 * distance
            share = np.exp(log_joint - log_joint.max(axis=1, keepdims=True))
            share /= share.sum(axis=1, keepdims=True)
            total = share.sum(axis=0) + 1e-9
            log_weight = np.log(total / total.sum())
            mean = share.T @ flat / total[:, np.newaxis]
            variance = share.T @ squared / total[:, np.newaxis] - mean**2
            variance = np.maximum(variance, least)
        self.logits.assign(log_weight)
        self.mean.assign(mean)
        self.log_var.assign(np.log(variance))

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


def _spread_out(values: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Returns rows of `values`, each drawn by its squared distance from the nearest one so far.

    Arthur and Vassilvitskii 2007, k-means++.
    """
    chosen = [values[random.integers(len(values))]]
    distance = np.full(len(values), np.inf)
    for _ in range(count - 1):
        distance = np.minimum(distance, np.square(values - chosen[-1]).sum(axis=1))
        weight = distance + 1e-12
        chosen.append(values[random.choice(len(values), p=weight / weight.sum())])
    return np.stack(chosen)

"""Terms over posterior and prior: they work with every bottleneck that writes what they read."""

from __future__ import annotations

import tensorflow as tf

from vae_research import probability
from vae_research.losses.term import LossTerm
from vae_research.schedules import Schedule, value_at


class KLDivergence(LossTerm):
    """KL divergence of the posterior from the prior, in closed form.

    Reads `kl` `[rows, latent]`; returns its sum over latent dimensions, nats. With `weight=beta`
    this is the beta-VAE (Higgins et al. 2017). Kingma and Welling 2014 (arXiv:1312.6114),
    equation 10.
    """

    default_name = "kl"

    def per_example(self, kl: tf.Tensor) -> tf.Tensor:
        """Returns `KL(q(z|x) || p(z))`, `[rows]`, nats."""
        return probability.sum_over_event(kl)


class MonteCarloKL(LossTerm):
    """KL divergence of the posterior from the prior, estimated from the sampled z.

    Reads `log_posterior` and `log_prior`, `[rows]`, nats. Unbiased, and needed if there is no
    closed form or if samples are joined by importance. Kingma and Welling 2014
    (arXiv:1312.6114), equation 6; Burda et al. 2016 (arXiv:1509.00519), equation 8.
    """

    default_name = "kl"
    adds_log_posterior = True

    def per_example(self, log_posterior: tf.Tensor, log_prior: tf.Tensor) -> tf.Tensor:
        """Returns `log q(z|x) - log p(z)`, `[rows]`, nats; a single value may be negative."""
        return log_posterior - log_prior


class FreeBits(LossTerm):
    """KL divergence that is not pushed below `nats_per_dimension` in any latent dimension.

    Reads `kl` `[rows, latent]`; returns a scalar, nats: the sum over dimensions of
    `max(mean over the batch of kl, nats_per_dimension)`.
    Kingma et al. 2016 (arXiv:1606.04934), equation 15, with one dimension a group.
    """

    nats_per_dimension: float = 0.1
    batch_statistic = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nats_per_dimension < 0:
            raise ValueError(
                f"FreeBits.nats_per_dimension must not be negative, got {self.nats_per_dimension}."
            )

    def per_example(self, kl: tf.Tensor) -> tf.Tensor:
        """Returns the bounded KL divergence, a scalar, nats."""
        return tf.reduce_sum(tf.maximum(tf.reduce_mean(kl, axis=0), self.nats_per_dimension))


class CapacityKL(LossTerm):
    """Distance of the KL divergence from a capacity that may grow with the step.

    Reads `kl` `[rows, latent]` and `step`; returns a scalar, nats: `|mean KL - capacity|`. The
    paper's gamma is the weight. Burgess et al. 2018 (arXiv:1804.03599), equation 8.
    """

    capacity: float | Schedule = 25.0
    batch_statistic = True

    def per_example(self, kl: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        """Returns the distance, a scalar, nats."""
        total = tf.reduce_mean(probability.sum_over_event(kl))
        return tf.abs(total - value_at(self.capacity, step))

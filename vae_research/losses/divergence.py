"""Terms over posterior and prior: they work with every bottleneck that writes what they read."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from vae_research import probability
from vae_research.levels import OF_LEVELS, levels
from vae_research.losses.term import LossTerm
from vae_research.schedules import Schedule, value_at
from vae_research.settings import did_you_mean


class _OfLatents(LossTerm):
    """A term over posterior and prior of all latents, or of one of them.

    Settings:
        latent: name of the latent, for example `z_2`; all of them by default.
    """

    latent: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latent is not None and set(OF_LEVELS) & set(self.rename or {}):
            raise ValueError(
                f"Loss term {self.label!r} has both latent={self.latent!r} and "
                f"rename={self.rename!r}; give one of them."
            )

    @property
    def label(self) -> str:
        """The name in logs, in TensorBoard and in messages."""
        of_one = self.name is None and self.latent is not None
        return f"{super().label}_{self.latent}" if of_one else super().label

    def renamed(self) -> Mapping[str, str]:
        """Returns the names of the tensors that are passed as parameters of another name."""
        if self.latent is None:
            return super().renamed()
        parts = [part for part in OF_LEVELS if part in self._readable()]
        return {**super().renamed(), **{part: f"{part}_{self.latent}" for part in parts}}

    def renamed_in(self, tensors: Mapping[str, tf.Tensor]) -> Mapping[str, str]:
        """Returns `renamed()`, by the names that a forward pass wrote.

        Raises:
            ValueError: there is no such latent.
        """
        if self.latent is None:
            return self.renamed()
        found = levels(tensors)
        if self.latent not in found:
            raise ValueError(
                f"Loss term {self.label!r} is about the latent {self.latent!r}; the forward pass "
                f"wrote divergences or densities of {', '.join(found) or 'none'}."
                f"{did_you_mean(self.latent, found)}"
            )
        return {**self.renamed(), **found[self.latent]}


class KLDivergence(_OfLatents):
    """KL divergence of the posterior from the prior, in closed form.

    Reads `kl` `[rows, latent]`; returns its sum over latent dimensions, nats: of all latents, or of
    one with `KLDivergence(latent="z_2")`. With `weight=beta` this is the beta-VAE (Higgins et al.
    2017). Kingma and Welling 2014 (arXiv:1312.6114), equation 10.
    """

    default_name = "kl"

    def per_example(self, kl: tf.Tensor) -> tf.Tensor:
        """Returns `KL(q(z|x) || p(z))`, `[rows]`, nats."""
        return probability.sum_over_event(kl)


class MonteCarloKL(_OfLatents):
    """KL divergence of the posterior from the prior, estimated from the sampled z.

    Reads `log_posterior` and `log_prior`, `[rows]`, nats, of all latents, or of one with
    `MonteCarloKL(latent="z_2")`. Unbiased, and needed if there is no closed form or if samples are
    joined by importance. Kingma and Welling 2014 (arXiv:1312.6114), equation 6; Burda et al. 2016
    (arXiv:1509.00519), equation 8.
    """

    default_name = "kl"
    adds_log_posterior = True

    def per_example(self, log_posterior: tf.Tensor, log_prior: tf.Tensor) -> tf.Tensor:
        """Returns `log q(z|x) - log p(z)`, `[rows]`, nats; a single value may be negative."""
        return log_posterior - log_prior


class FreeBits(_OfLatents):
    """KL divergence that is not pushed below `nats_per_dimension` in any latent dimension.

    Reads `kl` `[rows, latent]`; returns a scalar, nats: the sum over dimensions of
    `max(mean over the batch of kl, nats_per_dimension)`. A divergence that is one number for each
    row, as that of a full covariance, is refused.
    Kingma et al. 2016 (arXiv:1606.04934), equation 15, with one dimension a group.
    """

    nats_per_dimension: float = 0.1
    batch_statistic = True
    whole_data_set = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nats_per_dimension < 0:
            raise ValueError(
                f"FreeBits.nats_per_dimension must not be negative, got {self.nats_per_dimension}."
            )

    def per_example(self, kl: tf.Tensor) -> tf.Tensor:
        """Returns the bounded KL divergence, a scalar, nats."""
        if kl.shape.rank == 1:
            raise ValueError(
                f"FreeBits(nats_per_dimension={self.nats_per_dimension:g}) bounds each latent "
                "dimension, and kl is one number for each row here. Bound it as a whole with "
                "CapacityKL, or train KLDivergence()."
            )
        return tf.reduce_sum(tf.maximum(tf.reduce_mean(kl, axis=0), self.nats_per_dimension))


class CapacityKL(_OfLatents):
    """Distance of the KL divergence from a capacity that may grow with the step.

    Reads `kl` `[rows, latent]` and `step`; returns a scalar, nats: `|mean KL - capacity|`. The
    paper's gamma is the weight. Burgess et al. 2018 (arXiv:1804.03599), equation 8.
    """

    capacity: float | Schedule = 25.0
    batch_statistic = True
    whole_data_set = True

    def per_example(self, kl: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        """Returns the distance, a scalar, nats."""
        total = tf.reduce_mean(probability.sum_over_event(kl))
        return tf.abs(total - value_at(self.capacity, step))

"""Any distribution as a posterior."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from vae_research.bottlenecks.posterior import PosteriorBottleneck
from vae_research.distributions.library import (
    check_installed,
    checked,
    checked_continuous,
    distributions,
    key_of,
    typical,
)
from vae_research.distributions.prior import DistributionPrior
from vae_research.priors.prior import StandardNormalPrior
from vae_research.probability import sum_over_event
from vae_research.settings import declared_names, reads


class DistributionBottleneck(PosteriorBottleneck):
    """A posterior q(z|x) from TensorFlow Probability; a subclass writes `distribution`.

    The parameters of `distribution` name the tensors that it reads, of the encoder or of the data.
    It returns a `tfp.distributions.Distribution` whose batch and event shape together are `[rows]`
    and the shape of a code, and whose samples are reparameterised. Writes `z`, `log_posterior`,
    `log_prior`, and `kl` if the library knows the divergence from a `DistributionPrior` or from the
    standard normal prior, in the batch shape of the distribution.

        @keras.saving.register_keras_serializable(package="lab")
        class LogisticBottleneck(vr.DistributionBottleneck):
            def distribution(self, z_mean, z_log_var):
                return tfp.distributions.Logistic(z_mean, tf.exp(0.5 * z_log_var))

    The code without noise is the mean of the distribution, or its mode if no mean is known or
    finite. If neither is known, the subclass writes `center`.

    Args:
        latent_dim: number of latent dimensions, at least 1, or the shape of a code, `(7, 7, 16)`.
        prior: a `Prior`; by default the standard normal one.

    Raises:
        ImportError: TensorFlow Probability is not installed.
        ValueError: the distribution has another shape, variables that are not weights of the
            bottleneck, discrete values, or samples that are not reparameterised; or neither mean
            nor mode are known.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        check_installed(type(self).__name__)
        if type(self).distribution is DistributionBottleneck.distribution:
            raise TypeError(f"{type(self).__name__} must define distribution(self, ...).")
        super().__init__(*args, **kwargs)

    def distribution(self, *tensors: tf.Tensor) -> Any:
        """Returns q(z|x), a `tfp.distributions.Distribution` of a code for each row."""
        raise NotImplementedError

    def _checked_distribution(self, tensors: Mapping[str, tf.Tensor]) -> Any:
        part, shape = type(self).__name__, tf.TensorShape([None, *self.latents["z"]])
        made = checked(part, self.distribution(**tensors), shape, self.variables)
        return checked_continuous(part, made)

    @reads(lambda self: declared_names(self.distribution))
    def call(self, seed: tf.Tensor, **tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns one sample of z for each row, with its densities."""
        made = self._checked_distribution(tensors)
        if made.reparameterization_type != distributions().FULLY_REPARAMETERIZED:
            raise ValueError(
                f"{type(self).__name__}.distribution returned a {type(made).__name__}, whose "
                "samples are not reparameterised: no gradient would reach the encoder. Choose a "
                "distribution with reparameterization_type FULLY_REPARAMETERIZED."
            )
        z, log_posterior = made.experimental_sample_and_log_prob(seed=key_of(seed))
        z = tf.cast(z, tf.float32)
        written = {
            "z": z,
            "log_posterior": sum_over_event(log_posterior),
            "log_prior": self.prior.log_prob(z),
        }
        for prior in self._priors():
            if prior.event_shape == made.event_shape:
                try:
                    kl = distributions().kl_divergence(made, prior)
                except NotImplementedError:
                    continue
                return {**written, "kl": tf.cast(kl, tf.float32)}
        return written

    def _priors(self) -> list[Any]:
        """Returns the prior as distributions of the library that may have a divergence."""
        if isinstance(self.prior, DistributionPrior):
            return [self.prior.checked_distribution()]
        if not isinstance(self.prior, StandardNormalPrior):
            return []
        tfd, zeros = distributions(), tf.zeros(self.latents["z"])
        normal = tfd.Normal(zeros, 1.0)
        return [
            normal,
            tfd.Independent(normal, zeros.shape.rank),
            tfd.MultivariateNormalDiag(zeros),
        ]

    @reads(lambda self: ["z", *declared_names(self.distribution)])
    def log_prob(self, **tensors: tf.Tensor) -> tf.Tensor:
        """Returns log q(z|x) of given codes, `[rows]`, nats."""
        z = tensors.pop("z")
        made = self._checked_distribution(tensors)
        return sum_over_event(made.log_prob(tf.cast(z, made.dtype)))

    @reads(lambda self: declared_names(self.distribution))
    def center(self, **tensors: tf.Tensor) -> tf.Tensor:
        """Returns the mean of q(z|x), or its mode, `[rows, ...]`."""
        made = self._checked_distribution(tensors)
        return typical(type(self).__name__, "center(self, ...)", made)

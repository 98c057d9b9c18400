"""The Gaussian bottleneck of the original VAE."""

from __future__ import annotations

import keras
import tensorflow as tf

from vae_research import probability
from vae_research.bottlenecks.posterior import PosteriorBottleneck
from vae_research.priors.prior import DIAGONAL_POSTERIORS, REAL_NUMBERS, StandardNormalPrior
from vae_research.randomness import standard_normal


@keras.saving.register_keras_serializable(package="vae_research")
class GaussianBottleneck(PosteriorBottleneck):
    """Diagonal normal posterior; z is sampled by reparameterisation.

    Reads `z_mean`, `z_log_var` `[rows, ...]`, of the shape of a code, and `seed`; writes `z`,
    `log_posterior`, `log_prior` and, with the standard normal prior, `kl`, of the same shape. With
    another prior the divergence has no closed form: train with `MonteCarloKL()`. Kingma and Welling
    2014 (arXiv:1312.6114), section 2.4 and appendix B.

    Args:
        latent_dim: number of latent dimensions, at least 1, or the shape of a code, `(7, 7, 16)`.
        prior: a `Prior`; by default the standard normal one.

    Raises:
        ValueError: `latent_dim` is not a positive integer, nor a shape, or the prior is of other
            codes.
    """

    takes = (REAL_NUMBERS, DIAGONAL_POSTERIORS)

    def call(
        self, z_mean: tf.Tensor, z_log_var: tf.Tensor, seed: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Returns one sample of z for each row, with its densities."""
        self._check_latent_dim("z_mean", z_mean)
        self._check_latent_dim("z_log_var", z_log_var)
        z_mean, z_log_var = tf.cast(z_mean, tf.float32), tf.cast(z_log_var, tf.float32)
        noise = standard_normal(tf.shape(z_mean), seed)
        # Chained identities, so that no tensor has more than two consumers: a gradient sum of
        # three has no fixed order.
        log_var_of_densities = tf.identity(z_log_var)
        log_var_of_kl = tf.identity(log_var_of_densities)
        z = z_mean + tf.exp(0.5 * z_log_var) * noise
        # log q(z|x) of z = mean + exp(v/2) * noise depends on the noise and v only. Written so,
        # it has no quotient of two small numbers when the posterior is narrow.
        log_posterior = probability.standard_normal_log_density(noise) - 0.5 * log_var_of_densities
        written = {
            "z": z,
            "log_posterior": probability.sum_over_event(log_posterior),
            "log_prior": self.prior.log_prob(z),
        }
        if isinstance(self.prior, StandardNormalPrior):
            written["kl"] = probability.normal_kl_divergence(z_mean, log_var_of_kl)
        return written

    def log_prob(self, z: tf.Tensor, z_mean: tf.Tensor, z_log_var: tf.Tensor) -> tf.Tensor:
        """Returns log q(z|x) of given codes, `[rows]`, nats.

        Of its own sample a bottleneck writes `log_posterior`, which is computed from the noise and
        keeps its digits if the posterior is narrow.
        """
        return probability.sum_over_event(probability.normal_log_density(z, z_mean, z_log_var))

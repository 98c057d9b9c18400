"""A Gaussian bottleneck whose latent dimensions depend on each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from vae_research import probability
from vae_research.bottlenecks.posterior import PosteriorBottleneck
from vae_research.priors.prior import Prior, StandardNormalPrior
from vae_research.randomness import standard_normal


def strictly_lower(values: tf.Tensor, size: int) -> tf.Tensor:
    """Returns matrices `[rows, size, size]` with the values below the diagonal, else zeros.

    Args:
        values: `[rows, size (size - 1) / 2]`; each has a place of its own, not row by row.
        size: of a matrix, at least 2.
    """
    side = size - 1
    # All values twice, the second time backwards, fill a square whose lower triangle has each of
    # them once: slices and a mask, which XLA and gradients have no trouble with.
    square = tf.concat([values[:, side:], tf.reverse(values, [1])], axis=1)
    triangle = tf.linalg.band_part(tf.reshape(square, [-1, side, side]), -1, 0)
    return tf.pad(triangle, [[0, 0], [1, 0], [0, 1]])


@keras.saving.register_keras_serializable(package="vae_research")
class FullCovarianceGaussianBottleneck(PosteriorBottleneck):
    """Normal posterior N(m, L L^T) with a full covariance matrix; L is its Cholesky factor.

    Reads `z_mean` and `z_log_var`, of the shape of a code with d values, `z_scale_lower`
    `[rows, d (d - 1) / 2]`, and `seed`. `exp(z_log_var / 2)` is the diagonal of L, and
    `z_scale_lower` is what L has below it. Writes `z`, `log_posterior`, `log_prior` and, with the
    standard normal prior, `kl` `[rows]`. With another prior the divergence has no closed form:
    train with `MonteCarloKL()`. Kingma and Welling 2019 (arXiv:1906.02691), section 2.5.1.

    `dense_encoder(..., outputs={"z_mean": d, "z_log_var": d, "z_scale_lower": d * (d - 1) // 2})`
    writes what it reads.

    Args:
        latent_dim: number of latent dimensions, at least 2, or the shape of a code.
        prior: a `Prior`; by default the standard normal one.

    Raises:
        ValueError: `latent_dim` is not a positive integer, nor a shape, or is 1, or the prior is of
            other codes.
    """

    def __init__(
        self, latent_dim: int | Sequence[int], *, prior: Prior | None = None, **kwargs: Any
    ) -> None:
        super().__init__(latent_dim, prior=prior, **kwargs)
        if self.latent_dim < 2:
            raise ValueError("One value has no covariance with another: use GaussianBottleneck(1).")

    def call(
        self, z_mean: tf.Tensor, z_log_var: tf.Tensor, z_scale_lower: tf.Tensor, seed: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Returns one sample of z for each row, with its densities."""
        self._check_latent_dim("z_mean", z_mean)
        self._check_latent_dim("z_log_var", z_log_var)
        mean, log_var, lower = self._flat(z_mean, z_log_var, z_scale_lower)
        noise = standard_normal(tf.shape(mean), seed)
        # Chained identities, so that no tensor has more than two consumers.
        log_var_of_density = tf.identity(log_var)
        log_var_of_kl = tf.identity(log_var_of_density)
        z = mean + tf.exp(0.5 * log_var) * noise + tf.linalg.matvec(lower, noise)
        density = probability.standard_normal_log_density(noise) - 0.5 * log_var_of_density
        z = tf.reshape(z, tf.shape(z_mean))
        written = {
            "z": z,
            "log_posterior": probability.sum_over_event(density),
            "log_prior": self.prior.log_prob(z),
        }
        if isinstance(self.prior, StandardNormalPrior):
            # 0.5 (|m|^2 + |L|^2 - d) - log det L: the diagonal's is that of independent values.
            kl = probability.sum_over_event(probability.normal_kl_divergence(mean, log_var_of_kl))
            written["kl"] = kl + 0.5 * probability.sum_over_event(tf.square(lower))
        return written

    def log_prob(
        self, z: tf.Tensor, z_mean: tf.Tensor, z_log_var: tf.Tensor, z_scale_lower: tf.Tensor
    ) -> tf.Tensor:
        """Returns log q(z|x) of given codes, `[rows]`, nats."""
        mean, log_var, lower = self._flat(z_mean, z_log_var, z_scale_lower)
        scale = lower + tf.linalg.diag(tf.exp(0.5 * log_var))
        away = tf.reshape(tf.cast(z, tf.float32), [-1, self.latent_dim]) - mean
        noise = tf.linalg.triangular_solve(scale, away[..., tf.newaxis])[..., 0]
        density = probability.standard_normal_log_density(noise) - 0.5 * log_var
        return probability.sum_over_event(density)

    def _flat(
        self, z_mean: tf.Tensor, z_log_var: tf.Tensor, z_scale_lower: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns mean and log-variance as `[rows, d]`, and what is below a diagonal `[d, d]`."""
        size, values = self.latent_dim, tf.cast(z_scale_lower, tf.float32)
        entries = size * (size - 1) // 2
        if not values.shape[1:].is_compatible_with([entries]):
            raise ValueError(
                f"The encoder writes 'z_scale_lower' with shape {values.shape}; a covariance of "
                f"{size} values needs the shape ({entries},) for each row."
            )
        mean, log_var = (
            tf.reshape(tf.cast(value, tf.float32), [-1, size]) for value in (z_mean, z_log_var)
        )
        return mean, log_var, strictly_lower(values, size)

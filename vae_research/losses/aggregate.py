"""Terms over the aggregate posterior, the mean of q(z|x) over the data, from a batch of it."""

from __future__ import annotations

import tensorflow as tf

from vae_research import probability
from vae_research.losses.term import LossTerm


class TotalCorrelation(LossTerm):
    """Total correlation of the codes, KL(q(z) || prod_j q(z_j)), from a batch.

    Reads `z`, `z_mean` and `z_log_var`, `[rows, latent]`; returns a scalar, nats. q(z) is the
    mixture of the posteriors of the batch, and the expectation has the code of each of them. Of a
    batch it is too large, because every code is close to its own posterior: few rows say little
    about q(z). With KLDivergence() and the weight beta - 1 this is the beta-TCVAE. Chen et al. 2018
    (arXiv:1802.04942), equation 2, with the weights of disentanglement_lib: all rows alike.
    """

    batch_statistic = True

    def per_example(self, z: tf.Tensor, z_mean: tf.Tensor, z_log_var: tf.Tensor) -> tf.Tensor:
        """Returns the mean of `log q(z) - sum_j log q(z_j)`, a scalar, nats."""
        # log q(z_i|x_j) in each dimension, [i, j, latent]
        pairs = probability.normal_log_density(z[:, None], z_mean[None], z_log_var[None])
        log_rows = tf.math.log(tf.cast(tf.shape(z)[0], tf.float32))
        joint = tf.reduce_logsumexp(tf.reduce_sum(pairs, axis=2), axis=1) - log_rows
        marginals = tf.reduce_logsumexp(pairs, axis=1) - log_rows
        return tf.reduce_mean(joint - tf.reduce_sum(marginals, axis=1))


class CovariancePenalty(LossTerm):
    """Distance of the covariance of the codes from the identity: DIP-VAE I and II.

    Reads `z_mean` and `z_log_var`, `[rows, latent]`; returns a scalar, without a unit: the sum of
    squares of the covariances of different dimensions, and `diagonal` times that of the variances
    minus 1. The weight is the paper's lambda_od. Kumar et al. 2018 (arXiv:1711.00848), equations 5
    to 7.

    Settings:
        of_samples: the covariance of z, which is that of the means plus the mean of the variances
            (DIP-VAE II); otherwise of the means alone (DIP-VAE I).
        diagonal: lambda_d / lambda_od. The paper and Locatello et al. 2019 take 10 for the first
            kind and 1 for the second.
    """

    of_samples: bool = False
    diagonal: float = 10.0
    batch_statistic = True
    whole_data_set = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.diagonal < 0:
            raise ValueError(
                f"CovariancePenalty.diagonal must not be negative, got {self.diagonal}."
            )

    def per_example(self, z_mean: tf.Tensor, z_log_var: tf.Tensor) -> tf.Tensor:
        """Returns the penalty, a scalar."""
        centred = z_mean - tf.reduce_mean(z_mean, axis=0)
        rows = tf.cast(tf.shape(z_mean)[0], tf.float32)
        covariance = tf.matmul(centred, centred, transpose_a=True) / rows
        variances = tf.linalg.diag_part(covariance)
        off_diagonal = tf.reduce_sum(tf.square(covariance - tf.linalg.diag(variances)))
        if self.of_samples:
            variances += tf.reduce_mean(tf.exp(z_log_var), axis=0)
        return off_diagonal + self.diagonal * tf.reduce_sum(tf.square(variances - 1.0))

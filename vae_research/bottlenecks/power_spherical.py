"""Codes on a sphere, with the power spherical distribution as posterior."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from vae_research import probability
from vae_research.bottlenecks.posterior import PosteriorBottleneck
from vae_research.priors.prior import SPHERE
from vae_research.priors.sphere import SphericalUniformPrior, log_area
from vae_research.randomness import fold_in, standard_gamma, standard_normal


def log_normaliser(concentration: tf.Tensor, size: int) -> tf.Tensor:
    """Returns c of the density exp(-c) ((1 + m.z) / 2)^k of the power spherical distribution.

    De Cao and Aziz 2020 (arXiv:2006.04437), equation 6, with the factor 2^k in the power. It is
    float64: the logarithms of gamma functions are large numbers with a small difference.

    Args:
        concentration: k, at least 0.
        size: of z, at least 2.
    """
    half = 0.5 * (size - 1)
    first = tf.cast(concentration, tf.float64) + half
    difference = tf.math.lgamma(first) - tf.math.lgamma(first + half)
    constant = (size - 1) * math.log(2.0) + half * math.log(math.pi)
    return difference + constant


def power_spherical_kl(concentration: tf.Tensor, size: int) -> tf.Tensor:
    """Returns the KL divergence of the power spherical from the uniform distribution, nats.

    De Cao and Aziz 2020 (arXiv:2006.04437), equations 17 and 18.

    >>> round(float(power_spherical_kl(tf.constant(0.0), 3)), 6)
    0.0
    """

    @tf.custom_gradient
    def divergence(concentration: tf.Tensor) -> Any:
        half, power = 0.5 * (size - 1), tf.cast(concentration, tf.float64)
        first, second = power + half, power + 2.0 * half
        # The mean of log((1 + m.z) / 2).
        mean = power * (tf.math.digamma(first) - tf.math.digamma(second))
        value = mean - log_normaliser(concentration, size) + log_area(size)

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            one = tf.ones([], tf.float64)
            slope = tf.math.polygamma(one, first) - tf.math.polygamma(one, second)
            return upstream * tf.cast(power * slope, tf.float32)

        return tf.cast(value, tf.float32), gradient

    return divergence(concentration)


def _turned(z: tf.Tensor, direction: tf.Tensor) -> tf.Tensor:
    """Returns points of a sphere moved by the reflection that takes (1, 0, ..., 0) to a direction.

    It is the reflection to the opposite direction, and back through the centre, if that is farther
    from (1, 0, ..., 0): a difference of nearly equal vectors has no direction.
    """
    sign = tf.where(direction[..., :1] > 0.0, -1.0, 1.0)
    pole = tf.one_hot(0, z.shape[-1])
    # Chained identities, so that no tensor has more than two consumers.
    normal = pole - sign * direction
    of_product = tf.identity(normal)
    of_length = tf.identity(of_product)
    product = tf.reduce_sum(of_product * z, axis=-1, keepdims=True)
    # The squared length of the normal is twice its first value.
    return sign * (tf.identity(z) - normal * (product / of_length[..., :1]))


@keras.saving.register_keras_serializable(package="vae_research")
class PowerSphericalBottleneck(PosteriorBottleneck):
    """z is a point of the unit sphere, with a density that falls off from a mean direction.

    Reads `z_mean` `[rows, ..., size]`, which is normalised to a direction m, `z_concentration`
    `[rows, ..., 1]`, of which softplus is the concentration k at least 0, and `seed`; writes `z`,
    vectors of length 1 in their last axis, `log_posterior`, `log_prior` and `kl` `[rows, ...]`, one
    for each vector. The density by the area of the sphere is proportional to (1 + m.z)^k. z is
    reparameterised. De Cao and Aziz 2020 (arXiv:2006.04437).

    `dense_encoder(..., outputs={"z_mean": 10, "z_concentration": 1})` writes what it reads.

    Args:
        latent_dim: number of values of a code, at least 2, one more than the sphere has dimensions;
            or the shape of a map of such vectors, `(7, 7, 4)`.
        prior: by default, and of this package only, a `SphericalUniformPrior`.

    Raises:
        ValueError: `latent_dim` is not such a number, nor a shape, or the prior is of other codes.
    """

    takes = (SPHERE,)
    default_prior = SphericalUniformPrior

    def call(
        self, z_mean: tf.Tensor, z_concentration: tf.Tensor, seed: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Returns one sample of z for each row, with its densities."""
        direction, concentration = self._parameters(z_mean, z_concentration)
        size = self.latents["z"][-1]
        # Chained identities, here and below, so that no tensor has more than two consumers.
        of_density = tf.identity(concentration)
        of_kl = tf.identity(of_density)
        # b = first / (first + second) is Beta distributed, and 2 b - 1 is m.z. The noise has both
        # the length of the second Gamma number and the direction of z across m.
        first = standard_gamma(concentration + 0.5 * (size - 1), fold_in(seed, 0))
        across = [tf.shape(direction)[:-1], [size - 1]]
        noise = standard_normal(tf.concat(across, axis=0), fold_in(seed, 1))
        second = 0.5 * tf.reduce_sum(tf.square(noise), axis=-1, keepdims=True)
        of_length = tf.identity(first)
        of_ratio = tf.identity(of_length)
        total = first + second
        along, length = (tf.identity(of_length) - second) / total, tf.sqrt(2.0 * of_ratio) / total
        z = _turned(tf.concat([along, length * noise], axis=-1), direction)
        density = self._log_density(tf.math.log1p(second / tf.identity(of_ratio)), of_density)
        return {
            "z": z,
            "log_posterior": density,
            "log_prior": self.prior.log_prob(z),
            "kl": power_spherical_kl(of_kl, size)[..., 0],
        }

    def log_prob(self, z: tf.Tensor, z_mean: tf.Tensor, z_concentration: tf.Tensor) -> tf.Tensor:
        """Returns log q(z|x) of given codes, `[rows]`, nats, by the area of the sphere."""
        direction, concentration = self._parameters(z_mean, z_concentration)
        # (1 + m.z) / 2 = |m + z|^2 / 4 keeps its digits opposite to m.
        near = 0.25 * tf.reduce_sum(tf.square(z + direction), axis=-1, keepdims=True)
        return self._log_density(-tf.math.log(tf.maximum(near, 1e-30)), concentration)

    def _log_density(self, minus_log: tf.Tensor, concentration: tf.Tensor) -> tf.Tensor:
        """Returns the log-density, `[rows]`, from -log((1 + m.z) / 2)."""
        constant = log_normaliser(tf.identity(concentration), self.latents["z"][-1])
        constant = tf.cast(constant, tf.float32)
        return -probability.sum_over_event(concentration * minus_log + constant)

    def _parameters(
        self, z_mean: tf.Tensor, z_concentration: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns mean directions, and concentrations of at least 0."""
        shape = (*self.latents["z"][:-1], 1)
        if not z_concentration.shape[1:].is_compatible_with(shape):
            raise ValueError(
                f"The encoder writes 'z_concentration' with shape {z_concentration.shape}; codes "
                f"of shape {self.latents['z']} need the shape {shape} for each row."
            )
        return self.center(z_mean), tf.nn.softplus(tf.cast(z_concentration, tf.float32))

    def center(self, z_mean: tf.Tensor) -> tf.Tensor:
        """Returns the mean direction of each example, `[rows, ...]`."""
        self._check_latent_dim("z_mean", z_mean)
        return self.codes_of_values(tf.cast(z_mean, tf.float32))

    def codes_of_values(self, values: tf.Tensor) -> tf.Tensor:
        """Returns values divided by their length; a vector of zeros becomes (1, 0, ..., 0)."""
        is_zero = tf.reduce_all(values == 0.0, axis=-1, keepdims=True)
        pole = tf.one_hot(0, values.shape[-1])
        return tf.math.l2_normalize(tf.where(is_zero, pole, values), axis=-1, epsilon=1e-30)

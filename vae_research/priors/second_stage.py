"""A second variational autoencoder, of the codes of the first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from vae_research import probability
from vae_research.arguments import checked_integer
from vae_research.priors.prior import Prior
from vae_research.randomness import fold_in, standard_normal

# Bound of the logarithm of a variance, as that of the package's networks.
_LOG_VAR_BOUND = 20.0
# The variance of p(z|u) before training. With that of the codes, 1, noise would explain them all,
# and u would stay unused.
_FIRST_LOG_VAR = -3.0


@keras.saving.register_keras_serializable(package="vae_research")
class SecondStagePrior(Prior):
    """A variational autoencoder of codes, p(z) = E p(z|u), fitted when the model is trained.

    u is standard normal, and p(z|u) is normal with one trained variance for all values. There is no
    density, only its lower bound, which is trained. Dai and Wipf 2019 (arXiv:1903.05789), section
    4.

    Args:
        latent_dim: of u; by default that of the codes, as in the paper.
        hidden_units: sizes of the layers of the encoder, and in reverse of the decoder.

    Raises:
        ValueError: a size is not a positive integer.
    """

    has_density = False

    def __init__(
        self,
        latent_dim: int | None = None,
        *,
        hidden_units: Sequence[int] = (256, 256),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if latent_dim is not None:
            checked_integer("latent_dim", latent_dim, 1)
        self.latent_dim = latent_dim
        self.hidden_units = [checked_integer("hidden_units", size, 1) for size in hidden_units]

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Makes encoder, decoder and the variance."""
        super().build(input_shape)
        latent = self._latent
        self.encoder = _network("encoder", self.size, self.hidden_units, 2 * latent)
        self.decoder = _network("decoder", latent, self.hidden_units[::-1], self.size)
        first = keras.initializers.Constant(_FIRST_LOG_VAR)
        self.log_var = self.add_weight(shape=(), initializer=first, name="log_var")

    def training_loss(self, z: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Returns an upper bound of -log p(z), `[rows]`, nats, of one sample of u for each code."""
        values = tf.reshape(z, [-1, self.size])
        mean, log_var = tf.split(self.encoder(values), 2, axis=1)
        log_var = _bounded(log_var)
        noise = standard_normal(tf.shape(mean), seed)
        decoded = self.decoder(mean + tf.exp(0.5 * log_var) * noise)
        density = probability.normal_log_density(values, decoded, _bounded(self.log_var))
        divergence = probability.normal_kl_divergence(mean, log_var)
        return probability.sum_over_event(divergence) - probability.sum_over_event(density)

    def log_prob(self, z: tf.Tensor) -> tf.Tensor:
        """Raises ValueError: there is no density."""
        raise ValueError(
            "A SecondStagePrior has no density, only a bound: it cannot be trained with a model, "
            "and is fitted to a trained one by fit_prior."
        )

    def sample(self, count: int, seed: tf.Tensor) -> tf.Tensor:
        """Returns `[count, ...]` draws from p(z|u), of u from its prior."""
        mean = self.decoder(standard_normal([count, self._latent], fold_in(seed, 0)))
        noise = standard_normal([count, self.size], fold_in(seed, 1))
        codes = mean + tf.exp(0.5 * _bounded(self.log_var)) * noise
        return tf.reshape(codes, [-1, *self.event_shape])

    @property
    def _latent(self) -> int:
        return self.size if self.latent_dim is None else self.latent_dim

    def get_config(self) -> dict[str, Any]:
        """Returns the settings."""
        settings = {"latent_dim": self.latent_dim, "hidden_units": self.hidden_units}
        return {**super().get_config(), **settings}


def _network(name: str, inputs: int, hidden_units: Sequence[int], outputs: int) -> keras.Sequential:
    layers = [keras.layers.Dense(size, "relu", dtype="float32") for size in hidden_units]
    network = keras.Sequential([*layers, keras.layers.Dense(outputs, dtype="float32")], name=name)
    network.build([None, inputs])
    return network


def _bounded(log_var: tf.Tensor) -> tf.Tensor:
    return _LOG_VAR_BOUND * tf.tanh(tf.convert_to_tensor(log_var) / _LOG_VAR_BOUND)

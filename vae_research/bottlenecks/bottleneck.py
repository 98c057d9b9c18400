"""The base of bottlenecks: the layer between encoder and decoder, with posterior and prior."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from vae_research.arguments import checked_integer


class Bottleneck(keras.layers.Layer):
    """Turns the encoder's tensors into `z`; subclasses write `call`, `center`, `sample_prior`.

    The parameters of `call` name the tensors that it reads. It returns a dictionary with `z`
    `[rows, latent]`; a stochastic bottleneck adds `log_posterior` and `log_prior`, `[rows]`, nats,
    and, if there is a closed form, `kl`, `[rows, latent]`, nats. All are float32 under every
    precision policy.

    For gradient estimators, a stochastic bottleneck has two more methods, which return `[rows]`,
    nats: `log_prob(self, z, ...)`, log q(z|x), and `prior_log_prob(self, z, ...)`, log p(z). Their
    further parameters name tensors of data and encoder.

    Args:
        latent_dim: number of latent dimensions, at least 1.

    Raises:
        ValueError: `latent_dim` is not a positive integer.
    """

    has_prior = True

    def __init__(self, latent_dim: int, **kwargs: Any) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.latent_dim = checked_integer("latent_dim", latent_dim, 1)

    def center(self, z_mean: tf.Tensor) -> tf.Tensor:
        """Returns the code of each example without noise, `[rows, latent]`."""
        return tf.cast(z_mean, tf.float32)

    def sample_prior(self, count: int, seed: tf.Tensor) -> tf.Tensor:
        """Returns codes from the prior, `[count, latent]`; `seed` is a stateless key, `[2]`."""
        raise TypeError(f"{type(self).__name__} must define sample_prior(self, count, seed).")

    def get_config(self) -> dict[str, Any]:
        """Returns the settings."""
        return {**super().get_config(), "latent_dim": self.latent_dim}

    def _check_latent_dim(self, name: str, tensor: tf.Tensor) -> None:
        if tensor.shape[-1] != self.latent_dim:
            raise ValueError(
                f"The encoder writes {name!r} with shape {tensor.shape}; "
                f"{type(self).__name__}(latent_dim={self.latent_dim}) needs "
                f"{self.latent_dim} in the last axis."
            )

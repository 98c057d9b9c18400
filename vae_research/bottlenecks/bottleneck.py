"""What a bottleneck is: the layer between encoder and decoder that owns posterior and prior."""

from __future__ import annotations

import numbers
from typing import Any

import keras
import tensorflow as tf


class Bottleneck(keras.layers.Layer):
    """From the encoder's tensors to `z`; a subclass writes `call`, `center` and `sample_prior`.

    `call` names what it reads and returns a dictionary with `z` `[rows, latent]` and, for a
    stochastic bottleneck, `log_posterior` and `log_prior` `[rows]` in nats and, where there is a
    closed form, `kl` `[rows, latent]` in nats. All of it is float32 under every precision policy.

    Args:
        latent_dim: number of latent dimensions, at least 1.

    Raises:
        ValueError: `latent_dim` is no positive integer.
    """

    has_prior = True

    def __init__(self, latent_dim: int, **kwargs: Any) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        integer = isinstance(latent_dim, numbers.Integral) and not isinstance(latent_dim, bool)
        if not integer or latent_dim < 1:
            raise ValueError(f"latent_dim must be an integer >= 1, got {latent_dim!r}.")
        self.latent_dim = int(latent_dim)

    def center(self, z_mean: tf.Tensor) -> tf.Tensor:
        """Returns the code that stands for an example without noise, `[rows, latent]`."""
        return tf.cast(z_mean, tf.float32)

    def sample_prior(self, count: int, seed: tf.Tensor) -> tf.Tensor:
        """Returns `[count, latent]` codes from the prior; `seed` is a stateless key, `[2]`."""
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

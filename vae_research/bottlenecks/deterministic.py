"""The bottleneck of a plain autoencoder."""

from __future__ import annotations

import keras
import tensorflow as tf

from vae_research.bottlenecks.bottleneck import Bottleneck


@keras.saving.register_keras_serializable(package="vae_research")
class DeterministicBottleneck(Bottleneck):
    """Passes the encoder's `z_mean` on as `z`, without noise, posterior or prior.

    A model with this bottleneck has no ELBO, and none is logged.
    """

    has_prior = False

    def call(self, z_mean: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns `z`, `[rows, ...]`, of the shape of a code."""
        self._check_latent_dim("z_mean", z_mean)
        return {"z": tf.cast(z_mean, tf.float32)}

    def sample_prior(self, count: int, seed: tf.Tensor) -> tf.Tensor:
        """Raises ValueError: there is no prior."""
        raise ValueError(
            "A deterministic bottleneck has no prior to sample from. Decode codes of your own with "
            "model.decode(z)."
        )

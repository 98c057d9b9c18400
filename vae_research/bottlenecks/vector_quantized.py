"""Vector quantisation with a codebook that follows the encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from vae_research.bottlenecks.quantized import QuantizedBottleneck
from vae_research.priors.prior import Prior


@keras.saving.register_keras_serializable(package="vae_research")
class VectorQuantizedBottleneck(QuantizedBottleneck):
    """Each vector of the encoder becomes the nearest one of a codebook (VQ-VAE).

    Reads and writes are those of `QuantizedBottleneck`, and `seed`. In training, codes move to the
    mean of the vectors nearest to them, by exponential moving averages; an evaluation changes
    nothing. The term `Commitment` keeps the encoder near its codes, `Perplexity` shows how many of
    them are used. Van den Oord et al. 2017 (arXiv:1711.00937), equation 1 and appendix A.1.

    A code whose moving average falls below `restart_below` times the mean of all is put onto a
    random vector of the batch, as in the first step all of them are. Dhariwal et al. 2020
    (arXiv:2005.00341), section 3.

    Args:
        latent_dim: `(7, 7, 16)` for 7 times 7 vectors of 16 values; `16` for a single one.
        num_codes: number of vectors in the codebook, at least 2.
        decay: of the moving averages, from 0 to below 1.
        restart_below: share of the mean use of a code; 0 never restarts one.
        prior: of indices; by default a `UniformPrior`.

    Raises:
        ValueError: a number is out of its range, or the prior is of other codes.
    """

    def __init__(
        self,
        latent_dim: int | Sequence[int],
        num_codes: int = 512,
        *,
        decay: float = 0.99,
        restart_below: float = 0.01,
        prior: Prior | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(latent_dim, num_codes, prior=prior, **kwargs)
        self.decay, self.restart_below = float(decay), float(restart_below)
        for name in ("decay", "restart_below"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must be from 0 to below 1, got {getattr(self, name)!r}.")
        kept: dict[str, Any] = {"trainable": False, "dtype": "float32", "aggregation": "mean"}
        shape = (self.num_codes, self.latents["z"][-1])
        self.codebook = self.add_weight(
            shape=shape, initializer="random_normal", name="codebook", **kept
        )
        self.counts = self.add_weight(shape=shape[:1], initializer="zeros", name="counts", **kept)

    def call(
        self, z_mean: tf.Tensor, seed: tf.Tensor, training: bool = False
    ) -> dict[str, tf.Tensor]:
        """Returns the code of each row, with its probability, and then moves the codebook."""
        written, indices = self.quantized(z_mean)
        if training:
            vectors = tf.reshape(z_mean, [-1, self.codebook.shape[1]])
            vectors = tf.stop_gradient(tf.cast(vectors, tf.float32))
            self._follow(vectors, tf.reshape(indices, [-1]), seed)
        return written

    def to_indices(self, z: tf.Tensor) -> tf.Tensor:
        """Returns the indices of the codes nearest to `z` `[rows, ..., size]`, int32."""
        codebook = tf.convert_to_tensor(self.codebook)
        # |z - e|^2 without |z|^2, which is the same for all codes.
        distance = tf.reduce_sum(tf.square(codebook), axis=1) - 2.0 * tf.matmul(
            tf.reshape(z, [-1, codebook.shape[1]]), codebook, transpose_b=True
        )
        nearest = tf.argmin(distance, axis=1, output_type=tf.int32)
        return tf.reshape(nearest, tf.shape(z)[:-1])

    def from_indices(self, indices: tf.Tensor) -> tf.Tensor:
        """Returns the codes with these indices, `[rows, ..., size]`."""
        return tf.gather(tf.convert_to_tensor(self.codebook), indices)

    def _follow(self, vectors: tf.Tensor, indices: tf.Tensor, seed: tf.Tensor) -> None:
        """Moves counts and codes by the vectors of a batch, `[count, size]`, and their codes."""
        codebook = tf.convert_to_tensor(self.codebook)
        nearest = tf.one_hot(indices, self.num_codes)
        hits, rate = tf.reduce_sum(nearest, axis=0), 1.0 - self.decay
        counts = self.decay * self.counts + rate * hits
        # The average of sums over that of counts, as a step from where a code is: one that was not
        # hit stays in its place to the last bit.
        pull = tf.matmul(nearest, vectors, transpose_a=True) - hits[:, tf.newaxis] * codebook
        codebook += rate * tf.math.divide_no_nan(pull, counts[:, tf.newaxis])
        total = tf.shape(vectors)[0]
        mean = tf.cast(total, tf.float32) / self.num_codes
        dead = counts < self.restart_below * mean
        rows = tf.random.stateless_uniform([self.num_codes], seed, 0, total, tf.int32, alg="philox")
        self.codebook.assign(tf.where(dead[:, tf.newaxis], tf.gather(vectors, rows), codebook))
        self.counts.assign(tf.where(dead, mean, counts))

    def get_config(self) -> dict[str, Any]:
        """Returns the settings."""
        settings = {"num_codes": self.num_codes, "decay": self.decay}
        return {**super().get_config(), **settings, "restart_below": self.restart_below}

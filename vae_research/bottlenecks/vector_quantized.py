"""Vector quantisation with a codebook that follows the encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from vae_research.bottlenecks.quantized import QuantizedBottleneck
from vae_research.distribution import whole_rows
from vae_research.priors.prior import Prior


def moved_codebook(
    codebook: tf.Tensor,
    counts: tf.Tensor,
    vectors: tf.Tensor,
    indices: tf.Tensor,
    seed: tf.Tensor,
    decay: float,
    restart_below: float,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns a codebook and its counts after a batch.

    Van den Oord et al. 2017 (arXiv:1711.00937), appendix A.1: counts N and sums m of the vectors of
    each code are moving averages, N' = d N + (1 - d) n, m' = d m + (1 - d) s, and a code is m / N.
    The same as a step from where a code is, e' = e + (1 - d) (s - n e) / N', leaves one that has no
    vectors in its place to the last bit.

    Args:
        codebook: `[codes, size]`.
        counts: moving averages, `[codes]`.
        vectors: of the batch, `[count, size]`.
        indices: the code of each vector, `[count]`.
        seed: a stateless key, `[2]`, for the vectors that dead codes are put on.
        decay: of the averages.
        restart_below: a code with a smaller share of the mean count is dead; 0 for none. It begins
            again a tenth above that.
    """
    nearest = tf.one_hot(indices, tf.shape(counts)[0])
    hits, rate = tf.reduce_sum(nearest, axis=0), 1.0 - decay
    counts = decay * counts + rate * hits
    pull = tf.matmul(nearest, vectors, transpose_a=True) - hits[:, tf.newaxis] * codebook
    codebook += rate * tf.math.divide_no_nan(pull, counts[:, tf.newaxis])
    total = tf.shape(vectors)[0]
    mean = tf.cast(total, tf.float32) / tf.cast(tf.shape(counts)[0], tf.float32)
    dead = counts < restart_below * mean
    rows = tf.random.stateless_uniform(tf.shape(counts), seed, 0, total, tf.int32, alg="philox")
    moved = tf.where(dead[:, tf.newaxis], tf.gather(vectors, rows), codebook)
    return moved, tf.where(dead, 1.1 * restart_below * mean, counts)


@keras.saving.register_keras_serializable(package="vae_research")
class VectorQuantizedBottleneck(QuantizedBottleneck):
    """Each vector of the encoder becomes the nearest one of a codebook (VQ-VAE).

    Reads and writes are those of `QuantizedBottleneck`, and `seed`. In training, codes move to the
    mean of the vectors nearest to them, by exponential moving averages; an evaluation changes
    nothing. Beside a `Critic` they move with each of its updates, too, as the averages of batch
    normalisation do. The term `Commitment` keeps the encoder near its codes, `Perplexity` shows how
    many of them are used. Van den Oord et al. 2017 (arXiv:1711.00937), equation 1 and appendix A.1.

    A code whose moving average falls below `restart_below` times the mean use is put onto a random
    vector of the batch, and again if none is near it in the next 10 steps (for a decay of 0.99), as
    nearly all are in the first step. Dhariwal et al. 2020 (arXiv:2005.00341), section 3.

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
        restart_below: float = 0.1,
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
            # Those of the global batch, by which every replica moves its codebook alike.
            z_mean, indices = whole_rows(tf.stop_gradient(z_mean)), whole_rows(indices)
            vectors = tf.reshape(z_mean, [-1, self.codebook.shape[1]])
            vectors = tf.stop_gradient(tf.cast(vectors, tf.float32))
            state = tf.convert_to_tensor(self.codebook), tf.convert_to_tensor(self.counts)
            moved, counts = moved_codebook(
                *state, vectors, tf.reshape(indices, [-1]), seed, self.decay, self.restart_below
            )
            self.codebook.assign(moved)
            self.counts.assign(counts)
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

    def get_config(self) -> dict[str, Any]:
        """Returns the settings."""
        settings = {"num_codes": self.num_codes, "decay": self.decay}
        return {**super().get_config(), **settings, "restart_below": self.restart_below}

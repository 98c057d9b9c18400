"""The base of bottlenecks with a finite number of codes, and finite scalar quantisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vae_research.arguments import checked_integer
from vae_research.bottlenecks.posterior import PosteriorBottleneck
from vae_research.priors.indices import UniformPrior
from vae_research.priors.prior import INDICES, Prior


class QuantizedBottleneck(PosteriorBottleneck):
    """z is one of `num_codes` vectors at each position, the one that the encoder's output is near.

    Reads `z_mean` `[rows, ..., size]`, a vector at each position of a map of any shape, or a single
    one. Writes `z` of the same shape, whose gradient goes to `z_mean` (straight-through),
    `code_usage` `[rows, num_codes]`, the share of positions with each code, and `log_posterior`,
    `log_prior` and `kl`, `[rows]`: the posterior has all its mass on one code, so that log q is 0
    and the divergence is exactly -log p(code), whatever the prior. The prior is one of indices.

    Subclasses write `to_indices` and `from_indices`, and a `call` that returns what `quantized`
    writes. There is no `log_prob`: codes have no path that a gradient estimator could follow.

    Args:
        latent_dim: `(7, 7, 16)` for 7 times 7 vectors of 16 values; `16` for a single one.
        num_codes: number of vectors, at least 2.
        prior: of indices, with as many of them; by default a `UniformPrior`.

    Raises:
        ValueError: a number is not such an integer, or the prior is of other codes.
    """

    takes = (INDICES,)
    default_prior = UniformPrior

    def __init__(
        self,
        latent_dim: int | Sequence[int],
        num_codes: int,
        *,
        prior: Prior | None = None,
        **kwargs: Any,
    ) -> None:
        count = checked_integer("num_codes", num_codes, 2)
        super().__init__(
            latent_dim, prior=UniformPrior(count) if prior is None else prior, **kwargs
        )
        self.num_codes = count
        of_prior = getattr(self.prior, "num_codes", count)
        if of_prior != count:
            raise ValueError(
                f"{type(self.prior).__name__}(num_codes={of_prior}) is the prior of so many codes; "
                f"{type(self).__name__} has {count}."
            )

    @property
    def _prior_shape(self) -> tuple[int, ...]:
        return super()._prior_shape[:-1]

    def relaxed(self, z_mean: tf.Tensor) -> tf.Tensor:
        """Returns what is rounded to the nearest code, as a differentiable function of `z_mean`."""
        return z_mean

    def to_indices(self, z: tf.Tensor) -> tf.Tensor:
        """Returns the indices of the codes nearest to `z` `[rows, ..., size]`, int32."""
        raise TypeError(f"{type(self).__name__} must define to_indices(self, z).")

    def from_indices(self, indices: tf.Tensor) -> tf.Tensor:
        """Returns the codes with these indices, `[rows, ..., size]`."""
        raise TypeError(f"{type(self).__name__} must define from_indices(self, indices).")

    def quantized(self, z_mean: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """Returns what `call` writes, and the indices of the codes."""
        self._check_latent_dim("z_mean", z_mean)
        relaxed = self.relaxed(tf.cast(z_mean, tf.float32))
        indices = self.to_indices(relaxed)
        log_prior = self.prior.log_prob(indices)
        written = {
            # The difference is exactly zero: a decoder sees codes and nothing else.
            "z": self.from_indices(indices) + (relaxed - tf.stop_gradient(relaxed)),
            "code_usage": self._usage(indices),
            "log_posterior": tf.zeros_like(log_prior),
            "log_prior": log_prior,
            "kl": -tf.identity(log_prior),
        }
        return written, indices

    def _usage(self, indices: tf.Tensor) -> tf.Tensor:
        """Returns the share of positions with each code, `[rows, num_codes]`."""
        rows, positions = tf.shape(indices)[0], self.prior.size
        flat = tf.reshape(indices, [rows, positions]) + self.num_codes * tf.range(rows)[:, None]
        share = tf.fill(tf.shape(flat), 1.0 / positions)
        counted = tf.math.unsorted_segment_sum(share, flat, rows * self.num_codes)
        return tf.reshape(counted, [rows, self.num_codes])

    def values_of_codes(self, codes: tf.Tensor) -> tf.Tensor:
        """Returns what a prior is fitted to after training: the indices of codes."""
        return self.to_indices(codes)

    def codes_of_values(self, values: tf.Tensor) -> tf.Tensor:
        """Returns the codes of which `values_of_codes` makes these values."""
        return self.from_indices(values)

    def center(self, z_mean: tf.Tensor) -> tf.Tensor:
        """Returns the code of each example; there is no noise."""
        relaxed = self.relaxed(tf.cast(z_mean, tf.float32))
        return self.from_indices(self.to_indices(relaxed))

    def prior_log_prob(self, z: tf.Tensor) -> tf.Tensor:
        """Returns log p of given codes, `[rows]`, nats."""
        return self.prior.log_prob(self.to_indices(z))

    def sample_prior(self, count: int, seed: tf.Tensor) -> tf.Tensor:
        """Returns `[count, ...]` codes from the prior."""
        return self.from_indices(self.prior.sample(count, seed))


@keras.saving.register_keras_serializable(package="vae_research")
class FiniteScalarQuantizedBottleneck(QuantizedBottleneck):
    """Each value of a vector is bounded and rounded to one of a few levels; nothing is trained.

    Codes are all combinations of levels, numbers from -1 to 1. Reads and writes are those of
    `QuantizedBottleneck`. Mentzer et al. 2024 (arXiv:2309.15505), section 3.1 and appendix A.1.

    Args:
        latent_dim: shape of a code, whose last number is that of `levels`; `(7, 7, 4)`.
        levels: how many there are for each value of a vector, at least 2.
        prior: of indices; by default a `UniformPrior`.

    Raises:
        ValueError: a number is not such an integer, the last of `latent_dim` is not the number of
            levels, or the prior is of other codes.
    """

    def __init__(
        self,
        latent_dim: int | Sequence[int],
        levels: Sequence[int] = (8, 5, 5, 5),
        *,
        prior: Prior | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(levels, int):
            raise ValueError(f"levels has a number for each value of a vector, got {levels}.")
        each = [checked_integer("levels", level, 2) for level in levels]
        super().__init__(latent_dim, math.prod(each), prior=prior, **kwargs)
        self.levels = tuple(each)
        if self.latents["z"][-1] != len(each):
            raise ValueError(
                f"A vector of {self.latents['z'][-1]} values needs as many levels, got {levels!r}."
            )

    def call(self, z_mean: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the code of each row, with its probability."""
        return self.quantized(z_mean)[0]

    def relaxed(self, z_mean: tf.Tensor) -> tf.Tensor:
        """Returns values from -1 to 1 that move smoothly between levels."""
        levels = np.array(self.levels, np.float32)
        bound = (levels - 1.0) * (1.0 + 1e-3) / 2.0
        # Of an even number of levels, one more is below zero than above: they are shifted by half.
        offset = np.where(levels % 2.0 == 1.0, np.float32(0.0), np.float32(0.5))
        return (tf.tanh(z_mean + np.arctanh(offset / bound)) * bound - offset) / self._half

    def to_indices(self, z: tf.Tensor) -> tf.Tensor:
        """Returns the indices of the codes nearest to `z` `[rows, ..., size]`, int32."""
        digits = tf.cast(tf.round(z * self._half) + self._half, tf.int32)
        # A digit that is too large would count for the next one.
        digits = tf.clip_by_value(digits, 0, tf.constant(self.levels) - 1)
        return tf.reduce_sum(digits * self._places, axis=-1)

    def from_indices(self, indices: tf.Tensor) -> tf.Tensor:
        """Returns the codes with these indices, `[rows, ..., size]`."""
        digits = indices[..., tf.newaxis] // self._places % tf.constant(self.levels)
        return (tf.cast(digits, tf.float32) - self._half) / self._half

    @property
    def _half(self) -> tf.Tensor:
        return tf.constant([level // 2 for level in self.levels], tf.float32)

    @property
    def _places(self) -> tf.Tensor:
        """What each digit counts in an index, the first one 1."""
        return tf.constant([math.prod(self.levels[:place]) for place in range(len(self.levels))])

    def get_config(self) -> dict[str, Any]:
        """Returns the settings."""
        return {**super().get_config(), "levels": list(self.levels)}

"""Terms for quantised and deterministic codes."""

from __future__ import annotations

from typing import ClassVar

import tensorflow as tf

from vae_research import probability
from vae_research.losses.term import LossTerm


class Commitment(LossTerm):
    """Squared distance of the encoder's output from its code, which keeps it near.

    Reads `z_mean` and `z` `[rows, ...]`; returns the sum over all values. The gradient goes to
    `z_mean` alone: a codebook follows by moving averages. The paper's beta is the weight, 0.25.
    Van den Oord et al. 2017 (arXiv:1711.00937), equation 3.
    """

    not_differentiated: ClassVar[tuple[str, ...]] = ("z",)

    def per_example(self, z_mean: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
        """Returns `|z_mean - z|^2`, `[rows]`."""
        distance = tf.cast(z_mean, tf.float32) - tf.stop_gradient(tf.cast(z, tf.float32))
        return probability.sum_over_event(tf.square(distance))


class Perplexity(LossTerm):
    """How many codes a batch uses: the exponential of the entropy of their frequencies.

    Reads `code_usage` `[rows, num_codes]`; returns a scalar, 1 if a single code is used and
    `num_codes` if all are used equally. It is logged; it has no gradient to train.
    """

    batch_statistic = True
    whole_data_set = True
    unit = "codes"
    weight = None

    def per_example(self, code_usage: tf.Tensor) -> tf.Tensor:
        """Returns the perplexity of the batch, a scalar."""
        share = tf.reduce_mean(code_usage, axis=0)
        return tf.exp(-tf.reduce_sum(tf.math.xlogy(share, share)))


class SquaredNorm(LossTerm):
    """Half of the squared length of the code: the term of a regularised autoencoder.

    Reads `z` `[rows, ...]`. With `DeterministicBottleneck`, whose codes have no prior, it keeps
    them together; up to a constant it is minus the log-density of a standard normal prior. Ghosh et
    al. 2020 (arXiv:1903.12436), equation 11.
    """

    def per_example(self, z: tf.Tensor) -> tf.Tensor:
        """Returns `|z|^2 / 2`, `[rows]`."""
        return 0.5 * probability.sum_over_event(tf.square(z))

"""Likelihoods p(x|z) of binary and of real values, from what the decoder writes for each."""

from __future__ import annotations

import math
from typing import ClassVar

import tensorflow as tf

from vae_research import probability
from vae_research.losses.checks import check_broadcasts, check_positive, check_shapes
from vae_research.losses.term import Likelihood
from vae_research.randomness import standard_normal, uniform

# Below this, the logit of a continuous Bernoulli variable is treated as zero when it is drawn.
_SMALL_LOGIT = 1e-3


class Bernoulli(Likelihood):
    """Independent Bernoulli pixels, from logits: the binary cross-entropy, summed over pixels.

    Reads `targets` `[rows, ...]` in [0, 1] and `logits` of the same shape. For values between 0 and
    1, the cross-entropy is not a normalised likelihood, and `note` says so.
    Kingma and Welling 2014 (arXiv:1312.6114), appendix C.1.
    """

    support: ClassVar[tuple[float, float]] = (0.0, 1.0)

    @property
    def is_density(self) -> bool:
        """False: these are probabilities of 0 and 1."""
        return False

    def log_likelihood(self, targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Returns `log p(targets | logits)`, `[rows]`, nats."""
        check_shapes(self, targets, logits=logits)
        targets, logits = probability.flat_events(targets, logits)
        return probability.sum_over_event(probability.bernoulli_log_density(targets, logits))

    def mean(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns the probability of a one."""
        return tf.sigmoid(tf.cast(logits, tf.float32))

    def sample(self, seed: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Returns a draw, zeros and ones."""
        levels = uniform(tf.shape(logits), seed)
        return tf.cast(levels < tf.sigmoid(tf.cast(logits, tf.float32)), tf.float32)

    def note(self, grey_values: bool) -> str | None:
        """Returns a remark for grey values, which have no normalised Bernoulli likelihood."""
        if not grey_values:
            return None
        return (
            "Bernoulli on grey values is not a normalised likelihood: do not compare these figures "
            "with those of binarised data (--binarize=dynamic) or of another likelihood."
        )


class ContinuousBernoulli(Likelihood):
    """Independent continuous Bernoulli pixels on [0, 1]: the normalised form of the Bernoulli.

    Reads `targets` `[rows, ...]` in [0, 1] and `logits` of the same shape.
    Loaiza-Ganem and Cunningham 2019 (arXiv:1907.06845).
    """

    support: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def log_likelihood(self, targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Returns `log p(targets | logits)`, `[rows]`, nats (a density: it may be positive)."""
        check_shapes(self, targets, logits=logits)
        density = probability.continuous_bernoulli_log_density(targets, logits)
        return probability.sum_over_event(density)

    def mean(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns the mean, which is not the sigmoid of the logits."""
        return probability.continuous_bernoulli_mean(logits)

    def sample(self, seed: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Returns a draw, by the inverse of the distribution function."""
        logits = tf.cast(logits, tf.float32)
        levels = uniform(tf.shape(logits), seed)
        size = tf.maximum(tf.abs(logits), _SMALL_LOGIT)
        # That of a positive logit; with a negative one, 1 - x has the same distribution.
        drawn = 1.0 + tf.math.log(levels + (1.0 - levels) * tf.exp(-size)) / size
        return tf.clip_by_value(tf.where(logits < 0.0, 1.0 - drawn, drawn), 0.0, 1.0)


class Gaussian(Likelihood):
    """Independent normal values around the decoder's output, with a fixed standard deviation.

    Reads `targets` `[rows, ...]` and `x_mean` of the same shape. The value is the squared error
    over `2 * standard_deviation**2`, plus the constant that makes it a density.
    """

    standard_deviation: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "standard_deviation")

    def log_likelihood(self, targets: tf.Tensor, x_mean: tf.Tensor) -> tf.Tensor:
        """Returns `log N(targets; x_mean, standard_deviation^2)`, `[rows]`, nats."""
        check_shapes(self, targets, x_mean=x_mean)
        log_var = 2.0 * math.log(self.standard_deviation)
        return probability.sum_over_event(probability.normal_log_density(targets, x_mean, log_var))

    def mean(self, x_mean: tf.Tensor) -> tf.Tensor:
        """Returns `x_mean`."""
        return tf.cast(x_mean, tf.float32)

    def sample(self, seed: tf.Tensor, x_mean: tf.Tensor) -> tf.Tensor:
        """Returns a draw."""
        noise = standard_normal(tf.shape(x_mean), seed)
        return tf.cast(x_mean, tf.float32) + self.standard_deviation * noise


class GaussianWithVariance(Likelihood):
    """Independent normal values; the decoder writes their mean and logarithm of variance.

    Reads `targets` `[rows, ...]`, `x_mean` of the same shape, and `x_log_var` of the same shape or
    one that broadcasts to it (a shared variance). With an unbounded variance, the likelihood of a
    constant pixel would grow without limit: the heads of the package's networks bound it to
    exp(+-20), and the settings to what is sensible for the data.

    Settings:
        min_standard_deviation, max_standard_deviation: soft bounds; None for no bound.
    """

    min_standard_deviation: float | None = None
    max_standard_deviation: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.min_standard_deviation, self.max_standard_deviation
        for setting in ("min_standard_deviation", "max_standard_deviation"):
            if getattr(self, setting) is not None:
                check_positive(self, setting)
        if low is not None and high is not None and low >= high:
            raise ValueError(
                "GaussianWithVariance.min_standard_deviation must be below "
                f"max_standard_deviation, got {low} and {high}."
            )

    def log_likelihood(
        self, targets: tf.Tensor, x_mean: tf.Tensor, x_log_var: tf.Tensor
    ) -> tf.Tensor:
        """Returns `log N(targets; x_mean, exp(x_log_var))`, with a bounded variance, `[rows]`."""
        check_shapes(self, targets, x_mean=x_mean)
        check_broadcasts(self, targets, x_log_var=x_log_var)
        density = probability.normal_log_density(targets, x_mean, self._bounded(x_log_var))
        return probability.sum_over_event(density)

    def mean(self, x_mean: tf.Tensor) -> tf.Tensor:
        """Returns `x_mean`."""
        return tf.cast(x_mean, tf.float32)

    def sample(self, seed: tf.Tensor, x_mean: tf.Tensor, x_log_var: tf.Tensor) -> tf.Tensor:
        """Returns a draw."""
        noise = standard_normal(tf.shape(x_mean), seed)
        log_var = tf.cast(self._bounded(x_log_var), tf.float32)
        return tf.cast(x_mean, tf.float32) + tf.exp(0.5 * log_var) * noise

    def _bounded(self, x_log_var: tf.Tensor) -> tf.Tensor:
        bounds = [
            None if bound is None else 2.0 * math.log(bound)
            for bound in (self.min_standard_deviation, self.max_standard_deviation)
        ]
        return (
            x_log_var if bounds == [None, None] else probability.softly_bounded(x_log_var, *bounds)
        )


class Laplace(Likelihood):
    """Independent Laplace values around the decoder's output, with a fixed scale.

    Reads `targets` `[rows, ...]` and `x_mean` of the same shape. The value is the absolute error
    over `scale`, plus the constant that makes it a density.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "scale")

    def log_likelihood(self, targets: tf.Tensor, x_mean: tf.Tensor) -> tf.Tensor:
        """Returns `log Laplace(targets; x_mean, scale)`, `[rows]`, nats."""
        check_shapes(self, targets, x_mean=x_mean)
        density = probability.laplace_log_density(targets, x_mean, math.log(self.scale))
        return probability.sum_over_event(density)

    def mean(self, x_mean: tf.Tensor) -> tf.Tensor:
        """Returns `x_mean`."""
        return tf.cast(x_mean, tf.float32)

    def sample(self, seed: tf.Tensor, x_mean: tf.Tensor) -> tf.Tensor:
        """Returns a draw, by the inverse of the distribution function."""
        side = 2.0 * uniform(tf.shape(x_mean), seed) - 1.0
        noise = -tf.sign(side) * tf.math.log1p(-tf.abs(side))
        return tf.cast(x_mean, tf.float32) + self.scale * noise

"""Likelihoods p(x|z) of integers and of levels."""

from __future__ import annotations

import math
from typing import ClassVar

import tensorflow as tf

from vae_research import probability
from vae_research.arguments import checked_integer
from vae_research.losses.checks import check_broadcasts, check_shapes
from vae_research.losses.term import Likelihood
from vae_research.randomness import fold_in, gumbel, uniform
from vae_research.tensors import sum_in_order

# Logarithm of the ratio of a logistic distribution's scale to its standard deviation.
_LOG_SCALE_OF_ONE = 0.5 * math.log(3.0) - math.log(math.pi)


class Categorical(Likelihood):
    """Independent values that are each one of several classes.

    Reads `targets` `[rows, ...]`, whole numbers from 0 to `classes - 1` of any type, and `logits`
    `[rows, ..., classes]`: of labels `[rows]`, tokens `[rows, time]`, or images of integers. For
    labels: `Categorical(classes=10, rename={"targets": "labels", "logits": "label_logits"})`.
    """

    spacing: ClassVar[float | None] = 1.0
    classes: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_integer("Categorical.classes", self.classes, 2)
        object.__setattr__(self, "support", (0.0, self.classes - 1.0))

    def log_likelihood(self, targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Returns `log p(targets | logits)`, `[rows]`, nats."""
        wanted = targets.shape.concatenate([self.classes])
        if not wanted.is_compatible_with(logits.shape):
            raise ValueError(
                f"Loss term {self.label!r} compares targets of shape {targets.shape} with 'logits' "
                f"of shape {logits.shape}; it needs logits of shape {wanted}."
            )
        log_p = tf.nn.log_softmax(tf.cast(logits, tf.float32))
        chosen = tf.one_hot(tf.cast(targets, tf.int32), self.classes) * log_p
        return probability.sum_over_event(tf.reduce_sum(chosen, axis=-1))

    def mean(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns the most probable class as float32: classes have no mean."""
        return tf.cast(tf.argmax(logits, axis=-1), tf.float32)

    def sample(self, seed: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Returns classes as float32."""
        noise = gumbel(tf.shape(logits), seed)
        return tf.cast(tf.argmax(tf.cast(logits, tf.float32) + noise, axis=-1), tf.float32)


class Poisson(Likelihood):
    """Independent counts with a Poisson distribution around the rate that the decoder writes.

    Reads `targets` `[rows, ...]`, whole numbers from 0 on, and `x_log_rate` of the same shape, the
    logarithm of their mean. The heads of the package's networks bound it softly to +-20.
    """

    support: ClassVar[tuple[float, float]] = (0.0, math.inf)
    spacing: ClassVar[float | None] = 1.0

    def log_likelihood(self, targets: tf.Tensor, x_log_rate: tf.Tensor) -> tf.Tensor:
        """Returns `log Poisson(targets; exp(x_log_rate))`, `[rows]`, nats."""
        check_shapes(self, targets, x_log_rate=x_log_rate)
        return probability.sum_over_event(probability.poisson_log_density(targets, x_log_rate))

    def mean(self, x_log_rate: tf.Tensor) -> tf.Tensor:
        """Returns the rate."""
        return tf.exp(tf.cast(x_log_rate, tf.float32))

    def sample(self, seed: tf.Tensor, x_log_rate: tf.Tensor) -> tf.Tensor:
        """Returns counts as float32."""
        rate = tf.exp(tf.cast(x_log_rate, tf.float32))
        return tf.random.stateless_poisson(tf.shape(rate), seed, rate, tf.float32)


class DiscretizedLogistic(Likelihood):
    """Independent levels, such as those of pixels, with the mass of a logistic distribution.

    Reads `targets` `[rows, ...]`, of the levels 0, 1 / (levels - 1), ..., 1, `x_mean` of the same
    shape, and `x_log_var` of the same shape or one that broadcasts to it: mean and logarithm of
    variance of the logistic distribution. Each level has the mass that is nearest to it, so that
    figures in bits per dimension compare with those of other models of the same levels.
    Salimans et al. 2017 (arXiv:1701.05517), equation 2, with one component.

    Settings:
        levels: number of the values that the data may have; 256 for bytes.
    """

    support: ClassVar[tuple[float, float]] = (0.0, 1.0)
    levels: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_integer(f"{type(self).__name__}.levels", self.levels, 2)
        object.__setattr__(self, "spacing", 1.0 / (self.levels - 1))

    def log_likelihood(
        self, targets: tf.Tensor, x_mean: tf.Tensor, x_log_var: tf.Tensor
    ) -> tf.Tensor:
        """Returns `log p(targets | x_mean, x_log_var)`, `[rows]`, nats."""
        check_shapes(self, targets, x_mean=x_mean)
        check_broadcasts(self, targets, x_log_var=x_log_var)
        log_scale = 0.5 * tf.cast(x_log_var, tf.float32) + _LOG_SCALE_OF_ONE
        mass = probability.logistic_log_mass(targets, x_mean, log_scale, 0.0, 1.0, self.levels)
        return probability.sum_over_event(mass)

    def mean(self, x_mean: tf.Tensor, x_log_var: tf.Tensor) -> tf.Tensor:
        """Returns the mean of the logistic variable clipped to [0, 1].

        It differs from the mean of the levels by less than half their distance.
        """
        log_scale = 0.5 * tf.cast(x_log_var, tf.float32) + _LOG_SCALE_OF_ONE
        return probability.clipped_logistic_mean(x_mean, log_scale)

    def sample(self, seed: tf.Tensor, x_mean: tf.Tensor, x_log_var: tf.Tensor) -> tf.Tensor:
        """Returns a draw: the level that is nearest to one of the logistic distribution."""
        scale = tf.exp(0.5 * tf.cast(x_log_var, tf.float32) + _LOG_SCALE_OF_ONE)
        drawn = tf.cast(x_mean, tf.float32) + scale * _logistic(tf.shape(x_mean), seed)
        return _nearest_level(drawn, self.levels)


class DiscretizedLogisticMixture(Likelihood):
    """Independent RGB pixels: a mixture of logistic distributions, discretised to levels.

    Within a component, the mean of green depends on red, and that of blue on red and green, by
    linear coefficients. Reads `targets` `[rows, ..., 3]`, of the levels 0, 1 / (levels - 1), ...,
    1, and `x_mixture` `[rows, ..., 10 * components]`: logits, three means, three logarithms of
    scale (bounded softly to +-7) and three coefficients (of which the tanh is taken) for each
    component; means and scales are those of values that are mapped to [-1, 1]. A decoder writes
    them by `outputs={"x_mixture": 10 * components}`.
    Salimans et al. 2017 (arXiv:1701.05517), equations 2 and 3.

    Settings:
        components: of the mixture.
        levels: number of the values that a channel may have; 256 for bytes.
    """

    support: ClassVar[tuple[float, float]] = (0.0, 1.0)
    event_rank: ClassVar[int] = 1
    components: int = 10
    levels: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_integer("DiscretizedLogisticMixture.components", self.components, 1)
        checked_integer("DiscretizedLogisticMixture.levels", self.levels, 2)
        object.__setattr__(self, "spacing", 1.0 / (self.levels - 1))

    def log_likelihood(self, targets: tf.Tensor, x_mixture: tf.Tensor) -> tf.Tensor:
        """Returns `log p(targets | x_mixture)`, `[rows]`, nats."""
        wanted = targets.shape[:-1].concatenate([10 * self.components])
        if targets.shape[-1] != 3 or not wanted.is_compatible_with(x_mixture.shape):
            raise ValueError(
                f"Loss term {self.label!r} compares targets of shape {targets.shape} with "
                f"'x_mixture' of shape {x_mixture.shape}; it needs images with 3 channels and, for "
                f"{self.components} components, shape {wanted}."
            )
        logits, means, log_scales, coefficients = self._of_components(x_mixture)
        red, green, blue = tf.unstack(2.0 * tf.cast(targets, tf.float32)[..., None] - 1.0, axis=-2)
        means = (
            means[0],
            means[1] + coefficients[0] * red,
            sum_in_order([means[2], coefficients[1] * red, coefficients[2] * green]),
        )
        of_channels = [
            probability.logistic_log_mass(values, mean, log_scale, -1.0, 1.0, self.levels)
            for values, mean, log_scale in zip((red, green, blue), means, log_scales, strict=True)
        ]
        log_p = sum_in_order([tf.nn.log_softmax(logits), *of_channels])
        return probability.sum_over_event(tf.reduce_logsumexp(log_p, axis=-1))

    def mean(self, x_mixture: tf.Tensor) -> tf.Tensor:
        """Returns the mean of the mixture, each component clipped to [0, 1].

        In a component, the mean of green is that at the mean of red, and the mean of blue that at
        the means of both: exact but for what the limits of the range cut off.
        """
        logits, means, log_scales, coefficients = self._of_components(x_mixture)
        shares = tf.nn.softmax(logits)

        def clipped(mean: tf.Tensor, log_scale: tf.Tensor) -> tf.Tensor:
            half = 0.5 * (mean + 1.0), log_scale - math.log(2.0)  # as of values in [0, 1]
            return 2.0 * probability.clipped_logistic_mean(*half) - 1.0

        red = clipped(means[0], log_scales[0])
        green = clipped(means[1] + coefficients[0] * red, log_scales[1])
        of_blue = means[2] + coefficients[1] * red + coefficients[2] * green
        channels = tf.stack([red, green, clipped(of_blue, log_scales[2])], axis=-2)
        mixed = tf.reduce_sum(shares[..., None, :] * channels, axis=-1)
        return tf.clip_by_value(0.5 * (mixed + 1.0), 0.0, 1.0)

    def sample(self, seed: tf.Tensor, x_mixture: tf.Tensor) -> tf.Tensor:
        """Returns a draw of component, red, green and blue, each given those before it."""
        logits, means, log_scales, coefficients = self._of_components(x_mixture)
        component = tf.argmax(logits + gumbel(tf.shape(logits), fold_in(seed, 0)), axis=-1)
        chosen = tf.one_hot(component, self.components)

        def of_chosen(values: tf.Tensor) -> tf.Tensor:
            return tf.reduce_sum(chosen * values, axis=-1)

        def channel(number: int, mean: tf.Tensor) -> tf.Tensor:
            noise = _logistic(tf.shape(mean), fold_in(seed, 1 + number))
            drawn = mean + tf.exp(of_chosen(log_scales[number])) * noise
            return 2.0 * _nearest_level(0.5 * (drawn + 1.0), self.levels) - 1.0

        of_red, *of_others = [of_chosen(each) for each in coefficients]
        red = channel(0, of_chosen(means[0]))
        green = channel(1, of_chosen(means[1]) + of_red * red)
        blue = channel(2, of_chosen(means[2]) + of_others[0] * red + of_others[1] * green)
        # Levels again, as exact as those of the data.
        return _nearest_level(0.5 * (tf.stack([red, green, blue], axis=-1) + 1.0), self.levels)

    def _of_components(self, x_mixture: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Returns logits, and the means, log scales and coefficients of three channels each.

        Each is `[..., components]`, or a list of three.
        """
        shape = tf.concat([tf.shape(x_mixture)[:-1], [10, self.components]], axis=0)
        parts = tf.unstack(tf.reshape(tf.cast(x_mixture, tf.float32), shape), axis=-2)
        log_scales = [probability.softly_bounded(each, -7.0, 7.0) for each in parts[4:7]]
        return parts[0], parts[1:4], log_scales, [tf.tanh(each) for each in parts[7:]]


def _logistic(shape: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Returns numbers from the standard logistic distribution; `seed` is a stateless key, `[2]`."""
    levels = uniform(shape, seed)
    return tf.math.log(levels) - tf.math.log1p(-levels)


def _nearest_level(values: tf.Tensor, levels: int) -> tf.Tensor:
    """Returns the nearest of the numbers 0, 1 / (levels - 1), ..., 1."""
    return tf.round(tf.clip_by_value(values, 0.0, 1.0) * (levels - 1.0)) / (levels - 1.0)

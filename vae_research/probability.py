"""Pure mathematics of the objective: log-densities, KL divergences, sums and means of them.

Everything is in nats, element by element, without reduction, unless a name says otherwise.
Arguments are cast to float32: sums over hundreds of dimensions lose their meaning in 16 bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import tensorflow as tf

LOG_TWO_PI = math.log(2.0 * math.pi)

# What a function with a custom gradient returns: its value, and upstream to downstream gradients.
_WithGradient = tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]]


def sum_over_event(values: tf.Tensor) -> tf.Tensor:
    """Returns `[rows]`: the sum over all axes but the first.

    >>> sum_over_event(tf.ones([2, 3, 4])).numpy().tolist()
    [12.0, 12.0]
    """
    (values,) = flat_events(_float32(values))
    return tf.reduce_sum(values, axis=list(range(1, values.shape.rank)))


def flat_events(*tensors: tf.Tensor) -> list[tf.Tensor]:
    """Returns each as `[rows, values of an example]`, if all have examples of a known shape.

    XLA makes faster loops over one long axis than over height, width and a single channel.
    """
    shapes = [values.shape[1:] for values in tensors]
    if any(not shape.is_fully_defined() or shape.rank < 2 for shape in shapes):
        return list(tensors)
    return [
        tf.reshape(values, [tf.shape(values)[0], math.prod(shape)])
        for values, shape in zip(tensors, shapes, strict=True)
    ]


def log_mean_exp(values: tf.Tensor, axis: int) -> tf.Tensor:
    """Returns `log(mean(exp(values)))` along `axis`, without overflow.

    >>> float(log_mean_exp(tf.constant([1000.0, 1000.0]), axis=0))
    1000.0
    """
    count = tf.cast(tf.shape(values)[axis], values.dtype)
    return tf.reduce_logsumexp(values, axis=axis) - tf.math.log(count)


@tf.custom_gradient
def _bernoulli_log_density(targets: tf.Tensor, logits: tf.Tensor) -> _WithGradient:
    # log p = x * l - log(1 + e^l), with an exponential of at most one. log1p would keep more digits
    # of values that are negligible beside the other pixels of a sum, and made an evaluation take
    # 1.13 times as long.
    softplus = tf.maximum(logits, 0.0) + tf.math.log(1.0 + tf.exp(-tf.abs(logits)))

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return upstream * logits, upstream * (targets - tf.sigmoid(logits))

    return targets * logits - softplus, gradient


def bernoulli_log_density(targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns `log Bernoulli(targets; sigmoid(logits))`, finite for every finite logit.

    The gradient is written out as `targets - sigmoid(logits)`: it does not vanish when a wrong
    prediction saturates, costs one operation, and has one consumer of the logits, so that its
    sum has one order.

    Args:
        targets: in [0, 1]; a probability only where they are 0 or 1.
        logits: same shape, `log(p / (1 - p))`.
    """
    return _bernoulli_log_density(*_of_one_shape(targets, logits))


def continuous_bernoulli_log_normaliser(logits: tf.Tensor) -> tf.Tensor:
    """Returns `log C`, the logarithm of the continuous Bernoulli's normalising constant.

    In logits, `C = logits / tanh(logits / 2)`, with the limit 2 at zero. Below |logits| = 1 a
    series takes over, because the quotient loses its digits there.
    Loaiza-Ganem and Cunningham 2019 (arXiv:1907.06845), equation 8.
    """
    logits = _float32(logits)
    size = tf.abs(logits)
    near = size < 1.0
    half_squared = tf.square(tf.where(near, logits, 0.0) / 2.0)
    # log(x / tanh x) by powers of x^2; what is left out is below 2e-8 at x = 1/2.
    series = half_squared * _polynomial(
        half_squared, 1 / 3, -7 / 90, 62 / 2835, -127 / 18900, 146 / 66825, -7.384e-4
    )
    far = tf.where(near, 1.0, size)  # a harmless value where the other branch is taken
    quotient = tf.math.log(far) - tf.math.log(tf.tanh(far / 2.0))
    return tf.where(near, math.log(2.0) + series, quotient)


@tf.custom_gradient
def _continuous_bernoulli_log_density(targets: tf.Tensor, logits: tf.Tensor) -> _WithGradient:
    density = bernoulli_log_density(targets, logits) + continuous_bernoulli_log_normaliser(logits)

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # An exponential family: the derivative is the distance of the data from the mean.
        return upstream * logits, upstream * (targets - continuous_bernoulli_mean(logits))

    return density, gradient


def continuous_bernoulli_log_density(targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns the log-density of the continuous Bernoulli on [0, 1] (arXiv:1907.06845)."""
    return _continuous_bernoulli_log_density(*_of_one_shape(targets, logits))


def continuous_bernoulli_mean(logits: tf.Tensor) -> tf.Tensor:
    """Returns the mean of the continuous Bernoulli, `1 / (1 - exp(-logits)) - 1 / logits`."""
    logits = _float32(logits)
    near = tf.abs(logits) < 0.5
    small = tf.where(near, logits, 0.0)
    series = 0.5 + small * _polynomial(tf.square(small), 1 / 12, -1 / 720, 1 / 30240)
    # exp(-|logits|) cannot overflow, and each sign has a form that keeps the digits of its limit.
    size = tf.where(near, 1.0, tf.abs(logits))
    above = -1.0 / tf.math.expm1(-size) - 1.0 / size
    below = tf.exp(-size) / tf.math.expm1(-size) + 1.0 / size
    return tf.where(near, series, tf.where(logits > 0.0, above, below))


def _polynomial(x: tf.Tensor, *coefficients: float) -> tf.Tensor:
    """Returns `c0 + c1 * x + c2 * x^2 + ...` by Horner's rule."""
    value = tf.zeros_like(x)
    for coefficient in reversed(coefficients):
        value = value * x + coefficient
    return value


def normal_log_density(values: tf.Tensor, mean: tf.Tensor, log_var: tf.Tensor) -> tf.Tensor:
    """Returns `log N(values; mean, exp(log_var))`."""
    values, mean, log_var = _float32(values), _float32(mean), _float32(log_var)
    return -0.5 * (tf.square(values - mean) * tf.exp(-log_var) + log_var + LOG_TWO_PI)


def standard_normal_log_density(values: tf.Tensor) -> tf.Tensor:
    """Returns `log N(values; 0, 1)`."""
    return -0.5 * (tf.square(_float32(values)) + LOG_TWO_PI)


def laplace_log_density(values: tf.Tensor, mean: tf.Tensor, log_scale: tf.Tensor) -> tf.Tensor:
    """Returns `log Laplace(values; mean, exp(log_scale))`."""
    values, mean, log_scale = _float32(values), _float32(mean), _float32(log_scale)
    return -tf.abs(values - mean) * tf.exp(-log_scale) - log_scale - math.log(2.0)


def softly_bounded(
    values: tf.Tensor, low: float | None = None, high: float | None = None
) -> tf.Tensor:
    """Returns `values + softplus(low - values) - softplus(values - high)`, between the bounds.

    It is close to the values where they are well within the bounds, rises everywhere, and its
    gradient does not drop to zero at a bound as that of a hard clip does.

    Args:
        values: any shape.
        low, high: None for no bound; `low < high`.

    >>> print(softly_bounded(tf.constant([-100.0, 0.0, 100.0]), low=-7.0, high=7.0).numpy())
    [-7.  0.  7.]
    """

    # Written so that no digits are lost far outside, and with one consumer of the values.
    @tf.custom_gradient
    def bounded(values: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        result, slope = values, tf.ones_like(values)
        if low is not None:
            result = tf.maximum(result, low)
            slope -= tf.sigmoid(low - values)
        if high is not None:
            result = tf.minimum(result, high) - tf.math.log1p(tf.exp(-tf.abs(values - high)))
            slope -= tf.sigmoid(values - high)
        if low is not None:
            result += tf.math.log1p(tf.exp(-tf.abs(values - low)))
        return result, lambda upstream: upstream * slope

    return bounded(_float32(values))


def poisson_log_density(targets: tf.Tensor, log_rate: tf.Tensor) -> tf.Tensor:
    """Returns `log Poisson(targets; exp(log_rate))`.

    Args:
        targets: counts, 0, 1, 2, ...
        log_rate: the logarithm of the mean; above 88, float32 has no number for the mean.
    """

    @tf.custom_gradient
    def density(log_rate: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        rate = tf.exp(log_rate)
        value = targets * log_rate - rate - tf.math.lgamma(targets + 1.0)
        return value, lambda upstream: upstream * (targets - rate)

    targets, log_rate = _of_one_shape(targets, log_rate)
    return density(log_rate)


def logistic_log_mass(
    values: tf.Tensor, mean: tf.Tensor, log_scale: tf.Tensor, low: float, high: float, levels: int
) -> tf.Tensor:
    """Returns the logarithm of the mass that a logistic distribution has around a level.

    The levels are spread evenly from `low` to `high`. A level has the mass that is nearest to it;
    the outermost ones have all that is beyond, so that the masses of all levels sum to one.
    Salimans et al. 2017 (arXiv:1701.05517), equation 2, without its approximation for small masses:
    with the edges `below < above` of the bin in units of the scale,

        sigmoid(above) - sigmoid(below) = sigmoid(above) sigmoid(-below) (1 - exp(below - above))

    Args:
        values: levels.
        mean, log_scale: of the logistic distribution, broadcast to the values.
        low, high: the outermost levels.
        levels: their number, at least 2.
    """
    half = 0.5 * (high - low) / (levels - 1)
    inverse_scale = tf.exp(-_float32(log_scale))
    values = _float32(values)
    middle = (values - _float32(mean)) * inverse_scale
    width = tf.broadcast_to(half * inverse_scale, tf.shape(middle))
    values = tf.broadcast_to(values, tf.shape(middle))
    return _logistic_log_mass(middle, width, values < low + half, values > high - half)


def _logistic_log_mass(
    middle: tf.Tensor, half_width: tf.Tensor, is_lowest: tf.Tensor, is_highest: tf.Tensor
) -> tf.Tensor:
    """Returns `log(sigmoid(middle + half_width) - sigmoid(middle - half_width))`."""

    @tf.custom_gradient
    def mass(middle: tf.Tensor, half_width: tf.Tensor) -> _WithGradient:
        above, below = middle + half_width, middle - half_width
        inner = ~(is_lowest | is_highest)
        value = tf.where(inner, tf.math.log(-tf.math.expm1(-2.0 * half_width)), 0.0)
        # The factors sigmoid(above) and sigmoid(-below); the outermost bins have one edge.
        value -= tf.where(is_highest, 0.0, tf.nn.softplus(-above))
        value -= tf.where(is_lowest, 0.0, tf.nn.softplus(below))

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            left = tf.where(is_highest, 0.0, tf.sigmoid(-above))
            minus_right = tf.where(is_lowest, 0.0, -tf.sigmoid(below))
            # exp(2 w) - 1 overflows to infinity, of which the quotient is zero.
            narrow = tf.where(inner, 2.0 / tf.math.expm1(2.0 * half_width), 0.0)
            # A difference, because a chain of additions has no fixed order without XLA.
            return upstream * (left + minus_right), upstream * (narrow + left - minus_right)

        return value, gradient

    return mass(middle, half_width)


def clipped_logistic_mean(mean: tf.Tensor, log_scale: tf.Tensor) -> tf.Tensor:
    """Returns the mean of a logistic variable that is clipped to [0, 1].

    It is the integral of P(X > x) from 0 to 1, `scale * (softplus(a) - softplus(b))` with
    `a = mean / scale` and `b = (mean - 1) / scale`.
    """
    mean, scale = _float32(mean), tf.exp(_float32(log_scale))
    # softplus(a) = a + softplus(-a), and a - b = 1 / scale: keeps the digits where both are large.
    a, b = mean / scale, (mean - 1.0) / scale
    low = scale * (tf.nn.softplus(a) - tf.nn.softplus(b))
    high = 1.0 + scale * (tf.nn.softplus(-a) - tf.nn.softplus(-b))
    return tf.clip_by_value(tf.where(mean < 0.5, low, high), 0.0, 1.0)


@tf.custom_gradient
def _normal_kl_divergence(mean: tf.Tensor, log_var: tf.Tensor) -> _WithGradient:
    # expm1(v) - v keeps the small values that exp(v) - 1 - v rounds away.
    excess = tf.math.expm1(log_var)

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return upstream * mean, upstream * 0.5 * tf.math.expm1(log_var)

    # Halved apart, which is exact: if the log-variance is a negative, TensorFlow would make one sum
    # of three of them, whose order is not fixed.
    return 0.5 * (tf.square(mean) + excess) - 0.5 * log_var, gradient


def normal_kl_divergence(mean: tf.Tensor, log_var: tf.Tensor) -> tf.Tensor:
    """Returns `KL(N(mean, exp(log_var)) || N(0, 1))` per dimension.

    Kingma and Welling 2014 (arXiv:1312.6114), appendix B, written so that divergences near zero
    keep their digits.

    >>> float(normal_kl_divergence(tf.constant(1.0), tf.constant(0.0)))
    0.5
    """
    return _normal_kl_divergence(*_of_one_shape(mean, log_var))


def _float32(values: tf.Tensor) -> tf.Tensor:
    return tf.cast(values, tf.float32)


def _of_one_shape(first: tf.Tensor, second: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Broadcasts outside of the custom gradient, which does not undo a broadcast."""
    first, second = _float32(first), _float32(second)
    if first.shape == second.shape:
        return first, second
    shape = tf.broadcast_dynamic_shape(tf.shape(first), tf.shape(second))
    return tf.broadcast_to(first, shape), tf.broadcast_to(second, shape)

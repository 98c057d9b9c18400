"""Densities and divergences against SciPy, TensorFlow Probability, quadrature and Monte Carlo."""

import functools

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf

from vae_research import probability

# The largest relative error of a handful of correctly rounded float32 operations.
FLOAT32 = 1e-6


def value_and_gradients(function, *arguments):
    """Returns float64 arrays: the values, and the gradient of their sum for each argument."""
    arguments = [tf.constant(argument, tf.float32) for argument in arguments]
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        values = function(*arguments)
    gradients = tape.gradient(values, arguments)
    return values.numpy().astype(np.float64), [g.numpy().astype(np.float64) for g in gradients]


def float64_gradient(function, arguments, index):
    """Returns the derivative of a float64 function, by central differences of fourth order."""
    arguments = [np.asarray(argument, np.float64) for argument in arguments]

    def shifted(step):
        moved = list(arguments)
        moved[index] = moved[index] + step
        return function(*moved)

    # The error of the stencil is of order step^4 = 1e-12, that of rounding 1e-16 / step = 1e-13.
    step = 1e-3
    near, wide = shifted(step) - shifted(-step), shifted(2 * step) - shifted(-2 * step)
    return (8.0 * near - wide) / (12.0 * step)


# The same densities in float64, written by SciPy. Shapes are those of the arguments.


def scipy_bernoulli(targets, logits):
    # log sigmoid(l) and log sigmoid(-l), mixed by the target.
    return targets * scipy.special.log_expit(logits) + (1 - targets) * scipy.special.log_expit(
        -logits
    )


def scipy_continuous_bernoulli(targets, logits):
    # A density on [0, 1] proportional to exp(l * x) is an exponential distribution cut off at 1,
    # with rate |l|, run from the right end where l is positive.
    rate = np.abs(logits)
    distance = np.where(logits > 0, 1.0 - targets, targets)
    return scipy.stats.truncexpon.logpdf(distance, b=rate, scale=1.0 / rate)


def scipy_normal(values, mean, log_var):
    return scipy.stats.norm.logpdf(values, mean, np.exp(0.5 * log_var))


def scipy_laplace(values, mean, log_scale):
    return scipy.stats.laplace.logpdf(values, mean, np.exp(log_scale))


def grid(*axes):
    return [axis.ravel().astype(np.float32) for axis in np.meshgrid(*axes, indexing="ij")]


DENSITIES = {
    "bernoulli": (
        probability.bernoulli_log_density,
        scipy_bernoulli,
        grid([0.0, 0.25, 1.0], [-40.0, -3.0, -0.5, 0.5, 3.0, 40.0]),
    ),
    "continuous_bernoulli": (
        probability.continuous_bernoulli_log_density,
        scipy_continuous_bernoulli,
        grid([0.125, 0.5, 0.875], [-90.0, -30.0, -4.0, -1.5, -0.5, 0.5, 1.5, 4.0, 30.0, 90.0]),
    ),
    "normal": (
        probability.normal_log_density,
        scipy_normal,
        grid([-1.5, 0.0, 2.0], [-1.0, 0.25], [-6.0, -1.0, 0.0, 2.0, 6.0]),
    ),
    "laplace": (
        probability.laplace_log_density,
        scipy_laplace,
        grid([-1.5, 0.0, 2.0], [-1.0, 0.25], [-3.0, -1.0, 0.0, 2.0, 6.0]),
    ),
}


@pytest.mark.parametrize("name", DENSITIES)
def test_density_has_the_value_and_gradients_of_scipy_in_float64(name):
    function, reference, arguments = DENSITIES[name]
    values, gradients = value_and_gradients(function, *arguments)
    arguments = [argument.astype(np.float64) for argument in arguments]
    expected = reference(*arguments)
    # A sum of terms as large as its arguments cannot be better than their rounding.
    scale = 1.0 + np.abs(arguments[-1])
    np.testing.assert_array_less(np.abs(values - expected), FLOAT32 * (scale + np.abs(expected)))
    for index, gradient in enumerate(gradients):
        derivative = float64_gradient(reference, arguments, index)
        if name.endswith("bernoulli") and index == 0:
            derivative = arguments[1]  # linear in the target, which cannot be moved out of [0, 1]
        np.testing.assert_allclose(gradient, derivative, rtol=2e-5, atol=2e-6)


def test_standard_normal_is_the_normal_density_with_mean_0_and_variance_1():
    values = np.linspace(-6.0, 6.0, 25)
    density, (gradient,) = value_and_gradients(probability.standard_normal_log_density, values)
    np.testing.assert_allclose(density, scipy.stats.norm.logpdf(values), rtol=FLOAT32)
    np.testing.assert_allclose(gradient, -values, rtol=FLOAT32)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1e-6, 0.3, 0.99, 1.01, 7.0])
def test_continuous_bernoulli_agrees_with_tensorflow_probability(size):
    import tensorflow_probability as tfp

    targets, logits = grid([0.0, 0.2, 0.5, 1.0], [-size, size])
    theirs = tfp.distributions.ContinuousBernoulli(logits=logits.astype(np.float64))
    ours = probability.continuous_bernoulli_log_density(targets, logits)
    np.testing.assert_allclose(ours, theirs.log_prob(targets.astype(np.float64)), atol=2e-6)
    np.testing.assert_allclose(
        probability.continuous_bernoulli_mean(logits), theirs.mean(), atol=1e-6
    )


def test_normal_kl_divergence_agrees_with_tensorflow_probability():
    import tensorflow_probability as tfp

    mean, log_var = grid([-3.0, 0.0, 0.5], [-8.0, -1.0, 0.0, 1.0, 5.0])
    q = tfp.distributions.Normal(mean.astype(np.float64), np.exp(0.5 * log_var.astype(np.float64)))
    p = tfp.distributions.Normal(np.float64(0.0), np.float64(1.0))
    ours = probability.normal_kl_divergence(mean, log_var)
    np.testing.assert_allclose(ours, q.kl_divergence(p), rtol=2 * FLOAT32)


# Normalisation.


def unit_interval_quadrature():
    """Returns nodes and weights on [0, 1]: Gauss-Legendre with 8 nodes on each of 200 panels.

    A panel is 1/200 wide, so that exp(90 * x) changes by less than exp(0.5) on it and eight nodes
    integrate it to the last digit of float64.
    """
    nodes, weights = np.polynomial.legendre.leggauss(8)
    starts = np.arange(200) / 200
    return (starts[:, None] + (nodes + 1) / 400).ravel(), np.tile(weights / 400, 200)


def probability_mass(log_density, logit):
    nodes, weights = unit_interval_quadrature()
    return float(np.sum(weights * np.exp(log_density(nodes, np.full_like(nodes, logit)).numpy())))


LOGITS = [0.0, 1e-6, 1e-3, 0.1, 0.4999, 0.5001, 0.9999, 1.0001, 1.5, 5.0, 30.0, 90.0]


@pytest.mark.parametrize("logit", [*LOGITS, *(-logit for logit in LOGITS[1:])])
def test_continuous_bernoulli_integrates_to_1(logit):
    # At logit 90 the rounding of logit * x to float32 alone is 90 * 6e-8 = 5e-6.
    mass = probability_mass(probability.continuous_bernoulli_log_density, logit)
    assert mass == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("logit", [0.0, 1.0, 5.0, -30.0])
def test_bernoulli_on_grey_values_does_not_integrate_to_1(logit):
    # The mutant of the test above: the density without its normaliser.
    mass = probability_mass(probability.bernoulli_log_density, logit)
    assert abs(mass - 1.0) > 0.1


@pytest.mark.parametrize("logit", LOGITS)
def test_continuous_bernoulli_mean_is_the_integral_of_x_times_the_density(logit):
    nodes, weights = unit_interval_quadrature()
    for sign in (1.0, -1.0):
        logits = np.full_like(nodes, sign * logit)
        density = np.exp(probability.continuous_bernoulli_log_density(nodes, logits).numpy())
        mean = float(probability.continuous_bernoulli_mean(sign * logit))
        assert mean == pytest.approx(np.sum(weights * nodes * density), abs=1e-5)


@pytest.mark.parametrize("logit", [0.0, 0.5, -3.0, 12.0])
def test_bernoulli_sums_to_1_over_0_and_1(logit):
    log_probabilities = probability.bernoulli_log_density([0.0, 1.0], [logit, logit])
    assert np.sum(np.exp(log_probabilities)) == pytest.approx(1.0, abs=FLOAT32)


@pytest.mark.parametrize("log_scale", [-4.0, 0.0, 3.0])
@pytest.mark.parametrize("name", ["normal_log_density", "laplace_log_density"])
def test_density_on_the_real_line_integrates_to_1(name, log_scale):
    # 40 scales on either side of the mean; a trapezoid rule with 200 points for each scale has an
    # error of 1 / (12 * 200^2) = 2e-6 at the kink of the Laplace density.
    scale = np.exp(log_scale if name.startswith("laplace") else 0.5 * log_scale)
    values = 0.7 + scale * np.linspace(-40.0, 40.0, 16001)
    log_density = getattr(probability, name)(values, np.full_like(values, 0.7), log_scale)
    mass = np.trapezoid(np.exp(log_density), values)
    assert mass == pytest.approx(1.0, abs=2e-5)


@pytest.mark.parametrize("log_rate", [-15.0, -1.0, 0.0, 3.0, 6.0])
def test_poisson_sums_to_1_and_agrees_with_tensorflow_probability(log_rate):
    import tensorflow_probability as tfp

    counts = np.arange(1000.0)  # the largest mean is 403 = exp(6), the deviation 20
    found = probability.poisson_log_density(counts, np.full_like(counts, log_rate)).numpy()
    assert np.exp(found.astype(np.float64)).sum() == pytest.approx(1.0, abs=1e-3)
    theirs = tfp.distributions.Poisson(log_rate=np.float64(log_rate)).log_prob(counts)
    # Terms of up to 6000 nats cancel, which float32 knows to 5e-4.
    np.testing.assert_allclose(found, theirs, rtol=1e-5, atol=2e-3)


@pytest.mark.parametrize("log_scale", [-9.0, -4.0, -1.0, 2.0, 9.0])
@pytest.mark.parametrize("mean", [-0.4, 0.0, 0.437, 1.0, 30.0])
def test_levels_of_a_logistic_agree_with_tensorflow_probability_and_sum_to_1(mean, log_scale):
    import tensorflow_probability as tfp

    levels = np.arange(16) / 15
    logistic = tfp.distributions.Logistic(np.float64(15 * mean), np.float64(15 * np.exp(log_scale)))
    # Theirs rounds up to whole numbers; ours to the nearest, which is half a level away.
    shifted = tfp.distributions.TransformedDistribution(
        logistic, tfp.bijectors.Shift(np.float64(-0.5))
    )
    theirs = tfp.distributions.QuantizedDistribution(shifted, low=0.0, high=15.0)

    def mass(mean, log_scale):
        return probability.logistic_log_mass(
            levels.astype(np.float32), mean, log_scale, 0.0, 1.0, 16
        )

    found = mass(mean, log_scale).numpy().astype(np.float64)
    assert np.exp(found).sum() == pytest.approx(1.0, abs=1e-4)
    expected = theirs.prob(np.arange(16.0)).numpy()
    # Theirs is a difference of two numbers: what is left has about 16 digits less than one.
    np.testing.assert_allclose(np.exp(found), expected, rtol=2e-4, atol=1e-9)
    # The gradient that is written out, against differences of the values in float64.
    of_mean, of_log_scale = tf.Variable(mean), tf.Variable(log_scale)
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(mass(of_mean, of_log_scale) * np.linspace(0.5, 1.5, 16))
    slopes = tape.gradient(value, [of_mean, of_log_scale])

    def exact(mean, log_scale):
        edges = (np.arange(1, 16) - 0.5) / 15
        ends = np.concatenate([[-np.inf], (edges - mean) / np.exp(log_scale), [np.inf]])
        below, above = ends[:-1], ends[1:]
        inside = np.log(-np.expm1(below - above))
        return np.sum(
            (scipy.special.log_expit(above) + scipy.special.log_expit(-below) + inside)
            * np.linspace(0.5, 1.5, 16)
        )

    for index, slope in enumerate(slopes):
        step = 1e-5 * np.eye(2)[index]
        moved = [exact(*(np.array([mean, log_scale]) + sign * step)) for sign in (1, -1)]
        assert float(slope) == pytest.approx((moved[0] - moved[1]) / 2e-5, rel=2e-3, abs=1e-3)


def test_mean_of_a_clipped_logistic_is_the_integral_of_its_distribution():
    x = np.linspace(0.0, 1.0, 20001)
    for mean in (-5.0, -0.1, 0.0, 0.3, 0.5, 0.9, 1.0, 4.0):
        for log_scale in (-8.0, -3.0, 0.0, 4.0):
            above = scipy.special.expit((mean - x) / np.exp(log_scale))
            found = float(probability.clipped_logistic_mean(mean, log_scale))
            assert found == pytest.approx(np.trapezoid(above, x), abs=3e-5), (mean, log_scale)
    for mean, limit in ((-1e6, 0.0), (1e6, 1.0)):
        assert float(probability.clipped_logistic_mean(mean, -10.0)) == limit


@pytest.mark.parametrize(("low", "high"), [(-7.0, 7.0), (-2.0, None), (None, 0.5), (1.0, 1.1)])
def test_soft_bounds_are_kept_and_have_a_slope_everywhere(low, high):
    values = tf.constant([-1e6, -20.0, -7.0, -0.3, 0.0, 1.0, 7.0, 20.0, 1e6])
    found, (slope,) = value_and_gradients(
        lambda x: probability.softly_bounded(x, low, high), values
    )
    x = values.numpy().astype(np.float64)
    expected, wanted = x, np.ones_like(x)
    if low is not None:
        expected, wanted = (
            expected + np.logaddexp(0, low - x),
            wanted - scipy.special.expit(low - x),
        )
    if high is not None:
        expected, wanted = (
            expected - np.logaddexp(0, x - high),
            wanted - scipy.special.expit(x - high),
        )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slope, wanted, rtol=1e-4, atol=1e-6)
    assert np.all(found >= np.float32(-np.inf if low is None else low))
    assert np.all(found <= np.float32(np.inf if high is None else high))


# The continuous Bernoulli's normaliser, where its two branches meet.


def test_normaliser_is_log_2_at_zero_and_even():
    assert float(probability.continuous_bernoulli_log_normaliser(0.0)) == pytest.approx(np.log(2.0))
    sizes = np.array([1e-8, 1e-3, 0.7, 1.0, 3.0, 50.0, 1e4])
    np.testing.assert_array_equal(
        probability.continuous_bernoulli_log_normaliser(sizes),
        probability.continuous_bernoulli_log_normaliser(-sizes),
    )


def log_normaliser_in_float64(logits):
    return np.log(logits / np.tanh(logits / 2))


def log_normaliser_slope_in_float64(logits):
    return 1 / logits - 1 / np.sinh(logits)


@pytest.mark.parametrize("logit", [0.02, 0.3, 0.6, 0.9, 0.97, 1.03, 1.3, 4.0, 30.0, 80.0])
def test_normaliser_and_its_slope_are_right_to_float32_on_both_sides_of_the_seam(logit):
    for sign in (1.0, -1.0):
        value, (slope,) = value_and_gradients(
            probability.continuous_bernoulli_log_normaliser, sign * logit
        )
        logit32 = np.float64(np.float32(sign * logit))
        assert value == pytest.approx(log_normaliser_in_float64(logit32), rel=4e-7)
        # Above 1 the slope is a difference of numbers near 1, and below it a sum.
        assert slope == pytest.approx(log_normaliser_slope_in_float64(logit32), abs=6e-7)


def test_branches_of_the_normaliser_meet_to_float32_accuracy():
    below, above = np.nextafter(np.float32(1), np.float32(0)), np.float32(1)
    values, (slopes,) = value_and_gradients(
        probability.continuous_bernoulli_log_normaliser, [below, above]
    )
    expected = log_normaliser_in_float64(np.array([below, above], np.float64))
    np.testing.assert_allclose(values, expected, rtol=4e-7)
    assert slopes[0] == pytest.approx(slopes[1], abs=1e-6)


# Extremes.


@pytest.mark.parametrize("name", ["bernoulli_log_density", "continuous_bernoulli_log_density"])
@pytest.mark.parametrize("logit", [-1e4, -200.0, 200.0, 1e4])
@pytest.mark.parametrize("target", [0.0, 0.5, 1.0])
def test_value_and_gradient_are_finite_and_right_at_logits_of_1e4(name, logit, target):
    value, (_, gradient) = value_and_gradients(getattr(probability, name), target, logit)
    # log p = x * l - max(l, 0) where exp(-|l|) is nothing beside 1, plus log |l| for the
    # normaliser |l| / tanh(|l| / 2).
    expected, slope = target * logit - max(logit, 0.0), target - float(logit > 0)
    if name.startswith("continuous"):
        expected, slope = expected + np.log(abs(logit)), slope + 1 / logit
    assert value == pytest.approx(expected, rel=FLOAT32, abs=FLOAT32)
    assert gradient == pytest.approx(slope, rel=FLOAT32, abs=1e-7)


@pytest.mark.parametrize("log_var", [-80.0, 80.0])
def test_normal_density_is_finite_with_its_gradient_at_log_variances_of_80(log_var):
    value, gradients = value_and_gradients(probability.normal_log_density, 1.5, 0.5, log_var)
    inverse = np.exp(-log_var)
    assert value == pytest.approx(scipy_normal(1.5, 0.5, log_var), rel=1e-5)
    # d/dx = -d/dmean = -(x - mean) / var and d/dlog_var = ((x - mean)^2 / var - 1) / 2.
    np.testing.assert_allclose(gradients, [-inverse, inverse, 0.5 * inverse - 0.5], rtol=1e-5)


@pytest.mark.parametrize("log_var", [-1e4, -80.0, 80.0])
def test_kl_divergence_is_finite_with_its_gradient_at_extreme_log_variances(log_var):
    value, (mean_slope, slope) = value_and_gradients(probability.normal_kl_divergence, 3.0, log_var)
    assert value == pytest.approx(0.5 * (9.0 + np.exp(log_var) - 1.0 - log_var), rel=1e-5)
    assert mean_slope == 3.0
    assert slope == pytest.approx(0.5 * np.expm1(log_var), rel=1e-5)


@pytest.mark.parametrize("logit", [-1e4, -90.0, -30.0, 30.0, 90.0, 1e4])
def test_continuous_bernoulli_mean_reaches_its_limits(logit):
    # 1 / |l| away from the nearer end, beyond the reach of exp(-|l|).
    distance = 1 / abs(logit)
    expected = 1 - distance if logit > 0 else distance
    mean = float(probability.continuous_bernoulli_mean(logit))
    assert mean == pytest.approx(expected, rel=FLOAT32)


@pytest.mark.parametrize("logit", [1e-3, 0.2, 0.49, 0.51, 1.0, 4.0, 20.0])
def test_continuous_bernoulli_mean_is_right_to_float32_on_both_sides_of_its_seam(logit):
    for sign in (1.0, -1.0):
        logit64 = np.float64(np.float32(sign * logit))
        expected = -1.0 / np.expm1(-logit64) - 1.0 / logit64
        mean = float(probability.continuous_bernoulli_mean(logit64))
        # Just above the seam at 0.5, 2.54 and 2 are subtracted, each rounded by 1e-7.
        assert mean == pytest.approx(expected, abs=6e-7)


@pytest.mark.parametrize(
    "logit",
    [
        -1e4,
        -90.0,
        -30.0,
        -0.5,
        0.0,
        0.5,
        30.0,
        90.0,
        1e4,
    ],
)
def test_gradient_of_the_continuous_bernoulli_mean_is_its_variance(logit):
    # An exponential family: the derivative of the mean by the natural parameter is the variance,
    # 1/12 at 0 and 1/l^2 - 1/(4 sinh(l/2)^2) elsewhere.
    half = np.sinh(min(abs(logit), 500.0) / 2)
    variance = 1 / logit**2 - 1 / (4 * half**2) if logit else 1 / 12
    _, (gradient,) = value_and_gradients(probability.continuous_bernoulli_mean, logit)
    assert gradient == pytest.approx(variance, rel=1e-4)


# The Bernoulli gradient where a wrong prediction saturates.


def keras_gradient(target, logits):
    """Returns the gradient of Keras' cross-entropy on sigmoid outputs: the mutant."""
    logits = tf.constant(logits, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        outputs = tf.sigmoid(logits)[:, None]
        loss = keras.losses.binary_crossentropy(tf.fill(outputs.shape, target), outputs)
    return tape.gradient(loss, logits).numpy()


def test_bernoulli_gradient_does_not_vanish_where_a_wrong_prediction_saturates():
    logits = np.array([17.0, 20.0, 40.0, 200.0])
    for target, wrong in ((0.0, logits), (1.0, -logits)):
        values, (_, gradient) = value_and_gradients(
            probability.bernoulli_log_density, np.full(4, target), wrong
        )
        # log(1 - sigmoid(l)) = -l, and target - sigmoid(l) = -+1, up to exp(-17) = 4e-8.
        np.testing.assert_allclose(values, -logits, rtol=FLOAT32)
        np.testing.assert_allclose(gradient, np.full(4, target) - (wrong > 0), rtol=FLOAT32)
        np.testing.assert_array_equal(keras_gradient(target, wrong), np.zeros(4))


# The KL divergence.


def textbook_kl(mean, log_var):
    """The formula as printed in float32: the mutant that loses small values."""
    return 0.5 * (tf.square(mean) + tf.exp(log_var) - 1.0 - log_var)


def exact_kl(mean, log_var):
    mean, log_var = np.float64(np.float32(mean)), np.float64(np.float32(log_var))
    return 0.5 * (mean**2 + np.expm1(log_var) - log_var)


NEAR_ZERO = [
    # v^2 / 4 = 2.5e-9 for a log-variance of 1e-4; m^2 / 2 = 2.5e-9 for a mean of 7.07e-5.
    (0.0, 1e-4),
    (0.0, -1e-4),
    (7.07e-5, 0.0),
    (7.07e-5, 1e-4),
    (5e-5, -1e-4),
]


@functools.cache
def compiled_kl(jit_compile):
    return tf.function(probability.normal_kl_divergence, jit_compile=jit_compile)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize(("mean", "log_var"), NEAR_ZERO)
def test_kl_divergence_keeps_its_digits_near_zero(mean, log_var, jit_compile):
    value = float(compiled_kl(jit_compile)(tf.constant(mean), tf.constant(log_var)))
    # expm1(1e-4) is rounded to 7e-12 in float32, of 5e-9 that are left of it.
    assert value == pytest.approx(exact_kl(mean, log_var), rel=2e-3)


@pytest.mark.parametrize(("mean", "log_var"), NEAR_ZERO)
def test_textbook_kl_divergence_loses_its_digits_near_zero(mean, log_var):
    value = float(textbook_kl(tf.constant(mean), tf.constant(log_var)))
    assert value != pytest.approx(exact_kl(mean, log_var), rel=0.1)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_kl_divergence_is_zero_at_the_prior_and_negative_nowhere(jit_compile):
    small = np.geomspace(1e-9, 3.0, 20000)
    log_var = tf.constant(np.concatenate([[0.0], small, -small]), tf.float32)
    values = compiled_kl(jit_compile)(tf.zeros_like(log_var), log_var).numpy()
    assert values[0] == 0.0
    assert values.min() >= 0.0
    assert textbook_kl(tf.zeros_like(log_var), log_var).numpy().min() < 0.0  # the mutant


@pytest.mark.parametrize(("mean", "log_var"), [(0.8, -1.2), (-1.5, 0.4), (0.0, -4.0)])
def test_kl_divergence_is_the_mean_of_the_log_ratio_in_value_and_gradient(mean, log_var):
    count = 200_000
    noise = np.random.default_rng(7).standard_normal(count).astype(np.float32)

    def log_ratio(mean, log_var):
        z = mean + tf.exp(0.5 * log_var) * noise
        log_posterior = probability.normal_log_density(z, mean, log_var)
        return log_posterior - probability.standard_normal_log_density(z)

    # One copy of the parameters for each sample gives one gradient for each sample.
    samples, sample_gradients = value_and_gradients(
        log_ratio, np.full(count, mean), np.full(count, log_var)
    )
    value, gradients = value_and_gradients(probability.normal_kl_divergence, mean, log_var)
    for exact, drawn in zip([value, *gradients], [samples, *sample_gradients], strict=True):
        standard_error = drawn.std(ddof=1) / np.sqrt(count)
        assert abs(drawn.mean() - exact) < 4 * standard_error + FLOAT32
    # The estimate is sharp enough to tell KL(q || p) from KL(p || q).
    reverse = 0.5 * (log_var + (1 + mean**2) * np.exp(-log_var) - 1)
    assert abs(samples.mean() - reverse) > 4 * samples.std() / np.sqrt(count)


def test_kl_gradient_of_a_shared_log_variance_has_its_shape_and_sum():
    means = np.array([[0.5, -1.0], [2.0, 0.0], [1.0, 1.0]])
    _, (mean_gradient, gradient) = value_and_gradients(
        probability.normal_kl_divergence, means, [0.3, -0.2]
    )
    np.testing.assert_allclose(mean_gradient, means, rtol=FLOAT32)
    # Each shared value stands in three rows.
    np.testing.assert_allclose(gradient, 3 * 0.5 * np.expm1([0.3, -0.2]), rtol=FLOAT32)


# Reductions.


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_log_mean_exp_agrees_with_scipy(axis):
    values = np.random.default_rng(1).normal(scale=5.0, size=(4, 6))
    ours, (gradient,) = value_and_gradients(lambda v: probability.log_mean_exp(v, axis), values)
    expected = scipy.special.logsumexp(values, axis=axis) - np.log(values.shape[axis])
    np.testing.assert_allclose(ours, expected, rtol=FLOAT32, atol=FLOAT32)
    softmax = scipy.special.softmax(values, axis=axis)
    np.testing.assert_allclose(gradient, softmax, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_log_mean_exp_moves_with_its_values_and_does_not_overflow(shift):
    values = np.array([0.0, 1.0, -2.0])
    expected = np.log(np.mean(np.exp(values))) + shift
    # Numbers near 1e4 are 1e-3 apart in float32.
    assert float(probability.log_mean_exp(tf.constant(values + shift, tf.float32), 0)) == (
        pytest.approx(expected, abs=2e-3)
    )


def test_log_mean_exp_of_one_value_is_that_value_and_otherwise_between_mean_and_maximum():
    assert float(probability.log_mean_exp(tf.constant([-3.25]), 0)) == -3.25
    values = tf.constant([-4.0, 0.5, 2.0])
    joined = float(probability.log_mean_exp(values, 0))
    assert float(tf.reduce_mean(values)) < joined < 2.0  # Jensen's inequality


def test_sum_over_event_adds_all_axes_but_the_first():
    values = np.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_array_equal(probability.sum_over_event(values), values.sum(axis=(1, 2)))
    np.testing.assert_array_equal(probability.sum_over_event([1.0, 2.0]), [1.0, 2.0])


def test_sum_over_event_of_16_bit_values_is_a_float32_sum():
    values = tf.fill([1, 784], tf.constant(0.1, tf.bfloat16))
    expected = 784 * float(tf.constant(0.1, tf.bfloat16))  # 784 pixels, a MNIST image
    total = probability.sum_over_event(values)
    assert total.dtype == tf.float32
    assert float(total[0]) == pytest.approx(expected, rel=FLOAT32)
    in_16_bits = float(tf.reduce_sum(values, axis=1)[0])  # the mutant
    assert in_16_bits != pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("bernoulli_log_density", 2),
        ("continuous_bernoulli_log_density", 2),
        ("continuous_bernoulli_mean", 1),
        ("normal_log_density", 3),
        ("standard_normal_log_density", 1),
        ("laplace_log_density", 3),
        ("normal_kl_divergence", 2),
    ],
)
def test_function_of_16_bit_arguments_is_that_of_their_values_in_float32(name, count):
    function = getattr(probability, name)
    arguments = [tf.constant([0.3, 0.7], tf.bfloat16)] * count
    values = function(*arguments)
    assert values.dtype == tf.float32
    np.testing.assert_array_equal(values, function(*(tf.cast(a, tf.float32) for a in arguments)))

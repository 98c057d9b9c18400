"""Loss terms against SciPy, hand-worked values and Monte Carlo; and the contract of a term."""

import dataclasses
import json
import math

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf

from vae_research import (
    Bernoulli,
    CapacityKL,
    Categorical,
    ContinuousBernoulli,
    Cosine,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    FreeBits,
    Gaussian,
    GaussianBottleneck,
    GaussianWithVariance,
    KLDivergence,
    Laplace,
    Likelihood,
    LinearWarmup,
    LossTerm,
    MonteCarloKL,
    Objective,
    Poisson,
    pixel_mean_terms,
)
from vae_research.probability import normal_kl_divergence
from vae_research.settings import from_config
from vae_research.tensors import Tensors

FLOAT32 = 1e-6
IMAGES = (3, 4, 2, 1)  # rows, height, width, channels


def value_and_gradients(term, tensors):
    """Returns a term's values and, by name, the gradients of their sum, as NumPy arrays."""
    tensors = {name: tf.constant(value, tf.float32) for name, value in tensors.items()}
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        values = term(tensors)
    gradients = tape.gradient(values, tensors)
    return values.numpy(), {name: g.numpy() for name, g in gradients.items() if g is not None}


def uniform(low, high, shape=IMAGES, seed=0):
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def normal(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def per_row(values):
    return values.reshape([len(values), -1]).sum(axis=1)


# Likelihoods: the value is minus SciPy's log-density, summed over pixels; the gradient by a
# decoder output is written beside each case.


def check_likelihood(term, tensors, log_density, gradients):
    values, found = value_and_gradients(term, tensors)
    assert values.shape == (len(tensors["targets"]),)
    np.testing.assert_allclose(values, -per_row(log_density), rtol=2e-6, atol=1e-5)
    for name, expected in gradients.items():
        np.testing.assert_allclose(found[name], expected, rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("targets", ["binary", "grey"])
def test_bernoulli_is_the_cross_entropy_summed_over_pixels(targets):
    x = uniform(0, 1) if targets == "grey" else (uniform(0, 1) > 0.5).astype(np.float32)
    logits = 4.0 * normal(IMAGES)
    log_density = x * scipy.special.log_expit(logits) + (1 - x) * scipy.special.log_expit(-logits)
    # d/dl = sigmoid(l) - x
    gradients = {"logits": scipy.special.expit(logits) - x}
    check_likelihood(Bernoulli(), {"targets": x, "logits": logits}, log_density, gradients)
    mean = Bernoulli().reconstruction({"logits": tf.constant(logits)})
    np.testing.assert_allclose(mean, scipy.special.expit(logits), rtol=FLOAT32)


def test_continuous_bernoulli_is_a_truncated_exponential_density():
    x, logits = uniform(0, 1), 6.0 * normal(IMAGES).astype(np.float64)
    rate = np.abs(logits)
    # exp(l * x) on [0, 1], run from the end where the density is largest.
    cut = scipy.stats.truncexpon(b=rate, scale=1 / rate)
    log_density = cut.logpdf(np.where(logits > 0, 1 - x, x))
    mean = np.where(logits > 0, 1 - cut.mean(), cut.mean())
    tensors = {"targets": x, "logits": logits}
    # d/dl = mean - x, as in every exponential family.
    check_likelihood(ContinuousBernoulli(), tensors, log_density, {"logits": mean - x})
    reconstruction = ContinuousBernoulli().reconstruction({"logits": tf.constant(logits)})
    np.testing.assert_allclose(reconstruction, mean, rtol=1e-5)
    # The mutant: the sigmoid is no mean of this distribution.
    assert np.abs(scipy.special.expit(logits) - mean).max() > 0.1


@pytest.mark.parametrize("deviation", [0.1, 1.0, 3.0])
def test_gaussian_is_the_normal_density_of_a_fixed_standard_deviation(deviation):
    x, mean = normal(IMAGES, 1), normal(IMAGES, 2)
    check_likelihood(
        Gaussian(standard_deviation=deviation),
        {"targets": x, "x_mean": mean},
        scipy.stats.norm.logpdf(x.astype(np.float64), mean, deviation),
        {"x_mean": (mean - x) / deviation**2},
    )
    np.testing.assert_array_equal(Gaussian().reconstruction({"x_mean": tf.constant(mean)}), mean)


@pytest.mark.parametrize(
    "shape", [IMAGES, (3, 1, 1, 1), (1, 4, 2, 1), ()], ids=["full", "row", "pixel", "one"]
)
def test_gaussian_with_variance_takes_a_variance_for_each_pixel_or_a_shared_one(shape):
    x, mean = normal(IMAGES, 1), normal(IMAGES, 2)
    log_var = np.float32(1.5) * normal(shape, 3)
    square = (x - mean) ** 2 * np.exp(-log_var)
    slope = 0.5 - 0.5 * square  # d/dv, summed where a variance is shared
    shared = tuple(i for i, n in enumerate(IMAGES) if not shape or shape[i] != n)
    check_likelihood(
        GaussianWithVariance(),
        {"targets": x, "x_mean": mean, "x_log_var": log_var},
        scipy.stats.norm.logpdf(x.astype(np.float64), mean, np.exp(0.5 * log_var)),
        {
            "x_mean": (mean - x) * np.exp(-log_var),
            "x_log_var": slope.sum(axis=shared, keepdims=bool(shape)),
        },
    )


def test_gaussian_with_constant_variance_is_gaussian():
    x, mean = normal(IMAGES, 1), normal(IMAGES, 2)
    tensors = {"targets": x, "x_mean": mean}
    fixed, _ = value_and_gradients(Gaussian(standard_deviation=0.5), tensors)
    log_var = np.full(IMAGES, 2 * np.log(0.5))
    free, _ = value_and_gradients(GaussianWithVariance(), tensors | {"x_log_var": log_var})
    np.testing.assert_allclose(fixed, free, rtol=FLOAT32)


@pytest.mark.parametrize("scale", [0.2, 1.0, 4.0])
def test_laplace_is_the_laplace_density_of_a_fixed_scale(scale):
    x, mean = normal(IMAGES, 1), normal(IMAGES, 2)
    check_likelihood(
        Laplace(scale=scale),
        {"targets": x, "x_mean": mean},
        scipy.stats.laplace.logpdf(x.astype(np.float64), mean, scale),
        {"x_mean": np.sign(mean - x) / scale},
    )


@pytest.mark.parametrize(
    ("term", "names"),
    [
        (Bernoulli(), ["logits"]),
        (ContinuousBernoulli(), ["logits"]),
        (Gaussian(standard_deviation=0.3), ["x_mean"]),
        (GaussianWithVariance(), ["x_mean", "x_log_var"]),
        (Laplace(scale=0.3), ["x_mean"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_likelihood_is_a_sum_over_pixels_and_not_a_mean(term, names):
    # Twice the image is twice the nats: the mutant, a mean over pixels, stays as it is.
    tensors = {"targets": uniform(0.1, 0.9), **{name: normal(IMAGES, 4) for name in names}}
    once, _ = value_and_gradients(term, tensors)
    twice, _ = value_and_gradients(
        term, {name: np.concatenate([v, v], axis=1) for name, v in tensors.items()}
    )
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-5)


@pytest.mark.parametrize(
    ("term", "targets"),
    [(Bernoulli(), tf.uint8), (ContinuousBernoulli(), tf.float16), (Bernoulli(), tf.bool)],
)
def test_likelihood_takes_data_of_any_type_and_16_bit_logits_and_is_float32(term, targets):
    x, logits = np.array([[0, 1, 1]]), np.array([[0.5, -1.0, 2.0]])
    values = term({"targets": tf.cast(x, targets), "logits": tf.constant(logits, tf.bfloat16)})
    expected, _ = value_and_gradients(term, {"targets": x, "logits": logits})
    assert values.dtype == tf.float32
    np.testing.assert_allclose(values, expected, rtol=FLOAT32)  # 0.5, -1 and 2 are exact in 16 bits


def test_only_bernoulli_on_grey_values_has_a_note_that_it_is_not_normalised():
    assert "not a normalised likelihood" in Bernoulli().note(grey_values=True)
    assert Bernoulli().note(grey_values=False) is None
    for term in (ContinuousBernoulli(), Gaussian(), GaussianWithVariance(), Laplace()):
        assert term.note(grey_values=True) is None


def test_support_says_which_values_have_a_density():
    assert Bernoulli.support == ContinuousBernoulli.support == (0.0, 1.0)
    assert Gaussian.support == GaussianWithVariance.support == Laplace.support
    assert Gaussian.support == (-math.inf, math.inf)


@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_scale_that_is_not_positive_is_refused_by_name(bad):
    with pytest.raises(
        ValueError, match=rf"Gaussian.standard_deviation must be positive, got {bad}"
    ):
        Gaussian(standard_deviation=bad)
    with pytest.raises(ValueError, match=rf"Laplace.scale must be positive, got {bad}"):
        Laplace(scale=bad)


@pytest.mark.parametrize(
    ("term", "names"),
    [
        (Bernoulli(), ["logits"]),
        (ContinuousBernoulli(), ["logits"]),
        (Gaussian(), ["x_mean"]),
        (GaussianWithVariance(), ["x_mean", "x_log_var"]),
        (Laplace(), ["x_mean"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_decoder_of_another_shape_is_refused_where_it_would_broadcast(term, names):
    tensors = {"targets": tf.zeros([3, 4]), **{name: tf.zeros([3, 1]) for name in names}}
    with pytest.raises(ValueError, match=rf"targets of shape \(3, 4\) with '{names[0]}' of shape"):
        term(tensors)


@pytest.mark.parametrize("shape", [(3, 4, 2, 5), (4, 1, 1, 1), (2, 3, 4, 2, 1)])
def test_variance_that_would_count_a_pixel_several_times_is_refused(shape):
    tensors = {name: tf.zeros([3, 4, 2, 1]) for name in ("targets", "x_mean")}
    with pytest.raises(ValueError, match=r"'x_log_var' has shape .* the targets of shape"):
        GaussianWithVariance()(tensors | {"x_log_var": tf.zeros(shape)})


@pytest.mark.parametrize("deviations", [(0.1, 2.0), (0.5, None), (None, 0.3)])
def test_a_bounded_variance_stays_within_its_bounds_for_every_output_of_the_decoder(deviations):
    low, high = deviations
    term = GaussianWithVariance(min_standard_deviation=low, max_standard_deviation=high)
    # Without a bound, the network has to see to it that exp does not overflow.
    for log_var in (-1e3 if low else -20.0, 0.0, 20.0, 1e3):
        # At the mean, the density is 1 / (sqrt(2 pi) sigma), which gives sigma away.
        tensors = {name: np.zeros([1, 1]) for name in ("targets", "x_mean")}
        values, slopes = value_and_gradients(
            term, tensors | {"x_log_var": np.full([1, 1], log_var)}
        )
        found = 2.0 * values[0] - np.log(2 * np.pi)
        bounds = [np.log(low or 1e-300), np.log(high or 1e300)]
        assert 2 * bounds[0] - 1e-5 <= found <= 2 * bounds[1] + 1e-5
        if abs(log_var) >= 20.0:
            assert found == pytest.approx(np.clip(log_var, 2 * bounds[0], 2 * bounds[1]), abs=1e-3)
        assert np.all(np.isfinite(slopes["x_log_var"]))


def test_bounds_of_a_variance_are_positive_and_in_order():
    with pytest.raises(ValueError, match="min_standard_deviation must be positive, got 0"):
        GaussianWithVariance(min_standard_deviation=0.0)
    with pytest.raises(ValueError, match=r"must be below max_standard_deviation, got 1\.0 and"):
        GaussianWithVariance(min_standard_deviation=1.0, max_standard_deviation=0.5)


# Integers and levels.


def test_poisson_is_the_poisson_density_around_the_rate():
    counts = np.random.default_rng(0).poisson(3.0, IMAGES)
    log_rate = normal(IMAGES, 2)
    check_likelihood(
        Poisson(),
        {"targets": counts, "x_log_rate": log_rate},
        scipy.stats.poisson.logpmf(counts, np.exp(log_rate.astype(np.float64))),
        {"x_log_rate": np.exp(log_rate) - counts},
    )
    mean = Poisson().reconstruction({"x_log_rate": tf.constant(log_rate)})
    np.testing.assert_allclose(mean, np.exp(log_rate), rtol=FLOAT32)


@pytest.mark.parametrize("dtype", [tf.int64, tf.uint8, tf.float32])
def test_tokens_and_images_of_integers_have_a_class_at_each_place(dtype):
    for shape in ((3, 7), (3, 4, 2, 1)):  # [rows, time], [rows, height, width, channels]
        tokens = np.random.default_rng(0).integers(0, 5, shape)
        logits = normal((*shape, 5), 1)
        found = Categorical(classes=5)(
            {"targets": tf.cast(tokens, dtype), "logits": tf.constant(logits)}
        )
        log_p = scipy.special.log_softmax(logits.astype(np.float64), axis=-1)
        chosen = np.take_along_axis(log_p, tokens[..., None], axis=-1)
        np.testing.assert_allclose(found, -per_row(chosen), rtol=1e-6)


def every_pixel(levels):
    """All RGB pixels with so many levels, [levels^3, 3]."""
    steps = np.arange(levels, dtype=np.float32) / (levels - 1)
    return np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)


def pixel_log_p(term, pixels, x_mixture):
    """Log-probability of each pixel [n, 3] under one mixture, float64 [n]."""
    same = tf.constant(np.broadcast_to(x_mixture, [len(pixels), len(x_mixture)]))
    return -term({"targets": tf.constant(pixels), "x_mixture": same}).numpy().astype(np.float64)


@pytest.mark.parametrize("size", [0.5, 3.0, 30.0])
def test_the_mixture_of_pixels_sums_to_1_over_all_levels(size):
    term = DiscretizedLogisticMixture(components=2, levels=6)
    for seed in range(3):
        mixture = np.float32(size) * normal([20], seed)
        p = np.exp(pixel_log_p(term, every_pixel(6), mixture))
        assert p.sum() == pytest.approx(1.0, abs=1e-4)


def test_the_mixture_of_pixels_is_that_of_the_paper():
    # Salimans et al. 2017, equations 2 and 3, in float64, on values from -1 to 1.
    mixture, levels = normal([30], 5).astype(np.float64), 8
    term = DiscretizedLogisticMixture(components=3, levels=levels)
    logits, *rest = mixture.reshape(10, 3)
    means, log_scales, coefficients = rest[:3], rest[3:6], np.tanh(rest[6:])
    pixels = every_pixel(levels)
    x, half = 2 * pixels.astype(np.float64).T[:, :, None] - 1, 1 / (levels - 1)
    shifts = [0, coefficients[0] * x[0], coefficients[1] * x[0] + coefficients[2] * x[1]]
    p = scipy.special.softmax(logits)
    for channel in range(3):
        mean, scale = means[channel] + shifts[channel], np.exp(log_scales[channel])
        above = np.where(x[channel] < 1, (x[channel] + half - mean) / scale, np.inf)
        below = np.where(x[channel] > -1, (x[channel] - half - mean) / scale, -np.inf)
        p = p * (scipy.special.expit(above) - scipy.special.expit(below))
    found = pixel_log_p(term, pixels, mixture.astype(np.float32))
    # The soft bound of the scale moves a logarithm of 2 by exp(2 - 7) = 0.7 percent.
    np.testing.assert_allclose(np.exp(found), p.sum(axis=-1), rtol=0.05, atol=1e-6)


def test_the_mean_of_the_mixture_is_that_of_its_pixels():
    term = DiscretizedLogisticMixture(components=2, levels=32)
    pixels = every_pixel(32)
    mixture = np.concatenate(
        [
            [0.3, -0.4],  # logits
            [-0.3, 0.2, 0.1, -0.2, 0.1, 0.0],  # means, where nothing reaches the limits
            [-3.0, -2.6, -3.0, -2.7, -2.8, -3.1],  # log scales
            [1.0, -0.5, 0.4, -1.0, 0.3, 0.8],  # coefficients
        ]
    ).astype(np.float32)
    mean = np.exp(pixel_log_p(term, pixels, mixture)) @ pixels
    found = term.reconstruction({"x_mixture": tf.constant(mixture[None])})[0]
    np.testing.assert_allclose(found, mean, atol=2e-3)
    # The mutant: without the other channels, green and blue are elsewhere.
    without = mixture * (np.arange(20) < 14)
    mutant = term.reconstruction({"x_mixture": tf.constant(without[None])})[0]
    assert np.all(np.abs(mutant - mean)[1:] > 0.01)


def test_one_level_after_the_other_is_that_of_its_logistic():
    levels = np.arange(8, dtype=np.float32)[:, None] / 7
    term = DiscretizedLogistic(levels=8)
    for mean, log_var in ((0.3, -4.0), (0.9, -1.0), (-0.2, 3.0)):
        parameters = {
            "x_mean": tf.fill([8, 1], mean),
            "x_log_var": tf.fill([8, 1], log_var),
        }
        p = np.exp(-term({"targets": tf.constant(levels), **parameters}).numpy().astype(np.float64))
        logistic = scipy.stats.logistic(mean, np.exp(0.5 * log_var) * np.sqrt(3) / np.pi)
        assert logistic.var() == pytest.approx(np.exp(log_var))
        edges = np.concatenate([[-np.inf], (np.arange(1, 8) - 0.5) / 7, [np.inf]])
        np.testing.assert_allclose(p, np.diff(logistic.cdf(edges)), rtol=1e-3, atol=1e-7)
        found = term.reconstruction(parameters)
        np.testing.assert_allclose(found, np.full([8, 1], p @ levels), atol=0.5 / 7)


def test_likelihoods_of_levels_refuse_other_shapes_and_settings():
    with pytest.raises(ValueError, match=r"DiscretizedLogistic\.levels must be an integer >= 2"):
        DiscretizedLogistic(levels=1)
    with pytest.raises(ValueError, match="components must be an integer >= 1, got 0"):
        DiscretizedLogisticMixture(components=0)
    for shape, width in (((3, 4, 4, 1), 20), ((3, 4, 4, 3), 19)):
        tensors = {"targets": tf.zeros(shape), "x_mixture": tf.zeros([*shape[:-1], width])}
        with pytest.raises(ValueError, match=r"needs images with 3 channels and, for 2 components"):
            DiscretizedLogisticMixture(components=2)(tensors)


# Divergences.


def test_kl_divergence_sums_over_latent_dimensions():
    kl = uniform(0, 3, (4, 3))
    values, gradients = value_and_gradients(KLDivergence(), {"kl": kl})
    np.testing.assert_allclose(values, kl.sum(axis=1), rtol=FLOAT32)
    np.testing.assert_array_equal(gradients["kl"], np.ones_like(kl))


def test_monte_carlo_kl_is_log_posterior_minus_log_prior():
    log_posterior, log_prior = normal([5], 1), normal([5], 2)
    values, gradients = value_and_gradients(
        MonteCarloKL(), {"log_posterior": log_posterior, "log_prior": log_prior}
    )
    np.testing.assert_array_equal(values, log_posterior - log_prior)
    np.testing.assert_array_equal(gradients["log_posterior"], np.ones(5))
    np.testing.assert_array_equal(gradients["log_prior"], -np.ones(5))


def test_monte_carlo_kl_averages_to_the_kl_divergence_in_value_and_gradient():
    count, mean, log_var = 100_000, [0.8, -1.5], [-1.2, 0.4]
    # One row for each sample gives one gradient for each sample.
    z_mean, z_log_var = (tf.constant([values] * count) for values in (mean, log_var))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([z_mean, z_log_var])
        tensors = GaussianBottleneck(2)(z_mean, z_log_var, tf.constant([5, 0]))
        drawn, exact = MonteCarloKL()(tensors), KLDivergence()(tensors)
    for sample, expected in [(drawn, exact)] + [
        (tape.gradient(drawn, variable), tape.gradient(exact, variable))
        for variable in (z_mean, z_log_var)
    ]:
        sample, expected = sample.numpy().astype(np.float64), expected.numpy()[0]
        standard_error = sample.std(axis=0, ddof=1) / np.sqrt(count)
        assert np.all(np.abs(sample.mean(axis=0) - expected) < 4 * standard_error + FLOAT32)


def test_free_bits_need_a_divergence_of_dimensions():
    with pytest.raises(ValueError, match="kl is one number for each row"):
        value_and_gradients(FreeBits(), {"kl": np.ones(3, np.float32)})


def test_free_bits_bounds_the_batch_mean_of_each_dimension_from_below():
    # Batch means are 0.05, 0.5 and 2: the first is lifted to 0.1, so that 0.1 + 0.5 + 2 = 2.6.
    kl = np.array([[0.02, 0.2, 1.0], [0.08, 0.8, 3.0]])
    values, gradients = value_and_gradients(FreeBits(nats_per_dimension=0.1), {"kl": kl})
    assert values == pytest.approx(2.6, rel=FLOAT32)
    # The free dimension is not pushed; of the others each row has half.
    np.testing.assert_allclose(gradients["kl"], [[0.0, 0.5, 0.5]] * 2)
    # The mutant bounds every example: (0.1 + 0.1) / 2 + 0.5 + 2 is the same here, but with 0.3 free
    # nats the second dimension is (0.3 + 0.8) / 2 = 0.55 instead of its mean 0.5.
    values, _ = value_and_gradients(FreeBits(nats_per_dimension=0.3), {"kl": kl})
    mutant = np.maximum(kl, 0.3).mean(axis=0).sum()
    assert values == pytest.approx(0.3 + 0.5 + 2.0, rel=FLOAT32) != pytest.approx(mutant, rel=0.01)


def test_free_bits_of_zero_are_the_mean_kl_divergence_and_never_less():
    kl = uniform(0, 2, (6, 4))
    mean = kl.sum(axis=1).mean()
    assert value_and_gradients(FreeBits(nats_per_dimension=0.0), {"kl": kl})[0] == (
        pytest.approx(mean, rel=FLOAT32)
    )
    for free in (0.1, 0.9, 5.0):
        bounded, _ = value_and_gradients(FreeBits(nats_per_dimension=free), {"kl": kl})
        assert bounded >= max(mean, 4 * free) - 1e-5  # four dimensions


def test_negative_free_bits_are_refused():
    with pytest.raises(ValueError, match=r"nats_per_dimension must not be negative, got -0\.1"):
        FreeBits(nats_per_dimension=-0.1)


def test_capacity_is_a_distance_of_the_mean_and_not_a_mean_of_distances():
    # KL divergences of 1 and 5 nats, their mean is 3: |3 - 3| = 0, (|1 - 3| + |5 - 3|) / 2 = 2.
    kl, step = np.array([[0.5, 0.5], [1.0, 4.0]]), 0.0
    values, _ = value_and_gradients(CapacityKL(capacity=3.0), {"kl": kl, "step": step})
    assert values == pytest.approx(0.0, abs=FLOAT32)
    mutant = np.abs(kl.sum(axis=1) - 3.0).mean()
    assert mutant == 2.0


@pytest.mark.parametrize(("capacity", "distance", "slope"), [(1.0, 2.0, 0.5), (4.5, 1.5, -0.5)])
def test_capacity_pulls_the_kl_divergence_from_both_sides(capacity, distance, slope):
    kl = np.array([[0.5, 0.5], [1.0, 4.0]])  # mean 3, as above; two rows share the slope
    values, gradients = value_and_gradients(CapacityKL(capacity=capacity), {"kl": kl, "step": 0.0})
    assert values == pytest.approx(distance)
    np.testing.assert_allclose(gradients["kl"], np.full([2, 2], slope))


def test_capacity_grows_with_the_step():
    term = CapacityKL(capacity=LinearWarmup(steps=100, peak=25.0))
    kl = tf.zeros([2, 3])
    distances = [float(term({"kl": kl, "step": tf.constant(s)})) for s in (0.0, 20.0, 100.0, 500.0)]
    assert distances == pytest.approx([0.0, 5.0, 25.0, 25.0])


# The recipe with means over pixels.


@pytest.mark.parametrize(("factor", "latent"), [(0.5e-4, 16), (6.5e-4, 2)])
def test_pixel_mean_terms_train_the_formula_of_the_recipe_in_value_and_gradient(factor, latent):
    x, logits = uniform(0, 1, (5, 28, 28, 1)), 2.0 * normal((5, 28, 28, 1))
    mean, log_var = normal((5, latent), 1), normal((5, latent), 2)
    tensors = [tf.constant(values) for values in (logits, mean, log_var)]
    objective = Objective(pixel_mean_terms(factor=factor, pixels=784, latent_dim=latent))
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        report = objective(
            Tensors(
                step=tf.constant(0.0),
                targets=tf.constant(x),
                logits=tensors[0],
                kl=normal_kl_divergence(*tensors[1:]),
            )
        )
        loss = tf.reduce_mean(report.surrogate)
    gradients = tape.gradient(loss, tensors)

    # mean over pixels of BCE, minus factor times the mean over z of 1 + v - m^2 - exp(v); each a
    # mean over the five examples.
    logits, mean, log_var = (values.astype(np.float64) for values in (logits, mean, log_var))
    cross_entropy = np.logaddexp(0.0, logits) - x * logits
    inner = 1.0 + log_var - mean**2 - np.exp(log_var)
    assert float(loss) == pytest.approx(cross_entropy.mean() - factor * inner.mean(), rel=1e-6)
    expected = [
        (scipy.special.expit(logits) - x) / (784 * 5),
        factor * 2.0 * mean / (latent * 5),
        factor * (np.exp(log_var) - 1.0) / (latent * 5),
    ]
    for gradient, by_hand in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, by_hand, rtol=1e-5, atol=1e-10)
    # What is logged stays in nats.
    nats = cross_entropy.sum(axis=(1, 2, 3))
    np.testing.assert_allclose(report.values["reconstruction"], nats, rtol=FLOAT32)
    np.testing.assert_allclose(report.values["kl"], -0.5 * inner.sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize(
    ("factor", "latent", "beta"),
    [
        (0.5e-4, 16, 0.0049),  # 2 * 0.5e-4 * 784 / 16
        (6.5e-4, 2, 0.51),  # 2 * 6.5e-4 * 784 / 2 = 0.5096
    ],
)
def test_pixel_mean_terms_have_the_effective_beta_of_the_recipe(factor, latent, beta):
    objective = Objective(pixel_mean_terms(factor=factor, pixels=784, latent_dim=latent))
    assert objective.effective_beta(step=0) == pytest.approx(beta, rel=2e-3)


# The contract of a term.


class SecondMoment(LossTerm):
    """A term as a user writes it, with no decorator."""

    order: int = 2

    def per_example(self, z_mean):
        return tf.reduce_sum(z_mean**self.order, axis=-1)


def test_subclass_without_a_decorator_has_settings_a_name_and_named_tensors():
    term = SecondMoment(order=3, weight=0.5)
    assert (term.order, term.weight, term.label) == (3, 0.5, "second_moment")
    assert term.reads() == {"z_mean"}
    values = term({"z_mean": tf.constant([[1.0, 2.0]]), "other": tf.zeros([])})
    np.testing.assert_array_equal(values, [9.0])  # 1 + 8, unweighted


@pytest.mark.parametrize(
    ("term", "label"),
    [
        (Bernoulli(), "reconstruction"),
        (KLDivergence(), "kl"),
        (MonteCarloKL(), "kl"),
        (FreeBits(), "free_bits"),
        (CapacityKL(), "capacity_kl"),
        (CapacityKL(name="Burgess-2018.eq8"), "Burgess-2018.eq8"),
    ],
)
def test_term_is_called_by_its_name_or_its_class(term, label):
    assert term.label == label


@pytest.mark.parametrize("name", ["my kl", "kl/top", "kl\n", "k\tl", "kl:0", "ölkl", " "])
def test_name_that_is_no_tag_is_refused(name):
    with pytest.raises(ValueError, match=r"cannot be the name of a loss term.*Use letters"):
        KLDivergence(name=name)


def test_rename_reads_another_name_and_no_longer_its_own():
    term = KLDivergence(rename={"kl": "kl_top"}, name="top")
    assert term.reads() == {"kl_top"}
    tensors = {"kl": tf.constant([[1.0]]), "kl_top": tf.constant([[5.0]])}
    assert float(term(tensors)[0]) == 5.0
    with pytest.raises(ValueError, match="'top' reads 'kl_top'"):
        term({"kl": tf.constant([[1.0]])})


def test_rename_of_a_parameter_that_the_term_does_not_have_is_refused():
    with pytest.raises(ValueError, match="'kll'"):
        Objective([Bernoulli(), KLDivergence(rename={"kll": "kl_top"})])


def test_empty_name_is_refused():
    with pytest.raises(ValueError, match="name"):
        KLDivergence(name="")


def test_weight_that_is_text_is_refused_where_it_is_given():
    with pytest.raises((TypeError, ValueError), match="weight"):
        KLDivergence(weight="0.5")


def test_misspelt_tensor_is_answered_with_what_exists_and_the_nearest():
    class Misspelt(LossTerm):
        default_name = "kl"

        def per_example(self, z_logvar):
            return z_logvar[:, 0]

    names = ("inputs", "kl", "logits", "z", "z_log_var", "z_mean")
    with pytest.raises(ValueError) as error:
        Misspelt()({name: tf.zeros([2, 2]) for name in names})
    assert str(error.value) == (
        "The loss term 'kl' reads 'z_logvar', but the forward pass wrote inputs, kl, logits, z, "
        "z_log_var, z_mean. Did you mean 'z_log_var'?"
    )


@pytest.mark.parametrize(
    ("returned", "shape"),
    [
        (lambda kl: kl, r"\(3, 2\)"),
        (tf.reduce_mean, r"\(\)"),
        (lambda kl: tf.reduce_sum(kl, axis=-1, keepdims=True), r"\(3, 1\)"),
    ],
    ids=["latent axis left", "mean over the batch", "axis of one left"],
)
def test_result_that_is_not_one_value_for_each_row_is_refused(returned, shape):
    class Shapeless(LossTerm):
        def per_example(self, kl):
            return returned(kl)

    with pytest.raises(
        ValueError, match=rf"'shapeless' returned shape {shape}; .*one value per ex"
    ):
        Shapeless()({"kl": tf.zeros([3, 2])})


def test_batch_statistic_that_is_no_scalar_is_refused():
    class Statistic(LossTerm):
        batch_statistic = True

        def per_example(self, kl):
            return kl[:, 0]

    with pytest.raises(ValueError, match=r"returned shape \(3,\).*a scalar, since batch_statistic"):
        Statistic()({"kl": tf.zeros([3, 2])})


@pytest.mark.parametrize(
    ("base", "method"),
    [(LossTerm, "per_example"), (Likelihood, "log_likelihood"), (Likelihood, "mean")],
)
def test_forgotten_method_is_asked_for_by_name(base, method):
    class Forgetful(base):
        pass

    with pytest.raises(TypeError, match=rf"Forgetful.* {method}"):
        Forgetful()


def test_parameter_with_a_default_or_a_star_is_refused():
    class Default(LossTerm):
        def per_example(self, kl, scale=2.0):
            return kl[:, 0] * scale

    class Star(LossTerm):
        def per_example(self, *tensors):
            return tensors[0][:, 0]

    class StarStar(LossTerm):
        def per_example(self, kl, **tensors):
            return kl[:, 0]

    for term, parameter in ((Default, "scale=2.0"), (Star, r"\*tensors"), (StarStar, r"\*\*ten")):
        with pytest.raises(TypeError, match=rf"parameter '{parameter}.*settings are annotated"):
            term()({"kl": tf.zeros([2, 2])})


STATEFUL = {
    "tf.Variable": lambda: tf.Variable(1.0),
    "keras.Variable": lambda: keras.Variable(1.0),
    "tensor": lambda: tf.constant(1.0),
    "symbolic tensor": lambda: keras.Input((2,)),
    "array": lambda: np.ones(2),
    "layer": lambda: keras.layers.Dense(2),
    "model": keras.Sequential,
    "subclassed layer": lambda: GaussianBottleneck(2),
    "inside a tuple": lambda: (1.0, tf.Variable(1.0)),
    "inside a dictionary": lambda: {"a": (keras.layers.Dense(2),)},
}


@pytest.mark.parametrize("name", STATEFUL)
def test_variable_layer_or_tensor_as_setting_is_refused_where_it_is_given(name):
    class Holder(LossTerm):
        thing: object = None

        def per_example(self, kl):
            return kl[:, 0]

    with pytest.raises(TypeError, match=r"Holder.thing is a .*live in a module of the model"):
        Holder(thing=STATEFUL[name]())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weight_that_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match=r"KLDivergence.weight is .*finite"):
        KLDivergence(weight=bad)
    with pytest.raises(ValueError, match=r"FreeBits.nats_per_dimension is .*finite"):
        FreeBits(nats_per_dimension=bad)


def test_plain_class_attribute_in_a_subclass_is_the_new_default_of_a_setting():
    class Watched(KLDivergence):
        weight = None
        name = "watched"

    class Further(Watched):
        power: int = 1

    class Trained(Watched):
        weight: float = 0.25

    assert (Watched().weight, Watched().label) == (None, "watched")
    assert (Further().weight, Further(power=3).power) == (None, 3)
    assert (Trained().weight, Watched(weight=2.0).weight) == (0.25, 2.0)
    assert KLDivergence().weight == 1.0

    # The mutant: to a plain dataclass that line is no field, and the inherited default stays.
    @dataclasses.dataclass(frozen=True)
    class Base:
        weight: float | None = 1.0

    @dataclasses.dataclass(frozen=True)
    class Mutant(Base):
        weight = None

    assert Mutant().weight == 1.0


def test_term_is_frozen_and_takes_keywords_alone():
    term = KLDivergence(weight=2.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        term.weight = 3.0
    with pytest.raises(TypeError):
        KLDivergence(2.0)
    with pytest.raises(TypeError, match="wieght"):
        KLDivergence(wieght=2.0)


def test_terms_are_equal_by_class_and_settings():
    assert KLDivergence(weight=2.0) == KLDivergence(weight=2.0)
    assert KLDivergence(weight=2.0) != KLDivergence(weight=3.0)
    assert KLDivergence() != MonteCarloKL()


def test_repr_is_the_code_that_makes_the_term():
    term = CapacityKL(capacity=LinearWarmup(steps=10, peak=25.0), weight=30.0, name="capacity")
    assert repr(term) == (
        "CapacityKL(weight=30.0, name='capacity', capacity=LinearWarmup(steps=10, peak=25.0))"
    )
    assert eval(repr(term)) == term


# Labels in the place of targets.


@pytest.mark.parametrize("labels", [(8,), (8, 10)], ids=["integers", "one-hot"])
def test_labels_as_y_are_recognised(labels):
    images = tf.zeros([8, 4, 4, 1])
    tensors = {"inputs": images, "targets": tf.zeros(labels), "logits": images}
    with pytest.raises(ValueError, match=r"Leave y out.*fit\(\{'inputs': x, 'labels': y\}\)"):
        Bernoulli()(tensors)


def test_labels_as_y_of_vector_data_are_no_targets_either():
    vectors = tf.zeros([8, 4])
    with pytest.raises(ValueError, match=r"targets of shape \(8, 10\)"):
        Bernoulli()({"inputs": vectors, "targets": tf.zeros([8, 10]), "logits": vectors})


# Terms as plain data.


def test_config_is_json_and_makes_an_equal_term():
    class Everything(LossTerm):
        pairs: tuple = ()
        table: dict | None = None
        flag: bool = False

        def per_example(self, kl):
            return kl[:, 0]

    term = Everything(
        weight=Cosine(epochs=2.5),
        rename={"kl": "kl_top"},
        pairs=((1, 2.5), ("a", None)),
        table={"inner": (LinearWarmup(steps=3), True)},
        flag=True,
    )
    again = from_config(json.loads(json.dumps(term.to_config())))
    assert again == term
    assert type(again) is Everything


def test_list_setting_becomes_a_tuple_that_nobody_can_change():
    class Listed(LossTerm):
        values: list | tuple = ()

        def per_example(self, kl):
            return kl[:, 0]

    term = Listed(values=[1, 2])
    assert term.values == (1, 2)
    assert from_config(term.to_config()) == term == Listed(values=(1, 2))


def test_config_of_a_function_says_that_it_is_no_data():
    term = KLDivergence(weight=lambda step: step / 10.0)
    with pytest.raises(
        ValueError, match=r"KLDivergence.weight was the function .*subclass of Sched"
    ):
        from_config(json.loads(json.dumps(term.to_config())))


def test_config_of_an_unknown_class_says_what_to_import():
    config = {"class": "Vanished", "module": "my_terms", "settings": {}}
    with pytest.raises(ValueError, match=r"uses Vanished, which is not defined.*'my_terms'"):
        from_config(config)


def test_class_that_was_defined_twice_is_the_later_one():
    def define():
        class Twice(LossTerm):
            def per_example(self, kl):
                return kl[:, 0]

        return Twice

    first, second = define(), define()
    assert type(from_config(first().to_config())) is second is not first

"""A model whose log p(x) is known: bounds lie below it, and touch it with the exact posterior.

    p(z) = N(0, I),  p(x|z) = N(W z + b, s^2 I),  so that  p(x) = N(b, W W^T + s^2 I).

The columns of W are orthogonal, so that the exact posterior N(P W^T (x - b) / s^2, P) has the
diagonal covariance P = (I + W^T W / s^2)^-1, and a Gaussian bottleneck can represent it.
"""

import itertools

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf

from vae_research import VAE, Gaussian, GaussianBottleneck, KLDivergence, MonteCarloKL

W = np.array([[2.0, 0.5], [-1.0, 1.0], [0.5, 0.0], [0.0, -2.0]])  # 1.0 - 1.0 = 0 between columns
B = np.array([0.3, -0.2, 1.0, 0.0])
S = 0.5
POSTERIOR_VARIANCE = 1.0 / (1.0 + (W**2).sum(axis=0) / S**2)
EXACT_KERNEL = W * POSTERIOR_VARIANCE / S**2

# What the imperfect encoder has wrong: means that are off, and variances that are too large.
WRONG_KERNEL = EXACT_KERNEL + np.array([[0.02, 0.0], [0.0, -0.05], [0.03, 0.0], [0.0, 0.0]])
WRONG_BIAS = -B @ EXACT_KERNEL + np.array([0.1, -0.15])
WRONG_LOG_VAR = np.log(POSTERIOR_VARIANCE) + np.array([0.9, 0.5])

# Data of the model itself, and one point far out.
_RNG = np.random.default_rng(11)
X = np.concatenate(
    [_RNG.normal(size=(4, 2)) @ W.T + B + S * _RNG.normal(size=(4, 4)), [[6.0, -4.0, 2.0, 5.0]]]
).astype(np.float32)


def log_p(x):
    marginal = scipy.stats.multivariate_normal(B, W @ W.T + S**2 * np.eye(4))
    return marginal.logpdf(x.astype(np.float64))


def linear_vae(kernel, bias, log_var, terms, **settings):
    """Returns a VAE of Keras' own Dense layers with the weights that are given."""
    inputs, z = keras.Input((4,), name="inputs"), keras.Input((2,), name="z")
    encoder = keras.Model(
        inputs,
        {
            "z_mean": keras.layers.Dense(2, name="z_mean")(inputs),
            "z_log_var": keras.layers.Dense(2, name="z_log_var")(inputs),
        },
    )
    decoder = keras.Model(z, {"x_mean": keras.layers.Dense(4, name="x_mean")(z)})
    encoder.get_layer("z_mean").set_weights([kernel, bias])
    encoder.get_layer("z_log_var").set_weights([np.zeros([4, 2]), log_var])
    decoder.get_layer("x_mean").set_weights([W.T, B])
    return VAE(encoder, GaussianBottleneck(2), decoder, terms, **settings)


def exact_vae(terms, **settings):
    return linear_vae(
        EXACT_KERNEL, -B @ EXACT_KERNEL, np.log(POSTERIOR_VARIANCE), terms, **settings
    )


def wrong_vae(terms, **settings):
    return linear_vae(WRONG_KERNEL, WRONG_BIAS, WRONG_LOG_VAR, terms, **settings)


SAMPLED = [Gaussian(standard_deviation=S), MonteCarloKL()]
CLOSED = [Gaussian(standard_deviation=S), KLDivergence()]


def bound_of_each_copy(vae, copies, seed=0):
    """Returns float64 `[examples, copies]`: minus the reported loss, with noise of its own each."""
    tensors = vae.forward(np.repeat(X, copies, axis=0), seed=tf.constant([seed, 1], tf.int64))
    return -vae.objective(tensors).loss.numpy().astype(np.float64).reshape(len(X), copies)


def mean_and_standard_error(values):
    return values.mean(axis=1), values.std(axis=1, ddof=1) / np.sqrt(values.shape[1])


def gap_of_the_wrong_posterior():
    """Returns KL(q(z|x) || p(z|x)) of each example, by which the ELBO misses log p(x)."""
    mean = X.astype(np.float64) @ WRONG_KERNEL + WRONG_BIAS
    exact = (X.astype(np.float64) - B) @ EXACT_KERNEL
    ratio = np.exp(WRONG_LOG_VAR) / POSTERIOR_VARIANCE
    square = (mean - exact) ** 2 / POSTERIOR_VARIANCE
    return 0.5 * np.sum(square + ratio - 1.0 - np.log(ratio), axis=1)


def test_marginal_likelihood_of_this_file_is_prior_times_likelihood_over_posterior():
    # Bayes' rule at an arbitrary z checks the formulas above against each other.
    z = np.array([0.4, -1.1])
    x = X.astype(np.float64)
    prior = scipy.stats.norm.logpdf(z).sum()
    likelihood = scipy.stats.norm.logpdf(x, W @ z + B, S).sum(axis=1)
    posterior = scipy.stats.norm.logpdf(z, (x - B) @ EXACT_KERNEL, np.sqrt(POSTERIOR_VARIANCE)).sum(
        axis=1
    )
    np.testing.assert_allclose(log_p(X), prior + likelihood - posterior, rtol=1e-10)


@pytest.mark.parametrize("num_samples", [1, 5])
@pytest.mark.parametrize("importance_weighted", [False, True])
def test_every_sample_of_the_exact_posterior_gives_log_p_itself(num_samples, importance_weighted):
    vae = exact_vae(SAMPLED, num_samples=num_samples, importance_weighted=importance_weighted)
    bounds = bound_of_each_copy(vae, copies=50)
    # No variance: each copy is log p(x), to the rounding of terms of size (x - Wz)^2 / (2 s^2),
    # which are up to about 300 here: 300 * 6e-8 * a few operations.
    np.testing.assert_allclose(bounds, np.repeat(log_p(X)[:, None], 50, axis=1), atol=2e-4)


def test_closed_form_elbo_of_the_exact_posterior_averages_to_log_p():
    mean, error = mean_and_standard_error(bound_of_each_copy(exact_vae(CLOSED), copies=20_000))
    assert np.all(np.abs(mean - log_p(X)) < 4 * error)


@pytest.mark.parametrize("terms", [SAMPLED, CLOSED], ids=["sampled", "closed"])
def test_elbo_misses_log_p_by_the_divergence_from_the_exact_posterior(terms):
    mean, error = mean_and_standard_error(bound_of_each_copy(wrong_vae(terms), copies=20_000))
    gap = gap_of_the_wrong_posterior()
    assert np.all(gap > 0.1)
    assert np.all(np.abs(mean - (log_p(X) - gap)) < 4 * error)


def importance_weighted_bounds():
    for num_samples, copies in ((1, 20_000), (5, 20_000), (50, 4_000)):
        vae = wrong_vae(SAMPLED, num_samples=num_samples, importance_weighted=True)
        yield mean_and_standard_error(bound_of_each_copy(vae, copies, seed=num_samples))


@pytest.mark.slow
def test_importance_weighted_bounds_grow_with_the_samples_and_stay_below_log_p():
    bounds = list(importance_weighted_bounds())
    for (fewer, fewer_error), (more, more_error) in itertools.pairwise(bounds):
        # Larger for each example, beyond chance.
        assert np.all(more - fewer > 4 * np.hypot(fewer_error, more_error))
    for mean, error in bounds:
        assert np.all(mean < log_p(X) + 4 * error)
    # One sample is the ELBO; fifty close most of its gap.
    np.testing.assert_array_less(
        np.abs(bounds[0][0] - (log_p(X) - gap_of_the_wrong_posterior())), 4 * bounds[0][1]
    )
    assert np.all(log_p(X) - bounds[-1][0] < 0.2 * gap_of_the_wrong_posterior())


def test_elbo_is_logged_as_such_beside_an_importance_weighted_bound():
    vae = wrong_vae(SAMPLED, num_samples=5, importance_weighted=True)
    report = vae.objective(vae.forward(np.repeat(X, 10_000, axis=0)))
    mean, error = mean_and_standard_error(report.elbo.numpy().reshape(len(X), -1))
    assert np.all(np.abs(mean - (log_p(X) - gap_of_the_wrong_posterior())) < 4 * error)


def test_closed_form_divergence_inside_the_log_mean_exceeds_log_p():
    # The mutant that Objective refuses: log-mean-exp of the likelihood alone, minus the closed KL.
    vae = wrong_vae(CLOSED, num_samples=50)
    tensors = vae.forward(np.repeat(X, 1_000, axis=0))
    log_likelihood = -vae.objective.likelihood(tensors).numpy().reshape(-1, 50)
    closed = tensors["kl"].numpy().sum(axis=1).reshape(-1, 50)[:, 0]
    mutant = scipy.special.logsumexp(log_likelihood, axis=1) - np.log(50) - closed
    mean, error = mean_and_standard_error(mutant.reshape(len(X), -1))
    assert np.any(mean > log_p(X) + 10 * error)
    with pytest.raises(ValueError, match="would not be a bound"):
        wrong_vae(CLOSED, num_samples=50, importance_weighted=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("terms", "settings"),
    [(SAMPLED, {}), (CLOSED, {}), (SAMPLED, {"num_samples": 5, "importance_weighted": True})],
    ids=["sampled", "closed", "importance weighted"],
)
def test_gradient_at_the_exact_posterior_is_that_of_log_p(terms, settings):
    # Fisher's identity: with the exact posterior, the mean gradient by the decoder's bias is that
    # of log p(x), (W W^T + s^2 I)^-1 (x - b), and the encoder has nothing to gain.
    vae = exact_vae(terms, **settings)
    decoder_bias = vae.decoder.get_layer("x_mean").bias
    encoder_biases = [vae.encoder.get_layer(n).bias for n in ("z_mean", "z_log_var")]
    data = tf.constant(np.repeat(X, 400, axis=0))

    @tf.function(autograph=False)
    def gradients(seed):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(vae.objective(vae.forward(data, seed=seed)).surrogate)
        return tape.gradient(loss, [decoder_bias, *encoder_biases])

    draws = [gradients(tf.constant([seed, 1], tf.int64)) for seed in range(40)]
    precision = np.linalg.inv(W @ W.T + S**2 * np.eye(4))
    expected = -((X - B) @ precision).mean(axis=0), np.zeros(2), np.zeros(2)
    for index, exact in enumerate(expected):
        values = np.array([draw[index] for draw in draws], np.float64)
        error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
        assert np.all(np.abs(values.mean(axis=0) - exact) < 4 * error + 2e-5)

"""Bottlenecks: reproducible noise, the right distribution, densities that agree with SciPy."""

import functools

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf

import vae_research as vr
from vae_research import (
    Bottleneck,
    DeterministicBottleneck,
    FullCovarianceGaussianBottleneck,
    GaussianBottleneck,
)
from vae_research.bottlenecks.flows import autoregressive_masks
from vae_research.bottlenecks.power_spherical import power_spherical_kl
from vae_research.gradient_estimators import check_densities
from vae_research.priors.fitted import refuse_other_codes
from vae_research.probability import normal_log_density
from vae_research.randomness import fold_in, philox_bits, standard_gamma, standard_normal

FLOAT32 = 1e-6
SEED = tf.constant([3, 1 << 57], tf.int64)  # a key as the model makes it: run's seed, position


def draw(mean, log_var, seed=SEED):
    mean, log_var = tf.constant(mean, tf.float32), tf.constant(log_var, tf.float32)
    return GaussianBottleneck(mean.shape[-1])(mean, log_var, seed)


def noise(rows=500, latent=4, seed=SEED):
    """Returns the noise itself: z of a standard normal posterior."""
    return draw(np.zeros([rows, latent]), np.zeros([rows, latent]), seed)["z"].numpy()


# The noise.


def compiled_noise(jit_compile):
    """Returns the largest difference of the compiled bottleneck's noise from the eager one's."""
    zeros = tf.zeros([500, 4])
    compiled = tf.function(GaussianBottleneck(4), jit_compile=jit_compile)
    return np.abs(compiled(zeros, zeros, SEED)["z"] - noise()).max()


def test_same_seed_draws_the_same_noise_eager_and_compiled():
    assert compiled_noise(jit_compile=False) == 0.0


@pytest.mark.slow
def test_same_seed_draws_the_same_noise_with_xla():
    # The bits are the same; XLA has a sine, cosine and logarithm of its own, right to 5e-7.
    assert compiled_noise(jit_compile=True) < 1e-5


@pytest.mark.slow
def test_tensorflow_agrees_with_xla_about_random_bits_and_not_about_normal_numbers():
    # Why the noise is not taken from stateless_normal: the mutant of the tests above, as observed
    # with TensorFlow 2.21 on a CPU.
    def bits():
        return philox_bits([500, 4], SEED)

    def mutant():
        return tf.random.stateless_normal([500, 4], SEED, alg="philox")

    np.testing.assert_array_equal(tf.function(bits, jit_compile=True)(), bits())
    assert np.abs(tf.function(mutant, jit_compile=True)() - mutant()).max() > 1.0


@functools.cache
def compiled_bits(jit_compile):
    return tf.function(philox_bits, jit_compile=jit_compile)


@pytest.mark.parametrize("seed", [(0, 0), (3, 1 << 57), (1 << 62, -1)])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_random_bits_are_those_of_tensorflow(seed, jit_compile):
    seed = tf.constant(seed, tf.int64)
    wanted = tf.random.stateless_uniform([5, 3], seed, None, None, tf.uint32, alg="philox")
    drawn = compiled_bits(jit_compile)([5, 3], seed)
    np.testing.assert_array_equal(drawn, wanted)


def test_noise_of_a_shape_that_is_known_only_when_it_is_drawn_is_the_same():
    signature = [tf.TensorSpec([None], tf.int32), tf.TensorSpec([2], tf.int64)]
    later = tf.function(standard_normal, input_signature=signature)
    for shape in ([7, 3], [1], []):  # also of an odd number
        drawn = later(tf.constant(shape, tf.int32), SEED)
        assert drawn.shape == shape
        np.testing.assert_array_equal(drawn, standard_normal(shape, SEED))


def test_same_seed_repeats_and_every_other_seed_differs():
    np.testing.assert_array_equal(noise(), noise())
    drawn = [
        noise(seed=SEED + tf.constant(step, tf.int64)) for step in ([1, 0], [0, 1], [0, 1 << 40])
    ]
    for other in drawn:
        # Independent draws: the correlation of 2000 pairs is within 4 / sqrt(2000) of zero.
        correlation = np.corrcoef(noise().ravel(), other.ravel())[0, 1]
        assert abs(correlation) < 4 / np.sqrt(2000)


def test_noise_is_standard_normal_and_independent_over_rows_and_dimensions():
    drawn = noise(rows=20_000, latent=3)
    # Kolmogorov and Smirnov at a level of 1e-4, with a seed that does not change.
    assert scipy.stats.kstest(drawn.ravel(), "norm").pvalue > 1e-4
    bound = 4 / np.sqrt(20_000)
    correlations = np.corrcoef(drawn.T)
    assert np.abs(correlations - np.eye(3)).max() < bound
    assert abs(np.corrcoef(drawn[:-1, 0], drawn[1:, 0])[0, 1]) < bound


@pytest.mark.parametrize("shape", [(1000, 2), (333, 3), (1, 1), (7, 1)])
def test_no_number_is_drawn_twice(shape):
    # Box and Muller make two numbers of two: two cosines would repeat one half in the other. Of
    # 2000 draws of 24 bits, 2000^2 / 2 / 2^24 = 0.1 pairs are equal by chance.
    drawn = noise(*shape).ravel()
    assert len(np.unique(drawn)) >= len(drawn) - 2
    assert np.all(np.isfinite(drawn))


# The posterior.

MEAN, LOG_VAR = np.array([0.8, -1.5, 0.0]), np.array([-1.2, 0.4, -6.0])
COUNT = 50_000


@pytest.fixture(scope="module")
def many():
    tensors = draw(np.tile(MEAN, [COUNT, 1]), np.tile(LOG_VAR, [COUNT, 1]))
    return {name: tensor.numpy().astype(np.float64) for name, tensor in tensors.items()}


def test_z_has_the_mean_and_variance_of_the_posterior(many):
    variance = np.exp(LOG_VAR)
    # The standard error of a mean is sigma / sqrt(n), that of a variance sigma^2 sqrt(2 / n).
    error = np.abs(many["z"].mean(axis=0) - MEAN)
    assert np.all(error < 4 * np.sqrt(variance / COUNT))
    error = np.abs(many["z"].var(axis=0) - variance)
    assert np.all(error < 4 * variance * np.sqrt(2 / COUNT))


def test_densities_are_those_of_scipy(many):
    log_posterior = scipy.stats.norm.logpdf(many["z"], MEAN, np.exp(0.5 * LOG_VAR)).sum(axis=1)
    log_prior = scipy.stats.norm.logpdf(many["z"]).sum(axis=1)
    # z is rounded to float32: at 0.8 by 3e-8, against a standard deviation of 0.05 and noise of 4.
    np.testing.assert_allclose(many["log_posterior"], log_posterior, atol=2e-5)
    np.testing.assert_allclose(many["log_prior"], log_prior, rtol=FLOAT32, atol=5e-6)


def test_densities_of_given_codes_are_those_of_scipy(many):
    bottleneck, mean, log_var = (
        GaussianBottleneck(3),
        *(tf.constant(np.tile(value, [COUNT, 1]), tf.float32) for value in (MEAN, LOG_VAR)),
    )
    z = many["z"] + 0.1  # not the sample
    log_prob = bottleneck.log_prob(tf.constant(z, tf.float32), mean, log_var)
    expected = scipy.stats.norm.logpdf(z, MEAN, np.exp(0.5 * LOG_VAR)).sum(axis=1)
    # z is rounded to float32 here as well, and the third z is up to 6 deviations away.
    np.testing.assert_allclose(log_prob, expected, rtol=1e-5, atol=2e-5)
    prior = bottleneck.prior_log_prob(tf.constant(z, tf.float32))
    np.testing.assert_allclose(
        prior, scipy.stats.norm.logpdf(z).sum(axis=1), rtol=FLOAT32, atol=5e-6
    )


def test_difference_of_the_densities_averages_to_the_closed_form_kl(many):
    difference = many["log_posterior"] - many["log_prior"]
    closed = many["kl"].sum(axis=1)
    assert np.ptp(closed) == 0.0
    assert abs(difference.mean() - closed[0]) < 4 * difference.std() / np.sqrt(COUNT)
    by_hand = 0.5 * (MEAN**2 + np.exp(LOG_VAR) - 1 - LOG_VAR)
    np.testing.assert_allclose(many["kl"][0], by_hand, rtol=FLOAT32)


def test_density_of_a_narrow_posterior_keeps_its_digits():
    # sigma = exp(-9) = 1.2e-4 beside a mean of 3, where float32 numbers are 2.4e-7 apart.
    mean, log_var = np.full([1000, 1], 3.0), np.full([1000, 1], -18.0)
    tensors = draw(mean, log_var)
    exact = scipy.stats.norm.logpdf(noise(1000, 1).astype(np.float64))[:, 0] + 9.0
    np.testing.assert_allclose(tensors["log_posterior"], exact, rtol=FLOAT32, atol=2e-6)
    # The mutant, the density of the rounded z, has lost them.
    mutant = normal_log_density(tensors["z"], mean, log_var)[:, 0]
    assert np.abs(mutant - exact).max() > 1e-3


def test_sample_is_reparameterised_with_the_gradients_of_mean_plus_sigma_times_noise():
    mean, log_var = tf.fill([6, 2], 0.7), tf.fill([6, 2], -1.0)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([mean, log_var])
        tensors = GaussianBottleneck(2)(mean, log_var, SEED)
    half_step = 0.5 * np.exp(-0.5) * noise(6, 2)
    np.testing.assert_array_equal(tape.gradient(tensors["z"], mean), np.ones([6, 2]))
    np.testing.assert_allclose(tape.gradient(tensors["z"], log_var), half_step, rtol=1e-5)
    # log q(z|x) of a sample that moves with its posterior: nothing by the mean, -1/2 by log_var.
    moved = tape.gradient(tensors["log_posterior"], mean, unconnected_gradients="zero")
    np.testing.assert_array_equal(moved, np.zeros([6, 2]))
    np.testing.assert_array_equal(
        tape.gradient(tensors["log_posterior"], log_var), np.full([6, 2], -0.5)
    )
    # d log p(z) / d mean = -z.
    np.testing.assert_allclose(
        tape.gradient(tensors["log_prior"], mean), -tensors["z"].numpy(), rtol=FLOAT32
    )


def test_everything_is_finite_at_the_bounds_of_the_heads():
    for bound in (-20.0, 20.0):
        tensors = draw(np.full([100, 2], 1e3), np.full([100, 2], bound))
        for name, tensor in tensors.items():
            assert np.all(np.isfinite(tensor)), name


def test_shapes_are_rows_and_latent():
    tensors = draw(np.zeros([5, 3]), np.zeros([5, 3]))  # an odd number of normal numbers
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "z": (5, 3),
        "log_posterior": (5,),
        "log_prior": (5,),
        "kl": (5, 3),
    }


@pytest.fixture
def mixed_bfloat16():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy(before)


@pytest.mark.usefixtures("mixed_bfloat16")
def test_bottlenecks_are_float32_under_a_16_bit_policy():
    mean, log_var = tf.fill([4, 2], 0.3), tf.fill([4, 2], -0.7)
    full = GaussianBottleneck(2)(mean, log_var, SEED)
    for tensor in full.values():
        assert tensor.dtype == tf.float32
    # The noise has more digits than 16 bits hold.
    z = full["z"]
    assert np.abs(z - tf.cast(tf.cast(z, tf.bfloat16), tf.float32)).max() > 0.0
    np.testing.assert_allclose(full["kl"][0, 0], 0.5 * (0.09 + np.expm1(-0.7) + 0.7), rtol=1e-5)
    halved = GaussianBottleneck(2)(tf.cast(mean, tf.bfloat16), tf.cast(log_var, tf.bfloat16), SEED)
    for tensor in halved.values():
        assert tensor.dtype == tf.float32
    assert DeterministicBottleneck(2)(tf.cast(mean, tf.bfloat16))["z"].dtype == tf.float32


# The prior.


def test_prior_samples_are_standard_normal_and_follow_their_seed():
    bottleneck = GaussianBottleneck(3)
    samples = bottleneck.sample_prior(20_000, SEED).numpy()
    assert samples.shape == (20_000, 3)
    assert scipy.stats.kstest(samples.ravel(), "norm").pvalue > 1e-4
    np.testing.assert_array_equal(samples, bottleneck.sample_prior(20_000, SEED))
    assert np.abs(samples - bottleneck.sample_prior(20_000, SEED + 1)).max() > 1.0


# Arguments.


@pytest.mark.parametrize("bad", [0, -1, 2.5, 2.0, True, "2", None])
@pytest.mark.parametrize("bottleneck", [GaussianBottleneck, DeterministicBottleneck])
def test_latent_dim_is_a_positive_integer(bottleneck, bad):
    with pytest.raises(ValueError, match=f"latent_dim must be an integer >= 1, got {bad!r}"):
        bottleneck(bad)


def test_encoder_of_another_width_is_named_with_its_tensor():
    with pytest.raises(ValueError, match=r"writes 'z_mean' with shape \(5, 3\).*latent_dim=2\) ne"):
        GaussianBottleneck(2)(tf.zeros([5, 3]), tf.zeros([5, 2]), SEED)
    # A log-variance of width 1 would broadcast.
    with pytest.raises(ValueError, match=r"writes 'z_log_var' with shape \(5, 1\)"):
        GaussianBottleneck(2)(tf.zeros([5, 2]), tf.zeros([5, 1]), SEED)
    with pytest.raises(ValueError, match=r"'z_mean' with shape \(5, 3\).*DeterministicBottleneck"):
        DeterministicBottleneck(2)(tf.zeros([5, 3]))


def test_a_full_covariance_is_that_of_its_cholesky_factor():
    random = np.random.default_rng(0)
    mean, log_var = random.normal(size=(2, 1, 4)).astype(np.float32)
    lower = random.normal(size=(1, 6)).astype(np.float32)
    bottleneck = FullCovarianceGaussianBottleneck((2, 2))
    of_code = [np.reshape(value, (1, 2, 2)) for value in (mean, log_var)]
    rows = [np.repeat(value, COUNT, axis=0) for value in (*of_code, lower)]
    found = bottleneck(*rows, SEED)
    assert found["z"].shape == (COUNT, 2, 2)
    # The covariance of what is drawn has the factor, in which each number has a place of its own.
    z = np.reshape(found["z"], (COUNT, 4)).astype(np.float64)
    factor = np.linalg.cholesky(np.cov(z.T))
    np.testing.assert_allclose(np.diag(factor), np.exp(0.5 * log_var[0]), rtol=0.03)
    below = np.sort(factor[np.tril_indices(4, -1)])
    np.testing.assert_allclose(below, np.sort(lower[0]), atol=0.06)
    exact_factor = np.diag(np.exp(0.5 * log_var[0]))
    for place in zip(*np.tril_indices(4, -1), strict=True):
        exact_factor[place] = lower[0, np.argmin(np.abs(lower[0] - factor[place]))]
    covariance = exact_factor @ exact_factor.T
    exact = scipy.stats.multivariate_normal(mean[0], covariance).logpdf(z)
    np.testing.assert_allclose(found["log_posterior"], exact, atol=1e-3)
    np.testing.assert_allclose(bottleneck.log_prob(found["z"], *rows), exact, atol=1e-3)
    divergence = 0.5 * (
        np.trace(covariance) + (mean**2).sum() - 4 - np.linalg.slogdet(covariance).logabsdet
    )
    np.testing.assert_allclose(found["kl"], np.full(COUNT, divergence), rtol=1e-5)


def test_a_full_covariance_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"use GaussianBottleneck\(1\)"):
        FullCovarianceGaussianBottleneck(1)
    zeros = tf.zeros([5, 3])
    with pytest.raises(ValueError, match=r"'z_scale_lower' with shape \(5, 2\);.*\(3,\) for each"):
        FullCovarianceGaussianBottleneck(3)(zeros, zeros, zeros[:, :2], SEED)


def test_deterministic_bottleneck_passes_the_mean_and_writes_nothing_else():
    mean = tf.constant([[1.0, -2.0]])
    bottleneck = DeterministicBottleneck(2)
    tensors = bottleneck(mean)
    assert tensors.keys() == {"z"}
    np.testing.assert_array_equal(tensors["z"], mean)
    np.testing.assert_array_equal(bottleneck.center(mean), mean)


def test_deterministic_bottleneck_has_no_prior_and_says_what_to_do():
    assert not DeterministicBottleneck.has_prior
    assert GaussianBottleneck.has_prior
    with pytest.raises(ValueError, match=r"no prior to sample from.*model.decode\(z\)"):
        DeterministicBottleneck(2).sample_prior(3, SEED)


def test_center_of_a_gaussian_is_its_mean():
    mean = tf.constant([[1.0, -2.0]], tf.bfloat16)
    center = GaussianBottleneck(2).center(mean)
    assert center.dtype == tf.float32
    np.testing.assert_array_equal(center, [[1.0, -2.0]])


def test_own_bottleneck_without_a_prior_sampler_is_asked_for_one():
    class Own(Bottleneck):
        def call(self, z_mean):
            return {"z": z_mean}

    with pytest.raises(TypeError, match=r"Own must define sample_prior\(self, count, seed\)"):
        Own(2).sample_prior(3, SEED)


# Flows.

FLOWS = [lambda: vr.InverseAutoregressiveFlow((5, 4)), vr.PlanarFlow]


@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize("make", FLOWS)
def test_a_flow_says_how_much_it_changes_the_volume(make, context_dim):
    flow = make()
    flow.build_for(3, context_dim)
    random = np.random.default_rng(0)
    scale = 0.5 if flow.has_inverse else 2.0  # which planar steps have to bound
    for variable in flow.trainable_variables:
        variable.assign(scale * random.standard_normal(variable.shape))
    z = tf.constant(random.standard_normal((4, 3)), tf.float32)
    context = tf.constant(random.standard_normal((4, 2)), tf.float32) if context_dim else None
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(z)
        moved, log_determinant = flow(z, context)
    jacobian = tape.batch_jacobian(moved, z, experimental_use_pfor=False).numpy()
    sign, wanted = np.linalg.slogdet(jacobian)
    np.testing.assert_allclose(log_determinant, wanted, rtol=1e-4, atol=1e-5)
    if flow.has_inverse:
        # In another order it is triangular: a value depends on those before it.
        assert np.all(np.triu(jacobian[:, ::-1], 1) == 0.0)
        assert np.any(jacobian != 0.0, axis=0).sum() == 6
        again, of_inverse = flow.inverse(moved, context)
        np.testing.assert_allclose(again, z, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(of_inverse, log_determinant, rtol=1e-4, atol=1e-5)
    else:
        assert np.all(sign == 1.0)


def test_a_step_of_a_flow_for_a_single_value_depends_on_the_context():
    flow = vr.InverseAutoregressiveFlow((4,))
    flow.build_for(1, 2)
    one, other = (flow(tf.ones([1, 1]), tf.constant([[x, 1.0]]))[0] for x in (0.5, 2.0))
    assert float(one[0, 0]) != float(other[0, 0])


def planar(**settings):
    return vr.FlowBottleneck(2, [vr.PlanarFlow()], **settings)


def test_what_does_not_fit_to_a_flow_is_refused():
    step = vr.PlanarFlow()
    for flows, message in (
        ([], "flows must be a list with one flow or more"),
        ([vr.StandardNormalPrior()], "list of flows, such as InverseAutoregressiveFlow"),
        ([step, step], "PlanarFlow .* is a part of a bottleneck already"),
    ):
        with pytest.raises(ValueError, match=message):
            vr.FlowBottleneck(2, flows)
    values = tf.zeros([3, 2]), tf.zeros([3, 2]), tf.constant([0, 0], tf.int64)
    with pytest.raises(ValueError, match=r"no values of 'z_context', .*\(context_dim=4\) reads 4"):
        planar(context_dim=4)(*values)
    with pytest.raises(ValueError, match=r"5 values of 'z_context', .* reads none"):
        planar()(*values, tf.zeros([3, 5]))


def test_without_an_inverse_there_is_no_density_of_given_codes():
    assert not hasattr(planar(), "log_prob")
    message = "log_prob with PlanarFlow, which has no inverse in closed form.* Train without"
    with pytest.raises(ValueError, match=message):
        vr.VAE(
            vr.dense_encoder((4,), 2),
            planar(),
            vr.dense_decoder((4,), 2),
            [vr.Bernoulli(), vr.MonteCarloKL()],
            gradient_estimator=vr.StickingTheLanding(),
        )


# The sphere.


def test_gamma_numbers_are_of_their_distribution_and_move_with_it():
    wanted = np.repeat(np.array([0.5, 3.0, 200.0], np.float32), 20_000)
    concentration = tf.constant(wanted)
    with tf.GradientTape() as tape:
        tape.watch(concentration)
        drawn = standard_gamma(concentration, SEED)
    for values, each in zip(np.split(drawn.numpy(), 3), (0.5, 3.0, 200.0), strict=True):
        assert scipy.stats.kstest(values, scipy.stats.gamma(each).cdf).pvalue > 0.01
    # A number keeps its place among all others: F(x; k) does not change with k.
    x, some = drawn.numpy()[::2000], wanted[::2000]
    step = 1e-4 * some
    above = scipy.stats.gamma.ppf(scipy.stats.gamma.cdf(x.astype(float), some), some + step)
    np.testing.assert_allclose(
        tape.gradient(drawn, concentration)[::2000], (above - x) / step, rtol=0.02
    )


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 8])
def test_power_spherical_codes_agree_with_tensorflow_probability(size):
    from tensorflow_probability import distributions as tfd

    count, logit = 100_000, 2.5
    mean = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    oracle = tfd.PowerSpherical(tf.math.l2_normalize(mean), tf.nn.softplus(logit))
    rows, logits = tf.tile(mean[tf.newaxis], [count, 1]), tf.fill([count, 1], logit)
    bottleneck = vr.PowerSphericalBottleneck(size)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch((rows, logits))
        found = bottleneck(rows, logits, SEED)
        ratio = found["log_posterior"] - found["log_prior"]
        above = found["z"][:, 0] ** 3
    z = found["z"]
    np.testing.assert_allclose(tf.norm(z, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(oracle.log_prob(z), found["log_posterior"], atol=1e-4)
    np.testing.assert_allclose(
        bottleneck.log_prob(z, rows, logits), found["log_posterior"], atol=1e-4
    )
    kl = oracle.kl_divergence(tfd.SphericalUniform(size))
    np.testing.assert_allclose(found["kl"][0], kl, atol=1e-5)

    def errors(values, wanted):
        values = np.asarray(values, float).reshape(count, -1)
        return np.abs(values.mean(0) - wanted) / np.maximum(values.std(0) / count**0.5, 1e-6)

    assert errors(ratio, kl) < 3.5
    assert np.all(errors(z, oracle.mean()) < 3.5)
    covariance = (z[:, :, tf.newaxis] - oracle.mean()) * (z[:, tf.newaxis] - oracle.mean())
    assert np.all(errors(covariance, np.ravel(oracle.covariance())) < 3.5)
    slope = tape.gradient(found["kl"], logits)[0]
    assert errors(tape.gradient(ratio, logits), slope) < 3.5
    # The gradient of a mean of z, against that of its integral with weights of the density.
    with tf.GradientTape() as again:
        again.watch(logits)
        log_q = bottleneck.log_prob(z, rows, logits)
        score = log_q * (tf.stop_gradient(above) - tf.reduce_mean(above))
    by_path, by_score = tape.gradient(above, logits), again.gradient(score, logits)
    assert errors(by_path - by_score, 0.0) < 3.5


def test_the_densities_on_circle_and_sphere_integrate_to_one():
    angle = np.linspace(0, 2 * np.pi, 2000, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    height = (
        np.linspace(-1, 1, 2001)[1:] - 1 / 2000
    )  # a zone of the sphere has the area of its height
    along = np.sqrt(1 - height**2)
    turned = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    sphere = np.stack(
        [
            np.outer(along, np.cos(turned)),
            np.outer(along, np.sin(turned)),
            np.outer(height, turned**0),
        ],
        -1,
    ).reshape(-1, 3)
    for points, area in ((circle, 2 * np.pi), (sphere.astype(np.float32), 4 * np.pi)):
        size = points.shape[1]
        mean = tf.tile(tf.constant([[0.3, -1.0, 0.5][:size]]), [len(points), 1])
        bottleneck = vr.PowerSphericalBottleneck(size)
        for logit in (-3.0, 1.0, 4.0):
            log_q = bottleneck.log_prob(points, mean, tf.fill([len(points), 1], logit))
            assert np.exp(log_q).mean() * area == pytest.approx(1.0, abs=1e-3)
        assert np.exp(bottleneck.prior_log_prob(points)).mean() * area == pytest.approx(1.0)


def test_priors_elsewhere_are_refused_on_the_sphere_and_that_of_the_sphere_elsewhere():
    with pytest.raises(ValueError, match="takes a prior of points on a sphere; MixturePrior is"):
        vr.PowerSphericalBottleneck(3, prior=vr.MixturePrior(2))
    with pytest.raises(ValueError, match="SphericalUniformPrior is a prior of points on a sphere"):
        vr.GaussianBottleneck(3, prior=vr.SphericalUniformPrior())
    with pytest.raises(ValueError, match="A sphere has 2 dimensions or more"):
        vr.PowerSphericalBottleneck(1)
    with pytest.raises(ValueError, match=r"'z_concentration' with shape .*need the shape \(1,\)"):
        vr.PowerSphericalBottleneck(3)(tf.zeros([2, 3]), tf.zeros([2, 3]), SEED)
    sphere = vr.PowerSphericalBottleneck(3)
    for prior, bottleneck in (
        (vr.MixturePrior(2), sphere),
        (vr.SphericalUniformPrior(), vr.GaussianBottleneck(3)),
    ):
        with pytest.raises(ValueError, match="points on a sphere"):
            refuse_other_codes(prior, bottleneck, tf.zeros([2, 3]))
    refuse_other_codes(vr.SphericalUniformPrior(), sphere, tf.zeros([2, 3]))


# Discrete codes.


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("units", [(40, 40), (7, 3), (10,)])
def test_an_autoregressive_network_reads_all_values_before_and_no_others(units, context):
    masks = autoregressive_masks(20, units, context, 1)
    paths = np.linalg.multi_dot([mask.astype(int) for mask in masks])[:20] > 0
    assert not np.tril(paths).any()
    assert paths[:19, 19].all()
    if min(units) >= 20:
        np.testing.assert_array_equal(paths, np.triu(np.ones([20, 20]), 1))


def test_a_planar_step_that_flattens_space_has_a_finite_density():
    step = vr.PlanarFlow()
    step.build_for(2, 0)
    step.bias.assign([-5.0, 0.0, 5.0, 0.0, 0.0])  # w.u = -25
    _, log_det = step(tf.zeros([1, 2]))
    product = -25.0 + np.log(np.e - 1.0)
    np.testing.assert_allclose(log_det, [np.log(np.log1p(np.exp(product)))], rtol=1e-3)


@pytest.mark.parametrize(("size", "k"), [(256, 0.1), (1000, 0.1), (3, 2.0)])
def test_small_divergences_on_a_sphere_keep_their_digits(size, k):
    # Of t = m.z: the density falls off as (1 + t)^k beside that of the uniform distribution.
    t = np.linspace(-1.0, 1.0, 200_003)[1:-1]
    log_u = 0.5 * (size - 3) * np.log1p(-(t**2))
    log_u -= scipy.special.logsumexp(log_u)
    log_ratio = k * np.log1p(t)
    log_ratio -= scipy.special.logsumexp(log_u + log_ratio)
    expected = np.sum(np.exp(log_u + log_ratio) * log_ratio)
    assert float(power_spherical_kl(tf.constant(k), size)) == pytest.approx(expected, rel=1e-3)


def test_relaxed_codes_are_near_to_one_hot_ones_at_low_temperatures():
    logits = tf.constant(np.random.default_rng(0).standard_normal((500, 2, 4)), tf.float32)
    given = logits, SEED, tf.constant(0.0)
    hard = vr.RelaxedCategoricalBottleneck((2, 4))(*given)["z"].numpy()
    for temperature, distance in ((100.0, (0.7, 0.8)), (1.0, (0.2, 0.6)), (0.01, (0.0, 0.02))):
        schedule = vr.Constant(value=temperature)
        bottleneck = vr.RelaxedCategoricalBottleneck((2, 4), temperature=schedule)
        relaxed = bottleneck(*given, training=True)
        assert relaxed.keys() == {"z", "kl", "relaxed"}
        np.testing.assert_allclose(tf.reduce_sum(relaxed["z"], axis=-1), 1.0, rtol=1e-5)
        np.testing.assert_array_equal(np.argmax(relaxed["z"], -1), np.argmax(hard, -1))
        low, high = distance
        assert low <= np.abs(relaxed["z"] - hard).max(axis=-1).mean() < high


def categorical_model(terms, **settings):
    z = keras.Input((3, 4), name="z")
    inputs = keras.Input((6,), name="inputs")
    logits = keras.layers.Reshape((3, 4))(keras.layers.Dense(12)(inputs))
    pixels = keras.layers.Dense(6)(keras.layers.Flatten()(z))
    return vr.VAE(
        keras.Model(inputs, {"z_logits": logits}),
        vr.RelaxedCategoricalBottleneck((3, 4), **settings),
        keras.Model(z, {"logits": pixels}),
        [vr.Bernoulli(), *terms],
    )


@pytest.mark.slow
def test_figures_of_discrete_codes_are_those_of_all_codes_there_are():
    keras.utils.set_random_seed(0)
    vae = categorical_model([vr.KLDivergence()])
    data = (np.random.default_rng(0).random((8, 6)) > 0.5).astype(np.float32)
    found = vr.estimate(vae, data, num_samples=4000)
    numbers = np.stack(np.meshgrid(*[range(4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    codes = tf.one_hot(numbers, 4)
    logits = vae.decoder(codes)["logits"].numpy()[np.newaxis]
    log_joint = (data[:, np.newaxis] * logits - np.log1p(np.exp(logits))).sum(-1) - 3 * np.log(4)
    log_p = tf.nn.log_softmax(vae.encoder(data)["z_logits"]).numpy()
    log_q = np.einsum("nvc,kvc->nk", log_p, codes)
    elbo = (np.exp(log_q) * (log_joint - log_q)).sum(1).mean()
    kl = (np.exp(log_q) * (log_q + 3 * np.log(4))).sum(1).mean()
    nll = -np.logaddexp.reduce(log_joint, axis=1).mean()
    assert found["kl"].value == pytest.approx(kl, rel=1e-4)
    assert found["elbo"].value == pytest.approx(elbo, abs=0.01)
    assert found["negative_log_likelihood"].value == pytest.approx(nll, abs=0.01)


@pytest.mark.slow
def test_training_with_relaxed_codes_reports_no_bound():
    vae = categorical_model([vr.KLDivergence()])
    data = np.ones([4, 6], np.float32)
    assert vae.report(data, training=True)[1].elbo is None
    assert vae.report(data)[1].elbo is not None
    assert "not bounds" in vae.bottleneck.note
    with pytest.raises(ValueError, match=r"'log_posterior'.* Relaxed codes have no probability"):
        categorical_model([vr.MonteCarloKL()]).report(data, training=True)
    with pytest.raises(ValueError, match=r"RelaxedCategoricalBottleneck has no log_prob\(self, z"):
        check_densities(vr.StickingTheLanding(), vae.bottleneck)
    with pytest.raises(ValueError, match=r"takes a UniformPrior.* AutoregressivePrior"):
        categorical_model([], prior=vr.AutoregressivePrior(4))
    for temperature in (0, vr.LinearWarmup(steps=10)):
        with pytest.raises(ValueError, match=r"temperature must be above 0, got .* is 0 at first"):
            categorical_model([], temperature=temperature)


@pytest.mark.slow
def test_a_temperature_may_count_in_epochs():
    schedule = vr.LinearWarmup(start=2.0, peak=0.5, epochs=2)
    vae = categorical_model([vr.KLDivergence()], temperature=schedule)
    vae.compile("sgd", jit_compile=False)
    vae.fit(np.ones([6, 6], np.float32), batch_size=2, verbose=0)
    assert vae.bottleneck.temperature == vr.LinearWarmup(start=2.0, peak=0.5, steps=6)
    again = type(vae.bottleneck).from_config(vae.bottleneck.get_config())
    assert again.temperature == schedule


# Joint latents.


def test_joint_latents_are_those_of_the_bottlenecks_with_noise_of_their_own():
    parts = {"a": vr.GaussianBottleneck(2), "b": vr.PowerSphericalBottleneck(3)}
    joint = vr.JointBottleneck(parts)
    random = np.random.default_rng(0)
    shapes = {"a_mean": 2, "a_log_var": 2, "b_mean": 3, "b_concentration": 1}
    given = {name: random.standard_normal((5, size)) for name, size in shapes.items()}
    given = {name: tf.constant(value, tf.float32) for name, value in given.items()}
    found = joint(**given, seed=SEED)
    own = {
        name: part(*[v for n, v in given.items() if n.startswith(name)], fold_in(SEED, number))
        for number, (name, part) in enumerate(parts.items())
    }
    for name, written in own.items():
        np.testing.assert_array_equal(found.pop(name), written["z"])
        for part in ("kl", "log_posterior", "log_prior"):
            np.testing.assert_array_equal(found.pop(f"{part}_{name}"), written[part])
    assert not found
    density = joint.log_prob(**given, a=own["a"]["z"], b=own["b"]["z"])
    wanted = own["a"]["log_posterior"] + own["b"]["log_posterior"]
    np.testing.assert_allclose(density, wanted, rtol=1e-4)
    moved = joint.codes_of_values(2.0 * joint.values_of_codes(joint.sample_prior(4, SEED)))
    np.testing.assert_allclose(tf.norm(moved["b"], axis=1), 1.0, rtol=1e-5)


def test_what_does_not_fit_into_a_joint_bottleneck_is_refused():
    for parts in (
        {"a": vr.GaussianBottleneck(2)},
        {"a": vr.GaussianBottleneck(2), "b": DeterministicBottleneck(2)},
        {"a": vr.GaussianBottleneck(2), "b": vr.StandardNormalPrior()},
    ):
        with pytest.raises(ValueError, match="two bottlenecks or more, each with a prior"):
            vr.JointBottleneck(parts)
    both = {"z": vr.GaussianBottleneck(2), "c": vr.RelaxedCategoricalBottleneck(3)}
    joint = vr.JointBottleneck(both)
    assert not hasattr(joint, "log_prob")
    with pytest.raises(ValueError, match="no prior is one of them side by side"):
        refuse_other_codes(vr.MixturePrior(2), joint, tf.zeros([2, 5]))

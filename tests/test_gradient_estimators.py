"""Gradient estimators: the report unchanged, gradients right in the mean, variance lower.

Most tests use a model whose posterior is known,

    p(z) = N(0, I),  p(x|z) = N(W z + b, s^2 I),

with an encoder that reads an offset of its means and log-variances from the data. A batch is many
copies of one x with offsets of zero, so that the gradient by the offsets is one draw for each copy
of the encoder's gradient, and that by the offset of the decoder's mean one of the decoder's.
"""

import json
import warnings

import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf

import vae_research as vr
from tests.proofs import tell
from vae_research import DReG, GradientEstimator, StickingTheLanding
from vae_research.callbacks.gradients import gradient_figures
from vae_research.randomness import training_key
from vae_research.runs.report.description import notes_of
from vae_research.settings import from_config

W = np.array([[2.0, 0.5], [-1.0, 1.0], [0.5, 0.0], [0.0, -2.0]], np.float32)  # orthogonal columns
B = np.array([0.3, -0.2, 1.0, 0.0], np.float32)
S = 0.5
X = np.array([1.5, -1.0, 1.2, -1.5], np.float32)
VARIANCE = 1.0 / (1.0 + (W**2).sum(axis=0) / S**2)  # of the exact posterior
MEAN = (X - B) @ W * VARIANCE / S**2
# The encoder is off by about a standard deviation, and its variances are too large.
WRONG_MEAN = MEAN + np.array([0.2, -0.25])
WRONG_LOG_VAR = np.log(VARIANCE) + np.array([0.9, 0.5])

IWAE = None
KEY = tf.constant([5, 1], tf.int64)


class Encoder(keras.layers.Layer):
    """The same posterior for every row, moved by offsets."""

    def __init__(self, mean, log_var):
        super().__init__()
        self.mean, self.log_var = (tf.constant(value, tf.float32) for value in (mean, log_var))

    def call(self, mean_offset, log_var_offset):
        return {"z_mean": self.mean + mean_offset, "z_log_var": self.log_var + log_var_offset}


class Decoder(keras.layers.Layer):
    """W z + b, moved by an offset."""

    def call(self, z, x_offset):
        return {"x_mean": tf.matmul(z, W.T) + B + x_offset}


SAMPLED = (vr.Gaussian(standard_deviation=S), vr.MonteCarloKL())
OFFSETS = {"mean_offset": 2, "log_var_offset": 2, "x_offset": 4}


def linear_vae(estimator, mean=WRONG_MEAN, log_var=WRONG_LOG_VAR, terms=SAMPLED, **settings):
    settings = {"num_samples": 5, "importance_weighted": True} | settings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return vr.VAE(
            Encoder(mean, log_var),
            settings.pop("bottleneck", None) or vr.GaussianBottleneck(2),
            Decoder(),
            terms,
            gradient_estimator=estimator,
            **settings,
        )


def draws(vae, copies=20_000, of=lambda tensors, report: report.surrogate):
    """Returns one gradient of the surrogate for each copy of X, float64, by network.

    That of the encoder is by both of its offsets.
    """
    offsets = {name: tf.zeros([copies, size]) for name, size in OFFSETS.items()}
    with tf.GradientTape() as tape:
        tape.watch(offsets)
        found = vae.report({"inputs": tf.tile(X[None], [copies, 1]), **offsets}, seed=KEY)
        total = tf.reduce_sum(of(*found))
    found = {
        name: value.numpy().astype(np.float64)
        for name, value in tape.gradient(total, offsets).items()
    }
    encoder = np.concatenate([found["mean_offset"], found["log_var_offset"]], axis=1)
    return {"encoder": encoder, "decoder": found["x_offset"]}


def standard_errors_from(values, expected=0.0):
    """Returns by how many standard errors a mean over draws is away from what it should be."""
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    return np.abs(values.mean(axis=0) - expected) / np.maximum(error, 1e-12)


def squared_weights_forgotten():
    """The mutant of DReG: normalised weights in place of their squares."""

    class Mutant(DReG):
        def surrogate(self, samples):
            return -tf.reduce_sum(samples.normalised() * samples.path_log_weight, axis=1)

    return Mutant()


def posterior_weight_forgotten():
    """The mutant of DReG: right for the bound, wrong if log q(z|x) has another weight."""

    class Mutant(DReG):
        def surrogate(self, samples):
            weight = samples.normalised()
            factor = tf.square(weight) - weight
            values = weight * samples.path_log_weight + factor * samples.path_derivative()
            return -tf.reduce_sum(values, axis=1)

    return Mutant()


# Bias and variance.


def exact_gradient_of_the_elbo():
    """Minus the gradient of the ELBO: that of KL(q(z|x) || p(z|x)), whose densities are normal."""
    by_mean = (WRONG_MEAN - MEAN) / VARIANCE
    by_log_var = 0.5 * (np.exp(WRONG_LOG_VAR) / VARIANCE - 1.0)
    return np.concatenate([by_mean, by_log_var])


@pytest.mark.parametrize("estimator", [IWAE, DReG(), StickingTheLanding()], ids=repr)
def test_one_sample_gives_the_exact_gradient_in_the_mean(estimator):
    found = draws(linear_vae(estimator, num_samples=1))["encoder"]
    assert np.all(standard_errors_from(found, exact_gradient_of_the_elbo()) < 4)


def test_sticking_the_landing_is_unbiased_for_the_mean_over_samples():
    vae = linear_vae(StickingTheLanding(), importance_weighted=False)
    found = draws(vae)["encoder"]
    assert np.all(standard_errors_from(found, exact_gradient_of_the_elbo()) < 4)


def difference_from_iwae(estimator, copies=20_000, **settings):
    """Returns gradients minus those of the bound itself from the same noise: paired draws."""
    ours, standard = (draws(linear_vae(each, **settings), copies) for each in (estimator, IWAE))
    return {name: ours[name] - standard[name] for name in ours}


@pytest.mark.slow
@pytest.mark.parametrize(("num_samples", "copies"), [(1, 20_000), (5, 20_000), (50, 3_000)])
def test_dreg_is_unbiased_for_every_number_of_samples(num_samples, copies):
    found = difference_from_iwae(DReG(), copies, num_samples=num_samples)
    assert np.all(standard_errors_from(found["encoder"]) < 4)
    assert np.abs(found["encoder"]).max() > 0.1  # another estimate, not the same numbers
    # The decoder's gradient is the ordinary one, sample by sample; float32 rounds log w of 1e1.
    np.testing.assert_allclose(found["decoder"], 0.0, atol=1e-4)


def test_mutant_without_the_squares_is_biased():
    assert np.any(
        standard_errors_from(difference_from_iwae(squared_weights_forgotten())["encoder"]) > 20
    )


@pytest.mark.slow
def test_sticking_the_landing_is_biased_with_importance_weights_and_not_a_little():
    found = draws(linear_vae(StickingTheLanding()))["encoder"]
    standard = draws(linear_vae(IWAE))["encoder"]
    assert np.max(standard_errors_from(found - standard)) > 20
    # The weights are its only fault: the mutant of DReG is the same estimate.
    mutant = draws(linear_vae(squared_weights_forgotten()))["encoder"]
    np.testing.assert_allclose(found, mutant, rtol=1e-3, atol=1e-3)
    sizes = [np.linalg.norm(values.mean(axis=0)) for values in (found, standard)]
    assert sizes[0] > 1.3 * sizes[1]


@pytest.mark.slow
@pytest.mark.parametrize("weight", [2.0, vr.LinearWarmup(start=0.4, steps=10)], ids=repr)
def test_weight_of_the_divergence_inside_of_log_w_is_honoured(weight):
    terms = [vr.Gaussian(standard_deviation=S), vr.MonteCarloKL(weight=weight)]
    found = difference_from_iwae(DReG(), 10_000, terms=terms)["encoder"]
    assert np.all(standard_errors_from(found) < 4)
    mutant = difference_from_iwae(posterior_weight_forgotten(), 10_000, terms=terms)["encoder"]
    assert np.any(standard_errors_from(mutant) > 20)


@pytest.mark.parametrize("num_samples", [5, 50])
def test_dreg_has_less_variance_in_the_encoder(num_samples):
    ours, standard = (
        draws(linear_vae(each, num_samples=num_samples), copies=2_000)["encoder"].var(axis=0)
        for each in (DReG(), IWAE)
    )
    assert np.all(ours < 0.5 * standard)


@pytest.mark.parametrize(
    ("estimator", "settings"),
    [
        (StickingTheLanding(), {"num_samples": 1, "importance_weighted": False}),
        (StickingTheLanding(), {}),
        (DReG(), {}),
    ],
    ids=["STL, K=1", "STL, K=5", "DReG, K=5"],
)
def test_gradient_at_the_exact_posterior_has_no_variance(estimator, settings):
    exact = {"mean": MEAN, "log_var": np.log(VARIANCE)}
    # Each draw is zero to the rounding of log-densities' gradients, which are about 10 here.
    found = draws(linear_vae(estimator, **exact, **settings), copies=500)["encoder"]
    np.testing.assert_allclose(found, 0.0, atol=1e-4)
    assert draws(linear_vae(IWAE, **exact, **settings), copies=500)["encoder"].std() > 0.1


# A model of networks, against losses that are written by hand.

IMAGES = np.random.default_rng(0).integers(0, 2, (6, 4, 4, 1)).astype(np.float32)
BOUND = (vr.Bernoulli(), vr.MonteCarloKL())


def dense_vae(estimator, terms=BOUND, **settings):
    keras.utils.set_random_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return vr.VAE(
            vr.dense_encoder(IMAGES.shape[1:], 3, hidden_units=[8]),
            settings.pop("bottleneck", None) or vr.GaussianBottleneck(3),
            settings.pop("decoder", None)
            or vr.dense_decoder(IMAGES.shape[1:], 3, hidden_units=[8]),
            terms,
            gradient_estimator=estimator,
            **{"num_samples": 5, "importance_weighted": True} | settings,
        )


def surrogate(vae, seed=KEY):
    return tf.reduce_mean(vae.report(IMAGES, seed=seed)[1].surrogate)


def gradients(vae, of=surrogate):
    with tf.GradientTape() as tape:
        loss = of(vae)
    found = tape.gradient(loss, vae.trainable_variables)
    variables = vae.trainable_variables
    return [
        tf.zeros(each.shape) if gradient is None else gradient
        for each, gradient in zip(variables, found, strict=True)
    ]


def two_losses(vae, seed=KEY):
    """The gradients of DReG as Tucker et al. 2019 give them: the encoder's and the decoder's."""
    with tf.GradientTape(persistent=True) as tape:
        tensors = vae.infer(IMAGES, seed=seed)
        z, mean, log_var = (tensors[name] for name in ("z", "z_mean", "z_log_var"))
        mean, log_var = tf.stop_gradient(mean), tf.stop_gradient(log_var)
        logits = vae.decoder(z)["logits"]
        targets = tf.repeat(IMAGES, 5, axis=0)
        log_p = -tf.nn.sigmoid_cross_entropy_with_logits(targets, logits)
        log_w = (
            tf.reduce_sum(log_p, axis=[1, 2, 3])
            - 0.5 * tf.reduce_sum(z**2, axis=1)
            + 0.5 * tf.reduce_sum((z - mean) ** 2 * tf.exp(-log_var) + log_var, axis=1)
        )
        log_w = tf.reshape(log_w, [-1, 5])
        weight = tf.stop_gradient(tf.nn.softmax(log_w, axis=1))
        of_encoder = -tf.reduce_mean(tf.reduce_sum(weight**2 * log_w, axis=1))
        of_decoder = -tf.reduce_mean(tf.reduce_sum(weight * log_w, axis=1))
    return [
        *tape.gradient(of_encoder, vae.encoder.trainable_variables),
        *tape.gradient(of_decoder, vae.decoder.trainable_variables),
    ]


def largest_relative_difference(ours, others):
    return max(
        float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(ours, others, strict=True)
    )


@pytest.mark.slow
def test_one_surrogate_has_the_gradients_of_two_losses():
    vae = dense_vae(DReG())
    assert vae.trainable_variables == [
        *vae.encoder.trainable_variables,
        *vae.decoder.trainable_variables,
    ]
    expected = two_losses(vae)
    assert largest_relative_difference(gradients(vae), expected) < 3e-6
    mutant = dense_vae(squared_weights_forgotten())
    assert largest_relative_difference(gradients(mutant), expected) > 0.1


def figures_of(report):
    return {"loss": report.loss, "elbo": report.elbo, **report.values, **report.contributions}


def three_steps(vae):
    """The figures of three draws, and the sum of their gradients, from a loop in a graph."""

    def step(index, sums, figures):
        with tf.GradientTape() as tape:
            _, report = vae.report(IMAGES, seed=KEY + index)
            loss = tf.reduce_mean(report.surrogate)
        found = tape.gradient(loss, vae.trainable_variables)
        sums = [total + each for total, each in zip(sums, found, strict=True)]
        now = figures_of(report)
        return (
            index + 1,
            sums,
            {name: figures[name].write(tf.cast(index, tf.int32), now[name]) for name in now},
        )

    sums = [tf.zeros(variable.shape) for variable in vae.trainable_variables]
    figures = {
        name: tf.TensorArray(tf.float32, 3, element_shape=value.shape)
        for name, value in figures_of(vae.report(IMAGES, seed=KEY)[1]).items()
    }
    start = tf.constant(0, tf.int64), sums, figures
    _, sums, figures = tf.while_loop(lambda index, *_: index < 3, step, start)
    return sums, {name: figures[name].stack() for name in figures}


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_compiled_loop_has_the_same_gradients_and_reports_what_it_does_without(jit_compile):
    def compiled(vae):
        return tf.function(three_steps, autograph=False, jit_compile=jit_compile)(vae)

    vae = dense_vae(DReG())
    sums, figures = compiled(vae)
    each = [two_losses(vae, KEY + index) for index in range(3)]
    assert (
        largest_relative_difference(sums, [sum(found) for found in zip(*each, strict=True)]) < 3e-6
    )
    _, plain = compiled(dense_vae(IWAE))
    assert figures.keys() == plain.keys()
    for name, value in plain.items():
        np.testing.assert_array_equal(figures[name], value, err_msg=name)


def test_estimator_of_the_bound_itself_gives_the_ordinary_gradients():
    class Standard(GradientEstimator):
        def surrogate(self, samples):
            return -samples.bound(samples.log_weight)

        def is_unbiased(self, num_samples, importance_weighted):
            return True

    for settings in ({}, {"importance_weighted": False}):
        found = difference_from_iwae(Standard(), copies=10, **settings)
        for difference in found.values():
            np.testing.assert_allclose(difference, 0.0, atol=1e-5)


class SizeOfMeans(vr.LossTerm):
    """A penalty on what the encoder wrote and what the decoder made of the sample."""

    def per_example(self, z_mean, logits):
        return vr.sum_over_event(z_mean**2) + vr.sum_over_event(logits**2)


class Entropy(vr.LossTerm):
    """Outside of the bound, since it does not read log_prior."""

    adds_log_posterior = True

    def per_example(self, log_posterior):
        return log_posterior


def regularised_decoder(factor):
    layers = keras.layers
    hidden = layers.Dense(8, activation="tanh", kernel_regularizer=keras.regularizers.L2(factor))
    return vr.named(
        keras.Sequential([hidden, layers.Dense(16), layers.Reshape([4, 4, 1])]), "logits"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "settings"),
    [(DReG(), {}), (StickingTheLanding(), {"importance_weighted": False})],
    ids=["DReG", "STL"],
)
def test_terms_outside_of_the_bound_have_their_ordinary_gradients(estimator, settings):
    outside = [SizeOfMeans(weight=vr.LinearWarmup(start=0.2, steps=10)), Entropy(weight=0.7)]
    if settings:  # a closed form cannot be trained beside importance weights
        outside.append(vr.KLDivergence(name="closed", weight=0.4))

    def only_outside(vae):
        tensors = vae.forward(IMAGES, seed=KEY)
        values = [
            weight * term(tensors) for weight, term in zip((0.2, 0.7, 0.4), outside, strict=False)
        ]
        return tf.reduce_mean(sum(values)) + sum(vae.losses)

    vae, bound, penalties = (
        dense_vae(estimator, terms, decoder=regularised_decoder(factor), **settings)
        for terms, factor in (([*BOUND, *outside], 0.1), (BOUND, 0.0), (BOUND, 0.1))
    )
    for other in (vae, bound, penalties):
        other.forward(IMAGES)
        other.set_weights(vae.get_weights())
    parts = gradients(bound), gradients(penalties, only_outside)
    expected = [sum(each) for each in zip(*parts, strict=True)]
    assert largest_relative_difference(gradients(vae), expected) < 1e-5
    assert largest_relative_difference(parts[0], expected) > 0.1


# Nothing that is reported changes.


@pytest.mark.parametrize("estimator", [DReG(), StickingTheLanding()], ids=repr)
def test_what_is_reported_is_unchanged_to_the_last_digit(estimator):
    terms = [*BOUND, SizeOfMeans(weight=0.5), vr.KLDivergence(name="closed", weight=None)]
    ours, plain = (
        figures_of(dense_vae(each, terms).report(IMAGES, training=True, seed=KEY)[1])
        for each in (estimator, IWAE)
    )
    assert ours.keys() == plain.keys()
    for name, value in plain.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def test_report_leaves_the_tensors_of_a_forward_pass():
    vae = dense_vae(DReG())
    tensors, _ = vae.report(IMAGES, seed=KEY)
    plain = vae.forward(IMAGES, seed=KEY)
    assert list(tensors) == list(plain)
    for name, value in plain.items():
        np.testing.assert_array_equal(tensors[name], value, err_msg=name)


# Bottlenecks of one's own.


class Scaled(vr.Bottleneck):
    """A normal posterior and prior with weights of their own: a scale and a mean."""

    def build(self, input_shape=None):
        self.log_scale = self.add_weight(shape=(), initializer="zeros", name="log_scale")
        self.prior_mean = self.add_weight(shape=(), initializer="ones", name="prior_mean")

    def call(self, z_mean, seed):
        noise = tf.random.stateless_normal(tf.shape(z_mean), seed, alg="philox")
        z = z_mean + tf.exp(self.log_scale) * noise
        log_posterior = -0.5 * vr.sum_over_event(noise**2) - 2.0 * self.log_scale
        log_prior = -0.5 * vr.sum_over_event((z - self.prior_mean) ** 2)
        return {"z": z, "log_posterior": log_posterior, "log_prior": log_prior}

    def log_prob(self, z, z_mean):
        scaled = (z - z_mean) * tf.exp(-self.log_scale)
        return -0.5 * vr.sum_over_event(scaled**2) - 2.0 * self.log_scale

    def prior_log_prob(self, z):
        return vr.sum_over_event(-0.5 * (z - self.prior_mean) ** 2)


@pytest.mark.parametrize("estimator", [DReG(), StickingTheLanding()], ids=repr)
def test_weights_of_a_bottleneck_are_held_fixed_in_the_posterior_and_trained_in_the_prior(
    estimator,
):
    vae = linear_vae(estimator, bottleneck=Scaled(2), num_samples=3)
    zeros = {name: tf.zeros([1, size]) for name, size in OFFSETS.items()}
    data = {"inputs": X[None], **zeros}
    with tf.GradientTape() as tape:
        tensors, report = vae.report(data, seed=KEY)
        loss = tf.reduce_sum(report.surrogate)
    scale, prior_mean = vae.bottleneck.log_scale, vae.bottleneck.prior_mean
    by_scale, by_prior_mean = tape.gradient(loss, [scale, prior_mean])
    # By hand, with a scale of exp(0) = 1: d z / d log_scale = z - mean.
    z = tensors["z"].numpy().astype(np.float64)
    moved = z - WRONG_MEAN
    by_z = (X - B - z @ W.T) @ W / S**2 - (z - 1.0) + moved
    log_w = (tensors["log_prior"] - tensors["log_posterior"]).numpy() - 0.5 * (
        ((X - B - z @ W.T) / S) ** 2
    ).sum(axis=1)
    weight = scipy.special.softmax(log_w)
    squared = weight**2 if isinstance(estimator, DReG) else weight
    assert float(by_scale) == pytest.approx(-(squared * (by_z * moved).sum(axis=1)).sum(), rel=1e-4)
    assert float(by_prior_mean) == pytest.approx(-(weight * (z - 1.0).sum(axis=1)).sum(), rel=1e-4)


class TwoLevels(Scaled):
    """What log_prob reads is not what the encoder wrote, but depends on a sample."""

    def call(self, z_mean, seed):
        tensors = super().call(z_mean, seed)
        return tensors | {"second_mean": 0.5 * tensors["z"]}

    def log_prob(self, z, second_mean):
        return super().log_prob(z, second_mean)


class PerDimension(Scaled):
    def prior_log_prob(self, z):
        return -0.5 * z**2


class WithoutDensities(vr.Bottleneck):
    def call(self, z_mean):
        return {"z": z_mean}


class InheritedDensities(Scaled):
    """Another posterior, with the densities of the old one."""

    def call(self, z_mean, seed):
        return super().call(2.0 * z_mean, seed)


class WithoutZ(Scaled):
    def log_prob(self, z_mean):
        return z_mean[:, 0]


@pytest.mark.parametrize(
    ("bottleneck", "message"),
    [
        (
            vr.DeterministicBottleneck(2),
            r"DReG\(\) needs log q.*DeterministicBottleneck has no log",
        ),
        (WithoutDensities(2), r"WithoutDensities has no log_prob\(self, z, ...\). Add this method"),
        (InheritedDensities(2), "InheritedDensities has a `call` of its own and inherits log_prob"),
        (WithoutZ(2), r"WithoutZ has no log_prob\(self, z, ...\)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_bottleneck_without_densities_of_z_is_refused_when_the_model_is_built(bottleneck, message):
    with pytest.raises(ValueError, match=message):
        linear_vae(DReG(), bottleneck=bottleneck)
    linear_vae(IWAE, bottleneck=bottleneck)


@pytest.mark.parametrize("estimator", [DReG(), StickingTheLanding()], ids=repr)
@pytest.mark.parametrize(
    ("bottleneck", "message"),
    [
        (TwoLevels, "log_prob of TwoLevels reads 'second_mean', which the bottleneck wrote itself"),
        (PerDimension, r"prior_log_prob of PerDimension returned shape \(5, 2\).*\[rows\]"),
    ],
)
def test_densities_that_no_estimator_can_use_are_refused_in_the_first_pass(
    estimator, bottleneck, message
):
    zeros = {name: tf.zeros([1, size]) for name, size in OFFSETS.items()}
    vae = linear_vae(estimator, bottleneck=bottleneck(2))
    with pytest.raises(ValueError, match=message):
        vae.report({"inputs": X[None], **zeros}, seed=KEY)


# What is refused of the rest.


class OwnDivergence(vr.LossTerm):
    def per_example(self, log_posterior, log_prior):
        return tf.square(log_posterior - log_prior)


TOP = {"log_posterior": "log_posterior_top", "log_prior": "log_prior_top"}
WEIGHTED = {"importance_weighted": True, "num_samples": 5}
REFUSED = {
    "DReG of the mean": (DReG(), BOUND, {}, ValueError, r"DReG\(\) estimates.*importance_weighted"),
    "the class": (DReG, BOUND, WEIGHTED, TypeError, "must be a GradientEstimator"),
    "a name": ("dreg", BOUND, WEIGHTED, TypeError, r"for example DReG\(\), got 'dreg'"),
    "a schedule": (vr.Constant(), BOUND, WEIGHTED, TypeError, "got Constant"),
    "own term": (
        DReG(),
        [vr.Bernoulli(), OwnDivergence()],
        WEIGHTED,
        ValueError,
        "cannot differentiate loss term 'own_divergence'.*adds_log_posterior = True",
    ),
    "two latents": (
        StickingTheLanding(),
        [*BOUND, vr.MonteCarloKL(name="top", rename=TOP)],
        WEIGHTED,
        ValueError,
        "cannot differentiate loss term 'top'.*no other latent",
    ),
    "closed form": (
        StickingTheLanding(),
        [vr.Bernoulli(), vr.KLDivergence()],
        {},
        ValueError,
        "no trained term reads as `log_posterior`.*MonteCarloKL.*reconstruction, kl; a closed form",
    ),
    "only watched": (
        StickingTheLanding(),
        [vr.Bernoulli(), vr.MonteCarloKL(weight=None)],
        {},
        ValueError,
        "no trained term reads",
    ),
}


@pytest.mark.parametrize(
    ("estimator", "terms", "settings", "error", "message"), REFUSED.values(), ids=REFUSED
)
def test_what_does_not_go_together_is_refused_by_name(estimator, terms, settings, error, message):
    with pytest.raises(error, match=message):
        vr.Objective(terms, gradient_estimator=estimator, **settings)


def test_own_term_is_differentiated_as_it_is_if_samples_are_joined_by_their_mean():
    def with_penalty(tensors, report):
        penalty = tf.square(tensors["log_posterior"] - tensors["log_prior"])
        return report.surrogate + 0.01 * tf.reduce_mean(tf.reshape(penalty, [-1, 5]), axis=1)

    settings = {"importance_weighted": False}
    terms = [*SAMPLED, OwnDivergence(weight=0.01)]
    found = draws(linear_vae(StickingTheLanding(), terms=terms, **settings), 10)
    expected = draws(linear_vae(StickingTheLanding(), **settings), 10, of=with_penalty)
    np.testing.assert_allclose(found["encoder"], expected["encoder"], rtol=1e-5, atol=1e-5)


def test_surrogate_of_another_shape_is_refused():
    class Short(GradientEstimator):
        def surrogate(self, samples):
            return samples.log_weight

        def is_unbiased(self, num_samples, importance_weighted):
            return True

    with pytest.raises(ValueError, match=r"Short\(\).surrogate returned shape \(6, 5\).*\[batch\]"):
        dense_vae(Short()).report(IMAGES)


def test_base_cannot_be_used_as_it_is():
    with pytest.raises(TypeError, match="abstract class GradientEstimator"):
        GradientEstimator()


# A biased estimator is marked.


@pytest.mark.parametrize(
    ("estimator", "num_samples", "importance_weighted", "unbiased"),
    [
        (StickingTheLanding(), 1, True, True),
        (StickingTheLanding(), 1, False, True),
        (StickingTheLanding(), 5, False, True),
        (StickingTheLanding(), 2, True, False),
        (DReG(), 1, True, True),
        (DReG(), 50, True, True),
    ],
)
def test_biased_estimator_warns_when_the_model_is_built(
    estimator, num_samples, importance_weighted, unbiased
):
    assert estimator.is_unbiased(num_samples, importance_weighted) == unbiased
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vae = vr.VAE(
            vr.dense_encoder([4], 2, hidden_units=[]),
            vr.GaussianBottleneck(2),
            vr.dense_decoder([4], 2, hidden_units=[]),
            BOUND,
            num_samples=num_samples,
            importance_weighted=importance_weighted,
            gradient_estimator=estimator,
        )
    said = [str(warning.message) for warning in caught]
    notes = notes_of(vae, vr.Data.from_arrays(IMAGES))
    if unbiased:
        assert said == []
        assert vae.objective.gradient_bias is None
        assert not any("biased" in note for note in notes)
    else:
        (message,) = said
        assert message.startswith("the gradients of StickingTheLanding() are biased for the bound")
        assert "2 importance-weighted samples; DReG() is unbiased" in message
        assert message in notes


# Saved with the model, used by the steps and by all who differentiate.


@pytest.mark.parametrize("estimator", [DReG(), StickingTheLanding()], ids=repr)
def test_estimator_is_its_settings(estimator):
    again = from_config(json.loads(json.dumps(estimator.to_config())))
    assert again == estimator
    assert repr(again) == f"{type(estimator).__name__}()"


@pytest.mark.slow
def test_estimator_is_saved_with_the_model(tmp_path):
    vae = dense_vae(DReG())
    expected = gradients(vae)
    vae.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.objective.gradient_estimator == DReG()
    for ours, value in zip(gradients(again), expected, strict=True):
        np.testing.assert_array_equal(ours, value)
    again.set_steps_per_epoch(7)
    assert again.objective.gradient_estimator == DReG()
    assert vr.VAE.from_config(dense_vae(IWAE).get_config()).objective.gradient_estimator is None


@pytest.mark.slow
def test_training_step_follows_the_surrogate():
    vae = dense_vae(DReG(), [*BOUND, SizeOfMeans(weight=0.1)])
    sample_weight = np.arange(6, dtype=np.float32)

    def loss(vae):
        _, report = vae.report(IMAGES, training=True, seed=training_key(vae.seed, 0))
        return tf.reduce_sum(report.surrogate * sample_weight) / sample_weight.sum()

    expected = gradients(vae, loss)
    before = [variable.numpy() for variable in vae.trainable_variables]
    vae.compile(keras.optimizers.SGD(1.0), run_eagerly=True)
    vae.train_on_batch(IMAGES, sample_weight=sample_weight)
    after = [variable.numpy() for variable in vae.trainable_variables]
    moved = [old - new for old, new in zip(before, after, strict=True)]
    assert largest_relative_difference(moved, expected) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("importance_weighted", [False, True])
def test_gradients_in_tensorboard_are_those_of_the_surrogate(importance_weighted):
    vae = dense_vae(StickingTheLanding(), importance_weighted=importance_weighted)

    def norm(of):
        found = gradients(vae, lambda vae: tf.reduce_mean(of(vae.report(IMAGES)[1])))
        return np.sqrt(sum(np.sum(np.square(each)) for each in found))

    total = float(gradient_figures(vae, tf.constant(IMAGES))["gradients/total"])
    assert total == pytest.approx(norm(lambda report: report.surrogate), rel=1e-5)
    assert abs(norm(lambda report: report.loss) / total - 1.0) > 0.01


# On MNIST, in figures. `pytest --soak -m soak -rP tests/test_gradient_estimators.py` prints them.


def trained_networks(images):
    """Returns encoder and decoder of a small model that has seen some digits."""
    keras.utils.set_random_seed(0)
    networks = [
        make(images.shape[1:], 10, hidden_units=[64], activation="tanh")
        for make in (vr.dense_encoder, vr.dense_decoder)
    ]
    vae = mnist_vae(*networks, IWAE, 5)
    vae.compile(keras.optimizers.Adam(1e-3))
    vae.fit(images, batch_size=50, epochs=2, verbose=0)
    return networks


def mnist_vae(encoder, decoder, estimator, num_samples):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return vr.VAE(
            encoder,
            vr.GaussianBottleneck(10),
            decoder,
            BOUND,
            num_samples=num_samples,
            importance_weighted=True,
            gradient_estimator=estimator,
        )


def moments_of(vae, image):
    """Returns a function of the first draw and their number.

    It gives the mean of the encoder's gradient, and the sum of the variances of its elements.
    """
    variables = vae.encoder.trainable_variables
    size = sum(int(np.prod(variable.shape)) for variable in variables)

    def gradient(index):
        with tf.GradientTape() as tape:
            _, report = vae.report(image, seed=tf.stack([index, tf.constant(1, tf.int64)]))
            loss = tf.reduce_mean(report.surrogate)
        found = tape.gradient(loss, variables)
        return tf.concat([tf.reshape(each, [-1]) for each in found], axis=0)

    @tf.function(autograph=False, jit_compile=True)
    def sums(first, end):
        def step(index, total, squares):
            found = tf.cast(gradient(index), tf.float64)
            return index + 1, total + found, squares + tf.reduce_sum(found**2)

        start = first, tf.zeros([size], tf.float64), tf.constant(0.0, tf.float64)
        return tf.while_loop(lambda index, *_: index < end, step, start)[1:]

    def moments(first, count):
        bounds = (tf.constant(value, tf.int64) for value in (first, first + count))
        total, squares = (value.numpy() for value in sums(*bounds))
        mean = total / count
        return mean, (squares / count - np.sum(mean**2)) * count / (count - 1)

    return moments


@pytest.mark.soak
@pytest.mark.parametrize("num_samples", [5, 50])
def test_variance_and_bias_on_a_digit(num_samples):
    images = vr.load_data("mnist", binarize="dynamic").train.prepare(slice(0, 5_000))
    networks, image = trained_networks(images), tf.constant(images[:1])
    few, many = 200, 20_000
    moments = {
        name: moments_of(mnist_vae(*networks, estimator, num_samples), image)
        for name, estimator in {"IWAE": IWAE, "DReG": DReG(), "STL": StickingTheLanding()}.items()
    }
    reference, spread = moments["IWAE"](many, many)  # other draws than those below
    norm = np.linalg.norm(reference)
    variances, distances = {}, {}
    for name, moments_by in moments.items():
        variances[name] = moments_by(0, few)[1]
        mean, variance = moments_by(0, many)
        distance = np.linalg.norm(mean - reference)
        # What two means of so many draws differ by if both are unbiased.
        chance = np.sqrt((variance + spread) / many)
        distances[name] = distance / chance
        tell(
            f"encoder's gradient by {name}, K={num_samples}",
            variance_over_iwae=round(float(variances[name] / variances["IWAE"]), 3),
            distance_from_reference=round(float(distance / norm), 4),
            distance_by_chance=round(float(chance / norm), 4),
        )
    assert variances["DReG"] < 0.8 * variances["IWAE"]
    assert max(distances["IWAE"], distances["DReG"]) < 2.5
    assert distances["STL"] > 7

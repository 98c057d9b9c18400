"""Distributions of TensorFlow Probability as parts: against our own parts, trained, and loaded."""

import importlib.util
import math

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
import tensorflow_probability as tfp

import vae_research as vr

tfd, tfb = tfp.distributions, tfp.bijectors
register = keras.saving.register_keras_serializable(package="test_distributions")

SEED = tf.constant([3, 1 << 57], tf.int64)
RANDOM = np.random.default_rng(0)
ROWS, SHAPE = 4, (3, 2)


def normal(*shape):
    return tf.constant(RANDOM.standard_normal(shape), tf.float32)


# Likelihoods.


class OwnNormal(vr.DistributionLikelihood):
    def distribution(self, x_mean, x_log_var):
        return tfd.Normal(x_mean, tf.exp(0.5 * x_log_var))


class OwnLaplace(vr.DistributionLikelihood):
    scale: float = 0.25

    def distribution(self, x_mean):
        return tfd.Laplace(x_mean, self.scale)


class OwnBernoulli(vr.DistributionLikelihood):
    spacing = 1.0

    def distribution(self, logits):
        return tfd.Independent(tfd.Bernoulli(logits=logits, dtype=tf.float32), 1)


class OwnCategorical(vr.DistributionLikelihood):
    spacing = 1.0

    def distribution(self, logits):
        return tfd.Categorical(logits=logits)


class NegativeBinomial(vr.DistributionLikelihood):
    support = (0.0, math.inf)
    spacing = 1.0

    def distribution(self, log_count, logits):
        return tfd.NegativeBinomial(tf.exp(log_count), logits=logits)


class QuantisedLogistic(vr.DistributionLikelihood):
    """Whole numbers from 0 to `levels - 1`: each has the mass of the values that round to it."""

    spacing = 1.0
    levels: int = 8

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "support", (0.0, self.levels - 1.0))

    def distribution(self, x_mean, x_log_var):
        smooth = tfd.Logistic(x_mean - 0.5, tf.exp(0.5 * x_log_var))
        return tfd.QuantizedDistribution(smooth, low=0.0, high=self.levels - 1.0)

    def mean(self, x_mean):
        return tf.clip_by_value(x_mean, 0.0, self.levels - 1.0)


class WithoutMean(QuantisedLogistic):
    mean = vr.DistributionLikelihood.mean


BITS = tf.constant(RANDOM.integers(0, 2, (ROWS, *SHAPE)), tf.float32)
COUNTS = tf.constant(RANDOM.poisson(3.0, (ROWS, *SHAPE)), tf.float32)
PIXELS = {"x_mean": normal(ROWS, *SHAPE), "x_log_var": normal(ROWS, *SHAPE)}
LOGITS = {"logits": normal(ROWS, *SHAPE)}
SAME_LIKELIHOODS = {
    "normal": (OwnNormal(), vr.GaussianWithVariance(), normal(ROWS, *SHAPE), PIXELS),
    "laplace": (
        OwnLaplace(),
        vr.Laplace(scale=0.25),
        normal(ROWS, *SHAPE),
        {"x_mean": PIXELS["x_mean"]},
    ),
    "bernoulli": (OwnBernoulli(), vr.Bernoulli(), BITS, LOGITS),
    "categorical": (
        OwnCategorical(),
        vr.Categorical(classes=3),
        tf.cast(BITS, tf.int32),
        {"logits": normal(ROWS, *SHAPE, 3)},
    ),
}


@pytest.mark.parametrize("name", SAME_LIKELIHOODS)
def test_a_likelihood_has_values_gradients_and_mean_of_ours(name):
    theirs, ours, targets, written = SAME_LIKELIHOODS[name]
    found = []
    for term in (theirs, ours):
        assert term.reads() == {"targets", *written}
        with tf.GradientTape() as tape:
            tape.watch(written)
            value = term({"targets": targets, **written})
        found.append(
            [value, *tape.gradient(value, list(written.values())), term.reconstruction(written)]
        )
    for one, other in zip(*found, strict=True):
        assert one.dtype == tf.float32
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_masses_are_those_of_the_paper():
    written = {"log_count": normal(ROWS, *SHAPE), "logits": normal(ROWS, *SHAPE)}
    count, p = np.exp(written["log_count"]), 1.0 / (1.0 + np.exp(-written["logits"].numpy()))
    wanted = scipy.stats.nbinom.logpmf(COUNTS, count, 1.0 - p).sum(axis=(1, 2))
    np.testing.assert_allclose(
        -NegativeBinomial()({"targets": COUNTS, **written}), wanted, rtol=1e-4
    )
    mean = NegativeBinomial().reconstruction(written)
    np.testing.assert_allclose(mean, count * p / (1.0 - p), rtol=1e-4)

    levels = np.arange(8.0, dtype=np.float32)[:, np.newaxis]
    for place, log_var in ((-0.3, -2.0), (3.4, 1.0), (9.0, 0.0)):
        term, written = QuantisedLogistic(), {}
        for key, number in {"x_mean": place, "x_log_var": log_var}.items():
            written[key] = tf.fill([8, 1], number)
        edges = np.concatenate([[-np.inf], np.arange(7) + 0.5, [np.inf]])
        mass = np.diff(scipy.stats.logistic.cdf(edges, place, np.exp(0.5 * log_var)))
        found = np.exp(-term({"targets": tf.constant(levels), **written}).numpy())
        np.testing.assert_allclose(found, mass, rtol=1e-3, atol=1e-5)


def test_a_likelihood_is_sampled():
    written = {name: tf.repeat(value[:1], 20_000, axis=0) for name, value in PIXELS.items()}
    drawn = OwnNormal().sample(SEED, **written)
    again = OwnNormal().sample(SEED, **written)
    np.testing.assert_array_equal(drawn, again)
    units = (drawn - written["x_mean"]) / tf.exp(0.5 * written["x_log_var"])
    assert scipy.stats.kstest(units.numpy().ravel(), "norm").pvalue > 1e-3
    assert (OwnNormal().sample(SEED + 1, **written) != drawn).numpy().all()


def test_a_missing_value_is_left_out():
    known = tf.constant(RANDOM.integers(0, 2, (ROWS, *SHAPE)))
    given = {"targets": PIXELS["x_mean"] + 1.0, **PIXELS, "known": known}
    theirs, ours = (cls(observed="known")(given) for cls in (OwnNormal, vr.GaussianWithVariance))
    np.testing.assert_allclose(theirs, ours, rtol=1e-5)


class OneOfThree(vr.DistributionLikelihood):
    """Rows of the last axis but one; each has three values that depend on each other."""

    spacing = 1.0
    event_rank = 1

    def distribution(self, logits):
        return tfd.OneHotCategorical(logits=logits, dtype=tf.float32)


class OneOfThreeSplit(OneOfThree):
    event_rank = 0


def test_values_that_depend_on_each_other_are_missing_together():
    logits, classes = normal(ROWS, 2, 3), RANDOM.integers(0, 3, (ROWS, 2))
    known = np.ones([ROWS, 2, 3])
    known[1, 0, 2] = 0.0
    given = {"targets": tf.one_hot(classes, 3), "logits": logits, "known": tf.constant(known)}
    masses = tf.gather(tf.nn.log_softmax(logits), classes, batch_dims=2)
    wanted = -tf.reduce_sum(masses * known.min(axis=2), axis=1)
    np.testing.assert_allclose(OneOfThree(observed="known")(given), wanted, rtol=1e-5)
    with pytest.raises(
        ValueError, match=r"event shape \(1,\), and 'known' .* Set event_rank = 1 in"
    ):
        OneOfThreeSplit(observed="known")(given)


# Priors and posteriors.


@register
class Mixture(vr.DistributionPrior):
    def build(self, input_shape):
        super().build(input_shape)
        make = {"logits": (3,), "mean": (3, self.size), "log_var": (3, self.size)}
        for name, shape in make.items():
            spread = "random_normal" if name == "mean" else "zeros"
            setattr(self, name, self.add_weight(shape=shape, initializer=spread, name=name))

    def distribution(self):
        parts = tfd.MultivariateNormalDiag(self.mean, tf.exp(0.5 * self.log_var))
        return tfd.MixtureSameFamily(tfd.Categorical(logits=self.logits), parts)


@register
class Flow(vr.DistributionPrior):
    """Two couplings over two standard normal values; the networks are layers of Keras."""

    def build(self, input_shape):
        super().build(input_shape)
        self.networks = [keras.layers.Dense(2 * (self.size - 1), dtype="float32") for _ in range(2)]
        for network in self.networks:
            network.build([None, 1])

    def distribution(self):
        swap = tfb.Permute([1, 0])
        steps = [
            tfb.RealNVP(num_masked=1, shift_and_log_scale_fn=self.shift_by(network))
            for network in self.networks
        ]
        base = tfd.MultivariateNormalDiag(tf.zeros(self.event_shape))
        return tfd.TransformedDistribution(base, tfb.Chain([steps[0], swap, steps[1]]))

    def shift_by(self, network):
        def shift_and_log_scale(kept, units, **_):
            shift, log_scale = tf.split(network(kept), 2, axis=-1)
            return shift, tf.tanh(log_scale)

        return shift_and_log_scale


@register
class Diagonal(vr.DistributionBottleneck):
    def distribution(self, z_mean, z_log_var):
        return tfd.Normal(z_mean, tf.exp(0.5 * z_log_var))


@register
class Triangular(vr.DistributionBottleneck):
    """The covariance of `FullCovarianceGaussianBottleneck`, for codes of two values."""

    def distribution(self, z_mean, z_log_var, z_scale_lower):
        lower = tf.pad(z_scale_lower[..., tf.newaxis], [[0, 0], [1, 0], [0, 1]])
        return tfd.MultivariateNormalTriL(z_mean, lower + tf.linalg.diag(tf.exp(0.5 * z_log_var)))


@register
class Joined(Diagonal):
    def distribution(self, z_mean, z_log_var):
        return tfd.Independent(super().distribution(z_mean, z_log_var), 1)


@register
class Fixed(vr.DistributionPrior):
    """The standard normal."""

    def distribution(self):
        return tfd.Normal(tf.zeros(self.event_shape), 1.0)


HEADS = {"z_mean": normal(ROWS, 2), "z_log_var": normal(ROWS, 2)}
LOWER = {"z_scale_lower": normal(ROWS, 1)}
SAME_POSTERIORS = {
    "normal": (Diagonal(2), vr.GaussianBottleneck(2), HEADS),
    "normal, with a prior of theirs": (Diagonal(2, prior=Fixed()), vr.GaussianBottleneck(2), HEADS),
    "joined": (Joined(2), vr.GaussianBottleneck(2), HEADS),
    "full": (Triangular(2), vr.FullCovarianceGaussianBottleneck(2), HEADS | LOWER),
    "map": (
        Diagonal((2, 1, 3)),
        vr.GaussianBottleneck((2, 1, 3)),
        {name: normal(ROWS, 2, 1, 3) for name in HEADS},
    ),
}


@pytest.mark.parametrize("name", SAME_POSTERIORS)
def test_a_posterior_has_densities_divergence_and_code_of_ours(name):
    theirs, ours, written = SAME_POSTERIORS[name]
    found, own = theirs(**written, seed=SEED), ours(**written, seed=SEED)
    assert found.keys() == own.keys()
    joined = (
        vr.sum_over_event(own["kl"]) if own["kl"].shape.rank > found["kl"].shape.rank else own["kl"]
    )
    np.testing.assert_allclose(found["kl"], joined, rtol=1e-4, atol=1e-5)
    z = found["z"]
    wanted = {"log_posterior": ours.log_prob(z, **written), "log_prior": ours.prior_log_prob(z)}
    for key, value in wanted.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=1e-4, err_msg=key)
    np.testing.assert_allclose(theirs.log_prob(z=z, **written), wanted["log_posterior"], rtol=1e-4)
    np.testing.assert_allclose(theirs.prior_log_prob(z), wanted["log_prior"], rtol=1e-4)
    np.testing.assert_allclose(theirs.center(**written), ours.center(written["z_mean"]))


@pytest.mark.parametrize("degrees", [0.5, 1.0, 3.0])
def test_the_code_of_an_undefined_mean_is_the_mode(degrees):
    z_mean = normal(ROWS, 2)
    degrees = tf.fill([ROWS, 1], degrees)
    np.testing.assert_allclose(HeavyTails(2).center(z_mean=z_mean, degrees=degrees), z_mean)


def test_the_code_of_a_mixture_is_its_mean():
    np.testing.assert_allclose(Stuck(2).center(z_mean=normal(ROWS, 2)), tf.zeros([ROWS, 2]))


def test_a_mixture_is_that_of_ours():
    theirs, ours = Mixture(), vr.MixturePrior(3)
    for prior in (theirs, ours):
        prior.build_for((2,))
    values = {variable.name: variable.numpy() for variable in ours.weights}
    values["mean"] = values["mean"] + RANDOM.standard_normal([3, 2])
    for prior in (theirs, ours):
        for variable in prior.weights:
            variable.assign(values[variable.name])
    z = normal(50, 2)
    np.testing.assert_allclose(theirs.log_prob(z), ours.log_prob(z), rtol=1e-4, atol=1e-4)


MODELS = {
    "negative binomial, full covariance, mixture": (
        NegativeBinomial(),
        ["log_count", "logits"],
        lambda: (
            Triangular(2, prior=Mixture()),
            {**dict.fromkeys(HEADS, 2), **dict.fromkeys(LOWER, 1)},
        ),
    ),
    "quantised logistic, flow": (
        QuantisedLogistic(levels=12),
        ["x_mean", "x_log_var"],
        lambda: (vr.GaussianBottleneck(2, prior=Flow()), dict.fromkeys(HEADS, 2)),
    ),
}


# Compiling takes most of the time: the other model is trained with `--soak`.
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.soak] * ("mixture" in name)) for name in MODELS]
)
def test_a_model_of_distributions_is_trained_by_xla_saved_and_loaded(name, tmp_path):
    likelihood, outputs, make = MODELS[name]
    keras.utils.set_random_seed(0)
    bottleneck, heads = make()
    vae = vr.VAE(
        vr.dense_encoder((6,), 2, hidden_units=(), outputs=heads),
        bottleneck,
        vr.dense_decoder((6,), 2, hidden_units=(), outputs=outputs),
        [likelihood, vr.MonteCarloKL()],
    )
    counts = RANDOM.poisson(3.0, (16, 6)).clip(0, 11).astype(np.float32)
    vae.compile(keras.optimizers.Adam(0.01), jit_compile=True)
    before = [variable.numpy() for variable in bottleneck.trainable_variables]
    data = {"inputs": counts / 12.0, "targets": counts}
    losses = vae.fit(data, batch_size=16, epochs=20, verbose=0).history["loss"]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    for old, variable in zip(before, bottleneck.trainable_variables, strict=True):
        assert (old != variable.numpy()).any(), variable.path
    assert len(before) >= 3  # the weights of the prior
    vae.save(tmp_path / "model.keras")  # which loads it, and compares variables and ELBO
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.objective.likelihood == likelihood
    np.testing.assert_array_equal(loaded.sample(3, seed=1), vae.sample(3, seed=1))


# What cannot work.


@register
class OneHot(vr.DistributionBottleneck):
    def distribution(self, z_mean):
        return tfd.OneHotCategorical(logits=z_mean, dtype=tf.float32)


@register
class Stuck(vr.DistributionBottleneck):
    """Samples of a mixture have no gradient."""

    def distribution(self, z_mean):
        weights = tfd.Categorical(logits=tf.zeros([2]))
        means = tf.stack([z_mean, -z_mean], axis=-2)
        return tfd.MixtureSameFamily(weights, tfd.MultivariateNormalDiag(means, tf.ones([2])))


@register
class HeavyTails(vr.DistributionBottleneck):
    """Student's t, whose mean is undefined for one degree of freedom or less."""

    def distribution(self, z_mean, degrees):
        return tfd.StudentT(degrees, z_mean, 1.0)


@register
class TwoCauchy(vr.DistributionBottleneck):
    """A mixture whose library knows a mean, always NaN, and no mode."""

    def distribution(self, z_mean):
        means = tf.stack([z_mean, -z_mean], axis=-2)
        parts = tfd.Independent(tfd.Cauchy(means, 1.0), 1)
        return tfd.MixtureSameFamily(tfd.Categorical(logits=tf.zeros([2])), parts)


@register
class TwoStudents(vr.DistributionBottleneck):
    def distribution(self, z_mean):
        means = tf.stack([z_mean, -z_mean], axis=-2)
        parts = tfd.Independent(tfd.StudentT(1.0, means, 1.0), 1)
        return tfd.MixtureSameFamily(tfd.Categorical(logits=tf.zeros([2])), parts)


def prior_of(made, codes="real numbers"):
    """A prior class of one distribution, without weights."""

    class Given(vr.DistributionPrior):
        of = codes

        def distribution(self):
            return made

    return Given()


@register
class Hidden(vr.DistributionPrior):
    """Its variable is none of Keras."""

    def build(self, input_shape):
        super().build(input_shape)
        self.place = tf.Variable(tf.zeros(self.event_shape), name="place")

    def distribution(self):
        return tfd.Normal(self.place, 1.0)


@register
class Wide(vr.DistributionPrior):
    def distribution(self):
        return tfd.Normal(tf.zeros([5]), 1.0)


class WithoutSpacing(vr.DistributionLikelihood):
    def distribution(self, x_mean):
        return tfd.Independent(tfd.Poisson(log_rate=x_mean), 2)


class Number(vr.DistributionLikelihood):
    def distribution(self, x_mean):
        return x_mean


REFUSED = {
    "not reparameterised": (
        lambda: Stuck(2)(z_mean=normal(ROWS, 2), seed=SEED),
        r"Stuck.distribution returned a MixtureSameFamily, whose samples are not reparam",
    ),
    "discrete posterior": (
        lambda: OneHot(2).log_prob(z=normal(ROWS, 2), z_mean=normal(ROWS, 2)),
        r"OneHot.distribution returned a OneHotCategorical, whose values are discrete, and",
    ),
    "hidden variable": (
        lambda: Diagonal(2, prior=Hidden())(**HEADS, seed=SEED),
        r"Hidden.distribution uses the variable '[^']*place:0', which is not a weight",
    ),
    "shape of a prior": (
        lambda: Diagonal(2, prior=Wide())(**HEADS, seed=SEED),
        r"Wide.distribution .* batch shape \(5,\) and event shape \(\); .* values, \(2,\)",
    ),
    "shape of a likelihood": (
        lambda: OwnNormal()({"targets": COUNTS, "x_mean": COUNTS[:, 0], "x_log_var": COUNTS[:, 0]}),
        r"OwnNormal.distribution .* batch shape \(4, 2\) .* values, \(4, 3, 2\)",
    ),
    "shape of a posterior": (
        lambda: Diagonal(3)(**HEADS, seed=SEED),
        r"Diagonal.distribution .* batch shape \(4, 2\) .* values, \(None, 3\)",
    ),
    "discrete values without spacing": (
        lambda: WithoutSpacing()({"targets": COUNTS, "x_mean": COUNTS}),
        r"WithoutSpacing.distribution returned a Independent, whose .* Set .* spacing = 1.0 for",
    ),
    "no distribution": (
        lambda: Number()({"targets": COUNTS, "x_mean": COUNTS}),
        r"Number.distribution returned a EagerTensor; it must return a distribution",
    ),
    "floats for integers": (
        lambda: OwnCategorical()({"targets": COUNTS, "logits": normal(ROWS, *SHAPE, 3)}),
        r"OwnCategorical.distribution .* of integers, and the targets are float32: give integers",
    ),
    "neither mean nor mode": (
        lambda: WithoutMean().reconstruction(PIXELS),
        r"returned a QuantizedDistribution, .* neither its mean nor its mode: write mean\(self, ",
    ),
    "undefined mean and no mode": (
        lambda: TwoCauchy(2).center(z_mean=normal(ROWS, 2)),
        r"returned a MixtureSameFamily, .* neither its mean nor its mode: write center\(self, ",
    ),
    "undefined for these degrees of freedom": (
        lambda: tf.function(TwoStudents(2).center, autograph=False)(z_mean=normal(ROWS, 2)),
        r"returned a MixtureSameFamily, .* neither its mean nor its mode: write center\(self, ",
    ),
    "no distribution of a bottleneck": (
        lambda: vr.DistributionBottleneck(2),
        r"DistributionBottleneck must define distribution\(self, ...\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_by_name(name):
    make, message = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=message):
        make()


ZEROS, PAIR = tf.zeros([2]), tfd.Categorical(logits=tf.zeros([2]))
BITS_AS_FLOATS = tfd.Bernoulli(ZEROS, dtype=tf.float32)
DISCRETE = [
    tfd.Bernoulli(ZEROS),
    BITS_AS_FLOATS,
    tfd.OneHotCategorical(ZEROS, dtype=tf.float32),
    tfd.Poisson(ZEROS + 1.0),
    tfd.QuantizedDistribution(tfd.Normal(ZEROS, 1.0)),
    tfd.Independent(BITS_AS_FLOATS, 1),
    tfd.Sample(tfd.Bernoulli(0.0, dtype=tf.float32), 2),
    tfd.TransformedDistribution(BITS_AS_FLOATS, tfb.Scale(2.0)),
    tfd.MixtureSameFamily(PAIR, tfd.Independent(tfd.Poisson(tf.ones([2, 2])), 1)),
    tfd.Mixture(PAIR, [tfd.Independent(BITS_AS_FLOATS, 1)] * 2),
]
CONTINUOUS = [
    tfd.Normal(ZEROS, 1.0),
    tfd.Beta(ZEROS + 2.0, 2.0),
    tfd.Dirichlet(ZEROS + 2.0),
    tfd.MixtureSameFamily(PAIR, tfd.MultivariateNormalDiag(tf.zeros([2, 2]))),
    tfd.Mixture(PAIR, [tfd.MultivariateNormalDiag(ZEROS)] * 2),
    tfd.TransformedDistribution(
        tfd.MixtureSameFamily(PAIR, tfd.MultivariateNormalDiag(tf.zeros([2, 2]))), tfb.Scale(2.0)
    ),
]


@pytest.mark.parametrize("made", DISCRETE, ids=lambda made: made.name)
def test_a_discrete_prior_is_one_of_indices(made):
    with pytest.raises(ValueError, match=r"Given.distribution .* whose values are discrete, and"):
        vr.GaussianBottleneck(2, prior=prior_of(made))(**HEADS, seed=SEED)
    of_indices = prior_of(made, "indices of codes")
    of_indices.build_for((2,))
    assert of_indices.log_prob(tf.constant([[0, 1]])).shape == [1]


@pytest.mark.parametrize("made", CONTINUOUS, ids=lambda made: made.name)
def test_a_continuous_prior_is_one_of_real_numbers(made):
    prior = prior_of(made)
    prior.build_for((2,))
    wanted = vr.sum_over_event(made.log_prob([[0.6, 0.4]]))
    np.testing.assert_allclose(prior.log_prob(tf.constant([[0.6, 0.4]])), wanted)


@pytest.mark.parametrize("make", [OwnNormal, Mixture, lambda: Diagonal(2)])
def test_a_library_that_is_missing_is_named(make, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tf_keras" else found(name)
    )
    with pytest.raises(
        ImportError, match=r"^\w+ needs tf-keras: pip install '.*\[probability\]'.$"
    ):
        make()

"""Draws from likelihoods have the density that the likelihood says.

    E p(x|other) / p(x|z) = 1  for x drawn from p(x|z), whatever the other parameters are,

because the ratio turns one density into the other, which integrates to one. With parameters that
are moved one at a time, it fails for draws with another mean, spread or dependence.
"""

import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import vae_research as vr
from vae_research import VAE, Likelihood
from vae_research.randomness import evaluation_key

KEY = evaluation_key(0, 0)
ROWS = 40_000


def table():
    """By name: a likelihood, the parameters of one example, and others that overlap with them."""
    logits = np.array([-1.5, 0.0, 0.4, 2.0])
    means, log_vars = np.array([0.2, 0.9]), np.array([-2.0, -1.0])
    pixel = np.concatenate(  # of two components: logits, means, log scales, coefficients
        [[0.3, -0.2], [-0.4, 0.5], [0.0, 0.3], [0.2, -0.3], np.full(6, -1.5), np.full(6, 0.6)]
    )
    moved_pixels = [pixel + 0.15 * np.eye(20)[2 * part + part % 2] for part in range(10)]
    normal = {"x_mean": means, "x_log_var": log_vars}
    moved = [{"x_mean": means + 0.1}, {"x_log_var": log_vars - 0.15}, {"x_log_var": log_vars + 0.1}]
    around_mean = {"x_mean": means}, [{"x_mean": means + 0.2}, {"x_mean": means - 0.2}]
    return {
        "Bernoulli": (vr.Bernoulli(), {"logits": logits}, [{"logits": logits + 0.3}]),
        "ContinuousBernoulli": (
            vr.ContinuousBernoulli(),
            {"logits": 3.0 * logits},
            [{"logits": 3.0 * logits + 0.5}, {"logits": 2.5 * logits}],
        ),
        "Gaussian": (vr.Gaussian(standard_deviation=0.7), *around_mean),
        "GaussianWithVariance": (vr.GaussianWithVariance(), normal, moved),
        "GaussianWithVariance, bounded": (
            vr.GaussianWithVariance(min_standard_deviation=0.5, max_standard_deviation=2.0),
            normal,
            moved,
        ),
        "Laplace": (vr.Laplace(scale=0.7), *around_mean),
        "Categorical": (
            vr.Categorical(classes=4),
            {"logits": np.stack([logits, -logits])},
            [{"logits": np.stack([logits + 0.3 * np.eye(4)[k], -logits])} for k in range(4)],
        ),
        "Poisson": (
            vr.Poisson(),
            {"x_log_rate": np.array([-1.0, 1.5])},
            [{"x_log_rate": np.array([-0.8, 1.4])}],
        ),
        "DiscretizedLogistic": (vr.DiscretizedLogistic(levels=5), normal, moved),
        "DiscretizedLogisticMixture": (
            vr.DiscretizedLogisticMixture(components=2, levels=6),
            {"x_mixture": pixel[np.newaxis]},
            [{"x_mixture": each[np.newaxis]} for each in moved_pixels],
        ),
    }


def public_likelihoods():
    found = {name: getattr(vr, name) for name in dir(vr)}
    return {
        name
        for name, each in found.items()
        if isinstance(each, type) and issubclass(each, Likelihood)
    }


def test_every_public_likelihood_is_in_the_table():
    made_of_others = {"Likelihood", "DistributionLikelihood", "ProductLikelihood"}
    assert public_likelihoods() - made_of_others == {name.partition(",")[0] for name in table()}


def repeated(parameters):
    return {
        name: tf.constant(np.tile(values, [ROWS] + [1] * np.ndim(values)), tf.float32)
        for name, values in parameters.items()
    }


def mean_ratios(likelihood, parameters, others, drawn):
    """Yields the mean of p(x|other) / p(x|z) - 1 over draws, in standard errors, and the error."""
    log_p = likelihood.log_likelihood(drawn, **repeated(parameters)).numpy()
    for other in others:
        moved = likelihood.log_likelihood(drawn, **repeated(parameters | other)).numpy()
        ratio = np.exp((moved - log_p).astype(np.float64))
        error = ratio.std() / math.sqrt(ROWS)
        yield (ratio.mean() - 1.0) / error, error


@pytest.mark.parametrize("name", table())
def test_draws_have_the_density_of_the_likelihood(name):
    likelihood, parameters, others = table()[name]
    drawn = likelihood.sample(KEY, **repeated(parameters))
    assert drawn.dtype == tf.float32
    low, high = likelihood.support
    assert low <= drawn.numpy().min() and drawn.numpy().max() <= high
    for distance, error in mean_ratios(likelihood, parameters, others, drawn):
        assert abs(distance) < 4.5  # of up to 10 others: beyond it in one of 15 000 seeds
        assert error < 0.01  # another spread or mean would be seen
    assert not np.array_equal(likelihood.sample(KEY + 1, **repeated(parameters)), drawn)


def test_draws_with_another_spread_are_seen():
    likelihood, parameters, others = table()["Gaussian"]
    drawn = likelihood.sample(KEY, **repeated(parameters))
    mutant = parameters["x_mean"] + 1.1 * (drawn - parameters["x_mean"])
    distances = [abs(each) for each, _ in mean_ratios(likelihood, parameters, others, mutant)]
    assert max(distances) > 4.5


def test_channels_of_a_mixture_depend_on_each_other_as_drawn():
    likelihood, parameters, others = table()["DiscretizedLogisticMixture"]
    drawn = likelihood.sample(KEY, **repeated(parameters)).numpy()
    shuffled = drawn.copy()
    shuffled[..., 0] = np.random.default_rng(0).permutation(drawn[..., 0])
    shuffled = tf.constant(shuffled)
    distances = [abs(each) for each, _ in mean_ratios(likelihood, parameters, others, shuffled)]
    assert max(distances) > 4.5


def own_model(likelihood, outputs):
    z = keras.Input((2,), name="z")
    decoder = keras.Model(z, {name: keras.layers.Dense(4)(z) for name in outputs})
    encoder = vr.dense_encoder([4], 2, hidden_units=[3])
    return VAE(encoder, vr.GaussianBottleneck(2), decoder, [likelihood, vr.KLDivergence()])


def test_model_draws_each_array_of_a_product():
    labels = {"targets": "labels", "logits": "label_logits"}
    factors = [vr.Bernoulli(), vr.Bernoulli(rename=labels)]
    model = own_model(vr.ProductLikelihood(factors=factors), ["logits", "label_logits"])
    codes = tf.zeros([500, 2])
    found = model.draw(codes, seed=3)
    assert sorted(found) == ["labels", "targets"]
    # With code 0, all logits are 0 in both: fair coins, of noise of their own.
    for (name, values), other in itertools.product(found.items(), found):
        agree = (values.numpy() == found[other].numpy()).mean()
        assert values.shape == [500, 4]
        assert agree == 1.0 if name == other else 0.4 < agree < 0.6
    again, others = model.draw(codes, seed=3), model.draw(codes, seed=4)
    np.testing.assert_array_equal(found["targets"], again["targets"])
    assert not np.array_equal(found["targets"], others["targets"])


def test_likelihood_without_a_sampler_is_named():
    class Cauchy(Likelihood):
        def log_likelihood(self, targets, x_mean):
            return -tf.reduce_sum(tf.math.log1p(tf.square(targets - x_mean)), axis=1)

        def mean(self, x_mean):
            return x_mean

    model = own_model(Cauchy(), ["x_mean"])
    with pytest.raises(TypeError, match=r"Cauchy must define sample\(self, seed, ...\)"):
        model.draw(tf.zeros([2, 2]))

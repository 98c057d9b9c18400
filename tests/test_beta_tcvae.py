"""The three terms of experiments/beta_tcvae.py against brute force over a whole data set.

The model is the experiment's own, trained on 200 images without a penalty on the total correlation,
so that all three terms are far from zero. Brute force is q(z) = 1/N sum_j q(z|x_j) over all N
images, in float64, at the same z: what is left is the error of an estimate from a batch.
"""

import math

import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf
from keras import ops

import vae_research as vr
from experiments import beta_tcvae
from experiments.beta_tcvae import AggregatePosterior

pytestmark = pytest.mark.slow

COUNT, LATENT = 200, 3
TERMS = ("mutual_information", "total_correlation", "dimension_wise_kl")
EXACT = 1e-4  # nats: sums of 200 densities in float32
SIZES = (20, 100)


@pytest.fixture(scope="module")
def reports():
    """Three evaluations of all images as one batch, each with its noise: named values."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=[COUNT, LATENT]) @ rng.normal(scale=2.0, size=[LATENT, 16])
    images = (rng.random([COUNT, 16]) < scipy.special.expit(logits)).astype(np.float32)
    data = vr.Data.from_arrays(images, images[:1], images[:1])
    model = beta_tcvae.build(vr.configure(beta_tcvae, latent_dim=LATENT, beta=0.0), data)
    model.compile(keras.optimizers.Adam(0.01), steps_per_execution=200)
    # The images over and over: many steps in one epoch, because an epoch costs more than a step.
    often = vr.Data.from_arrays(np.tile(images, [100, 1]), images[:1], images[:1])
    model.fit(often.train.on_device(COUNT // 2, seed=0), verbose=0)
    found = [model.report(images, seed=model.evaluation_key(place)) for place in range(3)]
    return [
        {name: value.numpy() for name, value in (tensors | report.values).items()}
        for tensors, report in found
    ]


def exact(values):
    """The three terms for the z of a report; and for each z log q(z), the sum of log q(z_d)."""
    z, mean, log_var = (values[name].astype(np.float64) for name in ("z", "z_mean", "z_log_var"))
    pairs = -0.5 * ((z[:, None] - mean) ** 2 / np.exp(log_var) + log_var + math.log(2.0 * math.pi))
    joint = scipy.special.logsumexp(pairs.sum(axis=2), axis=1) - math.log(COUNT)
    product = (scipy.special.logsumexp(pairs, axis=1) - math.log(COUNT)).sum(axis=1)
    log_posterior = np.diagonal(pairs.sum(axis=2))
    log_prior = -0.5 * (z**2 + math.log(2.0 * math.pi)).sum(axis=1)
    ratios = log_posterior - joint, joint - product, product - log_prior
    return dict(zip(TERMS, [ratio.mean() for ratio in ratios], strict=True)), joint, product


def deviations(module, values, size, batches=100):
    """Log-densities by a module from random batches, minus the exact ones: `[batches, size, 2]`.

    The two are log q(z) and the sum of log q(z_d).
    """
    _, joint, product = exact(values)
    rng = np.random.default_rng(1)
    rows = np.stack([rng.permutation(COUNT)[:size] for _ in range(batches)])
    inputs = tuple(values[name][rows] for name in ("z", "z_mean", "z_log_var"))

    @tf.function(autograph=False)
    def densities(*inputs):
        dtypes = {"log_q_z": tf.float32, "log_q_z_product": tf.float32}
        return tf.map_fn(lambda batch: module.call(*batch), inputs, fn_output_signature=dtypes)

    found = densities(*inputs)
    return np.stack(
        [found["log_q_z"] - joint[rows], found["log_q_z_product"] - product[rows]], axis=-1
    )


def test_terms_of_the_whole_data_set_are_exact(reports):
    for values in reports:
        expected, joint, product = exact(values)
        np.testing.assert_allclose(values["log_q_z"], joint, atol=EXACT)
        np.testing.assert_allclose(values["log_q_z_product"], product, atol=EXACT)
        for name in TERMS:
            assert values[name] == pytest.approx(expected[name], abs=EXACT), name
        # The test says something: no term is near zero, nor the information near its bound log N.
        assert 1.0 < expected["mutual_information"] < math.log(COUNT) - 0.5
        assert expected["total_correlation"] > 0.1
        assert expected["dimension_wise_kl"] > 0.01


def bias_of_density(found):
    """The mean of estimated over exact q(z), minus 1, and its standard error."""
    ratios = np.exp(found[:, :, 0]).mean(axis=1)
    return ratios.mean() - 1.0, ratios.std(ddof=1) / math.sqrt(len(ratios))


def test_densities_from_a_batch_have_no_bias_and_terms_a_known_one(reports):
    found = [deviations(AggregatePosterior(COUNT), reports[0], size) for size in SIZES]
    for bias, error in map(bias_of_density, found):
        assert error < 0.05
        assert abs(bias) < 4.0 * error
    # The logarithm of an estimate without bias is too low (Jensen's inequality). Total correlation
    # is a difference of two such logarithms.
    log_q, log_product = np.transpose([each.mean(axis=(0, 1)) for each in found])
    information, correlation, dimension_wise = -log_q, log_q - log_product, log_product
    assert information[0] > 2.0 * information[1] > 0.0
    assert dimension_wise[0] < 2.0 * dimension_wise[1] < 0.0
    assert abs(correlation[0]) > 2.0 * abs(correlation[1])
    assert information[1] < 0.1


@pytest.mark.parametrize("size", [1, 2, 20, COUNT])
def test_information_is_never_above_log_n(reports, size):
    values = {name: value[:size] for name, value in reports[0].items() if value.ndim == 2}
    module = AggregatePosterior(COUNT)
    found = module(values["z"], values["z_mean"], values["z_log_var"])["log_q_z"]
    information = reports[0]["log_posterior"][:size] - found
    assert np.max(information) <= math.log(COUNT) + EXACT


class WeightInEveryDimension(AggregatePosterior):
    """The log weight is added to each dimension, and so the sum over them has it several times."""

    def call(self, z, z_mean, z_log_var):
        pairs = vr.normal_log_density(z[:, None], z_mean[None], z_log_var[None])
        pairs += self.log_weights(z.shape[0])[:, :, None]
        product = ops.sum(ops.logsumexp(pairs, axis=1), axis=1)
        return {
            "log_q_z": ops.logsumexp(ops.sum(pairs, axis=2), axis=1),
            "log_q_z_product": product,
        }


class WrongColumn(AggregatePosterior):
    """The stratified weights of public code, whose stride is one short of the diagonal's."""

    def log_weights(self, rows):
        rows = int(rows)
        others = rows - 1
        weights = np.full(rows * rows, 1.0 / others, np.float32)
        weights[:: others + 1] = 1.0 / self.data_size
        weights[1 :: others + 1] = (self.data_size - others) / (self.data_size * others)
        return np.log(weights.reshape(rows, rows))


@pytest.mark.parametrize("mutant", [WeightInEveryDimension, WrongColumn])
def test_wrong_weights_have_a_bias(reports, mutant):
    bias, error = bias_of_density(deviations(mutant(COUNT), reports[0], SIZES[0]))
    assert abs(bias) > 10.0 * error


def test_a_weight_in_every_dimension_gives_impossible_terms(reports):
    values = reports[0]
    densities = WeightInEveryDimension(COUNT)(values["z"], values["z_mean"], values["z_log_var"])
    joint, product = densities["log_q_z"], densities["log_q_z_product"]
    assert np.mean(values["log_posterior"] - joint) > math.log(COUNT)
    assert np.mean(joint - product) < 0.0

"""Priors: each is a distribution, and its samples are from it."""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

import vae_research as vr
from tests.test_distributions import Flow
from vae_research.randomness import evaluation_key
from vae_research.selfcheck.densities import (
    CELLS_TOLERANCE,
    DRAWS,
    MASS_TOLERANCE,
    MOMENTS_TOLERANCE,
    Grid,
)


def vamp():
    prior = vr.VampPrior((2,), 4, low=-2.0, high=2.0)
    prior.use_encoder(lambda inputs: {"z_mean": inputs, "z_log_var": 0.3 * inputs - 0.5})
    return prior


def whitened():
    prior = vr.WhitenedPrior(vr.MixturePrior(2))
    prior.build_for((2,))
    random = np.random.default_rng(5)
    prior.adapt(random.normal(size=(50, 2)) @ [[1.5, 0.5], [0.0, 0.4]] + [1.0, -2.0], 0)
    return prior


PRIORS = {
    "standard": vr.StandardNormalPrior,
    "mixture": lambda: vr.MixturePrior(3),
    "vamp": vamp,
    "flow": lambda: vr.RealNVPPrior(3, hidden_units=(8,)),
    "whitened": whitened,
    "library": Flow,
}


@pytest.fixture(params=PRIORS)
def prior(request):
    """Of codes with two values, with variables as they may be after training."""
    keras.utils.set_random_seed(0)
    found = PRIORS[request.param]()
    found.build_for((2,))
    random = np.random.default_rng(3)
    for variable in found.trainable_variables:
        variable.assign(variable + 0.4 * random.standard_normal(variable.shape))
    return found


def test_the_density_integrates_to_one_and_samples_are_drawn_from_it(prior):
    """On a grid: the integral, mean and second moments, and how often each cell is hit."""
    codes = prior.sample(DRAWS, evaluation_key(1, 0)).numpy()
    grid = Grid.of(prior.of, 2, lambda: codes)
    mass = grid.mass(prior.log_prob)
    assert abs(mass.sum() - 1.0) < MASS_TOLERANCE
    assert grid.moments_apart(mass) < MOMENTS_TOLERANCE
    assert grid.cells_apart(mass) < CELLS_TOLERANCE
    other = prior.sample(10, evaluation_key(2, 0))
    assert np.abs(other - codes[:10]).min() > 0.0


def test_a_component_of_a_vamp_prior_is_the_posterior_of_its_input():
    prior = vamp()
    prior.build_for((2,))
    inputs = np.array([[-1.0, 0.0], [0.5, 2.0], [1.0, 1.0], [3.0, -3.0]], np.float32)
    prior.inputs_of_components.assign(inputs)
    z = np.array([[0.3, -0.2]], np.float32)
    inputs = inputs.clip(-2, 2)
    density = vr.normal_log_density(z, inputs, 0.3 * inputs - 0.5).numpy().sum(axis=1)
    np.testing.assert_allclose(prior.log_prob(z), [np.log(np.exp(density).mean())], rtol=1e-6)


@pytest.mark.parametrize("make", PRIORS.values(), ids=PRIORS)
def test_a_prior_is_float32_under_every_policy(make):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        prior = make()
        prior.build_for((2,))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    samples = prior.sample(3, evaluation_key(0, 0))
    assert samples.dtype == prior.log_prob(samples).dtype == tf.float32


class WithMixture(vr.GaussianBottleneck):
    default_prior = vr.MixturePrior


def test_a_prior_of_the_default_class_keeps_its_settings():
    made = WithMixture(2, prior=vr.MixturePrior(3))
    assert WithMixture.from_config(made.get_config()).prior.components == 3
    assert "prior" not in WithMixture(2).get_config()


def test_a_prior_does_not_keep_its_model():
    vae = model(vr.VampPrior((4,), 3), vr.MonteCarloKL())
    prior, gone = vae.bottleneck.prior, weakref.ref(vae)
    del vae
    gc.collect()
    assert gone() is None
    with pytest.raises(ValueError, match="needs the encoder of a model"):
        prior.sample(1, tf.constant([0, 0]))


def test_a_flow_begins_as_the_standard_normal():
    flow, wanted = vr.RealNVPPrior(2), vr.StandardNormalPrior()
    for prior in (flow, wanted):
        prior.build_for((3,))
    z = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    np.testing.assert_allclose(flow.log_prob(z), wanted.log_prob(z), rtol=1e-6)


def model(prior, term, data_shape=(4,)):
    return vr.VAE(
        vr.dense_encoder(data_shape, 2, hidden_units=(4,)),
        vr.GaussianBottleneck(2, prior=prior),
        vr.dense_decoder(data_shape, 2, hidden_units=(4,)),
        [vr.Bernoulli(), term],
    )


ROWS = (np.random.default_rng(0).random((12, 4)) > 0.5).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: vr.MixturePrior(3),
        lambda: vr.VampPrior((4,), 3, examples=ROWS[:3]),
        lambda: vr.RealNVPPrior(2, hidden_units=(4,)),
    ],
)
def test_a_prior_is_trained_and_saved_with_its_model(make, tmp_path):
    vae = model(make(), vr.MonteCarloKL())
    vae.compile(keras.optimizers.Adam(0.05), jit_compile=False)
    vae.fit(ROWS, batch_size=6, epochs=1, verbose=0)
    before = [variable.numpy() for variable in vae.bottleneck.prior.trainable_variables]
    vae.fit(ROWS, batch_size=6, epochs=1, verbose=0)
    assert before
    for value, variable in zip(before, vae.bottleneck.prior.trainable_variables, strict=True):
        assert np.any(value != variable)
    vae.save(tmp_path / "model.keras")  # which compares the loaded model to the last bit
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.sample(3), vae.sample(3))
    assert vr.estimate(vae, ROWS, num_samples=2)["elbo"].value < 0.0


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"no divergence in closed form: use MonteCarloKL\(\)"):
        model(vr.MixturePrior(2), vr.KLDivergence()).report(ROWS)
    with pytest.raises(ValueError, match=r"prior must be a Prior, .* got 'vamp'"):
        vr.GaussianBottleneck(2, prior="vamp")
    prior = vr.MixturePrior(2)
    vr.GaussianBottleneck(2, prior=prior)
    with pytest.raises(
        ValueError, match=r"prior of codes of shape \(2,\), and cannot be .* \(3,\)"
    ):
        vr.GaussianBottleneck(3, prior=prior)
    with pytest.raises(ValueError, match="codes of two or more values"):
        vr.GaussianBottleneck(1, prior=vr.RealNVPPrior())
    with pytest.raises(ValueError, match=r"examples have shape \(2, 4\); \(3, 4\) is needed"):
        vr.VampPrior((4,), 3, examples=ROWS[:2])
    with pytest.raises(ValueError, match="needs the encoder of a model"):
        vr.GaussianBottleneck(2, prior=vr.VampPrior((4,), 3)).sample_prior(1, tf.constant([0, 0]))

"""The layer that draws z: its noise is a function of the seed and the training step alone."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tests.proofs import SOAK
from vae_research import (
    VAE,
    AddLossModel,
    Bernoulli,
    GaussianBottleneck,
    KLDivergence,
    SamplingLayer,
    dense_decoder,
    dense_encoder,
)
from vae_research.randomness import training_key

SHAPE, LATENT = (3, 2, 1), 2
IMAGES = np.random.default_rng(0).random((5, *SHAPE)).astype("float32")
MEAN = np.array([[0.5, -1.0], [2.0, 0.0], [0.0, 0.1]], "float32")
LOG_VAR = np.array([[0.0, -2.0], [1.0, -8.0], [0.3, 0.0]], "float32")


def networks(*between):
    units = {"hidden_units": (4,)}
    return dense_encoder(SHAPE, LATENT, **units), *between, dense_decoder(SHAPE, LATENT, **units)


def sample(seed=0, counter=0, training=True):
    layer = SamplingLayer(seed)
    layer.counter.assign(counter)
    return layer(MEAN, LOG_VAR, training=training).numpy()


@pytest.mark.parametrize(("seed", "step"), [(0, 0), (5, 7), (2**32 - 1, 123456)])
def test_noise_is_that_of_a_vae_at_this_step(seed, step):
    terms = [Bernoulli(), KLDivergence()]
    vae = VAE(*networks(GaussianBottleneck(LATENT)), terms, seed=seed)
    for training, key in ((True, training_key(seed, step)), (False, vae.evaluation_key(0))):
        tensors = vae.forward(IMAGES, training=training, seed=key)
        layer = SamplingLayer(seed)
        layer.counter.assign(step)
        z = layer(tensors["z_mean"], tensors["z_log_var"], training=training)
        np.testing.assert_allclose(z, tensors["z"], rtol=1e-6)


def test_noise_depends_on_seed_and_step_and_on_nothing_else():
    np.testing.assert_array_equal(sample(5, 7), sample(5, 7))
    different = [sample(seed, step) for seed in (0, 1, 5) for step in (0, 1, 7)]
    for index, one in enumerate(different):
        assert all(np.abs(one - other).max() > 0.01 for other in different[:index])


def test_noise_of_evaluations_is_always_the_same_and_not_that_of_training():
    evaluated = sample(5, 0, training=False)
    np.testing.assert_array_equal(sample(5, 7, training=False), evaluated)
    assert np.abs(sample(6, 0, training=False) - evaluated).max() > 0.01
    assert np.abs(sample(5, 0) - evaluated).max() > 0.01


def test_sample_has_the_mean_and_the_standard_deviation_that_it_is_given():
    rows = 40_000
    mean, deviation = np.array([1.5, -3.0]), np.array([2.0, 0.1])
    log_var = np.tile(np.float32(2 * np.log(deviation)), [rows, 1])
    z = SamplingLayer(3)(np.tile(np.float32(mean), [rows, 1]), log_var, training=True).numpy()
    # Four standard errors: s / sqrt(n) of a mean, s / sqrt(2 n) of a standard deviation.
    assert np.all(np.abs(z.mean(axis=0) - mean) < 4 * deviation / np.sqrt(rows))
    assert np.all(np.abs(z.std(axis=0) - deviation) < 4 * deviation / np.sqrt(2 * rows))


@pytest.mark.parametrize("seed", [-1, 2**32, True, 1.5, "1", None])
def test_bad_seed_is_refused(seed):
    for make in (SamplingLayer, lambda seed: AddLossModel(*networks(), 1.0, seed=seed)):
        with pytest.raises(ValueError, match="seed must be an integer from 0 to 4294967295, got"):
            make(seed)


@pytest.mark.parametrize("training", [False, True])
def test_noise_is_the_same_when_compiled(training):
    expected = sample(5, 7, training)
    for jit_compile in (False, True):
        layer = SamplingLayer(5)
        layer.counter.assign(7)
        compiled = tf.function(layer, jit_compile=jit_compile)
        z = compiled(tf.constant(MEAN), tf.constant(LOG_VAR), training=training)
        np.testing.assert_allclose(z, expected, rtol=1e-5, atol=1e-6)
        assert int(layer.counter) == 7 + training


# Each place and each mode; all with all has nothing more to show.
MODES = {"eager": {"run_eagerly": True}, "graph": {"jit_compile": False}}
MODES["xla"] = {"jit_compile": True}
CASES = [("top", "graph"), ("encoder", "eager"), ("model", "xla")]
CASES = list(itertools.product(("top", "encoder", "model"), MODES)) if SOAK else CASES


@pytest.mark.slow
@pytest.mark.parametrize(("place", "mode"), CASES)
def test_counter_counts_training_steps_and_nothing_else(formulate, place, mode):
    formulation = formulate(place, *networks(), 1.0).compile("sgd", **MODES[mode])
    model, counter = formulation.model, formulation.sampling.counter
    x = IMAGES[:4]
    arrays = (x, x) if place == "encoder" else (x,)
    assert int(counter) == 0
    formulation.fit(x, batch_size=2, epochs=2, validation_data=arrays)
    assert int(counter) == 4 == int(model.optimizer.iterations)
    model.evaluate(*arrays, batch_size=2, verbose=0)
    model.predict(x, batch_size=2, verbose=0)
    model(x)
    assert int(counter) == 4
    model.train_on_batch(x[:2], x[:2])
    assert int(counter) == 5

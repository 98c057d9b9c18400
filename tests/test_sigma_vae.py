"""The two variances of experiments/sigma_vae.py, and a model in which a module writes one.

`MOMENTUM` and the first variance of 1 are the experiment's. Models run eagerly on 32 small images.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import vae_research as vr
from experiments import sigma_vae
from vae_research import runs
from vae_research.runs.session.building import build_model

PIXELS, MOMENTUM = 16, 0.95
IMAGES = np.random.default_rng(0).random((3, 32, 4, 4), dtype=np.float32)
DATA = vr.Data.from_arrays(*IMAGES)
TRAIN, VALIDATION = DATA.train.prepare(), DATA.validation.prepare()
ENOUGH = 1e-5


def build(variance, learning_rate=0.0):
    keras.utils.set_random_seed(1)
    model = sigma_vae.build(vr.configure(sigma_vae, latent_dim=2, variance=variance), DATA)
    model.compile(keras.optimizers.SGD(learning_rate), run_eagerly=True)
    return model


def negative_log_likelihood(targets, means, variance):
    """The mean over examples, in float64."""
    squares = (np.asarray(targets, np.float64) - np.asarray(means, np.float64)) ** 2 / variance
    return 0.5 * (squares + np.log(2.0 * np.pi * variance)).sum(axis=(1, 2, 3)).mean()


def variance_of(tensors):
    return float(np.exp(tensors["x_log_var"]).squeeze())


def squared_error(targets, tensors):
    return ((np.asarray(targets) - tensors["x_mean"].numpy()) ** 2).mean()


@pytest.mark.slow
def test_the_optimal_variance_is_fitted_in_training_and_held_in_evaluation():
    model = build("optimal")
    (module,) = model.further_modules
    held = 1.0
    for batch in np.split(TRAIN, 4):
        tensors, report = model.report(batch, training=True, seed=model.step_key())
        error = squared_error(batch, tensors)
        assert variance_of(tensors) == pytest.approx(error, rel=ENOUGH)
        # The likelihood of an optimal variance: every squared error over it is 1 on average.
        expected = 0.5 * PIXELS * (1.0 + np.log(2.0 * np.pi * error))
        assert report.values["reconstruction"].numpy().mean() == pytest.approx(expected, rel=ENOUGH)
        held = MOMENTUM * held + (1.0 - MOMENTUM) * error
        assert float(module.variance.value) == pytest.approx(held, rel=ENOUGH)

    figures = model.evaluate(VALIDATION, batch_size=32, verbose=0, return_dict=True)
    tensors = model.forward(VALIDATION)
    assert variance_of(tensors) == pytest.approx(held, rel=ENOUGH)
    means = tensors["x_mean"]
    expected = negative_log_likelihood(VALIDATION, means, held)
    assert figures["reconstruction"] == pytest.approx(expected, rel=ENOUGH)
    fitted = negative_log_likelihood(VALIDATION, means, squared_error(VALIDATION, tensors))
    assert fitted < expected - 1.0  # what would be reported if it were fitted to these targets
    tested = vr.estimate(model, VALIDATION, num_samples=1)["reconstruction"].value
    assert tested == pytest.approx(expected, rel=ENOUGH)
    assert variance_of(model.forward(VALIDATION + 1.0)) == pytest.approx(held, rel=ENOUGH)
    assert float(module.variance.value) == pytest.approx(held, rel=ENOUGH)


def test_the_gradient_by_the_optimal_variance_is_zero():
    # With the variance inside of the gradient, too, the loss is pixels / 2 * log(squared error).
    model = build("optimal")
    weights = model.decoder.trainable_variables
    with tf.GradientTape(persistent=True) as tape:
        tensors, report = model.report(TRAIN, training=True)
        loss = tf.reduce_mean(report.values["reconstruction"])
        error = tf.reduce_mean(tf.square(TRAIN - tensors["x_mean"]))
        whole = 0.5 * PIXELS * tf.math.log(error)
    for found, expected in zip(
        tape.gradient(loss, weights), tape.gradient(whole, weights), strict=True
    ):
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_the_learned_variance_has_the_gradient_of_the_likelihood():
    model = build("learned")
    (module,) = model.further_modules
    with tf.GradientTape() as tape:
        tensors, report = model.report(TRAIN, training=True)
        loss = tf.reduce_mean(report.values["reconstruction"])
    # d/dv of pixels / 2 * (error / exp(v) + v), at v = 0.
    expected = 0.5 * PIXELS * (1.0 - squared_error(TRAIN, tensors))
    assert float(tape.gradient(loss, module.log_var.value)) == pytest.approx(expected, rel=1e-4)
    assert any(module.log_var is variable for variable in model.trainable_variables)


@pytest.mark.parametrize("variance", ["learned", "optimal"])
def test_what_needs_only_the_mean_needs_no_targets(variance):
    model = build(variance)
    z = np.zeros((3, 2), np.float32)
    means = model.decoder(z)["x_mean"].numpy()
    np.testing.assert_allclose(model.decode(z), means, rtol=ENOUGH)
    np.testing.assert_allclose(model.decode(model.encode(TRAIN)), model.reconstruct(TRAIN))
    np.testing.assert_array_equal(model(TRAIN), model.reconstruct(TRAIN))
    assert model.sample(5).shape == (5, 4, 4, 1)


@pytest.mark.slow
@pytest.mark.parametrize("variance", ["learned", "optimal"])
def test_the_likelihood_of_given_codes_has_the_variance_of_the_module(variance):
    model = build(variance)
    model.report(TRAIN, training=True)
    (module,) = model.further_modules
    if variance == "learned":
        module.log_var.assign(0.7)
        value = np.exp(0.7)
    else:
        value = float(module.variance.value)
        assert value < 0.999  # no longer the first one
    z = np.random.default_rng(1).normal(size=(32, 2)).astype(np.float32)
    found = model.log_likelihood(model.infer(TRAIN), z)
    expected = negative_log_likelihood(TRAIN, model.decode(z), value)
    assert -np.mean(found) == pytest.approx(expected, rel=ENOUGH)


@pytest.mark.slow
def test_a_model_with_such_a_variance_is_exported_and_loaded(tmp_path):
    model = build("optimal", learning_rate=0.1)
    model.fit(TRAIN, batch_size=16, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    figures = [
        each.evaluate(VALIDATION, verbose=0, return_dict=True)["elbo"] for each in (model, loaded)
    ]
    assert figures[0] == figures[1]
    signature = [tf.TensorSpec([None, 4, 4, 1])]
    model.export(str(tmp_path / "exported"), input_signature=signature, verbose=False)
    exported = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(exported.serve(TRAIN), model.reconstruct(TRAIN), rtol=1e-4)


def test_a_run_refuses_a_density_of_pixels_that_are_drawn(tmp_path):
    data = vr.Data.from_arrays(np.rint(TRAIN), binarize="static")
    with pytest.raises(runs.UsageError, match="Add --binarize=none"):
        runs.train(sigma_vae.build, data=data, run_dir=tmp_path / "run", latent_dim=2)
    assert not (tmp_path / "run").exists()
    # So does whoever only builds the model, such as the --check of a sweep.
    config = vr.configure(sigma_vae, latent_dim=2, batch_size=8)
    with pytest.raises(runs.UsageError, match="--binarize=static makes 0 or 1"):
        build_model(sigma_vae.build, config, data)

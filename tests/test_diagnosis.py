"""Diagnoses on a latent space: each on a model that was made to be so, none on healthy ones."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import vae_research as vr
from tests.proofs import SOAK
from tests.traced import as_new
from vae_research import (
    VAE,
    Bernoulli,
    Cyclical,
    DeterministicBottleneck,
    GaussianBottleneck,
    KLDivergence,
    Latents,
    LinearWarmup,
    dense_decoder,
    dense_encoder,
    diagnose,
    mutual_information,
)
from vae_research.callbacks.inference import Inference
from vae_research.evaluation.diagnosis import (
    collapse_in_training,
    information_of_densities,
    permuted_code_gap,
)
from vae_research.evaluation.estimates import Estimate

SHAPE = (6, 6, 1)


def stripes(count, seed=0):
    """Images that say where they are: a bright row at one of six heights, with other brightness."""
    random = np.random.default_rng(seed)
    images = np.full([count, *SHAPE], 0.05)
    images[np.arange(count), random.integers(0, 6, count)] = random.uniform(
        0.6, 0.95, [count, 1, 1]
    )
    return (random.random(images.shape) < images).astype("float32")


TRAIN, VALIDATION = stripes(2000), stripes(300, seed=1)


def make(
    *,
    latent=2,
    weight=1.0,
    seed=0,
    learning_rate=3e-3,
    bottleneck=GaussianBottleneck,
    run_eagerly=False,
):
    keras.utils.set_random_seed(seed)
    outputs = {} if bottleneck is GaussianBottleneck else {"outputs": ("z_mean",)}
    terms = [Bernoulli()] if outputs else [Bernoulli(), KLDivergence(weight=weight)]
    vae = VAE(
        dense_encoder(SHAPE, latent, hidden_units=(32,), **outputs),
        bottleneck(latent),
        dense_decoder(SHAPE, latent, hidden_units=(32,)),
        terms,
        seed=seed,
    )
    # XLA starts slowly.
    vae.compile(keras.optimizers.Adam(learning_rate), jit_compile=False, run_eagerly=run_eagerly)
    return vae


class EveryEpoch(keras.callbacks.Callback):
    """Keeps the diagnoses of all epochs."""

    def __init__(self, latents):
        super().__init__()
        self.latents = latents
        self.found = []

    def on_epoch_end(self, epoch, logs=None):
        self.found.append([diagnosis.name for diagnosis in self.latents.diagnoses])


def diagnoses(model, folder, *, epochs=1, **options):
    """Returns the names of the diagnoses after each epoch, and those after training."""
    latents = Latents(folder, VALIDATION)
    every = EveryEpoch(latents)
    model.fit(
        TRAIN,
        epochs=epochs,
        validation_data=VALIDATION,
        callbacks=[latents, every],
        verbose=0,
        **{"batch_size": 50, **options},
    )
    return every.found, [diagnosis.name for diagnosis in latents.diagnoses]


# A model of each kind.


@pytest.mark.slow
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 10))]
)
def test_healthy_runs_are_healthy_after_every_epoch(seed, tmp_path):
    epochs = 4 if SOAK else 2
    found, last = diagnoses(make(seed=seed), tmp_path, epochs=epochs)
    assert found == [["healthy"]] * epochs
    assert last == ["healthy"]


@pytest.mark.slow
def test_a_healthy_autoencoder_is_healthy_whatever_the_scale_of_its_codes(tmp_path):
    model = make(bottleneck=DeterministicBottleneck)
    _, last = diagnoses(model, tmp_path, epochs=2)
    assert last == ["healthy"]
    encoder, decoder = model.encoder.layers[-1], model.decoder.layers[1]
    encoder.set_weights([weights * 1e-3 for weights in encoder.get_weights()])
    kernel, bias = decoder.get_weights()
    decoder.set_weights([kernel * 1e3, bias])
    model.optimizer.learning_rate = 0.0
    assert diagnoses(model, tmp_path)[1] == ["healthy"]


def make_still():
    """A model that was trained for a while; what follows does not change it any more."""
    model = make()
    model.fit(TRAIN, batch_size=50, epochs=4, verbose=0)
    model.optimizer.learning_rate = 0.0
    return model


def silence(model, dimensions):
    """Has the encoder say nothing about some dimensions: their posterior is the prior."""
    for name in ("z_mean", "z_log_var"):
        head = model.encoder.get_layer(name)
        kernel, bias = head.get_weights()
        kernel[:, dimensions], bias[dimensions] = 0.0, 0.0
        head.set_weights([kernel, bias])


@pytest.mark.slow
def test_dead_dimensions(tmp_path):
    model = as_new(make_still)
    silence(model, [0])
    latents = Latents(tmp_path, VALIDATION)
    model.fit(TRAIN[:50], verbose=0, callbacks=[latents])
    (diagnosis,) = latents.diagnoses
    assert diagnosis.name == "dead dimensions"
    assert diagnosis.reason == "1 of 2 are not in use: 0."


@pytest.mark.slow
def test_posterior_collapse_of_an_encoder_that_says_nothing(tmp_path):
    model = as_new(make_still)
    silence(model, [0, 1])
    assert diagnoses(model, tmp_path)[1] == ["posterior collapse"]


@pytest.mark.slow
def test_posterior_collapse_of_a_model_that_was_trained_into_it(tmp_path):
    assert diagnoses(make(weight=50.0), tmp_path, epochs=4)[1] == ["posterior collapse"]


@pytest.mark.slow
def test_decoder_that_ignores_z(tmp_path):
    model = as_new(make_still)
    first = model.decoder.layers[1]
    kernel, bias = first.get_weights()
    first.set_weights([np.zeros_like(kernel), bias])
    assert diagnoses(model, tmp_path)[1] == ["decoder ignores z"]


def warming_up(weight):
    """A model that was trained, and now has a schedule."""
    model = make(weight=weight, run_eagerly=True)
    model.set_weights(as_new(make_still).get_weights())
    return model


FOUR_STEPS = {"epochs": 2, "batch_size": len(TRAIN) // 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (LinearWarmup(start=0.2, steps=5), "warm-up never ended"),
        (LinearWarmup(start=0.2, epochs=2), "healthy"),
        # Fell to 0.2 at step 3, where the second cycle begins.
        (Cyclical(start=0.2, steps=3, cycles=2), "warm-up never ended"),
        *(
            [
                (LinearWarmup(start=0.2, steps=4), "healthy"),
                (LinearWarmup(start=1.0, peak=0.5, steps=1000), "healthy"),  # it may be lowered
                # Stays at its peak from step 3.3 on until 6.
                (Cyclical(start=0.2, steps=3, cycles=2, rising=0.1), "healthy"),
            ]
            if SOAK
            else []
        ),
    ],
)
def test_warm_up_that_never_ends_is_told_from_the_first_epoch_on(weight, expected, tmp_path):
    found, last = diagnoses(warming_up(weight), tmp_path, **FOUR_STEPS)
    assert found == [[expected]] * 2
    assert last == [expected]


@pytest.mark.slow
def test_warm_up_that_would_have_ended_had_training_not_been_stopped(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    latents = Latents(tmp_path, VALIDATION)
    model = warming_up(LinearWarmup(start=0.2, steps=4))
    model.fit(TRAIN, **FOUR_STEPS, verbose=0, callbacks=[latents, Stop()])
    (diagnosis,) = latents.diagnoses
    assert diagnosis.name == "warm-up never ended"
    assert "ends at step 2 with weight 0.6 of 'kl', which reaches 1 at step 4" in diagnosis.reason


# The diagnosis itself.


def cost(value, error=0.0):
    return Estimate(value, error, 100)


@pytest.mark.parametrize(
    ("variances", "found", "expected"),
    [
        ([1.0, 0.02], cost(10.0), ["healthy"]),
        ([1.0, 0.01], cost(10.0), ["dead dimensions"]),
        ([0.01, 0.0], cost(10.0), ["posterior collapse"]),
        ([0.01, 0.0], cost(0.0), ["posterior collapse"]),  # nothing is there to be ignored
        ([1.0, 1.0], cost(0.09), ["decoder ignores z"]),
        ([1.0, 1.0], cost(0.11), ["healthy"]),
        ([1.0, 1.0], cost(0.05, 0.03), ["healthy"]),  # nobody knows
        ([1.0, 1.0], cost(0.03, 0.03), ["decoder ignores z"]),
        ([1.0, 1.0], Estimate(0.0, None, 1), ["decoder ignores z"]),
        ([1.0, 0.0], cost(0.0), ["dead dimensions", "decoder ignores z"]),
    ],
)
def test_thresholds(variances, found, expected):
    assert [diagnosis.name for diagnosis in diagnose(np.array(variances), found)] == expected


def test_codes_without_a_prior_are_compared_with_the_widest():
    variances = np.array([5e-7, 1e-4, 2e-6, 9e-7])
    (diagnosis,) = diagnose(variances, cost(5.0), has_posterior=False)
    assert str(diagnosis) == "dead dimensions: 2 of 4 are not in use: 0, 3."
    (diagnosis,) = diagnose(np.zeros(3), cost(5.0), has_posterior=False)
    assert diagnosis.name == "posterior collapse"
    assert "KL divergence" not in diagnosis.reason


@pytest.mark.parametrize(
    ("kl", "collapsed"),
    [
        ([], False),
        ([0.001, 0.001], False),
        ([0.001, 0.001, 0.001], True),
        ([5.0, 0.001, 0.001, 0.001], True),
        ([0.001, 0.001, 0.001, 5.0], False),
        ([0.001, 5.0, 0.001, 0.001], False),
        ([0.009, 0.009, 0.01], False),  # the threshold itself is not below it
        ([0.001, math.nan, 0.001], False),
        ([math.inf, 0.001, 0.001], False),
    ],
)
def test_collapse_is_a_kl_divergence_near_zero_three_times_in_a_row(kl, collapsed):
    found = collapse_in_training(kl)
    assert (found is not None) == collapsed
    if found is not None:
        assert found.name == "posterior collapse"
        assert "KL divergence was below 0.01 nats at 3 evaluations in a row" in found.reason


def test_the_permuted_code_gap_is_the_mean_difference():
    figure = permuted_code_gap(np.array([-1.0, -2.0, -3.0]), np.array([-2.0, -4.0, -6.0]))
    assert figure.value == 2.0
    assert figure.standard_error == pytest.approx(1.0 / math.sqrt(3.0))


# Mutual information.


def linear(count, deviation, seed=0):
    """z = x + noise with x from N(0, 1): the information is log(1 + 1 / deviation^2) / 2."""
    random = np.random.default_rng(seed)
    mean = random.standard_normal([count, 1])
    z = mean + deviation * random.standard_normal([count, 1])
    return z, mean, np.full([count, 1], 2.0 * math.log(deviation))


@pytest.mark.parametrize("deviation", [3.0, 1.0, 0.3])
def test_information_of_a_linear_normal_channel(deviation):
    found = [mutual_information(*linear(1000, deviation, seed)) for seed in range(20)]
    truth = 0.5 * math.log(1.0 + deviation**-2)
    # The bias of the bound is below 0.01 here; the mean of 20 has an error of about 0.01.
    assert np.mean(found) == pytest.approx(truth, abs=0.03)


def test_information_of_dimensions_adds_up():
    parts = [linear(1000, 0.7, seed) for seed in range(2)]
    both = [np.concatenate(pair, axis=1) for pair in zip(*parts, strict=True)]
    apart = sum(mutual_information(*part, rows=1000) for part in parts)
    assert mutual_information(*both, rows=1000) == pytest.approx(apart, abs=0.1)


def test_information_of_codes_that_never_meet_is_the_bound():
    z, mean, log_var = linear(500, 1e-6)
    assert mutual_information(z, mean, log_var) == pytest.approx(math.log(500), abs=1e-3)


def test_information_of_codes_that_say_nothing_is_none():
    random = np.random.default_rng(0)
    z = random.standard_normal([300, 4])
    assert mutual_information(z, np.zeros([300, 4]), np.zeros([300, 4])) == pytest.approx(0.0)


def test_information_of_variances_that_cannot_be_computed_with_is_not_a_number():
    z, mean, log_var = linear(200, 0.5)
    log_var[0] = -800.0
    assert math.isnan(mutual_information(z, mean, log_var))


@pytest.mark.slow
def test_information_is_never_above_the_mean_divergence():
    # q(z) is closest to the prior where the encoder is exact: both are equal there but for noise.
    model = as_new(make_still)
    tensors = model.infer(VALIDATION)
    found = mutual_information(*(tensors[n].numpy() for n in ("z", "z_mean", "z_log_var")))
    divergence = float(tf.reduce_mean(tf.reduce_sum(tensors["kl"], axis=1)))
    assert 0.5 * divergence < found < divergence


def test_information_against_the_definition():
    z, mean, log_var = (part[:40] for part in linear(40, 0.5))
    density = np.exp(-0.5 * (z - mean.T) ** 2 / np.exp(log_var.T)) / np.exp(0.5 * log_var.T)
    expected = np.mean(np.log(np.diag(density) / density.mean(axis=1)))
    assert mutual_information(z, mean, log_var) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_the_mutual_information_of_any_density_is_that_of_its_closed_form():
    heads = {"z_mean": 2, "z_log_var": 2, "z_scale_lower": 1}
    encoder = vr.dense_encoder((3,), 2, hidden_units=(), outputs=heads)
    vae = vr.VAE(
        encoder,
        vr.FullCovarianceGaussianBottleneck(2),
        vr.dense_decoder((3,), 2, hidden_units=()),
        [vr.Bernoulli(), vr.KLDivergence()],
    )
    data = np.random.default_rng(0).uniform(size=(150, 3)).astype(np.float32)
    vae.posterior(data)  # which builds
    for layer in encoder.layers:
        if layer.name.endswith("z_scale_lower"):
            layer.set_weights([0 * weight for weight in layer.get_weights()])
    found = Inference(data)(vae)
    assert found["log_densities"].shape == (128, 150)
    posterior = vae.posterior(data)
    expected = mutual_information(found["z"], posterior["z_mean"], posterior["z_log_var"])
    assert (
        0.01 < expected == pytest.approx(information_of_densities(found["log_densities"]), rel=1e-4)
    )

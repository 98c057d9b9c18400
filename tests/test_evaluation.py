"""Test figures against exact likelihoods, and against a forward pass of their own in NumPy.

`recomputed` takes the weights out of a model and does in float64 what `estimate` promises, with the
noise drawn from the keys that the model uses. How the work is cut into calls is an argument of it.
"""

import gc
import math
import weakref

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf

from vae_research import (
    VAE,
    Bernoulli,
    Bottleneck,
    ContinuousBernoulli,
    DeterministicBottleneck,
    FreeBits,
    Gaussian,
    GaussianBottleneck,
    KLDivergence,
    LinearWarmup,
    LossTerm,
    MonteCarloKL,
    dense_decoder,
    dense_encoder,
    estimate,
    sum_over_event,
)
from vae_research.evaluation import estimates
from vae_research.evaluation.estimates import Estimate, active_units
from vae_research.evaluation.importance import log_mean_weight
from vae_research.randomness import standard_normal
from vae_research.tensors import fold_in

SHAPE = (4, 4, 1)
PIXELS, LATENT = 16, 2
IMAGES = (np.random.default_rng(0).random((11, *SHAPE)) < 0.3).astype("float32")
BOUNDS = ("elbo", "negative_log_likelihood", "reconstruction", "kl")
# Sums of a few numbers in float32, against float64.
ENOUGH = 1e-5


# A linear Gaussian model: p(z) = N(0, I), p(x|z) = N(z W + b, s^2 I), so that
# p(x) = N(b, W^T W + s^2 I) and the posterior is N((x - b) W^T P / s^2, P) with
# P = (I + W W^T / s^2)^-1. The rows of W are orthogonal, so that P is diagonal.

W = np.array([[1.5, 0.5, 0.0, -0.5], [0.0, 0.4, 0.8, 0.4]])
B = np.array([0.3, -0.2, 1.0, 0.0])
S = 0.7
P = 1.0 / (1.0 + np.square(W).sum(axis=1) / S**2)
_RNG = np.random.default_rng(5)
X = (_RNG.normal(size=(60, 2)) @ W + B + S * _RNG.normal(size=(60, 4))).astype("float32")


def linear_gaussian(*, shift=0.0, wider=0.0, seed=0):
    """The model with the exact posterior, its mean shifted and its log-variance increased."""
    inputs, z = keras.Input((4,), name="inputs"), keras.Input((2,), name="z")
    mean, log_var = keras.layers.Dense(2, name="z_mean"), keras.layers.Dense(2, name="z_log_var")
    x_mean = keras.layers.Dense(4, name="x_mean")
    encoder = keras.Model(inputs, {"z_mean": mean(inputs), "z_log_var": log_var(inputs)})
    decoder = keras.Model(z, {"x_mean": x_mean(z)})
    kernel = W.T * P / S**2
    mean.set_weights([kernel, -B @ kernel + shift])
    log_var.set_weights([np.zeros([4, 2]), np.log(P) + wider])
    x_mean.set_weights([W, B])
    terms = [Gaussian(standard_deviation=S), KLDivergence()]
    return VAE(encoder, GaussianBottleneck(2), decoder, terms, seed=seed)


IMPERFECT = {"shift": 0.3, "wider": 0.4}


def log_p():
    return scipy.stats.multivariate_normal(B, W.T @ W + S**2 * np.eye(4)).logpdf(X.astype(float))


def gap():
    """KL(q || exact posterior) of the imperfect posterior: how far the ELBO is below log p(x)."""
    variance_ratio = np.exp(IMPERFECT["wider"])
    per_dimension = variance_ratio + IMPERFECT["shift"] ** 2 / P - 1.0 - IMPERFECT["wider"]
    return 0.5 * per_dimension.sum()


@pytest.fixture(scope="module")
def repeated():
    """Evaluations of the imperfect model with noise of ten seeds."""
    model, found = linear_gaussian(**IMPERFECT), []  # compiled once
    for model.seed in range(10):
        found.append(estimate(model, X, num_samples=1000))
    return found


def difference(repeated, name, exact):
    """The mean over repetitions of a figure minus its exact value, and its standard error.

    The data are the same in all of them, so that the spread of the data is not in it.
    """
    found = np.array([figures[name].value for figures in repeated]) - exact
    return found.mean(), found.std(ddof=1) / math.sqrt(len(found))


@pytest.mark.slow
def test_importance_weighted_likelihood_meets_the_exact_one(repeated):
    found, error = difference(repeated, "negative_log_likelihood", -log_p().mean())
    assert abs(found) < 3.0 * error
    # A strong statement: what the ELBO misses is a hundred times that.
    assert gap() > 100.0 * error


@pytest.mark.slow
def test_elbo_is_below_the_exact_likelihood_by_the_divergence_from_the_posterior(repeated):
    found, error = difference(repeated, "elbo", log_p().mean())
    assert found < -100.0 * error
    assert abs(found + gap()) < 3.0 * error


@pytest.mark.slow
def test_bound_grows_with_the_samples_towards_the_exact_likelihood():
    bounds = [
        -estimate(linear_gaussian(**IMPERFECT), X, num_samples=k)["negative_log_likelihood"].value
        for k in (1, 4, 16, 256)
    ]
    exact = log_p().mean()
    # With one sample it is the ELBO; the noise of one sample is no more than a tenth of the gap.
    assert bounds[0] == pytest.approx(exact - gap(), abs=0.3 * gap())
    assert bounds[0] < bounds[1] - 0.05 < bounds[2] - 0.1
    assert bounds[2] < bounds[3] < exact + 0.01


@pytest.mark.parametrize("num_samples", [1, 3])
def test_exact_posterior_has_the_exact_likelihood_in_every_sample(num_samples):
    # p(x|z) p(z) / q(z|x) is p(x) whatever z is: no sampling error at all.
    figure = estimate(linear_gaussian(), X, num_samples=num_samples)["negative_log_likelihood"]
    assert figure.value == pytest.approx(-log_p().mean(), rel=ENOUGH)
    assert figure.standard_error == pytest.approx(scipy.stats.sem(log_p()), rel=ENOUGH)
    assert figure.count == len(X)


# A forward pass in NumPy.


def dense_vae(terms=None, **options):
    """A dense Bernoulli VAE; the initial weights are the same at every call."""
    keras.utils.set_random_seed(3)
    return VAE(
        dense_encoder(SHAPE, LATENT, hidden_units=(8,)),
        GaussianBottleneck(LATENT),
        dense_decoder(SHAPE, LATENT, hidden_units=(8,)),
        [Bernoulli(), KLDivergence()] if terms is None else terms,
        **options,
    )


@pytest.fixture(scope="module")
def trained():
    vae = dense_vae(seed=2**31 + 5)
    vae.compile(keras.optimizers.Adam(0.03), jit_compile=False)
    vae.fit(IMAGES, batch_size=len(IMAGES), epochs=60, verbose=0)
    return vae


def layers_of(network):
    """Weights and biases of its dense layers, float64, by name; the hidden one is `hidden`."""
    dense = [layer for layer in network.layers if isinstance(layer, keras.layers.Dense)]
    return {
        layer.name if layer.name in ("z_mean", "z_log_var", "logits") else "hidden": [
            np.asarray(weight, np.float64) for weight in layer.get_weights()
        ]
        for layer in dense
    }


def apply(layer, values):
    return values @ layer[0] + layer[1]


def noise_of(key, rows):
    """What the bottleneck draws with a key, float64: z of a standard normal posterior."""
    zeros = tf.zeros([rows, LATENT])
    return np.asarray(GaussianBottleneck(LATENT)(zeros, zeros, key)["z"], np.float64)


def recomputed(vae, images, num_samples, cut=None):
    """Returns `[count]` values by name, from weights and keys.

    Args:
        cut: `(examples, samples)`: the examples of a call, and the sizes of the parts of their
            samples; by default all in one call.
    """
    examples, samples = cut or (len(images), [num_samples])
    assert sum(samples) == num_samples
    encoder, decoder = layers_of(vae.encoder), layers_of(vae.decoder)
    x = np.asarray(images, np.float64).reshape(len(images), -1)
    hidden = np.maximum(apply(encoder["hidden"], x), 0.0)
    mean = apply(encoder["z_mean"], hidden)
    log_var = 20.0 * np.tanh(apply(encoder["z_log_var"], hidden) / 20.0)
    kl = 0.5 * (mean**2 + np.exp(log_var) - 1.0 - log_var).sum(axis=1)

    log_likelihood = np.zeros([len(x), num_samples])
    log_weight = np.zeros([len(x), num_samples])
    for start in range(0, len(x), examples):
        rows = slice(start, start + examples)
        count = len(x[rows])
        first = 0
        for index, size in enumerate(samples):
            # A key of its own for every call; the bottleneck's share of it.
            key = fold_in(vae.evaluation_key(start * len(samples) + index), "bottleneck")
            # The samples of an example are next to each other.
            # A last call of fewer examples is filled up: its noise is that of a whole one.
            noise = noise_of(key, examples * size).reshape(examples, size, LATENT)[:count]
            deviation = np.exp(0.5 * log_var[rows])[:, None]
            z = mean[rows][:, None] + deviation * noise
            logits = apply(decoder["logits"], np.maximum(apply(decoder["hidden"], z), 0.0))
            targets = x[rows][:, None]
            here = slice(first, first + size)
            log_likelihood[rows, here] = (targets * logits - np.logaddexp(0.0, logits)).sum(axis=2)
            log_prior = scipy.stats.norm.logpdf(z).sum(axis=2)
            log_posterior = scipy.stats.norm.logpdf(z, mean[rows][:, None], deviation).sum(axis=2)
            log_weight[rows, here] = log_likelihood[rows, here] + log_prior - log_posterior
            first += size
    return {
        "reconstruction": -log_likelihood.mean(axis=1),
        "kl": kl,
        "elbo": log_likelihood.mean(axis=1) - kl,
        "negative_log_likelihood": -scipy.special.logsumexp(log_weight, axis=1)
        + math.log(num_samples),
        "code": mean,
        "log_weight": log_weight,
    }


NUM_SAMPLES = 7
# VALUES_PER_CALL, and what it makes of 11 examples with 7 samples of 16 pixels each.
CUTS = {
    "one call": (2**21, (11, [7])),
    "examples": (16 * 4 * 7, (4, [7])),  # 4, 4 and a last part of 3
    "samples": (16 * 3, (1, [3, 2, 2])),  # one example at a time, in three parts
    "one row": (1, (1, [1] * 7)),  # less than a row fits: a row at a time
}


@pytest.mark.slow
@pytest.mark.parametrize("cut", CUTS)
def test_figures_are_those_of_a_forward_pass_in_numpy(cut, trained, monkeypatch):
    values_per_call, parts = CUTS[cut]
    monkeypatch.setattr(estimates, "VALUES_PER_CALL", values_per_call)
    figures = estimate(trained, IMAGES, num_samples=NUM_SAMPLES)
    wanted = recomputed(trained, IMAGES, NUM_SAMPLES, parts)
    assert figures.keys() == {*BOUNDS, "effective_sample_size", "active_units"}
    for name in BOUNDS:
        values = wanted[name]
        assert figures[name].value == pytest.approx(values.mean(), rel=1e-5), name
        error = values.std(ddof=1) / math.sqrt(11)
        assert figures[name].standard_error == pytest.approx(error, rel=1e-4), name
        assert figures[name].count == 11
    units = active_units(wanted["code"])
    assert figures["active_units"] == Estimate(
        units.value, pytest.approx(units.standard_error, rel=1e-4), 11
    )

    # What the comparison tells apart: the first part of the examples alone, the mean over parts of
    # unequal length, and a bound that was joined by the mean over the parts of the samples.
    examples, samples = parts
    mutants = {}
    if cut == "examples":
        nll = wanted["negative_log_likelihood"]
        pieces = [nll[start : start + examples].mean() for start in range(0, 11, examples)]
        mutants = {"first part": pieces[0], "mean of parts": np.mean(pieces)}
    elif len(samples) > 1:
        pieces = np.split(wanted["log_weight"], np.cumsum(samples)[:-1], axis=1)
        bounds = [
            scipy.special.logsumexp(part, axis=1) - math.log(part.shape[1]) for part in pieces
        ]
        mutants = {"mean of bounds": -np.mean(bounds)}
    for mutant, value in mutants.items():
        assert figures["negative_log_likelihood"].value != pytest.approx(value, rel=1e-4), mutant


@pytest.mark.slow
@pytest.mark.parametrize("cut", CUTS)
def test_the_bound_that_is_trained_is_that_of_groups_of_its_samples(cut, trained, monkeypatch):
    values_per_call, parts = CUTS[cut]
    monkeypatch.setattr(estimates, "VALUES_PER_CALL", values_per_call)
    vae = VAE(
        trained.encoder,
        trained.bottleneck,
        trained.decoder,
        [Bernoulli(), MonteCarloKL()],
        seed=trained.seed,
        num_samples=3,
        importance_weighted=True,
    )
    figures = estimate(vae, IMAGES, num_samples=NUM_SAMPLES)
    log_weight = recomputed(trained, IMAGES, NUM_SAMPLES, parts)["log_weight"]
    groups = [log_weight[:, :3], log_weight[:, 3:6]]  # of seven samples, in whatever calls
    bounds = np.mean([scipy.special.logsumexp(group, axis=1) for group in groups], axis=0)
    bounds -= math.log(3)
    figure = figures["importance_weighted_bound"]
    assert figure.value == pytest.approx(bounds.mean(), rel=1e-5)
    assert figure.standard_error == pytest.approx(bounds.std(ddof=1) / math.sqrt(11), rel=1e-4)


@pytest.mark.slow
def test_only_an_importance_weighted_model_has_its_bound(trained):
    assert "importance_weighted_bound" not in estimate(trained, IMAGES, num_samples=NUM_SAMPLES)


class StepNow(LossTerm):
    """The step that the forward pass was given."""

    def per_example(self, z, step):
        return sum_over_event(0.0 * z) + step


@pytest.mark.slow
def test_an_evaluation_reads_the_step_of_the_present_optimizer():
    vae = dense_vae([Bernoulli(), KLDivergence(), StepNow(weight=None)])
    assert estimate(vae, IMAGES, num_samples=1)["step_now"].value == 0.0
    for step in (3, 5):
        vae.compile("sgd")  # a pass that was compiled before must not keep the old counter
        vae.step_counter.assign(step)
        assert estimate(vae, IMAGES, num_samples=1)["step_now"].value == step


@pytest.mark.slow
def test_a_model_is_compiled_once_for_all_its_evaluations(trained, monkeypatch):
    vae = dense_vae()
    forward, traces = VAE.forward, []
    monkeypatch.setattr(VAE, "forward", lambda *a, **k: traces.append(1) or forward(*a, **k))
    monkeypatch.setattr(estimates, "VALUES_PER_CALL", CUTS["examples"][0])
    for count in (11, 10, 11):  # in calls of 4, the last of which is smaller
        estimate(vae, IMAGES[:count], num_samples=NUM_SAMPLES)
    assert len(traces) == 1
    vae.set_weights(trained.get_weights())
    figures = estimate(vae, IMAGES, num_samples=NUM_SAMPLES)
    assert len(traces) == 1
    wanted = recomputed(trained, IMAGES, NUM_SAMPLES, (4, [7]))["kl"].mean()
    assert figures["kl"].value == pytest.approx(wanted, rel=1e-5)
    estimate(vae, IMAGES, num_samples=NUM_SAMPLES, jit_compile=True)
    estimate(vae, IMAGES, num_samples=NUM_SAMPLES)
    assert len(traces) == 2
    vae.decoder = trained.decoder
    estimate(vae, IMAGES, num_samples=NUM_SAMPLES)
    assert len(traces) == 3


@pytest.mark.slow
def test_what_was_compiled_lives_as_long_as_the_model():
    vae = dense_vae()
    estimate(vae, IMAGES, num_samples=2)
    model, compiled = weakref.ref(vae), weakref.ref(estimates._PASSES[vae])
    del vae
    gc.collect()
    assert model() is None
    assert compiled() is None


@pytest.mark.slow
def test_what_was_compiled_is_no_part_of_a_saved_model(tmp_path):
    vae = dense_vae()
    vae(IMAGES)
    attributes = set(vars(vae))
    estimate(vae, IMAGES, num_samples=2)
    assert set(vars(vae)) == attributes
    serve = tf.function(vae.reconstruct, input_signature=[tf.TensorSpec([None, *SHAPE])])
    tf.saved_model.save(vae, str(tmp_path), signatures=serve)
    served = tf.saved_model.load(str(tmp_path)).signatures["serving_default"]
    (found,) = served(tf.constant(IMAGES[:2], tf.float32)).values()
    np.testing.assert_allclose(found, vae.reconstruct(IMAGES[:2]), rtol=1e-5)


def by_rows_per_call(vae, decoded, monkeypatch, rows, **options):
    """Values of the examples, and the largest number of rows that was decoded at once."""
    complete = VAE.decode_inferred

    def noted(self, tensors, **options):
        decoded.append(tensors["z"].shape[0])
        return complete(self, tensors, **options)

    with monkeypatch.context() as patch:
        patch.setattr(VAE, "decode_inferred", noted)
        patch.setattr(estimates, "VALUES_PER_CALL", CUTS["examples"][0])
        patch.setattr(estimates, "_PASSES", weakref.WeakKeyDictionary())
        options = {
            "num_samples": NUM_SAMPLES,
            "rows_per_call": rows,
            "per_example": True,
            **options,
        }
        return {name: each.values for name, each in estimate(vae, IMAGES, **options).items()}


@pytest.mark.slow
def test_how_many_rows_are_decoded_at_once_changes_no_sample(trained, monkeypatch):
    names = ["reconstruction", "negative_log_likelihood", "elbo"]
    whole = by_rows_per_call(trained, [], monkeypatch, None)
    for rows in (1, 3, 20, 1000):
        found = by_rows_per_call(trained, decoded := [], monkeypatch, rows)
        assert 0 < max(decoded) <= rows
        for name in names:
            np.testing.assert_allclose(found[name], whole[name], rtol=ENOUGH)
    other = by_rows_per_call(trained, [], monkeypatch, None, seed=trained.seed + 1)
    assert np.abs(other["elbo"] / whole["elbo"] - 1.0).min() > 2 * ENOUGH


class Shaken(keras.layers.Layer):
    """Writes another code, with noise of its own."""

    def call(self, z, seed):
        return {"shaken": z + standard_normal(tf.shape(z), seed)}


class OfShaken(LossTerm):
    def per_example(self, shaken):
        return sum_over_event(shaken**2)


@pytest.mark.slow
def test_noise_after_the_bottleneck_does_not_depend_on_the_rows_of_a_call(trained, monkeypatch):
    vae = dense_vae([Bernoulli(), KLDivergence(), OfShaken(weight=None)], modules=[Shaken()])
    whole = by_rows_per_call(vae, [], monkeypatch, None)
    found = by_rows_per_call(vae, decoded := [], monkeypatch, 3)
    np.testing.assert_array_equal(found["of_shaken"], whole["of_shaken"])
    assert max(decoded) == 4 * NUM_SAMPLES  # more than was asked for, which the docstring says


@pytest.mark.slow
def test_what_needs_no_noise_does_not_depend_on_how_the_work_is_cut(trained, monkeypatch):
    whole = estimate(trained, IMAGES, num_samples=NUM_SAMPLES)
    for values_per_call, _ in CUTS.values():
        monkeypatch.setattr(estimates, "VALUES_PER_CALL", values_per_call)
        figures = estimate(trained, IMAGES, num_samples=NUM_SAMPLES)
        assert figures["kl"].value == pytest.approx(whole["kl"].value, rel=1e-6)
        assert figures["active_units"].value == whole["active_units"].value
        # The others are other draws of the same thing.
        for name in BOUNDS:
            assert figures[name].value == pytest.approx(whole[name].value, rel=0.1)


@pytest.mark.slow
def test_every_call_draws_noise_of_its_own(trained, monkeypatch):
    """Copies of one example: with the same noise in two calls, two of them had the same figures."""
    keys = []
    key_of = estimates.evaluation_key

    def noted(seed, position):
        keys.append((seed, position))
        return key_of(seed, position)

    monkeypatch.setattr(estimates, "VALUES_PER_CALL", 16 * 3)
    monkeypatch.setattr(estimates, "evaluation_key", noted)
    figures = estimate(trained, np.repeat(IMAGES[:1], 4, axis=0), num_samples=NUM_SAMPLES)
    used = keys[:]
    assert figures["kl"].standard_error == pytest.approx(0.0, abs=1e-6)
    assert figures["reconstruction"].standard_error > 1e-3
    # 4 examples in 3 parts.
    assert used == [(trained.seed, position) for position in range(12)]
    estimate(trained, IMAGES[:1], num_samples=1, seed=8)
    assert keys[12:] == [(8, 0)]


@pytest.mark.slow
def test_the_same_evaluation_gives_the_same_figures_and_another_seed_others(trained):
    first, second = (estimate(trained, IMAGES, num_samples=3) for _ in range(2))
    assert first == second
    other = dense_vae(seed=1)
    other.set_weights(trained.get_weights())
    third = estimate(other, IMAGES, num_samples=3)
    assert third["kl"].value == pytest.approx(first["kl"].value)
    assert third["reconstruction"] != first["reconstruction"]


@pytest.mark.slow
def test_xla_draws_the_same_noise(trained):
    plain = estimate(trained, IMAGES, num_samples=3)
    compiled = estimate(trained, IMAGES, num_samples=3, jit_compile=True)
    for name, figure in plain.items():
        # Of the same random bits XLA makes normal numbers that differ by some 2e-5.
        assert compiled[name].value == pytest.approx(figure.value, rel=1e-4), name


@pytest.mark.slow
def test_training_settings_are_no_part_of_the_figures():
    settings = [
        ([Bernoulli(), KLDivergence()], {}),
        ([Bernoulli(weight=0.1), KLDivergence(weight=LinearWarmup(start=2.0, steps=9))], {}),
        ([Bernoulli(), FreeBits(nats_per_dimension=2.0)], {}),
        ([Bernoulli()], {}),
        ([Bernoulli(name="likelihood"), MonteCarloKL(name="penalty")], {"num_samples": 3}),
        ([Bernoulli(), MonteCarloKL()], {"num_samples": 3, "importance_weighted": True}),
    ]
    losses, figures = [], []
    for terms, options in settings:
        vae = dense_vae(terms, **options)
        vae.compile(run_eagerly=True)
        losses.append(vae.evaluate(IMAGES, verbose=0, return_dict=True)["loss"])
        figures.append(estimate(vae, IMAGES, num_samples=5))
    assert len(set(losses)) == len(losses)
    for found in figures[1:]:
        assert {name: found[name] for name in figures[0]} == figures[0]


@pytest.mark.slow
def test_own_terms_have_a_figure_by_their_name():
    class Spread(LossTerm):
        def per_example(self, z_mean):
            return tf.reduce_sum(z_mean**2, axis=-1)

    vae = dense_vae([Bernoulli(), KLDivergence(), Spread(weight=3.0), FreeBits(weight=None)])
    figures = estimate(vae, IMAGES, num_samples=2)
    plain = estimate(dense_vae([Bernoulli()]), IMAGES, num_samples=2)
    assert set(figures) - {"spread", "free_bits"} == set(plain)
    expected = Estimate.mean_of((vae.encode(IMAGES).numpy() ** 2).sum(axis=1))
    assert figures["spread"].value == pytest.approx(expected.value, rel=1e-5)
    assert figures["spread"].standard_error == pytest.approx(expected.standard_error, rel=1e-4)


@pytest.mark.slow
def test_elbo_is_what_keras_validates_with(trained):
    """One sample of z a batch: the same key, so the very same figure."""
    keras_figures = trained.evaluate(IMAGES, batch_size=32, verbose=0, return_dict=True)
    figures = estimate(trained, IMAGES, num_samples=1)
    for name in ("elbo", "reconstruction", "kl"):
        assert figures[name].value == pytest.approx(keras_figures[name], rel=1e-5), name


# How parts are made and joined.


def test_parts_are_nearly_equal_add_up_and_fit():
    for total in range(1, 40):
        for at_most in range(1, 45):
            parts = estimates._parts(total, at_most)
            assert sum(parts) == total
            assert max(parts) <= at_most
            assert max(parts) - min(parts) <= 1
            assert len(parts) == math.ceil(total / at_most)  # no more calls than needed


@pytest.mark.parametrize("level", [0.0, -2000.0, 300.0])
def test_log_weights_of_all_parts_of_the_samples_are_joined(level):
    # Far below exp's smallest and above its largest float32: a sum of exponentials would be lost.
    rng = np.random.default_rng(1)
    samples = [3, 2, 2]
    log_weight = level + 3.0 * rng.normal(size=[5, 7])
    reconstruction = rng.normal(size=[5, 7])
    columns = np.split(np.arange(7), np.cumsum(samples)[:-1])
    code = rng.normal(size=[5, 2])
    parts = [
        {
            "reconstruction": reconstruction[:, part].mean(axis=1).astype(np.float32),
            "pass/log_weight": log_weight[:, part],
            "pass/code": code,
        }
        for part in columns
    ]
    joined = estimates._join(parts, samples)
    assert joined.keys() == {"reconstruction", "pass/log_weight", "pass/code"}
    wanted = scipy.special.logsumexp(log_weight, axis=1) - math.log(7)
    found = log_mean_weight(joined["pass/log_weight"])
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
    # The mean over samples, of which the parts have 3, 2 and 2; not the mean over parts.
    wanted = reconstruction.mean(axis=1)
    np.testing.assert_allclose(joined["reconstruction"], wanted, rtol=1e-5, atol=1e-6)
    mutant = np.mean([part["reconstruction"] for part in parts], axis=0)
    assert np.abs(mutant - wanted).max() > 1e-2
    np.testing.assert_array_equal(joined["pass/code"], code)


# Standard errors.


def test_a_figure_is_a_mean_with_its_standard_error_and_count():
    # Variance of 1, 2, 3, 4 about 2.5: 5 / 3; of their mean: 5 / 12.
    figure = Estimate.mean_of(np.array([1.0, 2.0, 3.0, 4.0], np.float32))
    assert figure == Estimate(2.5, pytest.approx(math.sqrt(5.0 / 12.0)), 4)
    assert Estimate.mean_of(np.array([3.5])) == Estimate(3.5, None, 1)
    values = np.random.default_rng(2).normal(size=1000)
    assert Estimate.mean_of(values).standard_error == pytest.approx(scipy.stats.sem(values))


def test_a_mean_does_not_lose_its_digits_in_float32():
    # In float32, 2^24 + 1 is 2^24.
    values = np.array([2.0**24] + [1.0] * 999, np.float32)
    assert Estimate.mean_of(values).value == (2.0**24 + 999.0) / 1000.0


@pytest.mark.slow
def test_one_example_has_no_standard_error(trained):
    figures = estimate(trained, IMAGES[:1], num_samples=3)
    wanted = recomputed(trained, IMAGES[:1], 3)
    for name in BOUNDS:
        found = figures[name]
        assert (found.standard_error, found.count) == (None, 1)
        assert found.value == pytest.approx(wanted[name][0], rel=ENOUGH)
    assert figures["active_units"] == Estimate(0, None, 1)


# Active units.


def codes_of_variance(variances, count=2000, seed=0):
    """`[count, latent]` normal codes whose sample variances are exactly these."""
    codes = np.random.default_rng(seed).normal(size=[count, len(variances)])
    codes = (codes - codes.mean(axis=0)) / codes.std(axis=0, ddof=1)
    return codes * np.sqrt(variances)


def test_active_units_are_the_dimensions_above_a_hundredth():
    figure = active_units(codes_of_variance([1.0, 0.02, 0.005, 0.0, 4.0]))
    assert figure.value == 3
    assert figure.count == 2000
    # The variance of 2000 normal values is known to 3 percent: none of these is in doubt.
    assert figure.standard_error < 1e-6
    assert active_units(codes_of_variance([0.0] * 3)).value == 0


@pytest.mark.parametrize("side", [1.0 + 1e-6, 1.0 - 1e-6])
def test_a_dimension_at_the_threshold_may_be_either(side):
    near = 0.01 * side
    one = active_units(codes_of_variance([1.0, near]))
    assert one.value == 1 + (side > 1.0)
    assert one.standard_error == pytest.approx(0.5, abs=1e-4)
    two = active_units(codes_of_variance([near, near, 1.0]))
    assert two.standard_error == pytest.approx(math.sqrt(0.5), abs=1e-4)


def test_the_error_of_active_units_is_that_of_the_probability_to_be_above():
    # For normal values the fourth moment is 3 variance^2: the variance has the error
    # variance * sqrt(2 / count), whatever the mean.
    variances = np.array([0.0101, 0.0097, 0.0104])
    count = 2000
    above = scipy.stats.norm.sf((0.01 - variances) / (variances * math.sqrt(2.0 / count)))
    wanted = math.sqrt((above * (1.0 - above)).sum())
    found = [
        active_units(codes_of_variance(variances, count, seed) + 100.0).standard_error
        for seed in range(20)
    ]
    assert np.mean(found) == pytest.approx(wanted, rel=0.02)


@pytest.mark.slow
def test_active_units_of_the_data_come_from_posterior_means(trained):
    # One dimension of the encoder's means is made constant; its variances stay as they were.
    vae = dense_vae()
    vae.set_weights(trained.get_weights())
    before = estimate(vae, IMAGES, num_samples=1)["active_units"].value
    layer = vae.encoder.get_layer("z_mean")
    kernel, bias = layer.get_weights()
    kernel[:, 0] = 0.0
    layer.set_weights([kernel, bias])
    after = estimate(vae, IMAGES, num_samples=1)["active_units"].value
    assert (before, after) == (2, 1)


@pytest.mark.filterwarnings("error")
def test_codes_of_one_distance_from_their_mean_have_a_certain_variance():
    assert active_units(np.array([[-2.0], [2.0]])) == Estimate(1, 0.0, 2)


# Models of other kinds.


@pytest.mark.slow
def test_a_plain_autoencoder_has_the_reconstruction_alone(monkeypatch):
    keras.utils.set_random_seed(4)
    vae = VAE(
        dense_encoder(SHAPE, LATENT, hidden_units=(8,), outputs=("z_mean",)),
        DeterministicBottleneck(LATENT),
        dense_decoder(SHAPE, LATENT, hidden_units=(8,)),
        [Bernoulli()],
    )
    encoder, decoder = layers_of(vae.encoder), layers_of(vae.decoder)
    x = IMAGES.reshape(len(IMAGES), -1).astype(np.float64)
    code = apply(encoder["z_mean"], np.maximum(apply(encoder["hidden"], x), 0.0))
    logits = apply(decoder["logits"], np.maximum(apply(decoder["hidden"], code), 0.0))
    values = (np.logaddexp(0.0, logits) - x * logits).sum(axis=1)
    for values_per_call, _ in CUTS.values():
        monkeypatch.setattr(estimates, "VALUES_PER_CALL", values_per_call)
        figures = estimate(vae, IMAGES, num_samples=3)
        assert figures.keys() == {"reconstruction"}
        assert figures["reconstruction"] == Estimate(
            pytest.approx(values.mean(), rel=ENOUGH),
            pytest.approx(values.std(ddof=1) / math.sqrt(11), rel=1e-4),
            11,
        )


class WithoutClosedForm(Bottleneck):
    """The Gaussian bottleneck, of which only what is named is written."""

    def __init__(self, writes):
        super().__init__(LATENT)
        self.writes = writes
        self.gaussian = GaussianBottleneck(LATENT)

    def call(self, z_mean, z_log_var, seed):
        written = self.gaussian(z_mean, z_log_var, seed)
        return {name: written[name] for name in ("z", *self.writes)}


def with_bottleneck(trained, *writes):
    vae = dense_vae()
    vae.set_weights(trained.get_weights())
    return VAE(
        vae.encoder, WithoutClosedForm(writes), vae.decoder, [Bernoulli()], seed=trained.seed
    )


@pytest.mark.slow
def test_without_a_closed_form_the_divergence_is_that_of_the_samples(trained):
    figures = estimate(
        with_bottleneck(trained, "log_posterior", "log_prior"), IMAGES, num_samples=NUM_SAMPLES
    )
    wanted = recomputed(trained, IMAGES, NUM_SAMPLES)
    mean_log_weight = wanted["log_weight"].mean()
    assert figures["elbo"].value == pytest.approx(mean_log_weight, rel=ENOUGH)
    assert figures["kl"].value == pytest.approx(
        -mean_log_weight - wanted["reconstruction"].mean(), rel=1e-4
    )
    assert figures["kl"].value != pytest.approx(wanted["kl"].mean(), rel=1e-3)
    assert figures["negative_log_likelihood"].value == pytest.approx(
        wanted["negative_log_likelihood"].mean(), rel=ENOUGH
    )


@pytest.mark.slow
def test_without_densities_there_is_no_importance_weighted_figure(trained):
    figures = estimate(with_bottleneck(trained, "kl"), IMAGES, num_samples=NUM_SAMPLES)
    assert figures.keys() == {"elbo", "reconstruction", "kl", "active_units"}
    wanted = recomputed(trained, IMAGES, NUM_SAMPLES)
    assert figures["elbo"].value == pytest.approx(wanted["elbo"].mean(), rel=ENOUGH)


@pytest.mark.slow
def test_dropout_is_off(trained):
    keras.utils.set_random_seed(3)
    inputs = keras.Input(SHAPE, name="inputs")
    features = keras.layers.Dropout(0.5)(keras.layers.Flatten()(inputs))
    heads = {name: keras.layers.Dense(LATENT)(features) for name in ("z_mean", "z_log_var")}
    vae = VAE(
        keras.Model(inputs, heads),
        GaussianBottleneck(LATENT),
        dense_decoder(SHAPE, LATENT, hidden_units=()),
        [Bernoulli(), KLDivergence()],
    )
    assert estimate(vae, IMAGES, num_samples=2) == estimate(vae, IMAGES, num_samples=2)


# Forms of data.


@pytest.mark.slow
def test_a_dictionary_of_inputs_is_the_array(trained):
    wanted = estimate(trained, IMAGES, num_samples=3)
    assert estimate(trained, {"inputs": IMAGES}, num_samples=3) == wanted
    unread = {"inputs": IMAGES, "labels": np.arange(len(IMAGES))}
    assert estimate(trained, unread, num_samples=3) == wanted


@pytest.mark.slow
def test_labels_and_targets_go_with_their_examples(monkeypatch):
    """The decoder writes what the labels say and nothing else: bit i of example i."""
    labels = keras.Input((PIXELS,), name="labels")
    z = keras.Input((LATENT,), name="z")
    logits = keras.layers.Dense(PIXELS, name="logits")
    used = keras.layers.Concatenate()([labels, z])
    decoder = keras.Model(
        {"labels": labels, "z": z}, {"logits": keras.layers.Reshape(SHAPE)(logits(used))}
    )
    logits.set_weights(
        [np.concatenate([8.0 * np.eye(PIXELS), np.zeros([LATENT, PIXELS])]), np.full(PIXELS, -4.0)]
    )
    keras.utils.set_random_seed(6)
    vae = VAE(
        dense_encoder(SHAPE, LATENT, hidden_units=()),
        GaussianBottleneck(LATENT),
        decoder,
        [Bernoulli(), KLDivergence()],
    )
    bits = np.eye(PIXELS, dtype=np.float32)[:11]
    data = {"inputs": IMAGES, "labels": bits, "targets": bits.reshape(-1, *SHAPE)}
    # Every pixel is right with a logit of 4.
    right = PIXELS * math.log1p(math.exp(-4.0))
    for cut in ("examples", "samples"):
        monkeypatch.setattr(estimates, "VALUES_PER_CALL", CUTS[cut][0])
        figure = estimate(vae, data, num_samples=NUM_SAMPLES)["reconstruction"]
        assert figure == Estimate(
            pytest.approx(right, rel=ENOUGH), pytest.approx(0.0, abs=1e-5), 11
        )
    # The mutant: labels of other examples. Two pixels of each are wrong, by 8 nats each.
    data["labels"] = np.roll(bits, 1, axis=0)
    figure = estimate(vae, data, num_samples=1)["reconstruction"]
    assert figure.value == pytest.approx(right + 8.0, rel=ENOUGH)


def test_vectors_are_data_too():
    figures = estimate(linear_gaussian(), X[:3], num_samples=1)
    assert figures["elbo"].count == 3


# What is refused, and what is shown.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("images", "num_samples", "message"),
    [
        (IMAGES, 0, "num_samples must be an integer >= 1, got 0"),
        (IMAGES, -3, "num_samples must be an integer >= 1, got -3"),
        (IMAGES, 2.0, "num_samples must be an integer >= 1, got 2.0"),
        (IMAGES[:0], 5, "at least one example, got none"),
    ],
)
def test_no_samples_or_no_examples_are_refused(trained, images, num_samples, message):
    with pytest.raises(ValueError, match=message):
        estimate(trained, images, num_samples=num_samples)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [0, 1.5])
def test_calls_without_a_whole_number_of_rows_are_refused(trained, rows):
    with pytest.raises(ValueError, match=f"rows_per_call must be an integer >= 1, got {rows}"):
        estimate(trained, IMAGES, rows_per_call=rows)


@pytest.mark.slow
@pytest.mark.parametrize("verbose", [0, 1])
def test_a_bar_is_shown_where_it_is_asked_for(trained, verbose, capsys):
    estimate(trained, IMAGES, num_samples=1, verbose=verbose)
    assert ("11/11" in capsys.readouterr().out) == bool(verbose)


def total_probability(term, logit):
    """The integral of the density over [0, 1], for one pixel."""
    grid = np.linspace(0.0, 1.0, 1001, dtype=np.float32)[:, None]
    targets = tf.constant(grid)
    densities = np.exp(term.log_likelihood(targets, tf.fill([1001, 1], logit)).numpy())
    return np.trapezoid(densities, grid[:, 0])


def test_the_note_says_which_figures_are_no_likelihoods():
    """Bernoulli's density of grey values does not integrate to one; the continuous one's does."""
    assert total_probability(Bernoulli(), 1.0) < 0.7
    assert total_probability(ContinuousBernoulli(), 1.0) == pytest.approx(1.0, abs=1e-4)
    assert "not a normalised likelihood" in Bernoulli().note(grey_values=True)
    assert ContinuousBernoulli().note(grey_values=True) is None
    # Of the values 0 and 1 it is one, and there is nothing to say.
    both = tf.constant([[0.0], [1.0]])
    densities = np.exp(Bernoulli().log_likelihood(both, tf.fill([2, 1], 1.0)))
    assert densities.sum() == pytest.approx(1.0)
    assert Bernoulli().note(grey_values=False) is None

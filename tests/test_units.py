"""Figures in stored units and in bits per dimension, and notes on figures that do not compare."""

import math
import warnings

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

import vae_research as vr
from vae_research import runs
from vae_research.evaluation import units
from vae_research.suitability import notes_on_likelihood

COLUMNS, LATENT = 3, 2
RANDOM = np.random.default_rng(2)
INTEGERS = np.clip(
    np.rint(RANDOM.normal([4.0, 40.0, 9.0], [1.0, 12.0, 3.0], (300, COLUMNS))), 0, 255
).astype(np.uint8)
# Real numbers, most of which are one of the bounds that they are clipped to.
CLIPPED = np.clip(np.random.default_rng(3).normal(-5.0, 8.0, (1000, 4)), 0.0, 6.0)
BITS = (RANDOM.random((40, 4)) < 0.4).astype(np.float32)


def data_of(rescale, dequantize):
    data = vr.Data.from_arrays(INTEGERS, rescale=rescale, kind="table")
    return data.dequantized() if dequantize else data


def linear_vae(likelihood=None, outputs=("x_mean", "x_log_var"), columns=COLUMNS, bottleneck=None):
    inputs, z = keras.Input((columns,), name="inputs"), keras.Input((LATENT,), name="z")
    heads = {
        name: keras.layers.Dense(LATENT, name=name)(inputs) for name in ("z_mean", "z_log_var")
    }
    written = {name: keras.layers.Dense(columns, name=name)(z) for name in outputs}
    return vr.VAE(
        keras.Model(inputs, heads),
        bottleneck or vr.GaussianBottleneck(LATENT),
        keras.Model(z, written),
        [likelihood or vr.GaussianWithVariance(), vr.KLDivergence()],
    )


def transformed(model, before, after):
    """Returns the same model of values with another scaling: x is what it is in stored units.

    Args:
        model: of values `y = (x - offset) / divisor` with the offset and divisor of `before`.
        before, after: scalings.
    """
    # y = ratio * y' + shift, from the values y' of the other scaling.
    ratio = np.broadcast_to(np.float64(after.divisor) / before.divisor, COLUMNS)
    shift = np.broadcast_to((np.float64(after.offset) - before.offset) / before.divisor, COLUMNS)
    other = linear_vae()
    for name in ("z_mean", "z_log_var"):
        kernel, bias = model.encoder.get_layer(name).get_weights()
        other.encoder.get_layer(name).set_weights([kernel * ratio[:, None], bias + shift @ kernel])
    kernel, bias = model.decoder.get_layer("x_mean").get_weights()
    other.decoder.get_layer("x_mean").set_weights([kernel / ratio, (bias - shift) / ratio])
    kernel, bias = model.decoder.get_layer("x_log_var").get_weights()
    log_var = bias - 2.0 * np.log(ratio)
    other.decoder.get_layer("x_log_var").set_weights([kernel, log_var])
    return other


@pytest.mark.slow
@pytest.mark.parametrize("dequantize", [False, True])
def test_a_model_that_is_transformed_exactly_has_the_same_figures_in_stored_units(dequantize):
    first = data_of("standardize", dequantize)
    model = linear_vae()
    model.compile(keras.optimizers.Adam(0.02))
    model.fit(first.train.on_device(24, seed=0), epochs=5, verbose=0)

    def figures(model, data):
        return vr.estimate(
            model,
            data.test,
            num_samples=4,
            seed=0,
            per_example=True,
            dequantize_draws=3,
            warn=False,
        )

    wanted = figures(model, first)
    for rescale in ("none", "unit"):
        data = data_of(rescale, dequantize)
        found = figures(transformed(model, first.train.scaling, data.train.scaling), data)
        divisors = [np.broadcast_to(each.train.scaling.divisor, COLUMNS) for each in (first, data)]
        jacobian = np.log(divisors[1].astype(np.float64)).sum() - np.log(divisors[0]).sum()
        assert abs(jacobian) > 2.0
        for name, sign in (("elbo", 1.0), ("negative_log_likelihood", -1.0)):
            # Densities in the units of training differ by the Jacobian ...
            difference = found[name].values - wanted[name].values
            np.testing.assert_allclose(difference, sign * jacobian, atol=2e-3)
            # ... and those in stored units do not.
            stored = f"{name}_in_stored_units"
            np.testing.assert_allclose(found[stored].values, wanted[stored].values, atol=2e-3)
        for name in ("elbo", "nll", "nll_of_levels"):
            name = f"bits_per_dimension_{name}"
            np.testing.assert_allclose(found[name].values, wanted[name].values, atol=1e-3)


@pytest.mark.slow
def test_bits_of_a_density_are_at_least_those_of_its_cells_and_approach_them():
    data = vr.Data.from_arrays(INTEGERS[:, :1], rescale="unit", kind="table")
    model = linear_vae(columns=1)
    for layer in (*model.encoder.layers, *model.decoder.layers):
        layer.set_weights([np.zeros_like(each) for each in layer.get_weights()])
    deviation = 0.4  # of a level, and the mean is 4: a density that is curved within a cell
    scaling = data.train.scaling
    mean, log_var = 4.0 / scaling.divisor, 2.0 * math.log(deviation / scaling.divisor)
    model.decoder.get_layer("x_mean").set_weights([np.zeros([LATENT, 1]), np.array([mean])])
    model.decoder.get_layer("x_log_var").set_weights([np.zeros([LATENT, 1]), np.array([log_var])])
    model.data_read(data.test.tensors())
    x = data.test.raw[:, 0].astype(np.float64)
    normal = scipy.stats.norm(4.0, deviation)
    exact = -np.log2(normal.cdf(x + 0.5) - normal.cdf(x - 0.5))
    # E log2 p(x + u) = log2 p(x) - var(u) / (2 deviation^2 log 2): u has the variance 1/12.
    mean_of_logs = -normal.logpdf(x) / math.log(2) + 1 / 24 / deviation**2 / math.log(2)

    draws = 300
    found = vr.estimate(
        model, data.test, num_samples=1, per_example=True, dequantize_draws=draws, warn=False
    )
    bits, of_levels = (
        found[f"bits_per_dimension_{name}"].values for name in ("nll", "nll_of_levels")
    )
    assert np.all(of_levels <= bits + 1e-6)
    near = abs(x - 4.0) <= 1.0  # further out one draw decides
    assert near.sum() > 10
    np.testing.assert_allclose(bits[near], mean_of_logs[near], atol=4 * 3.0 / draws**0.5)
    np.testing.assert_allclose(of_levels[near], exact[near], atol=4 * 1.5 / draws**0.5)
    assert np.mean(mean_of_logs - exact) > 0.3


def test_probabilities_have_bits_without_noise():
    data = vr.Data.from_arrays(BITS, kind="table")
    model = linear_vae(vr.Bernoulli(), ["logits"], columns=4)
    model.data_read(data.test.tensors())
    found = vr.estimate(model, data.test, num_samples=3, seed=1)
    assert found["bits_per_dimension_nll"].value == pytest.approx(
        found["negative_log_likelihood"].value / (4 * math.log(2.0)), rel=1e-6
    )
    assert found["bits_per_dimension_elbo"].value == pytest.approx(
        -found["elbo"].value / (4 * math.log(2.0)), rel=1e-6
    )
    assert "bits_per_dimension_nll_of_levels" not in found
    assert "elbo_in_stored_units" not in found
    grey = vr.Data.from_arrays(BITS * 0.5, kind="table")
    with pytest.warns(UserWarning, match="not a normalised likelihood"):
        assert "bits_per_dimension_nll" not in vr.estimate(model, grey.test, num_samples=3)


def test_known_values_alone_have_a_jacobian_and_count():
    known = (RANDOM.random(INTEGERS.shape) < 0.6).astype(np.float32)
    arrays = {"inputs": INTEGERS, "known": known}
    data = vr.Data.from_arrays(arrays, rescale="standardize", kind="table")
    model = linear_vae(vr.GaussianWithVariance(observed="known"))  # it has seen no data
    found = vr.estimate(
        model, data.test, num_samples=2, per_example=True, dequantize_draws=1, warn=False
    )
    mask = data.test.arrays["known"]
    jacobian = -(mask * np.log(data.train.scaling.divisor)).sum(axis=1)
    difference = found["elbo_in_stored_units"].values - found["elbo"].values
    np.testing.assert_allclose(difference, jacobian, atol=1e-4)
    assert np.ptp(jacobian) > 1.0
    assert np.all(np.isfinite(found["bits_per_dimension_nll"].values))


def test_bits_of_missing_values_are_all_bits_over_all_known_values():
    known = RANDOM.integers(0, 9, 200) * (np.arange(200) % 2).astype(np.float64)
    nats = known * RANDOM.uniform(0.5, 1.5, 200)
    found = units.bits(nats, known)
    assert found.mean() == pytest.approx(nats.sum() / known.sum() / math.log(2.0), rel=1e-12)
    # The ratio without each of the examples in turn: the standard error of the jackknife.
    left_out = (nats.sum() - nats) / (known.sum() - known) / math.log(2.0)
    wanted = math.sqrt(199 * left_out.var())
    assert found.std(ddof=1) / math.sqrt(200) == pytest.approx(wanted, rel=0.02)
    assert np.ptp(found[known == 0.0]) == 0.0
    np.testing.assert_array_equal(units.bits(nats, np.full(200, 4.0)), nats / (4 * math.log(2.0)))
    assert units.bits([math.inf, 1.0], np.array([1.0, 2.0])).mean() == math.inf


@pytest.mark.slow
def test_examples_without_a_known_value_do_not_count():
    known = (RANDOM.random(BITS.shape) < 0.7) * (np.arange(len(BITS)) % 2 == 0)[:, None]
    arrays = {"inputs": BITS, "known": known.astype(np.float32)}
    data = vr.Data.from_arrays(arrays, arrays, arrays, kind="table")
    model = linear_vae(vr.Bernoulli(observed="known"), ["logits"], columns=4)
    model.encode(BITS[:2])  # it has seen inputs alone
    model.set_weights([np.zeros_like(each) for each in model.get_weights()])
    assert not data.test.arrays["known"].any(axis=1).all()
    # A logit of 0 is one bit per value, and the posterior is the prior.
    figure = vr.estimate(model, data.test, num_samples=2)["bits_per_dimension_nll"]
    assert figure.value == pytest.approx(1.0, rel=1e-5)
    assert figure.standard_error < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("observed", [None, "known"])
@pytest.mark.parametrize("likelihood", [vr.Bernoulli, vr.ContinuousBernoulli])
def test_a_split_outside_of_the_support_is_refused_as_its_array_is(likelihood, observed):
    grey = RANDOM.random((150, 4), dtype=np.float32)
    grey[-1] = [0.5, 0.5, 1.5, 0.5]  # behind the rows that are looked at first
    arrays = {"inputs": grey, "known": np.ones_like(grey)}
    train = {"inputs": np.array([[0.0] * 4, [1.0] * 4], np.float32), "known": np.ones([2, 4])}
    data = vr.Data.from_arrays(train, train, arrays, rescale="unit", kind="table")
    model = linear_vae(likelihood(observed=observed), ["logits"], columns=4)
    model.data_read(data.test.tensors(slice(0, 2), ["known"]))
    message = "to 1.5, and .*Bernoulli needs values from 0 to 1"
    for given in (data.test.tensors(names=["known"]), data.test):
        with pytest.raises(ValueError, match=message):
            vr.estimate(model, given, num_samples=1, warn=False)
    if observed:  # a missing value may be anything
        arrays["known"][-1, 2] = 0.0
        missing = vr.Data.from_arrays(train, train, arrays, rescale="unit", kind="table")
        assert "elbo" in vr.estimate(model, missing.test, num_samples=1, warn=False)


class WithoutDensities(vr.GaussianBottleneck):
    def call(self, z_mean, z_log_var, seed):
        written = super().call(z_mean, z_log_var, seed)
        return {name: written[name] for name in ("z", "kl")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("likelihood", "outputs", "inputs"),
    [(vr.Bernoulli(), ["logits"], BITS[:, :COLUMNS]), (None, ["x_mean", "x_log_var"], INTEGERS)],
)
def test_a_divergence_without_densities_has_other_units_of_the_elbo_alone(
    likelihood, outputs, inputs
):
    data = vr.Data.from_arrays(inputs, kind="table")
    model = linear_vae(likelihood, outputs, bottleneck=WithoutDensities(LATENT))
    model.data_read(data.test.tensors())
    found = vr.estimate(model, data.test, num_samples=2, dequantize_draws=1, warn=False)
    assert math.isfinite(found["bits_per_dimension_elbo"].value)
    assert ("elbo_in_stored_units" in found) == (likelihood is None)
    assert not [name for name in found if "nll" in name or "negative" in name]


def test_a_density_without_room_for_half_a_level_has_no_bits_and_says_so():
    levels = np.array([[0, 0, 0], [255, 40, 0]], np.uint8)
    data = vr.Data.from_arrays(levels, levels, levels, rescale="unit", kind="table")
    model = linear_vae(vr.ContinuousBernoulli(), ["logits"])
    model.data_read(data.test.tensors())
    with pytest.warns(UserWarning) as warned:
        found = vr.estimate(model, data.test, num_samples=2)
    assert "were not dequantised" in str(warned[0].message)
    assert "has none outside of 0 to 1" in str(warned[1].message)
    assert "elbo_in_stored_units" in found and "bits_per_dimension_nll" not in found
    noisy = data.dequantized()
    assert vr.notes_on_figures(model, noisy.test) == []
    assert "bits_per_dimension_nll" in vr.estimate(model, noisy.test, num_samples=2)


@pytest.mark.parametrize(
    ("likelihood", "values", "wanted"),
    [
        (vr.Gaussian(), BITS, "inputs are 0 or 1"),
        (vr.ContinuousBernoulli(), BITS, "inputs are 0 or 1"),
        (vr.Laplace(), INTEGERS, "are levels, which were not dequantised"),
        (vr.Gaussian(), np.float32(INTEGERS) / 255, "are levels, which were not dequantised"),
        (vr.Gaussian(), CLIPPED, None),
        (vr.Bernoulli(), np.float32(INTEGERS) / 255, "not a normalised likelihood"),
        (vr.Bernoulli(), BITS, None),
        (vr.Gaussian(), RANDOM.random((40, 4)).astype(np.float32), None),
        (vr.DiscretizedLogistic(), np.float32(INTEGERS) / 255, None),
        (vr.Categorical(classes=256), INTEGERS, None),
    ],
)
def test_notes_on_what_is_not_a_probability(likelihood, values, wanted):
    notes = notes_on_likelihood(likelihood, values)
    assert len(notes) == (wanted is not None)
    assert wanted is None or wanted in notes[0]


@pytest.mark.slow
def test_evaluate_and_estimate_warn_in_python_and_fit_does_not():
    model = linear_vae(columns=4)
    model.compile("adam")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        model.fit(BITS, validation_data=BITS, verbose=0)
    assert not [each for each in found if "density" in str(each.message)]
    with pytest.warns(UserWarning, match="inputs are 0 or 1") as warned:
        model.evaluate(BITS, verbose=0)
    assert warned[0].filename == __file__
    with pytest.warns(UserWarning, match="inputs are 0 or 1") as warned:
        vr.estimate(model, BITS, num_samples=1)
    assert warned[0].filename == __file__


def build(config, data):
    return linear_vae()


@pytest.mark.slow
def test_a_run_has_the_figures_and_notes_of_them_in_all_places(tmp_path, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = {"epochs": 1, "latent_dim": LATENT, "importance_samples": 2, "dequantize_draws": 1}
    flags |= {"gradients_every_steps": 0, "batch_size": 100}
    data = data_of("unit", False)
    run = runs.train(build, data=data, run_dir=tmp_path / "run", **flags)
    test, notes = run.summary["test"], run.summary["notes"]
    assert {"elbo_in_stored_units", "negative_log_likelihood_in_stored_units"} <= test.keys()
    (note,) = [each for each in notes if "levels, which were not dequantised" in each]
    printed = capsys.readouterr().out
    assert f"Note: {note}" in printed
    bits = test["bits_per_dimension_nll"]["value"]
    assert f"  bits_per_dimension_nll   {bits:9.4f} +- " in printed
    events = EventAccumulator(str(tmp_path / "run" / "run")).Reload()
    (written,) = events.Tensors("test/notes")
    assert note.encode() in written.tensor_proto.string_val[0]
    with np.load(tmp_path / "run" / "figures.npz") as values:
        assert values["bits_per_dimension_nll"].mean() == pytest.approx(bits, rel=1e-5)


def test_half_of_the_images_are_mirrored_with_xla_and_without():
    images = RANDOM.random((200, 3, 4, 1)).astype(np.float32)
    labels = np.arange(200)
    key = tf.constant([7, 8], tf.int64)
    draw = tf.random.stateless_uniform([200, 1, 1, 1], key, alg="philox")
    wanted = np.where(draw < 0.5, images[:, :, ::-1], images)
    for jit_compile in (False, True):
        mirrored = tf.function(vr.mirrored, jit_compile=jit_compile, autograph=False)
        found = mirrored({"inputs": tf.constant(images), "labels": tf.constant(labels)}, key)
        np.testing.assert_array_equal(found["inputs"], wanted)
        np.testing.assert_array_equal(found["labels"], labels)
    assert 60 < (wanted != images).any(axis=(1, 2, 3)).sum() < 140

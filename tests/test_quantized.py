"""Quantised codes: indices, probabilities, and the codebook that follows the encoder."""

import itertools

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

import vae_research as vr
from vae_research.randomness import evaluation_key

SHAPE = (4, 4, 1)
IMAGES = np.random.default_rng(0).integers(0, 2, (24, *SHAPE)).astype(np.float32)
KEY = tf.constant([3, 7], tf.int64)


def vectors(*shape, seed=0, scale=2.0):
    return scale * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def vector_quantized(latent_dim=(2, 2, 3), num_codes=6, **settings):
    keras.utils.set_random_seed(0)
    bottleneck = vr.VectorQuantizedBottleneck(latent_dim, num_codes, **settings)
    bottleneck.codebook.assign(vectors(num_codes, bottleneck.codebook.shape[1], seed=5))
    return bottleneck


MAKE = {
    "vq": vector_quantized,
    "fsq": lambda **settings: vr.FiniteScalarQuantizedBottleneck((2, 2, 3), (4, 3, 2), **settings),
}


@pytest.fixture(params=MAKE)
def bottleneck(request):
    return MAKE[request.param]()


def written(bottleneck, z_mean, **more):
    seed = {"seed": KEY} if isinstance(bottleneck, vr.VectorQuantizedBottleneck) else {}
    return bottleneck(z_mean, **seed, **more)


# Codes.


def test_every_index_has_a_code_of_its_own(bottleneck):
    indices = np.arange(bottleneck.num_codes, dtype=np.int32)
    codes = bottleneck.from_indices(indices)
    assert len(np.unique(codes, axis=0)) == bottleneck.num_codes
    np.testing.assert_array_equal(bottleneck.to_indices(codes), indices)


def test_a_value_that_was_moved_beyond_its_levels_changes_no_other_one():
    bottleneck = vr.FiniteScalarQuantizedBottleneck(3, (5, 4, 3))
    codes = bottleneck.from_indices(np.arange(60, dtype=np.int32)).numpy()
    moved = codes + np.float32([1.7, -1.7, 0.0])
    again = bottleneck.from_indices(bottleneck.to_indices(moved))
    np.testing.assert_array_equal(again[:, 2], codes[:, 2])
    np.testing.assert_array_equal(again[:, 0].numpy() >= codes[:, 0], True)


def test_a_decoder_sees_codes_and_nothing_else(bottleneck):
    z_mean = vectors(50, 2, 2, 3)
    found = written(bottleneck, z_mean)
    indices = bottleneck.to_indices(found["z"])
    assert indices.shape == (50, 2, 2)
    np.testing.assert_array_equal(found["z"], bottleneck.from_indices(indices))
    np.testing.assert_array_equal(found["z"], bottleneck.center(z_mean))
    assert np.abs(found["z"] - z_mean).max() > 0.1  # the mutant: what was not quantised
    # Nothing is drawn when codes are evaluated.
    np.testing.assert_array_equal(written(bottleneck, z_mean)["z"], found["z"])


def test_vectors_become_the_nearest_code():
    bottleneck, z_mean = vector_quantized(), vectors(50, 2, 2, 3)
    codebook = bottleneck.codebook.numpy()
    distance = np.square(z_mean[..., np.newaxis, :] - codebook).sum(axis=-1)
    wanted = codebook[distance.argmin(axis=-1)]
    np.testing.assert_array_equal(written(bottleneck, z_mean)["z"], wanted)


@pytest.mark.parametrize("levels", [(8,), (5,), (2,), (3,), (7, 4)])
def test_all_levels_are_reached_and_none_beyond(levels):
    bottleneck = vr.FiniteScalarQuantizedBottleneck((len(levels),), levels)
    axis = np.linspace(-30, 30, 4001, dtype=np.float32)
    z = bottleneck(np.stack([axis] * len(levels), axis=1))["z"].numpy()
    for values, level in zip(z.T, levels, strict=True):
        assert np.all(np.diff(values) >= 0.0)
        half = level // 2
        np.testing.assert_allclose(np.unique(values), np.arange(level) / half - 1.0, atol=1e-6)
    # Nothing is the code of nothing (Mentzer et al. 2024, appendix A.1: the shift of even levels).
    np.testing.assert_array_equal(bottleneck.center(tf.zeros([1, len(levels)])), 0.0)


def test_the_gradient_goes_straight_through(bottleneck):
    z_mean, weights = tf.constant(vectors(6, 2, 2, 3, scale=0.5)), vectors(6, 2, 2, 3, seed=1)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(z_mean)
        through = tf.reduce_sum(written(bottleneck, z_mean)["z"] * weights)
        relaxed = tf.reduce_sum(bottleneck.relaxed(z_mean) * weights)
    found = tape.gradient(through, z_mean)
    np.testing.assert_allclose(found, tape.gradient(relaxed, z_mean), rtol=1e-6)
    assert np.all(found != 0.0)
    if isinstance(bottleneck, vr.VectorQuantizedBottleneck):
        np.testing.assert_array_equal(found, weights)


def test_rounding_is_near_what_is_differentiated():
    bottleneck, z_mean = MAKE["fsq"](), vectors(50, 2, 2, 3)
    away = np.abs(bottleneck.relaxed(z_mean) - written(bottleneck, z_mean)["z"])
    assert np.all(away.max(axis=(0, 1, 2)) <= 0.5 / np.array([2, 1, 1]) + 1e-3)


# Probabilities.


def index_priors(num_codes):
    keras.utils.set_random_seed(1)
    autoregressive = vr.AutoregressivePrior(num_codes, units=6, dilations=(1, 2))
    autoregressive.build_for((2, 2))
    random = np.random.default_rng(2)
    for variable in autoregressive.trainable_variables:
        variable.assign(variable + 0.5 * random.standard_normal(variable.shape))
    uniform = vr.UniformPrior(num_codes)
    uniform.build_for((2, 2))
    return {"uniform": uniform, "autoregressive": autoregressive}


ALL = np.array(list(itertools.product(range(3), repeat=4)), np.int32).reshape(-1, 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["uniform", "autoregressive"])
def test_probabilities_add_up_to_one_and_samples_are_drawn_from_them(name):
    prior, count = index_priors(3)[name], 20_000
    probability = np.exp(prior.log_prob(ALL).numpy().astype(np.float64))
    assert probability.sum() == pytest.approx(1.0, abs=1e-5)
    assert (probability.std() > 0.003) == (name == "autoregressive")
    drawn = prior.sample(count, evaluation_key(1, 0)).numpy()
    assert (drawn.dtype, drawn.shape) == (np.int32, (count, 2, 2))
    hits = np.bincount(drawn.reshape(count, 4) @ [27, 9, 3, 1], minlength=81)
    expected = probability / probability.sum() * count
    often = expected > 5
    pooled = [np.append(each[often], each[~often].sum() + 1e-9) for each in (hits, expected)]
    assert scipy.stats.chisquare(*pooled, sum_check=False).pvalue > 1e-3
    other = prior.sample(count, evaluation_key(2, 0))
    assert np.any(other != drawn)
    np.testing.assert_array_equal(prior.sample(count, evaluation_key(1, 0)), drawn)


def test_an_index_does_not_depend_on_itself_or_those_behind_it():
    prior = index_priors(3)["autoregressive"]
    indices = np.array([[0, 1, 2, 0]], np.int32)
    before = prior.logits(indices).numpy()
    for place in range(4):
        other = indices.copy()
        other[0, place] = (other[0, place] + 1) % 3
        changed = np.any(prior.logits(other).numpy() != before, axis=(0, 2))
        assert changed.tolist() == [later > place for later in range(4)]


@pytest.mark.parametrize("quantizer", MAKE)
@pytest.mark.parametrize("name", ["uniform", "autoregressive"])
def test_the_divergence_is_minus_the_log_probability_of_the_code(quantizer, name):
    count = MAKE[quantizer]().num_codes
    prior = index_priors(count)[name]
    bottleneck = MAKE[quantizer](prior=prior)
    found = written(bottleneck, vectors(9, 2, 2, 3))
    wanted = -prior.log_prob(bottleneck.to_indices(found["z"]))
    np.testing.assert_allclose(found["kl"], wanted, rtol=1e-6)
    np.testing.assert_array_equal(found["kl"], found["log_posterior"] - found["log_prior"])
    np.testing.assert_allclose(bottleneck.prior_log_prob(found["z"]), -wanted, rtol=1e-6)
    if name == "uniform":
        np.testing.assert_allclose(found["kl"], 4 * np.log(count), rtol=1e-6)
    samples = bottleneck.sample_prior(5, KEY)
    np.testing.assert_array_equal(bottleneck.from_indices(prior.sample(5, KEY)), samples)


def test_perplexity_is_the_number_of_codes_that_are_used_alike():
    bottleneck = vector_quantized((4, 1, 3))
    codebook = bottleneck.codebook.numpy()
    for indices, wanted in (([0, 0, 0, 0], 1.0), ([0, 1, 2, 5], 4.0), ([0, 0, 1, 1], 2.0)):
        z_mean = np.tile(codebook[indices][:, np.newaxis], (2, 1, 1, 1))
        tensors = written(bottleneck, z_mean)
        np.testing.assert_allclose(tf.reduce_sum(tensors["code_usage"], axis=1), 1.0)
        assert float(vr.Perplexity()(tensors)) == pytest.approx(wanted, rel=1e-5)
    # Of a batch, not of each example: one code in each of two examples.
    halves = codebook[[[0] * 4, [3] * 4]][:, :, np.newaxis]
    assert float(vr.Perplexity()(written(bottleneck, halves))) == pytest.approx(2.0, rel=1e-5)


def test_commitment_pulls_the_encoder_and_nothing_else():
    z_mean, z = tf.constant([[[1.0, 3.0]]]), tf.constant([[[0.0, 1.0]]])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([z_mean, z])
        value = vr.Commitment()({"z_mean": z_mean, "z": z})
    assert value.numpy().tolist() == [5.0]
    np.testing.assert_array_equal(tape.gradient(value, z_mean), [[[2.0, 4.0]]])
    assert tape.gradient(value, z) is None


# The codebook.


def test_codes_follow_by_the_moving_averages_of_the_paper():
    """Appendix A.1, with averages of counts and of sums that begin at zero."""
    bottleneck = vector_quantized(decay=0.8, restart_below=0.0)
    codebook = bottleneck.codebook.numpy().astype(np.float64)
    counts, sums = np.zeros(6), np.zeros((6, 3))
    for step in range(4):
        z_mean = vectors(10, 2, 2, 3, seed=step)
        flat = z_mean.reshape(-1, 3)
        nearest = np.square(flat[:, np.newaxis] - codebook).sum(axis=2).argmin(axis=1)
        found = written(bottleneck, z_mean, training=True)
        # What is decoded are the codes from before the step.
        np.testing.assert_allclose(found["z"].numpy().reshape(-1, 3), codebook[nearest], rtol=1e-4)
        hits = np.eye(6)[nearest]
        counts = 0.8 * counts + 0.2 * hits.sum(axis=0)
        sums = 0.8 * sums + 0.2 * hits.T @ flat
        used = counts > 0
        codebook[used] = sums[used] / counts[used, np.newaxis]
        np.testing.assert_allclose(bottleneck.counts.numpy(), counts, rtol=1e-5)
        np.testing.assert_allclose(bottleneck.codebook.numpy(), codebook, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "XLA"])
def test_a_compiled_step_moves_the_codebook_as_an_eager_one_does(jit_compile):
    # A decay of 0.5 and a high threshold: codes restart, from vectors that the key of the step has.
    eager, compiled = (vector_quantized(decay=0.5, restart_below=0.5) for _ in range(2))
    step = tf.function(
        lambda z_mean, seed: compiled(z_mean, seed, training=True), jit_compile=jit_compile
    )
    restarted = 0
    for number in range(3):
        z_mean = vectors(10, 2, 2, 3, seed=number)
        seed = tf.constant([3, number], tf.int64)
        expected, found = eager(z_mean, seed, training=True), step(z_mean, seed)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
        for ours, theirs in zip(compiled.variables, eager.variables, strict=True):
            np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-4, atol=1e-5)
        # Those that restarted are vectors of the batch, to the last bit.
        flat = z_mean.reshape(-1, 3)
        restarted += sum((flat == code).all(axis=1).any() for code in compiled.codebook.numpy())
    assert restarted


def test_an_evaluation_does_not_move_the_codebook():
    bottleneck = vector_quantized()
    before = [value.numpy() for value in bottleneck.variables]
    written(bottleneck, vectors(10, 2, 2, 3))
    for value, variable in zip(before, bottleneck.variables, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    written(bottleneck, vectors(10, 2, 2, 3), training=True)
    assert np.any(bottleneck.codebook.numpy() != before[0])


def test_codes_that_nothing_is_near_are_put_where_vectors_are():
    bottleneck = vector_quantized(num_codes=4, decay=0.5, restart_below=0.1)
    near = np.array([[0.0] * 3, [1.0] * 3, [50.0] * 3, [60.0] * 3], np.float32)
    bottleneck.codebook.assign(near)
    bottleneck.counts.assign([20.0, 20.0, 20.0, 0.0])
    z_mean = 0.5 + vectors(20, 2, 2, 3, scale=0.1)
    written(bottleneck, z_mean, training=True)
    codebook, counts = bottleneck.codebook.numpy(), bottleneck.counts.numpy()
    # 80 vectors and 4 codes: a code is dead below 0.1 * 20; the third one is not yet.
    np.testing.assert_array_equal(codebook[2], near[2])
    np.testing.assert_allclose(counts[2:], [10.0, 1.1 * 2.0])
    flat = z_mean.reshape(-1, 3)
    (row,) = np.flatnonzero((flat == codebook[3]).all(axis=1))
    # Another step of the same run takes another one; the same step the same one.
    rows = []
    for seed in (KEY, KEY, KEY + tf.constant([0, 1], tf.int64)):
        bottleneck.codebook.assign(near)
        bottleneck.counts.assign([20.0, 20.0, 20.0, 0.0])
        bottleneck(z_mean, seed, training=True)
        found = np.flatnonzero((flat == bottleneck.codebook.numpy()[3]).all(axis=1))
        rows += found.tolist()
    assert rows[0] == rows[1] == row != rows[2]


# Arguments.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: vector_quantized(prior=vr.StandardNormalPrior()),
            "of indices of codes; Stan",
        ),
        (lambda: vector_quantized(prior=vr.RealNVPPrior()), "indices of codes; RealNVPPrior is a"),
        (
            lambda: vr.GaussianBottleneck(2, prior=vr.UniformPrior(3)),
            "GaussianBottleneck takes a prior of real numbers or .*; UniformPrior is a pr",
        ),
        (
            lambda: vector_quantized(prior=vr.AutoregressivePrior(5)),
            r"AutoregressivePrior\(num_codes=5\) .* VectorQuantizedBottleneck has 6",
        ),
        (lambda: vector_quantized(decay=1.0), "decay must be from 0 to below 1, got 1.0"),
        (lambda: vr.VectorQuantizedBottleneck(3, 1), "num_codes must be an integer >= 2, got 1"),
        (
            lambda: vr.FiniteScalarQuantizedBottleneck((2, 2), (3, 3, 3)),
            r"vector of 2 values needs as many levels, got \(3, 3, 3\)",
        ),
        (lambda: vr.FiniteScalarQuantizedBottleneck((1,), (1,)), "levels must be an integer >= 2"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Models.


def model(bottleneck, **settings):
    inputs, z = keras.Input(SHAPE, name="inputs"), keras.Input((2, 2, 3), name="z")
    encoder = keras.Model(inputs, {"z_mean": keras.layers.Conv2D(3, 2, 2)(inputs)})
    decoder = keras.Model(z, {"logits": keras.layers.Conv2DTranspose(1, 2, 2)(z)})
    terms = [vr.Bernoulli(), vr.KLDivergence(), vr.Perplexity()]
    if isinstance(bottleneck, vr.VectorQuantizedBottleneck):
        terms.append(vr.Commitment(weight=0.25))
    return vr.VAE(encoder, bottleneck, decoder, terms, **settings)


def test_a_gradient_estimator_has_no_path_to_follow(bottleneck):
    settings = {"gradient_estimator": vr.DReG(), "importance_weighted": True, "num_samples": 2}
    with pytest.raises(ValueError, match=r"has no log_prob\(self, z"):
        parts = model(bottleneck)
        terms = [vr.Bernoulli(), vr.MonteCarloKL()]
        vr.VAE(parts.encoder, bottleneck, parts.decoder, terms, **settings)


@pytest.mark.slow
def test_a_prior_of_the_indices_is_fitted_after_training():
    vae = model(MAKE["fsq"]())
    prior = vr.AutoregressivePrior(24, units=4, dilations=(1,))
    fitted = vr.fit_prior(vae, IMAGES, prior, epochs=3, batch_size=8, learning_rate=0.1)
    assert fitted is prior  # integers are not whitened
    found = vr.estimate(vae, IMAGES, num_samples=1, prior=fitted)
    log_prob = fitted.log_prob(vae.bottleneck.to_indices(vae.encode(IMAGES)))
    assert found["kl_fitted_prior"].value == pytest.approx(-np.mean(log_prob), rel=1e-5)
    assert found["kl_fitted_prior"].value < found["kl"].value - 0.5
    codes = vae.bottleneck.codes_of_values(fitted.sample(3, tf.constant([0, 0], tf.int64)))
    np.testing.assert_array_equal(vae.sample(3, prior=fitted), vae.decode(codes))
    with pytest.raises(ValueError, match=r"Bottleneck are indices of codes; MixturePrior is a pr"):
        vr.fit_prior(vae, IMAGES, vr.MixturePrior(2))
    with pytest.raises(ValueError, match=r"has 24 codes, and UniformPrior\(num_codes=5\) is the"):
        vr.fit_prior(vae, IMAGES, vr.UniformPrior(5))
    with pytest.raises(ValueError, match=r"needs a prior of real numbers; UniformPrior is a prior"):
        vr.WhitenedPrior(vr.UniformPrior(5))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quantizer", "jit_compile"),
    [
        ("vq", False),
        pytest.param("vq", True, marks=pytest.mark.soak),
        pytest.param("fsq", False, marks=pytest.mark.soak),
        pytest.param("fsq", True, marks=pytest.mark.soak),
    ],
)
def test_a_quantised_model_is_trained_tested_and_saved(quantizer, jit_compile, tmp_path):
    vae = model(MAKE[quantizer]())
    vae.compile(keras.optimizers.SGD(0.01), jit_compile=jit_compile)
    before = [variable.numpy() for variable in vae.bottleneck.variables]
    history = vae.fit(IMAGES, batch_size=24, validation_data=IMAGES, epochs=2, verbose=0).history
    for value, variable in zip(before, vae.bottleneck.variables, strict=True):
        assert np.any(value != variable.numpy())
    codes = vae.bottleneck.num_codes
    assert history["val_kl"] == pytest.approx([4 * np.log(codes)] * 2, rel=1e-6)
    assert 1.0 <= history["val_perplexity"][-1] <= codes
    # Nothing is drawn when codes are evaluated: all samples are one.
    estimated = vr.estimate(vae, IMAGES, num_samples=3)
    assert estimated["elbo"].value == pytest.approx(history["val_elbo"][-1], rel=1e-5)
    elbo = estimated["elbo"].value
    assert estimated["negative_log_likelihood"].value == pytest.approx(-elbo, rel=1e-5)
    vae.save(tmp_path / "model.keras")  # which compares the loaded model to the last bit
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(vae.sample(3), loaded.sample(3))

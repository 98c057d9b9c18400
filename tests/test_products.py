"""Likelihoods of several targets, and of targets with missing values."""

import json

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

import vae_research as vr
from tests.test_linear_gaussian import B, S, W, X, linear_vae
from vae_research import runs
from vae_research.settings import from_config
from vae_research.tensors import Tensors

RANDOM = np.random.default_rng(4)
KNOWN = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]])


def test_log_p_of_a_linear_model_is_that_of_the_values_that_are_known():
    """p(x) of the known columns is the normal distribution of these columns alone."""
    prior_like = np.zeros([4, 2]), np.zeros(2), np.ones(2)  # a proposal wider than the prior
    terms = [vr.Gaussian(standard_deviation=S, observed="known"), vr.MonteCarloKL()]
    vae = linear_vae(*prior_like, terms)
    x = X / 2
    data = {"inputs": np.where(KNOWN, x, 0).astype(np.float32), "known": KNOWN}
    found = vr.estimate(vae, data, num_samples=20000, per_example=True)
    nll = found["negative_log_likelihood"].values
    covariance = W @ W.T + S**2 * np.eye(4)
    wanted = [
        scipy.stats.multivariate_normal(B[k], covariance[np.ix_(k, k)]).logpdf(row[k])
        if k.any()
        else 0.0
        for row, k in zip(x.astype(float), KNOWN.astype(bool), strict=True)
    ]
    np.testing.assert_allclose(-nll, wanted, atol=0.06)
    np.testing.assert_array_equal(found["reconstruction"].values[-1], 0.0)


TARGETS = RANDOM.random((5, 4)).astype(np.float32)
LOGITS = RANDOM.normal(size=(5, 4)).astype(np.float32)
LIKELIHOODS = {
    "Bernoulli": (vr.Bernoulli, {"logits": LOGITS}),
    "ContinuousBernoulli": (vr.ContinuousBernoulli, {"logits": LOGITS}),
    "Gaussian": (vr.Gaussian, {"x_mean": LOGITS}),
    "Laplace": (vr.Laplace, {"x_mean": LOGITS}),
    "GaussianWithVariance": (
        vr.GaussianWithVariance,
        {"x_mean": LOGITS, "x_log_var": LOGITS[:, :1]},  # one variance for all values of a row
    ),
    "Categorical": (
        lambda **settings: vr.Categorical(classes=3, **settings),
        {"targets": RANDOM.integers(0, 3, (5, 4)), "logits": RANDOM.normal(size=(5, 4, 3))},
    ),
    "Poisson": (vr.Poisson, {"targets": RANDOM.integers(0, 9, (5, 4)), "x_log_rate": LOGITS}),
    "DiscretizedLogistic": (
        lambda **settings: vr.DiscretizedLogistic(levels=4, **settings),
        {"targets": np.round(3 * TARGETS) / 3, "x_mean": LOGITS, "x_log_var": LOGITS[:, :1]},
    ),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_what_is_missing_counts_for_nothing(name):
    make, given = LIKELIHOODS[name]
    tensors = {"targets": TARGETS, **given}
    found = make(observed="known")({**as_tensors(tensors), "known": tf.constant(KNOWN)})
    for row, known in enumerate(KNOWN.astype(bool)):
        part = {
            key: value[row : row + 1, known] if value.shape[1] == 4 else value[row : row + 1]
            for key, value in tensors.items()
        }
        expected = make()(as_tensors(part))[0] if known.any() else 0.0
        np.testing.assert_allclose(found[row], expected, rtol=1e-5)
    other = {**tensors, "targets": np.where(KNOWN, tensors["targets"], 0)}
    same = make(observed="known")({**as_tensors(other), "known": tf.constant(KNOWN)})
    np.testing.assert_array_equal(same, found)


def test_a_pixel_is_missing_if_one_of_its_channels_is():
    # Its channels depend on each other, and red has no density given green alone.
    pixels = RANDOM.integers(0, 4, (5, 2, 2, 3)) / np.float32(3)
    mixture = RANDOM.normal(size=(5, 2, 2, 20)).astype(np.float32)
    term = vr.DiscretizedLogisticMixture(components=2, levels=4, observed="known")
    known = RANDOM.integers(0, 4, (5, 2, 2, 3)) > 0
    tensors = as_tensors({"targets": pixels, "x_mixture": mixture})
    found = term({**tensors, "known": tf.constant(known)})
    by_pixel = as_tensors(
        {"targets": pixels.reshape(20, 1, 3), "x_mixture": mixture.reshape(20, 1, 20)}
    )
    each = vr.DiscretizedLogisticMixture(components=2, levels=4)(by_pixel).numpy().reshape(5, 4)
    whole = known.all(axis=-1).reshape(5, 4)
    assert 0 < whole.sum() < 20
    np.testing.assert_allclose(found, (each * whole).sum(axis=1), rtol=1e-5)


def as_tensors(arrays):
    kinds = {"f": tf.float32, "i": tf.int64}
    return {name: tf.constant(value, kinds[value.dtype.kind]) for name, value in arrays.items()}


def test_a_mask_is_shaped_as_the_targets():
    tensors = as_tensors({"targets": TARGETS, "logits": LOGITS})
    with pytest.raises(ValueError, match=r"'known' has shape \(5,\) and .* have shape \(5, 4\)"):
        vr.Bernoulli(observed="known")({**tensors, "known": tf.ones([5])})
    with pytest.raises(ValueError, match="'reconstruction' reads 'known'"):
        vr.Bernoulli(observed="known")(tensors)
    assert vr.Bernoulli(observed="known").reads() == {"targets", "logits", "known"}


def test_categories_have_the_density_of_their_class():
    targets, logits = np.array([0, 2]), np.array([[1.0, 0.0, -1.0], [0.5, 0.5, 2.0]])
    found = vr.Categorical(classes=3)(as_tensors({"targets": targets, "logits": logits}))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, -np.log(p[[0, 1], targets]), rtol=1e-6)
    assert vr.Categorical(classes=3).support == (0.0, 2.0)
    with pytest.raises(ValueError, match=r"needs logits of shape \(2, 3\)"):
        vr.Categorical(classes=3)(as_tensors({"targets": targets, "logits": logits[:, :2]}))
    with pytest.raises(ValueError, match="classes must be an integer >= 2"):
        vr.Categorical(classes=1)


# Image and label.

OF_LABELS = {"targets": "labels", "logits": "label_logits"}


def product(**settings):
    return vr.ProductLikelihood(
        factors=[vr.Bernoulli(), vr.Categorical(classes=3, rename=OF_LABELS)], **settings
    )


def test_a_product_is_the_sum_of_its_factors():
    tensors = Tensors(as_tensors({"targets": TARGETS, "logits": LOGITS}))
    labels = {"labels": np.arange(5) % 3, "label_logits": LOGITS[:, :3]}
    tensors.update(as_tensors(labels) | {"step": tf.constant(0.0)})
    image, label = product().factors
    assert (image.label, label.label) == ("reconstruction_targets", "reconstruction_labels")
    both = image(tensors) + label(tensors)
    assert np.all(label(tensors) > 0.1)
    np.testing.assert_allclose(product()(tensors), both)
    report = vr.Objective([product(weight=2.0)])(tensors)
    np.testing.assert_allclose(report.loss, 2.0 * both, rtol=1e-6)
    expected = {"reconstruction": both, image.label: image(tensors), label.label: label(tensors)}
    assert report.values.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(report.values[name], value)
    assert report.weights.keys() == {"reconstruction"}
    means = product().reconstructions(tensors)
    np.testing.assert_array_equal(means["reconstruction"], tf.sigmoid(LOGITS))
    np.testing.assert_array_equal(means["reconstruction_labels"], LOGITS[:, :3].argmax(axis=1))
    again = from_config(json.loads(json.dumps(product(weight=2.0).to_config())))
    assert again == product(weight=2.0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (vr.ProductLikelihood, "needs factors="),
        (lambda: vr.ProductLikelihood(factors=[vr.KLDivergence()]), "needs factors="),
        (lambda: vr.ProductLikelihood(factors=[vr.Bernoulli(), vr.Gaussian()]), "name of its own"),
        (lambda: vr.ProductLikelihood(factors=[vr.Bernoulli(weight=2.0)]), "of weight 1"),
        (lambda: vr.ProductLikelihood(factors=[product()]), "must be a single likelihood"),
        (lambda: product(observed="known"), "belongs to the factors"),
        (
            lambda: vr.Objective([product(), vr.KLDivergence(name="reconstruction_labels")]),
            "Two loss terms are called 'reconstruction_labels'",
        ),
    ],
)
def test_what_is_no_product_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


IMAGES = RANDOM.integers(0, 256, (40, 4, 4), dtype=np.uint8)
DATA = vr.Data.from_arrays({"inputs": IMAGES, "labels": np.arange(40) % 3})


def build(config, data):
    z = keras.Input([config.latent_dim], name="z")
    logits = keras.layers.Reshape(data.shape)(keras.layers.Dense(16)(z))
    decoder = keras.Model(z, {"logits": logits, "label_logits": keras.layers.Dense(3)(z)})
    return vr.VAE(
        vr.dense_encoder(data.shape, config.latent_dim, hidden_units=(4,)),
        vr.GaussianBottleneck(config.latent_dim),
        decoder,
        [product(), vr.KLDivergence()],
    )


@pytest.mark.slow
def test_a_model_of_image_and_label_has_figures_of_both(tmp_path):
    vae = build(runs.configure(build, latent_dim=2), DATA)
    vae.compile("adam", jit_compile=False)
    train, test = (split.tensors(names=["labels"]) for split in (DATA.train, DATA.test))
    logs = vae.fit(train, batch_size=16, validation_data=test, verbose=0).history
    parts = [logs[f"val_reconstruction_{name}"][0] for name in ("targets", "labels")]
    assert logs["val_reconstruction"][0] == pytest.approx(sum(parts))
    assert logs["val_loss"][0] == pytest.approx(sum(parts) + logs["val_kl"][0])
    found = {name: each.value for name, each in vr.estimate(vae, test, num_samples=50).items()}
    parts = [found[f"reconstruction_{name}"] for name in ("targets", "labels")]
    assert found["reconstruction"] == pytest.approx(sum(parts))
    assert found["elbo"] == pytest.approx(-sum(parts) - found["kl"], rel=1e-5)
    assert found["negative_log_likelihood"] < -found["elbo"]
    vae.save(tmp_path / "model.keras")  # which loads it, and compares variables and ELBO
    assert vae.sample(3).shape == (3, 4, 4, 1)
    assert vae.forward(test)["reconstruction_labels"].shape == [len(DATA.test)]


def test_labels_outside_the_classes_end_a_run_before_it_begins(tmp_path):
    data = vr.Data.from_arrays({"inputs": IMAGES, "labels": np.arange(40) % 4})
    with pytest.raises(vr.DataError, match="labels has values from 0 to 3, and Categorical"):
        runs.train(build, data=data, run_dir=tmp_path / "run", latent_dim=2, batch_size=8)
    assert not (tmp_path / "run").exists()


def test_values_between_integers_end_a_run_before_it_begins(tmp_path):
    def count(config, data):
        decoder = vr.dense_decoder(data.shape, 2, hidden_units=(4,), outputs=["x_log_rate"])
        encoder = vr.dense_encoder(data.shape, 2, hidden_units=(4,))
        return vr.VAE(encoder, vr.GaussianBottleneck(2), decoder, [vr.Poisson(), vr.KLDivergence()])

    data = vr.Data.from_arrays(np.arange(640, dtype=np.float32).reshape(40, 4, 4) / 8)
    with pytest.raises(vr.DataError, match=r"values such as 0\.\d+, and Poisson\(\) needs whole"):
        runs.train(count, data=data, run_dir=tmp_path / "run", latent_dim=2, batch_size=8)
    assert not (tmp_path / "run").exists()

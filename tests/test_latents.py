"""Latents of any shape and number: their levels in every figure, and what looks at their codes."""

from typing import ClassVar

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

import vae_research as vr
from vae_research import callbacks
from vae_research.callbacks.inference import Inference
from vae_research.callbacks.pictures import class_codes
from vae_research.codes import CodeLayout
from vae_research.levels import level_of, levels
from vae_research.tensors import Tensors, of_all_levels

SHAPE = (4, 4, 1)
IMAGES = np.random.default_rng(0).integers(0, 2, (24, *SHAPE)).astype(np.float32)
register = keras.saving.register_keras_serializable(package="test_latents")


def drawn(*names, rows=6, seed=0):
    """Tensors of a forward pass, with densities and divergences of the given names."""
    rng = np.random.default_rng(seed)
    shapes = {name: [rows, 3] if name.startswith("kl") else [rows] for name in names}
    found = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    return Tensors(
        {name: tf.constant(value, tf.float32) for name, value in found.items()}
        | {"value": tf.constant(rng.normal(size=rows), tf.float32), "step": tf.constant(0.0)}
    )


class Given(vr.Likelihood):
    """A likelihood that is read and not computed."""

    def log_likelihood(self, value):
        return value

    def mean(self, value):
        return value


# The rule of names.


def test_a_name_belongs_to_a_level_or_to_none():
    names = ["kl", "kl_z", "log_prior_z_2", "log_posterior_", "klx", "my_kl", "logits", "log_q_z"]
    assert [level_of(name) for name in names] == [
        *(("kl", "z"), ("kl", "z"), ("log_prior", "z_2")),
        *(None, None, None, None, None),
    ]


def test_levels_are_found_in_the_order_in_which_they_were_written():
    found = levels(drawn("log_prior", "kl_top", "log_posterior", "log_prior_top"))
    assert found == {
        "z": {"log_prior": "log_prior", "log_posterior": "log_posterior"},
        "top": {"kl": "kl_top", "log_prior": "log_prior_top"},
    }
    assert levels(drawn("log_posterior")) == {}  # of a model without a prior


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["kl", "kl_z"], "'kl' and 'kl_z', both of the latent 'z'"),
        (
            ["kl", "log_prior_top"],
            "'log_prior_top', which makes 'top' a level.*'log_posterior_top'",
        ),
        (["log_posterior_top"], "needs 'kl_top', or both"),
    ],
)
def test_a_level_is_written_once_and_whole(names, message):
    with pytest.raises(ValueError, match=message):
        vr.Objective([Given()])(drawn(*names))


TWO = ["kl_a", "log_posterior_a", "log_prior_a", "log_posterior_b", "log_prior_b"]


def test_the_elbo_has_all_levels_in_closed_form_where_there_is_one():
    tensors = drawn(*TWO)
    a = tf.reduce_sum(tensors["kl_a"], axis=1)
    b = tensors["log_posterior_b"] - tensors["log_prior_b"]
    elbo = tensors["value"] - a - b
    report = vr.Objective([Given()])(tensors)
    np.testing.assert_allclose(report.elbo, elbo, rtol=1e-6)
    for name, value in {"kl": a + b, "kl_a": a, "kl_b": b}.items():
        np.testing.assert_allclose(report.values[name], value, rtol=1e-6)


def test_one_level_has_no_figure_of_its_own():
    assert vr.Objective([Given()])(drawn("kl")).values.keys() == {"reconstruction", "kl"}


def test_a_term_is_about_all_latents_or_about_one():
    tensors = drawn("kl", "kl_top", "log_posterior", "log_prior", *TWO[1:3])
    del tensors["log_posterior_a"], tensors["log_prior_a"]
    total = {name: tf.reduce_sum(tensors[name], axis=1) for name in ("kl", "kl_top")}
    both = total["kl"] + total["kl_top"]
    np.testing.assert_allclose(vr.KLDivergence()(tensors), both, rtol=1e-5)
    np.testing.assert_array_equal(vr.KLDivergence(latent="top")(tensors), total["kl_top"])
    np.testing.assert_array_equal(vr.KLDivergence(latent="z")(tensors), total["kl"])
    joined = tf.concat([tensors["kl"], tensors["kl_top"]], axis=1)
    kept = tf.maximum(tf.reduce_mean(joined, axis=0), 0.1)
    np.testing.assert_allclose(vr.FreeBits()(tensors), tf.reduce_sum(kept), rtol=1e-5)
    away = tf.abs(tf.reduce_mean(both) - 2.0)
    np.testing.assert_allclose(vr.CapacityKL(capacity=2.0)(tensors), away, rtol=1e-5)


def test_sampled_divergence_is_the_sum_over_all_latents_or_that_of_one():
    tensors = drawn(*TWO)
    parts = {x: tensors[f"log_posterior_{x}"] - tensors[f"log_prior_{x}"] for x in "ab"}
    np.testing.assert_allclose(vr.MonteCarloKL()(tensors), parts["a"] + parts["b"], atol=1e-6)
    np.testing.assert_array_equal(vr.MonteCarloKL(latent="b")(tensors), parts["b"])
    assert vr.MonteCarloKL(latent="b").label == "kl_b"
    assert vr.KLDivergence(latent="b", name="second").label == "second"


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (vr.KLDivergence(), "'kl' reads 'kl_b', .*no divergence in closed form: use MonteCarloKL"),
        (vr.KLDivergence(latent="b"), "'kl_b' reads 'kl_b', .*use MonteCarloKL"),
        (vr.KLDivergence(latent="bb"), "about the latent 'bb'; .* a, b. Did you mean 'b'"),
    ],
)
def test_a_level_without_what_a_term_reads_is_named(term, message):
    with pytest.raises(ValueError, match=message):
        term(drawn(*TWO))


@pytest.mark.parametrize(
    "term",
    [
        vr.KLDivergence(rename={"kl": "divergence_top"}),
        vr.MonteCarloKL(rename={"log_prior": "log_q_z"}),
        vr.MonteCarloKL(rename={"log_posterior": "log_posterior_a", "log_prior": "log_prior_b"}),
        vr.MonteCarloKL(rename={"log_posterior": "log_posterior_a"}),
    ],
    ids=repr,
)
def test_a_trained_divergence_is_part_of_the_elbo(term):
    with pytest.raises(ValueError, match=r"would not be part of the ELBO.*kl_NAME"):
        vr.Objective([Given(), term])
    vr.Objective([Given(), term.__class__(rename=term.rename, weight=None)])


@pytest.mark.parametrize(
    "term", [vr.KLDivergence(rename={"kl": "kl_a"}), vr.KLDivergence(latent="a", name="kl")]
)
def test_the_figure_kl_is_of_all_latents(term):
    with pytest.raises(ValueError, match=r"one latent of a, b, and 'kl' in the logs"):
        vr.Objective([Given(), term])(drawn(*TWO))


def test_latent_and_rename_contradict_each_other():
    with pytest.raises(ValueError, match="latent='b' and rename="):
        vr.KLDivergence(latent="b", rename={"kl": "kl_a"})


def test_a_density_of_another_shape_does_not_broadcast():
    tensors = drawn("log_posterior", "log_prior")
    tensors["log_prior"] = tensors["log_prior"][:, tf.newaxis]
    with pytest.raises(ValueError, match=r"'log_prior' has the shape \(6, 1\).*\[rows\]"):
        vr.Objective([Given()])(tensors)


def test_the_importance_weighted_bound_has_all_levels():
    tensors = drawn(*TWO)
    log_weight = tensors["value"] + sum(
        tensors[f"log_prior_{x}"] - tensors[f"log_posterior_{x}"] for x in "ab"
    )
    by_example = tf.reshape(log_weight, [2, 3])
    wanted = tf.reduce_logsumexp(by_example, axis=1) - np.log(3)
    terms = [Given(), vr.MonteCarloKL()]
    report = vr.Objective(terms, num_samples=3, importance_weighted=True)(tensors)
    np.testing.assert_allclose(report.importance_weighted_bound, wanted, rtol=1e-5)
    np.testing.assert_allclose(report.loss, -wanted, rtol=1e-5)


def test_a_sum_of_levels_that_no_gradient_could_reorder():
    values = [tf.constant(x) for x in (1e8, 1.0, -1e8)]
    tensors = Tensors({f"log_prior_{i}": x[tf.newaxis] for i, x in enumerate(values)})
    tensors.update({f"log_posterior_{i}": x[tf.newaxis] for i, x in enumerate(values)})
    # From the first to the last: 1e8 + 1 is 1e8 in float32.
    assert float(of_all_levels("test", "log_prior", tensors)[0]) == 0.0


# Two levels with a known log p(x).

# p(z_2) = N(0, 1), p(z_1|z_2) = N(a z_2, r^2) and p(x|z_1) = N(W z_1, s^2 I), so that p(x) is
# N(0, (a^2 + r^2) W W^T + s^2 I); the exact posterior is q(z_1|x) q(z_2|z_1), normal both.
A, R, S, W = 1.5, 0.6, 0.5, np.array([[2.0, -1.0, 0.5, 0.25]])
V = A**2 + R**2
P = 1.0 / (1.0 / V + (W**2).sum() / S**2)
X = np.random.default_rng(3).normal(size=(5, 4)).astype(np.float32)


@register
class LinearLevels(vr.Bottleneck):
    """The posterior of the model above; `mistake` moves the mean of q(z_2|z_1)."""

    latents: ClassVar = {"z_1": (1,), "z_2": (1,)}

    def __init__(self, mistake=0.0, closed_form=False, **kwargs):
        super().__init__(**kwargs)
        self.mistake, self.closed_form = mistake, closed_form

    def call(self, z_mean, z_log_var, seed):
        z_1 = sample(z_mean, z_log_var, vr.fold_in(seed, 1))
        mean, log_var = self.mistake + A / V * z_1, tf.math.log([R**2 / V])
        z_2 = sample(mean, log_var, vr.fold_in(seed, 2))
        found = {"z_1": z_1, "z_2": z_2}
        if self.closed_form:
            found["kl_z_2"] = 0.5 * (mean**2 + tf.exp(log_var) - log_var - 1.0)
        return found | {
            "log_posterior_z_1": density(z_1, z_mean, z_log_var),
            "log_posterior_z_2": density(z_2, mean, log_var),
            "log_prior_z_1": density(z_1, A * z_2, tf.math.log([R**2])),
            "log_prior_z_2": density(z_2, 0.0, [0.0]),
        }

    def center(self, z_mean):
        return {"z_1": z_mean, "z_2": A / V * z_mean}

    def sample_prior(self, count, seed):
        z_2 = vr.standard_normal([count, 1], vr.fold_in(seed, 1))
        return {"z_1": A * z_2 + R * vr.standard_normal([count, 1], seed), "z_2": z_2}


def sample(mean, log_var, key):
    return mean + tf.exp(0.5 * log_var) * vr.standard_normal(tf.shape(mean), key)


def density(z, mean, log_var):
    return vr.sum_over_event(vr.normal_log_density(z, mean, log_var))


def linear_model(**settings):
    inputs, z = keras.Input((4,), name="inputs"), keras.Input((1,), name="z_1")
    heads = {name: keras.layers.Dense(1, name=name) for name in ("z_mean", "z_log_var")}
    encoder = keras.Model(inputs, {name: head(inputs) for name, head in heads.items()})
    decoder = keras.Model(z, {"x_mean": keras.layers.Dense(4, use_bias=False, name="x")(z)})
    heads["z_mean"].set_weights([P / S**2 * W.T, np.zeros(1)])
    heads["z_log_var"].set_weights([np.zeros([4, 1]), np.log([P])])
    decoder.get_layer("x").set_weights([W])
    terms = [vr.Gaussian(standard_deviation=S), vr.MonteCarloKL()]
    return vr.VAE(encoder, LinearLevels(**settings), decoder, terms)


def log_p(x):
    return scipy.stats.multivariate_normal(cov=V * W.T @ W + S**2 * np.eye(4)).logpdf(x)


@pytest.mark.slow
def test_elbo_and_nll_of_two_exact_levels_are_log_p():
    vae = linear_model()
    _, report = vae.report(X)
    np.testing.assert_allclose(report.elbo, log_p(X), rtol=1e-4)
    np.testing.assert_allclose(-report.loss, log_p(X), rtol=1e-4)
    found = vr.estimate(vae, X, num_samples=2, per_example=True)
    np.testing.assert_allclose(found["elbo"].values, log_p(X), rtol=1e-4)
    np.testing.assert_allclose(found["negative_log_likelihood"].values, -log_p(X), rtol=1e-4)
    assert found["kl"].value == pytest.approx(found["kl_z_1"].value + found["kl_z_2"].value)


def test_closed_form_of_one_level_and_samples_of_the_other_have_one_mean():
    # q(z_2|z_1) is 0.2 off: log p(x) minus ELBO is KL(q(z_2|z_1) || p(z_2|z_1)) = 0.2^2 / (2 var).
    exact = log_p(X).mean() - 0.5 * 0.2**2 / (R**2 / V)
    for closed_form in (False, True):
        vae = linear_model(mistake=0.2, closed_form=closed_form)
        _, report = vae.report(np.repeat(X, 4000, axis=0))
        by_example = report.elbo.numpy().astype(np.float64).reshape(5, -1)
        error = np.sqrt(by_example.var(axis=1).mean() / by_example.size)
        assert by_example.mean() == pytest.approx(exact, abs=4.0 * error)


def test_codes_of_several_latents_are_named():
    vae = linear_model()
    codes = vae.encode(X)
    assert {name: tuple(code.shape) for name, code in codes.items()} == {
        "z_1": (5, 1),
        "z_2": (5, 1),
    }
    np.testing.assert_allclose(codes["z_1"][:, 0], P / S**2 * (X @ W[0]), rtol=1e-5)
    np.testing.assert_array_equal(vae.decode(codes), vae.reconstruct(X))
    assert vae.sample(3).shape == (3, 4)
    with pytest.raises(ValueError, match=r"latents are z_1, z_2\. A dictionary"):
        vae.decode(codes["z_1"])
    with pytest.raises(ValueError, match="z_2 is missing"):
        vae.decode({"z_1": codes["z_1"]})


# Columns of codes.


def test_codes_are_flattened_in_one_place_and_back():
    layout = CodeLayout({"a": (2, 1, 2), "b": (3,)})
    codes = {
        "a": tf.reshape(tf.range(8), [2, 2, 1, 2]),
        "b": tf.reshape(tf.range(100, 106), [2, 3]),
    }
    flat = layout.flatten(codes)
    assert flat.numpy().tolist() == [[0, 1, 2, 3, 100, 101, 102], [4, 5, 6, 7, 103, 104, 105]]
    assert layout.size == len(layout.labels) == 7
    assert layout.labels[1:5] == ["a[0,0,1]", "a[1,0,0]", "a[1,0,1]", "b[0]"]
    for name, value in layout.unflatten(flat).items():
        np.testing.assert_array_equal(value, codes[name])


def test_a_flat_code_is_its_own_columns():
    codes, layout = tf.ones([3, 2]), CodeLayout({"z": (2,)})
    assert layout.flatten(codes) is codes
    assert layout.unflatten(codes) is codes


@pytest.mark.parametrize(
    "latents", [{}, None, {"z": ()}, {"z": 3}, {"z": (0,)}, {"z": (2.0,)}, {"my z": (2,)}, [3]]
)
def test_latents_that_are_no_shapes_are_refused_when_a_model_is_made(latents):
    class Own(vr.GaussianBottleneck):
        pass

    bottleneck = Own(2)
    Own.latents = latents
    with pytest.raises(ValueError, match=r"Own declares latents = .*\"z\": \(20,\)"):
        vr.VAE(vr.dense_encoder(SHAPE, 2), bottleneck, vr.dense_decoder(SHAPE, 2), [vr.Bernoulli()])


def test_an_array_of_the_data_is_no_level():
    with pytest.raises(ValueError, match=r"array 'kl_pixels'.*Give it another name"):
        linear_model().report({"inputs": X, "kl_pixels": X[:, 0]})
    with pytest.raises(vr.DataError, match=r"'log_prior_x'.*another name"):
        vr.Data.from_arrays({"inputs": IMAGES, "log_prior_x": IMAGES})


class Judging(vr.LossTerm):
    """How far codes of the prior are from those of the data, whatever that may be good for."""

    def per_example(self, score):
        return score[:, 0]


def test_a_critic_reads_samples_of_several_latents():
    judge = vr.named(keras.layers.Dense(1), "score", reads=["z_2_prior"])
    plain = linear_model()
    vae = vr.VAE(
        *(plain.encoder, plain.bottleneck, plain.decoder, plain.objective.terms),
        critics=[vr.Critic(judge, [Judging()])],
    )
    tensors, _ = vae.report(X)
    assert tensors["z_1_prior"].shape == tensors["z_2_prior"].shape == (5, 1)


@register
class Undeclared(vr.Bottleneck):
    """Writes another shape than it says."""

    def call(self, z_mean):
        return {"z": z_mean[:, tf.newaxis]}


def test_a_code_of_another_shape_is_refused_in_the_first_pass():
    model = vr.VAE(
        vr.dense_encoder(SHAPE, 2, outputs=["z_mean"]),
        Undeclared(2),
        vr.dense_decoder(SHAPE, 2),
        [vr.Bernoulli()],
    )
    model.compile("adam")
    message = r"'z' with the shape .*\(2,\) for each row.*latents = \{'z': \(1, 2\)\}"
    with pytest.raises(ValueError, match=message):
        model.fit(IMAGES, verbose=0)
    assert model.step == 0


def test_the_encoder_writes_codes_of_the_shape_that_a_gaussian_has():
    flat = tf.zeros([3, 2])
    with pytest.raises(ValueError, match=r"needs the shape \(2, 1\) for each row"):
        vr.GaussianBottleneck((2, 1))(flat, flat, tf.constant([0, 0], tf.int64))


@pytest.mark.parametrize("bad", [(), (2, 0), (2, 2.5), ("2",)])
def test_a_shape_has_positive_integers(bad):
    with pytest.raises(ValueError, match="latent_dim must be an integer >= 1"):
        vr.GaussianBottleneck(bad)


# Models.


def spatial_model(prior=None):
    """A Gaussian code of shape (2, 2, 3), which convolutions write and read."""
    inputs, z = keras.Input(SHAPE, name="inputs"), keras.Input((2, 2, 3), name="z")
    heads = {n: keras.layers.Conv2D(3, 2, 2, name=n)(inputs) for n in ("z_mean", "z_log_var")}
    logits = keras.layers.Conv2DTranspose(1, 2, 2)(z)
    return vr.VAE(
        keras.Model(inputs, heads),
        vr.GaussianBottleneck((2, 2, 3), prior=prior),
        keras.Model(z, {"logits": logits}),
        [vr.Bernoulli(), vr.KLDivergence() if prior is None else vr.MonteCarloKL()],
    )


@register
class TwoLevels(vr.Bottleneck):
    """A map z_1 whose prior depends on a vector z_2; the decoder reads both, and that mean."""

    latents: ClassVar = {"z_1": (2, 2, 1), "z_2": (3,)}

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.down = keras.layers.Dense(4)

    def mean_1(self, z_2):
        return tf.reshape(self.down(z_2), [-1, 2, 2, 1])

    def call(self, mean_1, mean_2, seed):
        zero = tf.zeros([])
        z_1 = sample(mean_1, zero, vr.fold_in(seed, 1))
        z_2 = sample(mean_2, zero, vr.fold_in(seed, 2))
        prior_mean = self.mean_1(z_2)
        return {"z_1": z_1, "z_2": z_2, "kl_z_2": 0.5 * tf.square(mean_2), "hint": prior_mean} | {
            "log_posterior_z_1": density(z_1, mean_1, zero),
            "log_prior_z_1": density(z_1, prior_mean, zero),
            "log_posterior_z_2": density(z_2, mean_2, zero),
            "log_prior_z_2": density(z_2, zero, zero),
        }

    def center(self, mean_1, mean_2):
        return {"z_1": mean_1, "z_2": mean_2, "hint": self.mean_1(mean_2)}

    def sample_prior(self, count, seed):
        z_2 = vr.standard_normal([count, 3], vr.fold_in(seed, 2))
        mean = self.mean_1(z_2)
        return {"z_1": sample(mean, 0.0, vr.fold_in(seed, 1)), "z_2": z_2, "hint": mean}


def two_level_model():
    inputs = keras.Input(SHAPE, name="inputs")
    means = {
        "mean_1": keras.layers.Conv2D(1, 2, 2)(inputs),
        "mean_2": keras.layers.Dense(3)(keras.layers.Flatten()(inputs)),
    }
    shapes = {"z_1": (2, 2, 1), "z_2": (3,), "hint": (2, 2, 1)}
    read = {name: keras.Input(shape, name=name) for name, shape in shapes.items()}
    flat = [keras.layers.Flatten()(value) for value in read.values()]
    logits = keras.layers.Dense(16)(keras.layers.Concatenate()(flat))
    decoder = keras.Model(read, {"logits": keras.layers.Reshape(SHAPE)(logits)})
    terms = [vr.Bernoulli(), vr.KLDivergence(latent="z_2"), vr.MonteCarloKL(latent="z_1")]
    return vr.VAE(keras.Model(inputs, means), TwoLevels(), decoder, terms)


def scalars_in(folder):
    events = EventAccumulator(str(folder)).Reload()
    found = {tag: events.Tensors(tag) for tag in events.Tags()["tensors"]}
    numbers = {
        tag: [tensor_util.make_ndarray(event.tensor_proto) for event in written]
        for tag, written in found.items()
        if tag.startswith("latent/kl")
    }
    return {tag: values for tag, values in numbers.items() if np.ndim(values[0]) == 0}


def fitted(vae, folder, *more):
    """Trains a model for an epoch with callbacks; returns what they found, and the figures."""
    shared = Inference(IMAGES)
    watching = [
        callbacks.Latents(folder, shared),
        callbacks.Pictures(folder, shared, columns=4),
        callbacks.Projector(folder, shared),
        callbacks.Scalars(folder),
        *more,
    ]
    vae.compile("adam", jit_compile=False)
    figures = vae.fit(
        *(IMAGES, None, 8), validation_data=IMAGES, callbacks=watching, verbose=0
    ).history
    found, size = shared(vae), vae.code_layout.size
    assert found["code"].shape == found["z"].shape == (24, size)
    assert (found["own"] != found["permuted"]).any()
    (points,) = (folder / "validation").rglob("codes.tsv")
    assert np.loadtxt(points).shape == (24, size)
    elbo = -np.add(figures["val_reconstruction"], figures["val_kl"])
    assert figures["val_elbo"] == pytest.approx(elbo)
    assert scalars_in(folder / "validation")["latent/kl_total"] == pytest.approx(figures["val_kl"])
    assert vae.sample(3).shape == vae.reconstruct(IMAGES[:3]).shape == (3, *SHAPE)
    vae.save(folder / "model.keras")  # which loads it, and compares variables and ELBO
    return found, {name: values[-1] for name, values in figures.items()}


@pytest.mark.slow
def test_a_spatial_code_is_trained_watched_tested_saved_and_loaded(tmp_path):
    vae = spatial_model()
    more = callbacks.Overview(tmp_path, IMAGES[:2]), callbacks.Gradients(tmp_path, IMAGES)
    found, figures = fitted(vae, tmp_path, *more)
    assert found["kl_of_columns"].shape == (24, 12)
    assert found["kl"].sum(axis=1).mean() == pytest.approx(figures["val_kl"])
    estimated = vr.estimate(vae, IMAGES, num_samples=4)
    assert estimated["kl"].value == pytest.approx(figures["val_kl"])
    assert estimated["negative_log_likelihood"].value < -estimated["elbo"].value
    assert estimated["active_units"].count == 24
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.code_layout == vae.code_layout
    np.testing.assert_array_equal(loaded.sample(2, seed=1), vae.sample(2, seed=1))


@pytest.mark.slow
def test_two_levels_are_trained_watched_and_saved(tmp_path):
    vae = two_level_model()
    found, figures = fitted(vae, tmp_path)
    assert "kl" not in found  # one level has no closed form
    assert figures["val_kl"] == pytest.approx(figures["val_kl_z_1"] + figures["val_kl_z_2"])
    written = scalars_in(tmp_path / "validation")
    for name in ("z_1", "z_2"):
        assert written[f"latent/kl/{name}"] == pytest.approx([figures[f"val_kl_{name}"]])
    # The weight of either level is 1, so that the loss is minus the ELBO.
    assert figures["val_loss"] == pytest.approx(-figures["val_elbo"])


def model_of(posterior):
    """A model of each posterior, with codes of few values."""
    inputs = keras.Input(SHAPE, name="inputs")
    spatial = {"z_mean": keras.layers.Conv2D(2, 2, 2)(inputs)}
    terms = [vr.Bernoulli(), vr.KLDivergence()]
    if posterior == "full":
        outputs = {"z_mean": 3, "z_log_var": 3, "z_scale_lower": 3}
        encoder = vr.dense_encoder(SHAPE, 3, hidden_units=(4,), outputs=outputs)
        bottleneck = vr.FullCovarianceGaussianBottleneck(3)
    elif posterior == "flow":
        outputs = {"z_mean": 3, "z_log_var": 3, "z_context": 2}
        encoder = vr.dense_encoder(SHAPE, 3, hidden_units=(4,), outputs=outputs)
        flows = [vr.InverseAutoregressiveFlow((5,)), vr.InverseAutoregressiveFlow((5,))]
        bottleneck = vr.FlowBottleneck(3, flows, context_dim=2)
        terms = [vr.Bernoulli(), vr.MonteCarloKL()]
    elif posterior == "sphere":
        outputs = {"z_mean": 3, "z_concentration": 1}
        encoder = vr.dense_encoder(SHAPE, 3, hidden_units=(4,), outputs=outputs)
        bottleneck = vr.PowerSphericalBottleneck(3)
    elif posterior == "joint":
        outputs = {"z_mean": 2, "z_log_var": 2, "c_logits": 4}
        encoder = vr.dense_encoder(SHAPE, 2, hidden_units=(4,), outputs=outputs)
        discrete = vr.RelaxedCategoricalBottleneck(4)
        bottleneck = vr.JointBottleneck({"z": vr.GaussianBottleneck(2), "c": discrete})
        terms = [
            vr.Bernoulli(),
            *(
                vr.CapacityKL(latent=name, capacity=value)
                for name, value in (("z", 5.0), ("c", 1.0))
            ),
        ]
    elif posterior == "ladder":
        latents, dense = [(2, 2, 1), (3,), (2,)], keras.layers.Dense
        up = [keras.layers.Conv2D(2, 2, 2), keras.layers.Flatten(), dense(4)]
        encoder = vr.ladder_encoder(SHAPE, latents, up)
        bottleneck = vr.LadderBottleneck(vr.ladder_top_down(latents, [dense(4), dense(4)]))
    elif posterior == "vector quantised":
        encoder, bottleneck = (
            keras.Model(inputs, spatial),
            vr.VectorQuantizedBottleneck((2, 2, 2), 5),
        )
        terms += [vr.Commitment(weight=0.25), vr.Perplexity()]
    else:
        encoder = keras.Model(inputs, spatial)
        bottleneck = vr.FiniteScalarQuantizedBottleneck((2, 2, 2), (4, 3))
        terms += [vr.Perplexity()]
    latents = dict(list(bottleneck.latents.items())[: 1 if posterior == "ladder" else 2])
    codes = {name: keras.Input(shape, name=name) for name, shape in latents.items()}
    flat = [keras.layers.Flatten()(code) for code in codes.values()]
    logits = keras.layers.Dense(16)(keras.layers.Concatenate()(flat) if flat[1:] else flat[0])
    read = codes if flat[1:] else next(iter(codes.values()))
    decoder = keras.Model(read, {"logits": keras.layers.Reshape(SHAPE)(logits)})
    return vr.VAE(encoder, bottleneck, decoder, terms)


SELDOM = ("full", "flow", "sphere", "joint", "ladder", "finite scalar")


@pytest.mark.slow
@pytest.mark.parametrize(
    "posterior",
    [
        # Every day in test_whole_models.py.
        *(pytest.param(n, marks=pytest.mark.soak) for n in ["vector quantised", *SELDOM]),
    ],
)
def test_every_posterior_is_trained_watched_and_saved(posterior, tmp_path):
    vae = model_of(posterior)
    found, figures = fitted(vae, tmp_path, callbacks.Gradients(tmp_path, IMAGES))
    # That of z_1 and z_2 depends on noise above, which is not that of the validation.
    accuracy = 0.4 if posterior == "ladder" else 1e-5
    if posterior == "flow":
        assert "kl" not in found
        assert found["log_densities"].shape == (vae.bottleneck.compared_codes, 24)
        return
    assert found["kl"].sum(axis=1).mean() == pytest.approx(figures["val_kl"], rel=accuracy)
    assert ("kl_of_columns" in found) == (posterior == "ladder")
    if posterior == "sphere":
        assert np.linalg.norm(found["code"], axis=1) == pytest.approx(1.0)
        assert "log_densities" in found
    if "quantised" in posterior:
        np.testing.assert_array_equal(found["code"], found["z"])
        assert 1.0 <= figures["val_perplexity"] <= vae.bottleneck.num_codes


class OneNumber(vr.GaussianBottleneck):
    """Writes the divergence of the whole code, as a full covariance would have it."""

    def call(self, z_mean, z_log_var, seed):
        found = super().call(z_mean, z_log_var, seed)
        return found | {"kl": vr.sum_over_event(found["kl"])}


@pytest.mark.slow
def test_a_divergence_is_not_indexed_by_the_code(tmp_path):
    vae = vr.VAE(
        vr.dense_encoder(SHAPE, 3, hidden_units=(4,)),
        OneNumber(3),
        vr.dense_decoder(SHAPE, 3, hidden_units=(4,)),
        [vr.Bernoulli(), vr.KLDivergence()],
    )
    shared = Inference(IMAGES)
    found = shared(vae)
    assert found["kl"].shape == (24, 1)
    assert "kl_of_columns" not in found
    _, report = vae.report(IMAGES)
    np.testing.assert_allclose(report.values["kl"], found["kl"][:, 0], rtol=1e-6)
    traversals = callbacks.Pictures(tmp_path, shared).draw(vae)["traversals"]
    assert traversals.shape[0] == 3 * (SHAPE[0] + 1) + 1  # a row for each dimension, with borders


@pytest.mark.slow
def test_pictures_show_the_classes_of_one_hot_codes_and_move_the_others(tmp_path):
    vae = model_of("joint")
    decoded = []
    decode = vae.decode
    vae.decode = lambda z, **more: decoded.append(z) or decode(z, **more)
    drawing = callbacks.Pictures(tmp_path, IMAGES[:4], columns=2)
    drawing._decode = drawing._decode.python_function  # which is not compiled
    pictures = drawing.draw(vae)
    assert pictures.keys() == {"reconstructions", "errors", "samples", "traversals", "classes"}
    (codes,) = decoded
    assert np.all(np.sort(codes["c"], axis=1) == [0, 0, 0, 1])
    moved, classes = slice(-18, -4), slice(-4, None)  # two rows of seven, and the four classes
    assert np.all(codes["c"][moved] == codes["c"][0])
    assert np.all(codes["z"][classes] == codes["z"][0])
    np.testing.assert_array_equal(codes["c"][classes], np.eye(4))
    side, gap = SHAPE[0], 2
    assert pictures["classes"].shape[:2] == (side, 4 * (side + gap) - gap)


def test_a_variable_with_fewer_classes_than_others_has_them_again():
    code = np.array([0.5, 1, 0, 0, 1, 0], np.float32)
    found = class_codes(code, [range(1, 4), range(4, 6)])
    wanted = [[1, 0, 0, 1, 0], [0, 1, 0, 1, 0], [0, 0, 1, 1, 0]]
    wanted += [[1, 0, 0, 1, 0], [1, 0, 0, 0, 1], [1, 0, 0, 1, 0]]
    np.testing.assert_array_equal(found, [[0.5, *row] for row in wanted])


def test_a_prior_of_another_family_has_the_shape_of_the_code():
    vae = spatial_model(vr.MixturePrior(3))
    _, report = vae.report(IMAGES)
    assert report.elbo.shape == (24,)
    assert vae.encode(IMAGES).shape == (24, 2, 2, 3)
    assert vae.bottleneck.sample_prior(5, tf.constant([0, 1])).shape == (5, 2, 2, 3)

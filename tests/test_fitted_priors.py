"""Priors that are fitted to the codes of a trained model: what they are, and runs that have one."""

import json
import random
import signal

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

import vae_research as vr
from tests.test_latents import S as LEVELS_S
from tests.test_latents import W as LEVELS_W
from tests.test_latents import linear_model
from tests.test_linear_gaussian import SAMPLED, B, S, W, exact_vae
from vae_research import checkpoints, runs
from vae_research.randomness import evaluation_key
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.session.loading import _fitted_prior

KEY = evaluation_key(7, 0)
MEAN, COVARIANCE = np.array([1.0, -0.5]), np.array([[0.5, 0.2], [0.2, 0.3]])


def of_linear_model(count, seed=0):
    """Data of the linear model, but with another prior than the standard normal one."""
    rng = np.random.default_rng(seed)
    z = rng.multivariate_normal(MEAN, COVARIANCE, count)
    return (z @ W.T + B + S * rng.normal(size=(count, 4))).astype(np.float32)


@pytest.mark.slow
def test_the_figures_under_a_fitted_prior_are_those_of_the_model_with_that_prior():
    """A linear Gaussian model with a normal prior has a known log p(x)."""
    vae, x = exact_vae(SAMPLED), of_linear_model(20)
    prior = vr.fit_prior(vae, of_linear_model(500), vr.StandardNormalPrior())
    mean, root = prior.mean.numpy().astype(float), prior.root.numpy().astype(float)
    covariance = W @ root @ root.T @ W.T + S**2 * np.eye(4)
    log_p = scipy.stats.multivariate_normal(W @ mean + B, covariance).logpdf(x)
    found = vr.estimate(vae, x, num_samples=3000, prior=prior, per_example=True)
    nll = found["negative_log_likelihood_fitted_prior"].values
    np.testing.assert_allclose(-nll, log_p, atol=0.05)
    assert np.abs(found["negative_log_likelihood"].values + log_p).mean() > 0.3  # another model
    elbo, kl = (found[f"{name}_fitted_prior"].values for name in ("elbo", "kl"))
    np.testing.assert_allclose(elbo, -found["reconstruction"].values - kl, rtol=1e-5)
    assert np.all(elbo < -nll + 1e-4)
    assert "elbo_fitted_prior" not in vr.estimate(vae, x, num_samples=2)


def test_a_fit_to_posterior_samples_has_their_moments():
    """Of the exact posterior, averaged over data of the model: the true prior of the data."""
    prior = vr.fit_prior(exact_vae(SAMPLED), x := of_linear_model(4000), vr.StandardNormalPrior())
    # z = P W^T (x - b) / s^2 + noise, of which mean and covariance are linear in those of x.
    gain = np.linalg.inv(np.eye(2) + W.T @ W / S**2)
    kernel = gain @ W.T / S**2
    mean = kernel @ (x.mean(axis=0) - B)
    covariance = kernel @ np.cov(x.T) @ kernel.T + gain
    np.testing.assert_allclose(prior.mean, mean, atol=0.03)
    np.testing.assert_allclose(prior.root @ tf.transpose(prior.root), covariance, atol=0.03)


def autoencoder():
    """Its codes are the data."""
    encoder, decoder = keras.Sequential([keras.layers.Identity()]), keras.layers.Identity()
    return vr.VAE(
        vr.named(encoder, "z_mean"),
        vr.DeterministicBottleneck(2),
        vr.named(decoder, "x_mean"),
        [vr.Gaussian()],
    )


def two_clouds(count, seed=0):
    """Of different spread, far from each other and from the origin."""
    rng = np.random.default_rng(seed)
    second = rng.random((count, 1)) < 0.3
    noise = rng.normal(size=(count, 2)) * np.where(second, [1.0, 4.0], [5.0, 0.5])
    return (noise + np.where(second, [300.0, -40.0], [330.0, -10.0])).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: vr.MixturePrior(4),
        lambda: vr.RealNVPPrior(4, hidden_units=(32,)),
        vr.SecondStagePrior,
    ],
    ids=["mixture", "flow", "second stage"],
)
def test_a_fitted_prior_is_closer_to_the_codes_than_one_normal_distribution(make):
    vae, train, test = autoencoder(), two_clouds(1000), two_clouds(1000, seed=1)
    prior = vr.fit_prior(vae, train, make(), batch_size=50)
    normal = vr.fit_prior(vae, train, vr.StandardNormalPrior())
    # In the middle between the clouds there is nothing.
    samples = [vae.sample(2000, prior=each).numpy() for each in (prior, normal)]
    between = [np.mean((each[:, 1] > -27) & (each[:, 1] < -15)) for each in samples]
    assert between[0] < 0.7 * between[1]
    bounds = [
        -each.training_loss(tf.constant(test), KEY).numpy().mean() for each in (prior, normal)
    ]
    assert bounds[0] > bounds[1] + 0.3
    found = vr.estimate(vae, test, num_samples=2, prior=prior)
    if prior.has_density:  # of an autoencoder it is all that is known of the prior
        assert found["log_density_fitted_prior"].value == pytest.approx(bounds[0], rel=1e-4)
    assert not {"elbo", "elbo_fitted_prior"} & found.keys()


def test_the_bound_of_a_second_stage_is_below_its_density():
    keras.utils.set_random_seed(0)
    prior = vr.SecondStagePrior(1, hidden_units=(8,))
    prior.build_for((1,))
    prior.log_var.assign(-0.5)
    z = tf.constant([[-1.0], [0.3], [2.0]])
    u = np.linspace(-8, 8, 4001)[:, np.newaxis]
    decoded = prior.decoder(u).numpy().T.astype(float)
    variance = np.exp(20 * np.tanh(-0.5 / 20))
    joint = scipy.stats.norm(decoded, variance**0.5).pdf(z) * scipy.stats.norm.pdf(u.T)
    density = np.log(joint.sum(axis=1) * 0.004)
    draws = -prior.training_loss(tf.repeat(z, 400, axis=0), KEY).numpy().reshape(3, 400)
    bound, error = draws.mean(axis=1), draws.std(axis=1) / 20
    assert np.all(bound < density + 3 * error)
    assert np.all(bound > density - 3.0)
    mean, spread = (prior.sample(20000, KEY).numpy(), np.sqrt(20000))
    values = scipy.stats.norm.pdf(u.T) * 0.004
    first = (decoded * values).sum()
    second = ((decoded**2 + variance) * values).sum()
    assert abs(mean.mean() - first) < 4 * mean.std() / spread
    assert abs((mean**2).mean() - second) < 4 * (mean**2).std() / spread


@pytest.mark.slow
def test_a_fit_repeats_and_changes_nothing_else():
    vae, x = exact_vae(SAMPLED), of_linear_model(300)
    weights = checkpoints.weights_sha256(vae)
    random.seed(3)
    expected = random.getstate()
    first, again, other = (
        vr.fit_prior(vae, x, vr.MixturePrior(3), epochs=2, batch_size=100, seed=seed)
        for seed in (1, 1, 2)
    )
    assert random.getstate() == expected
    assert checkpoints.weights_sha256(vae) == weights
    for one, two in zip(first.variables, again.variables, strict=True):
        np.testing.assert_array_equal(one, two)
    assert np.any(first.prior.mean != other.prior.mean)


def test_several_latents_are_columns_of_one_prior():
    vae = linear_model()
    x = np.random.default_rng(3).normal(size=(200, 4)).astype(np.float32)
    prior = vr.fit_prior(vae, x, vr.StandardNormalPrior())
    assert prior.event_shape == (2,)
    codes = vae.codes_from_prior(3, KEY, prior)
    assert codes.keys() == {"z_1", "z_2"}
    np.testing.assert_array_equal(vae.code_layout.flatten(codes), prior.sample(3, KEY))
    # p(x) of the model whose z_1 has the first marginal. Without log_posterior of a level, or with
    # log_prior of one, the figure would be another.
    root = prior.root.numpy().astype(float)
    covariance = (root @ root.T)[0, 0] * LEVELS_W.T @ LEVELS_W + LEVELS_S**2 * np.eye(4)
    log_p = scipy.stats.multivariate_normal(prior.mean[0] * LEVELS_W[0], covariance).logpdf(x[:20])
    found = vr.estimate(vae, x[:20], num_samples=3000, prior=prior, per_example=True)
    nll = found["negative_log_likelihood_fitted_prior"].values
    np.testing.assert_allclose(-nll, log_p, atol=0.05)
    assert np.abs(found["negative_log_likelihood"].values + log_p).mean() > 0.3  # another model


@keras.saving.register_keras_serializable(package="test_fitted_priors")
class Further(keras.layers.Layer):
    """A latent u behind the decoder, with log q(u|x) = 0.7 and log p(u) = -0.3."""

    def call(self, inputs):
        ones = tf.ones(tf.shape(inputs)[:1])
        return {"log_posterior_u": 0.7 * ones, "log_prior_u": -0.3 * ones}


class OtherName(vr.GaussianBottleneck):
    """Its latent is called h; its densities have no suffix."""

    latents = {"h": (2,)}  # noqa: RUF012

    def _check_latent_dim(self, name, tensor):
        pass

    def call(self, z_mean, z_log_var, seed):
        found = super().call(z_mean, z_log_var, seed)
        return {"h": found.pop("z"), **found}


@pytest.mark.slow
@pytest.mark.parametrize("bottleneck", [vr.GaussianBottleneck, OtherName])
def test_a_level_that_a_module_writes_keeps_its_own_prior(bottleneck):
    x, plain = of_linear_model(20), exact_vae(SAMPLED)
    parts = plain.decoder, plain.objective.terms
    more = vr.VAE(plain.encoder, bottleneck(2), *parts, modules=[Further()], seed=plain.seed)
    prior = vr.fit_prior(plain, x, vr.StandardNormalPrior())
    without, found = (vr.estimate(vae, x, num_samples=3, prior=prior) for vae in (plain, more))
    added = {"kl": 1.0, "elbo": -1.0, "negative_log_likelihood": 1.0}  # log q(u|x) - log p(u)
    added |= {f"{name}_fitted_prior": value for name, value in added.items()}
    for name, value in added.items():
        assert found[name].value - without[name].value == pytest.approx(value, abs=1e-4), name
    assert found["log_density_fitted_prior"] == without["log_density_fitted_prior"]


def test_codes_without_a_posterior_have_no_elbo_if_a_module_has_one():
    plain, x = autoencoder(), two_clouds(20)
    parts = plain.encoder, plain.bottleneck, plain.decoder, plain.objective.terms
    prior = vr.fit_prior(plain, x, vr.StandardNormalPrior())
    found = vr.estimate(vr.VAE(*parts, modules=[Further()]), x, num_samples=1, prior=prior)
    assert "elbo" in found
    assert [name for name in found if "fitted" in name] == ["log_density_fitted_prior"]


BOOK = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 3.0]], np.float32)


class Nearest(vr.Bottleneck):
    """The entries of a codebook that are nearest to the encoder's vectors, three in a row."""

    latents = {"z": (3, 2)}  # noqa: RUF012

    def center(self, z_mean):
        return tf.gather(tf.constant(BOOK), self.values_of_codes(z_mean))

    def call(self, z_mean):
        zero = tf.zeros(tf.shape(z_mean)[:1])
        log_prior = zero - 3 * np.log(3.0).astype(np.float32)
        return {"z": self.center(z_mean), "log_posterior": zero, "log_prior": log_prior}

    def values_of_codes(self, codes):
        distance = tf.reduce_sum((codes[:, :, tf.newaxis] - BOOK) ** 2, axis=-1)
        return tf.argmin(distance, axis=-1, output_type=tf.int32)

    def codes_of_values(self, values):
        return tf.gather(tf.constant(BOOK), values)


class Frequencies(vr.Prior):
    """Each place of a code has a categorical distribution of its own."""

    of = "indices of codes"

    def build(self, input_shape):
        super().build(input_shape)
        self.logits = self.add_weight(shape=(*self.event_shape, 3), initializer="zeros")

    def log_prob(self, z):
        log_p = tf.nn.log_softmax(tf.convert_to_tensor(self.logits))
        return vr.sum_over_event(tf.reduce_sum(tf.one_hot(z, 3) * log_p, axis=-1))

    def sample(self, count, seed):
        draws = tf.random.stateless_categorical(self.logits, count, seed)
        return tf.transpose(draws)


def codebook_model():
    return vr.VAE(
        vr.named(keras.layers.Reshape((3, 2)), "z_mean"),
        Nearest(),
        vr.named(keras.layers.Reshape((6,)), "x_mean"),
        [vr.Gaussian()],
    )


def of_codebook(count):
    """Data of the model above, and the numbers of their entries."""
    numbers = np.random.default_rng(0).choice(3, [count, 3], p=[0.6, 0.3, 0.1])
    return BOOK[numbers].reshape(-1, 6) + np.float32(0.1), numbers


def test_a_prior_of_a_codebook_is_of_the_numbers_of_its_entries():
    vae, (x, numbers) = codebook_model(), of_codebook(600)
    prior = vr.fit_prior(vae, x, Frequencies(), epochs=40, batch_size=100, learning_rate=0.1)
    assert type(prior) is Frequencies  # numbers of entries are not whitened
    observed = np.stack([np.bincount(column, minlength=3) for column in numbers.T]) / 600
    np.testing.assert_allclose(tf.nn.softmax(prior.logits), observed, atol=0.01)
    samples = vae.sample(500, prior=prior).numpy().reshape(-1, 3, 2)
    assert {tuple(entry) for entry in samples.reshape(-1, 2)} == {tuple(entry) for entry in BOOK}
    found = vr.estimate(vae, x, num_samples=1, prior=prior)
    entropy = -(observed * np.log(observed)).sum()
    assert found["kl"].value == pytest.approx(3 * np.log(3.0))
    assert found["kl_fitted_prior"].value == pytest.approx(entropy, abs=0.01)


@pytest.mark.slow
def test_a_codebook_without_num_codes_takes_the_priors_of_indices():
    vae, (x, numbers) = codebook_model(), of_codebook(200)
    prior = vr.AutoregressivePrior(3, units=4, dilations=(1,))
    vr.fit_prior(vae, x, prior, epochs=10, batch_size=50, learning_rate=0.05)
    found = vr.estimate(vae, x, num_samples=1, prior=prior)
    observed = np.bincount(numbers.ravel(), minlength=3) / numbers.size
    entropy = -3 * (observed * np.log(observed)).sum()  # of independent places
    assert found["kl_fitted_prior"].value == pytest.approx(entropy, abs=0.1)
    assert entropy < found["kl"].value - 0.3
    codes = vae.sample(20, prior=prior).numpy().reshape(-1, 2)
    assert {tuple(entry) for entry in codes} <= {tuple(entry) for entry in BOOK}
    uniform = vr.fit_prior(vae, x, vr.UniformPrior(3))
    assert vr.estimate(vae, x, num_samples=1, prior=uniform)["kl_fitted_prior"].value == (
        pytest.approx(3 * np.log(3.0))
    )


def built(prior, *shape):
    prior.build_for(shape)
    return prior


def test_a_prior_that_has_values_is_not_fitted_again():
    vae, x = exact_vae(SAMPLED), of_linear_model(20)
    prior = vr.fit_prior(vae, x, vr.StandardNormalPrior())
    mean = prior.mean.numpy()
    for used in (prior, prior.prior, vr.WhitenedPrior(prior.prior)):
        with pytest.raises(ValueError, match=r"has values already.* make a new one"):
            vr.fit_prior(vae, 2.0 * x, used)
    np.testing.assert_array_equal(prior.mean, mean)
    vr.fit_prior(vae, x, vr.WhitenedPrior(vr.StandardNormalPrior()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: "a", r"prior='a' is not a Prior: give what fit_prior\("),
        (lambda: vr.MixturePrior(2), r"MixturePrior 'mixture_prior.*' is not fitted"),
        (lambda: built(vr.StandardNormalPrior(), 3), r"shape \(3,\); those of Gauss.* \(2,\)"),
        (lambda: built(vr.UniformPrior(4), 2), "are real numbers; UniformPrior is a prior of ind"),
    ],
    ids=["string", "not fitted", "other shape", "other kind"],
)
def test_a_prior_that_is_not_of_the_codes_is_refused(make, message):
    vae, x, prior = exact_vae(SAMPLED), of_linear_model(4), make()
    with pytest.raises(ValueError, match=message):
        vae.sample(2, prior=prior)
    with pytest.raises(ValueError, match=message):
        vr.estimate(vae, x, num_samples=2, prior=prior)


def test_the_prior_of_a_model_is_one_of_its_codes():
    vae = exact_vae(SAMPLED)
    vae.sample(2, prior=vae.bottleneck.prior)
    codebook = codebook_model()
    assert codebook.sample(2, prior=built(vr.UniformPrior(3), 3)).shape == (2, 6)
    with pytest.raises(ValueError, match="codes of Nearest are indices of codes; Standard"):
        codebook.sample(2, prior=built(vr.StandardNormalPrior(), 3))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prior": "flow"}, r"needs a Prior, for example MixturePrior\(10\), got 'flow'"),
        ({"data": np.zeros((0, 4), np.float32)}, "fit_prior needs at least one example, got none"),
        ({"data": {"images": np.zeros((3, 4))}}, "The data have no 'inputs'; got images"),
        ({"data": {}}, "The data have no 'inputs'; got nothing"),
        ({"data": {"inputs": np.zeros((3, 4)), "y": [1]}}, "differ in their number of examples"),
        *(
            ({"learning_rate": rate}, f"learning_rate must be a positive number, got {rate!r}")
            for rate in (0, -1e-3, float("nan"), float("inf"), "1e-3", True)
        ),
        ({"seed": -1}, "seed must be an integer from 0"),
    ],
)
def test_arguments_of_a_fit_are_checked_before_data_are_encoded(changed, message):
    vae = exact_vae(SAMPLED)
    vae.encoder = None
    given = {"data": of_linear_model(20), "prior": vr.MixturePrior(2), **changed}
    with pytest.raises(ValueError, match=message):
        vr.fit_prior(vae, **given)


class Kink(vr.StandardNormalPrior):
    """The gradient of the first step is 0 / 0, after a loss that is finite."""

    def build(self, input_shape):
        super().build(input_shape)
        self.w = self.add_weight(shape=(2,), initializer="zeros", name="w")

    def log_prob(self, z):
        return super().log_prob(z) - tf.norm(tf.convert_to_tensor(self.w))


@pytest.mark.slow
def test_what_cannot_be_fitted_is_refused():
    vae, x = exact_vae(SAMPLED), of_linear_model(20)
    for prior in (vr.VampPrior((4,), 2), vae.bottleneck.prior):
        with pytest.raises(ValueError, match=r"is trained with a model. Fit another one"):
            vr.fit_prior(vae, x, prior)
    vae.encoder.get_layer("z_mean").bias.assign([np.nan, 0.0])
    with pytest.raises(ValueError, match="20 values of the codes are not finite"):
        vr.fit_prior(vae, x, vr.MixturePrior())
    vae = exact_vae(SAMPLED)
    with pytest.raises(ValueError, match="learning_rate than 1e"):
        vr.fit_prior(vae, x, vr.MixturePrior(2), learning_rate=1e30)
    with pytest.raises(ValueError, match=r"epoch 1, .*/w not finite: choose a smaller"):
        vr.fit_prior(vae, x, Kink(), epochs=1)
    with pytest.raises(ValueError, match="epochs must be an integer >= 1"):
        vr.fit_prior(vae, x, vr.MixturePrior(2), epochs=0)
    with pytest.raises(ValueError, match=r"SecondStagePrior has no density.*fit_prior"):
        vr.GaussianBottleneck(2, prior=vr.SecondStagePrior())
    with pytest.raises(ValueError, match="has no density, only a bound"):
        vr.SecondStagePrior().log_prob(x)
    with pytest.raises(ValueError, match="WhitenedPrior needs a Prior, got 'flow'"):
        vr.WhitenedPrior("flow")


def test_a_latent_that_no_example_uses_has_a_finite_density():
    prior = vr.WhitenedPrior(vr.StandardNormalPrior())
    prior.build_for((2,))
    values = np.random.default_rng(0).normal(size=(50, 2)) * [1.0, 0.0]
    prior.adapt(values, 0)
    assert np.all(np.isfinite(prior.log_prob(tf.constant(values, tf.float32))))
    assert np.abs(prior.sample(100, KEY)[:, 1]).max() < 0.01


# Runs.

DATA = vr.Data.from_arrays(np.random.default_rng(0).integers(0, 256, (40, 4, 4), dtype=np.uint8))
FLAGS = {"batch_size": 8, "latent_dim": 2, "importance_samples": 4, "epochs": 1, "verbose": 0}
FLAGS |= {"jit": "off", "device": "cpu"}


@keras.saving.register_keras_serializable(package="test_fitted_priors")
class Own(vr.StandardNormalPrior):
    """A prior of the experiment's own."""


def build(config, data):
    return vr.VAE(
        vr.dense_encoder(data.shape, config.latent_dim, hidden_units=(4,)),
        vr.GaussianBottleneck(config.latent_dim),
        vr.dense_decoder(data.shape, config.latent_dim, hidden_units=(4,)),
        [vr.Bernoulli(), vr.KLDivergence()],
        seed=config.seed,
    )


def fit_prior(run):
    return vr.fit_prior(run.model, run.data.train.prepare(), Own(), seed=run.config.seed)


def not_fitted(run):
    return vr.MixturePrior(2)


def interrupted(run):
    """Ctrl-C arrives within TensorFlow, which may make an error of its own of it."""
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt as error:
        raise ValueError("of TensorFlow") from error
    pytest.fail("a fit went on")


def evaluate(run):
    return {"of_prior": float(tf.reduce_mean(run.prior.sample(3, KEY)))}


@pytest.mark.slow
def test_a_run_fits_tests_draws_and_keeps_a_prior(tmp_path):
    from tests.test_experiments import tensors_of

    folder = tmp_path / "run"
    with pytest.raises(UsageError, match=r"MixturePrior .* is not fitted"):  # after training
        runs.train(build, data=DATA, run_dir=folder, fit_prior=not_fitted, **FLAGS)
    with pytest.raises(KeyboardInterrupt):
        runs.train(build, data=DATA, run_dir=folder, fit_prior=interrupted, **FLAGS)
    functions = {"fit_prior": fit_prior, "evaluate": evaluate}
    run = runs.train(build, data=DATA, run_dir=folder, **functions, **FLAGS)
    assert type(run.prior.prior) is Own
    again = fit_prior(run)
    np.testing.assert_array_equal(run.prior.sample(5, KEY), again.sample(5, KEY))
    figures = run.summary["test"]
    test = run.data.test.prepare()
    for name, found in vr.estimate(run.model, test, num_samples=4, prior=run.prior).items():
        assert figures[name]["value"] == pytest.approx(found.value, rel=1e-5), name
    assert figures["elbo_fitted_prior"]["value"] != figures["elbo"]["value"]
    assert figures["of_prior"]["value"] == pytest.approx(evaluate(run)["of_prior"])
    assert (folder / "figures" / "samples_fitted_prior.png").is_file()
    assert "samples_fitted_prior" in tensors_of(folder, "validation")
    assert "test/elbo_fitted_prior" in tensors_of(folder, "run")

    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    assert len(summary["fitted_prior_sha256"]) == 64
    assert _fitted_prior(folder, summary, run.model.step + 1) is None  # of other weights
    with pytest.raises(checkpoints.CheckpointError, match=r"prior.keras is damaged"):
        _fitted_prior(folder, summary | {"fitted_prior_sha256": "0" * 64}, run.model.step)
    (folder / "prior.keras").write_bytes(b"")
    with pytest.raises(checkpoints.CheckpointError, match=r"prior.keras cannot be loaded"):
        _fitted_prior(folder, summary, run.model.step)

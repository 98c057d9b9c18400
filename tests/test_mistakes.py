"""Mistakes in Python: one sentence that names the cure."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import vae_research as vr
from vae_research import runs

SHAPE = (4, 4, 1)


def parts():
    return (
        vr.dense_encoder(SHAPE, 2, hidden_units=(4,)),
        vr.GaussianBottleneck(2),
        vr.dense_decoder(SHAPE, 2, hidden_units=(4,)),
    )


class WithNumPy(vr.LossTerm):
    def per_example(self, z):
        return np.sum(np.abs(z), axis=1)


class WithFloat(vr.LossTerm):
    def per_example(self, z):
        return z[:, 0] * float(tf.reduce_mean(z))


@pytest.mark.parametrize("kind", [WithNumPy, WithFloat])
def test_numpy_in_a_term(kind):
    vae = vr.VAE(*parts(), [vr.Bernoulli(), vr.KLDivergence(), kind()])
    vae.compile("adam")
    with pytest.raises(
        ValueError, match=r"loss term '\w+' calls NumPy or Python with a tensor.*keras\.ops"
    ):
        vae.train_on_batch(np.zeros((2, *SHAPE), np.float32))


@pytest.mark.parametrize("base", [vr.LossTerm, vr.Schedule])
def test_an_init_in_a_term_or_schedule(base):
    def init(self, strength):
        self.strength = strength

    with pytest.raises(TypeError, match=r"Own has an __init__.*`strength: float = 2\.0`"):
        type("Own", (base,), {"__init__": init})


@pytest.mark.parametrize(
    "function",
    [
        vr.dense_encoder,
        vr.dense_decoder,
        vr.convolutional_encoder,
        vr.convolutional_decoder,
    ],
)
def test_shape_and_latent_dim_in_the_wrong_order(function):
    name = function.__name__
    with pytest.raises(ValueError, match=rf"then latent_dim: {name}\(\(4, 4, 1\), 2\)"):
        function(2, SHAPE)


def test_bottleneck_and_decoder_in_the_wrong_order():
    encoder, bottleneck, decoder = parts()
    with pytest.raises(ValueError, match="VAE\\(encoder, bottleneck, decoder, terms\\)"):
        vr.VAE(encoder, decoder, bottleneck, [vr.Bernoulli(), vr.KLDivergence()])


@pytest.mark.parametrize(
    ("place", "name", "near"),
    [(vr, "Bernouli", "Bernoulli"), (vr.losses, "KLDivergance", "KLDivergence")],
)
def test_a_misspelt_name_of_the_package(place, name, near):
    with pytest.raises(AttributeError, match=f"has no attribute '{name}'. Did you mean '{near}'"):
        getattr(place, name)
    with pytest.raises(AttributeError, match=r"no attribute 'xyzzy'$"):
        vr.xyzzy  # noqa: B018


def test_a_weight_that_a_callback_sets():
    vae = vr.VAE(*parts(), [vr.Bernoulli(), vr.KLDivergence()])
    with pytest.raises(AttributeError, match=r"no 'kl_weight'.*KLDivergence\(weight=LinearWarmup"):
        vae.kl_weight = 0.5

    class Own(vr.VAE):
        """A training step of one's own may read it."""

    own = Own(*parts(), [vr.Bernoulli(), vr.KLDivergence()])
    own.kl_weight = 0.5
    vae.anything_else = keras.layers.Dense(1)


DATA = vr.Data.from_arrays(*(np.zeros((4, *SHAPE), np.float32) for _ in range(3)), name="zeros")


@pytest.mark.parametrize("x", [DATA, DATA.train], ids=["data", "split"])
@pytest.mark.parametrize("method", ["fit", "evaluate", "train_on_batch"])
def test_data_that_are_not_batches_yet(method, x):
    vae = vr.VAE(*parts(), [vr.Bernoulli(), vr.KLDivergence()])
    vae.compile("adam")
    with pytest.raises(TypeError, match=r"has no batches: give \w.*\.on_device\(batch_size"):
        getattr(vae, method)(x)


def test_validation_data_that_are_not_batches_yet():
    vae = vr.VAE(*parts(), [vr.Bernoulli(), vr.KLDivergence()])
    vae.compile("adam")
    with pytest.raises(TypeError, match=r"A Split has no batches"):
        vae.fit(DATA.train.raw, batch_size=4, validation_data=DATA.validation, verbose=0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda vae: vr.estimate(vae, DATA), TypeError, r"one split, for example data\.test"),
        (lambda vae: vr.estimate(vae.decoder, DATA.test), TypeError, "estimate.. is of a VAE, got"),
        (lambda vae: vae.sample(-1), ValueError, "count must be an integer"),
        (lambda vae: vr.load_data(np.zeros(3)), TypeError, r"got ndarray; vr\.Data\.from_arrays"),
        (lambda vae: runs.train(None, data=DATA), TypeError, "build must be a function.*got None"),
    ],
)
def test_an_argument_of_another_kind(call, error, message):
    with pytest.raises(error, match=message):
        call(vr.VAE(*parts(), [vr.Bernoulli(), vr.KLDivergence()]))


class ByValue(vr.priors.Prior):
    """A prior without the sum over its dimensions."""

    def log_prob(self, z):
        return vr.normal_log_density(z, 0.0, 0.0)

    def sample(self, count, seed):
        return vr.standard_normal([count, 2], seed)


def test_a_density_with_a_value_for_each_dimension():
    encoder, _, decoder = parts()
    bottleneck = vr.GaussianBottleneck(2, prior=ByValue())
    vae = vr.VAE(encoder, bottleneck, decoder, [vr.Bernoulli(), vr.MonteCarloKL()])
    with pytest.raises(ValueError, match=r"'log_prior' has the shape .*one value for each row"):
        vae.report(DATA.train.raw)


def test_a_schedule_with_a_weight_for_each_row():
    weights = [lambda step: tf.linspace(0.0, 1.0, 4), lambda step: None, lambda step: [1.0]]
    for weight, returned in zip(weights, [r"shape \(4,\)", "None", r"shape \(1,\)"], strict=True):
        vae = vr.VAE(*parts(), [vr.Bernoulli(), vr.KLDivergence(weight=weight)])
        with pytest.raises(ValueError, match=rf"schedule .*<lambda> returned .*{returned};"):
            vae.report(DATA.train.raw)

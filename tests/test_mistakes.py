"""Mistakes in Python: one sentence that names the cure."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import vae_research as vr

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

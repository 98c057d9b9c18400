"""Small VAEs, data and terms for the tests of training.

Everything is tiny (4 x 4 pixels, at most 32 examples). `ENOUGH` is the tolerance of sums in float32
that were added in another order; where two roads must agree exactly, they are compared by `==`.
Models run eagerly where it makes no difference whether a step is traced, because that is faster.
"""

import keras
import numpy as np
import tensorflow as tf

from tests.traced import as_new
from vae_research import (
    VAE,
    Bernoulli,
    GaussianBottleneck,
    KLDivergence,
    LossTerm,
    dense_decoder,
    dense_encoder,
    named,
)

SHAPE = (4, 4, 1)
LATENT = 2
BATCH = 8
IMAGES = (np.random.default_rng(0).random((32, *SHAPE)) < 0.3).astype("float32")
STEPS = len(IMAGES) // BATCH
FEW = IMAGES[: 2 * BATCH]  # two steps, where no more are needed
ENOUGH = {"rtol": 1e-5, "atol": 1e-5}


def usual_encoder(**options):
    return dense_encoder(SHAPE, LATENT, hidden_units=(8,), **options)


def usual_decoder():
    return dense_decoder(SHAPE, LATENT, hidden_units=(8,))


def build(terms=None, *, encoder=usual_encoder, decoder=usual_decoder, bottleneck=None, **options):
    """A small VAE; the initial weights are the same at every call.

    Networks are given as functions, which are called once the random seed is set.
    """
    keras.utils.set_random_seed(7)
    return VAE(
        encoder(),
        bottleneck or GaussianBottleneck(LATENT),
        decoder(),
        [Bernoulli(), KLDivergence()] if terms is None else terms,
        **options,
    )


def compiled(*args, optimizer=None, run_eagerly=True, jit_compile=False, **options):
    """`build`, compiled with gradient descent: a step is the learning rate times the gradient."""
    vae = build(*args, **options)
    optimizer = keras.optimizers.SGD(0.1) if optimizer is None else optimizer
    vae.compile(optimizer, run_eagerly=run_eagerly, jit_compile=jit_compile)
    return vae


def standing(*args, **options):
    """A compiled model whose weights never move, so that figures can be compared over steps."""
    return compiled(*args, optimizer=keras.optimizers.SGD(0.0), **options)


def make_traced():
    return compiled(run_eagerly=False)


def traced(learning_rate=0.1):
    """The model of `compiled()`, with steps that are traced once for all tests."""
    vae = as_new(make_traced)
    vae.optimizer.learning_rate = learning_rate
    return vae


def train(vae, data=IMAGES, **options):
    """The history of `fit` in the order of the data."""
    options = {"batch_size": BATCH, "shuffle": False, "verbose": 0, **options}
    return vae.fit(data, **options).history


def again(data, times):
    """The data over and over: many steps in one epoch, because an epoch costs more than a step."""
    return np.concatenate([data] * times)


def copies(model):
    return [weight.copy() for weight in model.get_weights()]


def assert_same_weights(first, second):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def moved(before, after):
    return any(np.any(one != other) for one, other in zip(before, after, strict=True))


def negative_log_likelihood(targets, logits):
    """Bernoulli with logits l: log(1 + exp(l)) - x * l, summed over the event, [rows]."""
    targets, logits = np.asarray(targets, "float64"), np.asarray(logits, "float64")
    values = np.logaddexp(0.0, logits) - targets * logits
    return values.reshape(len(values), -1).sum(axis=1)


def divergence(encoded):
    """Kingma and Welling 2014, appendix B, in float64, [rows, latent]."""
    mean, log_var = (np.asarray(encoded[name], "float64") for name in ("z_mean", "z_log_var"))
    return 0.5 * (mean**2 + np.exp(log_var) - 1.0 - log_var)


def only_means():
    return usual_encoder(outputs=("z_mean",))


def strong_encoder():
    """An encoder whose examples differ much in their KL divergence."""
    encoder = usual_encoder()
    for layer in encoder.layers:
        layer.set_weights([4.0 * weight for weight in layer.get_weights()])
    return encoder


# Terms of a user's own, in a few lines.


class MeanSquare(LossTerm):
    """Squared length of the posterior mean."""

    scale: float = 1.0

    def per_example(self, z_mean):
        return self.scale * tf.reduce_sum(tf.square(z_mean), axis=-1)


class Watched(LossTerm):
    weight = None

    def per_example(self, z):
        return tf.reduce_sum(tf.square(z), axis=-1)


class NotANumber(LossTerm):
    """A monitor that would spoil everything if it were differentiated, or added with weight 0."""

    weight = None

    def per_example(self, z_mean):
        return tf.math.log(-tf.abs(z_mean[:, 0]) - 1.0)


def half(step):
    return 0.5


def anonymous_encoder():
    """A network whose layers get Keras' automatic names, which count up within a process."""
    layers = [keras.layers.Flatten(), keras.layers.Dropout(0.2), keras.layers.Dense(2 * LATENT)]
    return named(keras.Sequential(layers), "z_mean", "z_log_var")


def anonymous_decoder():
    layers = [keras.layers.Dense(16), keras.layers.Reshape(SHAPE)]
    return named(keras.Sequential(layers), "logits")


ANONYMOUS = {"encoder": anonymous_encoder, "decoder": anonymous_decoder}

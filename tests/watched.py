"""Small models that callbacks watch, and what these have written.

Event files are read back with TensorBoard's own reader. Scalars in them are float32, as are the
figures of the history, so that the two are compared by `==`.
"""

import json

import keras
import numpy as np
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.traced import as_new
from vae_research import (
    VAE,
    Bernoulli,
    DeterministicBottleneck,
    GaussianBottleneck,
    KLDivergence,
    LossTerm,
    dense_decoder,
    dense_encoder,
)

SHAPE = (4, 4, 1)
LATENT = 2
BATCH = 5
IMAGES = (np.random.default_rng(0).random((24, *SHAPE)) < 0.3).astype("float32")
VALIDATION = (np.random.default_rng(1).random((13, *SHAPE)) < 0.3).astype("float32")
STEPS = 5  # four batches of 5 and a last one of 4
ONE_STEP = {"data": IMAGES[:BATCH], "epochs": 1, "validation": None}
SIZES = [5, 5, 5, 5, 4]
ENOUGH = {"rel": 2e-6}  # sums of a few float32


def make(
    terms=None, *, shape=SHAPE, bottleneck=None, optimizer=None, run_eagerly=True, encoder=None
):
    """A compiled model; the initial weights are the same at every call."""
    keras.utils.set_random_seed(7)
    vae = VAE(
        encoder() if encoder else dense_encoder(shape, LATENT, hidden_units=(8,)),
        bottleneck or GaussianBottleneck(LATENT),
        dense_decoder(shape, LATENT, hidden_units=(8,)),
        [Bernoulli(), KLDivergence(weight=0.5)] if terms is None else terms,
    )
    optimizer = keras.optimizers.SGD(0.1) if optimizer is None else optimizer
    vae.compile(optimizer, run_eagerly=run_eagerly, jit_compile=False)
    return vae


def make_usual():
    return make(run_eagerly=False)


def usual(learning_rate=0.1):
    """The model of `make()`, for tests to which it does not matter that it is traced."""
    model = as_new(make_usual)
    model.optimizer.learning_rate = learning_rate
    return model


def make_autoencoder():
    return make(
        [Bernoulli()],
        encoder=lambda: dense_encoder(SHAPE, LATENT, outputs=("z_mean",)),
        bottleneck=DeterministicBottleneck(LATENT),
        run_eagerly=False,
    )


def autoencoder():
    return as_new(make_autoencoder)


def train(model, *callbacks, validation=VALIDATION, **options):
    """The history of two epochs in the order of the data."""
    options = {"batch_size": BATCH, "epochs": 2, "shuffle": False, "verbose": 0, **options}
    if validation is not None:
        options |= {"validation_data": validation, "validation_batch_size": 8}
    data = options.pop("data", IMAGES)
    return model.fit(data, callbacks=list(callbacks), **options).history


def float32(values):
    return [float(np.float32(value)) for value in values]


def read(folder):
    """Returns `{tag: [(step, value), ...]}` of the event files in a folder."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return {
        tag: [(event.step, tf.make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }


def scalars(folder):
    found = {}
    for tag, written in read(folder).items():
        if all(value.shape == () and value.dtype.kind == "f" for _, value in written):
            found[tag] = [(step, float(value)) for step, value in written]
    return found


def values(written):
    return [value for _, value in written]


class AtEpochEnd(keras.callbacks.Callback):
    """Keeps what a function says of the model after every epoch."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.found = []

    def on_epoch_end(self, epoch, logs=None):
        self.found.append(self.function(self.model))


class MeanSquare(LossTerm):
    """Squared length of the posterior mean."""

    def per_example(self, z_mean):
        return tf.reduce_sum(tf.square(z_mean), axis=-1)


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]

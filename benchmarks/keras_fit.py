"""Keras' own `fit` on arrays in memory, with a training step written by hand.

As in the Keras VAE example: a sampling layer, a model whose `train_step` uses a GradientTape, the
cross-entropy of probabilities summed over pixels, and three running means. At its best: dense
networks with XLA, which Keras chooses itself, and convolutions without, which is faster on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops

from benchmarks.protocol import serve
from benchmarks.works import LEARNING_RATE, Work, as_float


class Sampling(layers.Layer):
    """Draws z from the posterior."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = keras.random.SeedGenerator(0)

    def call(self, inputs: Any) -> Any:
        mean, log_var = inputs
        noise = keras.random.normal(ops.shape(mean), seed=self.noise)
        return mean + ops.exp(0.5 * log_var) * noise


class HandWrittenVAE(keras.Model):
    """A model with its own training step."""

    def __init__(self, encoder: keras.Model, decoder: keras.Model) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.loss_mean = keras.metrics.Mean(name="loss")
        self.reconstruction_mean = keras.metrics.Mean(name="reconstruction")
        self.kl_mean = keras.metrics.Mean(name="kl")

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        return [self.loss_mean, self.reconstruction_mean, self.kl_mean]

    def train_step(self, data: Any) -> dict[str, Any]:
        """One optimizer step."""
        with tf.GradientTape() as tape:
            mean, log_var, z = self.encoder(data, training=True)
            probabilities = self.decoder(z, training=True)
            pixels = keras.losses.binary_crossentropy(data, probabilities)  # mean over channels
            reconstruction = ops.mean(ops.sum(pixels, axis=(1, 2)))
            kl = -0.5 * (1.0 + log_var - ops.square(mean) - ops.exp(log_var))
            kl = ops.mean(ops.sum(kl, axis=1))
            loss = reconstruction + kl
        variables = self.trainable_weights
        gradients = tape.gradient(loss, variables)
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        rows = ops.shape(data)[0]
        for running, value in zip(self.metrics, (loss, reconstruction, kl), strict=True):
            running.update_state(value, sample_weight=rows)
        return {running.name: running.result() for running in self.metrics}


def networks(work: Work) -> tuple[keras.Model, keras.Model]:
    """Returns encoder and decoder."""
    inputs = features = keras.Input((28, 28, 1))
    for filters in work.filters:
        features = layers.Conv2D(filters, 3, strides=2, padding="same", activation=work.activation)(
            features
        )
    features = layers.Flatten()(features)
    for units in work.hidden_units:
        features = layers.Dense(units, activation=work.activation)(features)
    mean, log_var = (layers.Dense(work.latent_dim)(features) for _ in range(2))
    encoder = keras.Model(inputs, [mean, log_var, Sampling()([mean, log_var])])

    z = features = keras.Input((work.latent_dim,))
    if work.filters:
        features = layers.Dense(
            work.grid[0] * work.grid[1] * work.grid[2], activation=work.activation
        )(features)
        features = layers.Reshape(work.grid)(features)
        for filters in reversed(work.filters):
            features = layers.Conv2DTranspose(
                filters, 3, strides=2, padding="same", activation=work.activation
            )(features)
        images = layers.Conv2DTranspose(1, 3, padding="same", activation="sigmoid")(features)
    else:
        for units in reversed(work.hidden_units):
            features = layers.Dense(units, activation=work.activation)(features)
        features = layers.Dense(784, activation="sigmoid")(features)
        images = layers.Reshape((28, 28, 1))(features)
    return encoder, keras.Model(z, images)


class Epochs(keras.callbacks.Callback):
    """Trains while `go_on()`, and calls `step_done` after each step."""

    def __init__(self, go_on: Callable[[], bool], step_done: Callable[[], None] | None) -> None:
        super().__init__()
        self.go_on = go_on
        if step_done is not None:
            self.on_train_batch_end = lambda batch, logs=None: step_done()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.model.stop_training = not self.go_on()


class KerasFit:
    """Variant: {"jit_compile": bool}; by default the faster of the two for the work."""

    def __init__(self, work: Work, variant: dict[str, Any]) -> None:
        keras.utils.set_random_seed(0)
        self.work = work
        self.images = as_float(work.training_images())
        self.model = HandWrittenVAE(*networks(work))
        jit = variant.get("jit_compile", not work.filters)
        self.model.compile(keras.optimizers.Adam(LEARNING_RATE), jit_compile=jit)
        self.description = f"XLA {'on' if jit else 'off'}"

    def train(self, go_on: Callable[[], bool], step_done: Callable[[], None] | None) -> list[float]:
        """Trains whole epochs."""
        if not go_on():
            return []
        history = self.model.fit(
            self.images,
            batch_size=self.work.batch_size,
            epochs=10**6,
            callbacks=[Epochs(go_on, step_done)],
            verbose=0,
        )
        return [float(loss) for loss in history.history["loss"]]


if __name__ == "__main__":
    serve(KerasFit, ("python", "tensorflow", "keras"))

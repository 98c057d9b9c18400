"""This package, trained as a run trains: flags choose execution, the images stay on the device."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import vae_research as vr
from benchmarks.keras_fit import Epochs
from benchmarks.protocol import best_matrix_product, serve
from benchmarks.works import (
    ANNEALED_IMAGES,
    CHAINS,
    IMPORTANCE_SAMPLES,
    LEAPFROG_STEPS,
    LEARNING_RATE,
    Work,
)
from vae_research import runs
from vae_research.evaluation import annealing
from vae_research.runs.session import training

# As many values as a call of `vr.estimate` decodes by default.
_VALUES_PER_CALL = 2**21
# Of annealed importance sampling, in a call.
_TEMPERATURES = 100


class Ours:
    """Variant: flags of a run whose values are not the defaults, such as precision."""

    def __init__(self, work: Work, variant: dict[str, Any]) -> None:
        def build(config: runs.Config, data: vr.Data) -> vr.VAE:
            shape, units, latent_dim = data.shape, work.hidden_units, config.latent_dim
            if work.filters:
                encoder = vr.convolutional_encoder(
                    shape, latent_dim, filters=work.filters, hidden_units=units
                )
                decoder = vr.convolutional_decoder(shape, latent_dim, filters=work.filters[::-1])
            else:
                encoder = vr.dense_encoder(
                    shape, latent_dim, hidden_units=units, activation=work.activation
                )
                decoder = vr.dense_decoder(
                    shape, latent_dim, hidden_units=units[::-1], activation=work.activation
                )
            terms = [vr.Bernoulli(), vr.KLDivergence()]
            return vr.VAE(encoder, vr.GaussianBottleneck(latent_dim), decoder, terms)

        config = vr.configure(
            build,
            latent_dim=work.latent_dim,
            batch_size=work.batch_size,
            learning_rate=LEARNING_RATE,
            **({"binarize": "none"} | variant),
        )
        mnist = vr.load_data(config.dataset)
        data = vr.Data.from_arrays(
            work.training_images(),
            mnist.validation.raw,
            mnist.test.raw,
            binarize=config.binarize,
        )
        keras.utils.set_random_seed(config.init_seed)
        keras.config.set_dtype_policy(config.precision)
        self.work, self.data, self.epoch = work, data, 0
        self.model = training.build_model(build, config, data)
        chosen = training.choose_execution(self.model, config, data)
        self.description = (
            f"XLA {'on' if chosen.jit_compile else 'off'}, {chosen.steps_per_call} steps per call"
        )
        self.batches = data.train.on_device(config.batch_size, config.data_seed)

    def train(self, go_on: Callable[[], bool], step_done: Callable[[], None] | None) -> list[float]:
        """Trains whole epochs."""
        if not go_on():
            return []
        history = self.model.fit(
            self.batches, epochs=10**6, callbacks=[Epochs(go_on, step_done)], verbose=0
        )
        return [float(loss) for loss in history.history["loss"]]

    def negative_log_likelihood(self, count: int) -> float:
        """Returns the importance-weighted figure, computed as the test figures of a run."""
        images = self.data.test.prepare(slice(0, count))
        figures = vr.estimate(
            self.model,
            images,
            num_samples=IMPORTANCE_SAMPLES,
            jit_compile=self.model.jit_compile,
        )
        return figures["negative_log_likelihood"].value

    def nll_ceiling(self, count: int) -> None:
        """Draws the noise of that figure and decodes as many rows, by the decoder alone.

        No evaluation of this decoder is faster: the rest is densities, sums and weights.
        """
        rows = max(1, _VALUES_PER_CALL // math.prod(self.data.shape))
        for start in range(0, count * IMPORTANCE_SAMPLES, rows):
            self._decoded(min(rows, count * IMPORTANCE_SAMPLES - start))[0, 0].numpy()

    @functools.cached_property
    def _decoded(self) -> Callable[[int], tf.Tensor]:
        latent_dim, decoder = self.work.latent_dim, self.model.decoder

        @tf.function(jit_compile=self.model.jit_compile, autograph=False)
        def decoded(rows: int) -> tf.Tensor:
            z = vr.standard_normal([rows, latent_dim], tf.constant([0, 0], tf.int64))
            return tf.reshape(decoder(z)["logits"], [rows, -1])

        return decoded

    def annealing(self, count: int) -> None:
        """Makes Hamiltonian transitions of all chains, as annealed importance sampling does."""
        start, anneal = self._annealed
        sizes = np.full([_TEMPERATURES, ANNEALED_IMAGES], -2.0, np.float32)
        plan = annealing.forward_plan(annealing.sigmoidal_temperatures(_TEMPERATURES), sizes)
        chains = start()
        for done in range(0, count, _TEMPERATURES):
            now = tf.constant(min(_TEMPERATURES, count - done))
            chains, _ = anneal(chains, plan, now)
        chains.log_weight.numpy()

    def annealing_ceiling(self, count: int) -> None:
        """Computes the products of decoder and gradients in these transitions, and no more."""
        self._products(tf.constant(count * LEAPFROG_STEPS)).numpy()

    @functools.cached_property
    def _annealed(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        images = tf.repeat(self.data.test.prepare(slice(0, ANNEALED_IMAGES)), CHAINS, axis=0)
        key, prior = tf.constant([0, 0], tf.int64), self.model.bottleneck.prior
        densities = (
            prior.log_prob,
            lambda z: self.model.log_likelihood({"targets": images, "step": 0.0, "seed": key}, z),
        )

        @tf.function(autograph=False)
        def start() -> annealing.Chains:
            z = prior.sample(len(images), key)
            return annealing.start(z, ANNEALED_IMAGES, *densities)

        @tf.function(autograph=False)
        def anneal(
            chains: annealing.Chains, plan: annealing.Plan, count: tf.Tensor
        ) -> tuple[annealing.Chains, tf.Tensor]:
            return annealing.anneal(
                chains, plan, count, LEAPFROG_STEPS, key, tf.constant(0.0), *densities
            )

        return start, anneal

    @functools.cached_property
    def _products(self) -> Callable[[tf.Tensor], tf.Tensor]:
        rows, decoder = ANNEALED_IMAGES * CHAINS, self.model.decoder
        z = tf.zeros([rows, self.work.latent_dim])

        @tf.function(autograph=False)
        def products(count: tf.Tensor) -> tf.Tensor:
            def body(index: tf.Tensor, z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                with tf.GradientTape() as tape:
                    tape.watch(z)
                    logits = decoder(z)["logits"]
                # The gradient must read the logits: TensorFlow leaves out what nobody reads.
                slope = tape.gradient(logits, z, output_gradients=logits)
                return index + 1, tf.tanh(slope)

            return tf.while_loop(lambda index, _: index < count, body, (0, z))[1][0, 0]

        return products

    def matrix_products(self) -> dict[str, float]:
        """Returns FLOP/s of one large product by precision."""
        speeds = {}
        for dtype in (tf.float32, tf.bfloat16):

            def product(side: int, dtype: tf.DType = dtype) -> Callable[[], Any]:
                a, b = (tf.cast(tf.random.normal([side, side]), dtype) for _ in range(2))
                multiply = tf.function(lambda: tf.matmul(a, b)[0, 0])
                return lambda: multiply().numpy()

            speeds[dtype.name] = best_matrix_product(product)
        return speeds


if __name__ == "__main__":
    serve(Ours, ("python", "tensorflow", "keras", "vae_research"))

"""JAX with Adam of optax: one compiled step, called from Python, or one compiled epoch.

At its best on a CPU: the state is donated, and an epoch is a `lax.scan` over the rows of its
batches with the smaller last one after it. The images stay on the device as float32 vectors: taking
the rows of a batch from `[n, 28, 28, 1]` makes the dense epoch 1.7 times as long. Random numbers
come from "rbg": with JAX's default generator the epoch takes twice as long.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.protocol import serve
from benchmarks.works import LEARNING_RATE, Work, as_float

_ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh}
_LAYOUT = ("NHWC", "HWIO", "NHWC")


def initial(work: Work, key: jax.Array) -> dict[str, Any]:
    """Returns Glorot's uniform weights and biases of zero."""
    glorot = jax.nn.initializers.glorot_uniform()
    keys = iter(jax.random.split(key, 32))

    def layer(*shape: int) -> dict[str, jax.Array]:
        return {"w": glorot(next(keys), shape), "b": jnp.zeros(shape[-1])}

    there = [784, *work.hidden_units]
    back = [work.latent_dim, *reversed(work.hidden_units), 784]
    convolutions = {"there": [], "back": []}
    if work.filters:
        there[0] = int(np.prod(work.grid))
        back = [work.latent_dim, there[0]]
        channels = [1, *work.filters]
        convolutions["there"] = [layer(3, 3, a, b) for a, b in itertools.pairwise(channels)]
        channels = [work.filters[-1], *reversed(work.filters), 1]
        convolutions["back"] = [layer(3, 3, a, b) for a, b in itertools.pairwise(channels)]
    return {
        "convolutions": convolutions,
        "there": [layer(a, b) for a, b in itertools.pairwise(there)],
        "mean": layer(there[-1], work.latent_dim),
        "log_var": layer(there[-1], work.latent_dim),
        "back": [layer(a, b) for a, b in itertools.pairwise(back)],
    }


def affine(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Returns a dense layer without its activation."""
    return x @ layer["w"] + layer["b"]


def loss_of(work: Work, weights: dict[str, Any], images: jax.Array, key: jax.Array) -> jax.Array:
    """Returns the loss of a batch, nats per image."""
    activation = _ACTIVATIONS[work.activation]
    x = images.reshape(-1, 28, 28, 1) if work.filters else images
    for layer in weights["convolutions"]["there"]:
        x = jax.lax.conv_general_dilated(x, layer["w"], (2, 2), "SAME", dimension_numbers=_LAYOUT)
        x = activation(x + layer["b"])
    x = x.reshape(len(x), -1)
    for layer in weights["there"]:
        x = activation(affine(layer, x))
    mean, log_var = affine(weights["mean"], x), affine(weights["log_var"], x)
    x = mean + jnp.exp(0.5 * log_var) * jax.random.normal(key, mean.shape)
    for layer in weights["back"][:-1]:
        x = activation(affine(layer, x))
    x = affine(weights["back"][-1], x)
    if work.filters:
        x = activation(x).reshape(-1, *work.grid)
        *strided, last = weights["convolutions"]["back"]
        for layer in strided:
            x = jax.lax.conv_transpose(x, layer["w"], (2, 2), "SAME", dimension_numbers=_LAYOUT)
            x = activation(x + layer["b"])
        x = jax.lax.conv_general_dilated(x, last["w"], (1, 1), "SAME", dimension_numbers=_LAYOUT)
        x = x + last["b"]
    logits = x.reshape(images.shape)
    softplus = jnp.maximum(logits, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    reconstruction = jnp.sum(softplus - logits * images)
    kl = -0.5 * jnp.sum(1.0 + log_var - jnp.square(mean) - jnp.exp(log_var))
    return (reconstruction + kl) / len(images)


class Jax:
    """Variant: {"loop": "step" or "scan"}."""

    def __init__(self, work: Work, variant: dict[str, Any]) -> None:
        jax.config.update("jax_default_prng_impl", "rbg")
        self.work = work
        images = as_float(work.training_images())
        self.images = jnp.asarray(images.reshape(len(images), -1))
        weights = initial(work, jax.random.key(0))
        self.optimizer = optax.adam(LEARNING_RATE)
        self.state = weights, self.optimizer.init(weights), jax.random.key(1)
        self.order = np.random.default_rng(0)
        self.loop = variant["loop"]
        self.step = jax.jit(self._step, donate_argnums=0)
        self.epoch = jax.jit(self._epoch, donate_argnums=0)
        self.description = f"{os.cpu_count()} cores"

    def _step(self, state: Any, images: jax.Array, rows: jax.Array) -> tuple[Any, jax.Array]:
        weights, moments, key = state
        key, noise = jax.random.split(key)
        loss, gradients = jax.value_and_grad(partial(loss_of, self.work))(
            weights, images[rows], noise
        )
        updates, moments = self.optimizer.update(gradients, moments, weights)
        return (optax.apply_updates(weights, updates), moments, key), loss

    def _epoch(self, state: Any, images: jax.Array, order: jax.Array) -> tuple[Any, jax.Array]:
        whole = len(order) // self.work.batch_size * self.work.batch_size
        batches = order[:whole].reshape(-1, self.work.batch_size)
        state, losses = jax.lax.scan(lambda s, rows: self._step(s, images, rows), state, batches)
        total = jnp.sum(losses) * self.work.batch_size
        if whole < len(order):
            state, loss = self._step(state, images, order[whole:])
            total += loss * (len(order) - whole)
        return state, total / len(order)

    def train(self, go_on: Callable[[], bool], step_done: Callable[[], None] | None) -> list[float]:
        """Trains whole epochs."""
        losses = []
        while go_on():
            order = self.order.permutation(len(self.images)).astype(np.int32)
            if self.loop == "scan":
                self.state, loss = self.epoch(self.state, self.images, order)
                losses.append(float(loss))
                if step_done is not None:
                    step_done()
            else:
                losses.append(self._steps(order, step_done))
        return losses

    def _steps(self, order: np.ndarray, step_done: Callable[[], None] | None) -> float:
        size = self.work.batch_size
        losses, counts = [], []
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            self.state, loss = self.step(self.state, self.images, rows)
            if step_done is not None:
                loss.block_until_ready()
                step_done()
            losses.append(loss)
            counts.append(len(rows))
        return float(np.average(jax.device_get(losses), weights=counts))


if __name__ == "__main__":
    serve(Jax, ("python", "jax", "optax"))

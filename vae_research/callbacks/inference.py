"""One forward pass over validation data, shared by several callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vae_research.bottlenecks.gaussian import GaussianBottleneck
from vae_research.model import VAE
from vae_research.tensors import bind

# Examples that are also decoded, each with two codes; the others are only encoded.
_DECODED = 128


class Inference:
    """Codes of fixed examples, and the likelihoods of some of them; computed once per epoch.

    Callbacks that are given the same object share its results until one of them clears the cache
    at the beginning of an epoch.

    Args:
        data: `[rows, ...]`, or a dictionary of such arrays.
        count: use the first `count` rows.
    """

    def __init__(self, data: np.ndarray | Mapping[str, np.ndarray], count: int = 500) -> None:
        self.data = keras.tree.map_structure(lambda values: values[:count], data)
        self._on_device: Any = None
        self._infer = tf.function(_infer, autograph=False)
        self._cache: dict[str, np.ndarray] = {}

    @classmethod
    def wrap(cls, data: np.ndarray | Mapping[str, np.ndarray] | Inference) -> Inference:
        """Returns an `Inference` over data, or `data` itself if it already is one."""
        return data if isinstance(data, Inference) else cls(data)

    def __len__(self) -> int:
        """Number of examples."""
        return len(keras.tree.flatten(self.data)[0])

    def clear(self) -> None:
        """Clears the cache."""
        self._cache = {}

    def __call__(self, model: VAE) -> dict[str, np.ndarray]:
        """Returns arrays by name, computed on the first call after `clear`.

        `[count, latent]`: `code` (without noise), `z`, `kl` in nats if the bottleneck has one, and
        `z_log_var` if the posterior is a normal one. `[128]`, for the first 128 examples: `own` and
        `permuted`, log p(x|z) in nats with the code of the example and with that of its neighbour,
        a permutation without fixed points.
        """
        if not self._cache:
            if self._on_device is None:  # copied once, not at every epoch
                self._on_device = keras.tree.map_structure(tf.constant, self.data)
            with model.averaging.averages():
                tensors = self._infer(model, self._on_device)
            self._cache = {name: tensor.numpy() for name, tensor in tensors.items()}
        return self._cache


def _infer(model: VAE, data: Any) -> dict[str, tf.Tensor]:
    tensors = model.infer(data, num_samples=1)
    center = model.bottleneck.center
    found = {"code": center(**bind("bottleneck", center, tensors)), "z": tensors["z"]}
    if "kl" in tensors:
        found["kl"] = tensors["kl"]
    if isinstance(model.bottleneck, GaussianBottleneck) and "z_log_var" in tensors:
        found["z_log_var"] = tf.cast(tensors["z_log_var"], tf.float32)
    z = tensors["z"][:_DECODED]
    count = keras.tree.flatten(data)[0].shape[0]
    doubled = {
        name: tf.concat([value[:_DECODED]] * 2, axis=0) if value.shape[:1] == [count] else value
        for name, value in tensors.items()
        if tensors.writers.get(name) != "bottleneck"  # what it writes belongs to the own code
    }
    likelihoods = model.log_likelihood(doubled, tf.concat([z, tf.roll(z, 1, axis=0)], axis=0))
    found["own"], found["permuted"] = tf.split(likelihoods, 2)
    return found

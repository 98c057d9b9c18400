"""What a model makes of some examples, looked at by several callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vae_research.bottlenecks.gaussian import GaussianBottleneck
from vae_research.model import VAE
from vae_research.tensors import bind

# Examples that are decoded, twice; the others are only encoded.
_DECODED = 128


class Inference:
    """Codes of the same examples, and what the decoder makes of some; computed once an epoch.

    Callbacks that are given the same object share what it has found, until one of them begins
    another epoch.

    Args:
        data: `[count, ...]`, or a dictionary of such arrays.
        count: examples that are used, the first ones.
    """

    def __init__(self, data: np.ndarray | Mapping[str, np.ndarray], count: int = 500) -> None:
        self.data = keras.tree.map_structure(lambda values: values[:count], data)
        self.on_device: Any = None
        self._infer = tf.function(_infer, autograph=False)
        self._found: dict[str, np.ndarray] = {}

    @classmethod
    def over(cls, data: Any) -> Inference:
        """Returns what was given, where that is an `Inference`, otherwise one over the data."""
        return data if isinstance(data, cls) else cls(data)

    def forget(self) -> None:
        """Has the next call compute anew."""
        self._found = {}

    def __call__(self, model: VAE) -> dict[str, np.ndarray]:
        """Returns `code` (without noise) and `z`, and where there are any `kl` and `z_log_var`.

        These are `[count, latent]`; `z_log_var` is that of a normal posterior only. Of the first
        128 examples there are also `own` and `permuted`, log p(x|z) in nats, with the code of the
        example and with that of its neighbour: a permutation that leaves none in its place.
        """
        if not self._found:
            if self.on_device is None:  # copied once, not at every epoch
                self.on_device = keras.tree.map_structure(tf.constant, self.data)
            found = self._infer(model, self.on_device)
            self._found = {name: tensor.numpy() for name, tensor in found.items()}
        return self._found


def _infer(model: VAE, data: Any) -> dict[str, tf.Tensor]:
    tensors = model.infer(data, num_samples=1)
    center = model.bottleneck.center
    found = {"code": center(**bind("bottleneck", center, tensors)), "z": tensors["z"]}
    if "kl" in tensors:
        found["kl"] = tensors["kl"]
    if isinstance(model.bottleneck, GaussianBottleneck):
        found["z_log_var"] = tf.cast(tensors["z_log_var"], tf.float32)
    z = tensors["z"][:_DECODED]
    count = keras.tree.flatten(data)[0].shape[0]
    twice = {
        name: tf.concat([value[:_DECODED]] * 2, axis=0) if value.shape[:1] == [count] else value
        for name, value in tensors.items()
        if tensors.writers.get(name) != "bottleneck"  # belongs to the own code
    }
    likelihoods = model.log_likelihood(twice, tf.concat([z, tf.roll(z, 1, axis=0)], axis=0))
    found["own"], found["permuted"] = tf.split(likelihoods, 2)
    return found

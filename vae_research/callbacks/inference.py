"""One forward pass over validation data, shared by several callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vae_research.bottlenecks.gaussian import GaussianBottleneck
from vae_research.codes import columns
from vae_research.evaluation.encoding import kl_of_latents
from vae_research.model import VAE
from vae_research.tensors import Tensors, bind

# Examples that are also decoded, each with two codes; the others are only encoded.
_DECODED = 128

# The beginning of the names of what a bottleneck's `center` returns beside codes.
WITH_CODE = "with_code/"


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

        `[count, columns]`, of all latents side by side, as `VAE.code_layout` labels them: `code`
        (without noise), `z`, and `z_log_var` if the posterior is a `GaussianBottleneck`'s. Of other
        bottlenecks with a method `log_prob`, `[compared, count]`: `log_densities`, log q(z|x),
        nats, of the sampled codes of the first examples (`Bottleneck.compared_codes`, 128) given
        each example. `[count, values]`:
        `kl` in nats, if there is a closed form for every latent; it has its own number of values.
        `kl_of_columns`, `[count, columns]`, is there if every latent has one of its own shape.
        `with_code/NAME`: what `center` returned beside codes. `[128]`, for the first 128 examples:
        `own` and `permuted`, log p(x|z) in nats with the codes of the example and with those of its
        neighbour, a permutation without fixed points.
        """
        if not self._cache:
            if self._on_device is None:  # copied once, not at every epoch
                self._on_device = keras.tree.map_structure(tf.constant, self.data)
            with model.averaging.averages():
                tensors = self._infer(model, self._on_device)
            self._cache = {name: tensor.numpy() for name, tensor in tensors.items()}
        return self._cache


def _infer(model: VAE, data: Any) -> dict[str, tf.Tensor]:
    tensors, layout = model.infer(data, num_samples=1), model.code_layout
    center = model.codes_without_noise(tensors)
    found = {"code": layout.flatten(center), "z": layout.flatten(layout.given(tensors))}
    found |= {
        f"{WITH_CODE}{name}": value for name, value in center.items() if name not in layout.shapes
    }
    if (kl := kl_of_latents(tensors, layout)) is not None:
        found["kl"] = columns(list(kl.values()))
        if layout.has_shapes(kl):
            found["kl_of_columns"] = layout.flatten(kl)
    is_gaussian = isinstance(model.bottleneck, GaussianBottleneck) and layout.only == "z"
    if is_gaussian and "z_log_var" in tensors:
        found["z_log_var"] = layout.flatten(tf.cast(tensors["z_log_var"], tf.float32))
    elif (log_densities := _log_densities(model, tensors)) is not None:
        found["log_densities"] = log_densities
    count = keras.tree.flatten(data)[0].shape[0]
    doubled = {}
    for name, value in tensors.items():
        # What the bottleneck wrote belongs to the code of its row.
        of_code = tensors.writers.get(name) == "bottleneck"
        has_rows = value.shape[:1] == [count] or (of_code and value.shape[:1] == [None])
        if has_rows or name in layout.shapes:
            first = value[:_DECODED]
            other = tf.roll(first, 1, axis=0) if of_code else first
            value = tf.concat([first, other], axis=0)
        doubled[name] = value
    likelihoods = model.log_likelihood(doubled, layout.given(doubled))
    found["own"], found["permuted"] = tf.split(likelihoods, 2)
    return found


def _log_densities(model: VAE, tensors: Tensors) -> tf.Tensor | None:
    """Returns log q(z_i|x_j), `[rows i, rows j]`, nats, of all latents together.

    None if they have no such function, or it reads what depends on the sampled codes: it is then
    none of another example's.
    """
    log_prob = getattr(model.bottleneck, "log_prob", None)
    if log_prob is None:
        return None
    given, codes = bind("log_prob", log_prob, tensors), model.code_layout.shapes
    others = given.keys() - codes.keys()
    if any(tensors.writers.get(name) == "bottleneck" for name in others):
        return None
    count = tf.shape(tensors["inputs"])[0]

    def of_example(row: tf.Tensor) -> tf.Tensor:
        repeated = {name: tf.repeat(tensors[name][row][tf.newaxis], count, 0) for name in codes}
        return tf.cast(log_prob(**given | repeated), tf.float32)

    rows = tf.range(tf.minimum(count, model.bottleneck.compared_codes))
    return tf.map_fn(of_example, rows, fn_output_signature=tf.float32)

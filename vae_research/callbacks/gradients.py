"""Which loss term pulls where, and how strongly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vae_research.callbacks.base import StepCallback
from vae_research.callbacks.tensorboard.summaries import Summaries
from vae_research.model import VAE
from vae_research.objective import LossReport

# Far smaller than any gradient that trains; keeps a cosine of nothing with nothing finite.
_TINY = 1e-30

# Names of the networks, of "encoder" and "decoder", that have a variable: one of them as a rule,
# both where weights are tied, none where another module has it.
Part = tuple[str, ...]
Gradient = dict[Part, tf.Tensor]


class Gradients(StepCallback):
    """Writes norms of gradients, and the angle between them, every so many optimizer steps.

    The gradients are those of the weights at that step on a fixed batch, not on the batch that was
    just trained, so that a curve shows the model and not the choice of examples. The networks run
    as in evaluation (no dropout), on the noise of evaluation. Nothing of this is part of the
    training step. Tags, under `train`:

    - `gradients/total`: norm of the gradient of the loss by all trained variables.
    - `gradients/encoder/NAME`, `gradients/decoder/NAME`: norm of the gradient of a term's
      contribution, weight times value, by the variables of encoder and decoder, where it has one.
    - `gradients/cosine/NAME`: cosine of the angle, in the encoder, between the gradients of the
      likelihood and of another term: -1 where they pull in opposite directions.

    Args:
        log_dir: the run directory.
        data: `[count, ...]` the batch, or a dictionary of such arrays.
        every_steps: how often. They are written when that many steps have passed, after the
            compiled call that the step is in, and when training ends.

    Raises:
        ValueError: `every_steps` is below 1.
    """

    def __init__(
        self,
        log_dir: str | Path,
        data: np.ndarray | Mapping[str, np.ndarray],
        *,
        every_steps: int = 500,
    ) -> None:
        super().__init__()
        if every_steps < 1:
            raise ValueError(f"every_steps must be at least 1, got {every_steps}.")
        self.every_steps = every_steps
        self.data = data
        self._summaries = Summaries(log_dir)
        self._measure = tf.function(gradient_figures, autograph=False)
        self._on_device: Any = None
        self._written_at = 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Puts the batch where it is needed."""
        self._written_at = self.model.step
        if self._on_device is None:
            self._on_device = keras.tree.map_structure(tf.constant, self.data)

    def on_step(self, step: int) -> None:
        """Writes at every interval."""
        if step // self.every_steps > self._written_at // self.every_steps:
            self._write(step)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Writes a last time and closes the event files."""
        if self.model.step > self._written_at:
            self._write(self.model.step)
        self._summaries.close()

    def _write(self, step: int) -> None:
        self._written_at = step
        found = self._measure(self.model, self._on_device)
        self._summaries.scalars("train", {tag: float(value) for tag, value in found.items()}, step)
        self._summaries.flush("train")


def gradient_figures(model: VAE, data: Any) -> dict[str, tf.Tensor]:
    """Returns norms and cosines of the gradients of a model on one batch, scalars by tag."""
    parts = _parts(model)
    with tf.GradientTape(persistent=True) as tape:
        report = model.objective(model.forward(data), regularization=model.losses)
        loss = tf.reduce_mean(report.surrogate)
        values = {name: tf.reduce_mean(report.values[name]) for name in report.weights}
    gradients = {name: _gradients(tape, value, parts) for name, value in values.items()}
    if model.objective.importance_weighted:  # no sum of its terms
        total = _gradients(tape, loss, parts)
    else:
        total = _weighted_sum(gradients, report)
    found = {"gradients/total": _norm(total)}
    for network in ("encoder", "decoder"):
        for name, gradient in gradients.items():
            own = _of(network, gradient)
            if own:  # the KL divergence has none in the decoder
                found[f"gradients/{network}/{name}"] = tf.abs(report.weights[name]) * _norm(own)
    likelihood = model.objective.likelihood.label
    if likelihood in gradients:
        of_likelihood = _of("encoder", gradients[likelihood])
        for name in gradients.keys() - {likelihood, "regularization"}:
            cosine = _cosine(of_likelihood, _of("encoder", gradients[name]))
            found[f"gradients/cosine/{name}"] = cosine
    return found


def _parts(model: VAE) -> dict[Part, list[Any]]:
    """Returns the trained variables by the networks that have them."""
    networks = {"encoder": model.encoder, "decoder": model.decoder}
    owned = {
        name: {id(variable) for variable in network.trainable_variables}
        for name, network in networks.items()
    }
    parts: dict[Part, list[Any]] = {}
    for variable in model.trainable_variables:
        owners = tuple(name for name, known in owned.items() if id(variable) in known)
        parts.setdefault(owners, []).append(variable)
    return parts


def _gradients(tape: tf.GradientTape, target: tf.Tensor, parts: dict[Part, list[Any]]) -> Gradient:
    """Returns the gradient by the variables of each part as one vector, where it has one.

    With one vector instead of many tensors, what follows is a few operations. To trace hundreds
    took longer than all that they compute in a short run.
    """
    gradient = {}
    for part, found in tape.gradient(target, parts).items():
        if any(each is not None for each in found):
            vectors = [
                tf.zeros([math.prod(variable.shape)])
                if each is None
                else tf.cast(tf.reshape(each, [-1]), tf.float32)
                for each, variable in zip(found, parts[part], strict=True)
            ]
            gradient[part] = tf.concat(vectors, axis=0)
    return gradient


def _of(network: str, gradient: Gradient) -> Gradient:
    return {part: vector for part, vector in gradient.items() if network in part}


def _weighted_sum(gradients: dict[str, Gradient], report: LossReport) -> Gradient:
    total: Gradient = {}
    for name, gradient in gradients.items():
        for part, vector in gradient.items():
            weighted = report.weights[name] * vector
            total[part] = total[part] + weighted if part in total else weighted
    return total


def _norm(gradient: Gradient) -> tf.Tensor:
    return tf.sqrt(_product(gradient, gradient))


def _cosine(left: Gradient, right: Gradient) -> tf.Tensor:
    return _product(left, right) / tf.maximum(_norm(left) * _norm(right), _TINY)


def _product(left: Gradient, right: Gradient) -> tf.Tensor:
    products = [tf.reduce_sum(left[part] * right[part]) for part in left if part in right]
    return sum(products) if products else tf.constant(0.0)

"""Norms and angles of the gradients of the loss terms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vae_research.arguments import checked_integer
from vae_research.callbacks.base import StepCallback
from vae_research.callbacks.tensorboard.summaries import Summaries
from vae_research.model import VAE
from vae_research.objective import LossReport

# Far below the norm of any useful gradient; makes the cosine of two zero vectors 0 and not NaN.
_TINY = 1e-30

# The networks, of "encoder" and "decoder", that have a variable: usually one; both if weights are
# tied; none if the variable belongs to another module.
Part = tuple[str, ...]
Gradient = dict[Part, tf.Tensor]


class Gradients(StepCallback):
    """Writes norms of gradients, and the angles between them, at an interval in optimizer steps.

    The gradients are computed with the current weights on a fixed batch, not on the batch just
    trained on, so that a curve shows the model and not the choice of examples. The networks run
    as in evaluation (no dropout), with the noise of evaluation, outside of the training step. Tags,
    under `train`:

    - `gradients/total`: norm of the gradient of the loss with respect to all trained variables, by
      the gradient estimator if there is one.
    - `gradients/encoder/NAME`, `gradients/decoder/NAME`: norm of the gradient of a term's
      contribution (weight times value) with respect to the variables of the encoder or decoder;
      omitted if it does not depend on them.
    - `gradients/CRITIC`: norm of the gradient of a critic's loss with respect to its variables.
    - `gradients/cosine/NAME`: cosine of the angle, in the encoder, between the gradients of the
      likelihood and of another term: -1 if they point in opposite directions.

    Args:
        log_dir: the run directory.
        data: `[count, ...]` the batch, or a dictionary of such arrays.
        every_steps: interval in optimizer steps. They are written after the compiled call that
            contains the last step of an interval, and when training ends.

    Raises:
        ValueError: `every_steps` is not an integer >= 1.
    """

    def __init__(
        self,
        log_dir: str | Path,
        data: np.ndarray | Mapping[str, np.ndarray],
        *,
        every_steps: int = 500,
    ) -> None:
        super().__init__()
        self.every_steps = checked_integer("every_steps", every_steps, 1)
        self.data = data
        self._summaries = Summaries(log_dir)
        self._measure = tf.function(gradient_figures, autograph=False)
        self._on_device: Any = None
        self._written_at = 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Copies the batch to the device."""
        self._written_at = self.model.step
        if self._on_device is None:
            self._on_device = keras.tree.map_structure(tf.constant, self.data)

    def on_step(self, step: int) -> None:
        """Writes at the end of an interval."""
        if step // self.every_steps > self._written_at // self.every_steps:
            self._write(step)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes if training ends with this epoch, before a run saves its end."""
        if self.model.stop_training or epoch + 1 == self.params.get("epochs"):
            self._write_last()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Writes one last time, unless it is done, and closes the event files."""
        self._write_last()
        self._summaries.close()

    def _write_last(self) -> None:
        if self.model.step > self._written_at:
            self._write(self.model.step)

    def _write(self, step: int) -> None:
        self._written_at = step
        figures = self._measure(self.model, self._on_device)
        values = {tag: float(value) for tag, value in figures.items()}
        self._summaries.scalars("train", values, step)
        self._summaries.flush("train")


def gradient_figures(model: VAE, data: Any) -> dict[str, tf.Tensor]:
    """Returns norms and cosines of the gradients of a model on one batch, scalars by tag."""
    parts = _parts(model)
    with tf.GradientTape(persistent=True) as tape:
        _, report = model.report(data)
        loss = tf.reduce_mean(report.surrogate)
        values = {name: tf.reduce_mean(report.values[name]) for name in report.weights}
    figures = {
        f"gradients/{critic.name}": _norm(
            _gradients(
                tape, report.critics[critic.name].loss, {(critic.name,): critic.trainable_variables}
            )
        )
        for critic in model.critics
    }
    gradients = {name: _gradients(tape, value, parts) for name, value in values.items()}
    if model.objective.importance_weighted or model.objective.gradient_estimator is not None:
        # Not a sum of the terms.
        total = _gradients(tape, loss, parts)
    else:
        total = _weighted_sum(gradients, report)
    figures["gradients/total"] = _norm(total)
    for network in ("encoder", "decoder"):
        for name, gradient in gradients.items():
            part = _in_network(network, gradient)
            if part:  # the KL divergence does not depend on the decoder
                norm = tf.abs(report.weights[name]) * _norm(part)
                figures[f"gradients/{network}/{name}"] = norm
    likelihood = model.objective.likelihood.label
    if likelihood in gradients:
        of_likelihood = _in_network("encoder", gradients[likelihood])
        for name in gradients.keys() - {likelihood, "regularization"}:
            cosine = _cosine(of_likelihood, _in_network("encoder", gradients[name]))
            figures[f"gradients/cosine/{name}"] = cosine
    return figures


def _parts(model: VAE) -> dict[Part, list[Any]]:
    """Returns the trained variables, grouped by the networks that have them."""
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
    """Returns the gradient with respect to each part as one vector; omits parts without any.

    One vector instead of many tensors leaves few operations to trace: tracing hundreds took longer
    than running them in a short run.
    """
    gradient = {}
    for part, tensors in tape.gradient(target, parts).items():
        if any(each is not None for each in tensors):
            vectors = [
                tf.zeros([math.prod(variable.shape)])
                if each is None
                else tf.cast(tf.reshape(each, [-1]), tf.float32)
                for each, variable in zip(tensors, parts[part], strict=True)
            ]
            gradient[part] = tf.concat(vectors, axis=0)
    return gradient


def _in_network(network: str, gradient: Gradient) -> Gradient:
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

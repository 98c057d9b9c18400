"""Which loss term pulls where, and how strongly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vae_research.callbacks.epochs import StepCallback
from vae_research.callbacks.writers import Summaries
from vae_research.model import VAE
from vae_research.objective import LossReport

# Far smaller than any gradient that trains; keeps a cosine of nothing with nothing finite.
_TINY = 1e-30


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
    variables = model.trainable_variables
    with tf.GradientTape(persistent=True) as tape:
        report = model.objective(model.forward(data), regularization=model.losses)
        loss = tf.reduce_mean(report.surrogate)
        values = {name: tf.reduce_mean(report.values[name]) for name in report.weights}
    gradients = {name: _gradients(tape, value, variables) for name, value in values.items()}
    if model.objective.importance_weighted:  # no sum of its terms
        total = _gradients(tape, loss, variables)
    else:
        total = _weighted_sum(gradients, report)
    found = {"gradients/total": _norm(total)}
    places = {id(variable): place for place, variable in enumerate(variables)}
    for part, network in (("encoder", model.encoder), ("decoder", model.decoder)):
        own = [places[id(variable)] for variable in network.trainable_variables]
        for name, values in gradients.items():
            parts = [values[place] for place in own]
            if any(each is not None for each in parts):  # the KL divergence is none of the decoder
                found[f"gradients/{part}/{name}"] = tf.abs(report.weights[name]) * _norm(parts)
    own = [places[id(variable)] for variable in model.encoder.trainable_variables]
    likelihood = model.objective.likelihood.label
    if likelihood in gradients:
        of_likelihood = [gradients[likelihood][place] for place in own]
        for name in gradients.keys() - {likelihood, "regularization"}:
            other = [gradients[name][place] for place in own]
            found[f"gradients/cosine/{name}"] = _cosine(of_likelihood, other)
    return found


def _gradients(
    tape: tf.GradientTape, target: tf.Tensor, variables: Sequence[Any]
) -> list[tf.Tensor | None]:
    """Returns the gradients by Keras' variables, float32; None where there is none."""
    found = tape.gradient(target, variables)
    return [None if each is None else tf.cast(each, tf.float32) for each in found]


def _weighted_sum(
    gradients: dict[str, list[tf.Tensor | None]], report: LossReport
) -> list[tf.Tensor | None]:
    total: list[tf.Tensor | None] = []
    for parts in zip(*gradients.values(), strict=True):
        weighted = zip(report.weights.values(), parts, strict=True)
        known = [weight * part for weight, part in weighted if part is not None]
        total.append(sum(known) if known else None)
    return total


def _norm(gradients: Sequence[tf.Tensor | None]) -> tf.Tensor:
    known = [tf.reduce_sum(tf.square(each)) for each in gradients if each is not None]
    return tf.sqrt(sum(known)) if known else tf.constant(0.0)


def _cosine(left: Sequence[tf.Tensor | None], right: Sequence[tf.Tensor | None]) -> tf.Tensor:
    products = [
        tf.reduce_sum(a * b)
        for a, b in zip(left, right, strict=True)
        if a is not None and b is not None
    ]
    product = sum(products) if products else tf.constant(0.0)
    return product / tf.maximum(_norm(left) * _norm(right), _TINY)

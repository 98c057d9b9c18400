"""Prepares the arguments of `fit`, and the batches that Keras passes to a step."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from vae_research.averaging import KeepWeights
from vae_research.objective import LossReport
from vae_research.schedules import unsettled


def with_schedule_lengths(model: keras.Model, callbacks: Any, initial_epoch: int) -> Any:
    """Returns the callbacks of a `fit`, preceded by those that every `fit` has."""
    lengths = ScheduleLengths(initial_epoch)
    if not isinstance(callbacks, keras.callbacks.CallbackList):
        own = [lengths]
        if model.averaging.momentum is not None:
            own.append(KeepWeights(model.averaging))
        return [*own, *(keras.tree.flatten(callbacks) if callbacks is not None else [])]
    # A CallbackList of Keras takes no further callbacks; its parameters are read instead.
    lengths.set_model(model)
    lengths.set_params(callbacks.params)
    lengths.on_train_begin()
    return callbacks


class ScheduleLengths(keras.callbacks.Callback):
    """Sets the length of an epoch for schedules, and warns of schedules that outlast training.

    Args:
        initial_epoch: the argument of `fit`.
    """

    def __init__(self, initial_epoch: int) -> None:
        super().__init__()
        self.initial_epoch = initial_epoch
        self._step_before = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Notes the step."""
        self._step_before = self.model.step

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Raises ValueError if no step of the epoch was counted."""
        if self.model.step == self._step_before and not self.model.trains_on_the_device:
            raise ValueError(UNFINISHED)

    def on_train_begin(self, logs: Any = None) -> None:
        """Converts lengths in epochs to steps, before the first step is traced."""
        steps, epochs = self.params.get("steps"), self.params.get("epochs")
        if steps is None or epochs is None:
            return
        self.model.set_steps_per_epoch(steps)
        end = self.model.step + steps * (epochs - self.initial_epoch)
        for label, schedules in self.model.objective.schedules().items():
            for schedule in schedules:
                clause = unsettled(schedule, end)
                if clause is not None:
                    warnings.warn(
                        f"Loss term {label!r}: {clause} ({epochs} epochs of {steps} steps). "
                        "Shorten the schedule or train longer.",
                        stacklevel=2,
                    )


UNFINISHED = (
    "train_step did not end with `return self.finish_step(report, sample_weight)`, which counts "
    "the step and records its figures: without it, every step would have the same noise."
)


def unpack(data: Any) -> tuple[dict[str, tf.Tensor], tf.Tensor | None]:
    """Returns named tensors, and one weight per example or None, from what Keras gives a step.

    Raises:
        ValueError: the targets are given twice.
    """
    inputs, targets, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    tensors = dict(inputs) if isinstance(inputs, Mapping) else {"inputs": inputs}
    if targets is not None:
        if "targets" in tensors:
            raise ValueError("Targets are given twice, as y and as 'targets' in the dictionary.")
        tensors["targets"] = targets
    return tensors, sample_weight


def targets_for_weights(x: Any, y: Any, sample_weight: Any) -> tuple[Any, Any]:
    """Returns x and y for Keras, which drops sample weights if there is no y."""
    if sample_weight is None or y is not None:
        return x, y
    if not isinstance(x, Mapping):
        return x, x
    rest = {name: value for name, value in x.items() if name != "targets"}
    return rest, x.get("targets", x.get("inputs"))


def refuse_class_weight(class_weight: Any) -> None:
    """Raises ValueError if class weights are given."""
    if class_weight is not None:
        raise ValueError(
            "class_weight is not for a VAE, which has no classes to weigh. Give sample_weight, one "
            "weight for each example."
        )


def weighted(values: tf.Tensor, report: LossReport, sample_weight: tf.Tensor | None) -> tf.Tensor:
    """Returns the loss of each example times its weight, `[batch]`.

    Statistics of the whole batch and regularization are not weighted.

    Raises:
        ValueError: the weights are not one per example.
    """
    if sample_weight is None:
        return values
    sample_weight = tf.cast(sample_weight, values.dtype)
    if sample_weight.shape.rank not in (None, 1):
        raise ValueError(
            f"sample_weight has shape {sample_weight.shape}; a VAE takes one weight per example, "
            "[batch]."
        )
    of_the_batch = sum(
        contribution
        for name, contribution in report.contributions.items()
        if report.values[name].shape.rank == 0
    )
    return (values - of_the_batch) * sample_weight + of_the_batch

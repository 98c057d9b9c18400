"""Prepares the arguments of `fit`, and the batches that Keras passes to a step."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vae_research.arguments import checked_integer
from vae_research.controllers import Controller
from vae_research.data.dataset import Data
from vae_research.data.split import Split
from vae_research.data.streams import (
    LAST_EPOCH,
    Batches,
    DeviceDataset,
    was_made_from_batches,
)
from vae_research.distribution import share, total
from vae_research.objective import LARGER_IS_BETTER, LossReport
from vae_research.schedules import Cosine, Cyclical, LinearWarmup, unsettled, value_at


def preceded_by(ours: Sequence[keras.callbacks.Callback], callbacks: Any) -> Any:
    """Returns the callbacks of a `fit`, with ours before those of the user."""
    if not isinstance(callbacks, keras.callbacks.CallbackList):
        return [*ours, *_as_list(callbacks)]
    # A CallbackList has been told model and parameters already; of an earlier fit it has some, too.
    kinds = ScheduleLengths, DataEpochs
    theirs = [callback for callback in callbacks.callbacks if not isinstance(callback, kinds)]
    for callback in ours:
        callback.set_model(callbacks.model)
        callback.set_params(callbacks.params)
    callbacks.callbacks[:] = [*ours, *theirs]
    return callbacks


def _as_list(callbacks: Any) -> list[keras.callbacks.Callback]:
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return list(callbacks.callbacks)
    return [] if callbacks is None else keras.tree.flatten(callbacks)


def one_by_one(callbacks: Any) -> list[keras.callbacks.Callback]:
    """Returns the callbacks of a `fit`, also those that others hold in a list `callbacks`."""
    found = []
    for callback in _as_list(callbacks):
        inner = getattr(callback, "callbacks", None)
        found += one_by_one(inner) if isinstance(inner, list) else [callback]
    return found


class ScheduleLengths(keras.callbacks.Callback):
    """Sets the length of an epoch for schedules, and warns of schedules that outlast training.

    It also tells callbacks of Keras with a `monitor` whether its larger or its smaller values are
    better, and warns of those whose values are of different losses.

    Args:
        initial_epoch: the argument of `fit`.
        monitoring: the callbacks of the user.
    """

    def __init__(
        self, initial_epoch: int, monitoring: Sequence[keras.callbacks.Callback] = ()
    ) -> None:
        super().__init__()
        self.initial_epoch = initial_epoch
        self._monitoring = monitoring

    def on_train_begin(self, logs: Any = None) -> None:
        """Converts lengths in epochs to steps, before the first step is traced."""
        steps, epochs = self.params.get("steps"), self.params.get("epochs")
        if steps is not None:
            self.model.set_steps_per_epoch(steps)
        for callback in self._monitoring:
            _set_direction(callback, self.model, (steps or 0) * (epochs or 0))
            _warn_of_different_losses(callback, self.model, steps)
        if steps is None or epochs is None:
            return
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


def _set_direction(callback: keras.callbacks.Callback, model: Any, last: int) -> None:
    """Sets the direction of a monitor whose `mode` is "auto"; Keras knows that of a loss only."""
    monitor, mode = getattr(callback, "monitor", None), getattr(callback, "mode", None)
    if mode != "auto" or not isinstance(monitor, str):
        return
    name = monitor.removeprefix("val_")
    weights = {term.label: term.weight for term in model.objective.terms if term.weight is not None}
    if name in LARGER_IS_BETTER:
        callback.mode = "max"
    elif name in weights:
        callback.mode = _direction(weights[name], last)
    elif name == "kl" or name.startswith("kl_"):
        callback.mode = "min"


def _direction(weight: Any, last: int) -> str:
    """Returns what training does to a loss term with this weight until a step: "min" or "max".

    Returns "auto" if the weight changes its sign, or may do so.
    """
    if isinstance(weight, Controller):
        return "min" if getattr(weight, "minimum", -1.0) >= 0.0 else "auto"
    if isinstance(weight, LinearWarmup | Cosine | Cyclical):
        values = [weight.start, weight.peak]
    else:
        values = [float(value_at(weight, step)) for step in np.linspace(0, last, 9)]
    if min(values) >= 0.0:
        return "min"
    return "max" if max(values) <= 0.0 else "auto"


def _warn_of_different_losses(
    callback: keras.callbacks.Callback, model: Any, steps: int | None
) -> None:
    """Warns of a monitor that compares losses with different weights of their terms."""
    monitor = getattr(callback, "monitor", None)
    settled = model.objective.settled_at()
    first = getattr(callback, "start_from_epoch", 0)  # of EarlyStopping
    if monitor not in ("loss", "val_loss") or (
        settled is not None and settled <= max(model.step, first * (steps or 0))
    ):
        return
    until = "during the whole training" if settled is None else f"until step {settled}"
    warnings.warn(
        f"{type(callback).__name__} monitors {monitor!r}, and the weights in it change {until}: "
        "its values are of different losses. The weights of monitor='val_elbo' are always 1"
        + (
            "."
            if settled is None or not steps or not hasattr(callback, "start_from_epoch")
            else f"; start_from_epoch={-(-settled // steps)} waits for them."
        ),
        stacklevel=2,
    )


UNFINISHED = (
    "train_step did not end with `return self.finish_step(report, sample_weight)`, which counts "
    "the step and records its figures: without it, every step would have the same noise."
)


class DataEpochs(keras.callbacks.Callback):
    """Chooses the epoch of the data that a `fit` begins with, and counts in `model.data_epoch`.

    The first epoch is known when all callbacks have begun: one of them may have restored a model
    and the number of an epoch, as `BackupAndRestore` does.

    Args:
        data: what is trained on.
        initial_epoch: the argument of `fit`.

    Attributes:
        epoch: int64 variable, which the data read when Keras asks for the first batch.

    Raises:
        ValueError: `initial_epoch` is not the number of an epoch.
    """

    def __init__(self, data: DeviceDataset | Batches, initial_epoch: Any) -> None:
        super().__init__()
        self._initial_epoch = checked_integer("initial_epoch", initial_epoch, 0, LAST_EPOCH)
        self._data = data
        self._first: int | None = None
        # Batches since the first epoch began, and the step of the model when they were counted.
        self._batches, self._step = data.first_position, 0
        with tf.device("/cpu:0"):  # where tf.data is
            self.epoch = tf.Variable(0, dtype=tf.int64, trainable=False)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Sets the epoch of the data that an iteration from now on begins with."""
        if self._first is None:
            self._first = self._chosen(epoch)
            self.epoch.assign(self._first)
        else:
            self.epoch.assign(self._next())
        self._step = self.model.step

    def _chosen(self, epoch: int) -> int:
        """Returns the epoch of the data for the first epoch of Keras."""
        if self._data.first_epoch is not None:
            return self._data.first_epoch + epoch - self._initial_epoch
        return epoch if self._initial_epoch else self.model.data_epoch

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Counts what was trained on."""
        self.count()

    def count(self) -> None:
        """Counts the epochs of the data that have begun, after an exception as well."""
        if self._first is None:
            return
        step = self.model.step
        self._batches += step - self._step
        self._step = step
        self.model.data_epoch = self._next()

    def _next(self) -> int:
        return (self._first or 0) - (-self._batches // self._data.steps)


def warn_of_repeated_data(model: Any, x: Any, callbacks: Any) -> None:
    """Warns of data and callbacks with which a `fit` does not continue exactly.

    Args:
        model: that is to be trained.
        x: the data of `fit`.
        callbacks: those of the user.
    """
    if isinstance(x, DeviceDataset | Batches):
        for callback in one_by_one(callbacks):
            backs_up = isinstance(callback, keras.callbacks.BackupAndRestore)
            if backs_up and callback.save_freq != "epoch":
                warnings.warn(
                    f"BackupAndRestore(save_freq={callback.save_freq!r}) saves within an epoch, "
                    "and Keras repeats that epoch from its beginning: the weights will not be "
                    "those of an uninterrupted training. With save_freq='epoch' they are, bit for "
                    "bit; a run of vae_research resumes at any step.",
                    stacklevel=3,
                )
    elif isinstance(x, tf.data.Dataset) and model.step and was_made_from_batches(x):
        warnings.warn(
            "This model has been trained before, and these data begin with epoch 0 again, in the "
            "same order and with the same noise: of the methods of split.batches(...) only map() "
            "keeps what fit() needs to continue. Use map() alone, or give first_epoch=.",
            stacklevel=3,
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


def refuse_split(x: Any) -> None:
    """Raises TypeError for data that are not batches yet."""
    if isinstance(x, Data | Split):
        split = "data.train" if isinstance(x, Data) else "split"
        raise TypeError(
            f"A {type(x).__name__} has no batches: give {split}.on_device(batch_size, seed=0), "
            f"which is the fastest, or {split}.batches(batch_size, seed=0)."
        )


def refuse_class_weight(class_weight: Any) -> None:
    """Raises ValueError if class weights are given."""
    if class_weight is not None:
        raise ValueError(
            "class_weight is not for a VAE, which has no classes to weigh. Give sample_weight, one "
            "weight for each example."
        )


def refuse_restored_weights(callbacks: Any) -> None:
    """Raises ValueError if a callback restores weights that averages would then replace."""
    for callback in one_by_one(callbacks):
        if getattr(callback, "restore_best_weights", False):
            raise ValueError(
                f"{type(callback).__name__}(restore_best_weights=True) restores the weights of an "
                "epoch, and the averages of the last one would replace them (use_ema). Leave out "
                "one of the two; ModelCheckpoint keeps the best model of both."
            )


def refuse_unscaled_float16(
    layers: Iterable[keras.layers.Layer], optimizer: Any, where: str
) -> None:
    """Raises ValueError if networks compute in float16 and the optimizer does not scale the loss.

    Args:
        layers: the networks.
        optimizer: that trains them.
        where: the call that gives it, for the message.
    """
    half = any(layer.compute_dtype == "float16" for layer in layers)
    if half and not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise ValueError(
            "Networks in mixed_float16 need a scaled loss, or small gradients become zero: "
            f"{where}keras.optimizers.LossScaleOptimizer(optimizer)), or use mixed_bfloat16."
        )


def as_weights(sample_weight: tf.Tensor) -> tf.Tensor:
    """Returns the weights of examples, float32 `[batch]`.

    Raises:
        ValueError: they are not one per example.
    """
    sample_weight = tf.cast(sample_weight, tf.float32)
    if sample_weight.shape.rank not in (None, 1):
        raise ValueError(
            f"sample_weight has shape {sample_weight.shape}; a VAE takes one weight per example, "
            "[batch]."
        )
    return sample_weight


def weighted_mean(
    values: tf.Tensor, report: LossReport, sample_weight: tf.Tensor | None
) -> tf.Tensor:
    """Returns the mean loss of a batch, in which an example of weight 2 counts as two.

    That of a replica is its part of the mean over the global batch. Statistics of the whole batch
    and regularization are not weighted. If all weights are 0, they are all there is.

    Args:
        values: the loss of each example, `[batch]`.
        report: of the batch.
        sample_weight: `[batch]`; None are equal ones.

    Raises:
        ValueError: the weights are not one per example.
    """
    own = share()
    if sample_weight is None and own is None:
        return tf.reduce_mean(values)
    weights = tf.ones_like(values) if sample_weight is None else as_weights(sample_weight)
    of_the_batch = sum(
        contribution
        for name, contribution in report.contributions.items()
        if report.values[name].shape.rank == 0
    )
    weighted = tf.reduce_sum((values - of_the_batch) * weights)
    if own is None:
        return tf.math.divide_no_nan(weighted, tf.reduce_sum(weights)) + of_the_batch
    count = tf.cast(own.size, tf.float32)
    if sample_weight is not None:
        count = total(tf.reduce_sum(weights)) / own.copies
    return tf.math.divide_no_nan(weighted, count) / own.copies + of_the_batch / own.replicas

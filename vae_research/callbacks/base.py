"""Base classes of callbacks, and the record of an epoch that several callbacks write."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import keras

_VALIDATION = "val_"


class Resumable:
    """Base of callbacks with a state, which a run saves in its checkpoints."""

    def get_state(self) -> dict[str, Any]:
        """Returns the state: numbers, strings, and lists and dictionaries of them."""
        return {}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores what `get_state` returned.

        Called when a run resumes: between two epochs after `on_train_begin`, within an epoch after
        `on_epoch_begin` of that epoch.
        """


@dataclasses.dataclass(frozen=True)
class EpochRecord:
    """The figures of one finished epoch.

    Attributes:
        epoch: number of finished epochs, from 1.
        epochs: number of epochs of the whole training.
        step: batches that the model has been trained on so far.
        seconds: time spent on training steps, without validation.
        images_per_second: examples trained on in a second of that time.
        learning_rate: of the model's optimizer, at the end of the epoch.
        figures: by split, `train` and (if there is one) `validation`: loss, elbo and every term by
            name, in nats, means over the examples of the epoch.
        weights: weights of the trained terms at `step`.
        learning_rates: of the optimizers of critics, by the name of the critic.
    """

    epoch: int
    epochs: int
    step: int
    seconds: float
    images_per_second: float
    learning_rate: float
    figures: dict[str, dict[str, float]]
    weights: dict[str, float]
    learning_rates: dict[str, float] = dataclasses.field(default_factory=dict)


class StepCallback(keras.callbacks.Callback, Resumable):
    """Base of callbacks that act at certain optimizer steps; a subclass defines `on_step`.

    The optimizer is asked for its step at the beginning of an epoch only, since asking it at every
    batch would wait for the device. If a compiled call makes several steps, `on_step` is called
    after the last of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._steps_before = 0  # optimizer steps at the beginning of the epoch
        self._steps_done = 0  # includes the steps of this epoch that an interrupted session did

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Counts from the beginning of the resumed epoch."""
        position = self.model.step % self.model.steps_per_epoch
        self._steps_done = self._steps_before
        self._steps_before -= position

    def on_step(self, step: int) -> None:
        """Called with the number of optimizer steps so far."""

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Reads the step of the model."""
        self._steps_before = self._steps_done = self.model.step

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Calls `on_step`; `batch` is the position of the last step in its epoch, from 0."""
        steps = self.params.get("steps") or batch + 1  # the epoch may end within its last call
        step = self._steps_before + min(batch + 1, steps)
        if step > self._steps_done:
            self.on_step(step)


class EpochCallback(StepCallback):
    """Base of callbacks that write one record per epoch; a subclass defines `on_record`."""

    def __init__(self) -> None:
        super().__init__()
        self._started: float | None = None
        self._seconds = 0.0
        self._examples = 0

    def on_record(self, record: EpochRecord) -> None:
        """Called at the end of every epoch."""
        raise TypeError(f"{type(self).__name__} must define on_record(self, record).")

    def on_training_part_end(self) -> None:
        """Called after the last training step of an epoch, before validation."""

    def get_state(self) -> dict[str, Any]:
        """Returns the training time of the epoch so far; empty after its last training step."""
        return {} if self._started is None else {"seconds": time.perf_counter() - self._started}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores the clock."""
        super().set_state(state)
        if "seconds" in state:
            self._started = time.perf_counter() - state["seconds"]

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Starts the clock."""
        super().on_epoch_begin(epoch, logs)
        self._started = time.perf_counter()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Stops the clock: validation is not training time."""
        self._end_training_part()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Makes the record."""
        self._end_training_part()
        figures: dict[str, dict[str, float]] = {"train": {}, "validation": {}}
        for name, value in (logs or {}).items():
            if name != "learning_rate":  # Keras' schedulers put it among the logs
                split = "validation" if name.startswith(_VALIDATION) else "train"
                figures[split][name.removeprefix(_VALIDATION)] = float(value)
        weights = self.model.term_weights()
        self.on_record(
            EpochRecord(
                epoch=epoch + 1,
                epochs=self.params.get("epochs", epoch + 1),
                step=self.model.step,
                seconds=self._seconds,
                images_per_second=self._examples / max(self._seconds, 1e-9),
                learning_rate=_rate(self.model.optimizer),
                learning_rates={
                    critic.name: _rate(critic.optimizer) for critic in self.model.critics
                },
                figures={split: values for split, values in figures.items() if values},
                weights={name: float(value) for name, value in weights.items()},
            )
        )

    def _end_training_part(self) -> None:
        if self._started is None:  # an evaluation outside of training, or already stopped
            return
        self._seconds = time.perf_counter() - self._started
        self._examples = self.model.examples_seen
        self._started = None
        self.on_training_part_end()


def _rate(optimizer: keras.optimizers.Optimizer) -> float:
    """Returns the present learning rate; a variable may be one of several replicas."""
    return float(keras.ops.convert_to_numpy(optimizer.learning_rate))

"""Weights and the moving averages of them that an optimizer keeps, one in place of the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np


class Averaging:
    """Exchanges the weights of a model for the averages that its optimizer keeps, and back.

    Keras' optimizers keep exponential moving averages with `use_ema=True` (Polyak and Juditsky
    1992). Training needs the weights that it moves; whoever judges or saves a model for use wants
    the averages.

    Args:
        model: a Keras model.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        self._trained: list[Any] | None = None  # values that have made room for the averages

    @property
    def momentum(self) -> float | None:
        """The momentum of the averages; None if the optimizer keeps none."""
        optimizer: Any = getattr(self._model, "optimizer", None)  # set by compile()
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # of a LossScaleOptimizer
        return optimizer.ema_momentum if getattr(optimizer, "use_ema", False) else None

    @property
    def has_averages(self) -> bool:
        """Whether there are averages: before the first update they are zeros."""
        return (
            self.momentum is not None
            and self._model.optimizer.built
            and int(self._model.optimizer.iterations) > 0
        )

    def take(self) -> list[Any]:
        """Returns the values of the weights; training replaces them and never changes them."""
        return [variable.value.read_value() for variable in self._model.trainable_variables]

    def give(self, values: list[Any]) -> None:
        """Gives the weights these values."""
        for variable, value in zip(self._model.trainable_variables, values, strict=True):
            variable.assign(value)

    def put(self) -> None:
        """Puts the averages in the place of the weights, if there are averages."""
        if self._trained is None and self.has_averages:
            self._trained = self.take()
            self._model.optimizer.finalize_variable_values(self._model.trainable_variables)

    def remove(self) -> None:
        """Puts the weights back that training continues from."""
        if self._trained is not None:
            self.give(self._trained)
            self._trained = None

    def remove_for_training(self) -> None:
        """Like `remove`, unless somebody has given the model other weights meanwhile."""
        if self._trained is None:
            return
        trained, found = self._trained, self.take()
        self._trained = None
        self.put()
        averages = self.take()
        untouched = all(np.array_equal(*pair) for pair in zip(found, averages, strict=True))
        self._trained = None
        self.give(trained if untouched else found)

    @contextmanager
    def averages(self) -> Iterator[None]:
        """Within it, the averages are in place."""
        if self._trained is not None:
            yield
            return
        self.put()
        try:
            yield
        finally:
            self.remove()

    @contextmanager
    def weights(self) -> Iterator[None]:
        """Within it, the weights are in place that training continues from."""
        if self._trained is None:
            yield
            return
        self.remove()
        try:
            yield
        finally:
            self.put()


class KeepWeights(keras.callbacks.Callback):
    """Undoes what Keras does at the end of `fit`: it replaces the weights by their averages.

    Other callbacks find the weights that training would continue from, and can save them.

    Args:
        averaging: of the model.
    """

    def __init__(self, averaging: Averaging) -> None:
        super().__init__()
        self._averaging = averaging
        self._kept: list[Any] = []

    def on_train_begin(self, logs: Any = None) -> None:
        """Keeps the weights."""
        self._kept = self._averaging.take()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Keeps the weights."""
        self._kept = self._averaging.take()

    def on_train_end(self, logs: Any = None) -> None:
        """Puts the weights back."""
        if self._kept:
            self._averaging.give(self._kept)

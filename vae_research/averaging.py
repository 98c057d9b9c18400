"""Weights and the moving averages of them that an optimizer keeps, one in place of the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf


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
        # Variables with the values that have made room for the averages.
        self._trained: list[tuple[Any, tf.Tensor]] | None = None

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
            and int(self._model.optimizer.iterations.numpy()) > 0
        )

    def put(self) -> None:
        """Puts the averages in the place of the weights, if there are averages."""
        if self._trained is None and self.has_averages:
            self._trained = self._taken()
            optimizer = self._model.optimizer
            # The method of the class: within `kept_apart`, the optimizer's own does nothing.
            type(optimizer).finalize_variable_values(optimizer, self._model.trainable_variables)

    def remove(self) -> None:
        """Puts the weights back that training continues from."""
        for variable, value in self._trained or ():
            variable.assign(value)
        self._trained = None

    def forget(self) -> None:
        """Takes the weights that are in place for those that training continues from."""
        self._trained = None

    def remove_for_training(self) -> None:
        """Like `remove`, unless somebody has given the model other weights meanwhile."""
        if self._trained is None:
            return
        trained, found = self._trained, self._taken()
        self._trained = None
        self.put()
        untouched = all(
            np.array_equal(before, now)
            for (_, before), (_, now) in zip(found, self._taken(), strict=True)
        )
        self._trained = trained if untouched else found
        self.remove()

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

    @contextmanager
    def kept_apart(self) -> Iterator[None]:
        """Within it, Keras does not replace the weights by averages, as `fit` does at its end.

        Callbacks at the end of training then find the weights that it would continue from, and can
        save them.
        """
        if self.momentum is None:
            yield
            return
        optimizer = self._model.optimizer
        optimizer.finalize_variable_values = lambda variables: None
        try:
            yield
        finally:
            del optimizer.finalize_variable_values

    def save(self, store: Any) -> None:
        """Puts the weights that training continues from into a store of Keras, if averages are in
        their place.
        """
        for index, (_, value) in enumerate(self._trained or ()):
            store[f"{_TRAINED}{index}"] = value

    def load(self, store: Any) -> set[str]:
        """Takes what `save` has put into a store; returns the names of it."""
        names = {name for name in store.keys() if name.startswith(_TRAINED)}  # noqa: SIM118
        self._trained = None
        if names:
            self._trained = [
                (variable, tf.constant(np.asarray(store[f"{_TRAINED}{index}"]), variable.dtype))
                for index, variable in enumerate(self._model.trainable_variables)
            ]
        return names

    def _taken(self) -> list[tuple[Any, tf.Tensor]]:
        # Training replaces the value of a variable and never changes it: nothing is copied.
        return [(found, found.value.read_value()) for found in self._model.trainable_variables]


_TRAINED = "trained weight "

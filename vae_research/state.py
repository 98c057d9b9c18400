"""The one list of everything that a training step may change.

Checkpoints, hashes, the gate against non-finite steps and replay read these functions and
enumerate nothing themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np


def saved_variables(model: Any) -> list[Any]:
    """Returns the variables of a model and of its optimizer, in a fixed order, without metrics.

    They are what a checkpoint holds. Every Keras model has them, compiled or not.
    """
    return model_variables(model) + optimizer_variables(model)


def model_variables(model: Any) -> list[Any]:
    """Returns the weights of a model and what its layers keep, without metrics."""
    metrics = {id(variable) for metric in model.metrics for variable in metric.variables}
    metrics |= {id(variable) for variable in model.metrics_variables}
    return [variable for variable in model.variables if id(variable) not in metrics]


def optimizer_variables(model: Any) -> list[Any]:
    """Returns slots and counters of a model's optimizer; none if it is not compiled."""
    optimizer = getattr(model, "optimizer", None)  # Keras sets the attribute in compile()
    return [] if optimizer is None else list(optimizer.variables)


def all_variables(model: Any) -> list[Any]:
    """Returns everything that a step of a `VAE` may change: also the running sums of its figures.

    A step is undone by giving these the values that they had before.
    """
    found = [*saved_variables(model), *model.running_sums()]
    return list({id(variable): variable for variable in found}.values())


def sha256(variables: Iterable[Any]) -> str:
    """Returns a hash over the values of variables, in their order."""
    digest = hashlib.sha256()
    for variable in variables:
        digest.update(np.ascontiguousarray(as_array(variable.value)).tobytes())
    return digest.hexdigest()


def as_array(value: Any) -> np.ndarray:
    """Returns the values of a tensor, without a copy if they are in the memory of the host."""
    try:
        # The tensor's own memory; numpy() copies, and training waits for it.
        return np.asarray(memoryview(value))
    except (TypeError, ValueError, BufferError):  # on another device, or of a type without format
        return value.numpy()

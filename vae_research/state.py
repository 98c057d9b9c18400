"""The one list of everything that a training step may change.

Checkpoints, hashes, the gate against non-finite steps, replay and the check of a traced step read
`training_state` and enumerate nothing themselves. Keras and TensorFlow are imported where they are
used: a bad flag is answered without them.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from vae_research.epochs import EpochClock

if TYPE_CHECKING:
    import tensorflow as tf

CONTROLLERS = "controllers"
"""The group of the states of controllers, which have names of their own: `TERM NAME`."""

RUNNING_SUMS = "running sums"
"""The group that is no part of a checkpoint's variables: sums of the figures of an epoch."""


class OwnState:
    """What a model itself remembers of its training, beside weights and optimizers.

    It is held apart from the weights, so that neither their order nor their number depends on it.

    Attributes:
        step: int64 scalar, batches that the model has been trained on.
        clock: how many epochs these were.
        data_epoch: see `Trainer.data_epoch`.
        critics: networks that are trained in the same step; they know their own `state()`.
        controllers: float32 scalars by name, by the term whose weight they are.
    """

    def __init__(
        self,
        critics: tuple[Any, ...] = (),
        controllers: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        self.critics = critics
        self.controllers = {
            term: {name: _scalar(f"{term}/{name}", value) for name, value in state.items()}
            for term, state in (controllers or {}).items()
        }
        self.step = _scalar("step", 0, "int64")
        self.clock = EpochClock()
        self.data_epoch = 0

    def groups(self) -> dict[str, list[Any]]:
        """Returns its variables by group; see `training_state`."""
        groups = {"step": [self.step]}
        if self.controllers:
            groups[CONTROLLERS] = [
                variable for state in self.controllers.values() for variable in state.values()
            ]
        for critic in self.critics:
            groups |= critic.state()
        return groups


def _scalar(name: str, value: float, dtype: str = "float32") -> Any:
    import keras

    return keras.Variable(
        value,
        dtype=dtype,
        trainable=False,
        name=name.replace("/", " "),  # Keras allows no slash
        aggregation="only_first_replica",
    )


def training_state(model: Any) -> dict[str, list[Any]]:
    """Returns every variable that a training step may change, by group, in a fixed order.

    The groups are `model` (weights, and what layers keep), `optimizer` (slots and counters), those
    of `further_state()` if the model has that method, and among them `RUNNING_SUMS`. Every Keras
    model has the first two, compiled or not.
    """
    groups = {"model": model_variables(model), "optimizer": optimizer_variables(model)}
    further = getattr(model, "further_state", None)
    return groups if further is None else groups | further()


def saved_variables(model: Any) -> list[Any]:
    """Returns what a checkpoint holds: the training state without running sums."""
    return [variable for _, variable in saved_by_group(model)]


def saved_by_group(model: Any) -> list[tuple[str, Any]]:
    """Returns what a checkpoint holds, each variable with the name of its group."""
    groups = training_state(model).items()
    return [(name, var) for name, found in groups if name != RUNNING_SUMS for var in found]


def model_variables(model: Any) -> list[Any]:
    """Returns the weights of a model and what its layers keep, without metrics."""
    metrics = {id(variable) for metric in model.metrics for variable in metric.variables}
    metrics |= {id(variable) for variable in model.metrics_variables}
    return [variable for variable in model.variables if id(variable) not in metrics]


def optimizer_variables(model: Any) -> list[Any]:
    """Returns slots and counters of a model's optimizer; none if it is not compiled."""
    optimizer = getattr(model, "optimizer", None)  # Keras sets the attribute in compile()
    return [] if optimizer is None else list(optimizer.variables)


def optimizers(model: Any) -> dict[str, Any]:
    """Returns the optimizers of a model by the group of their variables in `training_state`."""
    own = getattr(model, "optimizer", None)
    found = {} if own is None else {"optimizer": own}
    return found | {critic.optimizer_group: critic.optimizer for critic in _critics(model)}


def _critics(model: Any) -> Iterable[Any]:
    return getattr(model, "critics", ())


def save_groups(store: Any, groups: Mapping[str, list[Any]]) -> None:
    """Puts the values of variables into a store of Keras, under names of group and position."""
    for name, variable in _named(groups):
        store[name] = variable


def load_groups(store: Any, groups: Mapping[str, list[Any]]) -> set[str]:
    """Gives variables the values that a store has of them; returns the names of all of them."""
    saved = set(store.keys())  # a store is no mapping in every respect
    found = dict(_named(groups))
    theirs, ours = (
        sorted(name for name in each if name.startswith(f"{CONTROLLERS} "))
        for each in (saved, found)
    )
    if theirs and theirs != ours:
        raise ValueError(f"The file has {', '.join(theirs)}, and the model {', '.join(ours) or 0}.")
    for name in found.keys() & saved:
        found[name].assign(store[name])
    return set(found)


def _named(groups: Mapping[str, list[Any]]) -> Iterator[tuple[str, Any]]:
    for group, variables in groups.items():
        for index, variable in enumerate(variables):
            yield f"{group} {variable.name if group == CONTROLLERS else index}", variable


def all_variables(model: Any) -> list[Any]:
    """Returns everything that a step may change, each variable once.

    A step is undone by giving these the values that they had before.
    """
    found = itertools.chain.from_iterable(training_state(model).values())
    return list({id(variable): variable for variable in found}.values())


@contextmanager
def undone(model: Any) -> Iterator[None]:
    """Gives everything that a step may change its value back at the end."""
    variables = all_variables(model)
    # Training replaces the tensor of a variable and never changes it: nothing is copied.
    before = [variable.value.read_value() for variable in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)


def step_of(model: Any) -> int:
    """Returns the training steps of a model; those of its optimizer if it does not count itself."""
    step = getattr(model, "step", None)
    return int(model.optimizer.iterations.numpy()) if step is None else step


def weights_sha256(model: Any) -> str:
    """Returns the SHA-256 of the weights of a model and of its optimizer's slots and counters."""
    return sha256(model_variables(model) + optimizer_variables(model))


def state_sha256(model: Any) -> str:
    """Returns the SHA-256 of everything that a checkpoint of a model holds."""
    return sha256(saved_variables(model))


def hidden_state(model: Any, graph: tf.Graph, operations: set[str]) -> list[str]:
    """Returns what a traced training step remembers outside of `training_state`, in words.

    That is a variable that it reads or assigns, and a generator of random numbers that belongs to
    the process. State in Python objects cannot be seen.

    Args:
        model: whose step it is.
        graph: of the step.
        operations: the types of all its operations.
    """
    import tensorflow as tf

    known = [
        each.handle
        for variable in all_variables(model)
        for each in getattr(variable.value, "values", [variable.value])  # of each replica
    ]
    # What orders the operations of several workers has no value that matters.
    operations_between = getattr(
        getattr(model.strategy, "extended", None), "_cross_device_ops", None
    )
    for launcher in getattr(operations_between, "_launchers", ()):
        known.append(launcher._get_ordering_token())
    touched = [outer for outer, _ in graph.captures if outer.dtype == tf.resource]
    names = {id(variable.handle): variable.name for variable in graph.variables}
    found = [
        f"the variable {names.get(id(handle), 'without a name')!r}"
        for handle in touched
        if not any(handle is other for other in known)
    ]
    return found + [f"the generator of {name}" for name in sorted(operations & _STATEFUL_DRAWS)]


# Operations that draw from a generator inside of TensorFlow, which no checkpoint can hold.
_STATEFUL_DRAWS = {
    "Multinomial",
    "ParameterizedTruncatedNormal",
    "RandomGamma",
    "RandomPoisson",
    "RandomPoissonV2",
    "RandomShuffle",
    "RandomStandardNormal",
    "RandomUniform",
    "RandomUniformInt",
    "TruncatedNormal",
}


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

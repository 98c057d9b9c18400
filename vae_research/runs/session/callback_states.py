"""The states of callbacks, saved by a run and restored on resume. Imports TensorFlow.

A `Resumable` knows its state. Of other callbacks of an experiment, Keras' own among them, the
attributes are saved that have changed since training began, if JSON holds their values exactly; a
callback with an attribute that changes and is anything else is refused.
"""

from __future__ import annotations

import dis
import hashlib
import json
import random
import sys
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vae_research.callbacks.base import Resumable
from vae_research.runs.cli.errors import UsageError
from vae_research.state import all_variables, as_array

# Attributes that Keras sets: of every callback, and of those with `monitor` from their arguments.
_OF_KERAS = {*vars(keras.callbacks.Callback()), "monitor_op", "min_delta"}


def get_states(callbacks: Iterable[Resumable]) -> dict[str, dict[str, Any]]:
    """Returns the state of each callback by name."""
    return {name: callback.get_state() for name, callback in named(callbacks)}


def set_states(callbacks: Iterable[Resumable], states: Mapping[str, Mapping[str, Any]]) -> None:
    """Restores the state of each callback; one that has no saved state starts from scratch."""
    for name, callback in named(callbacks):
        callback.set_state(states.get(name, {}))


def named(callbacks: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Yields each callback with its class name, numbered from the second of a class."""
    counts: dict[str, int] = {}
    for callback in callbacks:
        name = type(callback).__name__
        counts[name] = counts.get(name, 0) + 1
        yield name if counts[name] == 1 else f"{name}-{counts[name]}", callback


class Contents:
    """What the attributes of a callback hold at a time, without those that others restore.

    Args:
        callback: of a model that is being trained.

    Attributes:
        values: the attributes by name.
        fingerprints: of the values, which differ if anything inside of them does.
    """

    def __init__(self, callback: keras.callbacks.Callback) -> None:
        others = _OF_KERAS | _names_of_package(type(callback))
        self.values = {name: v for name, v in vars(callback).items() if name not in others}
        look = _Fingerprints(callback.model)
        self.fingerprints = {name: look.of(value) for name, value in self.values.items()}

    def changed(self, since: Contents) -> dict[str, Any]:
        """Returns the attributes that are new or hold something else than `since`."""
        return {
            name: value
            for name, value in self.values.items()
            if self.fingerprints[name] != since.fingerprints.get(name)
        }


def own_state(name: str, callback: keras.callbacks.Callback, begun: Contents) -> dict[str, Any]:
    """Returns the state of a callback of an experiment.

    Args:
        name: for messages.
        callback: any callback.
        begun: its contents when training began.

    Raises:
        UsageError: JSON cannot hold it.
    """
    returned = callback.get_state() if isinstance(callback, Resumable) else {}
    if not isinstance(returned, Mapping) or not _is_plain(dict(returned)):
        raise UsageError(
            f"callback {name}: get_state() returned {returned!r:.200}. Return a dictionary of "
            f"{_PLAIN}."
        )
    attributes = {}
    if not _knows_its_state(callback):
        attributes = Contents(callback).changed(begun)
    for attribute, value in attributes.items():
        if not _is_plain(value):
            raise UsageError(
                f"callback {name}: {attribute} changes during training and is of type "
                f"{type(value).__name__}, which no checkpoint holds: a resumed run would differ in "
                "silence. Derive the class from vr.callbacks.Resumable too, with get_state and "
                f"set_state; or keep {_PLAIN} in the attribute."
            )
    return {"returned": returned, "attributes": attributes}


def set_own_state(callback: keras.callbacks.Callback, state: Mapping[str, Any]) -> None:
    """Restores what `own_state` returned."""
    for name, value in state["attributes"].items():
        setattr(callback, name, value)
    if isinstance(callback, Resumable):
        callback.set_state(state["returned"])


_PLAIN = "numbers, strings, lists and dictionaries of them with strings as keys"


def _is_plain(value: Any) -> bool:
    """Returns whether a value comes back from JSON as it was, type by type."""
    if type(value) is list:
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(type(key) is str and _is_plain(found) for key, found in value.items())
    return value is None or type(value) in (bool, int, float, str)


def _knows_its_state(callback: keras.callbacks.Callback) -> bool:
    """Returns whether the class itself, not only one of ours that it derives from, says it."""
    kind: type[Any] = type(callback)
    owner = next((c for c in kind.__mro__ if "get_state" in vars(c)), None)
    return owner is not None and (owner is kind or not _is_of_package(owner))


def _is_of_package(kind: type[Any]) -> bool:
    return kind.__module__.partition(".")[0] == __name__.partition(".")[0]


def _names_of_package(kind: type[Any]) -> set[str]:
    """Returns the attributes that classes of this package set, whose states they know."""
    functions = [
        function
        for base in kind.__mro__
        if _is_of_package(base)
        for function in vars(base).values()
        if isinstance(function, types.FunctionType)
    ]
    return {
        step.argval
        for function in functions
        for step in dis.get_instructions(function)
        if step.opname == "STORE_ATTR"
    }


class _Fingerprints:
    """What two looks at a value are compared by.

    Inside of arrays, containers, closures, variables, layers, generators of random numbers and
    objects of the user's classes everything counts; of any other object only which one it is.

    Args:
        model: whose variables a checkpoint has: they may change.
    """

    def __init__(self, model: Any) -> None:
        self._known = {id(variable) for variable in all_variables(model)}

    def of(self, value: Any, outer: tuple[int, ...] = ()) -> Any:
        """Returns the fingerprint of a value that is inside of objects with these identities."""
        if id(value) in outer:
            return "itself"
        outer = (*outer, id(value))
        if _is_plain(value):
            return json.dumps(value)
        if isinstance(value, np.ndarray | np.generic) and value.dtype != object:
            return value.shape, value.dtype.str, hashlib.sha256(value.tobytes()).digest()
        if isinstance(value, Mapping):
            pairs = [(self.of(key, outer), self.of(each, outer)) for key, each in value.items()]
            return type(value), pairs
        if isinstance(value, Set):
            return type(value), sorted(str(self.of(item, outer)) for item in value)
        if isinstance(value, list | tuple | deque):
            return type(value), [self.of(item, outer) for item in value]
        if isinstance(value, np.random.Generator):
            return str(value.bit_generator.state)
        if isinstance(value, random.Random):
            return value.getstate()
        if isinstance(value, types.FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            return id(value), [self.of(found, outer) for found in cells]
        if isinstance(value, types.MethodType):
            return id(value.__func__), self.of(value.__self__, outer)
        if isinstance(value, keras.Variable | tf.Variable):
            return id(value), self._of_variables([value])
        if isinstance(value, keras.layers.Layer | keras.optimizers.Optimizer | keras.Metric):
            return id(value), self._of_variables(value.variables)
        if hasattr(value, "__dict__") and _is_of_user(type(value)):
            return id(value), self.of(vars(value), outer)
        if _is_of_python(type(value)) and type(value).__repr__ is not object.__repr__:
            return repr(value)
        return id(value)

    def _of_variables(self, variables: Iterable[Any]) -> list[bytes]:
        return [
            hashlib.sha256(as_array(tf.convert_to_tensor(found)).tobytes()).digest()
            for found in variables
            if id(found) not in self._known
        ]


def _is_of_user(kind: type[Any]) -> bool:
    """Returns whether a class is neither Python's nor one of an installed package or of ours."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None) or ""
    return not (_is_of_package(kind) or _is_of_python(kind) or "site-packages" in file)


def _is_of_python(kind: type[Any]) -> bool:
    name = kind.__module__.partition(".")[0]
    return name in sys.stdlib_module_names and name != "__main__"

"""The states of callbacks, saved by a run and restored on resume. Imports TensorFlow.

A class of callbacks with `get_state` and `set_state` says what its state is. Of other callbacks of
an experiment, Keras' own among them, the attributes that have changed since training began are
saved, if JSON holds their values exactly. A callback is refused if an attribute of any other type
changes, or holds something whose changes cannot be noticed.
"""

from __future__ import annotations

import contextlib
import copy
import dis
import hashlib
import io
import json
import pickle
import random
import sys
import threading
import types
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vae_research.callbacks.base import Resumable
from vae_research.runs.cli.errors import UsageError
from vae_research.state import all_variables, as_array

# Attributes that Keras itself sets again when training resumes: those of every callback, and those
# that a callback with a `monitor` derives from its arguments.
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

    There are none if its class defines `get_state`.

    Args:
        name: for messages.
        callback: of a model that is being trained.

    Attributes:
        values: the attributes by name.
        fingerprints: of the values, which differ if anything inside of them does.

    Raises:
        UsageError: an attribute holds something whose changes cannot be noticed.
    """

    def __init__(self, name: str, callback: keras.callbacks.Callback) -> None:
        self.values: dict[str, Any] = {}
        self.fingerprints: dict[str, Any] = {}
        if _defines_its_state(type(callback)):
            return
        others = _OF_KERAS | _names_of_package(type(callback))
        look = _Fingerprints(callback.model)
        for attribute, value in vars(callback).items():
            if attribute not in others:
                self.values[attribute] = value
                try:
                    self.fingerprints[attribute] = look.of(value)
                except _UnseenError as error:
                    raise UsageError(
                        f"callback {name}: {attribute} holds {error}, whose changes cannot be "
                        f"noticed: a resumed run might differ in silence. {_CURE}"
                    ) from error

    def changed(self, since: Contents) -> dict[str, Any]:
        """Returns the attributes that are new or hold something else than `since`."""
        return {
            name: value
            for name, value in self.values.items()
            if self.fingerprints[name] != since.fingerprints.get(name)
        }


def own_state(name: str, callback: keras.callbacks.Callback, begun: Contents) -> dict[str, Any]:
    """Returns the state of a callback of an experiment, as it is now.

    Args:
        name: for messages.
        callback: any callback.
        begun: its contents when training began.

    Raises:
        UsageError: JSON cannot hold it.
    """
    returned = callback.get_state() if hasattr(type(callback), "get_state") else {}
    if not isinstance(returned, Mapping) or not _is_plain(dict(returned)):
        raise UsageError(
            f"callback {name}: get_state() returned {returned!r:.200}. Return a dictionary of "
            f"{_PLAIN}."
        )
    attributes = Contents(name, callback).changed(begun)
    for attribute, value in attributes.items():
        if not _is_plain(value):
            raise UsageError(
                f"callback {name}: {attribute} changes during training and is of type "
                f"{type(value).__name__}, which no checkpoint holds: a resumed run would differ in "
                f"silence. {_CURE}; or keep {_PLAIN} in the attribute."
            )
    # A copy: it may be saved after a later call of the callback.
    return copy.deepcopy({"returned": dict(returned), "attributes": attributes})


def set_own_state(callback: keras.callbacks.Callback, state: Mapping[str, Any]) -> None:
    """Restores what `own_state` returned."""
    for name, value in state["attributes"].items():
        setattr(callback, name, value)
    if hasattr(type(callback), "set_state"):
        callback.set_state(state["returned"])


def refuse_half_a_state(callback: keras.callbacks.Callback) -> None:
    """Raises UsageError if a class defines one of `get_state` and `set_state`."""
    kind = type(callback)
    defined = [name for name in _METHODS if _defines(kind, name)]
    if len(defined) == 1:
        (missing,) = set(_METHODS) - set(defined)
        raise UsageError(
            f"callback {kind.__name__} defines {defined[0]} and not {missing}: a resumed run would "
            "differ in silence. Define both, or neither."
        )


_PLAIN = "numbers, strings, lists and dictionaries of them with strings as keys"
_METHODS = ("get_state", "set_state")
_CURE = "Define get_state and set_state in the class"


def _is_plain(value: Any) -> bool:
    """Returns whether a value comes back from JSON as it was, type by type."""
    if type(value) is list:
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(type(key) is str and _is_plain(found) for key, found in value.items())
    return value is None or type(value) in (bool, int, float, str)


def _defines_its_state(kind: type[Any]) -> bool:
    """Returns whether a class says all of its state.

    What a class of ours returns does not include the attributes of a class derived from it.
    """
    return _defines(kind, "get_state") or "get_state" in vars(kind)


def _defines(kind: type[Any], method: str) -> bool:
    """Returns whether a class has a method, and not from a class of ours."""
    owner = next((base for base in kind.__mro__ if method in vars(base)), None)
    return owner is not None and not _is_of_package(owner)


def _is_of_package(kind: type[Any]) -> bool:
    return _is_of(kind, __name__.partition(".")[0])


def _is_of(kind: type[Any], package: str) -> bool:
    return kind.__module__.partition(".")[0] == package


def _names_of_package(kind: type[Any]) -> set[str]:
    """Returns the attributes set by base classes of this package, which restore them."""
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


class _UnseenError(Exception):
    """A value has no fingerprint; the message says what it is."""


class _Fingerprints:
    """What two looks at a value are compared by.

    Everything inside of a value counts, but of data, tensors, classes, open files and objects of
    this package only which one it is. Objects of installed packages are pickled.

    Args:
        model: whose variables a checkpoint has: they may change.
    """

    def __init__(self, model: Any) -> None:
        self._known = {id(variable) for variable in all_variables(model)}

    def of(self, value: Any, outer: tuple[int, ...] = ()) -> Any:
        """Returns the fingerprint of a value that is inside of objects with these identities.

        Raises:
            _UnseenError: it has none.
        """
        if id(value) in outer:
            return "itself"
        outer = (*outer, id(value))
        if _is_plain(value):
            return json.dumps(value)
        if isinstance(value, Mapping):
            pairs = [(self.of(key, outer), self.of(each, outer)) for key, each in value.items()]
            return type(value), pairs
        if isinstance(value, Set):
            return type(value), sorted(str(self.of(item, outer)) for item in value)
        if isinstance(value, list | tuple | deque):
            return type(value), [self.of(item, outer) for item in value]
        found = self.of_special(value, outer)
        return self._of_pickle(value, outer) if found is None else found

    def of_special(self, value: Any, outer: tuple[int, ...]) -> Any:
        """Returns the fingerprint of a value that pickle does not know, or not exactly.

        Returns None for any other value.
        """
        is_array = isinstance(value, np.ndarray | np.generic)
        if is_array and not (value.dtype.hasobject or isinstance(value, np.ma.MaskedArray)):
            return value.shape, value.dtype.str, _sha256(np.asarray(value))
        if isinstance(value, np.random.Generator):
            return self.of(value.bit_generator, outer)
        if isinstance(value, np.random.BitGenerator):
            return self.of(value.state, outer)
        if isinstance(value, np.random.RandomState):
            return self.of(value.get_state(legacy=False), outer)
        if isinstance(value, random.Random):
            return value.getstate()
        if isinstance(value, keras.random.SeedGenerator | tf.random.Generator):
            return self._of_variables(value, [value.state])
        if isinstance(value, types.FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            return id(value), [self.of(found, outer) for found in cells]
        if isinstance(value, types.MethodType):
            return id(value.__func__), self.of(value.__self__, outer)
        if isinstance(value, tf.types.experimental.PolymorphicFunction):
            return id(value), self.of(value.python_function, outer)
        if isinstance(value, keras.Variable | tf.Variable):
            return self._of_variables(value, [value])
        if isinstance(
            value, keras.layers.Layer | keras.optimizers.Optimizer | keras.Metric | tf.Module
        ):
            return self._of_variables(value, value.variables)
        if isinstance(value, _COUNTED_BY_IDENTITY) or _is_of_package(type(value)):
            return id(value)
        if _is_of_user(type(value)) or _is_of(type(value), "keras"):
            with contextlib.suppress(TypeError):  # of a class that derives from one in C
                return id(value), self.of(object.__getstate__(value), outer)
        return None

    def _of_pickle(self, value: Any, outer: tuple[int, ...]) -> bytes:
        written = io.BytesIO()
        try:
            _Pickler(written, self, outer).dump(value)
        except _UnseenError:
            raise
        except Exception as error:
            raise _UnseenError(f"a {type(value).__name__}") from error
        return hashlib.sha256(written.getbuffer()).digest()

    def _of_variables(self, owner: Any, variables: Iterable[Any]) -> tuple[int, list[bytes]]:
        """Returns the identity of what has variables, and a hash of each the model does not have.

        Those of the model are in a checkpoint.
        """
        unknown = [found for found in variables if id(found) not in self._known]
        return id(owner), [_sha256(as_array(tf.convert_to_tensor(found))) for found in unknown]


class _Pickler(pickle.Pickler):
    """Pickles an object, with fingerprints in the place of what they say more exactly."""

    def __init__(self, file: io.BytesIO, look: _Fingerprints, outer: tuple[int, ...]) -> None:
        super().__init__(file, protocol=4)
        self._look, self._outer = look, outer

    def persistent_id(self, obj: Any) -> str | None:
        """Returns what stands for an object, None if it is pickled."""
        if id(obj) in self._outer[:-1]:
            return "itself"
        found = self._look.of_special(obj, (*self._outer, id(obj)))
        return None if found is None else str(found)


# Of these only the identity counts: they do not change, or nothing in training depends on it.
_COUNTED_BY_IDENTITY = (
    type,
    types.ModuleType,
    types.BuiltinFunctionType,
    types.CodeType,
    tf.Tensor,
    tf.data.Dataset,
    tf.types.experimental.ConcreteFunction,
    tf.summary.SummaryWriter,
    io.IOBase,
    type(threading.Lock()),
    type(threading.RLock()),
    weakref.ReferenceType,
)


def _sha256(values: np.ndarray) -> bytes:
    """Returns a hash of the bytes of an array, which are copied only if they are not contiguous."""
    return hashlib.sha256(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data).digest()


def _is_of_user(kind: type[Any]) -> bool:
    """Returns whether a class is neither Python's nor one of an installed package or of ours."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None) or ""
    return not (_is_of_package(kind) or _is_of_python(kind) or "site-packages" in file)


def _is_of_python(kind: type[Any]) -> bool:
    name = kind.__module__.partition(".")[0]
    return name in sys.stdlib_module_names and name != "__main__"

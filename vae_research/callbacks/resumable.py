"""What callbacks remember from step to step, so that a run can go on as if it had not stopped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras

# Of Keras' own callbacks: what they compare with, and how long they have waited.
_KERAS = {
    keras.callbacks.EarlyStopping: ("wait", "best", "best_epoch", "stopped_epoch"),
    keras.callbacks.ReduceLROnPlateau: ("wait", "best", "cooldown_counter"),
}


class Resumable:
    """Base of callbacks that have a state within an epoch."""

    def get_state(self) -> dict[str, Any]:
        """Returns the state, as JSON has it; empty where the next epoch begins anew anyway."""
        return {}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Takes back what `get_state` returned, after training and epoch have begun."""


def states_of(callbacks: Iterable[keras.callbacks.Callback]) -> dict[str, dict[str, Any]]:
    """Returns states by name; a callback that is neither known nor `Resumable` has none."""
    return {name: _state(callback) for name, callback in _named(callbacks)}


def set_states(
    callbacks: Iterable[keras.callbacks.Callback], states: Mapping[str, Mapping[str, Any]]
) -> None:
    """Gives each callback its state back; one that was not there before begins anew."""
    for name, callback in _named(callbacks):
        state = states.get(name, {})
        if isinstance(callback, Resumable):
            callback.set_state(state)
        else:
            for attribute, value in state.items():
                setattr(callback, attribute, value)


def _named(
    callbacks: Iterable[keras.callbacks.Callback],
) -> Iterator[tuple[str, keras.callbacks.Callback]]:
    """Yields callbacks with the names of their classes, a second of a class with a number."""
    counts: dict[str, int] = {}
    for callback in callbacks:
        name = type(callback).__name__
        counts[name] = counts.get(name, 0) + 1
        yield name if counts[name] == 1 else f"{name}-{counts[name]}", callback


def _state(callback: keras.callbacks.Callback) -> dict[str, Any]:
    if isinstance(callback, Resumable):
        return callback.get_state()
    for kind, names in _KERAS.items():
        if isinstance(callback, kind):
            known = vars(callback)  # some are made when training begins
            return {name: _plain(known[name]) for name in names if name in known}
    return {}


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, int) else float(value)

"""The states of callbacks, as a run saves them within an epoch and restores them on resume."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras

from vae_research.callbacks.base import Resumable

# Keras' own callbacks: the values that they compare with, and how long they have waited.
_KERAS_STATES = {
    keras.callbacks.EarlyStopping: ("wait", "best", "best_epoch", "stopped_epoch"),
    keras.callbacks.ReduceLROnPlateau: ("wait", "best", "cooldown_counter"),
}


def get_states(callbacks: Iterable[keras.callbacks.Callback]) -> dict[str, dict[str, Any]]:
    """Returns states by name; empty for callbacks that are neither `Resumable` nor known."""
    return {name: _get_state(callback) for name, callback in _named(callbacks)}


def set_states(
    callbacks: Iterable[keras.callbacks.Callback], states: Mapping[str, Mapping[str, Any]]
) -> None:
    """Restores the state of each callback; one that has no saved state starts from scratch."""
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
    """Yields each callback with its class name, numbered from the second of a class."""
    counts: dict[str, int] = {}
    for callback in callbacks:
        name = type(callback).__name__
        counts[name] = counts.get(name, 0) + 1
        yield name if counts[name] == 1 else f"{name}-{counts[name]}", callback


def _get_state(callback: keras.callbacks.Callback) -> dict[str, Any]:
    if isinstance(callback, Resumable):
        return callback.get_state()
    for kind, names in _KERAS_STATES.items():
        if isinstance(callback, kind):
            known = vars(callback)  # some are only set when training begins
            return {name: _as_json(known[name]) for name in names if name in known}
    return {}


def _as_json(value: Any) -> int | float | None:
    return value if value is None or isinstance(value, int) else float(value)

"""Ctrl-C, SIGTERM and SIGHUP as exceptions that end a run after the current step.

An exception raised at an arbitrary point inside TensorFlow may be swallowed by code that catches
everything, or come out of a trace as one of TensorFlow's own errors. From `wait_for_steps` on,
which a command calls before it builds a model, a signal is therefore only recorded and raised
between two steps. A second signal ends a command at once. What has no steps, and nothing to save,
runs in `raised_at_once`.

Workers that train together end at the same step: between `agree_by` and its end, what one of them
has received counts from their next `agree` on, for all.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from vae_research.runs.cli.errors import TerminatedError

HOW_TO_RESUME = "to resume a run that has started, repeat the command with its --run_dir."

_received: list[int] = []
_of_others: list[int] = []  # with which other workers have ended
_agreed: list[int] = []  # what all workers know to have been received
_exchanges: list[Callable[[list[int]], list[int]]] = []
_commands: list[bool] = []  # not empty if the process is a command
# Closing a terminal sends SIGHUP, which Windows does not have.
_TERMINATING = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)
)


def listen() -> None:
    """Makes SIGTERM and SIGHUP raise an exception, as Ctrl-C does; the process is a command."""
    _commands.append(True)
    _handle(_TERMINATING, _raise_at_once)


def wait_for_steps() -> None:
    """From now on, records signals until `raise_if_received` raises them."""
    _handle((*_TERMINATING, signal.SIGINT), _record)


@contextmanager
def raised_at_once() -> Iterator[None]:
    """Raises signals where they arrive, and records them again at the end.

    What they are turned into on the way, by code that catches them, counts as the signal.
    """
    _handle((*_TERMINATING, signal.SIGINT), _raise_at_once)
    try:
        raise_if_received()  # one that was recorded
        yield
    except Exception:
        raise_if_received()
        raise
    finally:
        wait_for_steps()
    raise_if_received()


@contextmanager
def restored() -> Iterator[None]:
    """Puts the handlers of signals back at the end, unless the process is a command."""
    if _commands or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (*_TERMINATING, signal.SIGINT)}
    try:
        yield
    finally:
        for known in (_received, _of_others, _agreed):
            known.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def agree_by(exchange: Callable[[list[int]], list[int]]) -> Iterator[None]:
    """Within it only those signals count that all workers know of.

    Args:
        exchange: returns the signals that all workers have received, from those of this one; all
            call it at the same places.
    """
    _agreed.clear()
    _exchanges.append(exchange)
    try:
        yield
    finally:
        _exchanges.remove(exchange)


def agree() -> None:
    """Exchanges with the other workers what has been received; a run without others has none."""
    if _exchanges:
        _agreed[:] = _exchanges[-1](_received)


def is_agreed() -> bool:
    """Returns whether all workers know of a signal, which ends each of them by itself."""
    return bool(_agreed)


def is_received() -> bool:
    """Returns whether `raise_if_received` would raise."""
    return bool(_agreed if _exchanges else _received + _of_others)


def raise_if_received() -> None:
    """Raises KeyboardInterrupt or TerminatedError if a signal has been received."""
    received = _agreed if _exchanges else _received + _of_others
    if any(number in _TERMINATING for number in received):
        raise TerminatedError(f"terminated; {HOW_TO_RESUME}")
    if received:
        raise KeyboardInterrupt


def receive(number: int) -> None:
    """Counts a signal that has ended another worker as one of this process.

    It is not the first of two: the own one, which may come while a state is saved, ends nothing.
    """
    _of_others.append(number)


def _handle(numbers: Iterable[int], function: Callable[[int, FrameType | None], None]) -> None:
    if threading.current_thread() is not threading.main_thread():
        return  # Python lets no other thread handle signals
    for number in numbers:
        # A shell ignores Ctrl-C for commands in the background; nohup ignores SIGHUP.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, function)


def _raise_at_once(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    raise_if_received()


def _record(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    if len(_received) > 1:
        if _commands:
            os._exit(128 + number)
        raise_if_received()

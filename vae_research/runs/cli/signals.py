"""Ctrl-C, SIGTERM and SIGHUP end a run at the next step, as exceptions.

While TensorFlow is at work, an exception that a signal raises anywhere may be caught by code that
catches everything, or come out of a trace as an error of TensorFlow's own. From the import of
TensorFlow on, a signal is therefore only noted, and raised between two steps. A second one ends the
process at once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from typing import Any

from vae_research.runs.cli.errors import TerminatedError

_received: list[int] = []
# A terminal that is closed sends SIGHUP; Windows has none.
_TERMINATING = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)
)


def listen() -> None:
    """Makes SIGTERM and SIGHUP exceptions, as Ctrl-C is one."""
    _handle(_TERMINATING, _raise_now)


def wait_for_steps() -> None:
    """Notes signals from here on; `raise_if_received` raises them."""
    _handle((*_TERMINATING, signal.SIGINT), _note)


def is_received() -> bool:
    """Returns whether a signal has come that `raise_if_received` would raise."""
    return bool(_received)


def raise_if_received() -> None:
    """Raises KeyboardInterrupt or TerminatedError where the signal has come."""
    if any(number in _TERMINATING for number in _received):
        raise TerminatedError(
            "terminated; a run that has begun goes on with the same command and --run_dir."
        )
    if _received:
        raise KeyboardInterrupt


def _handle(numbers: Iterable[int], function: Callable[[int, Any], None]) -> None:
    for number in numbers:
        # A shell has Ctrl-C ignored in the background, nohup has SIGHUP ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, function)


def _raise_now(number: int, frame: Any) -> None:
    _received.append(number)
    raise_if_received()


def _note(number: int, frame: Any) -> None:
    if _received:
        os._exit(128 + number)
    _received.append(number)

"""Ctrl-C and SIGTERM end a run at the next step, as exceptions.

While TensorFlow is at work, an exception that a signal raises anywhere may be caught by code that
catches everything, or come out of a trace as an error of TensorFlow's own. From the import of
TensorFlow on, a signal is therefore only noted, and raised between two steps. A second one ends the
process at once.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from vae_research.runs.errors import TerminatedError

_received: list[int] = []


def listen() -> None:
    """Makes SIGTERM an exception, as Ctrl-C is one."""
    signal.signal(signal.SIGTERM, _raise_now)


def wait_for_steps() -> None:
    """Notes signals from here on; `raise_if_received` raises them."""
    signal.signal(signal.SIGTERM, _note)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in the background of a shell
        signal.signal(signal.SIGINT, _note)


def raise_if_received() -> None:
    """Raises KeyboardInterrupt or TerminatedError where the signal has come."""
    if signal.SIGTERM in _received:
        raise TerminatedError(
            "terminated; a run that has begun goes on with the same command and --run_dir."
        )
    if _received:
        raise KeyboardInterrupt


def _raise_now(number: int, frame: Any) -> None:
    _received.append(number)
    raise_if_received()


def _note(number: int, frame: Any) -> None:
    if _received:
        os._exit(128 + number)
    _received.append(number)

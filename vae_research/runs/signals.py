"""SIGTERM ends a run as Ctrl-C does: by an exception, wherever the run is."""

from __future__ import annotations

import signal
from typing import Any

from vae_research.runs.errors import TerminatedError

_received: list[int] = []


def listen() -> None:
    """Turns SIGTERM into `TerminatedError`."""
    signal.signal(signal.SIGTERM, _receive)


def raise_if_terminated() -> None:
    """Raises TerminatedError where the signal has come, also if somebody caught it then."""
    if _received:
        raise TerminatedError(
            "terminated; the same command with --run_dir goes on from the last finished epoch."
        )


def _receive(number: int, frame: Any) -> None:
    _received.append(number)
    raise_if_terminated()

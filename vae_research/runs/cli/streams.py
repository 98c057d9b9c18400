"""A run does not end because nobody listens to it any more."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def open_what_is_closed() -> None:
    """Has standard streams lead nowhere that were closed before the process began.

    The next file that is opened would get the number of one, and what is printed with it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # Gets the lowest number that is free; the processes that are begun here inherit it.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:  # the number may be that of a file by now
            nowhere = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(nowhere, "w" if number else "r"))


@contextmanager
def may_be_closed() -> Iterator[None]:
    """Lets standard output and standard error lead nowhere: nobody reads the pipe any more."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_Tolerant, before)
    try:
        yield
    finally:
        sys.stdout.flush()  # at the end of the process it would raise
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


class _Tolerant:
    """A stream that goes nowhere from the first error on."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._give_up()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        # What is in the stream's buffer would fail again at the end of the process.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

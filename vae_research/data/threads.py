"""Functions in Python that threads of TensorFlow call, and that have to end before Python does.

While the interpreter ends, a thread that waits for it never returns. An iterator that is deleted
then waits for its thread, and the process never ends.
"""

from __future__ import annotations

import atexit
import functools
import threading
import time
from collections.abc import Callable
from typing import Any

# Seconds without a call, after which an iterator has what it can hold: it asks for the next
# element in less than a thousandth of one.
_QUIET = 0.05


class Calls:
    """Counts calls; after `end` each one fails at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun = self._ended = 0
        self._at_end = False

    def run(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        with self._lock:
            self._begun += 1
        try:
            if self._at_end:
                raise RuntimeError("nothing is read any more, because the process ends")
            return function(*arguments)
        finally:
            with self._lock:
                self._ended += 1

    def end(self) -> None:
        """Waits until no call is under way or begins: iterators are full, if only of errors."""
        self._at_end = True
        before = -1
        while before != self._begun or self._begun != self._ended:
            before = self._begun
            time.sleep(_QUIET)


_calls = Calls()


def for_threads(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that threads of TensorFlow may call, also while the process ends."""
    _register()
    return lambda *arguments: _calls.run(function, arguments)


@functools.cache
def _register() -> None:
    atexit.register(_calls.end)

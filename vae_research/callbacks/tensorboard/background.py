"""One thread on which everything is drawn, encoded and written, so that training does not wait."""

from __future__ import annotations

import atexit
import functools
import queue
import threading
from collections.abc import Callable

# Work that waits, at most. Whoever has more of it has a disk that stands still.
_WAITING = 2000
# How long the end of training waits for the rest to be written.
_SECONDS_AT_THE_END = 30.0


class Background:
    """Runs functions one after another on a thread of its own, which starts with the first.

    A function must not raise: there is nobody to raise to.
    """

    def __init__(self) -> None:
        self._queue: queue.Queue[Callable[[], None]] = queue.Queue(_WAITING)
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def submit(self, function: Callable[[], None]) -> bool:
        """Has a function run later; returns False, and forgets it, where too many are waiting."""
        with self._starting:
            if self._thread is None:
                # A thread that the interpreter does not wait for: a disk that stands still must not
                # keep a process from ending. What can be written is, by `wait`.
                self._thread = threading.Thread(target=self._run, daemon=True, name="summaries")
                self._thread.start()
                atexit.register(self.wait)
        try:
            self._queue.put_nowait(function)
        except queue.Full:
            return False
        return True

    def wait(self, seconds: float = _SECONDS_AT_THE_END) -> bool:
        """Waits for all that was submitted before; returns whether it was done in time."""
        if self._thread is None or threading.current_thread() is self._thread:
            return True
        done = threading.Event()
        return self.submit(done.set) and done.wait(seconds)

    def _run(self) -> None:
        while True:
            self._queue.get()()


@functools.cache
def background() -> Background:
    """Returns the thread that all summaries of this process share."""
    return Background()

"""A thread that draws, encodes and writes in the background, so that training does not wait."""

from __future__ import annotations

import atexit
import functools
import queue
import threading
from collections.abc import Callable

# Maximum queue length; a longer queue means that the disk has stalled.
_QUEUE_LENGTH = 2000
# How long the end of training waits for the queue to be written.
_SECONDS_AT_END = 30.0


class Background:
    """Runs functions one after another on its own thread, which starts with the first of them.

    A function must not raise: the exception would end the thread.
    """

    def __init__(self) -> None:
        self._queue: queue.Queue[Callable[[], None]] = queue.Queue(_QUEUE_LENGTH)
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def submit(self, function: Callable[[], None]) -> bool:
        """Queues a function; returns False, and drops it, if the queue is full."""
        with self._starting:
            if self._thread is None:
                # A daemon, since a stalled disk must not keep the process from ending. The exit
                # handler writes what can be written in time.
                self._thread = threading.Thread(target=self._run, daemon=True, name="summaries")
                self._thread.start()
                atexit.register(self.wait)
        try:
            self._queue.put_nowait(function)
        except queue.Full:
            return False
        return True

    def wait(self, seconds: float = _SECONDS_AT_END) -> bool:
        """Waits until everything submitted so far is done; returns whether it was in time."""
        if self._thread is None or threading.current_thread() is self._thread:
            return True
        done = threading.Event()
        return self.submit(done.set) and done.wait(seconds)

    def _run(self) -> None:
        while True:
            self._queue.get()()


@functools.cache
def background() -> Background:
    """Returns the thread shared by all summaries of this process."""
    return Background()

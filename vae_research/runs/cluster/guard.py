"""Ends this process if a call that nothing in Python can interrupt takes too long."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from vae_research.runs.cli.errors import PeerLostError


@contextmanager
def ended_after(seconds: float, message: str) -> Iterator[None]:
    """Prints a line and ends this process with exit code 8 after some seconds within it.

    While TensorFlow connects the workers, it holds Python's lock and takes SIGTERM for itself: no
    thread and no handler of Python can run. A second process waits instead. The signal that it
    sends then is number 8 (SIGFPE on Linux, where this is used), for which the C function `_exit`
    is the handler while this lasts: it is called with the number of the signal.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    assert PeerLostError.exit_code == signal.SIGFPE
    library = ctypes.CDLL(None)
    library.signal.restype = ctypes.c_void_p
    library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    end = ctypes.cast(library._exit, ctypes.c_void_p)
    before = library.signal(signal.SIGFPE, end)
    script = 'sleep "$1" && printf "%s\\n" "$2" >&2 && kill -FPE "$3"'
    waiting = subprocess.Popen(
        ["sh", "-c", script, "sh", f"{seconds:g}", message, str(os.getpid())],
        start_new_session=True,
    )
    try:
        yield
    finally:
        os.killpg(waiting.pid, signal.SIGKILL)
        waiting.wait()
        library.signal(signal.SIGFPE, before)

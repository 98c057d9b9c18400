"""Standard streams of a command: closed ones, pipes that nobody reads, output of libraries."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


def redirect_closed_streams() -> None:
    """Redirects standard streams that were closed at start-up to /dev/null.

    Otherwise the next file that is opened takes the number of a closed stream, and printed text is
    written into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one. Child processes inherit it.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:  # a file may have taken the number already
            null = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(null, "w" if number else "r"))


@contextmanager
def tolerate_closed_streams() -> Iterator[None]:
    """Discards output if it cannot be written, as when nobody reads the pipe any more."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_Tolerant, before)
    try:
        yield
    finally:
        sys.stdout.flush()  # at the end of the process it would raise
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


@contextmanager
def hide_startup_output() -> Iterator[None]:
    """Hides the lines that TensorFlow prints when it is loaded and looks for GPUs.

    They come from C++ before any log level applies. They are shown if the import fails.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # errors are raised in Python
    sys.stderr.flush()
    standard_error = os.dup(2)
    with tempfile.TemporaryFile() as lines:
        os.dup2(lines.fileno(), 2)
        try:
            yield
        except ImportError:
            lines.seek(0)
            os.write(standard_error, lines.read())
            raise
        finally:
            os.dup2(standard_error, 2)
            os.close(standard_error)


class _Tolerant:
    """A text stream that discards everything after the first error."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._discard()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._discard()

    def _discard(self) -> None:
        # The stream's buffer still holds text, which would fail again at the end of the process.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)

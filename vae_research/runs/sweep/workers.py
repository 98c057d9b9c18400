"""The processes of a sweep: a fork for each point that runs, and what they report.

This process imports TensorFlow and never runs an operation, see `vae_research.runs.cli.forks`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import importlib
import importlib.util
import io
import json
import os
import pkgutil
import select
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vae_research.runs.cli import forks, streams
from vae_research.runs.cli.errors import FileSystemError
from vae_research.runs.cli.startup import without_garbage_collection
from vae_research.runs.session import parts
from vae_research.runs.sweep.record import OUTPUT

if TYPE_CHECKING:
    import keras

GO_ON, PRUNE = b"g", b"p"  # answers to a report
# Seconds between two looks at processes that end without a word.
_LOOK = 0.5
# What experiments compose models of.
_PARTS_OF_MODELS = [
    f"vae_research.{name}" for name in ("losses", "bottlenecks", "priors", "networks")
]
_TAIL = 8192  # bytes of the output in which the last line is looked for


@dataclasses.dataclass(frozen=True)
class Report:
    """The end of an epoch at a point: epochs done and to do, and its validation score."""

    name: str
    epoch: int
    epochs: int
    score: float | None


@dataclasses.dataclass(frozen=True)
class Ended:
    """The end of a process: its exit code, that of a shell if a signal ended it, and last line."""

    name: str
    exit_code: int
    message: str
    seconds: float


@dataclasses.dataclass
class _Worker:
    pid: int
    connection: socket.socket
    output: Path
    offset: int  # where its output begins
    started: float
    unread: bytes = b""


def preload() -> None:
    """Imports what runs need, and runs no operation of TensorFlow."""
    with streams.hide_startup_output(), without_garbage_collection():
        importlib.import_module("vae_research.runs.session.training")
        importlib.import_module("vae_research.runs.sweep.reporting")
        for package in _PARTS_OF_MODELS:
            for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
                importlib.import_module(f"{package}.{module.name}")
        if importlib.util.find_spec("matplotlib") is not None:
            # The first figure of a process loads fonts.
            figure = importlib.import_module("matplotlib.figure").Figure()
            figure.add_subplot().figure.savefig(io.BytesIO())
    gc.freeze()  # forks share what nobody looks through for garbage


class Workers:
    """The forks that run, at most one for each point.

    Args:
        into: the folder of the sweep.
    """

    def __init__(self, into: Path) -> None:
        self._into = into
        self._running: dict[str, _Worker] = {}
        # Nothing is ever written there: reading ends when this process has ended.
        self._alive = os.pipe()

    def __len__(self) -> int:
        return len(self._running)

    def start(self, name: str, arguments: Sequence[str]) -> None:
        """Forks a process for a point that does what `python *arguments` does."""
        (self._into / OUTPUT).mkdir(exist_ok=True)
        path = self._into / OUTPUT / f"{name}.txt"
        ours, theirs = socket.socketpair()
        with open(path, "ab") as output:
            offset = output.tell()
            pid = forks.fork()
            if pid == 0:
                for worker in self._running.values():
                    worker.connection.close()
                ours.close()
                os.close(self._alive[1])
                _become(arguments, output.fileno(), theirs, self._alive[0])
        theirs.close()
        self._running[name] = _Worker(pid, ours, path, offset, time.monotonic())

    def wait(self) -> list[Report | Ended]:
        """Returns what has happened, after half a second at most."""
        found: list[Report | Ended] = []
        connections = {worker.connection: name for name, worker in self._running.items()}
        ready, *_ = select.select([*connections], [], [], _LOOK)
        for connection in ready:
            name = connections[connection]
            worker = self._running[name]
            received = b""
            with contextlib.suppress(ConnectionResetError):
                received = connection.recv(65536)
            *lines, worker.unread = (worker.unread + received).split(b"\n")
            found += [Report(name, **json.loads(line)) for line in lines]
            if not received:  # the process is ending
                found.append(self._ended(name, os.waitpid(worker.pid, 0)[1]))
        for name, worker in [*self._running.items()]:
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                found.append(self._ended(name, status))
        return found

    def answer(self, name: str, answer: bytes) -> None:
        """Answers a report."""
        if name in self._running:
            with contextlib.suppress(OSError):
                self._running[name].connection.sendall(answer)

    def send_signal(self, number: int) -> None:
        """Sends a signal to all processes."""
        for worker in self._running.values():
            os.kill(worker.pid, number)

    def _ended(self, name: str, status: int) -> Ended:
        worker = self._running.pop(name)
        worker.connection.close()
        code = os.waitstatus_to_exitcode(status)
        with open(worker.output, "rb") as output:
            output.seek(max(worker.offset, os.path.getsize(worker.output) - _TAIL))
            lines = output.read().decode("utf-8", "replace").split("\n")
        message = next((line.strip() for line in reversed(lines) if line.strip()), "")
        if code < 0:
            message = _ended_by(-code)
        exit_code = 128 - code if code < 0 else code
        return Ended(name, exit_code, message, time.monotonic() - worker.started)


def _ended_by(number: int) -> str:
    """Returns in words that a signal has ended a process."""
    words = f"ended by {signal.Signals(number).name}"
    if number == signal.SIGKILL:
        words += "; if nobody sent it, the memory of the machine was exhausted"
    return words


def in_fork(function: Callable[[], Any]) -> Any:
    """Returns what a function returns in a fork, which JSON must be able to hold.

    Raises:
        SystemExit: the fork ended without it, with this exit code; what it printed says why.
        FileSystemError: a signal ended the fork.
    """
    reading, writing = os.pipe()
    pid = forks.fork()
    if pid == 0:
        code = 1
        try:
            answer = json.dumps(function()).encode()
            with os.fdopen(writing, "wb") as stream:
                stream.write(answer)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        received = stream.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code < 0:
        raise FileSystemError(f"the examination of the points was {_ended_by(-code)}.")
    if code or not received:
        raise SystemExit(code or 1)
    return json.loads(received)


def _become(
    arguments: Sequence[str], output: int, connection: socket.socket, alive: int
) -> NoReturn:
    """Becomes the process of a point."""
    os.setsid()  # Ctrl-C in the terminal is for the sweep, which passes it on
    threading.Thread(target=_end_with_the_sweep, args=(alive,), daemon=True).start()
    parts.watchers.append(functools.partial(_reporting, connection))
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    forks.become(arguments, (output, output), os.getcwd(), environment)


def _reporting(connection: socket.socket) -> keras.callbacks.Callback:
    from vae_research.runs.sweep.reporting import Reporting

    return Reporting(connection, PRUNE)


def _end_with_the_sweep(alive: int) -> None:
    """Ends this process, after a save, when the sweep has been killed."""
    os.read(alive, 1)
    os.kill(os.getpid(), signal.SIGTERM)

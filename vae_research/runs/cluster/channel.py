"""Messages between the workers of a run, and how one of them notices that another has ended.

The chief accepts a connection from every other worker at its address in TF_CONFIG, before
TensorFlow starts its server there. The connections stay open as long as the processes: that of a
process that is killed is closed by the system, at once. TensorFlow itself would notice it in the
next all-reduce only, and waits without end for a worker that never comes.

A message is a line of JSON. Workers talk to the chief alone, which passes on what all must know.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import sys
import threading
import time
from typing import Any, Protocol

from vae_research.runs.cli import signals
from vae_research.runs.cli.errors import PeerLostError, RunError, TerminatedError
from vae_research.runs.cluster.tf_config import Address, Task

# Seconds between two looks for messages and signals.
_LOOK = 0.2
# Seconds that a process has for its own end after another worker was lost: a save may be in it.
_TO_END = 30.0
# Seconds in which the reason of an error of TensorFlow is waited for.
_TO_KNOW = 15.0
_BY_SIGNAL = (130, 143)


class Peers(Protocol):
    """The workers of a run, for one of them.

    Attributes:
        number: of this one, counted from 0, which is the chief.
        count: of all.
    """

    number: int
    count: int

    def gather(self, what: str, value: Any) -> list[Any]:
        """Returns the values of all workers, in their order; waits for all of them.

        Args:
            what: in a few words; it must be the same for all.
            value: that JSON can hold.

        Raises:
            PeerLostError: another worker has ended.
            TerminatedError, KeyboardInterrupt: a signal has ended another worker.
        """
        ...


class Alone:
    """The only worker."""

    number, count = 0, 1

    def gather(self, what: str, value: Any) -> list[Any]:
        """Returns the value."""
        return [value]


class Connected:
    """A worker that is connected to the others.

    Args:
        task: this process among them.
        connections: to the other workers by their number; those that are not the chief have one to
            the chief.

    Attributes:
        task: as given.
    """

    def __init__(self, task: Task, connections: dict[int, socket.socket]) -> None:
        self.number, self.count = task.number, len(task.addresses)
        self.task, self._connections = task, connections
        self._received: queue.Queue[tuple[int, dict[str, Any]]] = queue.Queue()
        self._waiting: dict[int, list[dict[str, Any]]] = {number: [] for number in connections}
        self._error: RunError | KeyboardInterrupt | None = None  # why no message will come
        self._knows_error, self._is_ending = threading.Event(), False
        self._sending = threading.Lock()
        for number, connection in connections.items():
            arguments = (number, connection)
            threading.Thread(target=self._read, args=arguments, daemon=True).start()

    def gather(self, what: str, value: Any) -> list[Any]:
        """Returns the values of all workers; see `Peers`."""
        if self.number:
            self._send(0, {"what": what, "value": value})
            return self._receive(0, what)["values"]
        values = [value] + [self._receive(number, what)["value"] for number in range(1, self.count)]
        for number in range(1, self.count):
            self._send(number, {"what": what, "values": values})
        return values

    def reason(self, error: BaseException) -> BaseException:
        """Returns what has happened to another worker if that is behind an error, else the error.

        TensorFlow raises errors of several classes if an all-reduce cannot be completed.
        """
        self._knows_error.wait(_TO_KNOW)
        if self._error is not None:
            return self._error
        if isinstance(error, PeerLostError) or "ollective" in str(error):
            first = str(error).partition("\n")[0]
            return PeerLostError(f"another worker cannot be reached ({first}). {_resume()}")
        return error

    def close(self, exit_code: int, message: str = "") -> None:
        """Tells the others that this process ends, and how; nothing is received afterwards."""
        self._is_ending = True
        for number, connection in self._connections.items():
            with contextlib.suppress(OSError):
                self._write(number, {"end": exit_code, "message": message})
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _send(self, number: int, message: dict[str, Any]) -> None:
        try:
            self._write(number, message)
        except OSError:
            # What the other process said before it closed the connection is yet to be read.
            raise self.reason(PeerLostError(f"worker {number}")) from None

    def _write(self, number: int, message: dict[str, Any]) -> None:
        with self._sending:
            self._connections[number].sendall(json.dumps(message).encode() + b"\n")

    def _receive(self, number: int, what: str) -> dict[str, Any]:
        """Returns the next message of a worker."""
        while not self._waiting[number]:
            if self._error is not None and self._received.empty():
                raise self._error
            with contextlib.suppress(queue.Empty):  # signals are handled between two attempts
                sender, message = self._received.get(timeout=_LOOK)
                self._waiting[sender].append(message)
        message = self._waiting[number].pop(0)
        if message["what"] != what:
            raise PeerLostError(
                f"worker {number} is at {message['what']!r}, and this one at {what!r}: they do not "
                "do the same. Something in the experiment depends on the process or on the time."
            )
        return message

    def _read(self, number: int, connection: socket.socket) -> None:
        """Reads what a worker says, until it ends."""
        end: dict[str, Any] | None = None
        with contextlib.suppress(OSError, ValueError), connection.makefile("rb") as lines:
            for line in lines:
                message = json.loads(line)
                if "end" in message:
                    end = message
                    break
                self._received.put((number, message))
        if self._is_ending:
            return
        error = _error_of(number, self.task.addresses[number], end)
        if end is not None and end["end"] in _BY_SIGNAL:
            signals.receive(end["end"] - 128)
        if self._error is None:
            self._error = error
        self._knows_error.set()
        if end is None or end["end"]:
            time.sleep(_TO_END)
            # After a signal that all have agreed to this process does not wait for others: it
            # saves, however long that takes.
            if not (self._is_ending or signals.is_agreed()):
                _end_at_once(error)


def _error_of(
    number: int, address: Address, end: dict[str, Any] | None
) -> RunError | KeyboardInterrupt:
    """Returns the error that the end of another worker is for this one."""
    if end is None:
        return PeerLostError(f"worker {number} at {address} was lost. {_resume()}")
    if end["end"] == 130:
        return KeyboardInterrupt()
    if end["end"] == 143:
        return TerminatedError(f"worker {number} was terminated. {_resume()}")
    why = f": {end['message']}" if end["message"] else ""
    return PeerLostError(f"worker {number} has ended with exit code {end['end']}{why}")


def _resume() -> str:
    return "To resume a run that has started, start all workers again with its --run_dir."


def _end_at_once(error: RunError | KeyboardInterrupt) -> None:
    """Ends a process whose main thread waits in TensorFlow."""
    code = error.exit_code if isinstance(error, RunError) else 130
    sys.stdout.flush()
    print(str(error) or "interrupted", file=sys.stderr, flush=True)
    os._exit(code)

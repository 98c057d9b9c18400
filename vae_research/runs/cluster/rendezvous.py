"""How the workers of a run find each other: the chief listens, and all others connect to it."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vae_research.runs.cli.errors import PeerLostError, UsageError
from vae_research.runs.cluster.channel import Connected
from vae_research.runs.cluster.tf_config import Address, Task, listening

_WHO = "vae_research"
# Seconds between two attempts to reach the chief, for which a stranger may keep silent, and after
# which it is said who is waited for.
_RETRY, _SILENCE, _MOMENT = 0.2, 10.0, 5.0
# A machine that loses its power closes no connection: after so many seconds it counts as lost.
_KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}


def connect(task: Task, seconds: float, announce: Callable[[str], None]) -> Connected:
    """Connects this process with the other workers of a run.

    Args:
        task: this process among them.
        seconds: for which the others are waited for.
        announce: called with a sentence if it takes longer than a moment.

    Raises:
        UsageError: a worker was given other addresses, or the task of another.
        PeerLostError: another process has the port, or a worker did not come in time.
    """
    until = time.monotonic() + seconds
    if task.number:
        return Connected(task, {0: _to_chief(task, seconds, until, announce)})
    return Connected(task, _from_others(task, seconds, until, announce))


def _from_others(
    task: Task, seconds: float, until: float, announce: Callable[[str], None]
) -> dict[int, socket.socket]:
    """Returns the chief's connections to all others."""
    found: dict[int, socket.socket] = {}
    expected = set(range(1, len(task.addresses)))
    with contextlib.ExitStack() as stack, listening(task.address) as listener:
        stack.callback(_close, found)
        announced = time.monotonic() + _MOMENT
        while expected - found.keys():
            listener.settimeout(_RETRY)
            missing = _names(sorted(expected - found.keys()), task.addresses)
            if time.monotonic() >= until:
                raise _never_came(missing, seconds)
            if time.monotonic() >= announced:
                announce(f"Waiting for {missing}.")
                announced = until
            with contextlib.suppress(TimeoutError, ValueError):
                connection, _ = listener.accept()
                number = _welcome(connection, task, found)
                if number is not None:
                    found[number] = connection
        for connection in found.values():
            connection.sendall(b'{"welcome": true}\n')
        stack.pop_all()
    return found


def _close(connections: Mapping[int, socket.socket]) -> None:
    for connection in connections.values():
        connection.close()


def _welcome(connection: socket.socket, task: Task, found: dict[int, socket.socket]) -> int | None:
    """Returns the number of the worker that has connected, None if it is none.

    Raises:
        UsageError: it was given other addresses.
    """
    _keep_alive(connection)
    hello = _read_line(connection)
    if hello is None or hello.get("who") != _WHO:
        connection.close()
        return None
    number, addresses = hello["number"], [str(address) for address in task.addresses]
    problem = None
    if hello["addresses"] != addresses:
        problem = (
            f"TF_CONFIG of worker {number} has the addresses {', '.join(hello['addresses'])}, "
            f"and that of worker 0 {', '.join(addresses)}."
        )
    elif number in found:
        problem = f"there are two processes that TF_CONFIG makes worker {number}."
    if problem is None:
        return number
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps({"refused": problem}).encode() + b"\n")
    raise UsageError(problem)


def _to_chief(
    task: Task, seconds: float, until: float, announce: Callable[[str], None]
) -> socket.socket:
    """Returns a connection to the chief, which has heard of all workers by then."""
    # Nobody connects here; but TensorFlow will listen at this port.
    listening(task.address).close()
    hello = {
        "who": _WHO,
        "number": task.number,
        "addresses": [str(address) for address in task.addresses],
    }
    chief = task.addresses[0]
    announced = time.monotonic() + _MOMENT
    while True:
        with contextlib.suppress(OSError, UnicodeError):
            connection = socket.create_connection((chief.host, chief.port), timeout=_SILENCE)
            try:
                _keep_alive(connection)
                connection.sendall(json.dumps(hello).encode() + b"\n")
                connection.settimeout(max(0.1, until - time.monotonic()))
                answer = _read_line(connection, seconds=None)
            except BaseException:
                connection.close()
                raise
            if answer is not None and answer.get("welcome"):
                connection.settimeout(None)
                return connection
            connection.close()
            if answer is not None and "refused" in answer:
                raise UsageError(str(answer["refused"]))
        if time.monotonic() >= until:
            raise _never_came(_names([0], task.addresses), seconds)
        if time.monotonic() >= announced:
            announce(f"Waiting for {_names([0], task.addresses)}.")
            announced = until
        time.sleep(_RETRY)


def _read_line(connection: socket.socket, seconds: float | None = _SILENCE) -> Any:
    """Returns what one line of JSON says, None if there is none.

    Nothing that follows the line is read.
    """
    if seconds is not None:
        connection.settimeout(seconds)
    line = b""
    try:
        while not line.endswith(b"\n") and len(line) < 2**20:
            byte = connection.recv(1)
            if not byte:
                return None
            line += byte
        found = json.loads(line)
    except (OSError, ValueError):
        return None
    if seconds is not None:
        connection.settimeout(None)
    return found if isinstance(found, dict) else None


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        if hasattr(socket, name):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _names(numbers: Sequence[int], addresses: Sequence[Address]) -> str:
    return " and ".join(f"worker {number} at {addresses[number]}" for number in numbers)


def _never_came(missing: str, seconds: float) -> PeerLostError:
    return PeerLostError(
        f"{missing} did not come within {seconds:g} seconds. Start all workers with the same "
        "command, or give a longer --worker_timeout."
    )

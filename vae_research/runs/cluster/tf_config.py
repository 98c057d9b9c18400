"""The workers of a run, as the environment variable TF_CONFIG names them.

    {"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]},
     "task": {"type": "worker", "index": 0}}

The first worker, or the task of type `chief` if there is one, writes what the run leaves on disk.
What TensorFlow would wait for without end, or end with an abort of the process, is found here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import socket
from collections.abc import Mapping
from typing import Any

from vae_research.runs.cli.errors import PeerLostError, UsageError

VARIABLE = "TF_CONFIG"
EXAMPLE = '{"cluster": {"worker": ["10.0.0.1:2222", ...]}, "task": {"type": "worker", "index": 0}}'
_TYPES = ("chief", "worker")


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a worker is reached.

    Attributes:
        host: a name or a number, without the brackets of IPv6.
        port: from 1 to 65535.
    """

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclasses.dataclass(frozen=True)
class Task:
    """This process among the workers of a run.

    Attributes:
        number: counted from 0, which is the chief.
        addresses: of all workers.
    """

    number: int
    addresses: tuple[Address, ...]

    @property
    def address(self) -> Address:
        """The address of this worker."""
        return self.addresses[self.number]


def read(environment: Mapping[str, str] = os.environ) -> Task:
    """Returns the task of this process.

    Raises:
        UsageError: TF_CONFIG is not set, is not JSON, or does not name the workers and this task.
    """
    text = environment.get(VARIABLE, "")
    if not text.strip():
        raise UsageError(
            f"--strategy=multiworker, and {VARIABLE} is not set. scripts/launch starts several "
            f"workers on this machine; on others, set {VARIABLE}='{EXAMPLE}'."
        )
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _malformed(f"it is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise _malformed("it is not an object")
    cluster, task = (_part(found, name) for name in ("cluster", "task"))
    jobs = {name: _addresses(name, cluster[name]) for name in cluster}
    if len(jobs.get("chief", ())) > 1:
        raise _malformed('"chief" has more than one address')
    addresses = tuple(address for name in _TYPES for address in jobs.get(name, ()))
    if not addresses:
        raise _malformed('"cluster" names no worker')
    for address in addresses:
        if addresses.count(address) > 1:
            raise _malformed(f"the address {address} is given twice")
    kind, index = task.get("type"), task.get("index")
    if kind not in jobs:
        raise _malformed(f'the "type" of "task" is {kind!r}, and "cluster" has {_words(jobs)}')
    # JSON's true would be the number 1.
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(jobs[kind]):
        last = len(jobs[kind]) - 1
        raise _malformed(f'the "index" of "task" is {index!r}; {kind!r} has tasks 0 to {last}')
    before = len(jobs.get("chief", ())) if kind == "worker" else 0
    return Task(before + index, addresses)


def check_address(address: Address) -> None:
    """Checks that this process can be reached at its address.

    Raises:
        UsageError: there is no such host, or the address is of another machine.
        PeerLostError: another process has the port.
    """
    listening(address).close()


def listening(address: Address) -> socket.socket:
    """Returns a socket that listens at an address of this machine.

    Raises:
        UsageError, PeerLostError: as `check_address`.
    """
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"{VARIABLE} says that this worker is at {address}, and there is no host "
            f"{address.host} ({getattr(error, 'strerror', None) or error})."
        ) from error
    family, kind, protocol, _, place = found[0]
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(family, kind, protocol))
        # A port is free again at once after the process that had it.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(place)
            listener.listen(len(found) + 128)
        except OSError as error:
            raise _cannot_listen(address, error) from error
        stack.pop_all()
    return listener


def _cannot_listen(address: Address, error: OSError) -> UsageError | PeerLostError:
    if error.errno == errno.EADDRNOTAVAIL:
        return UsageError(
            f"{VARIABLE} says that this worker is at {address}, and this machine "
            f'({socket.gethostname()}) does not have that address. Is "index" of "task" right?'
        )
    if error.errno == errno.EADDRINUSE:
        return PeerLostError(
            f"port {address.port} of {address.host} is in use by another process, perhaps by a "
            f"worker that has not ended. Wait for it, or give another port in {VARIABLE}."
        )
    return PeerLostError(f"this worker cannot listen at {address}: {error.strerror or error}.")


def _part(found: dict[str, Any], name: str) -> dict[str, Any]:
    part = found.get(name)
    if not isinstance(part, dict) or not part:
        raise _malformed(f'"{name}" is missing' if part is None else f'"{name}" is {part!r}')
    return part


def _addresses(kind: str, values: Any) -> tuple[Address, ...]:
    if kind not in _TYPES:
        raise _malformed(f'"cluster" has tasks of type {kind!r}; it may have {_words(_TYPES)}')
    if not isinstance(values, list):
        raise _malformed(f"{kind!r} must be a list of addresses; it is {values!r}")
    return tuple(_address(value) for value in values)


def _address(text: Any) -> Address:
    host, colon, port = text.rpartition(":") if isinstance(text, str) else ("", "", "")
    is_number = port.isascii() and port.isdigit() and len(port) <= 5
    is_bracketed = host.startswith("[") and host.endswith("]")
    if not (host and colon and is_number and 0 < int(port) < 2**16) or (
        ":" in host and not is_bracketed
    ):
        raise _malformed(f"{text!r} is not an address HOST:PORT")
    return Address(host[1:-1] if is_bracketed else host, int(port))


def _malformed(what: str) -> UsageError:
    return UsageError(f"{VARIABLE} does not name the workers of a run: {what}. Expected {EXAMPLE}.")


def _words(names: Any) -> str:
    return " and ".join(map(repr, names))

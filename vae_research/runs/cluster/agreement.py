"""What the workers of a run must have in common, and the sentence that says what differs."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

from vae_research.checkpoints import Checkpoint, CheckpointError
from vae_research.data import Data, DataError
from vae_research.runs.cli.config import Config
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.session.kept.sources import Source

# Flags that are about a process, and change no number on which workers have to agree.
OWN_FLAGS = ("debug", "device", "threads", "verbose", "worker_timeout")
_PACKAGES = ("tensorflow", "keras", "numpy")


class Held(Protocol):
    """What a worker has found in the run directory, see `session.experiment.look_up`."""

    @property
    def config(self) -> Config: ...
    @property
    def source(self) -> Source: ...
    @property
    def checkpoint(self) -> Checkpoint | None: ...
    @property
    def complete(self) -> dict[str, Any] | None: ...


def identity(held: Held) -> dict[str, Any]:
    """Returns what a worker tells the others before it reads the data."""
    source, checkpoint, values = held.source, held.checkpoint, held.config.as_dict()
    flags = {name: value for name, value in values.items() if name not in OWN_FLAGS}
    return {
        "flags": json.loads(json.dumps(flags)),
        "files": {name: _digest(content) for name, content in source.files.items()},
        "package": _digest(b"".join(source.package[name] for name in sorted(source.package))),
        "versions": {"python": platform.python_version(), **_versions()},
        "checkpoint": None if checkpoint is None else checkpoint.path.name,
        "complete": held.complete is not None,
    }


def refuse_difference(identities: Sequence[Mapping[str, Any]]) -> None:
    """Raises unless all workers have told the same.

    Args:
        identities: of all workers, that of the chief first.

    Raises:
        UsageError: flags, code or versions differ.
        CheckpointError: they do not find the same in the run directory.
    """
    chief = identities[0]
    for number, other in enumerate(identities[1:], start=1):
        for kind, what in (("flags", "--{}={}"), ("versions", "{} {}")):
            different = _first_difference(chief[kind], other[kind])
            if different is not None:
                theirs, ours = (
                    what.format(different, found[kind].get(different)) for found in (other, chief)
                )
                raise UsageError(
                    f"worker {number} has {theirs}, and worker 0 has {ours}. Start all workers "
                    "with the same flags and the same packages."
                )
        file = _first_difference(chief["files"], other["files"])
        if file is None and chief["package"] != other["package"]:
            file = "the package vae_research"
        if file is not None:
            raise UsageError(
                f"{file} of worker {number} is not that of worker 0. Start all workers from the "
                "same code."
            )
        ours, theirs = (_found(each) for each in (chief, other))
        if ours != theirs:
            raise CheckpointError(
                f"in the run directory, worker {number} finds {theirs} and worker 0 {ours}. All "
                "workers need the same directory, on a file system that they share."
            )


def refuse_other_data(data: Data, fingerprints: Sequence[str]) -> None:
    """Raises DataError unless all workers have read the same data.

    Args:
        data: of this worker, for the message.
        fingerprints: of the data of all workers.
    """
    for number, fingerprint in enumerate(fingerprints):
        if fingerprint != fingerprints[0]:
            raise DataError(
                f"the data {data.name} of worker {number} are not those of worker 0 (fingerprints "
                f"{fingerprint[:12]} and {fingerprints[0][:12]}). Give all workers the same files."
            )


def _first_difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> str | None:
    """Returns the first name with different values in two mappings, None if they are equal."""
    names = sorted(first.keys() | second.keys())
    return next((name for name in names if first.get(name) != second.get(name)), None)


def _found(identity: Mapping[str, Any]) -> str:
    if identity["complete"]:
        return "a complete run"
    name = identity["checkpoint"]
    return "no checkpoint" if name is None else f"the checkpoint {name}"


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # tensorflow-cpu, for example
            continue
    return found


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]

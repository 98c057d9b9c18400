"""What a sweep has done so far: the file sweep.json in its folder.

INTO/
  sweep.json       experiment, flags, settings; every point with its flags, threads and state
  NAME/            the run directory of each point, as of a single command
  output/NAME.txt  what that command would have printed
  study.journal    trials of a search, a file of Optuna; unless --storage is given
  lock             held while a sweep writes here, or points of a killed one are still saving
"""

from __future__ import annotations

import dataclasses
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from vae_research.runs.cli.errors import DirectoryInUseError, UsageError
from vae_research.runs.session import directory
from vae_research.runs.sweep.points import Point

SWEEP, OUTPUT = "sweep.json", "output"
_FORMAT = 1
_BETWEEN_LOOKS = 0.2  # seconds
_SCHEMA = {
    "format": int,
    "identity": str,
    "experiment": str,
    "arguments": [str],
    "settings": dict,
    "points": {
        str: {
            "flags": {str: str},
            "state": str,
            "trial?": (int, type(None)),
            "threads?": (int, type(None)),
        }
    },
}


@dataclasses.dataclass
class Record:
    """The content of sweep.json; each change is written at once, atomically.

    Attributes:
        into: the folder of the sweep.
        experiment: the file of the experiment.
        arguments: flags that all points have.
        settings: what varies, as the command says it, by option.
        points: by name: `flags`, `trial`, `threads`, `state` (waiting, running, interrupted, done,
            pruned, failed), and of those that have ended `exit_code`, `message` and `seconds`.
        identity: a name for the sweep that no other sweep has.
    """

    into: Path
    experiment: str
    arguments: list[str]
    settings: dict[str, Any]
    points: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    identity: str = dataclasses.field(default_factory=lambda: secrets.token_hex(8))

    def write(self) -> None:
        """Writes the file."""
        values = {name: value for name, value in vars(self).items() if name != "into"}
        directory.write_json(self.into / SWEEP, {"format": _FORMAT, **values})

    def add(self, point: Point) -> None:
        """Adds a point, unless it is there; does not write."""
        new = {"flags": dict(point.flags), "trial": point.trial, "threads": None}
        self.points.setdefault(point.name, {**new, "state": "waiting"})

    def change(self, name: str, **values: Any) -> None:
        """Changes what is known of a point."""
        self.points[name].update(values)
        self.write()

    def point(self, name: str) -> Point:
        """Returns a point."""
        found = self.points[name]
        return Point(name, found["flags"], found.get("trial"))

    def command(self, point: Point) -> list[str]:
        """Returns the arguments of Python that run a point as a single command.

        Raises:
            KeyError: it has not been given its threads.
        """
        threads = self.points[point.name]["threads"]
        share = [] if threads is None else [f"--threads={threads}"]
        return [
            self.experiment,
            *self.arguments,
            *point.arguments,
            *share,
            f"--run_dir={self.into / point.name}",
        ]

    def names(self, *states: str) -> list[str]:
        """Returns the names of the points in one of these states."""
        return [name for name, found in self.points.items() if found["state"] in states]


def read(into: Path) -> Record | None:
    """Returns the record of the sweep in a folder, None if the folder is free for one.

    Raises:
        UsageError: the folder holds something else, or a sweep of a newer version.
        CheckpointError: the record is damaged.
    """
    found = directory.read_json(into / SWEEP, _SCHEMA)
    if found is None:
        if into.is_dir() and (names := {*os.listdir(into)} - {directory.LOCK}):
            what = "a run" if directory.CONFIG in names else f"{min(names)} and no sweep"
            raise UsageError(f"{into} holds {what}. Give another --into.")
        return None
    if found.pop("format") != _FORMAT:
        raise UsageError(f"{into / SWEEP} is of another version of vae_research.")
    names = {field.name for field in dataclasses.fields(Record)}
    return Record(into=into, **{name: value for name, value in found.items() if name in names})


def refuse_other(before: Record, now: Record) -> None:
    """Raises UsageError unless a sweep is the one in its folder, or one with more points.

    Args:
        before: what the folder holds.
        now: what the command asks for.
    """
    advice = "Give another --into for a new sweep."
    if before.experiment != now.experiment:
        raise UsageError(
            f"{before.into} holds a sweep of {before.experiment}, not of {now.experiment}. {advice}"
        )
    if ("search" in before.settings) != ("search" in now.settings):
        raise UsageError(f"{before.into} holds a sweep of another kind. {advice}")
    if "search" in now.settings:
        for name in sorted(before.settings.keys() | now.settings.keys()):
            old, new = (each.settings.get(name, "not given") for each in (before, now))
            if old != new:
                raise UsageError(
                    f"{before.into} holds another search: --{name} was {old}, now {new}. {advice}"
                )
        return
    lost = [name for name in before.points if name not in now.points]
    if lost:
        raise UsageError(
            f"{before.into} holds a sweep with other points, such as {lost[0]}. It can be extended "
            f"by more values and seeds. {advice}"
        )


@contextmanager
def locked(into: Path) -> Iterator[None]:
    """Holds the lock of a sweep; waits for points of a killed sweep, which hold it while they save.

    Raises:
        DirectoryInUseError: another sweep holds it.
    """
    has_said = False
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(directory.locked(into))
                break
            except DirectoryInUseError as error:
                if not _has_ended(into / directory.LOCK):
                    message = str(error).replace("--run_dir", "--into")
                    raise DirectoryInUseError(message) from error
            if not has_said:
                print(
                    "Waiting for points of a sweep that was killed: they save and end.", flush=True
                )
                has_said = True
            time.sleep(_BETWEEN_LOOKS)
        yield


def _has_ended(lock: Path) -> bool:
    """Returns whether the sweep that took a lock has ended, on this machine."""
    found = re.match(r"process (\d+) on (\S+) since", lock.read_text(encoding="utf-8"))
    if found is None or found[2] != os.uname().nodename:
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False

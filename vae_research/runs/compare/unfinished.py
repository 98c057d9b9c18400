"""What is not in a table of finished runs: other runs, and points of sweeps that never began."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vae_research.runs.compare.records import Record
from vae_research.runs.session import directory

_SWEEP = "sweep.json"  # as runs.sweep.record writes it, next to the runs
_SCHEMA = {
    "points": {str: {"state": str, "exit_code?": int, "message?": (str, type(None))}},
}
# States that are only in the record of the sweep, and not in the run directory.
_ENDED = ("failed", "pruned")


def unfinished_in_words(records: Sequence[Record], folders: Sequence[str | Path]) -> str:
    """Returns the runs and points of sweeps that are not done, with their state, in words.

    Args:
        records: those of all runs in the folders, at least one.
        folders: the folders of the command; sweeps are these, or lie between them and the runs.

    Raises:
        CheckpointError: the record of a sweep is damaged.
    """
    runs = {_path_of(run): run for run in records}
    words = {
        path: f"{run['status']}, epoch {run['epochs']} of {run['flags/epochs']}"
        for path, run in runs.items()
        if run["status"] != "done"
    }
    for into in _folders_of_sweeps([*runs], folders):
        for name, point in _points(into).items():
            path = into / name
            is_done = point["state"] == "done" or (path in runs and path not in words)
            if not is_done and (path not in runs or point["state"] in _ENDED):
                words[path] = _end_of(point)
    above = _above(records[0])
    return ", ".join(f"{os.path.relpath(path, above)} ({why})" for path, why in words.items())


def _folders_of_sweeps(runs: Sequence[Path], folders: Sequence[str | Path]) -> list[Path]:
    given = [Path(folder).expanduser().resolve() for folder in folders]
    above = (run.parent for run in runs if any(folder in run.parents for folder in given))
    return list(dict.fromkeys([*given, *above]))


def _points(into: Path) -> dict[str, dict[str, Any]]:
    """Returns the points of a sweep by name; none if the folder is not that of a sweep."""
    found = directory.read_json(into / _SWEEP, _SCHEMA)
    return {} if found is None else found["points"]


def _end_of(point: dict[str, Any]) -> str:
    ended = f", exit code {point['exit_code']}" if "exit_code" in point else ""
    why = f": {message}" if (message := point.get("message")) else ""
    return f"{point['state']}{ended}{why}"


def _path_of(run: Record) -> Path:
    return Path(str(run["path"])).resolve()


def _above(run: Record) -> Path:
    """Returns the folder that the name of a run is relative to."""
    return _path_of(run).parents[len(Path(str(run["run"])).parts) - 1]

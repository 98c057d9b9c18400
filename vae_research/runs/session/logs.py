"""Truncates the logs of a run to their lengths at a checkpoint.

A run that was killed has logged steps that it will train again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from vae_research import files
from vae_research.callbacks.tensorboard.summaries import settle
from vae_research.runs.session import directory

_EVENTS = ("train/events.out.tfevents.*", "validation/events.out.tfevents.*")


def lengths(run_dir: Path) -> dict[str, int]:
    """Returns the length of metrics.jsonl and of every event file, in bytes, by name.

    Waits for events that are still to be written, because `rewind` would cut them off.
    """
    settle()
    return {path.relative_to(run_dir).as_posix(): path.stat().st_size for path in _logs_of(run_dir)}


def rewind(run_dir: Path, lengths: Mapping[str, int]) -> list[str]:
    """Truncates the logs to what `lengths` returned and removes files that were created later.

    Returns:
        The names of logs that are missing or shorter than that; they cannot be repaired.
    """
    short = []
    for path in _logs_of(run_dir):
        name = path.relative_to(run_dir).as_posix()
        if name not in lengths:
            files.remove(path)
        elif path.stat().st_size > lengths[name]:
            os.truncate(path, lengths[name])
        elif path.stat().st_size < lengths[name]:
            short.append(name)
    return short + [name for name in lengths if not (run_dir / name).exists()]


def _logs_of(run_dir: Path) -> list[Path]:
    metrics = run_dir / directory.METRICS
    events = [path for pattern in _EVENTS for path in sorted(run_dir.glob(pattern))]
    return [path for path in (metrics, *events) if path.is_file()]

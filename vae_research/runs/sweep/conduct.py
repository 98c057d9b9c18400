"""Runs the points of a sweep, as many at a time as the command says."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from types import FrameType
from typing import Protocol

from vae_research.runs.cli.errors import PrunedError
from vae_research.runs.sweep.points import Point
from vae_research.runs.sweep.progress import Progress
from vae_research.runs.sweep.record import Record
from vae_research.runs.sweep.workers import GO_ON, PRUNE, Ended, Report, Workers

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Points(Protocol):
    """Where the points of a sweep come from, and where their results go."""

    @property
    def total(self) -> int:
        """How many points the sweep has, those that have ended among them."""

    def next(self) -> Point | None:
        """Returns a point that is to run, None if there is none now."""

    def reported(self, point: Point, epoch: int, value: float | None) -> bool:
        """Takes the validation score of an epoch; returns whether the point is to end."""

    def ended(self, point: Point, state: str) -> None:
        """Takes the end of a point."""


class Grid:
    """The points of a grid or list.

    Args:
        record: of the sweep, with all points.
        complete: names of those that need not run.
    """

    def __init__(self, record: Record, complete: Sequence[str]) -> None:
        self._record = record
        self._waiting = [name for name in record.points if name not in complete]

    @property
    def total(self) -> int:
        """How many points the sweep has."""
        return len(self._record.points)

    def next(self) -> Point | None:
        """Returns the next point, None after the last."""
        return self._record.point(self._waiting.pop(0)) if self._waiting else None

    def reported(self, point: Point, epoch: int, value: float | None) -> bool:
        """Returns False: nothing ends a point of a grid."""
        return False

    def ended(self, point: Point, state: str) -> None:
        """Does nothing."""


class _Stop:
    """Notes the signals that this process receives."""

    def __init__(self) -> None:
        self.received: list[int] = []
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)


def conduct(record: Record, points: Points, jobs: int, threads: int) -> int | None:
    """Runs the points that are not complete; returns the signal that has ended the sweep.

    At a signal all points are sent it, and save before they end. A second one ends them at once.

    Args:
        record: of the sweep, in its locked folder.
        points: to run.
        jobs: how many run at a time, at most.
        threads: for each point that has not begun yet.
    """
    stop, sent = _Stop(), 0
    workers = Workers(record.into)
    progress = Progress(record.into, len(record.names("done", "pruned")))
    while True:
        while len(workers) < jobs and not stop.received:
            point = points.next()
            if point is None:
                break
            threads_of_point = record.points[point.name]["threads"] or threads
            record.change(point.name, state="running", threads=threads_of_point)
            number = list(record.points).index(point.name) + 1
            progress.started(point.name, number, points.total)
            workers.start(point.name, record.command(point))
        if not workers:
            return stop.received[0] if stop.received else None
        for number in stop.received[sent:]:
            workers.send_signal(number)
        sent = len(stop.received)
        for event in workers.wait():
            point = record.point(event.name)
            if isinstance(event, Report):
                ends = points.reported(point, event.epoch, event.score)
                workers.answer(event.name, PRUNE if ends else GO_ON)
                progress.reported(event, points.total)
            else:
                state = _state(event, stopped=bool(stop.received))
                record.change(
                    event.name,
                    state=state,
                    exit_code=event.exit_code,
                    message="" if state == "done" else event.message,
                    seconds=round(event.seconds, 3),
                )
                points.ended(point, state)
                progress.ended(event, state, points.total)


def _state(ended: Ended, *, stopped: bool) -> str:
    if ended.exit_code == os.EX_OK:
        return "done"
    if ended.exit_code == PrunedError.exit_code:
        return "pruned"
    return "interrupted" if stopped else "failed"

"""Runs an experiment many times: over a grid or list of settings with seeds, or as a search.

    scripts/sweep EXPERIMENT.py --over 'kl_weight=0.5,1,2' --over 'latent_dim=10,20' --seeds 3 \\
        --jobs 2 --into runs/sweeps/first
    scripts/sweep EXPERIMENT.py --search 'learning_rate=log:1e-4..1e-2' --trials 40 \\
        --into runs/sweeps/second

All other flags are those of the experiment, and hold for every point.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae_research.runs.cli.errors import DirectoryInUseError, RunError, UsageError
from vae_research.runs.cli.tools import exit_code_of
from vae_research.runs.compare.page import write_report
from vae_research.runs.session import directory
from vae_research.runs.sweep import record as records
from vae_research.runs.sweep import search, workers
from vae_research.runs.sweep.conduct import Grid, conduct
from vae_research.runs.sweep.examine import examine, file_of
from vae_research.runs.sweep.options import (
    USAGE,
    first_seed,
    number_of_seeds,
    options_parser,
    refuse_contradictions,
    refuse_in_both,
    settings_of,
)
from vae_research.runs.sweep.points import Point, fixed_flags, grid, parse_over, parse_point
from vae_research.runs.sweep.progress import in_words
from vae_research.runs.sweep.record import Record

if TYPE_CHECKING:
    import optuna


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a sweep; returns its exit code.

    That is 0 if all points are done or pruned, the exit code of the first one that failed, 130 or
    143 after a signal, and that of a run if the sweep cannot start.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    return exit_code_of("sweep", lambda: _sweep_unless_interrupted(arguments))


def _sweep_unless_interrupted(arguments: Sequence[str]) -> int:
    try:
        return _sweep(arguments)
    except KeyboardInterrupt:
        return _say(130, "interrupted before the first point started.")
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("optuna", "sqlalchemy"):
            raise
        return _say(7, f"the storage of the search has failed: {error}")


def _say(code: int, message: str) -> int:
    print(f"sweep: {' '.join(message.split())}", file=sys.stderr)
    return code


def _sweep(arguments: Sequence[str]) -> int:
    parser = options_parser()
    if not arguments or {"-h", "--help"} & {*arguments}:
        print(parser.format_help() if arguments else f"Usage: {USAGE}", file=sys.stderr)
        return 0 if arguments else 2
    if not hasattr(os, "fork"):
        raise UsageError("this system cannot fork processes; scripts/run runs one point.")
    experiment = file_of(arguments[0])
    options, common = parser.parse_known_args(arguments[1:])
    refuse_contradictions(options, common)
    into = _place(options.into)
    now = Record(into, str(experiment), common, settings_of(options))
    space: dict[str, Any] = {}
    if options.search:
        pairs = [search.parse_search(text) for text in options.search]
        space = dict(pairs)
        if len(space) < len(pairs):
            raise UsageError("--search: a flag has two ranges.")
        first = search.corners(space)
    else:
        over = [parse_over(text) for text in options.over]
        listed = [parse_point(text) for text in options.point]
        first = grid(over, listed, number_of_seeds(options, over, listed), first_seed(common))
    refuse_in_both(common, first)
    with ExitStack() as stack:
        before = records.read(into)
        if before is not None:
            stack.enter_context(records.locked(into))
            before = records.read(into)
        for point in first if not space else ():
            now.add(point)
        if before is not None:
            records.refuse_other(before, now)
            now.identity = before.identity
            now.points |= before.points
        threads = options.threads or max(1, _cores() // options.jobs)
        examined = [now.point(name) for name in now.points] + (first if space else [])
        complete, name, may_change = _examine(now, before, examined)
        if options.check:
            print(f"Nothing was found that would stop the {len(examined)} points of this sweep.")
            return 0
        if (warning := search.warning_of(space)) is not None:
            print(f"warning: {warning}", file=sys.stderr)
        study = None
        if space and (options.storage or before is not None):  # before anything is written
            study = _open_study(options, now, may_change)
        if before is None:
            directory.create(into, may_exist=True)
            stack.enter_context(records.locked(into))
            if records.read(into) is not None:
                raise DirectoryInUseError(f"{into} was begun by another sweep meanwhile.")
        for each, known in now.points.items() if not space else ():
            if each in complete:
                known["state"] = "done"
            elif known["state"] == "done":
                known["state"] = "waiting"  # it is to be trained further
        now.write()
        points: Grid | search.Search = Grid(now, complete)
        if space:
            study = study or _open_study(options, now, may_change)
            points = search.Search(now, study, space, options.trials, first_seed(common))
        code = _run(now, points, options.jobs, threads, name)
        if now.names("done") and code < 128:  # not interrupted
            report = write_report(into, f"Sweep of {name}", ["scripts/sweep", *arguments])
            print(f"All of it on one page: {report}", flush=True)
        return code


def _open_study(
    options: argparse.Namespace, record: Record, may_change: Sequence[str]
) -> optuna.Study:
    place = options.storage or str(record.into / search.JOURNAL)
    name, pruner = options.study or record.into.name, options.pruner or search.PRUNERS[0]
    return search.open_study(place, name, pruner, record, may_change)


def _run(
    record: Record, points: Grid | search.Search, jobs: int, threads: int, experiment: str
) -> int:
    """Runs what is to run, and prints what came of it."""
    began = time.monotonic()
    cores = "1 thread" if threads == 1 else f"{threads} threads"
    print(
        f"{points.total} points of {experiment}, {jobs} at a time with {cores} each, into "
        f"{record.into}",
        flush=True,
    )
    number = conduct(record, points, jobs, threads)
    failed = record.names("failed")
    counts = [
        f"{len(names)} {state}"
        for state in ("done", "pruned", "failed", "interrupted", "waiting")
        if (names := record.names(state))
    ]
    print(f"{', '.join(counts) or 'no points'} in {in_words(time.monotonic() - began)}")
    if number is not None:
        how = "interrupted" if number == signal.SIGINT else "terminated"
        return _say(128 + number if number != signal.SIGHUP else 143, f"{how}; {_RESUME}")
    if isinstance(points, search.Search):
        print(points.conclusion())
    print(f"A table of them: scripts/compare {record.into}", flush=True)
    for name in failed:
        point = record.points[name]
        print(f"failed {name}: exit code {point['exit_code']}: {point['message']}", file=sys.stderr)
    if failed:
        first = record.points[failed[0]]["exit_code"]
        return _say(first, f"{len(failed)} points failed; {_RESUME}")
    return 0


_RESUME = "the same command resumes the sweep, and repeats no point that is done."


def _examine(
    record: Record, before: Record | None, points: Sequence[Point]
) -> tuple[list[str], str, list[str]]:
    """Examines all points; returns the names of those that are complete, and of the experiment.

    The flags that may differ when a run is resumed come third.

    Flags and run directories come first, which takes no TensorFlow, then data and models.

    Raises:
        RunError: a point cannot run; or the flags that hold for all points are not those of the
            sweep that the folder holds.
    """

    def commands(names: Sequence[str] = ()) -> list[tuple[str, list[str]]]:
        return [
            (
                point.name,
                [
                    record.experiment,
                    *record.arguments,
                    *point.arguments,
                    f"--run_dir={record.into / point.name}",
                ],
            )
            for point in points
            if point.name not in names
        ]

    distinct = "search" not in record.settings  # it may draw a setting twice
    found = workers.in_fork(lambda: examine(commands(), distinct=distinct))
    _raise(found["error"])
    if before is not None and before.arguments != record.arguments:
        _refuse_other_flags(before, record, found["may_change"])
    complete = found["complete"]
    # A search does not try again what has failed.
    over = [*complete, *(() if distinct else record.names("pruned", "failed"))]
    if to_build := commands(over):
        workers.preload()
        _raise(workers.in_fork(lambda: examine(to_build, build=True))["error"])
    return complete, found["experiment"], found["may_change"]


def _raise(error: tuple[int, str] | None) -> None:
    if error is not None:
        raise _PointError(*error)


class _PointError(RunError):
    """A point cannot run."""

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # that of the point


def _refuse_other_flags(before: Record, now: Record, may_change: Sequence[str]) -> None:
    """Raises UsageError if flags that hold for all points differ, and may not change in a run."""

    old, new = (fixed_flags(each.arguments, may_change) for each in (before, now))
    changed = [
        f"{old.get(name, f'without --{name}')}, now {new.get(name, f'without --{name}')}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if changed:
        raise UsageError(
            f"{before.into} holds a sweep with other flags: {'; '.join(changed)}. Give another "
            "--into for a new sweep."
        )


def _place(text: str) -> Path:
    try:
        return directory.choose(text, "sweep")
    except RunError as error:
        message = str(error).replace("--run_dir", "--into").replace("the run directory", "--into")
        raise type(error)(message) from error


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())

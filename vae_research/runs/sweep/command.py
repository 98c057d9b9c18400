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
import re
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

from vae_research.arguments import LARGEST_SEED
from vae_research.checkpoints import CheckpointError
from vae_research.runs.cli.errors import DirectoryInUseError, RunError, UsageError
from vae_research.runs.session import directory
from vae_research.runs.sweep import record as records
from vae_research.runs.sweep import search, workers
from vae_research.runs.sweep.conduct import Grid, conduct
from vae_research.runs.sweep.examine import examine, file_of
from vae_research.runs.sweep.points import OWN_FLAGS, Point, grid, parse_over, parse_point
from vae_research.runs.sweep.progress import in_words
from vae_research.runs.sweep.record import Record

_USAGE = (
    "scripts/sweep EXPERIMENT.py --over 'flag=value,value' [--over ...] [--seeds N] [--jobs N] "
    "--into FOLDER [flags of the experiment]"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a sweep; returns its exit code.

    That is 0 if all points are done or pruned, the exit code of the first one that failed, 130 or
    143 after a signal, and that of a run if the sweep cannot start.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return _sweep(arguments)
    except KeyboardInterrupt:
        return _say(130, "interrupted before the first point started.")
    except RunError as error:
        return _say(error.exit_code, str(error))
    except CheckpointError as error:
        return _say(4, str(error))
    except OSError as error:
        return _say(7, f"{error.strerror or error}: {error.filename or ''}")


def _say(code: int, message: str) -> int:
    print(f"sweep: {' '.join(message.split())}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    """Raises UsageError, of which one line is printed."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. --help explains.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="scripts/sweep",
        usage=_USAGE,
        description="Runs an experiment over a grid or list of settings, or searches for the best. "
        "Each point is a run of its own in FOLDER; the same command resumes.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--into", metavar="FOLDER", help="folder of the sweep; it is made if it is not there")
    add(
        "--over",
        action="append",
        default=[],
        metavar="FLAG=VALUE,VALUE",
        help="values of a flag, separated by commas, or by | if they contain commas; several of "
        "these are a grid",
    )
    add(
        "--point",
        action="append",
        default=[],
        metavar="'FLAG=VALUE FLAG=VALUE'",
        help="one setting of a list; combined with --over if there is any",
    )
    add("--seeds", type=int, metavar="N", help="N runs of each setting, with seeds from --seed on")
    add("--jobs", type=int, default=1, metavar="N", help="points at a time, at most; default 1")
    add(
        "--search",
        action="append",
        default=[],
        metavar="FLAG=RANGE",
        help="what Optuna searches: 0.1..2, log:1e-4..1e-2, int:2..64 or choice|choice",
    )
    add("--trials", type=int, metavar="N", help="how many trials the study of a search has")
    add(
        "--pruner",
        choices=search.PRUNERS,
        help="of a search; median (the default): ends points whose validation is worse than the "
        "median of others at the same epoch; none",
    )
    add(
        "--storage",
        metavar="URL|FILE",
        help="database or journal file of a search, for several machines; default: in FOLDER",
    )
    add("--study", metavar="NAME", help="name of a search in its storage; default: that of FOLDER")
    add("--check", action="store_true", help="examine all points as a sweep does; train none")
    return parser


def _sweep(arguments: Sequence[str]) -> int:
    parser = _parser()
    if not arguments or {"-h", "--help"} & {*arguments}:
        print(parser.format_help() if arguments else f"Usage: {_USAGE}", file=sys.stderr)
        return 0 if arguments else 2
    if not hasattr(os, "fork"):
        raise UsageError("this system cannot fork processes; scripts/run runs one point.")
    experiment = file_of(arguments[0])
    options, common = parser.parse_known_args(arguments[1:])
    _refuse_contradictions(options, common)
    into = _place(options.into)
    now = Record(into, str(experiment), common, _settings(options))
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
        first = grid(over, listed, _seeds(options, over, listed), _first_seed(common))
    _refuse_in_both(common, first[0])
    with ExitStack() as stack:
        before = records.read(into)
        if before is not None:
            stack.enter_context(_Locked(into))
            before = records.read(into)
        for point in first if not space else ():
            now.add(point)
        if before is not None:
            records.refuse_other(before, now)
            now.identity = before.identity
            now.points |= before.points
        threads = max(1, _cores() // options.jobs)
        examined = [now.point(name) for name in now.points] + (first if space else [])
        complete, name = _examine(now, before, examined, threads)
        if options.check:
            print(f"Nothing was found that would stop the {len(examined)} points of this sweep.")
            return 0
        if before is None:
            directory.create(into, may_exist=True)
            stack.enter_context(_Locked(into))
            if records.read(into) is not None:
                raise DirectoryInUseError(f"{into} was begun by another sweep meanwhile.")
        for each, known in now.points.items() if not space else ():
            if each in complete:
                known["state"] = "done"
            elif known["state"] == "done":
                known["state"] = "waiting"  # it is to be trained further
        now.write()
        return _run(now, options, space, complete, threads, name)


def _run(
    record: Record,
    options: argparse.Namespace,
    space: dict[str, Any],
    complete: Sequence[str],
    threads: int,
    experiment: str,
) -> int:
    """Runs what is to run, and prints what came of it."""
    began = time.monotonic()
    points: Grid | search.Search = Grid(record, complete)
    if space:
        study = options.study or record.into.name
        seed = _first_seed(record.arguments)
        pruner = options.pruner or "median"
        points = search.Search(record, space, options.trials, options.storage, study, pruner, seed)
        warning = search.warning_of(space)
        if warning:
            print(f"warning: {warning}", file=sys.stderr)
    cores = "1 thread" if threads == 1 else f"{threads} threads"
    print(
        f"{points.total} points of {experiment}, {options.jobs} at a time with {cores} each, into "
        f"{record.into}",
        flush=True,
    )
    workers.preload()
    number = conduct(record, points, options.jobs, threads)
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
    record: Record, before: Record | None, points: Sequence[Point], threads: int
) -> tuple[list[str], str]:
    """Examines all points; returns the names of those that are complete, and the experiment's name.

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

    found = workers.in_fork(lambda: examine(commands(), build=False))
    _raise(found["error"])
    if before is not None and before.arguments != record.arguments:
        _refuse_other_flags(before, record, found["may_change"])
    complete = found["complete"]
    if len(complete) < len(points):
        workers.preload()
        _raise(workers.in_fork(lambda: examine(commands(complete), build=True))["error"])
    return complete, found["experiment"]


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

    def named(arguments: Sequence[str]) -> dict[str, str]:
        return {a.lstrip("-").partition("=")[0]: a for a in arguments}

    old, new = named(before.arguments), named(now.arguments)
    changed = [
        f"{old.get(name, f'without --{name}')}, now {new.get(name, f'without --{name}')}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and name not in may_change
    ]
    if changed:
        raise UsageError(
            f"{before.into} holds a sweep with other flags: {'; '.join(changed)}. Give another "
            "--into for a new sweep."
        )


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    names = ("search", "storage", "study") if options.search else ("over", "point", "seeds")
    return {name: value for name in names if (value := getattr(options, name))}


def _refuse_contradictions(options: argparse.Namespace, common: Sequence[str]) -> None:
    """Raises UsageError if options do not fit together."""
    if options.into is None:
        raise UsageError("--into FOLDER is missing: where the runs of the sweep are written.")
    for name in ("jobs", "seeds", "trials"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} {value}: must be at least 1.")
    if options.search and (options.over or options.point or options.seeds):
        raise UsageError(
            "--search is not combined with --over, --point or --seeds: it decides itself which "
            "settings it tries. A flag that all trials have is written --flag=value."
        )
    if options.search and options.trials is None:
        raise UsageError("--search needs --trials N: how many settings it tries.")
    for name in ("trials", "pruner", "storage", "study"):
        if getattr(options, name) is not None and not options.search:
            raise UsageError(f"--{name} is for a search, and there is no --search.")
    if not (options.search or options.over or options.point or options.seeds):
        raise UsageError("nothing varies: give --over, --point, --seeds or --search.")
    for argument in common:
        name = argument.lstrip("-").partition("=")[0]
        if argument.startswith("-") and name in OWN_FLAGS:
            raise UsageError(f"--{name}: {OWN_FLAGS[name]}.")


def _refuse_in_both(common: Sequence[str], point: Point) -> None:
    for argument in common:
        name = argument.lstrip("-").partition("=")[0]
        if argument.startswith("-") and name in point.flags and name != "seed":
            raise UsageError(f"--{name} is given for all points, and varies as well.")


def _first_seed(common: Sequence[str]) -> int:
    found = [a.partition("=")[2] for a in common if a.lstrip("-").startswith("seed=")]
    if any(a.lstrip("-") == "seed" for a in common):
        raise UsageError("--seed: write --seed=NUMBER.")
    if found and (not re.fullmatch(r"\d+", found[-1]) or int(found[-1]) > LARGEST_SEED):
        raise UsageError(f"--seed={found[-1]}: must be an integer from 0 to {LARGEST_SEED}.")
    return int(found[-1]) if found else 0


def _seeds(
    options: argparse.Namespace,
    over: Sequence[tuple[str, Sequence[str]]],
    listed: Sequence[dict[str, str]],
) -> int | None:
    """Returns how many seeds each setting has, None if settings have them."""
    has_seeds = any(name == "seed" for name, _ in over) or any("seed" in each for each in listed)
    if has_seeds and options.seeds is not None:
        raise UsageError("--seeds, and seed varies as well: give one of the two.")
    return None if has_seeds else options.seeds or 1


def _place(text: str) -> Path:
    try:
        return directory.choose(text, "sweep")
    except RunError as error:
        message = str(error).replace("--run_dir", "--into").replace("the run directory", "--into")
        raise type(error)(message) from error


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Locked(ExitStack):
    """Holds the lock of a sweep; waits for points of a killed sweep, which hold it while they save.

    Raises:
        DirectoryInUseError: another sweep holds it.
    """

    def __init__(self, into: Path) -> None:
        super().__init__()
        self._into = into

    def __enter__(self) -> _Locked:
        has_said = False
        while True:
            try:
                self.enter_context(directory.locked(self._into))
                return self
            except DirectoryInUseError as error:
                if not _has_ended(self._into / directory.LOCK):
                    raise DirectoryInUseError(str(error).replace("--run_dir", "--into")) from error
            if not has_said:
                print("Waiting for points of a sweep that was killed: they save and end.")
                has_said = True
            time.sleep(0.2)


def _has_ended(lock: Path) -> bool:
    """Returns whether the sweep that took a lock has ended on this machine."""
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


if __name__ == "__main__":
    sys.exit(main())

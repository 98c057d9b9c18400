"""The command line of a sweep: its own options, and the flags that all points have."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from vae_research.arguments import LARGEST_SEED
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.sweep import search
from vae_research.runs.sweep.points import OWN_FLAGS, Point

USAGE = (
    "scripts/sweep EXPERIMENT.py --over 'flag=value,value' [--over ...] [--seeds N] [--jobs N] "
    "--into FOLDER [flags of the experiment]"
)


class _Parser(argparse.ArgumentParser):
    """Raises UsageError, of which one line is printed."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. --help explains.")


def options_parser() -> argparse.ArgumentParser:
    """Returns the parser of the options of a sweep."""
    parser = _Parser(
        prog="scripts/sweep",
        usage=USAGE,
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
        "--threads",
        type=int,
        metavar="N",
        help="threads of each point; default: the cores divided by --jobs. A point that is resumed "
        "has as many as before",
    )
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


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Returns what varies, as the options say it."""
    names = ("search", "storage", "study") if options.search else ("over", "point", "seeds")
    return {name: value for name in names if (value := getattr(options, name))}


def refuse_contradictions(options: argparse.Namespace, common: Sequence[str]) -> None:
    """Raises UsageError if options do not fit together."""
    if options.into is None:
        raise UsageError("--into FOLDER is missing: where the runs of the sweep are written.")
    for name in ("jobs", "seeds", "threads", "trials"):
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


def refuse_in_both(common: Sequence[str], points: Sequence[Point]) -> None:
    """Raises UsageError if a flag is given for all points and varies as well."""
    varies = {name for point in points for name in point.flags} - {"seed"}
    for argument in common:
        name = argument.lstrip("-").partition("=")[0]
        if argument.startswith("-") and name in varies:
            raise UsageError(f"--{name} is given for all points, and varies as well.")


def first_seed(common: Sequence[str]) -> int:
    """Returns the seed that is given for all points, 0 by default.

    Raises:
        UsageError: it is none.
    """
    found = [a.partition("=")[2] for a in common if a.lstrip("-").startswith("seed=")]
    if any(a.lstrip("-") == "seed" for a in common):
        raise UsageError("--seed: write --seed=NUMBER.")
    if found and (not re.fullmatch(r"\d+", found[-1]) or int(found[-1]) > LARGEST_SEED):
        raise UsageError(f"--seed={found[-1]}: must be an integer from 0 to {LARGEST_SEED}.")
    return int(found[-1]) if found else 0


def number_of_seeds(
    options: argparse.Namespace,
    over: Sequence[tuple[str, Sequence[str]]],
    listed: Sequence[Mapping[str, str]],
) -> int | None:
    """Returns how many seeds each setting has, None if settings have them.

    Raises:
        UsageError: both are given.
    """
    has_seeds = any(name == "seed" for name, _ in over) or any("seed" in each for each in listed)
    if has_seeds and options.seeds is not None:
        raise UsageError("--seeds, and seed varies as well: give one of the two.")
    return None if has_seeds else options.seeds or 1

"""Tabulates finished runs, and says which differences between settings their seeds support.

    scripts/compare RUN|FOLDER ... [FLAGS]

Nothing is changed, and TensorFlow is not imported.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vae_research.plots import ENDINGS
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.cli.tools import choice, exit_code_of, parse
from vae_research.runs.compare.comparability import refuse_different
from vae_research.runs.compare.formats import FORMATS, Measured, Table
from vae_research.runs.compare.notes import notes_on
from vae_research.runs.compare.records import Record, load_runs
from vae_research.runs.compare.settings import Setting, find_runs, group
from vae_research.runs.compare.tabulate import (
    figures_of,
    in_order,
    sort_key,
    table_of_runs,
    table_of_settings,
)
from vae_research.runs.compare.unfinished import unfinished_in_words

_FLAGS = {
    "rows": "settings or runs; default: settings, if one of them has several seeds",
    "figures": "test figures, separated by commas; differences are those of the first",
    "sort": "figure, setting, seed, seconds or epochs that orders the rows, the best or smallest "
    "first; -NAME: last; default: the first of --figures",
    "baseline": "what the other rows are compared with: settings, kl_weight=1,latent_dim=20, or a "
    "run",
    "format": f"{', '.join(FORMATS)}; default: screen",
    "plot": "curves, rate_distortion, or a setting, against which the first of --figures is drawn",
    "to": f"file of the plot, which ends in {', '.join(ENDINGS)}",
}
# The figures that a plot shows, whatever --figures says.
_DRAWN = {"curves": ("elbo",), "rate_distortion": ("kl", "reconstruction")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a comparison; returns 0, or the exit code of what is wrong."""
    return exit_code_of(
        "compare", lambda: compare_runs(sys.argv[1:] if arguments is None else arguments)
    )


def compare_runs(arguments: Sequence[str]) -> None:
    """Prints the table that a command line asks for.

    Raises:
        UsageError: a flag is not valid, or runs cannot be compared.
        CheckpointError: a file of a run is damaged.
    """
    given = _parsed(arguments)
    if given is None:
        return
    records = load_runs(*given.subjects)
    finished = [record for record in records if record["status"] == "done"]
    missing = unfinished_in_words(records, given.subjects)
    if not finished:
        raise UsageError(f"no run is finished: {missing}.")
    figures = figures_of(finished, given.figures)
    sort, larger_first = sort_key(given.sort or figures[0], finished)
    sorted_by = [sort.removeprefix("test/")] if sort.startswith("test/") else []
    refuse_different(finished, [*figures, *sorted_by, *_DRAWN.get(given.plot, ())])
    finished = in_order(finished, [run[sort] for run in finished], larger_first=larger_first)
    wanted = None if given.baseline is None else find_runs(given.baseline, finished)
    settings = group(finished) if given.rows != "runs" or given.plot else []
    means = [_mean(setting, sort) for setting in settings]
    settings = in_order(settings, means, larger_first=larger_first)
    has_seeds = any(len(setting.runs) > 1 for setting in settings)
    if given.rows == "settings" or (given.rows is None and has_seeds):
        table = table_of_settings(settings, figures, _setting_of(wanted, settings, given.baseline))
    else:
        table = table_of_runs(finished, figures, _only(wanted, given.baseline), _by_example)
    notes = [*table.notes, *notes_on(finished, figures)]
    if missing:
        notes.append(f"Not in the table: {missing}.")
    if given.plot:
        from vae_research.runs.compare.plots import plot

        plot(given.plot, given.to, settings, figures[0])
        notes.append(f"Plot: {given.to}")
    text = FORMATS[given.format](Table(table.columns, notes))
    print(text, end="")
    if given.format == "csv":
        print("\n".join(notes), file=sys.stderr)


def _mean(setting: Setting, key: str) -> Any:
    values = setting.figure(key).values()
    if values:
        return sum(values) / len(values)
    return next(iter(setting.runs.values()))[key]


def _setting_of(
    wanted: Sequence[Record] | None, settings: Sequence[Setting], asked: str
) -> Setting | None:
    if wanted is None:
        return None
    found = [each for each in settings if any(run in wanted for run in each.runs.values())]
    if len(found) > 1:
        raise UsageError(
            f"--baseline={asked} means several settings: {'; '.join(map(str, found))}."
        )
    return found[0]


def _only(wanted: Sequence[Record] | None, asked: str) -> Record | None:
    if wanted is None:
        return None
    if len(wanted) > 1:
        names = ", ".join(str(run["run"]) for run in wanted)
        raise UsageError(f"--baseline={asked} means several runs: {names}. Name one of them.")
    return wanted[0]


def _by_example(first: Record, second: Record, figure: str) -> tuple[Measured, float | None]:
    """Returns the paired difference of two runs, and the error of an unpaired one."""
    from vae_research.runs.report.comparison import paired_difference

    found = paired_difference(str(first["path"]), str(second["path"]), figure)
    return Measured(found.value, found.standard_error), found.unpaired_standard_error


def _parsed(arguments: Sequence[str]) -> argparse.Namespace | None:
    """Returns the values of the flags, None if help was asked for."""
    given = parse(arguments, "Usage: scripts/compare RUN|FOLDER ... [FLAGS]", _FLAGS)
    if given is None:
        return None
    if not given.subjects:
        raise UsageError("give at least one run, or a folder of runs. --help lists all flags.")
    given.format = choice("--format=", given.format or "screen", list(FORMATS))
    if given.rows is not None:
        given.rows = choice("--rows=", given.rows, ["settings", "runs"])
    if given.figures is not None:
        given.figures = [part.strip() for part in given.figures.split(",")]
    given.to = _file_of_plot(given.plot, given.to)
    return given


def _file_of_plot(kind: str | None, to: str | None) -> Path | None:
    if kind is None or to is None:
        if kind is None and to is None:
            return None
        missing, example = ("to", "--to=plot.pdf") if to is None else ("plot", "--plot=curves")
        raise UsageError(f"--{missing} is missing: a plot needs both, as {example}.")
    path = Path(to).expanduser()
    if path.suffix.lower() not in ENDINGS:
        raise UsageError(f"--to={to}: the file must end in {', '.join(ENDINGS)}.")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--to={to}: there is no folder {path.absolute().parent}.")
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib: pip install 'vae_research[figures]'.")
    return path


if __name__ == "__main__":
    sys.exit(main())

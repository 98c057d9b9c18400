"""Reruns rows of the table of numbers, `numbers.json`, and compares; `scripts/check --numbers`.

    scripts/check --numbers                   all rows that are finished
    scripts/check --numbers dense_vae         one of them
    scripts/check --numbers dense_vae --write     and note date and values if it agrees
    scripts/check --numbers --list            nothing is run

A row has a command, which is run with each of its seeds, and figures of the test set. A figure
agrees if the mean over seeds is within the tolerance of the value in the table. An unfinished row
is run only if it is named; what it holds is not the figure of its source.

Exit codes: 0 all agree, 1 one does not, 2 there is no such row; otherwise that of a command.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_name("numbers.json")
# A row that is interrupted continues here when it is run again, at the seed that it had come to.
RUNS = CHECKOUT / "runs" / "numbers"


@dataclasses.dataclass(frozen=True)
class Compared:
    """A figure of a row, as rerun.

    Attributes:
        row: its name.
        figure: as the table of numbers has it.
        values: by seed.
    """

    row: str
    figure: dict[str, Any]
    values: list[float]

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return statistics.fmean(self.values)

    @property
    def agrees(self) -> bool:
        """Whether it is what the table has; a value that is not a number does not agree."""
        return abs(self.mean - self.figure["value"]) <= self.figure["tolerance"]


class CommandError(Exception):
    """A command of a row failed; the arguments are a message and its exit code."""


def main(arguments: Sequence[str], table: Path = TABLE, runs: Path = RUNS) -> int:
    """Runs the command line; returns the exit code.

    Args:
        arguments: of the command line.
        table: the table of numbers.
        runs: the folder of the runs.
    """
    parser = argparse.ArgumentParser(
        prog="scripts/check --numbers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="default: all that are finished")
    parser.add_argument("--write", action="store_true", help="note date and values if they agree")
    parser.add_argument("--list", action="store_true", help="show the table, and run nothing")
    given = parser.parse_args(arguments)
    known = json.loads(table.read_text("utf-8"))
    unknown = [name for name in given.rows if name not in known]
    if unknown:
        print(
            f"scripts/check --numbers: there is no row {unknown[0]!r}; there are "
            f"{', '.join(known)}.",
            file=sys.stderr,
        )
        return 2
    if given.list:
        print_rows(known)
        return 0
    chosen = given.rows or [name for name, row in known.items() if "unfinished" not in row]
    agreed = True
    print(_line(("row", "figure", "published", "table", "rerun", "differ.", "toler."), ""))
    for name in chosen:
        try:
            found = rerun(name, known[name], runs)
        except CommandError as error:
            print(f"scripts/check --numbers: {error.args[0]}", file=sys.stderr)
            return error.args[1]
        for each in found:
            print(line_of(each), flush=True)
        agrees = all(each.agrees for each in found)
        agreed = agreed and agrees
        if agrees and given.write:
            write(name, found, table)
    for name, row in known.items():
        if "unfinished" in row:
            print(f"{name} is unfinished: {row['unfinished']}")
    return int(not agreed)


def rerun(name: str, row: dict[str, Any], runs: Path) -> list[Compared]:
    """Runs the command of a row with each seed; returns its figures.

    If the last rerun was interrupted, its complete runs are kept: their commands train nothing.

    Raises:
        CommandError: a command failed.
    """
    summaries = []
    run_dirs = {seed: runs / f"{name}-{seed}" for seed in row["seeds"]}
    complete = [(run_dir / "summary.json").exists() for run_dir in run_dirs.values()]
    # Seeds are run in this order, so that what is complete after a gap is of an earlier rerun.
    kept = 0 if all(complete) else complete.index(False)
    for run_dir, is_complete in [*zip(run_dirs.values(), complete, strict=True)][kept:]:
        if is_complete:
            shutil.rmtree(run_dir)
    for seed, run_dir in run_dirs.items():
        experiment, *flags = row["command"].removeprefix("scripts/run ").split()
        command = [sys.executable, str(CHECKOUT / experiment), *flags, f"--seed={seed}"]
        print(f"{name}: {row['command']} --seed={seed}", file=sys.stderr, flush=True)
        process = subprocess.run(
            [*command, f"--run_dir={run_dir}"], stdout=subprocess.DEVNULL, check=False
        )
        if process.returncode:
            message = f"{name}: its command ended with {process.returncode}; see {run_dir}."
            raise CommandError(message, process.returncode)
        summaries.append(json.loads((run_dir / "summary.json").read_text("utf-8"))["test"])
    return [
        Compared(name, figure, [_value(test, figure) for test in summaries])
        for figure in row["figures"]
    ]


def _value(test: dict[str, Any], figure: dict[str, Any]) -> float:
    """Returns a test figure, or its difference from another."""
    value = float(test[figure["figure"]]["value"])
    return value - float(test[figure["minus"]]["value"]) if "minus" in figure else value


def write(name: str, found: Sequence[Compared], table: Path) -> None:
    """Notes the date, and the values by seed, of a row that agrees."""
    known = json.loads(table.read_text("utf-8"))
    known[name]["rerun"] = datetime.date.today().isoformat()
    for figure, each in zip(known[name]["figures"], found, strict=True):
        figure["rerun"] = [round(value, 4) for value in each.values]
    table.write_text(json.dumps(known, indent=2, ensure_ascii=False) + "\n", "utf-8")


def line_of(each: Compared) -> str:
    """Returns the line of a figure in the table on the screen."""
    figure = each.figure
    numbers = (figure["value"], each.mean, abs(each.mean - figure["value"]), figure["tolerance"])
    published = "" if figure.get("published") is None else f"{figure['published']:.2f}"
    cells = (each.row, _named(figure), published, *(f"{number:.3f}" for number in numbers))
    return _line(cells, "agrees" if each.agrees else "DIFFERS")


def _named(figure: dict[str, Any]) -> str:
    return figure["figure"] + (f" - {figure['minus']}" if "minus" in figure else "")


def _line(cells: Sequence[str], result: str) -> str:
    row, figure, *numbers = cells
    return f"{row:<16} {figure:<55} {' '.join(f'{each:>9}' for each in numbers)}  {result}".rstrip()


def print_rows(known: dict[str, Any]) -> None:
    """Prints the table without running anything."""
    for name, row in known.items():
        rerun_on = f"rerun {row['rerun']}" if row["rerun"] else "not rerun"
        print(f"{name} ({rerun_on}): {row['set_up']}")
        print(f"  {row['command']}, seeds {', '.join(map(str, row['seeds']))}; {row['time']}")
        for figure in row["figures"]:
            published = figure.get("published")
            source = f"; {row['source']}: {published}" if published is not None else ""
            value = f"{figure['value']} +- {figure['tolerance']}"
            print(f"  {_named(figure)}: {value}{source}")
        if "unfinished" in row:
            print(f"  unfinished: {row['unfinished']}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

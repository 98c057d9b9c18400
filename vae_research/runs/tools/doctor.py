"""Examines a run directory, data, or an experiment with its flags, and says what to do.

    scripts/doctor RUN
    scripts/doctor DATA [FLAGS]
    scripts/doctor EXPERIMENT.py [FLAGS]

Each check is the one that a run makes. Nothing is changed or written, except by what the file of an
experiment itself does when Python runs it.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from vae_research.data import DATASETS
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.cli.flags import is_given, is_parsed, parse
from vae_research.runs.cli.tools import exit_code_of
from vae_research.runs.report.screen import print_data
from vae_research.runs.session import directory
from vae_research.runs.session.experiment import FLAGS_OF_DATA
from vae_research.runs.session.loading import named_data
from vae_research.runs.tools.run_findings import examine

_USAGE = "Usage: scripts/doctor RUN, or DATA or EXPERIMENT.py with flags"
_OF_A_RUN = (directory.CONFIG, directory.METRICS, directory.LOCK, "checkpoints")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the findings; returns 0, or the exit code of a run that meets what was found."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, file=sys.stderr)
        return 0 if arguments else 2
    return exit_code_of("doctor", lambda: _examine(*arguments))


def _examine(subject: str, *flags: str) -> int:
    path = Path(subject).expanduser().absolute()
    if path.suffix == ".py":
        if not path.is_file():
            raise UsageError(f"there is no file {path}.")
        sys.argv, sys.path[0] = [subject, *flags, "--dry_run"], str(path.parent)
        runpy.run_path(str(path), run_name="__main__")
        if not is_parsed():
            raise UsageError(
                f"{subject} called neither runs.main nor runs.study: nothing was checked."
            )
        return 0
    if _is_data(subject, path):
        examine_data(subject, list(flags))
        return 0
    if flags:
        raise UsageError(f"{' '.join(flags)}: {_USAGE[7:]}.")
    lines, exit_code = examine(path)
    print("\n".join(lines))
    return exit_code


def _is_data(subject: str, path: Path) -> bool:
    """Returns whether something is data, and neither a run nor a folder of runs."""
    if not path.is_dir():
        return path.is_file() or subject in DATASETS
    if any((path / name).exists() for name in _OF_A_RUN) or any(path.glob(f"*/{directory.CONFIG}")):
        return False
    return any(path.iterdir())


def examine_data(dataset: str, flags: Sequence[str] = ()) -> None:
    """Prints what a run would make of a data set.

    Args:
        dataset: as for `--dataset`.
        flags: of the data, as a command has them.

    Raises:
        UsageError: a flag is not valid, or is not one of the data.
        DataError: the data cannot be used.
    """
    given = [flag.lstrip("-").partition("=")[0] for flag in flags]
    if "dataset" in given:
        raise UsageError(f"--dataset: the data set is {dataset!r} already.")
    config = parse(named_data, [f"--dataset={dataset}", *flags])
    others = [name for name in config.as_dict() if name not in FLAGS_OF_DATA and is_given(name)]
    if others:
        raise UsageError(f"--{others[0]} is no flag of the data; these are {_in_words()}.")
    data = named_data(config)
    print_data(data)
    low, high = data.value_range()
    print(f"Values: {low:g} to {high:g}, as a model reads them")
    for name, array in data.train.arrays.items():
        print(f"Further array: {name}, {array.dtype} {list(array.shape[1:])}")
    print(f"{data.name} can be used.")


def _in_words() -> str:
    return ", ".join(f"--{name}" for name in FLAGS_OF_DATA)


if __name__ == "__main__":
    sys.exit(main())

"""Command lines of programs that look at runs: flags that are texts, errors of one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from vae_research.checkpoints import CheckpointError
from vae_research.data import DataError
from vae_research.runs.cli import streams
from vae_research.runs.cli.errors import RunError, UsageError
from vae_research.settings import did_you_mean


def exit_code_of(program: str, action: Callable[[], int | None]) -> int:
    """Calls a function; returns the exit code that it returns, 0 if that is None.

    An error that ends a run is printed in one line, and has the exit code that it has in a run.
    What is printed to a pipe that nobody reads, or to a stream that was closed before the process
    began, is lost.
    """
    streams.redirect_closed_streams()
    with streams.tolerate_closed_streams():
        try:
            return action() or 0
        except Exception as error:
            end = end_of(error)
            if end is None:
                raise
        exit_code, message = end
        print(f"{program}: {' '.join(message.split())}", file=sys.stderr)
        return exit_code


def end_of(error: BaseException) -> tuple[int, str] | None:
    """Returns the exit code of a run that ends with an error, and its message.

    None if the error is not one of those that a person can cure: it is a bug or is of an
    experiment's own code.

    >>> end_of(FileNotFoundError(2, "No such file", "a.npz"))
    (7, 'No such file: a.npz')
    """
    if isinstance(error, RunError):
        return error.exit_code, str(error)
    if isinstance(error, DataError):
        return 3, str(error)
    if isinstance(error, CheckpointError):
        return 4, str(error)
    if isinstance(error, OSError):
        return 7, f"{error.strerror or error}: {error.filename or ''}"
    return None


def parse(
    arguments: Sequence[str], usage: str, flags: Mapping[str, str]
) -> argparse.Namespace | None:
    """Returns what was given: texts by flag, None of the others, and the list `subjects`.

    Args:
        arguments: the command line without the program. `--help` prints the usage.
        usage: the line that `--help` begins with.
        flags: what each of them means, by name.

    Returns:
        The values; None if help was asked for.

    Raises:
        UsageError: a flag is unknown, has no value, or has two.
    """
    if {"-h", "--help"} & set(arguments):
        print("\n".join([usage, "", *(f"  --{k}=...\n        {v}" for k, v in flags.items())]))
        return None
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("subjects", nargs="*")
    for name in flags:
        parser.add_argument(f"--{name}", action=_Once)
    given, unknown = parser.parse_known_args(arguments)
    if unknown:
        name = unknown[0].lstrip("-").partition("=")[0]
        raise UsageError(
            f"unknown flag --{name}.{did_you_mean(name, flags)} --help lists all flags."
        )
    return given


def choice(name: str, value: str, choices: Sequence[str]) -> str:
    """Returns the value of a flag if it is one of few words.

    Raises:
        UsageError: it is another one.
    """
    if value not in choices:
        raise UsageError(
            f"{name}{value}: must be one of {', '.join(choices)}.{did_you_mean(value, choices)}"
        )
    return value


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. --help lists all flags.")


class _Once(argparse.Action):
    """Stores a value, and refuses a second one that differs."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        before = getattr(namespace, self.dest)
        if before not in (None, values):
            parser.error(f"--{self.dest} is given twice, as {before} and as {values}")
        setattr(namespace, self.dest, values)

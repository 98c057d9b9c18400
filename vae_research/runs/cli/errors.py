"""Errors that end a run with one line and an exit code."""

from __future__ import annotations

from typing import ClassVar


class RunError(Exception):
    """Ends a run: one line on standard error, and the exit code of its kind."""

    exit_code: ClassVar[int] = 1


class UsageError(RunError):
    """A flag, or a combination of flags, that cannot be."""

    exit_code = 2


class DirectoryInUseError(RunError):
    """Another process writes to the run directory."""

    exit_code = 5


class DivergedError(RunError):
    """The loss is no longer a number."""

    exit_code = 6


class FileSystemError(RunError):
    """The run directory cannot be written to, or the machine has not enough memory."""

    exit_code = 7


class TerminatedError(RunError):
    """The process was asked to end (SIGTERM)."""

    exit_code = 143

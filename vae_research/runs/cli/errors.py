"""Errors that end a run with one line and an exit code."""

from __future__ import annotations

from typing import ClassVar


class RunError(Exception):
    """Ends a run with one line on standard error and the exit code of its class."""

    exit_code: ClassVar[int] = 1


class UsageError(RunError):
    """A flag, or a combination of flags, is not valid."""

    exit_code = 2


class DirectoryInUseError(RunError):
    """Another process writes to the run directory."""

    exit_code = 5


class DivergedError(RunError):
    """The loss or the state is no longer finite."""

    exit_code = 6


class FileSystemError(RunError):
    """The run directory cannot be written, or memory is exhausted."""

    exit_code = 7


class PeerLostError(RunError):
    """Another worker of the run has ended, never came, or cannot be reached."""

    exit_code = 8


class PrunedError(RunError):
    """A search has ended the run because others were better at the same epoch."""

    exit_code = 9


class TerminatedError(RunError):
    """The process received SIGTERM or SIGHUP."""

    exit_code = 143

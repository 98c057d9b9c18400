"""Forks that do what a new Python process does, without the seconds of its imports.

A process that has imported TensorFlow and never run an operation may fork: after the first
operation a fork would hang. The fork runs a file, a module or code as the command line of Python
says, with streams, signals and random numbers of its own, and ends as Python ends.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import random
import runpy
import signal
import sys
import threading
import types
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn


def fork() -> int:
    """Forks; returns 0 in the new process, and its process id in this one.

    Ctrl-C, SIGTERM and SIGHUP end the new process from its first moment on, until it has handlers
    of its own; those of this process are never called in it. Signals that this process ignores are
    ignored there, too.
    """
    ending = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    try:
        with warnings.catch_warnings():
            # Python warns that TensorFlow's threads are not in the fork, which is what is wanted.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, *ending):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, signal.SIG_DFL)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def become(
    arguments: Sequence[str], streams: Sequence[int], cwd: str, environment: Mapping[str, str]
) -> NoReturn:
    """Becomes the process of `python *arguments`; called in a fork.

    Args:
        arguments: a file, `-m` and a module, or `-c` and code, followed by its arguments.
        streams: file descriptors of standard output and standard error.
        cwd: its working folder.
        environment: all of its environment variables.
    """
    for ignored in (signal.SIGTERM, signal.SIGHUP):  # which this process may have ignored
        signal.signal(ignored, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, source in enumerate((nothing, *streams)):
        os.dup2(source, number)
    for source in {nothing, *streams} - {0, 1, 2}:
        os.close(source)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    if environment.get("PYTHONUNBUFFERED"):
        sys.stdout = io.TextIOWrapper(
            os.fdopen(1, "wb", buffering=0, closefd=False), encoding="utf-8", write_through=True
        )
    sys.stderr = os.fdopen(
        2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False
    )
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    # Otherwise all forks would have the same random numbers where nobody gives a seed.
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    code = -signal.SIGINT
    with contextlib.suppress(KeyboardInterrupt):
        # Not before: it would be raised in the functions that have called this one.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = exit_code_of(arguments)
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code)


def exit_code_of(arguments: Sequence[str]) -> int:
    """Does what `python *arguments` does, and returns its exit code as that would."""
    try:
        interpret(arguments)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)
        return 1
    except BaseException as error:
        here = error.__traceback__
        while here is not None and here.tb_frame.f_code.co_filename in (__file__, runpy.__file__):
            here = here.tb_next
        sys.excepthook(type(error), error.with_traceback(here), here)
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


def interpret(arguments: Sequence[str]) -> None:
    """Runs a file, a module or code in this process, as its main program."""
    path = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    # The first entry is the folder of the program that forks.
    rest = [entry for entry in sys.path[not sys.flags.safe_path :] if entry not in path]
    sys.orig_argv = [sys.executable, *arguments]
    if arguments[0] == "-m":
        sys.argv = list(arguments[1:])
        sys.path[:] = [os.getcwd(), *path, *rest]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return
    source: str | bytes
    if arguments[0] == "-c":
        source, name, first, sys.argv = arguments[1], "<string>", "", ["-c", *arguments[2:]]
    else:
        name = os.path.abspath(arguments[0])
        source, first = Path(name).read_bytes(), os.path.dirname(os.path.realpath(name))
        sys.argv = list(arguments)
    sys.path[:] = [first, *path, *rest]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if name != "<string>":
        main.__file__ = name
    exec(compile(source, name, "exec", dont_inherit=True), vars(main))

"""Starts several workers of one run on this machine, as a scheduler does it on many.

    scripts/launch --workers 2 experiments/vae_mnist.py --epochs=5 --run_dir=runs/two

Flags after the experiment are its own; --strategy=multiworker is added.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

from vae_research.runs.cli.errors import FileSystemError, PeerLostError, RunError, UsageError
from vae_research.runs.cli.tools import exit_code_of
from vae_research.runs.cluster.tf_config import VARIABLE, Address, listening

USAGE = "Usage: scripts/launch --workers=N EXPERIMENT.py [--flag=value ...]"
_PROGRAM = "launch"
_STRATEGY = "--strategy=multiworker"
# Below those that systems give to outgoing connections: nobody else takes one meanwhile.
_PORTS = range(20000, 32000)
# Seconds that workers have for their end after one of them has ended with an error, and after they
# were told to end. A second signal from outside ends them at once.
_TO_END, _TO_SAVE = 90.0, 30.0
_BY_SIGNAL = (130, 143)
_LOOK = 0.1
_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Starts the workers and waits for them; returns an exit code.

    It is 0 if all have ended with 0. Otherwise it is that of the first worker that has ended for a
    reason of its own, or 8 if a worker was killed.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    return exit_code_of(_PROGRAM, lambda: _launch(given))


def _launch(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments[:1]):
        print(f"{USAGE}\n\n{__doc__}")
        return 0
    count, command = parse(arguments)
    with ExitStack() as stack:
        listeners = [stack.enter_context(_free_port()) for _ in range(count)]
        addresses = [f"127.0.0.1:{listener.getsockname()[1]}" for listener in listeners]
    workers = [
        _start(command, addresses, number, cores)
        for number, cores in enumerate(shares_of(sorted(os.sched_getaffinity(0)), count))
    ]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda got, frame: _send(workers, got))
    readers = [
        threading.Thread(target=_copy, args=(f"[{number}] ", stream, to), daemon=True)
        for number, worker in enumerate(workers)
        for stream, to in ((worker.stdout, sys.stdout), (worker.stderr, sys.stderr))
    ]
    for reader in readers:
        reader.start()
    codes = _wait(workers)
    for reader in readers:
        reader.join(timeout=5)  # a process that a worker has left behind may hold its output
    return whole(codes)


def parse(arguments: Sequence[str]) -> tuple[int, list[str]]:
    """Returns the number of workers, and the command of each.

    Raises:
        UsageError: there is no number, no experiment, or another strategy is asked for.
    """
    rest, count = list(arguments), ""
    while rest and rest[0].startswith("--"):
        name, equals, value = rest.pop(0).partition("=")
        if name != "--workers":
            raise UsageError(
                f"unknown flag {name} before the experiment; its own flags follow it. {USAGE}"
            )
        count = value if equals else (rest.pop(0) if rest else "")
    if not (count.isascii() and count.isdigit() and 1 <= int(count) <= 128):
        raise UsageError(f"--workers={count}: must be an integer from 1 to 128. {USAGE}")
    if not rest:
        raise UsageError(f"no experiment given. {USAGE}")
    experiment, *flags = rest
    if not Path(experiment).is_file():
        raise UsageError(f"there is no file {experiment}. {USAGE}")
    other = [flag for flag in flags if flag.startswith("--strategy") and flag != _STRATEGY]
    if other:
        raise UsageError(f"{other[0]}: the strategy of several workers is {_STRATEGY}.")
    return int(count), [
        sys.executable,
        experiment,
        *flags,
        *([_STRATEGY] * (_STRATEGY not in flags)),
    ]


def shares_of(cores: Sequence[int], count: int) -> list[list[int]]:
    """Returns the cores of each worker: about as many for each, or all if there are too few.

    >>> shares_of([0, 1, 2], 2), shares_of([0, 1], 3)
    ([[0, 2], [1]], [[0, 1], [0, 1], [0, 1]])
    """
    if len(cores) < count:
        return [list(cores)] * count
    return [list(cores[number::count]) for number in range(count)]


def whole(codes: Sequence[int]) -> int:
    """Returns the exit code of a launch, from those of its workers as they have ended.

    >>> whole([0, 0]), whole([-9, 8]), whole([8, 6]), whole([143, 143])
    (0, 8, 6, 143)
    """
    lost = PeerLostError.exit_code
    reasons = [code for code in codes if code > 0 and code != lost]
    return reasons[0] if reasons else lost * any(codes)


def _free_port() -> Any:
    """Returns a socket that listens at a port of this machine."""
    for port in random.SystemRandom().sample(_PORTS, 100):
        with suppress(RunError):
            return listening(Address("127.0.0.1", port))
    raise FileSystemError(f"no free port was found between {_PORTS[0]} and {_PORTS[-1]}.")


def _start(
    command: Sequence[str], addresses: Sequence[str], number: int, cores: Sequence[int]
) -> subprocess.Popen[str]:
    task = {"type": "worker", "index": number}
    config = json.dumps({"cluster": {"worker": addresses}, "task": task})
    library, parent = ctypes.CDLL(None), os.getpid()

    def prepare() -> None:  # in the new process
        os.sched_setaffinity(0, cores)
        library.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)  # if this process is killed
        if os.getppid() != parent:
            os._exit(1)

    return subprocess.Popen(
        command,
        env={**os.environ, VARIABLE: config, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C in the terminal is for this process, which passes it on
        preexec_fn=prepare,  # noqa: PLW1509 - there is no other thread yet
    )


def _copy(prefix: str, stream: IO[str] | None, to: IO[str]) -> None:
    """Copies lines of a worker, so that each says whose it is."""
    for line in stream or ():
        with suppress(OSError, ValueError):  # nobody reads them any more
            to.write(prefix + line if line.endswith("\n") else f"{prefix}{line}\n")
            to.flush()


def _send(workers: Sequence[subprocess.Popen[str]], number: int) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.send_signal(number)


def _wait(workers: Sequence[subprocess.Popen[str]]) -> list[int]:
    """Waits for all workers; returns their exit codes in the order in which they have ended."""
    codes: dict[int, int] = {}
    deadline, told = float("inf"), 0
    while len(codes) < len(workers):
        for number, worker in enumerate(workers):
            code = worker.poll()
            if code is not None and number not in codes:
                codes[number] = code
                if code and code not in _BY_SIGNAL:  # after a signal others may save for long
                    deadline = min(deadline, time.monotonic() + _TO_END)
        if time.monotonic() >= deadline:  # a worker that ends has the others end; this one hangs
            _send(workers, signal.SIGKILL if told else signal.SIGTERM)
            deadline, told = time.monotonic() + _TO_SAVE, told + 1
        time.sleep(_LOOK)
    return list(codes.values())


if __name__ == "__main__":
    sys.exit(main())

"""Python processes that are cheap to make.

Python needs five seconds and more to import TensorFlow. A server imports it once, computes nothing,
and forks for every process that a test asks for: a fork after the first operation would hang. What
a fork runs is a file, a module or code, as the command line of Python says it, with its own folder,
environment, streams and signals, and it ends as Python ends. It does not show what happens while
TensorFlow is imported, nor another encoding of the standard streams: every kind of command also has
a test that starts a process of its own (`alone`).

There is one server per process of tests, which splits in two: one part has imported no more than
Keras, for programs that must not know this package, or import it by themselves. There is one more
server for each folder whose modules hide others, as those of the fixture `without_tensorflow` do.
Such a server imports only what needs no TensorFlow.
"""

import atexit
import contextlib
import functools
import gc
import importlib.util
import io
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]

# What a fork does is of the package, whose name a part of the server must not know.
_FORKS = importlib.util.spec_from_file_location(
    "forks_of_the_package", CHECKOUT / "vae_research" / "runs" / "cli" / "forks.py"
)
_forks = importlib.util.module_from_spec(_FORKS)
_FORKS.loader.exec_module(_forks)

# A guard against processes that hang; nothing here takes as long on any machine.
PATIENCE = 1800.0

NUMBER = struct.Struct("q")  # what a server answers: the process, and its exit code

# What the servers import, beside their own modules.
WITHOUT_TENSORFLOW = "vae_research.runs.cli.command"
WITHOUT_THE_PACKAGE = "keras h5py"
WITH_TENSORFLOW = (
    "vae_research.runs.session.training vae_research.losses.divergence sklearn.neighbors "
    "vae_research.losses.reconstruction vae_research.networks.dense matplotlib.figure"
)


# ---------------------------------------------------------------- for tests


def run(*arguments, **options):
    """Runs Python to its end; see `start`."""
    return start(*arguments, **options).ended()


def start(*arguments, cwd, first=None, package=True, **environment):
    """Forks a process that does what `python *arguments` does.

    Args:
        cwd: its working folder.
        first: a folder whose modules hide others.
        package: whether the process has imported this package; otherwise it has imported Keras.
        environment: variables besides those of this process.
    """
    server, asked = _server(first), list(map(str, arguments))
    return server.start(asked, str(cwd), variables(first, environment), 0 if package else 1)


def alone(*arguments, **options):
    """Runs a Python that was started as a shell does it, to its end; arguments as for `start`."""
    return start_alone(*arguments, **options).ended()


def start_alone(*arguments, cwd, first=None, **environment):
    """Starts a Python as a shell does it."""
    # A shell that starts pytest in the background has it, and all it starts, ignore Ctrl-C.
    listen = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL)"
    listen += "; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    streams = _Streams()
    process = subprocess.Popen(
        [sys.executable, "-c", listen, *map(str, arguments)],
        cwd=cwd,
        env=variables(first, environment),
        stdin=subprocess.DEVNULL,
        stdout=streams.files[0],
        stderr=streams.files[1],
    )

    def wait(seconds):
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError from error

    return Process(process.pid, streams, wait)


def variables(first=None, more=()):
    """The environment of a process that imports this checkout, and before it modules of `first`."""
    inherited = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    path = [str(first)] if first else []
    path += [str(CHECKOUT), *filter(None, [inherited.get("PYTHONPATH")])]
    return inherited | {"PYTHONPATH": os.pathsep.join(path)} | dict(more)


class Process:
    """A process that was started.

    Attributes, once it has ended:
        returncode: minus the number of a signal that ended it.
        stdout, stderr: what it wrote.
    """

    def __init__(self, pid, streams, wait):
        self.pid, self._streams, self._wait, self.returncode = pid, streams, wait, None

    def ended(self, seconds=PATIENCE):
        """Waits for its end, and returns it."""
        if self.returncode is None:
            try:
                self.returncode = self._wait(seconds)
            except BaseException as error:  # also where the wait itself was interrupted
                if seconds or not isinstance(error, TimeoutError):
                    self.send_signal(signal.SIGKILL)
                raise
            self.stdout, self.stderr = self._streams.read()
        return self

    def is_running(self):
        """Whether it has not ended yet."""
        with contextlib.suppress(TimeoutError):
            self.ended(seconds=0.0)
        return self.returncode is None

    def send_signal(self, number):
        """Sends it a signal, unless it has ended."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class _Streams:
    """Files without a name for standard output and standard error."""

    def __init__(self):
        self.files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115 (see `read`)

    def read(self):
        texts = []
        for file in self.files:
            with file:
                file.seek(0)
                texts.append(file.read().decode("utf-8"))
        return texts


@functools.cache
def _server(first):
    if first is None:
        return Server([WITH_TENSORFLOW, WITHOUT_THE_PACKAGE])
    return Server([WITHOUT_TENSORFLOW], first)


class Server:
    """A process that forks others; it ends with this one, which closes its standard input.

    Args:
        parts: what each part of the server has imported. The last part splits off first, and what
            it has imported is also in the others.
        first: a folder whose modules hide others.
    """

    def __init__(self, parts, first=None):
        self._folder = tempfile.TemporaryDirectory()
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (as long as the server)
        with contextlib.ExitStack() as listeners:
            described = []
            for number, modules in enumerate(parts):
                listener = listeners.enter_context(socket.socket(socket.AF_UNIX))
                listener.bind(self._address(number))
                listener.listen(64)
                described.append((listener.fileno(), modules.split()))
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forks", json.dumps(described)],
                cwd=CHECKOUT,
                env=variables(first, {"TF_CPP_MIN_LOG_LEVEL": "3"}),
                stdin=subprocess.PIPE,
                stderr=self._errors,
                pass_fds=[number for number, _ in described],
            )
        atexit.register(self.close)

    def _address(self, part):
        return os.path.join(self._folder.name, f"socket{part}")

    def start(self, arguments, cwd, environment, part=0):
        """Forks a part of the server; returns a `Process`."""
        streams = _Streams()
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self._address(part))
        asked = json.dumps([arguments, cwd, environment]).encode() + b"\n"
        numbers = [file.fileno() for file in streams.files]
        sent = socket.send_fds(connection, [asked], numbers)
        connection.sendall(asked[sent:])

        def answer(seconds):
            if not select.select([connection], [], [], seconds)[0]:
                raise TimeoutError
            got = connection.recv(NUMBER.size)
            assert got, f"the server of forks has ended: {self._said()}"
            return NUMBER.unpack(got)[0]

        return Process(answer(PATIENCE), streams, answer)

    def _said(self):
        self._errors.seek(0)
        return self._errors.read()

    def close(self):
        """Ends the server."""
        self._process.stdin.close()
        self._process.wait(timeout=PATIENCE)
        self._folder.cleanup()


def flush_nothing():
    """Has this process not wait for its disk; `tests/test_checkpoints.py` counts what is flushed.

    No test can see whether a flush has reached the disk, which takes up to a second.
    """
    os.fsync = lambda handle: None


# ---------------------------------------------------------------- in the server


def serve(listener):
    """Forks for every connection, until standard input ends."""
    running = {}  # connections of processes
    ended, told = os.pipe()
    for number in (ended, told):
        os.set_blocking(number, False)
    signal.set_wakeup_fd(told)
    signal.signal(signal.SIGCHLD, lambda *arguments: None)
    while True:
        ready, *_ = select.select([sys.stdin, listener, ended], [], [])
        if sys.stdin in ready:
            return
        if ended in ready:
            os.read(ended, 4096)
            for pid in list(running):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    with running.pop(pid) as connection, contextlib.suppress(OSError):
                        connection.sendall(NUMBER.pack(os.waitstatus_to_exitcode(status)))
        if listener in ready:
            connection, _ = listener.accept()
            asked, streams, *_ = socket.recv_fds(connection, 65536, 2)
            while not asked.endswith(b"\n"):
                asked += connection.recv(65536)
            pid = _forks.fork()
            if pid == 0:
                for stale in (connection, listener, *running.values()):
                    stale.close()
                for number in (ended, told):
                    os.close(number)
                arguments, cwd, environment = json.loads(asked)
                _forks.become(arguments, streams, cwd, environment)
            for number in streams:
                os.close(number)
            running[pid] = connection
            connection.sendall(NUMBER.pack(pid))


def split(parts):
    """Imports what the parts of a server need, and serves each of them in a process of its own."""
    flush_nothing()
    for at, (number, modules) in reversed(list(enumerate(parts))):
        gc.disable()  # nothing of what is imported is garbage
        for module in modules:
            importlib.import_module(module)
        gc.freeze()
        gc.enable()
        if at == 0 or _forks.fork() == 0:
            for other, _ in parts[:at]:
                os.close(other)
            if "matplotlib.figure" in sys.modules:
                # The first figure of a process loads fonts.
                sys.modules["matplotlib.figure"].Figure().add_subplot().figure.savefig(io.BytesIO())
            serve(socket.socket(fileno=number))
            return
        os.close(number)


if __name__ == "__main__":
    split(json.loads(sys.argv[1]))

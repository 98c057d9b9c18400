"""A fork does what a Python does that a shell starts: the same words, exit codes and signals."""

import signal

import pytest

from tests import forks

TELL = """
import atexit, os, signal, sys, threading, time
atexit.register(print, "at the exit")
print(__name__, sys.argv, sys.path[0], os.getcwd(), os.environ["COLOUR"], sys.stdin.read())
print(sys.modules["__main__"].__dict__ is globals(), globals().get("__file__"))
print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, file=sys.stderr)
class Annotated: size: int
print(Annotated.__annotations__)
threading.Thread(target=lambda: (time.sleep(0.1), print("a thread that is waited for"))).start()
"""
ENDS = {
    "the end": ("", 0),
    "a code": ("sys.exit(7)", 7),
    "no code": ("sys.exit()", 0),
    "words": ("sys.exit('some words')", 1),
    "an error": ("raise ValueError('wrong')", 1),
    "a signal": ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
    "Ctrl-C": ("signal.raise_signal(signal.SIGINT)", -signal.SIGINT),
}


@pytest.mark.parametrize("way", ["file", "module", "code"])
def test_a_fork_knows_what_a_process_knows(way, tmp_path, without_tensorflow):
    (tmp_path / "told.py").write_text(TELL)
    arguments = {"file": ["told.py"], "module": ["-m", "told"], "code": ["-c", TELL]}[way]
    options = {"cwd": tmp_path, "first": without_tensorflow, "COLOUR": "red"}
    ours, theirs = (run(*arguments, "--a=b c", **options) for run in (forks.run, forks.alone))
    assert ours.returncode == theirs.returncode == 0, ours.stderr
    assert (ours.stdout, ours.stderr) == (theirs.stdout, theirs.stderr)
    assert "a thread that is waited for\nat the exit\n" in ours.stdout


@pytest.mark.parametrize(("end", "unbuffered"), [*((end, "") for end in ENDS), ("a signal", "1")])
def test_a_fork_ends_as_a_process_does(end, unbuffered, tmp_path, without_tensorflow):
    line, code = ENDS[end]
    (tmp_path / "ends.py").write_text(f"import os, signal, sys\nprint('begun')\n{line}\n")
    options = {"cwd": tmp_path, "first": without_tensorflow, "PYTHONUNBUFFERED": unbuffered}
    ours, theirs = (run("ends.py", **options) for run in (forks.run, forks.alone))
    assert ours.returncode == theirs.returncode == code
    assert (ours.stdout, ours.stderr) == (theirs.stdout, theirs.stderr)


def test_forks_run_together_and_hear_signals(tmp_path, without_tensorflow):
    code = "import sys, time; print('begun', flush=True); time.sleep(float(sys.argv[1]))"
    options = {"cwd": tmp_path, "first": without_tensorflow}
    long, short = (forks.start("-c", code, seconds, **options) for seconds in (1000, 0))
    assert short.ended().returncode == 0
    assert long.is_running()
    long.send_signal(signal.SIGKILL)
    assert long.ended().returncode == -signal.SIGKILL
    assert not long.is_running()


# The process that forks takes note of signals, and each fork receives one before it does anything.
EARLY = """
import os, signal, sys
from vae_research.runs.cli import forks
handle = {"noted": lambda *arguments: None, "ignored": signal.SIG_IGN}[sys.argv[1]]
real = os.fork
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    def fork():
        pid = real()
        if pid == 0:
            os.kill(os.getpid(), number)
        return pid
    os.fork = fork
    signal.signal(number, handle)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    pid = forks.fork()
    if pid == 0:
        os._exit(99)
    assert signal.getsignal(number) is handle
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), end=" ")
"""


@pytest.mark.parametrize(("handle", "codes"), [("noted", "-2 -15 -1 "), ("ignored", "99 99 99 ")])
def test_a_signal_at_the_first_moment_of_a_fork_is_not_lost(
    handle, codes, tmp_path, without_tensorflow
):
    process = forks.run("-c", EARLY, handle, cwd=tmp_path, first=without_tensorflow)
    assert process.stdout == codes, process.stderr


def test_forks_have_entropy_of_their_own(tmp_path, without_tensorflow):
    code = "import random, numpy; print(random.random(), numpy.random.rand())"
    options = {"cwd": tmp_path, "first": without_tensorflow}
    assert len({forks.run("-c", code, **options).stdout for _ in range(2)}) == 2


def test_a_fork_computes_with_tensorflow(tmp_path):
    code = "import tensorflow as tf; print(float(tf.reduce_sum(tf.range(4.0))))"
    assert forks.run("-c", code, cwd=tmp_path).stdout == "6.0\n"


def test_a_fork_that_does_not_know_the_package_may_import_it(tmp_path):
    code = "import sys; print('keras' in sys.modules, 'vae_research' in sys.modules)"
    code += "; import vae_research; print(vae_research.__name__)"
    process = forks.run("-c", code, cwd=tmp_path, package=False)
    assert process.stdout == "True False\nvae_research\n", process.stderr
    assert forks.run("-c", code, cwd=tmp_path).stdout.startswith("True True\n")

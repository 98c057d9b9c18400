"""Workers of a run: TF_CONFIG, what they tell each other, what differs, and how they are launched.

Nothing here computes: the workers are threads, or processes that end before TensorFlow is imported.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

from tests import forks
from vae_research.checkpoints import CheckpointError
from vae_research.data import Data, DataError
from vae_research.runs.cli import signals
from vae_research.runs.cli.config import Config
from vae_research.runs.cli.errors import PeerLostError, RunError, TerminatedError, UsageError
from vae_research.runs.cluster import (
    agreement,
    channel,
    joined,
    launch,
    peers,
    rendezvous,
    tf_config,
)
from vae_research.runs.cluster.tf_config import Address, Task

TWO = {"worker": ["127.0.0.1:2222", "[::1]:2223"]}
FIRST = {"type": "worker", "index": 0}


def free_addresses(count):
    with ExitStack() as stack:
        listeners = [stack.enter_context(launch._free_port()) for _ in range(count)]
        return tuple(Address("127.0.0.1", each.getsockname()[1]) for each in listeners)


# ---------------------------------------------------------------- TF_CONFIG


def test_the_chief_comes_first():
    cluster = {"worker": ["b:2", "c:3"], "chief": ["a:1"]}
    task = {"type": "worker", "index": 1}
    found = tf_config.read({"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})})
    assert found == Task(2, (Address("a", 1), Address("b", 2), Address("c", 3)))
    found = tf_config.read({"TF_CONFIG": json.dumps({"cluster": TWO, "task": FIRST})})
    assert found.number == 0
    assert [str(address) for address in found.addresses] == TWO["worker"]


WRONG = {
    "not set": ("", "TF_CONFIG is not set"),
    "not JSON": ("{worker", "is not JSON"),
    "nested without end": ("[" * 100_000, "is not JSON"),
    "a list": ([], "not an object"),
    "no cluster": ({"task": FIRST}, '"cluster" is missing'),
    "no task": ({"cluster": TWO}, '"task" is missing'),
    "a cluster that is a list": ({"cluster": ["a:1"], "task": FIRST}, "\"cluster\" is ['a:1']"),
    "no worker": ({"cluster": {"worker": []}, "task": FIRST}, "names no worker"),
    "parameter servers": ({"cluster": TWO | {"ps": ["a:1"]}, "task": FIRST}, "type 'ps'"),
    "one address": ({"cluster": {"worker": "a:1"}, "task": FIRST}, "list of addresses"),
    "no port": ({"cluster": {"worker": ["host"]}, "task": FIRST}, "not an address HOST:PORT"),
    "port 0": ({"cluster": {"worker": ["host:0"]}, "task": FIRST}, "not an address"),
    "port 65536": ({"cluster": {"worker": ["host:65536"]}, "task": FIRST}, "not an address"),
    "IPv6 without brackets": ({"cluster": {"worker": ["::1:22"]}, "task": FIRST}, "not an address"),
    "a number": ({"cluster": {"worker": [2222]}, "task": FIRST}, "not an address"),
    "one address twice": ({"cluster": {"worker": ["a:1", "a:1"]}, "task": FIRST}, "twice"),
    "two chiefs": ({"cluster": {"chief": ["a:1", "b:1"]}, "task": FIRST}, "more than one"),
    "no such type": (
        {"cluster": TWO, "task": {"type": "chief", "index": 0}},
        "'chief', and \"cluster\" has 'worker'",
    ),
    "index too large": ({"cluster": TWO, "task": FIRST | {"index": 2}}, "tasks 0 to 1"),
    "index negative": ({"cluster": TWO, "task": FIRST | {"index": -1}}, "is -1"),
    "index a text": ({"cluster": TWO, "task": FIRST | {"index": "0"}}, "is '0'"),
    "index true": ({"cluster": TWO, "task": FIRST | {"index": True}}, "is True"),
}


@pytest.mark.parametrize(("value", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_tf_config_is_named(value, words):
    text = value if isinstance(value, str) else json.dumps(value)
    with pytest.raises(UsageError) as raised:
        tf_config.read({"TF_CONFIG": text})
    assert words in str(raised.value)
    assert raised.value.exit_code == 2


def test_an_address_must_be_free_and_of_this_machine():
    with launch._free_port() as listener:
        taken = Address("127.0.0.1", listener.getsockname()[1])
        with pytest.raises(PeerLostError, match=f"port {taken.port} of 127.0.0.1 is in use"):
            tf_config.check_address(taken)
    tf_config.check_address(taken)
    # A block that is kept for documentation (RFC 5737), and a name that no host has (RFC 6761).
    with pytest.raises(UsageError, match=r"this machine .* does not have that address"):
        tf_config.check_address(Address("203.0.113.7", 2222))
    with pytest.raises(UsageError, match=r"there is no host nowhere\.invalid"):
        tf_config.check_address(Address("nowhere.invalid", 2222))


def test_a_worker_has_one_device_of_its_processor():
    config = Config(strategy="multiworker", device="cpu:2")
    with pytest.raises(UsageError, match="--device=cpu:2: a worker has one"), joined(config):
        pass


def test_a_run_without_workers_is_alone():
    with joined(Config(strategy="none")):
        assert peers().gather("x", 3) == [3]
    with launch._free_port() as listener:
        port = listener.getsockname()[1]
    config = {"cluster": {"worker": [f"127.0.0.1:{port}"]}, "task": FIRST}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TF_CONFIG", json.dumps(config))
        with joined(Config(strategy="multiworker", device="auto", worker_timeout=1.0)):
            assert peers().count == 1


# ---------------------------------------------------------------- messages


@pytest.fixture(autouse=True)
def no_process_is_ended(monkeypatch):
    """A thread that notices a loss would end this process after a while."""
    monkeypatch.setattr(channel, "_TO_END", 1e6)
    yield
    for known in (signals._received, signals._of_others, signals._agreed):
        known.clear()


@contextmanager
def connected(count):
    """Gives workers that are connected with each other, and a function that calls one of each."""
    addresses = free_addresses(count)
    with ThreadPoolExecutor(count) as pool:
        asked = [
            pool.submit(rendezvous.connect, Task(number, addresses), 60.0, lambda sentence: None)
            for number in range(count)
        ]
        workers = [each.result() for each in asked]

        def at_once(function, among=workers):
            """Calls it for some workers at a time; returns results or errors."""
            waiting = [pool.submit(function, worker) for worker in among]
            return [each.exception() or each.result() for each in waiting]

        yield workers, at_once
        for worker in workers:
            worker.close(0)


def test_all_workers_get_the_values_of_all():
    with connected(3) as (_, at_once):
        for turn in range(20):
            found = at_once(lambda worker, turn=turn: worker.gather("x", [turn, worker.number]))
            assert found == [[[turn, number] for number in range(3)]] * 3


def test_a_worker_that_never_comes():
    addresses = free_addresses(2)
    said = []
    for number, other in ((0, 1), (1, 0)):
        with pytest.raises(PeerLostError) as raised:
            rendezvous.connect(Task(number, addresses), 0.5, said.append)
        expected = f"worker {other} at {addresses[other]} did not come within 0.5 seconds"
        assert expected in str(raised.value)


def test_a_worker_with_other_addresses_is_refused_by_both():
    first, second, third = free_addresses(3)
    tasks = Task(0, (first, second)), Task(1, (first, third))
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(rendezvous.connect, task, 60.0, print) for task in tasks]
    for error in (each.exception() for each in asked):
        assert isinstance(error, UsageError)
        assert f"TF_CONFIG of worker 1 has the addresses {first}, {third}" in str(error)


def test_a_stranger_at_the_port_is_left_alone():
    addresses = free_addresses(2)
    with ThreadPoolExecutor(2) as pool:
        chief = pool.submit(rendezvous.connect, Task(0, addresses), 60.0, print)
        answer = None
        while answer is None:
            try:
                with socket.create_connection((addresses[0].host, addresses[0].port)) as stranger:
                    stranger.sendall(b"GET / HTTP/1.1\r\n")
                    answer = stranger.recv(10)
            except ConnectionRefusedError:  # it does not listen yet
                continue
        assert answer == b""
        other = pool.submit(rendezvous.connect, Task(1, addresses), 60.0, print)
        for worker in (chief.result(), other.result()):
            worker.close(0)


ENDS = {
    "killed": (None, PeerLostError, "worker 1 at .* was lost"),
    "of bad data": (3, PeerLostError, "worker 1 has ended with exit code 3: no data"),
    "terminated": (143, TerminatedError, "worker 1 was terminated"),
    "interrupted": (130, KeyboardInterrupt, ""),
}


@pytest.mark.parametrize(("code", "kind", "words"), ENDS.values(), ids=ENDS)
def test_the_others_learn_how_a_worker_has_ended(code, kind, words):
    with connected(3) as (workers, at_once):
        if code is None:
            workers[1]._connections[0].shutdown(socket.SHUT_RDWR)  # as the system does it
        else:
            workers[1].close(code, "no data")
        error, *_ = at_once(lambda worker: worker.gather("x", 0), among=workers[:1])
        assert type(error) is kind
        if words:
            with pytest.raises(kind, match=words):
                raise error
        # The chief passes it on, by its own end.
        workers[0].close(error.exit_code if isinstance(error, RunError) else 130, str(error))
        error, *_ = at_once(lambda worker: worker.gather("x", 0), among=workers[2:])
        assert type(error) is kind
        if code in (130, 143):
            assert code - 128 in signals._of_others


def test_workers_that_do_not_do_the_same_are_told():
    with connected(2) as (_, at_once):
        errors = at_once(_gather_and_end)
        assert isinstance(errors[0], PeerLostError)
        assert "worker 1 is at 'an epoch', and this one at 'a step'" in str(errors[0])
        assert isinstance(errors[1], PeerLostError)


def _gather_and_end(worker):
    try:
        return worker.gather("an epoch" if worker.number else "a step", None)
    except PeerLostError as error:
        worker.close(error.exit_code, str(error))
        raise


# ---------------------------------------------------------------- what must be equal

SAME = {
    "flags": {"seed": 0, "run_dir": "runs/a"},
    "files": {"vae.py": "1"},
    "package": "1",
    "versions": {"keras": "3.15.0"},
    "checkpoint": None,
    "complete": False,
}
DIFFERENT = {
    "flags": ({"seed": 1, "run_dir": "runs/a"}, UsageError, "worker 2 has --seed=1, and worker 0"),
    "versions": ({"keras": "3.14.0"}, UsageError, "worker 2 has keras 3.14.0, and worker 0 has"),
    "files": ({"vae.py": "2"}, UsageError, r"vae\.py of worker 2"),
    "package": ("2", UsageError, "the package vae_research of worker 2"),
    "checkpoint": ("step-40", CheckpointError, "worker 2 finds the checkpoint step-40 and worker"),
    "complete": (True, CheckpointError, "worker 2 finds a complete run and worker 0 no checkpoint"),
}


@pytest.mark.parametrize("name", SAME)
def test_what_differs_is_named(name):
    value, kind, words = DIFFERENT[name]
    agreement.refuse_difference([SAME] * 3)
    with pytest.raises(kind, match=words):
        agreement.refuse_difference([SAME, SAME, SAME | {name: value}])


def test_other_data_are_refused():
    data = Data.from_arrays(np.zeros([4, 2], "float32"))
    other = Data.from_arrays(np.ones([4, 2], "float32"))
    agreement.refuse_other_data(data, [data.fingerprint] * 2)
    with pytest.raises(DataError, match="of worker 1 are not those of worker 0"):
        agreement.refuse_other_data(data, [data.fingerprint, other.fingerprint])


# ---------------------------------------------------------------- signals


def test_signals_count_when_all_know_of_them():
    others = [[], [signal.SIGTERM]]
    with signals.agree_by(lambda own: own + others.pop(0)):
        signals.receive(signal.SIGINT)
        assert not signals.is_received()
        signals.raise_if_received()
        signals._received.clear()
        signals._of_others.clear()
        signals.agree()
        assert not signals.is_received()
        signals.agree()
        assert signals.is_received()
        with pytest.raises(TerminatedError):
            signals.raise_if_received()
    assert not signals.is_received()


@pytest.mark.parametrize("agreed", [False, True])
def test_a_process_that_has_agreed_to_a_signal_saves_as_long_as_it_takes(agreed, monkeypatch):
    ended = []
    monkeypatch.setattr(channel, "_TO_END", 0.0)
    monkeypatch.setattr(channel, "_end_at_once", ended.append)
    with signals.agree_by(lambda own: [signal.SIGTERM] * agreed):
        signals.agree()
    ours, others = socket.socketpair()
    with ours, others:
        task = Task(0, free_addresses(2))
        worker = channel.Connected(task, {})  # without a thread: what it reads is read here
        others.sendall(b'{"end": 143, "message": ""}\n')
        worker._read(1, ours)
    assert [type(error) for error in ended] == [TerminatedError] * (not agreed)


# ---------------------------------------------------------------- the guard


def test_a_call_that_holds_pythons_lock_is_ended(tmp_path):
    if not sys.platform.startswith("linux"):
        pytest.skip("the guard is for Linux")
    code = (
        "import ctypes, signal\n"
        "from vae_research.runs.cluster.guard import ended_after\n"
        "with ended_after(3600, 'late'): pass\n"  # which ends before
        "assert signal.getsignal(signal.SIGFPE) == signal.SIG_DFL\n"
        "with ended_after(0.1, 'too late'):\n"
        "    ctypes.PyDLL(None).sleep(3600)\n"  # unlike CDLL, it keeps the lock
    )
    found = forks.run("-c", code, cwd=tmp_path)
    assert (found.returncode, found.stderr) == (8, "too late\n")


# ---------------------------------------------------------------- launch


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "--workers=: must be"),
        (["--workers=0", "a.py"], "--workers=0: must be"),
        (["--workers", "two", "a.py"], "--workers=two: must be"),
        (["--epochs=2", "a.py"], "unknown flag --epochs before the experiment"),
        (["--workers=2"], "no experiment given"),
        (["--workers=2", "nothing.py"], "there is no file nothing.py"),
        (["--workers=2", __file__, "--strategy=mirrored"], "--strategy=mirrored: the strategy of"),
    ],
)
def test_a_wrong_launch_is_one_line(given, words, capsys):
    assert launch.main(given) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"launch: {words}")
    assert printed.err.count("\n") == 1
    assert not printed.out


WORKER = """
import json, os, signal, sys, time
task = json.loads(os.environ["TF_CONFIG"])
number, count = task["task"]["index"], len(task["cluster"]["worker"])
print(number, count, sys.argv[1:], len(os.sched_getaffinity(0)), flush=True)
print("an error", file=sys.stderr, flush=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
if {wait}:
    while True:
        time.sleep(1)
if number == 1:
    {end}
"""


@pytest.mark.parametrize(
    ("end", "code"), [("pass", 0), ("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", 8)]
)
def test_a_launch_says_whose_line_it_is_and_how_it_ended(tmp_path, end, code):
    (tmp_path / "worker.py").write_text(WORKER.format(wait=False, end=end))
    found = forks.run(
        *("-m", "vae_research.runs.cluster.launch", "--workers=2", "worker.py", "--seed=1"),
        cwd=tmp_path,
        package=False,
    )
    assert found.returncode == code
    cores = len(os.sched_getaffinity(0))
    shares = [-(-cores // 2), cores // 2] if cores > 1 else [1, 1]
    assert sorted(found.stdout.splitlines()) == [
        f"[{number}] {number} 2 ['--seed=1', '--strategy=multiworker'] {shares[number]}"
        for number in range(2)
    ]
    assert sorted(found.stderr.splitlines()) == ["[0] an error", "[1] an error"]


def test_a_launch_passes_signals_on(tmp_path):
    text = WORKER.format(wait=True, end="pass").replace(
        "if True:", "open(f'ready-{number}', 'w').close()\nif True:"
    )
    (tmp_path / "worker.py").write_text(text)
    process = forks.start(
        *("-m", "vae_research.runs.cluster.launch", "--workers=2", "worker.py"),
        cwd=tmp_path,
        package=False,
    )
    while not all((tmp_path / f"ready-{number}").exists() for number in range(2)):
        assert process.is_running()
    process.send_signal(signal.SIGTERM)
    assert process.ended().returncode == 143


# ---------------------------------------------------------------- Slurm

SCONTROL = '#!/bin/sh\n[ "$*" = "show hostnames node[1-2]" ] && printf "node1\\nnode2\\n"\n'
# As srun does it: the command on every node, at a time.
SRUN = """#!/bin/bash
[[ $1 == --* ]] && shift
for index in 0 1; do SLURM_PROCID=$index "$@" & done
wait
"""
RUN = '#!/bin/bash\necho "$TF_CONFIG $*"\n'


def test_slurm_gives_each_worker_its_task(tmp_path):
    """With stand-ins for the commands of Slurm, which this machine does not have."""
    submitted, commands = tmp_path / "checkout", tmp_path / "bin"
    for file, text in (
        (commands / "scontrol", SCONTROL),
        (commands / "srun", SRUN),
        (submitted / "scripts" / "run", RUN),
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "123456",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_SUBMIT_DIR": str(submitted),
    }
    script = forks.CHECKOUT / "scripts" / "slurm.sbatch"
    command = ["bash", str(script), "vae.py", "--note=two words"]
    lines = subprocess.check_output(command, env=environment, text=True).splitlines()
    tasks = []
    for line in lines:
        text, _, flags = line.partition(" vae.py ")
        assert flags == "--note=two words --strategy=multiworker"
        tasks.append(tf_config.read({"TF_CONFIG": text}))
    addresses = Address("node1", 23456), Address("node2", 23456)
    assert sorted(task.number for task in tasks) == [0, 1]
    assert all(task.addresses == addresses for task in tasks)


def test_a_signal_after_the_end_of_another_worker_is_the_first_one(monkeypatch):
    monkeypatch.setattr(signals, "_commands", [True])
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail("ended at once, perhaps in a save"))
    try:
        signals.receive(signal.SIGTERM)
        signals._record(signal.SIGTERM, None)
        with pytest.raises(TerminatedError):
            signals.raise_if_received()
    finally:
        signals._received.clear()
        signals._of_others.clear()

"""Several processes train one model: the same numbers as one process, whoever ends and whenever."""

import json
import os
import random
import signal
import time
from contextlib import ExitStack

import numpy as np
import pytest

from tests import forks
from tests.proofs import SOAK
from vae_research import checkpoints
from vae_research.runs.cluster import launch
from vae_research.runs.session import directory

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
]

EXPERIMENT = '''
import json, os

import keras

import vae_research as vr
from vae_research import runs


class End(keras.callbacks.Callback):
    """Sends a signal to this worker after a step: END=worker:step:signal."""

    def get_state(self):
        return {}

    def set_state(self, state):
        pass

    def on_train_batch_end(self, batch, logs=None):
        number = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
        worker, step, which = map(int, os.environ.get("END", "0:0:0").split(":"))
        if (number, self.model.step) == (worker, step):
            os.kill(os.getpid(), which)


def build(config, data):
    return vr.VAE(
        vr.dense_encoder(data.shape, config.latent_dim, hidden_units=(8,)),
        vr.GaussianBottleneck(config.latent_dim),
        vr.dense_decoder(data.shape, config.latent_dim, hidden_units=(8,)),
        [vr.Bernoulli(), vr.KLDivergence(weight=vr.LinearWarmup(epochs=3))],
        seed=config.noise_seed,
    )


def data(config):
    """As --dataset; DATA=worker:file gives a worker another file."""
    worker, _, file = os.environ.get("DATA", "").partition(":")
    if file and json.loads(os.environ["TF_CONFIG"])["task"]["index"] == int(worker):
        config = config.replace(dataset=file)
    return runs.load_data(config)


def callbacks(config, data):
    return [End()]


if __name__ == "__main__":
    runs.main(build, data=data, callbacks=callbacks)
'''


def images(seed):
    return (np.random.default_rng(seed).random([105, 6, 6, 1]) < 0.3).astype("uint8")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with an experiment and two data sets."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "two.py").write_text(EXPERIMENT)
    for seed in (0, 1):
        values = images(seed)
        splits = {"x_train": values[:85], "x_validation": values[85:95], "x_test": values[95:]}
        np.savez(folder / f"data-{seed}.npz", **splits)
    return folder


# 85 rows, 50 steps. 17 rows are not the same for two workers.
FLAGS = ["--batch_size=17", "--epochs=10", "--steps_per_call=2", "--importance_samples=2"]
COMMON = ["two.py", "--dataset=data-0.npz", "--latent_dim=2", "--jit=off", "--notensorboard"]
COMMON += ["--learning_rate=0.01"]


def start(lab, count, *flags, each=None, strategy="multiworker", timeout=1800, **environment):
    """Starts workers; `each` has more flags for some of them."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(launch._free_port()) for _ in range(count)]
        workers = [f"127.0.0.1:{listener.getsockname()[1]}" for listener in listeners]
    started = []
    for index in range(count):
        task = {"type": "worker", "index": index}
        started.append(
            forks.start(
                *(
                    *COMMON,
                    *flags,
                    f"--worker_timeout={timeout}",
                    f"--strategy={strategy}",
                    *(each or {}).get(index, []),
                ),
                cwd=lab,
                TF_CONFIG=json.dumps({"cluster": {"worker": workers}, "task": task}),
                **environment,
            )
        )
    return started


def codes(workers):
    return [worker.ended().returncode for worker in workers]


def run(lab, count, *flags, **how):
    workers = start(lab, count, *flags, **how)
    return codes(workers), [worker.stderr for worker in workers]


def weights(run_dir):
    newest = checkpoints.search(run_dir / "checkpoints").newest
    with np.load(newest.path / "variables.npz") as found:
        return {name: found[name] for name in found.files}


def state(run_dir):
    """Returns what must be equal bit for bit."""
    records = directory.read_metrics(run_dir / directory.METRICS)
    for record in records:
        del record["seconds"], record["images_per_second"]
    summary = directory.read_summary(run_dir)
    return summary["state_sha256"], summary["test"], records


@pytest.fixture(scope="module")
def unbroken(lab):
    """Two workers that nobody disturbs."""
    ended, errors = run(lab, 2, *FLAGS, "--run_dir=unbroken")
    assert ended == [0, 0], errors
    assert errors == ["", ""]
    return lab / "unbroken"


@pytest.mark.parametrize("batch_size", [17, 20])
def test_two_processes_compute_what_one_does(lab, unbroken, batch_size):
    one, two = lab / f"one-{batch_size}", unbroken
    flags = [*FLAGS[1:], f"--batch_size={batch_size}"]
    alone = run(lab, 1, *flags, f"--run_dir={one}", strategy="none")
    assert alone == ([0], [""])
    if batch_size != 17:
        two = lab / f"two-{batch_size}"
        assert run(lab, 2, *flags, f"--run_dir={two}") == ([0, 0], ["", ""])
    expected, found = weights(one), weights(two)
    assert expected.keys() == found.keys()
    numbers = [name for name, values in expected.items() if values.dtype == np.float32]
    first, second = (
        np.concatenate([each[name].ravel() for name in numbers]) for each in (expected, found)
    )
    assert np.linalg.norm(first - second) <= 1e-5 * np.linalg.norm(first)
    assert sorted(path.name for path in one.iterdir()) == sorted(
        path.name for path in two.iterdir()
    )
    records = [directory.read_metrics(run_dir / directory.METRICS) for run_dir in (one, two)]
    assert [record["step"] for record in records[1]] == [5 * epoch for epoch in range(1, 11)]
    for ours, theirs in zip(*records, strict=True):
        for name in ("train/loss", "validation/loss"):
            assert theirs[name] == pytest.approx(ours[name], rel=1e-5)


def test_the_chief_alone_writes(unbroken):
    config = directory.read_config(unbroken)
    assert config["flags"]["strategy"] == "multiworker"
    assert len(config["sessions"]) == 1
    assert config["reproducibility"]["profile"]["replicas"] == "2"


# Workers end in the middle of an epoch: by a signal, which all take, or killed.
ENDINGS = [
    (f"1:7:{signal.SIGTERM:d}", [143, 143]),
    (f"0:12:{signal.SIGINT:d}", [130, 130]),
    (f"1:22:{signal.SIGKILL:d}", [8, -9]),
    (f"0:32:{signal.SIGKILL:d}", [-9, 8]),
]


def test_a_run_goes_on_after_each_way_in_which_a_worker_ends(lab, unbroken, tmp_path):
    """One after the other in one run: one comparison at its end holds for all of them."""
    run_dir = tmp_path / "run"
    flags = [*FLAGS, f"--run_dir={run_dir}", "--checkpoint_steps=2"]
    for end, expected in ENDINGS if SOAK else (ENDINGS[0], ENDINGS[3]):
        ended, errors = run(lab, 2, *flags, END=end)
        assert ended == expected, errors
        worker, step, which = map(int, end.split(":"))
        found = checkpoints.search(run_dir / "checkpoints")
        assert not found.damaged
        saved = 5 * found.newest.epoch + found.newest.position
        if which == signal.SIGKILL:
            assert 8 in expected
            assert f"worker {worker} " in errors[1 - worker]
            assert errors[1 - worker].count("\n") == 1
            assert step - 6 <= saved <= step
        else:  # all have come to the same step, at most a call later
            assert step <= saved <= step + 2
    ended, errors = run(lab, 2, *flags)
    assert ended == [0, 0], errors
    assert state(run_dir) == state(unbroken)
    assert directory.read_summary(run_dir)["reproducibility"] == "bit-exact"


def test_with_another_number_of_workers_it_is_valid_and_says_so(lab, tmp_path):
    run_dir = tmp_path / "run"
    flags = ["--batch_size=17", "--importance_samples=2", f"--run_dir={run_dir}"]
    assert run(lab, 2, *flags, "--epochs=1")[0] == [0, 0]
    ended, errors = run(lab, 1, *flags, "--epochs=2", strategy="none")
    assert ended == [0]
    assert "valid, not bit-exact: replicas" in errors[0]
    ended, errors = run(lab, 2, *flags, "--epochs=3")
    assert ended == [0, 0]
    assert "valid, not bit-exact" in errors[0]
    assert errors[1] == ""
    assert [each["epoch"] for each in directory.read_metrics(run_dir / "metrics.jsonl")] == [
        1,
        2,
        3,
    ]


BAD = {
    "flags": ({"each": {1: ["--seed=1"]}}, 2, "worker 1 has --seed=1, and worker 0 has --seed=0"),
    "data": ({"DATA": "1:data-1.npz"}, 3, "of worker 1 are not those of worker 0"),
    "one row": ({"each": dict(enumerate([["--batch_size=1"]] * 2))}, 2, "number of replicas, 2"),
}


@pytest.mark.parametrize(("how", "code", "words"), BAD.values(), ids=BAD)
def test_what_workers_cannot_train_is_refused_by_all(lab, tmp_path, how, code, words):
    run_dir = tmp_path / "run"
    ended, errors = run(lab, 2, *FLAGS[1:], f"--run_dir={run_dir}", **how)
    assert ended == [code] * 2
    for error in errors:
        assert error.count("\n") == 1
        assert words in error
    assert not run_dir.exists()


def test_a_worker_that_refuses_its_flags_or_never_comes(lab, tmp_path):
    run_dir = tmp_path / "run"
    flags = [*FLAGS, f"--run_dir={run_dir}"]
    ended, errors = run(lab, 2, *flags, timeout=1, each={1: ["--kl_units=0"]})
    assert ended == [8, 2]
    assert "worker 1 at 127.0.0.1:" in errors[0]
    assert "did not come within 1 seconds" in errors[0]
    assert not run_dir.exists()


@pytest.mark.parametrize("text", ["", "{", '{"cluster": {"worker": ["a"]}}'])
def test_a_wrong_tf_config_is_one_line(lab, tmp_path, text):
    flags = [*COMMON, *FLAGS, f"--run_dir={tmp_path / 'run'}", "--strategy=multiworker"]
    ended = forks.run(*flags, cwd=lab, TF_CONFIG=text)
    assert ended.returncode == 2
    assert ended.stderr.startswith("two: ")
    assert "TF_CONFIG" in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("index", [0, 1])
def test_a_port_in_use_is_one_line(lab, tmp_path, index):
    with launch._free_port() as listener:
        taken = listener.getsockname()[1]
        workers = ["127.0.0.1:1", "127.0.0.1:2"]
        workers[index] = f"127.0.0.1:{taken}"
        config = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        flags = [*COMMON, *FLAGS, f"--run_dir={tmp_path / 'run'}", "--strategy=multiworker"]
        ended = forks.run(*flags, cwd=lab, TF_CONFIG=json.dumps(config))
    assert ended.returncode == 8
    assert f"port {taken} of 127.0.0.1 is in use by another process" in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10))
def test_a_kill_at_random(lab, unbroken, tmp_path, seed):
    """Wherever it falls, once all are connected: before the first step, in one, or at the end."""
    rng = random.Random(seed)
    run_dir = tmp_path / "run"
    flags = [*FLAGS, f"--run_dir={run_dir}", "--checkpoint_steps=2"]
    workers = start(lab, 2, *flags)
    victim, other = rng.sample(workers, 2)
    moment = rng.choice(["lock", "config.json", "metrics.jsonl", "checkpoints", "figures.npz"])
    while not (run_dir / moment).exists() and victim.is_running():
        time.sleep(0.001)
    time.sleep(rng.random())
    victim.send_signal(signal.SIGKILL)
    began = time.monotonic()
    other.ended()
    seconds = time.monotonic() - began
    assert seconds < 60
    victim.ended()  # by the signal, or before it; in the end of a complete run it is not missed
    may_be = (0, 8) if (run_dir / "summary.json").exists() else (8,)
    assert other.returncode in may_be, other.stderr
    assert other.returncode == 0 or other.stderr.count("\n") == 1
    ended, errors = run(lab, 2, *flags)
    assert ended == [0, 0], errors
    assert state(run_dir) == state(unbroken)

"""Runs that are killed go on as if they had not been: bit for bit, wherever the kill falls.

Each promise of the README's section "What happens when ..." is proved here at a size for every day.
`VAE_RESEARCH_PROOFS=full` runs the large one. Every proof has mutants that it must catch.
"""

import collections
import json
import os
import random

import numpy as np
import pytest

from tests.trials import MUTANTS, Trials
from vae_research import checkpoints, manifests

FULL = os.environ.get("VAE_RESEARCH_PROOFS") == "full"
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

# 38 rows in batches of 8: five steps an epoch, the last one smaller.
IMAGES = np.random.default_rng(0).integers(0, 256, (48, 8, 8), dtype=np.uint8)
WALL_CLOCK = {"seconds", "images_per_second"}
RUNS = {
    "dense, XLA": ["--network=dense", "--jit=on", "--steps_per_call=2"],
    "dense": ["--network=dense", "--jit=off", "--steps_per_call=3"],
    "convolutional": ["--network=convolutional", "--jit=off", "--steps_per_call=1"],
}
OFTEN, SELDOM = "--checkpoint_steps=3", "--checkpoint_steps=6"
COMMON = ["--epochs=4", "--binarize=dynamic"]


@pytest.fixture(scope="module")
def trials():
    server = Trials()
    yield server
    server.close()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, train=IMAGES[:38], validation=IMAGES[38:43], test=IMAGES[43:])
    return f"--dataset={path}"


class Outcome(collections.namedtuple("Outcome", "values metrics")):
    """What two runs must agree in: every variable, and every figure that is no time."""


def outcome(run_dir):
    checkpoint = checkpoints.newest(run_dir / "checkpoints")
    content = manifests.verify(checkpoint.path)
    values = [value.tobytes() for value in manifests.read_values(checkpoint.path, content)]
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    metrics = [{k: v for k, v in found.items() if k not in WALL_CLOCK} for found in records]
    return Outcome([checkpoint.epoch, checkpoint.position, *values], metrics)


@pytest.fixture(scope="module")
def unbroken(trials, dataset, tmp_path_factory):
    """Outcomes of runs that nothing happened to, by name, and how many calls they took."""
    found = {}

    def of(name, mutant=None):
        if (name, mutant) not in found:
            run_dir = tmp_path_factory.mktemp("unbroken") / "run"
            how = {"mutant": mutant} if mutant else {}
            result = trials.run(run_dir, dataset, *COMMON, SELDOM, *RUNS[name], **how)
            assert result["status"] == 0, result["stderr"]
            found[name, mutant] = outcome(run_dir)
        return found[name, mutant]

    return of


def go_on(trials, run_dir, *flags, **how):
    result = trials.run(run_dir, *flags, **how)
    assert result["status"] == 0, result["stderr"]
    return outcome(run_dir)


def some_kills(seed, count):
    """Kills at random: in a save at one of its effects, or in a call of the steps and after it."""
    random_ = random.Random(seed)
    for number in range(count):
        if number % 3 == 0:
            yield {"kill_at_effect": random_.randrange(26)}
        else:
            yield {"kill_in_call": random_.randrange(1, 8), "after": random_.uniform(0.0, 0.02)}


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_goes_on_bit_for_bit(name, trials, dataset, unbroken, tmp_path):
    wanted, phases = unbroken(name), collections.Counter()
    flags = [dataset, *COMMON, SELDOM, *RUNS[name]]
    for number, kill in enumerate(some_kills(name, 40 if FULL else 3)):
        run_dir = tmp_path / f"run{number}"
        result = trials.run(run_dir, *flags, **kill)
        assert result["status"] in (-9, 0), result["stderr"]  # a short run may be faster
        phases[result["phase"].partition(" of ")[0]] += 1
        # What a kill leaves is whole or has no name.
        assert checkpoints.search(run_dir / "checkpoints").damaged == ()
        assert go_on(trials, run_dir, *flags) == wanted
    print(name, dict(phases))


def test_twenty_kills_in_one_run(trials, dataset, unbroken, tmp_path):
    flags = [dataset, *COMMON, OFTEN, *RUNS["dense"]]
    run_dir = tmp_path / "run"
    random_ = random.Random(1)
    for _ in range(20 if FULL else 3):
        # The first call is killed now and then: no progress is made, and none is lost.
        call = random_.choice([1, 1, 2])
        after = random_.uniform(0.0, 0.005)
        result = trials.run(run_dir, *flags, kill_in_call=call, after=after)
        assert result["status"] == -9, result
    assert go_on(trials, run_dir, *flags) == unbroken("dense")


@pytest.mark.parametrize("name", RUNS if FULL else ["dense"])
@pytest.mark.parametrize(("signal", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 143)])
def test_a_signal_saves_at_its_step(signal, code, name, trials, dataset, unbroken, tmp_path):
    flags = [dataset, *COMMON, SELDOM, *RUNS[name]]
    run_dir = tmp_path / "run"
    random_ = random.Random(code)
    for number in range(30 if FULL else 1):
        run_dir = tmp_path / f"run{number}"
        call, after = random_.randrange(3, 8), random_.uniform(0.0, 0.005)
        result = trials.run(run_dir, *flags, kill_in_call=call, after=after, signal=signal)
        assert result["status"] == code, result
        assert result["stderr"].endswith("goes on with the same command and --run_dir.\n")
        # Not one call is lost; the signal may have come before or after the one that is counted.
        per_call = int(RUNS[name][-1][-1])
        starts = [epoch * 5 + at for epoch in range(4) for at in range(0, 5, per_call)]
        saved = checkpoints.newest(run_dir / "checkpoints").step
        assert starts[call - 1] <= saved <= starts[call - 1] + 2 * per_call
        assert go_on(trials, run_dir, *flags) == unbroken(name)


@pytest.mark.parametrize("where", ["term", "callback"])
def test_an_error_of_the_user_is_shown_after_a_save(where, trials, dataset, unbroken, tmp_path):
    flags = [dataset, *COMMON, SELDOM, *RUNS["dense"]]
    run_dir = tmp_path / "run"
    result = trials.run(run_dir, *flags, error_in=where)
    assert result["status"] == 70  # the server's, for an error that nobody has caught
    assert "Traceback" in result["stderr"]
    assert f"RuntimeError: of the user's {where}" in result["stderr"]
    # Two calls an epoch: the sixth begins at step 13, and the third epoch ends at step 15.
    assert checkpoints.newest(run_dir / "checkpoints").step == {"term": 13, "callback": 15}[where]
    assert go_on(trials, run_dir, *flags) == unbroken("dense")


def test_simultaneous_starts_are_one_run(dataset, tmp_path):
    count = 20 if FULL else 3
    servers = [Trials() for _ in range(count)]
    for server in servers:
        server.start(tmp_path / "run", dataset, *COMMON, "--epochs=4", SELDOM, *RUNS["dense"])
    codes = sorted(server.end()["status"] for server in servers)
    for server in servers:
        server.close()
    assert codes == [0, *[5] * (count - 1)]


@pytest.mark.parametrize("mutant", sorted(set(MUTANTS) - {"written_in_place"}))
def test_the_proof_notices_what_is_lost(mutant, trials, dataset, unbroken, tmp_path):
    flags = [dataset, *COMMON, SELDOM, *RUNS["dense"]]
    run_dir = tmp_path / "run"
    wanted = unbroken("dense", mutant if mutant == "noise_with_state" else None)
    result = trials.run(run_dir, *flags, kill_at_effect=16, mutant=mutant)
    assert result["status"] == -9, result
    assert checkpoints.newest(run_dir / "checkpoints").position
    result = trials.run(run_dir, *flags, mutant=mutant)
    assert result["status"] != 0 or outcome(run_dir) != wanted


def test_the_proof_notices_a_checkpoint_that_is_written_in_place(trials, dataset, tmp_path):
    flags = [dataset, *COMMON, OFTEN, *RUNS["dense"]]
    result = trials.run(tmp_path / "run", *flags, kill_at_effect=12, mutant="written_in_place")
    assert result["status"] == -9, result
    assert checkpoints.search(tmp_path / "run" / "checkpoints").damaged != ()

"""The same command gives the same weights, to the last bit, in every fresh process.

Two processes of a set-up run at a time, so that they disturb each other's threads. Every day they
are forks, whose entropy differs; with `--soak` one of them is started as a shell does it, so that
their hashes of strings differ too, as those of the runs in test_runs.py do every day.
"""

import json
from pathlib import Path

import pytest

from tests import forks
from tests.proofs import SOAK, tell

CHECKOUT = Path(__file__).resolve().parents[1]
NETWORKS = {
    "dense": ["--network=dense", "--hidden_units=16"],
    "convolutional": ["--network=convolutional", "--hidden_units=8"],
}
# XLA has no fast kernels for a convolution on a CPU; the pair is in the large proof. Asked for
# nothing, a run chooses XLA for a dense network.
SETUPS = [("dense", "auto"), ("convolutional", "off")]
SETUPS += [("dense", "off"), ("convolutional", "on")] if SOAK else []
# Of 38 images. A last batch that is smaller is compiled once more: it is in the large proof, and
# every day in the runs of test_survival.py.
BATCH = "--batch_size=8" if SOAK else "--batch_size=19"

# What is not a function of the seed: the noise of a step, from the system's entropy. (A generator
# that goes on is hidden state, and the run is refused.)
MUTANT = """
import os
import runpy
import sys

from vae_research import randomness, steps

entropy = int.from_bytes(os.urandom(4))
steps.training_key = lambda seed, step: randomness.training_key(entropy, step)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def begin(run_dir, dataset, flags, before=(), start=forks.start):
    """Begins a training; `weights_of` ends it."""
    command = [*before, CHECKOUT / "experiments/vae_mnist.py"]
    command += [f"--run_dir={run_dir}", dataset, "--epochs=2", BATCH, "--latent_dim=2"]
    command += ["--importance_samples=2", "--notensorboard", "--verbose=0", *flags]
    return start(*command, cwd=CHECKOUT)


def weights_of(process, run_dir):
    """The hash in summary.json."""
    assert process.ended().returncode == 0, process.stderr
    return json.loads((run_dir / "summary.json").read_text())["weights_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize(("network", "jit"), SETUPS)
def test_fresh_processes_give_one_hash(network, jit, dataset, tmp_path):
    flags, found = [*NETWORKS[network], f"--jit={jit}"], []
    for pair in range(3 if SOAK else 1):
        folders = [tmp_path / f"{pair}{place}" for place in "ab"]
        starts = forks.start_alone if SOAK else forks.start, forks.start
        processes = [
            begin(folder, dataset, flags, start=start)
            for folder, start in zip(folders, starts, strict=True)
        ]
        found += map(weights_of, processes, folders)
    tell(f"repeatability, {network}, jit {jit}", processes=len(found), hashes=sorted(set(found)))
    assert len(set(found)) == 1


@pytest.mark.slow
def test_the_proof_notices_noise_of_no_seed(dataset, tmp_path):
    flags, folders = [*NETWORKS["dense"], "--jit=off"], [tmp_path / "a", tmp_path / "b"]
    processes = [begin(folder, dataset, flags, before=["-c", MUTANT]) for folder in folders]
    assert len(set(map(weights_of, processes, folders))) == 2

"""The same command gives the same weights, to the last bit, in every fresh process.

The processes of a set-up run two at a time, so that they disturb each other's threads.
"""

import concurrent.futures
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.proofs import FULL, tell

CHECKOUT = Path(__file__).resolve().parents[1]
NETWORKS = {
    "dense": ["--network=dense", "--hidden_units=16"],
    "convolutional": ["--network=convolutional", "--hidden_units=8"],
}
# XLA has no fast kernels for a convolution on a CPU; the pair is in the large proof.
SETUPS = [("dense", "on"), ("convolutional", "off")]
SETUPS += [("dense", "off"), ("convolutional", "on")] if FULL else []

# What is not a function of the seed: the noise of a step, from a generator of the system's entropy.
MUTANT = """
import runpy
import sys

import tensorflow as tf

from vae_research import model

generator = tf.random.Generator.from_non_deterministic_state(alg="philox")
model.training_key = lambda seed, step: generator.uniform_full_int([2], tf.int64)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def weights_of(run_dir, dataset, flags, before=()):
    """Trains in a process of its own; returns the hash in summary.json."""
    command = [sys.executable, *before, str(CHECKOUT / "experiments/vae_mnist.py")]
    command += [f"--run_dir={run_dir}", dataset, "--epochs=2", "--batch_size=8", "--latent_dim=2"]
    command += ["--importance_samples=2", "--notensorboard", "--verbose=0", *flags]
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return json.loads((run_dir / "summary.json").read_text())["weights_sha256"]


@pytest.mark.parametrize(("network", "jit"), SETUPS)
def test_fresh_processes_give_one_hash(network, jit, dataset, tmp_path):
    count, flags = 5 if FULL else 2, [*NETWORKS[network], f"--jit={jit}"]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        found = list(
            pool.map(lambda at: weights_of(tmp_path / str(at), dataset, flags), range(count))
        )
    tell(f"repeatability, {network}, jit {jit}", processes=count, hashes=sorted(set(found)))
    assert len(set(found)) == 1


def test_the_proof_notices_noise_of_no_seed(dataset, tmp_path):
    flags = [*NETWORKS["dense"], "--jit=off"]
    found = {
        weights_of(tmp_path / str(at), dataset, flags, before=["-c", MUTANT]) for at in range(2)
    }
    assert len(found) == 2

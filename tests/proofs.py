"""What the proofs of the README's section "What happens when ..." have in common.

They run at a size for every day, and at a large one with `scripts/check --soak`. What they counted
is printed: `pytest -rP` shows it.
"""

import collections
import json

import numpy as np

from tests import trials
from vae_research import checkpoints, manifests

SOAK = False  # `tests.conftest` sets it, before it imports any test

# 38 rows in batches of 8: five steps an epoch, the last one smaller.
IMAGES = np.random.default_rng(0).integers(0, 256, (48, 8, 8), dtype=np.uint8)
STEPS = 5
RUNS = {
    "dense, XLA": ["--network=dense", "--jit=on", "--steps_per_call=2"],
    "dense": ["--network=dense", "--jit=off", "--steps_per_call=3"],
    "convolutional": ["--network=convolutional", "--jit=off", "--steps_per_call=1"],
}
# Other things that have a state: critics, callbacks, controllers, averages of weights, a learned
# variance, a codebook. And those without one, with other data: labels, inputs with noise, streamed
# rows.
STATES = {
    # Callbacks of both stop them after four epochs.
    "with_critic": ["--ema=0.9", "--epochs=6"],
    "with_callbacks": ["--epochs=6"],
    "factor_vae": ["--critic_units=4", "--latent_dim=2"],
    "wae_gan": ["--critic_units=4", "--latent_dim=2"],
    "beta_tcvae": ["--latent_dim=2"],
    "geco": ["--latent_dim=2", "--controller=geco"],
    "dreg_mnist": ["--latent_dim=2", "--hidden_units=8", "--num_samples=3"],
    "conditional_vae": ["--latent_dim=2", "--hidden_units=8"],
    "denoising": ["--latent_dim=2", "--hidden_units=8"],
    "streamed": ["--network=dense", "--stream"],
    "semi_supervised": ["--latent_dim=2", "--hidden_units=8", "--labels_per_class=1"],
    "priors_mnist": ["--latent_dim=2", "--hidden_units=8", "--components=3"],
    "two_levels_mnist": ["--latent_dim=2", "--hidden_units=8", "--upper_dim=2"],
    "vq_vae": ["--latent_dim=2", "--filters=2,2", "--num_codes=5"],
    "sigma_vae": ["--latent_dim=2", "--variance=learned", "--binarize=none"],
}
WITH_CRITIC = ["with_critic", "factor_vae", "wae_gan"]
STATES = {name: [*flags, "--jit=off", "--steps_per_call=3"] for name, flags in STATES.items()}
OFTEN, SELDOM = "--checkpoint_steps=3", "--checkpoint_steps=6"
# Never by time: a machine that is busy would save elsewhere.
COMMON = ["--binarize=dynamic", "--checkpoint_minutes=0"]
WALL_CLOCK = {"seconds", "images_per_second"}


class Outcome(collections.namedtuple("Outcome", "values metrics")):
    """What two runs must agree in: every variable, and every figure that is no time."""


def outcome(run_dir):
    """Returns what came of a run, from its newest checkpoint and its metrics.jsonl."""
    checkpoint = checkpoints.newest(run_dir / "checkpoints")
    content = manifests.verify(checkpoint.path)
    values = [value.tobytes() for value in manifests.read_values(checkpoint.path, content)]
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    metrics = [{k: v for k, v in found.items() if k not in WALL_CLOCK} for found in records]
    return Outcome([checkpoint.epoch, checkpoint.position, *values], metrics)


def calls_of_an_epoch(name):
    """Returns at which positions of an epoch the calls of a run begin."""
    return range(0, STEPS, int(RUNS[name][-1].rpartition("=")[2]))


def go_on(run_dir, *flags, **how):
    """Has a run end without being disturbed, and returns what came of it."""
    result = trials.run(run_dir, *flags, **how)
    assert result["status"] == 0, result["stderr"]
    return outcome(run_dir)


def tell(proof, **counts):
    """Prints what a proof has counted."""
    print(f"PROOF {proof}: {json.dumps(counts)}")

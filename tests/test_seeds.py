"""The seeds of the parts of a run: each of them decides its part and no other."""

import numpy as np
import pytest

import vae_research as vr
from vae_research import checkpoints, runs
from vae_research.execution import Execution
from vae_research.runs.cli.config import Config, WatchedConfig
from vae_research.runs.session import training
from vae_research.runs.session.fit.gate import Step

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 4, 4), np.uint8)
OTHER = 7


class BegunError(Exception):
    """Training would begin."""


def build(config, data):
    return vr.VAE(
        vr.dense_encoder(data.shape, 2, hidden_units=(3,)),
        vr.GaussianBottleneck(2),
        vr.dense_decoder(data.shape, 2, hidden_units=(3,)),
        [vr.Bernoulli(), vr.KLDivergence()],
        seed=config.noise_seed,
    )


def build_without_its_seed(config, data):
    return build(config.replace(noise_seed=0), data)


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """Begins a run; returns its initial weights, first batch and key of the first step."""
    found = {}

    def fit(model, batches, **keywords):
        call = next(iter(batches.calls(1, 0)))
        batch = Step(call["epoch"], call["first"], call["rows"][0]).batch(batches)
        found["weights"] = checkpoints.weights_sha256(model)
        found["data"] = batch["inputs"].numpy().tolist()
        found["noise"] = model.step_key().numpy().tolist()
        raise BegunError

    def begin(make=build, **seeds):
        data = vr.Data.from_arrays(IMAGES, binarize="dynamic")
        run_dir = tmp_path / "_".join(f"{name}{seed}" for name, seed in seeds.items())
        settings = {"batch_size": 4, "tensorboard": False, "verbose": 0}
        with pytest.raises(BegunError):
            runs.train(make, data=data, run_dir=run_dir, **settings, **seeds)
        return dict(found)

    monkeypatch.setattr(vr.VAE, "fit", fit)
    unused = Execution(False, 1, "nothing is trained")  # tracing a step takes most of the time
    monkeypatch.setattr(training, "choose_execution", lambda *parts: unused)
    return begin


@pytest.mark.slow
def test_each_seed_decides_its_part_of_a_run(begun):
    before = begun(seed=0)
    parts = {"init_seed": "weights", "data_seed": "data", "noise_seed": "noise"}
    for flag, part in parts.items():
        after = begun(**{flag: OTHER})
        assert {name for name in before if after[name] != before[name]} == {part}
    changed = begun(seed=OTHER)
    assert not any(changed[name] == before[name] for name in before)
    assert begun(seed=OTHER, **dict.fromkeys(parts, 0)) == before


def test_a_model_that_does_not_read_the_seed_of_its_noise_is_refused(begun):
    with pytest.raises(runs.UsageError, match=r"--noise_seed=7, .* seed=config\.noise_seed"):
        begun(make=build_without_its_seed, noise_seed=OTHER)


def test_a_seed_that_is_not_given_follows_the_seed():
    config = Config(seed=3, init_seed=None, data_seed=5)
    assert (config.init_seed, config.data_seed, config.noise_seed) == (3, 5, 3)
    other = config.replace(seed=4)
    assert (other.init_seed, other.data_seed, other.noise_seed) == (4, 5, 4)
    assert other.as_dict() == {"seed": 4, "init_seed": None, "data_seed": 5}
    with pytest.raises(AttributeError, match="no flag 'noise_seed'"):
        Config(latent_dim=2).noise_seed  # noqa: B018


def test_what_reads_the_seed_of_a_part_reads_that_flag():
    watched = WatchedConfig(Config(seed=3, data_seed=5, init_seed=None))
    assert watched.data_seed == 5
    assert watched.names_read == {"data_seed"}
    assert watched.init_seed == 3
    assert watched.names_read == {"data_seed", "init_seed", "seed"}

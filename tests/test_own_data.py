"""Experiments and studies that bring their data: `runs.main(build, data=...)`."""

import functools
import json
import re

import numpy as np
import pytest

import vae_research as vr
from tests import forks
from vae_research import checkpoints, runs
from vae_research.data import DataError
from vae_research.runs.session.loading import data_of
from vae_research.runs.tools import replay

EXPERIMENT = '''"""Brings its data."""

import numpy as np

import vae_research as vr
from vae_research import runs
from vae_research.data.sources import rows_of_pipeline

runs.set_defaults(epochs=1, batch_size=10, latent_dim=2, importance_samples=2, jit="off",
                  tensorboard=False)
runs.define_integer("rows", 30, "of the data", minimum=0)
runs.define_choice("bad", "no", ("no", "file", "key", "none"), "what goes wrong")
runs.define_boolean("pipeline", False, "training rows of a tf.data pipeline")


def build(config, data):
    return vr.VAE(
        vr.dense_encoder(data.shape, config.latent_dim, hidden_units=(4,)),
        vr.GaussianBottleneck(config.latent_dim),
        vr.dense_decoder(data.shape, config.latent_dim, hidden_units=(4,)),
        [vr.Bernoulli(), vr.KLDivergence()],
        seed=config.seed,
    )


def load(config):
    if config.bad == "file":
        open("/no/such/file.csv")
    if config.bad == "key":
        {}["pixels"]
    if config.bad == "none":
        return None
    images = np.random.default_rng(config.seed).integers(0, 256, (config.rows, 4, 4), np.uint8)
    if config.pipeline:
        return of_a_pipeline(images.astype("float32") / 255, config)
    return vr.Data.from_arrays(images, name="made up")


def of_a_pipeline(images, config):
    import tensorflow as tf

    train = {"inputs": images[:20], "labels": np.arange(20)}
    good = tf.data.Dataset.from_tensor_slices(train).shuffle(20)
    bad = good.map(lambda row: {**row, "inputs": row["inputs"] + np.nan})
    dataset = good.repeat(6).concatenate(bad).batch(6)
    held_out = {"inputs": images[20:], "labels": np.arange(10)}
    train = rows_of_pipeline(dataset, 20, bounds=(0, 1))
    return vr.Data.from_arrays(train, held_out, held_out, name="made up")


if __name__ == "__main__":
    runs.main(build, data=load)
'''


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own_data")
    path = folder / "brings_data.py"
    path.write_text(EXPERIMENT, "utf-8")

    def run(*flags):
        process = forks.run(path, "--device=cpu", *flags, cwd=folder)
        return folder, process

    return run


@pytest.mark.slow
def test_a_run_finds_its_data_again(command):
    folder, process = command("--run_dir=run", "--verbose=0")
    assert process.returncode == 0, process.stderr
    config = json.loads((folder / "run" / "config.json").read_text("utf-8"))
    assert config["data"]["made_by"] == [str(folder / "brings_data.py"), "load"]
    assert config["data"]["name"] == "made up"
    run = vr.load_run(folder / "run")
    assert run.data.fingerprint == config["data"]["fingerprint"]
    assert run.summary["weights_sha256"] == checkpoints.weights_sha256(run.model)
    given = vr.load_run(folder / "run", data=run.data)
    assert given.data is run.data
    other = vr.Data.from_arrays(1 - run.data.train.raw)
    with pytest.raises(checkpoints.CheckpointError, match="has changed"):
        vr.load_run(folder / "run", data=lambda config: other)

    # Resumed with the same data, refused with others.
    _, process = command("--run_dir=run", "--verbose=0", "--epochs=2")
    assert process.returncode == 0, process.stderr
    assert json.loads((folder / "run" / "summary.json").read_text("utf-8"))["epochs"] == 2


@pytest.mark.slow
def test_a_run_on_a_pipeline_is_not_bit_exact(command):
    """It is undone and resumed as any other, and says what cannot be promised."""
    folder, process = command("--run_dir=piped", "--pipeline", "--epochs=1")
    assert process.returncode == 0, process.stderr
    assert "this run is valid, not bit-exact: training rows come from a pipe" in process.stderr
    summary = json.loads((folder / "piped" / "summary.json").read_text("utf-8"))
    assert summary["reproducibility"].startswith("valid, not bit-exact")

    folder, process = command("--run_dir=piped", "--pipeline", "--epochs=9")
    assert process.returncode == 6, process.stderr
    assert "first of all inputs" in process.stderr
    assert replay.main([str(folder / "piped")]) == 2


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--dataset=mnist"], 2, "--dataset: this experiment brings its data and does not read"),
        (["--rescale=unit", "--binarize=none"], 2, "--rescale and --binarize: this experiment"),
        (["--rows=0"], 3, "made up: train: is empty"),
        (["--bad=file"], 3, r"load\(\) of brings_data.py: No such file or directory: /no/such"),
        (["--bad=key"], 2, r"load\(\) of brings_data.py failed: KeyError: 'pixels' \(--debug"),
        (["--bad=none"], 2, r"load\(\) of brings_data.py returned NoneType; it must return a Data"),
    ],
)
def test_what_goes_wrong_is_one_line(command, flags, code, words):
    folder, process = command("--run_dir=bad", *flags)
    assert process.returncode == code, process.stderr
    assert re.fullmatch(rf"brings_data: [^\n]*{words}[^\n]*\n", process.stderr)
    assert not (folder / "bad").exists()


def test_debug_shows_where_the_function_failed(command):
    _, process = command("--run_dir=bad", "--bad=key", "--debug")
    assert process.returncode == 2
    assert '{}["pixels"]' in process.stderr


def build(config, data):
    return vr.VAE(
        vr.dense_encoder(data.shape, config.latent_dim, hidden_units=(4,)),
        vr.GaussianBottleneck(config.latent_dim),
        vr.dense_decoder(data.shape, config.latent_dim, hidden_units=(4,)),
        [vr.Bernoulli(), vr.KLDivergence()],
        seed=config.seed,
    )


def test_a_function_that_could_not_be_found_again_is_refused():
    def nested(config):
        raise AssertionError

    for function in (nested, lambda config: None):
        with pytest.raises(TypeError, match="a function at the top level of a file"):
            runs.main(build, [], data=function)
    for function in (nested, functools.partial(named)):
        with pytest.raises(TypeError, match="a function at the top level of a file"):
            runs.train(build, data=function)


def named(config):
    return runs.load_data(config)


def test_the_function_may_read_the_flags_of_the_data(tmp_path):
    np.savez(tmp_path / "a.npz", train=np.zeros((9, 4, 4), np.uint8))
    config = runs.configure(build, dataset=str(tmp_path / "a.npz"), binarize="threshold")
    data = data_of(config, named)
    assert (data.name, data.binarize) == ("a.npz", "threshold")
    assert data.made_by == (__file__, "named")
    with pytest.raises(DataError, match=r"b\.npz"):
        data_of(config.replace(dataset=str(tmp_path / "b.npz")), named)


@pytest.mark.slow
def test_a_study_trains_on_arrays_of_its_own(tmp_path):
    flags = {"epochs": 1, "batch_size": 10, "latent_dim": 2, "importance_samples": 2, "verbose": 0}
    config = runs.configure(build, **flags, jit="off", tensorboard=False, device="cpu")
    images = np.random.default_rng(0).integers(0, 256, (30, 4, 4), dtype=np.uint8)
    data = vr.Data.from_arrays(images)
    run = runs.train(build, config=config, data=data, run_dir=tmp_path / "run")
    assert run.data is data
    assert run.summary["epochs"] == 1
    other = vr.Data.from_arrays(255 - images)
    longer = config.replace(epochs=2)
    for given in (config, longer):
        with pytest.raises(checkpoints.CheckpointError, match="has changed"):
            runs.train(build, config=given, data=other, run_dir=tmp_path / "run")
    assert (
        runs.train(build, config=longer, data=data, run_dir=tmp_path / "run").summary["epochs"] == 2
    )
    loaded = vr.load_run(tmp_path / "run", build, data)
    assert checkpoints.weights_sha256(loaded.model) == loaded.summary["weights_sha256"]

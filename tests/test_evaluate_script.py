"""`scripts/evaluate RUN --ais`: what it writes and prints, and how it ends."""

import functools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

import vae_research as vr
from tests import forks
from tests.proofs import SOAK
from tests.test_linear_gaussian import SAMPLED, B, S, W, X, exact_vae
from tests.test_linear_gaussian import log_p as log_p_of_the_model
from vae_research import runs
from vae_research.runs.session.loading import Run
from vae_research.runs.tools import evaluate

CASES = ["--chains=3", "--temperatures=20", "--leapfrog_steps=2", "--importance_samples=30"]
SETTINGS = {"images": 4, "chains": 3, "temperatures": 20, "leapfrog_steps": 2}

TRAINED = ["--dataset=images.npz", "--batch_size=10", "--verbose=0", "--jit=off"]
TRAINED += ["--importance_samples=2", "--notensorboard"]
FEW = ["--images=2", "--chains=2", "--temperatures=2", "--leapfrog_steps=1"]
FEW += ["--importance_samples=2", "--data=test"]

# Trains a dense model of ones and zeros, and runs commands that may be killed.
OWN = '''"""A small model."""

import vae_research as vr
from vae_research import runs


def build(config, data):
    return vr.VAE(
        vr.dense_encoder(data.shape, 2, hidden_units=(4,)),
        vr.GaussianBottleneck(2),
        vr.dense_decoder(data.shape, 2, hidden_units=(4,)),
        [vr.Bernoulli(), vr.KLDivergence()],
    )


if __name__ == "__main__":
    runs.main(build)
'''

KILLED = """
import os, sys
from vae_research import files
from vae_research.runs.tools import evaluate

left = {kills}

def before(effect, path):
    global left
    if effect == "rename" and path.suffix == ".npz":
        left -= 1
        if left == 0:
            os._exit(99)

files.before = before
sys.exit(evaluate.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluated")
    (path / "own.py").write_text(OWN)
    images = np.random.default_rng(0).integers(0, 2, (30, 3, 3, 1)).astype(np.float32)
    np.savez(path / "images.npz", x_train=images, x_val=images[:6], x_test=images[:6])
    train(path, "run")
    for name in ("killed", "longer"):
        shutil.copytree(path / "run", path / name)
    return path


def train(path, name, epochs=1):
    flags = [*TRAINED, f"--epochs={epochs}", f"--run_dir={name}"]
    trained = forks.run("own.py", *flags, cwd=path)
    assert trained.returncode == 0, trained.stderr


def evaluated(folder, *flags, first=("-m", "vae_research.runs.tools.evaluate")):
    return forks.run(*first, *flags, cwd=folder)


def results(folder, run):
    return json.loads((folder / run / "annealing.json").read_text())["results"]


@functools.cache
def whole(folder):
    return evaluated(folder, "run", "--ais", "--images=4", *CASES)


@pytest.mark.slow
def test_bounds_are_printed_and_written(folder):
    process = whole(folder)
    assert process.returncode == 0, process.stderr
    test, simulated = results(folder, "run")
    assert (test["data"], simulated["data"]) == ("test", "simulated")
    for found in (test, simulated):
        assert found["settings"] == SETTINGS | {"importance_samples": 30, "seed": 0}
        for figure in found["figures"].values():
            assert figure["count"] == len(figure["values"]) == 4
            assert figure["value"] == pytest.approx(np.mean(figure["values"]))
    assert "upper_bound" not in test["figures"]
    figures = simulated["figures"]
    gap = figures["upper_bound"]["value"] - figures["lower_bound"]["value"]
    assert figures["gap"]["value"] == pytest.approx(gap)
    printed = re.search(r"upper minus lower bound +(\S+) \+- ", process.stdout)
    assert printed is not None and float(printed[1]) == pytest.approx(gap, abs=1e-3)
    # Nine fair coins have log p(x) of -6.2; the bounds of an untrained model are near it.
    assert -7.5 < test["figures"]["lower_bound"]["value"] < -5.5
    assert abs(test["figures"]["annealed_minus_importance_sampled"]["value"]) < 0.5


@pytest.mark.slow
def test_a_killed_evaluation_is_resumed_with_the_same_bits(folder):
    assert whole(folder).returncode == 0
    flags = ["killed", "--ais", "--images=4", *CASES]
    for kills in (2, 5, 7) if SOAK else (7,):  # at which of its own saves
        process = evaluated(folder, *flags, first=("-c", KILLED.format(kills=kills)))
        assert process.returncode == 99, process.stderr
    process = evaluated(folder, *flags)
    assert process.returncode == 0, process.stderr
    assert results(folder, "killed") == results(folder, "run")
    # Again: nothing is left to be computed, and the results are not listed twice.
    process = evaluated(folder, *flags)
    assert process.returncode == 0, process.stderr
    assert results(folder, "killed") == results(folder, "run")


@pytest.mark.slow
def test_results_are_of_the_weights_of_one_step(folder):
    file = folder / "longer" / "annealing.json"
    process = evaluated(folder, "longer", "--ais", *FEW)
    assert process.returncode == 0, process.stderr
    own = "Prior: StandardNormalPrior, the model's own"
    assert f"Weights of step 3. {own}\n" in process.stdout
    (before,) = results(folder, "longer")
    summary = json.loads((folder / "longer" / "summary.json").read_text())
    assert before["step"] == 3 and before["weights_sha256"] == summary["weights_sha256"]
    train(folder, "longer", epochs=2)
    assert not file.exists()
    # Left by something else, for example a copy that was put back.
    file.write_text(json.dumps({"results": [before | {"settings": {"seed": 5}}]}))
    (folder / "longer" / "summary.json").unlink()
    process = evaluated(folder, "longer", "--ais", *FEW)
    assert process.returncode == 0, process.stderr
    assert f"Weights of step 6; the run is not finished. {own}\n" in process.stdout
    (after,) = results(folder, "longer")
    assert after["step"] == 6 and after["weights_sha256"] != before["weights_sha256"]


def prior_at(mean):
    prior = vr.MixturePrior(1)
    prior.build_for([2])
    prior.mean.assign([[mean, -mean]])
    prior.log_var.assign([[-0.5, -0.5]])
    return prior


@pytest.mark.slow
def test_a_fitted_prior_is_that_of_the_figures(tmp_path):
    model, data = exact_vae(SAMPLED), vr.Data.from_arrays(X, X, X, rescale="none")
    (tmp_path / evaluate.STATES).mkdir()
    flags = ["--ais", "--images=3", "--chains=20", "--temperatures=100", "--leapfrog_steps=3"]
    settings = evaluate._parsed([str(tmp_path), *flags, "--importance_samples=2000"])
    for mean in (1.0, -0.5):
        run = Run(tmp_path, model, data, runs.Config(jit="off"), None, prior=prior_at(mean))
        for kind in ("test", "simulated"):
            found = evaluate._evaluate(run, kind, settings)
            evaluate._write(run, kind, settings, found, [])
            if kind == "test":
                covariance = np.exp(-0.5) * W @ W.T + S**2 * np.eye(4)
                exact = scipy.stats.multivariate_normal(W @ [mean, -mean] + B, covariance)
                log_p = exact.logpdf(X[:3])
                assert np.abs(log_p - log_p_of_the_model(X)[:3]).max() > 1.0  # another model
                # Of 0.1 to 0.2 for each example.
                for name in ("lower_bound", "importance_sampled"):
                    np.testing.assert_allclose(found[name].values, log_p, atol=0.6)
            else:  # images of another prior would lie outside by some nats
                assert abs(found["gap"].value) < 1.0
                assert abs(found["annealed_minus_importance_sampled"].value) < 1.0
    # Only those of the last prior are left.
    kept = json.loads((tmp_path / "annealing.json").read_text())["results"]
    assert [each["prior"] for each in kept] == ["MixturePrior, fitted after training"] * 2
    assert len(list((tmp_path / evaluate.STATES).iterdir())) == 4


@pytest.mark.slow
def test_a_density_of_rescaled_values_has_bounds_in_stored_units(tmp_path, capsys):
    """The model sees y = (x - offset) / 255: log p(x) is log p(y) - 4 log 255."""
    stored = np.random.default_rng(0).integers(0, 256, (8, 4)).astype(np.uint8)
    data = vr.Data.from_arrays(stored, stored, stored, rescale="unit")
    (tmp_path / evaluate.STATES).mkdir()
    settings = evaluate._parsed([str(tmp_path), "--ais", *FEW, "--data=simulated"])
    run = Run(tmp_path, exact_vae(SAMPLED), data, runs.Config(jit="off"), None)
    found = evaluate._evaluate(run, "simulated", settings)
    for name in ("lower_bound", "upper_bound", "importance_sampled"):
        difference = found[f"{name}_in_stored_units"].values - found[name].values
        np.testing.assert_allclose(difference, -4.0 * np.log(255.0), rtol=1e-5)
    capsys.readouterr()
    evaluate._print(found, ["a note"])
    printed = capsys.readouterr().out
    assert printed.count("of values as stored") == 3 and "Note: a note" in printed


def test_a_prior_without_a_density_is_said():
    model = exact_vae(SAMPLED)
    data = vr.Data.from_arrays(X, X, X)
    run = Run(Path(), model, data, runs.Config(), None, prior=vr.SecondStagePrior())
    words = "StandardNormalPrior, the model's own (the fitted SecondStagePrior has no density)"
    assert evaluate._prior_in_words(run) == words


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        ([], 2, "the following arguments are required: RUN"),
        (["run"], 2, "nothing to evaluate: give --ais"),
        (["run", "--ais", "--chains=0"], 2, "--chains must be an integer >= 1, got 0"),
        (["run", "--ais", "--chains=many"], 2, "argument --chains: invalid int value: 'many'"),
        (["run", "--ais", "--seed=-1"], 2, "--seed must be an integer from 0"),
        (["run", "--ais", "--data=mnist"], 2, "argument --data: invalid choice: 'mnist'"),
        (["run", "--ais", "--images=7"], 2, "--images=7: the test set has 6 examples"),
        (["nowhere", "--ais"], 2, "nowhere holds no run"),
    ],
)
def test_bad_inputs_are_one_line(folder, flags, code, words):
    process = evaluated(folder, *flags)
    assert process.returncode == code
    assert words in process.stderr
    assert len(process.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_damaged_state_is_said(folder):
    assert whole(folder).returncode == 0
    shutil.copytree(folder / "run", folder / "damaged")
    (state,) = (folder / "damaged" / "annealing").glob("test-*.npz")
    state.write_bytes(state.read_bytes()[:-50])
    process = evaluated(folder, "damaged", "--ais", "--images=4", *CASES, "--data=test")
    assert process.returncode == 4
    assert "is damaged" in process.stderr and len(process.stderr.splitlines()) == 1

"""`scripts/selfcheck`: it passes for what is right, and notices what is planted."""

import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import vae_research as vr
from tests import forks
from vae_research import checkpoints, probability
from vae_research.evaluation import importance
from vae_research.priors.prior import StandardNormalPrior
from vae_research.selfcheck import checks
from vae_research.selfcheck.densities import (
    CELLS_TOLERANCE,
    DRAWS,
    MASS_TOLERANCE,
    MOMENTS_TOLERANCE,
    Grid,
)
from vae_research.selfcheck.outcome import FAILED, NOT_APPLICABLE, OK, NotApplicableError
from vae_research.selfcheck.recomputation import SAME_SAMPLES_TOLERANCE, Recomputation

CHECKOUT = Path(__file__).resolve().parents[1]
IMAGES = np.random.default_rng(0).integers(0, 2, (24, 3, 3, 1)).astype(np.float32)
DATA = vr.Data.from_arrays(IMAGES, IMAGES, IMAGES)


def model(latent_dim=3, bottleneck=vr.GaussianBottleneck, terms=None, outputs=("logits",)):
    keras.utils.set_random_seed(0)
    made = vr.VAE(
        vr.dense_encoder(DATA.shape, latent_dim, hidden_units=(4,)),
        bottleneck(latent_dim),
        vr.dense_decoder(
            DATA.shape, latent_dim, hidden_units=(4,), activation="tanh", outputs=outputs
        ),
        terms or [vr.Bernoulli(), vr.KLDivergence(), vr.FreeBits(weight=0.5, name="bits")],
    )
    made.compile(keras.optimizers.Adam(0.01))
    made.report(IMAGES[:2])
    made.build_optimizer()
    return made


def subject(latent_dim=3, **parts):
    return checks.Subject(
        model=model(latent_dim, **parts),
        train=DATA.train,
        test=DATA.test,
        names=(),
        batch_size=5,
        seed=0,
        fresh=lambda: model(latent_dim, **parts),
        of_size=lambda values: model(values, **parts),
    )


def failed(outcomes):
    """What was compared where a check failed, by the name of the check."""
    return {(each.name, each.compared) for each in outcomes if each.verdict == FAILED}


# ---------------------------------------------------------------- what is planted


class HalfDensity(StandardNormalPrior):
    def log_prob(self, z):
        return super().log_prob(z) + np.float32(np.log(0.5))


class WideSamples(StandardNormalPrior):
    def sample(self, count, seed):
        return 1.05 * super().sample(count, seed)


def with_prior(prior):
    return {"bottleneck": lambda size: vr.GaussianBottleneck(size, prior=prior())}


class WrongDensity(vr.GaussianBottleneck):
    """log q(z|x) of another variance, which `call` does not use."""

    def log_prob(self, z, z_mean, z_log_var):
        return super().log_prob(z, z_mean, 0.9 * z_log_var + 0.05)


class WrongFactor(vr.GaussianBottleneck):
    def call(self, z_mean, z_log_var, seed):
        found = super().call(z_mean, z_log_var, seed)
        return found | {"kl": 0.8 * found["kl"]}


class WrongGradient(vr.GaussianBottleneck):
    """A divergence of the right value that does not move the variance."""

    def call(self, z_mean, z_log_var, seed):
        found = super().call(z_mean, z_log_var, seed)
        moved = vr.normal_kl_divergence(z_mean, tf.stop_gradient(z_log_var))
        return found | {"kl": moved + tf.stop_gradient(found["kl"] - moved)}


class Stopped(vr.LossTerm):
    def per_example(self, z_mean):
        return vr.sum_over_event(tf.square(z_mean) * tf.stop_gradient(z_mean))


class Weighted(vr.Bernoulli):
    """A likelihood that has its weight in it."""

    def log_likelihood(self, targets, logits):
        return self.weight * super().log_likelihood(targets, logits)


class MeanOverPixels(vr.Bernoulli):
    def log_likelihood(self, targets, logits):
        return super().log_likelihood(targets, logits) / 9.0


def terms(*given):
    return {"terms": [*given, vr.KLDivergence()]}


SUMMED = "integral of the density and 1"
SAMPLED = "samples and density, share of the tolerances"
MUTANTS = {
    "a density off by a constant": (
        with_prior(HalfDensity),
        lambda s: checks.small_codes(s, 2),
        {("prior, 2 values", SUMMED)},
    ),
    "a sampler of another scale": (
        with_prior(WideSamples),
        lambda s: checks.small_codes(s, 1),
        {("prior, 1 value", SAMPLED)},
    ),
    "the density of another posterior": (
        {"bottleneck": WrongDensity},
        lambda s: [*checks.small_codes(s, 1), *checks.codes(s)],
        {
            ("posterior, 1 value", SAMPLED),
            ("log_posterior", "as written and by log_prob of the same codes"),
        },
    ),
    "a divergence with a wrong factor": (
        {"bottleneck": WrongFactor},
        checks.codes,
        {
            ("KL divergence", "closed form and samples, standard errors"),
            ("KL divergence", "its gradient and samples, standard errors"),
        },
    ),
    "a divergence with a wrong gradient": (
        {"bottleneck": WrongGradient},
        checks.codes,
        {("KL divergence", "its gradient and samples, standard errors")},
    ),
    "a term with a stopped gradient": (
        terms(vr.Bernoulli(), Stopped()),
        checks.terms,
        {("term stopped", "gradient by z_mean and float64 differences, share")},
    ),
    "an ELBO that depends on a weight": (
        terms(Weighted()),
        checks.terms,
        {("ELBO", "with all weights 1 and all 3.7, nats")},
    ),
    "a likelihood that is not normalised": (
        terms(MeanOverPixels()),
        checks.likelihoods,
        {("likelihood reconstruction", "integral of p(x|z) over single values and 1")},
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_what_is_planted_in_a_part_is_found_and_nothing_else(name):
    parts, check, wanted = MUTANTS[name]
    found = list(check(subject(**parts)))
    assert failed(found) == wanted
    if "prior" not in name:  # the same checks of the right model find nothing
        assert not failed(check(subject()))


def test_an_estimate_that_is_off_is_found(monkeypatch):
    right = importance.log_mean_weight
    monkeypatch.setattr(importance, "log_mean_weight", lambda weights: right(weights) + 0.5)
    assert {name for name, _ in failed(checks.figures(subject()))} == {"test figures"}


def trained(values, **parts):
    """With codes of so many values, far from 0 and with small deviations, as after training."""
    made = subject(latent_dim=values, **parts)
    for name, bias in (("z_mean", 3.0), ("z_log_var", -7.0)):
        layer = made.model.encoder.get_layer(name)
        layer.set_weights([0.1 * layer.get_weights()[0], np.full(values, bias)])
    return made


def test_densities_of_narrow_posteriors_are_resolved():
    assert [each.verdict for each in checks.small_codes(trained(1), 1)] == [OK] * 4
    wrong = checks.small_codes(trained(1, bottleneck=WrongDensity), 1)
    assert failed(wrong) == {("posterior, 1 value", SAMPLED)}


def of_modes(places, deviation):
    """Returns samples of a mixture of normal distributions, and a function of its log-density."""
    random = np.random.default_rng(0)
    codes = random.choice(places, DRAWS) + deviation * random.standard_normal(DRAWS)

    def log_prob(z, deviation=deviation):
        logs = vr.normal_log_density(z, places.astype(np.float32), 2.0 * np.log(deviation))
        return tf.reduce_logsumexp(logs, axis=1) - np.log(len(places))

    return codes[:, np.newaxis], log_prob


def test_several_narrow_modes_are_resolved_or_it_is_said():
    codes, log_prob = of_modes(np.array([-4.0, 0.5, 3.0]), 0.01)
    grid = Grid.real_numbers(codes)
    mass = grid.mass(log_prob)
    assert mass.sum() == pytest.approx(1.0, abs=1e-4)
    assert grid.moments_apart(mass) < MOMENTS_TOLERANCE
    assert grid.cells_apart(mass) < CELLS_TOLERANCE
    codes, log_prob = of_modes(np.random.default_rng(1).normal(size=200), 1e-4)
    grid = Grid.real_numbers(codes)
    with pytest.raises(NotApplicableError, match="peaks that are narrower"):
        grid.mass(log_prob)
    # A density that is too narrow for the samples is wrong, whether or not it is resolved.
    assert abs(grid.mass(lambda z: log_prob(z, 1e-5)).sum() - 1.0) > MASS_TOLERANCE


def test_an_elbo_is_compared_by_the_size_of_its_parts(monkeypatch):
    terms = [vr.Gaussian(standard_deviation=0.03), vr.KLDivergence()]
    made = model(terms=terms, outputs=["x_mean"])
    layer = made.decoder.get_layer("x_mean")
    kernel, bias = layer.get_weights()
    layer.set_weights([0.02 * kernel, np.full_like(bias, 100.0)])
    made.encoder.set_weights([0.0 * each for each in made.encoder.get_weights()])
    # float32 has 100 + 0.03 to four digits of the 0.03, and the ELBO is about 20 nats.
    inputs = np.random.default_rng(0).normal(100.0, 0.03, IMAGES.shape)
    apart = Recomputation(made).elbo_apart({"inputs": inputs.astype(np.float32)})
    assert apart < SAME_SAMPLES_TOLERANCE
    right = probability.normal_kl_divergence
    monkeypatch.setattr(probability, "normal_kl_divergence", lambda *args: 1.01 * right(*args))
    assert Recomputation(model()).elbo_apart({"inputs": IMAGES}) > SAME_SAMPLES_TOLERANCE


@pytest.mark.parametrize("error", [RuntimeError, IndexError, ZeroDivisionError])
def test_an_error_of_a_part_is_a_failure_with_its_message(error):
    def broken():
        raise error("of the\npart")

    found = checks.measured("name", "compared", 0.1, broken)
    assert (found.verdict, found.reason) == (FAILED, f"{error.__name__}: of the part")


@pytest.mark.slow
def test_a_state_that_no_checkpoint_holds_is_found(monkeypatch):
    saved = checkpoints.saved_by_group
    monkeypatch.setattr(
        checkpoints,
        "saved_by_group",
        lambda model: [each for each in saved(model) if "momentum" not in each[1].path],
    )
    resumed = checks.resumed_training(subject())
    assert resumed.verdict == FAILED
    assert resumed.difference > 1e-6


def test_what_does_not_apply_says_why():
    class Doubled(keras.layers.Layer):
        def call(self, x):
            return 2.0 * x

    made = subject()
    inputs = keras.Input(DATA.shape, name="inputs")
    features = Doubled()(keras.layers.Flatten()(inputs))
    heads = {name: keras.layers.Dense(3)(features) for name in ("z_mean", "z_log_var")}
    made.model.encoder = keras.Model(inputs, heads)
    reasons = {each.reason for each in checks.figures(made)}
    assert reasons == {"NumPy does not compute the layer Doubled here"}
    large = subject(terms=[vr.Bernoulli(), vr.MonteCarloKL()], bottleneck=Sphere)
    found = list(checks.small_codes(large, 1))
    assert {each.verdict for each in found} == {NOT_APPLICABLE}
    assert all("A sphere has 2 dimensions or more" in each.reason for each in found)


class Sphere(vr.PowerSphericalBottleneck):
    """With a concentration that the encoder's second head gives."""

    def call(self, z_mean, z_log_var, seed):
        return super().call(z_mean, z_log_var[:, :1], seed)

    def log_prob(self, z, z_mean, z_log_var):
        return super().log_prob(z, z_mean, z_log_var[:, :1])


def test_codes_on_a_circle_are_summed_by_their_angle():
    found = list(checks.small_codes(subject(bottleneck=Sphere, **terms(vr.Bernoulli())), 2))
    assert [each.verdict for each in found] == [OK] * 4


# ---------------------------------------------------------------- the command


def selfcheck(*arguments):
    return forks.run("-m", "vae_research.runs.tools.selfcheck", *arguments, cwd=CHECKOUT)


@pytest.mark.slow
def test_the_command_checks_an_experiment_and_a_run(dataset, tmp_path):
    flags = [dataset, "--latent_dim=2", "--hidden_units=4", "--batch_size=19", "--jit=off"]
    process = selfcheck("experiments/vae_mnist.py", *flags)
    assert process.returncode == 0, process.stdout + process.stderr
    assert re.search(r"\n\d+ checks: \d+ ok, 0 failed, 0 not applicable\.\n$", process.stdout)
    run_dir = tmp_path / "run"
    short = ["--epochs=1", "--importance_samples=2", "--notensorboard", "--verbose=0"]
    trained = forks.run(
        CHECKOUT / "experiments/vae_mnist.py", *flags, *short, f"--run_dir={run_dir}", cwd=CHECKOUT
    )
    assert trained.returncode == 0, trained.stderr
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    process = selfcheck(run_dir)
    assert process.returncode == 0, process.stdout + process.stderr
    steps = json.loads((run_dir / "summary.json").read_text())["steps"]
    assert f"checkpoint of step {steps}" in process.stdout
    assert before == {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["nowhere"], 2, "nowhere holds no run"),
        (["pyproject.toml"], 2, "pyproject.toml is a file, not a run directory"),
        (["nowhere", "--epochs=2"], 2, "--epochs=2: the flags of a run are in it"),
        (["nowhere.py"], 2, "there is no file"),
        (["experiments/latent_space.py"], 2, "it is no experiment with one model"),
        (["experiments/vae_mnist.py", "--latent_dim=0"], 2, "latent_dim"),
        (["experiments/vae_mnist.py", "--dataset=nowhere"], 3, "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(arguments, exit_code, message):
    process = selfcheck(*arguments)
    assert process.returncode == exit_code
    lines = process.stderr.strip().splitlines()
    assert len(lines) == 1, process.stderr
    assert message in lines[0]

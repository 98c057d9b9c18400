"""Annealed importance sampling and bidirectional Monte Carlo, against known log p(x).

The linear-Gaussian model has log p(x) in closed form; with a mixture as prior and a decoder that is
not linear it is an integral over two codes, computed on a grid.
"""

import functools

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf

import vae_research as vr
from tests.test_linear_gaussian import CLOSED, B, S, W, X, linear_vae, log_p, wrong_vae
from vae_research.checkpoints import CheckpointError
from vae_research.evaluation import annealing, marginal_likelihood
from vae_research.evaluation.annealing import Place
from vae_research.randomness import evaluation_key, fold_in, standard_normal

KEY = evaluation_key(0, 0)
# As many chains as make the error of an example about 0.02 nats.
MANY = {"chains": 1000, "temperatures": 300, "leapfrog_steps": 5}
SMALL = {"chains": 8, "temperatures": 60, "leapfrog_steps": 5}


def values(figures, *names):
    return [figures[name].values for name in names]


@functools.cache
def bounds_of_simulated(count=40, **settings):
    model = wrong_vae(CLOSED)
    simulated = vr.simulate(model, count)
    settings = {"chains": 16, "temperatures": 200, "leapfrog_steps": 5} | settings
    return simulated, vr.bidirectional_monte_carlo(model, simulated, **settings)


# ---------------------------------------------------------------- known log p(x)


@functools.cache
def bound_of_the_wrong_model():
    settings = {"chains": 2000, "temperatures": 500, "leapfrog_steps": 5}
    return vr.annealed_importance_sampling(wrong_vae(CLOSED), X, **settings)


@pytest.mark.slow
def test_linear_gaussian_model_is_met_within_0_05_nats():
    found = bound_of_the_wrong_model()
    # The encoder is wrong and has no part in it. The last row is far out, and hardest.
    np.testing.assert_allclose(found["lower_bound"].values, log_p(X), atol=0.05)
    assert found["lower_bound"].monte_carlo_error < 0.01
    assert 0.6 < found["acceptance_rate"].value < 0.95
    assert 1500.0 < found["effective_sample_size"].value <= 2000.0


@pytest.mark.slow
def test_bounds_of_simulated_examples_enclose_log_p():
    simulated, found = bounds_of_simulated()
    lower, upper, gap = values(found, "lower_bound", "upper_bound", "gap")
    exact = log_p(simulated.data["inputs"])
    # The error of the upper bound is that of examples with their codes, which were drawn once.
    assert found["upper_bound"].monte_carlo_error is None
    errors = found["lower_bound"].monte_carlo_error, np.std(upper - exact) / np.sqrt(len(exact))
    for bound, error in zip((lower, upper), errors, strict=True):
        assert 0.01 < error < 0.04
        assert abs(np.mean(bound - exact)) < 4 * error
    np.testing.assert_array_equal(gap, upper - lower)
    assert abs(found["gap"].value) < 0.15  # with this error of both, 0.036 for the difference


@pytest.mark.slow
def test_few_temperatures_give_loose_bounds_on_the_right_sides():
    simulated, found = bounds_of_simulated(temperatures=8)
    lower, upper = values(found, "lower_bound", "upper_bound")
    exact = log_p(simulated.data["inputs"])
    # Far beyond the errors of some hundredths: here the sides of the bounds can be seen.
    assert np.mean(exact - lower) > 0.15
    assert np.mean(upper - exact) > 0.15


def mixture_vae():
    """A model with two codes, a mixture of three as prior and a decoder that bends."""
    prior = vr.MixturePrior(3)
    bottleneck = vr.GaussianBottleneck(2, prior=prior)
    prior.logits.assign([0.5, 0.0, -0.5])
    prior.mean.assign([[-2.0, 0.0], [2.0, 1.0], [0.0, -2.0]])
    prior.log_var.assign([[-1.0, 0.0], [0.0, -1.0], [-1.0, -1.0]])
    z = keras.Input((2,), name="z")
    hidden = keras.layers.Dense(4, "tanh", name="hidden")(z)
    decoder = keras.Model(z, {"logits": keras.layers.Dense(6, name="logits")(hidden)})
    rng = np.random.default_rng(5)
    decoder.set_weights([1.5 * rng.standard_normal(each.shape) for each in decoder.get_weights()])
    encoder = vr.dense_encoder([6], 2, hidden_units=[3])
    return vr.VAE(encoder, bottleneck, decoder, [vr.Bernoulli(), vr.MonteCarloKL()])


def log_p_on_a_grid(model, x):
    """Returns log p(x) of each row, by the trapezoidal rule, which converges very fast here."""
    axis = np.linspace(-9.0, 9.0, 361)
    z = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2).astype(np.float32)
    log_prior = model.bottleneck.prior.log_prob(z).numpy().astype(np.float64)
    logits = model.decoder(z)["logits"].numpy().astype(np.float64)
    log_likelihood = logits @ x.T - np.logaddexp(0.0, logits).sum(axis=1, keepdims=True)
    area = (axis[1] - axis[0]) ** 2
    assert np.exp(log_prior).sum() * area == pytest.approx(1.0, abs=1e-6)
    return scipy.special.logsumexp(log_prior[:, None] + log_likelihood, axis=0) + np.log(area)


@pytest.mark.slow
def test_mixture_with_two_codes_is_met():
    model = mixture_vae()
    simulated = vr.simulate(model, 30, seed=1)
    found = vr.bidirectional_monte_carlo(
        model, simulated, chains=32, temperatures=200, leapfrog_steps=5
    )
    lower, upper = values(found, "lower_bound", "upper_bound")
    exact = log_p_on_a_grid(model, simulated.data["inputs"].astype(np.float64))
    # Of 0.02 to 0.1 for each example.
    assert np.abs(lower - exact).max() < 0.3
    assert abs(np.mean(lower - exact)) < 0.03
    assert abs(np.mean(upper - exact)) < 0.03


@pytest.mark.slow
def test_prior_that_was_fitted_is_annealed_instead():
    model = wrong_vae(CLOSED)
    prior = vr.MixturePrior(1)
    prior.build_for([2])
    prior.mean.assign([[1.0, -0.5]])
    prior.log_var.assign([[-1.0, 0.5]])
    found = vr.annealed_importance_sampling(model, X, prior=prior, **MANY)
    mean, covariance = [1.0, -0.5] @ W.T + B, W @ np.diag(np.exp([-1.0, 0.5])) @ W.T
    exact = scipy.stats.multivariate_normal(mean, covariance + S**2 * np.eye(4)).logpdf(X)
    np.testing.assert_allclose(found["lower_bound"].values, exact, atol=0.05)


# ---------------------------------------------------------------- mutants that the tests above see


@pytest.mark.slow
def test_without_the_metropolis_correction_the_bound_is_wrong(monkeypatch):
    right = annealing.transition

    def uncorrected(place, temperature, step_size, steps, key, *densities):
        _, probability = right(place, temperature, step_size, steps, key, *densities)
        momentum = standard_normal(tf.shape(place.z), fold_in(key, 0))
        arguments = temperature, step_size[:, None], steps
        moved, _ = annealing.leapfrog(place, momentum, *arguments, *densities)
        return moved, probability  # from which step sizes are found as before

    monkeypatch.setattr(annealing, "transition", uncorrected)
    found = vr.annealed_importance_sampling(wrong_vae(CLOSED), X, **MANY)
    # By about 1.1 nats each.
    assert np.abs(found["lower_bound"].values - log_p(X)).min() > 0.5


@pytest.mark.slow
def test_transitions_at_reversed_temperatures_are_seen(monkeypatch):
    right = annealing.forward_plan

    def reversed_plan(temperatures, log_step_size):
        plan = right(temperatures, log_step_size)
        return plan._replace(temperature=plan.temperature[::-1])

    monkeypatch.setattr(annealing, "forward_plan", reversed_plan)
    found = vr.annealed_importance_sampling(wrong_vae(CLOSED), X, **MANY)
    # By about 0.2 nats, where the right ones are wrong by 0.02.
    assert np.mean(found["lower_bound"].values - log_p(X)) > 0.12


# ---------------------------------------------------------------- transitions


def two_modes(z):
    """A density whose moments are known, beside a standard normal prior: p(x|z) is normal in z^2.

    Only its shape matters here; the exact moments come from a grid.
    """
    return -0.5 * tf.reduce_sum(tf.square((tf.square(z) - 1.5) / 0.6), axis=1)


def narrow(z):
    return -0.5 * tf.reduce_sum(tf.square(z / 0.5), axis=1)


def standard(z):
    return -0.5 * tf.reduce_sum(tf.square(z), axis=1)


def moments_after(transition, size, likelihood, temperature=0.7, rows=20_000):
    """Returns mean of z^2 and z^4 after transitions that begin with exact samples, and of these."""
    axis = np.linspace(-4.0, 4.0, 4001)[:, None].astype(np.float32)
    density = np.exp((standard(axis) + temperature * likelihood(axis)).numpy().astype(np.float64))
    chosen = np.random.default_rng(0).choice(len(axis), rows, p=density / density.sum())
    place = annealing.place_of(tf.constant(axis[chosen]), standard, likelihood)
    for number in range(5):
        sizes = tf.fill([rows], size)
        given = tf.constant(temperature), sizes, 4, fold_in(KEY, number), standard, likelihood
        place, probability = transition(place, *given)
    share = density / density.sum()
    exact = np.array([(axis[:, 0] ** power) @ share for power in (2, 4)])
    z = place.z.numpy()[:, 0].astype(np.float64)
    powers = np.stack([z**2, z**4])
    return (powers.mean(axis=1) - exact) / (powers.std(axis=1) / np.sqrt(rows)), probability


@pytest.mark.parametrize("likelihood", [two_modes, narrow])
def test_transition_leaves_the_annealed_density_as_it_is(likelihood):
    distance, probability = moments_after(annealing.transition, 0.45, likelihood)
    assert np.abs(distance).max() < 4.0
    assert 0.4 < probability.numpy().mean() < 0.97


def test_moments_see_a_transition_without_metropolis():
    def accepted(place, temperature, size, steps, key, *densities):
        momentum = standard_normal(tf.shape(place.z), fold_in(key, 0))
        moved, _ = annealing.leapfrog(
            place, momentum, temperature, size[:, None], steps, *densities
        )
        return moved, None

    # The variance of leapfrog paths is 1 / (1 - s^2 p / 4) times too large, with the step size s
    # and the precision p = 3.8: by a quarter.
    distance, _ = moments_after(accepted, 0.45, narrow)
    assert np.abs(distance).max() > 10.0


def test_leapfrog_leads_back_and_keeps_the_energy():
    z = standard_normal([50, 3], KEY)
    momentum = standard_normal([50, 3], KEY + 1)
    place = annealing.place_of(z, standard, two_modes)
    given = tf.constant(0.5), tf.fill([50, 1], 0.01), 20, standard, two_modes
    there, turned = annealing.leapfrog(place, momentum, *given)
    back, again = annealing.leapfrog(there, -turned, *given)
    np.testing.assert_allclose(back.z, z, atol=1e-4)
    np.testing.assert_allclose(-again, momentum, atol=1e-4)
    assert np.abs(there.z - z).max() > 0.1

    def energy(place, momentum):
        kinetic = 0.5 * np.square(momentum).sum(axis=1)
        return kinetic - place.log_prior - 0.5 * place.log_likelihood

    np.testing.assert_allclose(energy(there, turned), energy(place, momentum), rtol=2e-3)


def test_what_is_not_finite_is_not_accepted():
    def bounded(z):  # minus infinity on one side, NaN far on the other
        value = tf.where(z > 0.0, tf.math.log(1.5 - z), -np.inf)
        return tf.reduce_sum(value, axis=1)

    place = annealing.place_of(tf.fill([200, 1], 0.7), standard, bounded)
    moved, probability = annealing.transition(
        place, tf.constant(1.0), tf.fill([200], 0.25), 3, KEY, standard, bounded
    )
    assert isinstance(moved, Place)
    assert np.isfinite(moved.log_likelihood).all() and np.isfinite(probability).all()
    assert (probability.numpy() == 0.0).any() and (moved.z.numpy() != 0.7).any()


def test_reverse_plan_is_the_forward_one_from_its_end():
    temperatures = annealing.sigmoidal_temperatures(10)
    assert temperatures[0] == 0.0 and temperatures[-1] == 1.0
    changes = np.diff(temperatures)
    assert (changes > 0.0).all() and changes[0] < changes[5] > changes[-1]
    sizes = np.arange(20, dtype=np.float32).reshape(10, 2)
    forward = annealing.forward_plan(temperatures, sizes)
    reverse = annealing.reverse_plan(temperatures, sizes)
    assert forward.before.sum() == pytest.approx(1.0) and not forward.after.any()
    for there, back in (("before", "after"), *((name, name) for name in ("number", "temperature"))):
        np.testing.assert_array_equal(getattr(forward, there), getattr(reverse, back)[::-1])
    np.testing.assert_array_equal(reverse.log_step_size, sizes[::-1])
    assert forward.temperature[-1] == reverse.temperature[0] == 1.0


def test_step_sizes_of_the_real_run_are_fixed():
    # Adaptation in the chain, which voids the bound, is a matter of the preliminary run alone.
    sizes = np.full([4, 2], -1.0, np.float32)
    plan = annealing.forward_plan(annealing.sigmoidal_temperatures(4), sizes)
    chains = annealing.start(standard_normal([6, 1], KEY), 2, standard, two_modes)
    given = chains, plan, tf.constant(4), 3, KEY
    fixed, used = annealing.anneal(*given, tf.constant(0.0), standard, two_modes)
    np.testing.assert_array_equal(used, sizes)
    adapted, found = annealing.anneal(*given, tf.constant(0.3), standard, two_modes)
    assert len(np.unique(found)) == 7  # the first of both images, and three of each
    assert not np.array_equal(fixed.place.z, adapted.place.z)


# ---------------------------------------------------------------- the same bits


def same(first, second):
    assert first.keys() == second.keys()
    for name, figure in first.items():
        np.testing.assert_array_equal(figure.values, second[name].values)


class KilledError(Exception):
    pass


@pytest.mark.slow
def test_interrupted_evaluation_gives_the_same_bits(tmp_path, monkeypatch):
    # Batches of two examples, so that there is another one to come.
    monkeypatch.setattr(marginal_likelihood, "_VALUES_AT_ONCE", 2 * 8 * 4)
    model, state = wrong_vae(CLOSED), tmp_path / "state.npz"
    simulated = vr.simulate(model, 3)
    whole = vr.bidirectional_monte_carlo(model, simulated, **SMALL)
    left = kills = 0

    def interrupt():
        nonlocal left
        left -= 1
        if left < 0:
            raise KilledError

    # Of 3 batches' worth of calls; each start resumes what the one before it has saved.
    for calls in (4, 9, 13, 1000):
        left = calls
        try:
            found = vr.bidirectional_monte_carlo(
                model, simulated, **SMALL, state=state, between_calls=interrupt
            )
        except KilledError:
            kills += 1
    assert kills == 3
    same(found, whole)
    # Nothing is left to be computed.
    monkeypatch.setattr(annealing, "anneal", None)
    same(vr.bidirectional_monte_carlo(model, simulated, **SMALL, state=state), whole)


@pytest.mark.slow
def test_compiled_with_xla_the_figures_are_the_same_but_for_rounding():
    model = wrong_vae(CLOSED)
    plain = vr.annealed_importance_sampling(model, X, **SMALL)
    compiled = vr.annealed_importance_sampling(model, X, **SMALL, jit_compile=True)
    # Rounding may turn a rejection into an acceptance, which is rare with so few transitions.
    distance = np.abs(plain["lower_bound"].values - compiled["lower_bound"].values)
    assert np.median(distance) < 1e-3


@pytest.mark.slow
def test_noise_has_a_seed():
    model = wrong_vae(CLOSED)
    first = vr.annealed_importance_sampling(model, X, **SMALL, seed=1)
    same(first, vr.annealed_importance_sampling(model, X, **SMALL, seed=1))
    other = vr.annealed_importance_sampling(model, X, **SMALL, seed=2)
    assert (first["lower_bound"].values != other["lower_bound"].values).all()


@pytest.mark.slow
def test_state_of_something_else_is_refused(tmp_path):
    state = tmp_path / "state.npz"
    vr.annealed_importance_sampling(wrong_vae(CLOSED), X, **SMALL, state=state)
    with pytest.raises(CheckpointError, match="another model, other data or settings"):
        vr.annealed_importance_sampling(wrong_vae(CLOSED), X[:2], **SMALL, state=state)
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        vr.annealed_importance_sampling(wrong_vae(CLOSED), X, **SMALL, state=state)


def identity(*, decoder="linear", standard_deviation=1.0, prior=None, step=0):
    z = keras.Input((2,), name="z")
    network = keras.Model(z, {"x_mean": keras.layers.Dense(4, decoder)(z)})
    network.set_weights([W.T, B])
    encoder = vr.named(keras.layers.Identity(), "z_mean", "z_log_var")
    likelihood = vr.Gaussian(standard_deviation=standard_deviation)
    terms = [likelihood, vr.MonteCarloKL()]
    model = vr.VAE(encoder, vr.GaussianBottleneck(2, prior=prior), network, terms)
    model.step_counter.assign(step)
    return marginal_likelihood._Annealing(model, X, None, 2, 2, 1, 0, None, False).identity


class WideNormalPrior(vr.StandardNormalPrior):
    def __init__(self, scale=2.0, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale

    def get_config(self):
        return super().get_config() | {"scale": self.scale}


def test_state_is_of_more_than_the_weights():
    # Names of layers, which Keras numbers, are no part of it.
    assert identity(prior=WideNormalPrior()) == identity(prior=WideNormalPrior())
    others = [
        identity(),
        identity(decoder="tanh"),
        identity(standard_deviation=0.1),
        identity(step=1),
        identity(prior=WideNormalPrior()),
        identity(prior=WideNormalPrior(3.0)),
    ]
    assert len(set(others)) == len(others)


# ---------------------------------------------------------------- what is refused


def other_vae(bottleneck, head):
    encoder = vr.dense_encoder([4], 2, hidden_units=[3], outputs=head)
    decoder = vr.dense_decoder([4], 2, hidden_units=[3])
    return vr.VAE(encoder, bottleneck, decoder, [vr.Bernoulli()])


@pytest.mark.parametrize(
    ("bottleneck", "message"),
    [
        (lambda: vr.DeterministicBottleneck(2), "has no prior with a density"),
        (
            lambda: vr.FiniteScalarQuantizedBottleneck([2, 2], levels=[3, 3]),
            "one of indices of codes",
        ),
        (lambda: vr.PowerSphericalBottleneck(2), "one of points on a sphere"),
    ],
)
def test_other_latents_are_refused_by_name(bottleneck, message):
    bottleneck = bottleneck()
    model = linear_vae(W, np.zeros(2), np.zeros(2), CLOSED)
    model.bottleneck = bottleneck
    with pytest.raises(ValueError, match=message) as raised:
        vr.annealed_importance_sampling(model, X, **SMALL)
    assert type(bottleneck).__name__ in str(raised.value)
    with pytest.raises(ValueError, match=message):
        vr.simulate(model, 3)


class NoisyDecoder(keras.layers.Layer):
    def call(self, z, seed):
        return {"x_mean": tf.tile(z, [1, 2]) + standard_normal([4], seed)}


class Splitting(keras.layers.Layer):
    """Writes a latent u of its own, of which the mean of x is made."""

    def call(self, z, inputs):
        u = inputs[:, :2] - z
        density = tf.reduce_sum(vr.normal_log_density(u, 0.0, 0.0), axis=1)
        return {
            "x_mean": tf.concat([z, u], axis=1),
            "log_posterior_u": density + 1.0,
            "log_prior_u": density,
        }


class Noisy(vr.Gaussian):
    def log_likelihood(self, targets, x_mean, seed):
        return super().log_likelihood(targets, x_mean + standard_normal([4], seed))


class Spare(keras.layers.Layer):
    """What log p(x|z) does not need: it may draw noise, and have a latent."""

    def call(self, z, seed):
        ones = tf.ones(tf.shape(z)[:1])
        return {"other": z + standard_normal([2], seed), "kl_u": ones}


@pytest.mark.parametrize(
    ("decoder", "modules", "likelihood", "message"),
    [
        (NoisyDecoder(name="noisy"), [], vr.Gaussian(), "one of 'noisy' and Gaussian reads 'seed'"),
        (Splitting(), [], vr.Gaussian(), "The decoder writes 'log_posterior_u', part of a level"),
        (
            vr.named(keras.layers.Dense(2), "h"),
            [Splitting()],
            vr.Gaussian(),
            "The module 0 writes 'log_posterior_u', part of a level",
        ),
        (vr.named(keras.layers.Dense(4), "x_mean"), [], Noisy(), "and Noisy reads 'seed'"),
    ],
)
def test_other_latents_and_noise_behind_the_bottleneck_are_refused(
    decoder, modules, likelihood, message
):
    encoder = vr.dense_encoder([4], 2, hidden_units=[3])
    terms = [likelihood, vr.MonteCarloKL()]
    model = vr.VAE(encoder, vr.GaussianBottleneck(2), decoder, terms, modules=modules)
    with pytest.raises(ValueError, match=message):
        vr.annealed_importance_sampling(model, X, **SMALL)


@pytest.mark.slow
def test_what_log_p_does_not_need_may_draw_noise():
    model = wrong_vae(CLOSED)
    expected = vr.annealed_importance_sampling(model, X, **SMALL)
    model.further_modules.append(Spare())
    same(vr.annealed_importance_sampling(model, X, **SMALL), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chains": 0}, "chains must be an integer >= 1, got 0"),
        ({"temperatures": 1.5}, "temperatures must be an integer >= 1"),
        ({"leapfrog_steps": -1}, "leapfrog_steps must be"),
        ({"seed": -1}, "seed must be an integer from 0"),
    ],
)
def test_arguments_that_are_not_valid(arguments, message):
    with pytest.raises(ValueError, match=message):
        vr.annealed_importance_sampling(wrong_vae(CLOSED), X, **arguments)


def test_weights_that_are_not_finite_are_named():
    model = wrong_vae(CLOSED)
    model.decoder.get_layer("x_mean").set_weights([np.full([2, 4], np.nan), np.zeros(4)])
    with pytest.raises(ValueError, match="weights of 5 of 5 examples are not finite"):
        vr.annealed_importance_sampling(model, X, **SMALL)

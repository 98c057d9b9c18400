"""The objective: parts kept apart, one ELBO whatever is trained, samples joined as a bound."""

import numpy as np
import pytest
import scipy.special
import tensorflow as tf

from vae_research import (
    Bernoulli,
    CapacityKL,
    Constant,
    FreeBits,
    Gaussian,
    KLDivergence,
    Likelihood,
    LinearWarmup,
    LossTerm,
    MonteCarloKL,
    Objective,
)
from vae_research.tensors import Tensors

FLOAT32 = 1e-6


class Given(Likelihood):
    """A likelihood whose value is handed in, so that these tests are about the objective alone."""

    def log_likelihood(self, log_p):
        return log_p

    def mean(self, log_p):
        return log_p


class Length(LossTerm):
    """A penalty that reads neither the KL divergence nor the densities."""

    def per_example(self, z_mean):
        return tf.reduce_sum(z_mean**2, axis=-1)


def draw(rows=4, latent=3, seed=0, step=0.0, without=()):
    """Returns the named tensors of a forward pass, with random numbers in them."""
    rng = np.random.default_rng(seed)
    tensors = {
        "step": np.float32(step),
        "log_p": rng.normal(-100.0, 3.0, rows),
        "log_posterior": rng.normal(-1.0, 2.0, rows),
        "log_prior": rng.normal(-6.0, 2.0, rows),
        "kl": rng.uniform(0.0, 4.0, [rows, latent]),
        "z_mean": rng.normal(size=[rows, latent]),
    }
    return Tensors(
        {name: tf.constant(v, tf.float32) for name, v in tensors.items() if name not in without}
    )


def surrogate_gradients(objective, tensors):
    """Returns by name the gradients of the mean surrogate, zeros where it does not depend."""
    with tf.GradientTape() as tape:
        tape.watch(dict(tensors))
        loss = tf.reduce_mean(objective(Tensors(tensors)).surrogate)
    gradients = tape.gradient(loss, dict(tensors), unconnected_gradients="zero")
    return {name: gradient.numpy() for name, gradient in gradients.items()}


# The report.


def test_report_keeps_values_weights_and_contributions_apart():
    tensors = draw()
    report = Objective([Given(weight=0.5), KLDivergence(weight=4.0), Length(weight=0.1)])(tensors)
    kl, length = tensors["kl"].numpy().sum(axis=1), (tensors["z_mean"].numpy() ** 2).sum(axis=1)
    expected = {"reconstruction": -tensors["log_p"].numpy(), "kl": kl, "length": length}
    weights = {"reconstruction": 0.5, "kl": 4.0, "length": 0.1}
    assert report.values.keys() == report.weights.keys() == report.contributions.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(report.values[name], value, rtol=FLOAT32)
        assert float(report.weights[name]) == pytest.approx(weights[name], rel=FLOAT32)
        np.testing.assert_allclose(report.contributions[name], weights[name] * value, rtol=FLOAT32)


@pytest.mark.parametrize(
    "terms",
    [
        [Given(), KLDivergence()],
        [Given(weight=2.0), KLDivergence(weight=LinearWarmup(steps=10)), Length(weight=-0.5)],
        [Given(), FreeBits(weight=3.0), CapacityKL(capacity=2.0, weight=30.0)],
        [Given(), MonteCarloKL(weight=0.3), KLDivergence(name="closed", weight=None)],
    ],
    ids=lambda terms: "+".join(term.label for term in terms),
)
def test_contributions_add_up_to_the_bound(terms):
    tensors = draw(step=4.0)
    report = Objective(terms)(tensors, regularization=[tf.constant(0.25), tf.constant(0.5)])
    assert report.loss.shape == [4]
    total = sum(report.contributions.values())
    np.testing.assert_allclose(report.loss, total, rtol=FLOAT32)
    assert report.surrogate is report.loss


def test_one_example_has_one_value_in_float32():
    report = Objective([Given(), KLDivergence(), Length()])(draw(rows=5))
    for tensor in (report.loss, report.surrogate, report.elbo, *report.values.values()):
        assert (tensor.dtype, tensor.shape) == (tf.float32, [5])
    for weight in report.weights.values():
        assert (weight.dtype, weight.shape) == (tf.float32, [])


# The ELBO.

TRAINED = {
    "plain": [Given(), KLDivergence()],
    "weights": [Given(weight=0.1), KLDivergence(weight=50.0)],
    "schedule": [Given(), KLDivergence(weight=LinearWarmup(steps=10, peak=4.0))],
    "function": [Given(), KLDivergence(weight=lambda step: step * 0.0)],
    "free bits": [Given(), FreeBits(nats_per_dimension=3.0)],
    "capacity": [Given(), CapacityKL(capacity=25.0, weight=100.0)],
    "penalty": [Given(), Length(weight=7.0)],
    "sampled": [Given(), MonteCarloKL(weight=2.0)],
    "nothing": [Given(weight=None), KLDivergence(weight=None)],
}


@pytest.mark.parametrize("terms", TRAINED.values(), ids=TRAINED)
@pytest.mark.parametrize("step", [0.0, 5.0])
def test_elbo_is_log_likelihood_minus_kl_whatever_is_trained(terms, step):
    tensors = draw(step=step)
    expected = tensors["log_p"].numpy() - tensors["kl"].numpy().sum(axis=1)
    report = Objective(terms)(tensors, regularization=[tf.constant(3.0)])
    np.testing.assert_allclose(report.elbo, expected, rtol=FLOAT32)


def test_elbo_without_a_closed_form_has_the_sampled_divergence():
    tensors = draw(without=["kl"])
    expected = sum(
        sign * tensors[name].numpy()
        for sign, name in ((1, "log_p"), (-1, "log_posterior"), (1, "log_prior"))
    )
    for terms in ([Given(), MonteCarloKL(weight=9.0)], [Given(), Length()]):
        report = Objective(terms)(Tensors(tensors))
        np.testing.assert_allclose(report.elbo, expected, rtol=FLOAT32)


def test_autoencoder_without_a_posterior_has_no_elbo_and_no_kl():
    tensors = draw(without=["kl", "log_posterior", "log_prior"])
    report = Objective([Given(), Length()])(tensors)
    assert report.elbo is None
    assert report.values.keys() == {"reconstruction", "length"}


def test_kl_divergence_is_shown_where_no_term_of_that_name_trains_it():
    tensors = draw()
    kl = tensors["kl"].numpy().sum(axis=1)
    shown = Objective([Given(), FreeBits()])(Tensors(tensors))
    np.testing.assert_allclose(shown.values["kl"], kl, rtol=FLOAT32)
    assert "kl" not in shown.weights
    own = Objective([Given(), MonteCarloKL()])(Tensors(tensors))
    sampled = tensors["log_posterior"] - tensors["log_prior"]
    np.testing.assert_allclose(own.values["kl"], sampled, rtol=FLOAT32)


# Monitors.


def test_monitor_has_a_value_and_neither_weight_nor_gradient():
    tensors = draw()
    objective = Objective([Given(), KLDivergence(), Length(weight=None)])
    report = objective(Tensors(tensors))
    np.testing.assert_allclose(
        report.values["length"], (tensors["z_mean"].numpy() ** 2).sum(axis=1), rtol=FLOAT32
    )
    assert "length" not in report.weights.keys() | report.contributions.keys()
    gradients = surrogate_gradients(objective, tensors)
    np.testing.assert_array_equal(gradients["z_mean"], 0.0)
    # The mutant, a term that is trained, has a gradient of 2 z / rows.
    trained = surrogate_gradients(Objective([Given(), KLDivergence(), Length()]), tensors)
    np.testing.assert_allclose(trained["z_mean"], tensors["z_mean"].numpy() / 2, rtol=FLOAT32)


def test_monitor_leaves_bound_and_gradients_as_they_are():
    tensors = draw()
    plain = Objective([Given(), KLDivergence(weight=0.3)])
    watched = Objective(
        [CapacityKL(weight=None), Given(), Length(weight=None), KLDivergence(weight=0.3)]
    )
    np.testing.assert_array_equal(plain(Tensors(tensors)).loss, watched(Tensors(tensors)).loss)
    theirs = surrogate_gradients(watched, tensors)
    for name, gradient in surrogate_gradients(plain, tensors).items():
        np.testing.assert_array_equal(gradient, theirs[name])


# Schedules.


def test_weight_follows_the_step_inside_one_trace():
    objective = Objective([Given(), KLDivergence(weight=LinearWarmup(steps=10, peak=2.0))])
    tensors = {name: value for name, value in draw().items() if name != "step"}
    traces = []

    @tf.function(autograph=False)
    def weights(step):
        traces.append(1)
        report = objective(Tensors(tensors | {"step": step}))
        return report.weights["kl"], report.contributions["kl"] / report.values["kl"]

    for step, expected in ((0.0, 0.0), (5.0, 1.0), (10.0, 2.0), (99.0, 2.0)):
        weight, applied = weights(tf.constant(step))
        assert float(weight) == pytest.approx(expected)
        np.testing.assert_allclose(applied, expected, rtol=FLOAT32)
    assert len(traces) == 1


def test_in_steps_resolves_every_term_and_keeps_the_samples():
    epochs = [
        Given(weight=LinearWarmup(epochs=1)),
        MonteCarloKL(weight=LinearWarmup(epochs=2)),
        CapacityKL(capacity=LinearWarmup(epochs=3), weight=None),
    ]
    objective = Objective(epochs, num_samples=5, importance_weighted=True)
    resolved = objective.in_steps(10)
    assert resolved.terms == (
        Given(weight=LinearWarmup(steps=10)),
        MonteCarloKL(weight=LinearWarmup(steps=20)),
        CapacityKL(capacity=LinearWarmup(steps=30), weight=None),
    )
    assert (resolved.num_samples, resolved.importance_weighted) == (5, True)
    assert objective.terms == tuple(epochs)


def test_schedules_are_listed_by_term_with_those_of_its_settings():
    weight, capacity = LinearWarmup(steps=5), LinearWarmup(steps=7)
    objective = Objective([Given(), CapacityKL(weight=weight, capacity=capacity), Length()])
    found = objective.schedules()
    assert found["capacity_kl"] == [weight, capacity]
    assert found["reconstruction"] == found["length"] == []


def test_weights_at_a_step_need_no_forward_pass():
    objective = Objective(
        [Given(), KLDivergence(weight=LinearWarmup(steps=4)), Length(weight=None)]
    )
    assert {name: float(w) for name, w in objective.weights(1).items()} == {
        "reconstruction": 1.0,
        "kl": 0.25,
    }


def each_latent(**weights):
    return [KLDivergence(latent=name, weight=weight) for name, weight in weights.items()]


@pytest.mark.parametrize(
    ("terms", "beta"),
    [
        ([Given(), *each_latent(a=4.0, b=4.0)], 4.0),
        ([Given(), *each_latent(a=4.0, b=2.0)], None),
        ([Given(), *each_latent(a=4.0)], None),
        ([Given(), KLDivergence(weight=4.0)], 4.0),
        ([Given(weight=0.5), KLDivergence(weight=Constant(value=3.0))], 6.0),
        ([Given(), KLDivergence(weight=LinearWarmup(steps=8))], 0.25),  # at step 2
        ([Given(), KLDivergence(weight=None)], None),
        ([Given(weight=None), KLDivergence()], None),
        ([Given(), FreeBits()], None),
    ],
)
def test_effective_beta_is_the_weight_of_the_kl_over_that_of_the_likelihood(terms, beta):
    found = Objective(terms).effective_beta(step=2, latents=("a", "b"))
    assert found == (beta and pytest.approx(beta))


# Regularisation losses of layers.


def test_regularization_is_a_term_of_weight_1_outside_the_elbo():
    tensors = draw()
    plain = Objective([Given(), KLDivergence()])(Tensors(tensors))
    losses = [tf.constant(0.5), tf.constant(0.25, tf.bfloat16)]
    report = Objective([Given(), KLDivergence()])(Tensors(tensors), regularization=losses)
    assert float(report.values["regularization"]) == 0.75
    assert float(report.weights["regularization"]) == 1.0
    np.testing.assert_allclose(report.loss, plain.loss + 0.75, rtol=FLOAT32)
    np.testing.assert_array_equal(report.elbo, plain.elbo)
    assert "regularization" not in plain.values.keys() | plain.weights.keys()


def test_regularization_has_the_gradient_of_its_own_sum():
    # An L2 penalty of 0.01 * w^2 has the gradient 0.02 * w, whatever the size of the batch.
    weight = tf.Variable([3.0, -1.0])
    with tf.GradientTape() as tape:
        penalty = 0.01 * tf.reduce_sum(weight**2)
        report = Objective([Given()])(draw(rows=7), regularization=[penalty])
        loss = tf.reduce_mean(report.surrogate)
    np.testing.assert_allclose(tape.gradient(loss, weight), [0.06, -0.02], rtol=FLOAT32)


# Several samples of one example.


def test_samples_of_one_example_are_adjacent_and_joined_by_their_mean():
    tensors = draw(rows=6)
    report = Objective([Given(), KLDivergence(), FreeBits(weight=0.1)], num_samples=3)(
        Tensors(tensors)
    )
    log_p, kl = tensors["log_p"].numpy(), tensors["kl"].numpy().sum(axis=1)
    np.testing.assert_allclose(
        report.values["reconstruction"], [-log_p[:3].mean(), -log_p[3:].mean()], rtol=FLOAT32
    )
    np.testing.assert_allclose(report.elbo, (log_p - kl).reshape(2, 3).mean(axis=1), rtol=FLOAT32)
    free_bits = np.maximum(tensors["kl"].numpy().mean(axis=0), 0.1).sum()
    assert report.values["free_bits"].shape == []
    assert float(report.values["free_bits"]) == pytest.approx(free_bits, rel=FLOAT32)
    assert report.loss.shape == [2]


def importance_weighted(num_samples, **weights):
    terms = [
        Given(weight=weights.get("likelihood", 1.0)),
        MonteCarloKL(weight=weights.get("kl", 1.0)),
    ]
    return Objective(terms, num_samples=num_samples, importance_weighted=True)


def log_weights(tensors, num_samples):
    """Returns log p(x|z) + log p(z) - log q(z|x), [batch, K], in float64."""
    parts = [tensors[name].numpy().astype(np.float64) for name in ("log_p", "log_prior")]
    return (sum(parts) - tensors["log_posterior"].numpy()).reshape(-1, num_samples)


@pytest.mark.parametrize("num_samples", [1, 2, 6])
def test_importance_weighted_bound_is_the_exact_log_mean_of_the_weights(num_samples):
    tensors = draw(rows=12, without=["kl"])
    log_weight = log_weights(tensors, num_samples)
    expected = scipy.special.logsumexp(log_weight, axis=1) - np.log(num_samples)
    report = importance_weighted(num_samples)(tensors)
    np.testing.assert_allclose(report.loss, -expected, rtol=FLOAT32)
    # The ELBO stays the mean: its difference from the bound is the gain of importance weighting.
    np.testing.assert_allclose(report.elbo, log_weight.mean(axis=1), rtol=FLOAT32)
    assert np.all(-report.loss.numpy() >= report.elbo.numpy() - 1e-4)


def test_importance_weighted_bound_of_one_sample_is_the_sampled_elbo():
    tensors = draw(without=["kl"])
    weighted = importance_weighted(1)(Tensors(tensors))
    plain = Objective([Given(), MonteCarloKL()])(Tensors(tensors))
    np.testing.assert_allclose(weighted.loss, plain.loss, rtol=FLOAT32)
    np.testing.assert_allclose(weighted.loss, -weighted.elbo, rtol=FLOAT32)


def test_importance_weighted_bound_grows_with_the_samples_towards_the_log_of_their_mean():
    # log w ~ N(0, 1) has log E[w] = 1/2, and E[log w] = 0 is the bound of one sample.
    rows, bounds = 200_000, {}
    log_w = np.random.default_rng(3).standard_normal(rows)
    zeros = tf.zeros([rows])
    for num_samples in (1, 5, 50):
        report = importance_weighted(num_samples)(
            Tensors(
                step=tf.constant(0.0),
                log_p=tf.constant(log_w, tf.float32),
                log_posterior=zeros,
                log_prior=zeros,
            )
        )
        values = -report.loss.numpy()
        bounds[num_samples] = values.mean(), values.std() / np.sqrt(len(values))
    for fewer, more in ((1, 5), (5, 50)):
        difference = bounds[more][0] - bounds[fewer][0]
        assert difference > 4 * (bounds[more][1] + bounds[fewer][1])
    assert abs(bounds[1][0]) < 4 * bounds[1][1]
    assert bounds[50][0] < 0.5 + 4 * bounds[50][1]
    # Its bias is about -Var[w] / (2 K E[w]^2) = -(e - 1) / 100 (Domke and Sheldon 2018).
    assert bounds[50][0] == pytest.approx(0.5 - (np.e - 1) / 100, abs=0.005 + 4 * bounds[50][1])


def test_permuting_samples_changes_nothing_within_an_example_and_something_across():
    tensors = draw(rows=6, without=["kl", "z_mean"])
    objective = importance_weighted(3)

    def bound(order):
        return objective(
            Tensors({n: v if n == "step" else tf.gather(v, order) for n, v in tensors.items()})
        ).loss.numpy()

    unchanged = bound([0, 1, 2, 3, 4, 5])
    np.testing.assert_allclose(bound([2, 0, 1, 4, 3, 5]), unchanged, rtol=FLOAT32)
    # The mutant: samples that are a batch apart, as tf.tile or a reshape to [K, batch] has them.
    assert np.abs(bound([0, 3, 1, 4, 2, 5]) - unchanged).max() > 0.1


def test_importance_weighted_gradient_gives_the_best_sample_the_largest_weight():
    tensors = draw(rows=8, without=["kl"])
    log_weight = log_weights(tensors, 4)
    gradients = surrogate_gradients(importance_weighted(4), tensors)
    # d/dlog w of -log mean w is minus the self-normalised weight; the batch has two examples.
    weights = scipy.special.softmax(log_weight, axis=1)
    np.testing.assert_allclose(gradients["log_p"], -weights.ravel() / 2, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(gradients["log_prior"], gradients["log_p"], rtol=FLOAT32)
    np.testing.assert_allclose(gradients["log_posterior"], -gradients["log_p"], rtol=FLOAT32)
    np.testing.assert_array_equal(
        np.argmax(-gradients["log_p"].reshape(2, 4), axis=1), np.argmax(log_weight, axis=1)
    )
    # The mutant: softmax over the loss gives the worst sample the largest weight.
    mutant = scipy.special.softmax(-log_weight, axis=1)
    assert np.all(np.argmax(mutant, axis=1) == np.argmin(log_weight, axis=1))
    assert np.abs(weights - mutant).max() > 0.5


def test_weights_of_terms_stand_inside_the_importance_weight():
    tensors = draw(rows=6, without=["kl"])
    log_p = tensors["log_p"].numpy().astype(np.float64)
    divergence = tensors["log_posterior"].numpy().astype(np.float64) - tensors["log_prior"].numpy()
    inside = (0.5 * log_p - 0.2 * divergence).reshape(2, 3)
    expected = -(scipy.special.logsumexp(inside, axis=1) - np.log(3))
    report = importance_weighted(3, likelihood=0.5, kl=0.2)(tensors)
    np.testing.assert_allclose(report.loss, expected, rtol=FLOAT32)


def test_penalty_that_is_no_density_stays_outside_the_importance_weight():
    tensors = draw(rows=6, without=["kl"])
    plain = importance_weighted(3)(Tensors(tensors))
    terms = [Given(), MonteCarloKL(), Length(weight=2.0)]
    report = Objective(terms, num_samples=3, importance_weighted=True)(
        Tensors(tensors), regularization=[tf.constant(0.5)]
    )
    length = (tensors["z_mean"].numpy() ** 2).sum(axis=1).reshape(2, 3).mean(axis=1)
    np.testing.assert_allclose(report.loss, plain.loss + 2.0 * length + 0.5, rtol=FLOAT32)


REFUSED = [
    ([Given(), KLDivergence(), MonteCarloKL(name="mc")], "'kl' .*closed-form 'kl'.*MonteCarloKL"),
    ([Given(), KLDivergence()], "'kl' .*closed-form 'kl'.*MonteCarloKL"),
    ([Given(), MonteCarloKL(), FreeBits()], "'free_bits' .*closed-form 'kl'.*weight=None"),
    ([Given()], "add MonteCarloKL.. to the terms reconstruction"),
    ([Given(), Length()], "add MonteCarloKL.. to the terms reconstruction, length"),
    ([Given(), MonteCarloKL(weight=None)], "add MonteCarloKL"),
]


@pytest.mark.parametrize(("terms", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_terms_that_make_no_importance_weighted_bound_are_refused_with_the_reason(terms, message):
    with pytest.raises(ValueError, match=message):
        Objective(terms, num_samples=5, importance_weighted=True)


def test_batch_statistic_is_refused_inside_an_importance_weighted_bound():
    class Spread(LossTerm):
        batch_statistic = True

        def per_example(self, z_mean):
            return tf.math.reduce_variance(z_mean)

    with pytest.raises(ValueError, match="'spread' is a statistic of the whole batch"):
        Objective([Given(), MonteCarloKL(), Spread()], importance_weighted=True)
    Objective([Given(), MonteCarloKL(), Spread(weight=None)], importance_weighted=True)


def test_everything_may_be_watched_beside_an_importance_weighted_bound():
    tensors = draw(rows=6)
    watched = [
        KLDivergence(name="closed", weight=None),
        FreeBits(weight=None),
        CapacityKL(weight=None),
        Length(weight=None),
    ]
    objective = Objective(
        [Given(), MonteCarloKL(), *watched], num_samples=3, importance_weighted=True
    )
    report = objective(Tensors(tensors))
    np.testing.assert_array_equal(report.loss, importance_weighted(3)(Tensors(tensors)).loss)
    assert report.weights.keys() == {"reconstruction", "kl"}
    assert report.values.keys() >= {"closed", "free_bits", "capacity_kl", "length"}


LEVELS = {"kl": "kl_top", "log_posterior": "log_posterior_top", "log_prior": "log_prior_top"}


def test_closed_form_under_another_name_is_refused_too():
    terms = [Given(), MonteCarloKL(), KLDivergence(name="top", rename={"kl": "kl_top"})]
    with pytest.raises(ValueError, match=r"'top' .*closed-form 'kl'"):
        Objective(terms, num_samples=5, importance_weighted=True)


def test_densities_of_a_second_level_are_inside_the_importance_weight():
    tensors, top = draw(rows=6, without=["kl"]), draw(rows=6, seed=1)
    tensors |= {LEVELS[n]: top[n] for n in ("log_posterior", "log_prior")}
    rename = {n: LEVELS[n] for n in ("log_posterior", "log_prior")}
    objective = Objective(
        [Given(), MonteCarloKL(latent="z"), MonteCarloKL(name="kl_top", rename=rename)],
        num_samples=3,
        importance_weighted=True,
    )
    divergence = (top["log_posterior"] - top["log_prior"]).numpy().reshape(2, 3)
    inside = log_weights(tensors, 3) - divergence
    expected = -(scipy.special.logsumexp(inside, axis=1) - np.log(3))
    np.testing.assert_allclose(objective(Tensors(tensors)).loss, expected, rtol=1e-5)


# What an objective is made of.


def test_two_terms_of_one_name_are_refused_and_two_names_are_not():
    with pytest.raises(ValueError, match=r"Two loss terms are called 'kl': reconstruction, kl, kl"):
        Objective([Given(), KLDivergence(), MonteCarloKL()])
    with pytest.raises(ValueError, match="Two loss terms are called 'reconstruction'"):
        Objective([Given(), Length(name="reconstruction")])
    report = Objective([Given(), KLDivergence(), KLDivergence(name="more")])(draw())
    np.testing.assert_array_equal(report.values["kl"], report.values["more"])


@pytest.mark.parametrize("name", ["loss", "elbo", "regularization"])
def test_name_that_the_logs_use_is_refused(name):
    with pytest.raises(ValueError, match=f"No loss term may be called '{name}'"):
        Objective([Given(), Length(name=name)])


@pytest.mark.parametrize(
    ("terms", "found"),
    [
        ([], r"got none among the terms \(none\)"),
        ([KLDivergence()], "got none among the terms kl"),
        ([Bernoulli(), Gaussian(name="mse")], "got reconstruction, mse among the terms"),
        ([Bernoulli(), Gaussian(name="mse", weight=None)], "got reconstruction, mse among"),
    ],
)
def test_exactly_one_term_is_the_likelihood(terms, found):
    with pytest.raises(ValueError, match=f"Exactly one loss term must be a likelihood.*{found}"):
        Objective(terms)


@pytest.mark.parametrize("bad", ["kl", KLDivergence, 1.0, lambda tensors: 0.0])
def test_thing_that_is_no_term_is_refused(bad):
    with pytest.raises(TypeError, match="is not a LossTerm"):
        Objective([Given(), bad])


@pytest.mark.parametrize("bad", [0, -1, 2.5, 2.0, float("nan"), True, "2", None])
def test_number_of_samples_is_a_positive_integer(bad):
    with pytest.raises(ValueError, match=f"num_samples must be an integer >= 1, got {bad!r}"):
        Objective([Given()], num_samples=bad)


@pytest.mark.parametrize("rows", [1, 3])
def test_term_of_another_number_of_rows_is_refused_by_name(rows):
    class Short(LossTerm):
        def per_example(self, kl):
            return tf.reduce_mean(kl, axis=0)[:rows]

    with pytest.raises(ValueError, match=f"'short' returned {rows} values for 4 rows"):
        Objective([Given(), Short()])(draw())


def test_term_that_misses_a_tensor_says_so_by_name():
    with pytest.raises(ValueError, match="loss term 'kl' reads 'kl', but the forward pass wrote"):
        Objective([Given(), KLDivergence()])(draw(without=["kl"]))

"""How good an importance-weighted estimate is: against a library, known cases and simulation."""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats

from vae_research.evaluation import importance
from vae_research.evaluation.estimates import _curve_of, _numbers_of_samples

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("samples", [25, 50, 200, 226, 1000])
def test_pareto_k_is_that_of_arviz(samples):
    stats = pytest.importorskip("arviz_stats.base").array_stats
    spread = RANDOM.uniform(0.2, 4.0, size=(20, 1))
    log_weights = spread * RANDOM.standard_normal((20, samples))
    # It takes log-likelihoods of leave-one-out, whose weights are their reciprocals.
    _, expected = stats.psislw(-log_weights, axis=-1)
    np.testing.assert_allclose(importance.pareto_k(log_weights), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("k", [0.3, 1.0])
def test_pareto_k_is_that_of_the_distribution_of_the_weights(k):
    weights = scipy.stats.pareto(1.0 / k).rvs((20, 20_000), random_state=1)
    assert importance.pareto_k(np.log(weights)).mean() == pytest.approx(k, abs=0.05)


def test_a_tail_of_few_or_of_equal_weights():
    few = RANDOM.standard_normal((3, importance.SAMPLES_WITH_A_TAIL - 1))
    assert np.all(importance.pareto_k(few) == np.inf)
    exact = np.full((3, 200), -300.0) + RANDOM.uniform(-2e-5, 2e-5, (3, 200))
    assert np.all(importance.pareto_k(exact) == -np.inf)
    ties = np.tile([0.0, 0.0, 0.0, 0.0, 1.0], (1, 40))
    assert np.all(np.isfinite(importance.pareto_k(ties)))


def test_estimates_are_those_of_scipy_and_do_not_overflow():
    log_weights = 1e4 + 3.0 * RANDOM.standard_normal((5, 40))
    expected = scipy.special.logsumexp(log_weights, axis=1) - math.log(40)
    np.testing.assert_allclose(importance.log_mean_weight(log_weights), expected, rtol=1e-12)
    pairs = scipy.special.logsumexp(log_weights.reshape(5, 20, 2), axis=2) - math.log(2)
    np.testing.assert_allclose(importance.by_samples(log_weights, 2), pairs.mean(1), rtol=1e-12)
    np.testing.assert_array_equal(importance.by_samples(log_weights, 40), expected)
    sevens = importance.by_samples(log_weights, 7)  # five groups, and five samples left over
    np.testing.assert_allclose(sevens, importance.by_samples(log_weights[:, :35], 7))


def test_monte_carlo_error_is_the_spread_over_other_samples():
    log_weights = 0.7 * RANDOM.standard_normal((4000, 100))
    spread = importance.log_mean_weight(log_weights).var(ddof=1)
    said = importance.monte_carlo_variance(log_weights).mean()
    assert said == pytest.approx(spread, rel=0.08)
    assert np.isnan(importance.monte_carlo_variance(np.zeros((2, 1)))).all()


def test_the_curve_falls_by_what_paired_examples_say():
    assert _numbers_of_samples(1) == [1]
    assert _numbers_of_samples(2) == [1, 2]
    assert _numbers_of_samples(5000) == [1, 5, 50, 500, 2500, 5000]
    first, second = RANDOM.standard_normal((2, 50)) * 0.1 + RANDOM.standard_normal(50) * 100.0
    points = _curve_of([1, 5], [first, second])
    assert points[0].fall is None
    assert points[1].value == pytest.approx(second.mean())
    assert points[1].fall == pytest.approx((first - second).mean())
    assert points[1].fall_error == pytest.approx((first - second).std(ddof=1) / math.sqrt(50))
    assert points[1].standard_error > 50 * points[1].fall_error

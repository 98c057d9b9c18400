"""Seeds as replicates, against SciPy and against numbers computed by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from vae_research.evaluation import replicates
from vae_research.evaluation.replicates import (
    holm,
    mean_interval,
    paired_by_seed,
    t_quantile,
    t_within,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("degrees", [*range(1, 12), 19, 48, 499])
def test_students_t_is_that_of_scipy(degrees):
    for t in (0.0, 0.1, 1.0, 2.5, 12.0):
        expected = 1.0 - 2.0 * stats.t.sf(t, degrees)
        assert t_within(t, degrees) == pytest.approx(expected, abs=1e-14)
    for within in (0.5, 0.9, 0.95, 0.999):
        expected = stats.t.ppf((1.0 + within) / 2.0, degrees)
        assert t_quantile(within, degrees) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("count", [2, 3, 4, 10])
def test_an_interval_is_that_of_scipy(count):
    values = RNG.normal(-100.0, 0.3, count).tolist()
    low, high = stats.t.interval(0.95, count - 1, np.mean(values), stats.sem(values))
    found = mean_interval(values)
    assert found.mean - found.half_width == pytest.approx(low, rel=1e-12)
    assert found.mean + found.half_width == pytest.approx(high, rel=1e-12)
    assert found.count == count


def test_an_interval_covers_the_mean_as_often_as_it_says():
    rows = RNG.normal(size=(2000, 3)).tolist()
    covered = np.mean([abs(found.mean) < found.half_width for found in map(mean_interval, rows)])
    assert covered == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 2000))


def test_one_seed_has_no_interval():
    assert mean_interval([3.0]) == replicates.Interval(3.0, None, 1)


def paired_by_order(setting, baseline):
    """A mutant: forgets which seed a value belongs to."""
    return paired_by_seed(*(dict(enumerate(each.values())) for each in (setting, baseline)))


def test_differences_are_paired_by_seed_whatever_their_order():
    seeds = [4, 0, 7, 2]
    of_seed = RNG.normal(-100.0, 2.0, 4)  # what a seed does to both settings
    setting = dict(zip(seeds, of_seed + np.array([0.5, 0.4, 0.6, 0.45]), strict=True))
    baseline = dict(reversed([*zip(seeds, of_seed, strict=True)]))
    expected = stats.ttest_rel([*setting.values()], [baseline[seed] for seed in seeds])
    low, high = expected.confidence_interval(0.95)
    found = paired_by_seed(setting, baseline)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert found.difference.mean == pytest.approx((low + high) / 2, rel=1e-9)
    assert found.difference.half_width == pytest.approx((high - low) / 2, rel=1e-9)
    # The differences have a range of 0.2, the values one of several nats.
    assert found.difference.half_width < 0.2
    assert abs(stats.ttest_ind([*setting.values()], [*baseline.values()]).pvalue) > 0.1
    assert found.p_value < 0.01
    assert paired_by_order(setting, baseline).p_value > 0.1


def test_seeds_without_a_partner_do_not_count():
    found = paired_by_seed({0: 2.0, 1: 4.0, 2: 7.0, 9: 1e9}, {2: 3.0, 1: 1.0, 0: 1.0, 8: -1e9})
    assert found.difference.count == 3
    assert found.difference.mean == pytest.approx((1.0 + 3.0 + 4.0) / 3)
    assert paired_by_seed({0: 1.0}, {1: 1.0}) is None


@pytest.mark.parametrize("count", [1, 2])
def test_no_p_value_under_three_seeds(count):
    setting = {seed: seed + 1.0 for seed in range(count)}
    found = paired_by_seed(setting, {seed: seed**2 for seed in range(count)})
    assert (found.difference.count, found.p_value) == (count, None)
    assert (found.difference.half_width is None) == (count == 1)


def test_equal_differences_have_no_p_value():
    found = paired_by_seed({0: 20.0, 1: 20.0, 2: 20.0}, {0: 20.0, 1: 20.0, 2: 20.0})
    assert found == replicates.PairedBySeed(replicates.Interval(0.0, 0.0, 3), None)


def test_holm_by_hand():
    # Sorted: 0.005 * 4, 0.01 * 3, 0.03 * 2, and 0.04 * 1, which is raised to the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_the_chance_of_any_false_positive():
    """Of 5 comparisons without any difference, one p-value below 0.05 is seen in 5 % of studies."""
    studies = RNG.uniform(size=(4000, 5)).tolist()
    any_found = np.mean([min(holm(p_values)) < 0.05 for p_values in studies])
    assert any_found == pytest.approx(0.05, abs=0.015)
    assert np.mean([min(p_values) < 0.05 for p_values in studies]) > 0.2

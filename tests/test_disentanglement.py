"""Metrics of disentanglement: their largest values, what they must not depend on, their errors."""

import dataclasses
import json
import time
import warnings

import numpy as np
import pytest

import vae_research as vr
from tests.disentangled import (
    LARGEST,
    METRICS,
    SIZES,
    grid,
    mixing,
    noise,
    scores,
    standardised,
)

FACTORS = grid()
IDENTITY = standardised(FACTORS)

EQUIVALENT = {
    "as they are": lambda codes: codes,
    "in another order": lambda codes: codes[:, [2, 0, 1]],
    "in another scale": lambda codes: codes * [1e-3, 40.0, 7.0],
    "with another sign and origin": lambda codes: codes * [-1.0, 1.0, -1.0] + [5.0, -3.0, 0.25],
}

every_metric = pytest.mark.parametrize("name", METRICS)


@every_metric
@pytest.mark.parametrize("change", EQUIVALENT)
def test_factors_as_codes_have_the_largest_score(name, change):
    for part, value in scores(name, EQUIVALENT[change](IDENTITY), FACTORS).items():
        largest, tolerance = LARGEST[part]
        if part == "infoc" and change == "in another scale":
            # Codes count as active by their range, and one of these has next to none: its factor
            # has no code.
            assert value < 0.98
        else:
            assert value == pytest.approx(largest, abs=tolerance), part


# By how much rotated codes score lower, all of which mix all three factors. Informativeness and
# explicitness do not ask which code knows; the beta-VAE score finds directions, not codes.
LOWER = {
    "mig": 0.8,
    "sap": 0.15,
    "dci_disentanglement": 0.5,
    "dci_completeness": 0.5,
    "modularity": 0.15,
    "infom": 0.5,
    "infoc": 0.5,
    "factor_vae": 0.25,
    "udr_lasso": 0.3,
    "udr_spearman": 0.3,
}


@every_metric
def test_rotated_codes_score_lower(name):
    for part, value in scores(name, IDENTITY @ mixing(), FACTORS).items():
        if part in LOWER:
            assert value < LARGEST[part][0] - LOWER[part], part
        else:
            assert part in ("dci_informativeness", "explicitness", "infoe", "beta_vae")


# Of codes that know nothing. A third of the votes is right by chance; so is the mean of 1 / 3,
# 1 / 4 and 1 / 5 of the values. Modularity, InfoM and InfoC do not ask how much a code knows: a
# number of small errors has a largest one.
OF_NOISE = {
    "mig": (0.0, 0.01),
    "sap": (0.0, 0.04),
    "dci_disentanglement": (0.0, 0.1),
    "dci_completeness": (0.0, 0.1),
    "dci_informativeness": (0.26, 0.05),
    "explicitness": (0.5, 0.03),
    "infoe": (0.0, 0.02),
    "factor_vae": (1 / 3, 0.12),
    "beta_vae": (1 / 3, 0.12),
    "udr_lasso": (0.0, 0.01),
    "udr_spearman": (0.0, 0.03),
}


@every_metric
def test_codes_of_noise_score_as_chance(name):
    for part, value in scores(name, noise(len(FACTORS), 3), FACTORS).items():
        if part in OF_NOISE:
            expected, tolerance = OF_NOISE[part]
            assert value == pytest.approx(expected, abs=tolerance), part
        else:
            assert part in ("modularity", "infom", "infoc")
            assert 0.0 <= value <= 0.9


@every_metric
def test_a_code_that_never_changes_takes_no_part(name):
    codes = np.concatenate([np.full((len(FACTORS), 1), 4.0), IDENTITY], axis=1)
    for part, value in scores(name, codes, FACTORS).items():
        largest, tolerance = LARGEST[part]
        if part == "modularity":  # the mean over all codes: it counts, as one without information
            largest *= 3 / 4
        if part in {"udr_spearman", "udr_lasso"}:  # the number of codes divides
            largest *= 6 / 7
        assert value == pytest.approx(largest, abs=max(tolerance, 1e-9)), part


@every_metric
def test_names_of_values_are_only_names(name):
    renamed = np.array([7, -3, 100, 55, 12])[FACTORS]
    codes = IDENTITY + noise(len(FACTORS), 3) / 2.0
    ours = {"udr_lasso", "udr_spearman"}  # in these tests the factors are numbers, too
    if name not in ours:
        for part, value in scores(name, codes, FACTORS).items():
            renamed_value = scores(name, codes, renamed)[part]
            # The order of classes decides about equal margins, and about what is drawn.
            assert renamed_value == pytest.approx(value, abs=0.04), part


@every_metric
def test_the_same_input_and_seed_give_the_same_score(name):
    codes = IDENTITY + noise(len(FACTORS), 3)
    first, second = (METRICS[name](codes, FACTORS, repeats=3, seed=7) for _ in range(2))
    assert first == second
    given = codes.copy(), FACTORS.copy()
    scores(name, codes, FACTORS)
    np.testing.assert_array_equal(codes, given[0])
    np.testing.assert_array_equal(FACTORS, given[1])


@every_metric
def test_a_score_has_its_error_its_rows_and_is_written_as_json(name):
    found = METRICS[name](IDENTITY + noise(len(FACTORS), 3), FACTORS, repeats=4)
    for score in found.values() if isinstance(found, dict) else [found]:
        assert dataclasses.is_dataclass(score)
        assert score.standard_error >= 0.0
        assert (score.count, score.repeats) == (len(FACTORS), 4)
        told = json.loads(json.dumps(score.as_dict(), allow_nan=False))
        assert told["value"] == score.value
        parts = [getattr(score, part) for part in ("per_factor", "per_code", "per_model", "matrix")]
        assert any(part is not None for part in parts)
    single = METRICS[name](IDENTITY, FACTORS, repeats=1)
    for score in single.values() if isinstance(single, dict) else [single]:
        assert score.standard_error is None
        assert score.repeats == 1


def test_the_standard_error_is_the_spread_over_data_sets():
    random = np.random.default_rng(5)
    values, errors = [], []
    for _ in range(80):
        factors = np.stack([random.integers(size, size=800) for size in SIZES], axis=1)
        score = vr.disentanglement.mig(
            standardised(factors) + random.normal(size=factors.shape), factors, repeats=10
        )
        values.append(score.value)
        errors.append(score.standard_error)
    # 80 values know their standard deviation to 8 %; the small groups have a larger bias of MIG.
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(values), rel=0.4)


FULL_SIZE = {
    "mig": vr.disentanglement.mig,
    "sap": vr.disentanglement.sap,
    "dci": vr.disentanglement.dci,
    "modularity_explicitness": vr.disentanglement.modularity_explicitness,
    "infomec": vr.disentanglement.infomec,
    "factor_vae_score": lambda codes, factors: vr.disentanglement.factor_vae_score(
        vr.disentanglement.RowSampler(codes, factors)
    ),
    "beta_vae_score": lambda codes, factors: vr.disentanglement.beta_vae_score(
        vr.disentanglement.RowSampler(codes, factors)
    ),
    "udr": lambda codes, factors: vr.disentanglement.udr([codes, -codes, codes[:, ::-1]], None),
}


@pytest.mark.soak
@pytest.mark.parametrize("name", FULL_SIZE)
def test_ten_thousand_rows_take_seconds(name):
    factors = np.random.default_rng(0).integers([3, 6, 40, 32, 32], size=(10_000, 5))
    known = standardised(factors) + 0.3 * noise(10_000, 5)
    codes = np.concatenate([known, noise(10_000, 5, seed=1)], axis=1)
    start = time.process_time()
    FULL_SIZE[name](codes, factors)
    assert time.process_time() - start < (60.0 if name == "dci" else 10.0)


def test_a_function_of_factors_is_sampled_as_rows_are():
    calls = []

    def codes_of(factors):
        calls.append(len(factors))
        assert np.all((factors >= 0) & (factors < [3, 1, 4, 5]))
        return standardised(factors[:, [0, 2, 3]])

    sampler = vr.disentanglement.FunctionSampler(codes_of, [3, 1, 4, 5], rows_per_call=700)
    score = vr.disentanglement.factor_vae_score(
        sampler, train_votes=100, test_votes=50, images=8, variance_images=500, repeats=2
    )
    assert (score.value, score.count, score.repeats) == (1.0, 500 + 150 * 8, 2)
    assert max(calls) == 700
    assert score.matrix.shape == (3, 3)  # the factor with one value is never fixed


def test_groups_of_a_sampler_share_the_factor_that_is_fixed_and_no_other():
    random = np.random.default_rng(0)
    fixed = np.array([2, 0, -1, 1] * 25)
    samplers = [
        vr.disentanglement.RowSampler(FACTORS, FACTORS),
        vr.disentanglement.FunctionSampler(lambda factors: factors, SIZES),
    ]
    for sampler in samplers:
        drawn = sampler.draw(fixed, 40, random)
        assert drawn.shape == (100, 40, 3)
        same = np.ptp(drawn, axis=1) == 0.0
        np.testing.assert_array_equal(same, fixed[:, np.newaxis] == np.arange(3))
        for factor, size in enumerate(SIZES):  # all values are drawn, for groups and within them
            assert set(drawn[fixed == factor, 0, factor]) == set(range(size))
            assert set(drawn[fixed != factor][..., factor].ravel()) == set(range(size))


def test_a_factor_with_nearly_as_many_values_as_rows_gives_no_warnings():
    factors = np.stack([np.repeat(np.arange(60), 2), np.arange(120) % 3], axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vr.disentanglement.modularity_explicitness(factors + 0.0, factors, repeats=1)
        vr.disentanglement.infomec(factors + 0.0, factors, repeats=1)

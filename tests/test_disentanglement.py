"""Metrics of disentanglement: their largest values, what they must not depend on, their errors."""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import vae_research as vr
from tests.disentangled import (
    METRICS,
    SIZES,
    grid,
    mixing,
    noise,
    scores,
    standardised,
)

CHECKOUT = Path(__file__).resolve().parents[1]
FACTORS = grid()
IDENTITY = standardised(FACTORS)

# Of the factors as codes. One class against the rest tells three values apart, of four or five the
# two outermost; the second best code predicts one value: SAP is the mean of 1 - 1 / 3,
# 2 / 4 - 1 / 4 and 2 / 5 - 1 / 5. The weights of the Lasso are smaller by its penalty.
LARGEST = {
    "mig": (1.0, 1e-9),
    "sap": (0.372, 0.03),
    "dci_disentanglement": (1.0, 1e-3),
    "dci_completeness": (1.0, 1e-3),
    "dci_informativeness": (1.0, 0.0),
    "modularity": (1.0, 1e-9),
    "explicitness": (1.0, 1e-3),
    "infom": (1.0, 0.02),
    "infoe": (1.0, 1e-3),
    "infoc": (1.0, 0.02),
    "factor_vae": (1.0, 0.0),
    "beta_vae": (1.0, 0.0),
    "udr_lasso": (0.9, 1e-3),
    "udr_spearman": (1.0, 1e-9),
}
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


# ---------------------------------------------------------------- few rows, few codes, mistakes


def test_a_single_code_is_compared_with_one_that_knows_nothing():
    assert vr.disentanglement.mig(IDENTITY[:, :1], FACTORS[:, :1], repeats=1).value == 1.0


@pytest.mark.parametrize(
    ("name", "codes", "factors", "message"),
    [
        ("sap", 1, 3, "SAP needs at least 2 codes, got 1"),
        ("dci", 1, 3, "DCI needs at least 2 codes, got 1"),
        ("infomec", 1, 3, "InfoMEC needs at least 2 codes, got 1"),
        ("dci", 3, 1, "DCI compares factors and needs at least 2, got 1"),
        ("infomec", 3, 1, "InfoMEC compares factors and needs at least 2, got 1"),
        ("modularity_explicitness", 3, 1, "Modularity compares factors and needs at least 2"),
    ],
)
def test_what_cannot_be_compared_is_named(name, codes, factors, message):
    with pytest.raises(ValueError, match=message):
        METRICS[name](IDENTITY[:, :codes], FACTORS[:, :factors])


OF_FACTORS = [name for name in METRICS if not name.startswith("udr")]


@pytest.mark.parametrize("name", OF_FACTORS)
def test_fewer_codes_than_factors_are_scored(name):
    for value in scores(name, IDENTITY[:, :2], FACTORS).values():
        assert 0.0 <= value <= 1.0


@pytest.mark.parametrize("name", OF_FACTORS)
def test_all_codes_may_be_constant(name):
    for part, value in scores(name, np.ones((len(FACTORS), 3)), FACTORS).items():
        if part in ("dci_informativeness", "beta_vae", "explicitness"):  # chance
            assert 0.2 < value <= 0.5
        else:
            assert value == pytest.approx(0.0, abs=1e-6), part


@pytest.mark.parametrize("name", OF_FACTORS)
def test_a_value_that_occurs_once_is_no_mistake(name):
    factors = FACTORS.copy()
    factors[0, 0] = 9
    for part, value in scores(name, IDENTITY, factors).items():
        # Only the row itself is wrong, or not predicted: one of 1200.
        assert value == pytest.approx(LARGEST[part][0], abs=LARGEST[part][1] + 0.02), part


@pytest.mark.parametrize("name", OF_FACTORS)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c, f: (c[:, 0], f), r"codes must have the shape \[rows, codes\], got \[1200\]"),
        (lambda c, f: (c, f[:, 0]), r"factors must have the shape \[rows, factors\]"),
        (lambda c, f: (c[:, :0], f), r"codes must have the shape .* got \[1200, 0\]"),
        (lambda c, f: (c, f[:-1]), "There are 1200 rows of codes and 1199 of factors"),
        (lambda c, f: (c, f.astype(float)), "factors must be integers .* got float64"),
        (lambda c, f: (c, f * [1, 0, 1]), r"Factors in columns \[1\] have one value"),
        (lambda c, f: (np.where(c == c[0], np.nan, c), f), "not finite in .* of 1200 rows"),
        (lambda c, f: (np.where(c == c[0], np.inf, c), f), r"columns \[0, 1, 2\]"),
        (lambda c, f: (c.astype(str), f), "codes must be real numbers"),
    ],
)
def test_mistakes_are_named(name, spoil, message):
    with pytest.raises(ValueError, match=message):
        METRICS[name](*spoil(IDENTITY, FACTORS))


def test_fewer_rows_than_bins_are_refused():
    for name in ("mig", "modularity_explicitness"):
        with pytest.raises(ValueError, match="needs at least 20 rows, got 19"):
            METRICS[name](IDENTITY[:19], np.arange(19)[:, None] % [2, 3, 4])
    with pytest.raises(ValueError, match="A code in 30 bins needs at least 30 rows, got 25"):
        vr.disentanglement.mutual_information(IDENTITY[:25], FACTORS[:25], bins=30)
    few = np.arange(30)[:, None] % [2, 3, 5]
    score = vr.disentanglement.mig(IDENTITY[:30], few)  # groups would have 6 rows
    assert (score.standard_error, score.repeats) == (None, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.mig(IDENTITY, FACTORS, bins=1), "bins must be an integer >= 2"),
        (
            lambda m: m.mig(IDENTITY, FACTORS, repeats=0),
            "repeats must be an integer from 1 to 1200",
        ),
        (lambda m: m.mig(IDENTITY, FACTORS, seed=-1), "seed must be an integer from 0"),
        (lambda m: m.sap(IDENTITY, FACTORS, penalty=0.0), "penalty must be above 0"),
        (lambda m: m.dci(IDENTITY, FACTORS, rounds=0), "rounds must be an integer >= 1"),
        (lambda m: m.udr([IDENTITY], None), "compares models and needs at least 2, got 1"),
        (lambda m: m.udr([IDENTITY, IDENTITY[1:]], None), r"got \[1200, 1199\] rows"),
        (lambda m: m.udr([IDENTITY] * 2, [np.ones(3)]), "codes of 2 models, and the KL of 1"),
        (lambda m: m.udr([IDENTITY] * 2, [np.ones(3), np.ones(2)]), "kl of model 1 must have 3"),
        (lambda m: m.udr([IDENTITY] * 2, None, similarity="cosine"), "one of .*'lasso'"),
        (lambda m: m.RowSampler(IDENTITY[:3], np.arange(3)[:, None]), "occurs in two of 3 rows"),
        (lambda m: m.FunctionSampler(np.asarray, [1, 1]), "At least one factor must have two"),
        (lambda m: m.FunctionSampler(np.asarray, [2, 0]), "sizes must be an integer >= 1"),
    ],
)
def test_arguments_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(vr.disentanglement)


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


def test_what_needs_scikit_learn_says_so_and_the_rest_does_without():
    program = """
import sys
sys.modules["sklearn"] = None
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == "sklearn" else find(name)
import numpy as np
from vae_research import disentanglement as metrics
codes = np.random.default_rng(0).normal(size=(60, 3))
factors = np.arange(60)[:, None] // [1, 3] % [3, 4]
sampler = metrics.RowSampler(codes, factors)
for call in (
    lambda: metrics.mig(codes, factors), lambda: metrics.sap(codes, factors),
    lambda: metrics.udr([codes, codes], None),
    lambda: metrics.factor_vae_score(sampler, train_votes=9, test_votes=9, images=4),
    lambda: metrics.dci(codes, factors), lambda: metrics.infomec(codes, factors),
    lambda: metrics.modularity_explicitness(codes, factors),
    lambda: metrics.beta_vae_score(sampler),
):
    try:
        call()
        print("done")
    except ImportError as error:
        print(error)
print(sorted({"tensorflow", "keras", "scipy"} & sys.modules.keys()))
"""
    command = [sys.executable, "-c", program]
    told = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    needed = "needs scikit-learn: pip install 'vae_research[disentanglement]'."
    names = ["dci", "infomec", "modularity_explicitness", "beta_vae_score"]
    assert told.stdout.splitlines() == ["done"] * 4 + [f"{name} {needed}" for name in names] + [
        "[]"
    ]

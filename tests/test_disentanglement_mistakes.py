"""Metrics of disentanglement: few rows, few codes, arguments out of range, a missing package."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vae_research as vr
from tests.disentangled import LARGEST, METRICS, grid, scores, standardised

CHECKOUT = Path(__file__).resolve().parents[1]
FACTORS = grid()
IDENTITY = standardised(FACTORS)


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
        (
            lambda m: m.sap(IDENTITY, FACTORS, penalty=np.inf),
            "penalty must be a finite number above 0",
        ),
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

"""Defects of published code of these metrics, planted one by one: a test must notice each.

Their sources are named where they are known. A proof is a function that passes, and fails if the
defect is planted.
"""

import numpy as np
import pytest

from tests.disentangled import grid, noise, scores, standardised, votes
from vae_research import disentanglement
from vae_research.disentanglement import (
    attributes,
    checks,
    gap,
    importance,
    information,
    modularity,
    predictive_information,
    ranking,
)
from vae_research.disentanglement import (
    votes as voting,
)
from vae_research.disentanglement.scores import halves

FACTORS = grid()
IDENTITY = standardised(FACTORS)


# ---------------------------------------------------------------- proofs


def the_gap_of_the_factors_is_one():
    assert disentanglement.mig(IDENTITY, FACTORS, repeats=1).value == pytest.approx(1.0, abs=1e-9)


def gaps_are_between_codes():
    # Both codes know all of factor 0 and nothing of factor 1.
    codes = FACTORS[:, [0, 0]].astype(float)
    assert disentanglement.mig(codes, FACTORS[:, :2], repeats=1).value == pytest.approx(0.0)


def unequal_numbers_of_codes_and_factors():
    # Two codes for one factor are disentangled and not complete, the reverse for one code of two.
    importances = np.array([[0.5, 0.0, 0.0], [0.5, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    per_code, _ = importance.disentanglement_of_codes(importances)
    np.testing.assert_allclose(per_code, [1.0, 1.0, 1.0 - np.log(2) / np.log(3), 0.0])
    np.testing.assert_allclose(importance.completeness_of_factors(importances), [0.5, 1.0, 1.0])


def only_rows_that_were_not_fitted_count():
    train, _ = halves(len(FACTORS), 0)
    codes = noise(len(FACTORS), 3)
    codes[train] = IDENTITY[train]  # nothing of the other half can be known
    assert scores("sap", codes, FACTORS)["sap"] < 0.1
    assert scores("dci", codes, FACTORS)["dci_informativeness"] < 0.35
    assert scores("modularity_explicitness", codes, FACTORS)["explicitness"] < 0.55


def a_constant_code_wins_no_vote():
    codes = np.concatenate([np.zeros((len(FACTORS), 1)), IDENTITY], axis=1)
    assert votes(codes, FACTORS, repeats=1).value == 1.0


def votes_do_not_depend_on_scale():
    codes = IDENTITY + 0.1 * noise(len(FACTORS), 3)
    assert votes(codes * [0.01, 1.0, 100.0], FACTORS, repeats=1).value == 1.0


def modularity_of_half_known_codes():
    information = np.array([[2.0, 1.0, 1.0], [0.0, 2.0, 2.0]])
    np.testing.assert_allclose(modularity.modularity_of_codes(information), [0.75, 0.5])


def collapsed_codes_change_nothing():
    codes = np.concatenate([IDENTITY, 0.01 * noise(len(FACTORS), 3)], axis=1)
    found = scores("infomec", codes, FACTORS)
    assert found["infom"] == pytest.approx(1.0, abs=0.02)
    assert found["infoc"] == pytest.approx(1.0, abs=0.02)


def codes_without_kl_change_no_ranking():
    def with_noise(seed):
        return np.concatenate([IDENTITY, noise(len(FACTORS), 3, seed)], axis=1)

    kl = [np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])] * 3
    # The noise is the same in all models, as codes are that a network makes from the same images.
    for score in disentanglement.udr([with_noise(0), -with_noise(0), with_noise(0)], kl, repeats=1):
        bare = disentanglement.udr([IDENTITY] * 3, None, repeats=1)[0].value
        assert score.value == pytest.approx(bare, rel=1e-9)
    for score in disentanglement.udr(
        [with_noise(0), with_noise(1), with_noise(2)], kl, similarity="spearman", repeats=1
    ):
        assert score.value == pytest.approx(1.0, rel=1e-9)


def a_model_does_not_agree_with_itself():
    models = [noise(2000, 3, seed) for seed in range(2)]
    for score in disentanglement.udr(models, None, repeats=1):
        assert score.value < 0.1


def a_standard_error_falls_with_the_root_of_the_rows():
    errors = []
    for copies in (20, 320):
        factors = grid(copies)
        codes = standardised(factors) + noise(len(factors), 3)
        errors.append(disentanglement.mig(codes, factors, repeats=40).standard_error)
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.5)


# ---------------------------------------------------------------- defects


def replace(module, name, make):
    """A defect: `make` of what `module` has under this name."""
    return lambda patch: patch.setattr(module, name, make(getattr(module, name)))


def in_batches(right):
    def binned(codes, bins):
        return np.concatenate([right(part, bins) for part in np.array_split(codes, 40)])

    return binned


def fitted_rows(right):
    def halves(count, seed):
        train, _ = right(count, seed)
        return train, train

    return halves


def on_fitted_rows(patch):
    for module in (attributes, importance, modularity):
        patch.setattr(module, "halves", fitted_rows(module.halves))


def normalised_by_factor(right):
    def disentanglement_of_codes(importances):
        shares = importances / importances.sum(axis=0)
        logs = np.log(np.where(shares > 0.0, shares, 1.0))
        return 1.0 + (shares * logs).sum(axis=1) / np.log(shares.shape[1]), right(importances)[1]

    return disentanglement_of_codes


def with_itself(values, **options):
    """The median over all models, of which each agrees fully with itself."""
    return np.median(np.where(np.isnan(values), 1.0, values), **options)


class Numpy:
    """NumPy with some functions replaced, for one module."""

    def __init__(self, **functions):
        self.__dict__.update(functions)

    def __getattr__(self, name):
        return getattr(np, name)


DEFECTS = {
    # YannDubs/disentangling-vae, issue 78: `.view(latent_dim, n_samples)` for a transpose.
    "a transpose made by reshaping": (
        replace(
            gap,
            "binned",
            lambda right: lambda codes, bins: right(codes.reshape(codes.shape[::-1]).T, bins),
        ),
        the_gap_of_the_factors_is_one,
    ),
    "bins of each batch": (replace(gap, "binned", in_batches), the_gap_of_the_factors_is_one),
    "entropy in bits, information in nats": (
        replace(gap, "entropies", lambda right: lambda factors: right(factors) / np.log(2.0)),
        the_gap_of_the_factors_is_one,
    ),
    "a gap that is not divided by the entropy": (
        replace(gap, "entropies", lambda right: lambda factors: np.ones_like(right(factors))),
        the_gap_of_the_factors_is_one,
    ),
    "bins that are as many as the rows": (
        replace(
            gap,
            "binned",
            lambda right: lambda codes, bins: right(codes + 0.3 * noise(1200, 3), 1200),
        ),
        the_gap_of_the_factors_is_one,
    ),
    "a gap between factors": (
        replace(gap, "gap_of_best_two", lambda right: lambda matrix: right(matrix.T)),
        gaps_are_between_codes,
    ),
    "importances normalised by factor": (
        replace(importance, "disentanglement_of_codes", normalised_by_factor),
        unequal_numbers_of_codes_and_factors,
    ),
    "entropy of importances along the wrong axis": (
        replace(importance, "completeness_of_factors", lambda right: lambda table: right(table.T)),
        unequal_numbers_of_codes_and_factors,
    ),
    "entropy of importances in nats": (
        lambda patch: patch.setattr(
            importance, "np", Numpy(log=lambda x, **o: 1.0 if np.ndim(x) == 0 else np.log(x, **o))
        ),
        unequal_numbers_of_codes_and_factors,
    ),
    "a score of the rows that were fitted": (on_fitted_rows, only_rows_that_were_not_fitted_count),
    # disentanglement_lib with its default threshold of 0: 0 / 0 is NaN, the smallest for argmin.
    "a constant code that varies least": (
        replace(
            voting,
            "_votes",
            lambda right: (
                lambda sampler, scale, *rest: right(
                    sampler, np.where(scale > 0.0, scale, 1.0), *rest
                )
            ),
        ),
        a_constant_code_wins_no_vote,
    ),
    "variances that are not divided by those of all images": (
        replace(
            voting,
            "_votes",
            lambda right: lambda sampler, scale, *rest: right(sampler, np.ones_like(scale), *rest),
        ),
        votes_do_not_depend_on_scale,
    ),
    "modularity of information that is not squared": (
        replace(modularity, "modularity_of_codes", lambda right: lambda m: right(np.sqrt(m))),
        modularity_of_half_known_codes,
    ),
    "modularity divided by the number of factors": (
        replace(
            modularity,
            "modularity_of_codes",
            lambda right: lambda m: right(np.concatenate([m, 0.0 * m[:, :1]], axis=1)),
        ),
        modularity_of_half_known_codes,
    ),
    "inactive codes in InfoM and InfoC": (
        lambda patch: patch.setattr(predictive_information, "_ACTIVE_RANGE", 0.0),
        collapsed_codes_change_nothing,
    ),
    "a ranking that is not masked": (
        replace(
            ranking,
            "_informative",
            lambda right: lambda codes, kl, least: right(codes, None, least),
        ),
        codes_without_kl_change_no_ranking,
    ),
    "a model that is compared with itself": (
        lambda patch: patch.setattr(ranking, "np", Numpy(nanmedian=with_itself)),
        a_model_does_not_agree_with_itself,
    ),
    "a standard deviation for a standard error": (
        replace(
            gap,
            "errors_over_groups",
            lambda right: (
                lambda *given, **options: right(*given, **options) * np.sqrt(len(given[1]))
            ),
        ),
        a_standard_error_falls_with_the_root_of_the_rows,
    ),
}


@pytest.mark.parametrize("proof", {proof.__name__: proof for _, proof in DEFECTS.values()}.values())
def test_proofs_hold(proof):
    proof()


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_noticed(name, monkeypatch):
    plant, proof = DEFECTS[name]
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        proof()


def test_a_reshaped_transpose_takes_next_to_all_of_the_gap(monkeypatch):
    plant, _ = DEFECTS["a transpose made by reshaping"]
    plant(monkeypatch)
    assert disentanglement.mig(IDENTITY, FACTORS, repeats=1).value < 0.05


def test_mistakes_in_the_tests_themselves_would_show():
    # The modules under test are those that are patched.
    assert information.binned is gap.binned
    assert checks.checked is gap.checked

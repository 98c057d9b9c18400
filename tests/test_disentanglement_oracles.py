"""Metrics of disentanglement against values by hand, and against SciPy and scikit-learn."""

import numpy as np
import pytest
from scipy import stats
from sklearn import linear_model
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.feature_selection import mutual_info_classif
from sklearn.metrics import log_loss, mutual_info_score, roc_auc_score
from sklearn.svm import LinearSVC

from tests.disentangled import POINTS, VOTES, grid, noise, rotation, standardised
from vae_research import disentanglement
from vae_research.disentanglement.attributes import accuracies, linear_machines
from vae_research.disentanglement.importance import (
    completeness_of_factors,
    disentanglement_of_codes,
    importances_and_accuracies,
)
from vae_research.disentanglement.information import binned, entropies
from vae_research.disentanglement.modularity import modularity_of_codes
from vae_research.disentanglement.neighbours import neighbour_information
from vae_research.disentanglement.predictive_information import predictive_information
from vae_research.disentanglement.ranking import agreement, lasso_weights
from vae_research.disentanglement.ranks import area_under_curve, average_ranks
from vae_research.disentanglement.scores import halves

FACTORS = grid()
NOISY = standardised(FACTORS) @ rotation(3) + noise(len(FACTORS), 3) / 2.0


# ---------------------------------------------------------------- mutual information


def test_mutual_information_of_a_table_by_hand():
    # Counts 3, 1 / 1, 3 of 8: 6/8 log(3/8 / (1/2 * 1/2)) + 2/8 log(1/8 / (1/2 * 1/2)).
    codes = np.array([[0.0], [0.0], [0.0], [0.0], [1.0], [1.0], [1.0], [1.0]])
    factors = np.array([[0, 1], [0, 1], [0, 1], [1, 1], [0, 1], [1, 0], [1, 0], [1, 0]])
    found = disentanglement.mutual_information(codes, factors, bins=2)
    # And of 0, 4 / 3, 1: H(5/8) - 1/2 H(3/4).
    first = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    second = stats.entropy([5 / 8, 3 / 8]) - stats.entropy([3 / 4, 1 / 4]) / 2.0
    np.testing.assert_allclose(found, [[first, second]], rtol=1e-12)


def test_mig_by_hand():
    # Code 0 knows two bits of factor 0 (4 values), code 1 one of them; code 2 knows factor 1, and
    # no other does: gaps of 1 bit of 2, and of 1 bit of 1.
    factors = grid(5, (4, 2))
    codes = np.stack([factors[:, 0], factors[:, 0] // 2, factors[:, 1]], axis=1)
    score = disentanglement.mig(codes, factors, repeats=1)
    np.testing.assert_allclose(score.per_factor, [0.5, 1.0], rtol=1e-12)
    assert score.value == pytest.approx(0.75, rel=1e-12)
    bits = np.array([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(score.matrix, bits * np.log(2.0), atol=1e-12)


def test_more_values_than_bins_bound_the_gap():
    factors = np.stack([np.arange(4000) % 40, np.arange(4000) // 40 % 2], axis=1)
    score = disentanglement.mig(factors.astype(float), factors, repeats=1)
    # 40 values, two in each of 20 bins.
    np.testing.assert_allclose(score.per_factor, [np.log(20) / np.log(40), 1.0], rtol=1e-9)


def test_mutual_information_is_that_of_scikit_learn():
    found = disentanglement.mutual_information(NOISY, FACTORS, bins=11)
    for i, code in enumerate(NOISY.T):
        bins = np.digitize(code, np.histogram(code, 11)[1][:-1])
        for j, factor in enumerate(FACTORS.T):
            assert found[i, j] == pytest.approx(mutual_info_score(bins, factor), rel=1e-9)
    np.testing.assert_array_equal(binned(NOISY, 11)[:, 2] + 1, bins)
    np.testing.assert_allclose(entropies(FACTORS), np.log([3, 4, 5]), rtol=1e-12)


def test_mutual_information_of_noise_is_its_bias():
    random = np.random.default_rng(0)
    factors = random.integers(30, size=(5000, 1))
    found = disentanglement.mutual_information(random.uniform(size=(5000, 40)), factors)
    # Miller 1955: (bins - 1) (values - 1) / (2 n) = 0.0551; 2 n I is chi-squared with 551 degrees
    # of freedom, of which the mean of 40 has a standard deviation of 0.0005.
    assert found.mean() == pytest.approx(19 * 29 / 10_000, abs=0.0025)


@pytest.mark.parametrize("neighbours", [1, 3, 10])
def test_information_of_neighbours_is_that_of_scikit_learn(neighbours):
    labels = np.concatenate([FACTORS[:, 2], [5, 6, 6]])  # one class with a row, one with two
    feature = np.concatenate([NOISY[:, 0], [0.1, 0.2, -0.3]])
    ours = neighbour_information(feature, labels, neighbours)
    theirs = mutual_info_classif(
        feature[:, np.newaxis], labels, discrete_features=False, n_neighbors=neighbours
    )
    assert ours > 0.01
    assert ours == pytest.approx(theirs[0], abs=2e-4)  # theirs has a noise of 1e-10


def test_information_of_neighbours_of_two_normal_classes():
    # At distance 2: I = H(mixture) - H(normal), by numerical integration.
    random = np.random.default_rng(1)
    labels = random.integers(2, size=20_000)
    x = np.linspace(-8.0, 10.0, 20_001)
    density = (stats.norm.pdf(x) + stats.norm.pdf(x, 2.0)) / 2.0
    exact = np.trapezoid(-density * np.log(density), x) - 0.5 * np.log(2.0 * np.pi * np.e)
    found = neighbour_information(random.normal(size=20_000) + 2.0 * labels, labels, 10)
    assert found == pytest.approx(exact, abs=0.015)


# ---------------------------------------------------------------- SAP


@pytest.mark.parametrize("factor", [0, 2])
@pytest.mark.parametrize("penalty", [0.01, 1.0])
def test_linear_machines_are_those_of_liblinear(factor, penalty):
    # Classes of different size: some rows of the largest value only.
    labels = np.where(np.arange(len(FACTORS)) % 3 == 0, FACTORS[:, factor], 0)
    feature = NOISY[:, 1] / NOISY[:, 1].std()
    ours = linear_machines(feature, labels, penalty)
    machine = LinearSVC(C=penalty, class_weight="balanced", dual=False, tol=1e-9, max_iter=10_000)
    machine.fit(feature[:, np.newaxis], labels)
    np.testing.assert_allclose(ours[0], machine.coef_[:, 0], atol=1e-5)
    np.testing.assert_allclose(ours[1], machine.intercept_, atol=1e-5)


def test_two_classes_have_one_machine_of_liblinear():
    labels = (FACTORS[:, 0] == 1).astype(int)
    feature = NOISY[:, 0] / NOISY[:, 0].std()
    slopes, offsets = linear_machines(feature, labels, 0.01)
    machine = LinearSVC(C=0.01, class_weight="balanced", dual=False, tol=1e-9)
    machine.fit(feature[:, np.newaxis], labels)
    np.testing.assert_allclose(slopes, [-machine.coef_[0, 0], machine.coef_[0, 0]], atol=1e-5)
    np.testing.assert_allclose(offsets, machine.intercept_ * [-1, 1], atol=1e-5)


def test_accuracies_are_of_rows_that_were_not_fitted():
    train, test = halves(len(FACTORS), 3)
    scaled = NOISY / NOISY[train].std(axis=0)
    found = accuracies(NOISY - NOISY[train].mean(axis=0), FACTORS, 0.01, 3)
    for i, code in enumerate((scaled - scaled[train].mean(axis=0)).T):
        for j, factor in enumerate(FACTORS.T):
            machine = LinearSVC(C=0.01, class_weight="balanced", dual=False, tol=1e-9)
            machine.fit(code[train, np.newaxis], factor[train])
            theirs = machine.score(code[test, np.newaxis], factor[test])
            assert found[i, j] == pytest.approx(theirs, abs=0.004)  # a row or two of 600


# ---------------------------------------------------------------- DCI


def test_disentanglement_and_completeness_by_hand():
    # Two codes share the first factor and know nothing else; one code knows both others.
    importances = np.array([[0.5, 0.0, 0.0], [0.5, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    per_code, weights = disentanglement_of_codes(importances)
    both = 1.0 - np.log(2.0) / np.log(3.0)
    np.testing.assert_allclose(per_code, [1.0, 1.0, both, 0.0], rtol=1e-12)
    np.testing.assert_allclose(weights, np.array([1.0, 1.0, 4.0, 0.0]) / 6.0, rtol=1e-12)
    np.testing.assert_allclose(completeness_of_factors(importances), [0.5, 1.0, 1.0], rtol=1e-12)


def test_disentanglement_and_completeness_are_entropies_of_scipy():
    importances = np.random.default_rng(0).uniform(size=(5, 3))
    importances /= importances.sum(axis=0)
    per_code, weights = disentanglement_of_codes(importances)
    np.testing.assert_allclose(per_code, 1.0 - stats.entropy(importances, base=3, axis=1))
    np.testing.assert_allclose(weights, importances.sum(axis=1) / 3.0)
    expected = 1.0 - stats.entropy(importances, base=5, axis=0)
    np.testing.assert_allclose(completeness_of_factors(importances), expected)


def test_importances_are_those_of_scikit_learn():
    importances, found = importances_and_accuracies(NOISY, FACTORS, 3, 1)
    train, test = halves(len(FACTORS), 1)
    trees = GradientBoostingClassifier(n_estimators=3, random_state=1)
    trees.fit(NOISY[train], FACTORS[train, 2])
    np.testing.assert_allclose(importances[:, 2], trees.feature_importances_)
    np.testing.assert_allclose(importances.sum(axis=0), 1.0)
    assert found[2] == trees.score(NOISY[test], FACTORS[test, 2])


# ---------------------------------------------------------------- modularity, InfoMEC


def test_modularity_by_hand():
    # theta = 2, 0, 0 against 2, 1, 1: 1 - (1 + 1) / (4 * 2).
    information = np.array([[2.0, 0.0, 0.0], [1.0, 2.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(modularity_of_codes(information), [1.0, 0.75, 0.0, 0.0])


def test_modularity_of_noise_is_that_of_its_bias():
    sizes = np.array([3, 6, 40, 32, 32])
    factors = np.random.default_rng(0).integers(sizes, size=(5000, 5))
    found = disentanglement.modularity_explicitness(noise(5000, 4), factors, repeats=1)
    # Information grows with values - 1: 1 - (2^2 + 5^2 + 31^2 + 31^2) / (4 * 39^2) = 0.68.
    expected = 1.0 - np.sum((np.delete(sizes, 2) - 1) ** 2) / (4 * 39**2)
    assert found["modularity"].value == pytest.approx(expected, abs=0.06)
    assert found["explicitness"].value == pytest.approx(0.5, abs=0.02)


def test_area_under_curve_and_ranks_are_those_of_scikit_learn_and_scipy():
    random = np.random.default_rng(0)
    values = random.integers(6, size=(200, 2)) / 5.0  # many equal ones
    ranks = average_ranks(values)
    np.testing.assert_allclose(ranks, stats.rankdata(values, axis=0))
    positive = random.uniform(size=200) < 0.3 + 0.3 * values[:, 0]
    assert area_under_curve(ranks[:, 0], positive) == pytest.approx(
        roc_auc_score(positive, values[:, 0])
    )


def test_predictive_information_is_a_difference_of_cross_entropies():
    found = predictive_information(NOISY, FACTORS, discrete=False)
    scaled = standardised(NOISY)
    model = linear_model.LogisticRegression(C=np.inf, class_weight="balanced")
    losses = [
        log_loss(FACTORS[:, 2], model.fit(each, FACTORS[:, 2]).predict_proba(each))
        for each in (np.zeros_like(scaled), scaled)
    ]
    assert losses[0] == pytest.approx(np.log(5.0), rel=1e-3)
    assert found[2] == pytest.approx((losses[0] - losses[1]) / losses[0], abs=2e-3)


def test_codes_of_a_codebook_are_counted():
    levels = np.round(NOISY)
    found = disentanglement.infomec(levels, FACTORS, discrete=True, repeats=1)
    information = [[mutual_info_score(a, b) for b in FACTORS.T] for a in levels.T]
    expected = np.array(information) / np.log([3, 4, 5])
    np.testing.assert_allclose(found["infom"].matrix, expected, rtol=1e-9)
    largest = np.mean(expected.max(axis=1) / expected.sum(axis=1))
    assert found["infom"].value == pytest.approx((largest - 1 / 3) / (1 - 1 / 3))
    # The value of one code names the value of a factor: as classes, any order can be read.
    shuffled = np.array([2, 0, 4, 1, 3])[FACTORS].astype(float)
    for part in disentanglement.infomec(shuffled, FACTORS, discrete=True, repeats=1).values():
        assert part.value == pytest.approx(1.0, abs=2e-3)


# ---------------------------------------------------------------- scores of samplers


def test_a_code_of_one_factor_beside_noise_wins_its_votes_and_half_of_the_others():
    # Factor 0 is always found. Otherwise either code wins, and noise stands for one of the others.
    codes = np.stack([standardised(FACTORS)[:, 0], noise(len(FACTORS), 1)[:, 0]], axis=1)
    sampler = disentanglement.RowSampler(codes, FACTORS)
    score = disentanglement.factor_vae_score(sampler, **VOTES, repeats=1)
    assert score.value == pytest.approx(1 / 3 + 2 / 3 * 1 / 2 * 1 / 2, abs=0.07)
    assert score.per_factor[0] == 1.0
    assert sorted(score.per_factor[1:]) == pytest.approx([0.0, 0.5], abs=0.15)
    assert score.matrix[1, 0] == 0
    assert score.matrix.sum() == VOTES["train_votes"]


def test_a_linear_classifier_finds_rotated_factors_too():
    # The known weakness of the score of the beta-VAE paper.
    sampler = disentanglement.RowSampler(standardised(FACTORS) @ rotation(3), FACTORS)
    assert disentanglement.beta_vae_score(sampler, **POINTS, repeats=1).value > 0.9


# ---------------------------------------------------------------- UDR


def test_agreement_by_hand():
    # Columns: 0.8^2 / 1 and 0.6^2 / 0.6. Rows: 0.8^2 / 0.8, 0.6^2 / 0.8 and 0. Five codes.
    similarities = np.array([[0.8, 0.0], [0.2, 0.6], [0.0, 0.0]])
    expected = (0.64 + 0.6 + 0.8 + 0.45) / 5
    assert agreement(similarities) == pytest.approx(expected, rel=1e-12)
    assert agreement(similarities.T) == pytest.approx(expected, rel=1e-12)
    assert agreement(np.zeros((3, 0))) == 0.0


def test_weights_are_those_of_the_lasso_of_scikit_learn():
    features = standardised(NOISY @ np.array([[1.0, 0.9, 0.0], [0.0, 0.4, 0.0], [0.0, 0.0, 1.0]]))
    targets = standardised(FACTORS)
    ours = lasso_weights(
        features.T @ features / len(features), features.T @ targets / len(features), 0.1
    )
    theirs = linear_model.Lasso(alpha=0.1, tol=1e-10, max_iter=10_000).fit(features, targets)
    np.testing.assert_allclose(ours, theirs.coef_.T, atol=1e-6)
    assert np.any(ours == 0.0)


def test_udr_is_a_median_of_rank_correlations_of_scipy():
    models = [
        NOISY[:, [2, 0, 1]] ** 3,
        NOISY + noise(len(NOISY), 3, seed=1),
        noise(1200, 3, seed=2),
    ]
    models.append(NOISY * [1.0, -1.0, 2.0] + 0.3 * noise(1200, 3, seed=3))
    kl = [np.ones(3), np.array([1.0, 0.5, 0.009]), np.full(3, 0.02), np.ones(3)]
    found = disentanglement.udr(models, kl, similarity="spearman", repeats=1)
    for i, score in enumerate(found):
        pairs = []
        for j, other in enumerate(models):
            if i == j:
                continue
            correlations = [
                [abs(stats.spearmanr(a, b).statistic) for b in other.T[kl[j] > 0.01]]
                for a in models[i].T[kl[i] > 0.01]
            ]
            pairs.append(agreement(np.array(correlations)))
            assert score.per_model[j] == pytest.approx(pairs[-1], rel=1e-9)
        assert score.value == pytest.approx(np.median(pairs), rel=1e-9)
        assert np.isnan(score.per_model[i])


def test_udr_with_the_lasso_judges_a_model_by_how_the_others_predict_its_codes():
    # One code of the second model is the sum of both of the first: it predicts neither alone.
    first = noise(4000, 2)
    second = np.stack([first.sum(axis=1), noise(4000, 1, seed=1)[:, 0]], axis=1)
    found = disentanglement.udr([first, second], None, repeats=1)
    scaled = [standardised(model) for model in (first, second)]
    for target, features in ((0, 1), (1, 0)):
        model = linear_model.Lasso(alpha=0.1, tol=1e-10).fit(scaled[features], scaled[target])
        expected = agreement(np.abs(model.coef_.T))
        assert found[target].value == pytest.approx(expected, rel=1e-6)
    assert found[0].value != pytest.approx(found[1].value, abs=0.005)

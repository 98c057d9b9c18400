"""Disentanglement, completeness and informativeness (DCI)."""

from __future__ import annotations

import numpy as np

from vae_research.arguments import checked_integer
from vae_research.disentanglement.checks import checked, require_scikit_learn
from vae_research.disentanglement.scores import (
    REPEATS,
    Score,
    errors_over_groups,
    halves,
    score,
)


def dci(
    codes: np.ndarray,
    factors: np.ndarray,
    *,
    rounds: int = 10,
    repeats: int = REPEATS,
    seed: int = 0,
) -> dict[str, Score]:
    """Returns disentanglement, completeness and informativeness, each from 0 to 1.

    Gradient-boosted trees predict each factor from all codes. `R_ij` is the importance of code i
    for factor j: the share of the fall of the loss in the splits on that code (Breiman et al.
    1984). Eastwood and Williams 2018 (openreview By-7dz-AZ), section 2:

    - `disentanglement`: of code i, `1 - H_k(R_i1 ... R_ik)`, the entropy with base k of the row
      divided by its sum; the mean over codes, weighted by the share of the row in all of R.
    - `completeness`: of factor j, `1 - H_d(R_1j ... R_dj)`; the mean over factors.
    - `informativeness`: the accuracy on rows that were not fitted, as in Locatello et al. 2019
      (arXiv:1811.12359); the mean over factors. Chance is the share of the most frequent value.

    The trees are `GradientBoostingClassifier` of scikit-learn: depth 3, learning rate 0.1, one tree
    for each value of a factor in each round. There are 10 rounds by default; Locatello et al. take
    100, which needs ten times as long. Trees are fitted to a random half of the rows. The fewer
    rows, the more importance goes to codes of noise: values of different numbers of rows or rounds
    do not compare.

    Args:
        codes: `[n, d]` real numbers, at least two codes.
        factors: `[n, k]` integers that name values, at least two factors.
        rounds: of boosting.
        repeats: disjoint groups of rows for the standard errors, which need as long again as the
            scores; 1 for none.
        seed: of the halves, the groups and the trees.

    Returns:
        Scores by name, each with `matrix`, the importances; columns have a sum of 1, or are 0 if no
        tree found a split. With `per_code` or `per_factor`.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: codes or factors are unsuitable (see the message).
    """
    require_scikit_learn("dci")
    rounds = checked_integer("rounds", rounds, 1)
    codes, factors = checked(
        codes, factors, metric="DCI", least_codes=2, least_factors=2, least_rows=4
    )

    def values(codes: np.ndarray, factors: np.ndarray) -> np.ndarray:
        importances, accuracies = importances_and_accuracies(codes, factors, rounds, seed)
        per_code, weights = disentanglement_of_codes(importances)
        per_factor = completeness_of_factors(importances)
        return np.array([per_code @ weights, per_factor.mean(), accuracies.mean()])

    errors = errors_over_groups(values, codes, factors, repeats=repeats, seed=seed, least_rows=4)
    importances, accuracies = importances_and_accuracies(codes, factors, rounds, seed)
    per_code, weights = disentanglement_of_codes(importances)
    per_factor = completeness_of_factors(importances)
    found = {
        "disentanglement": (per_code @ weights, {"per_code": per_code}),
        "completeness": (per_factor.mean(), {"per_factor": per_factor}),
        "informativeness": (accuracies.mean(), {"per_factor": accuracies}),
    }
    return {
        name: score(
            value,
            None if errors is None else errors[index],
            len(codes),
            repeats,
            matrix=importances,
            **arrays,
        )
        for index, (name, (value, arrays)) in enumerate(found.items())
    }


def disentanglement_of_codes(importances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns of each code `[d]` its disentanglement, and its weight in the mean.

    A code without importance has neither. The weights have a sum of 1, or are 0 if no code has any.

    >>> disentanglement_of_codes(np.array([[3.0, 0.0], [1.0, 1.0], [0.0, 0.0]]))
    (array([1., 0., 0.]), array([0.6, 0.4, 0. ]))
    """
    total = importances.sum()
    return _concentration(importances), importances.sum(axis=1) / (total if total else 1.0)


def completeness_of_factors(importances: np.ndarray) -> np.ndarray:
    """Returns the completeness of each factor, `[k]`; that of one without importances is 0.

    >>> completeness_of_factors(np.array([[1.0, 0.5, 0.0], [0.0, 0.5, 0.0]]))
    array([1., 0., 0.])
    """
    return _concentration(importances.T)


def _concentration(rows: np.ndarray) -> np.ndarray:
    """Returns one minus the entropy of each row, with its length as base; of an empty row 0."""
    totals = rows.sum(axis=1, keepdims=True)
    shares = rows / np.where(totals > 0.0, totals, 1.0)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0.0)
    concentration = 1.0 + (shares * logs).sum(axis=1) / np.log(rows.shape[1])
    return np.where(totals[:, 0] > 0.0, np.clip(concentration, 0.0, 1.0), 0.0)


def importances_and_accuracies(
    codes: np.ndarray, factors: np.ndarray, rounds: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns importances `[d, k]` from half of the rows, accuracies `[k]` in the other half."""
    from sklearn.ensemble import GradientBoostingClassifier

    train, test = halves(len(codes), seed)
    importances = np.zeros((codes.shape[1], factors.shape[1]))
    accuracies = np.empty(factors.shape[1])
    for j, factor in enumerate(factors.T):
        if not np.ptp(factor[train]):  # nothing to learn: the only value is predicted
            accuracies[j] = np.mean(factor[test] == factor[train][0])
            continue
        trees = GradientBoostingClassifier(n_estimators=rounds, random_state=seed)
        trees.fit(codes[train], factor[train])
        importances[:, j] = trees.feature_importances_
        accuracies[j] = np.mean(trees.predict(codes[test]) == factor[test])
    return importances, accuracies

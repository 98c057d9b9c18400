"""Modularity and explicitness."""

from __future__ import annotations

import numpy as np

from vae_research.arguments import checked_integer
from vae_research.disentanglement.checks import checked, require_scikit_learn
from vae_research.disentanglement.information import BINS, binned, information_of_bins
from vae_research.disentanglement.ranks import area_under_curve, average_ranks
from vae_research.disentanglement.regression import fitted
from vae_research.disentanglement.scores import (
    REPEATS,
    Score,
    errors_over_groups,
    halves,
    score,
)


def modularity_explicitness(
    codes: np.ndarray,
    factors: np.ndarray,
    *,
    bins: int = BINS,
    repeats: int = REPEATS,
    seed: int = 0,
) -> dict[str, Score]:
    """Returns modularity, from 0 to 1, and explicitness, from 0.5 (chance) to 1.

    Ridgeway and Mozer 2018 (arXiv:1802.05312), section 3, as in Locatello et al. 2019
    (arXiv:1811.12359):

    - `modularity`: with mutual information m_ij of code i and factor j, the largest in its row m_i,
      that of code i is `1 - sum_(j not the largest) m_ij^2 / (m_i^2 (k - 1))`; the mean over codes.
      A code without any information has 0.
    - `explicitness`: a logistic regression on all codes (scikit-learn, C = 1, codes with a standard
      deviation of 1, at most 100 steps), fitted to a random half of the rows. The area under the
      ROC curve of each value of a factor against the others, in the other half; the mean over
      values, then factors. Values without a row in that half, or with all of it, are left out.

    Modularity does not ask how much a code knows. Codes of noise have that of the errors in m_ij,
    which grow with the number of values (`mutual_information`): for 3, 6, 40, 32 and 32 values it
    is near 0.7. A low score says that codes mix factors; a high one says little alone.

    Args:
        codes: `[n, d]` real numbers.
        factors: `[n, k]` integers that name values, at least two factors.
        bins: of equal width over the range of each code.
        repeats: disjoint groups of rows for the standard errors; 1 for none.
        seed: of the halves and the groups.

    Returns:
        Scores by name: `modularity` with `per_code` and `matrix`, the mutual information in nats,
        `explicitness` with `per_factor`.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: codes or factors are unsuitable (see the message), or there are fewer rows than
            bins.
    """
    require_scikit_learn("modularity_explicitness")
    bins = checked_integer("bins", bins, 2)
    codes, factors = checked(
        codes, factors, metric="Modularity", least_factors=2, least_rows=max(bins, 4)
    )

    def values(codes: np.ndarray, factors: np.ndarray) -> np.ndarray:
        information = information_of_bins(binned(codes, bins), factors)
        per_factor = areas_under_curves(codes, factors, seed)
        return np.array([modularity_of_codes(information).mean(), per_factor.mean()])

    errors = errors_over_groups(
        values, codes, factors, repeats=repeats, seed=seed, least_rows=max(bins, 4)
    )
    information = information_of_bins(binned(codes, bins), factors)
    per_code = modularity_of_codes(information)
    per_factor = areas_under_curves(codes, factors, seed)
    of_codes, of_factors = (None, None) if errors is None else errors
    return {
        "modularity": score(
            per_code.mean(), of_codes, len(codes), repeats, per_code=per_code, matrix=information
        ),
        "explicitness": score(
            per_factor.mean(), of_factors, len(codes), repeats, per_factor=per_factor
        ),
    }


def modularity_of_codes(information: np.ndarray) -> np.ndarray:
    """Returns the modularity of each code, `[d]`, from mutual information `[d, k]`.

    >>> modularity_of_codes(np.array([[2.0, 0.0, 0.0], [2.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))
    array([1.  , 0.75, 0.  ])
    """
    squares = information**2
    largest = squares.max(axis=1)
    others = (squares.sum(axis=1) - largest) / (information.shape[1] - 1)
    return np.where(largest > 0.0, 1.0 - others / np.where(largest > 0.0, largest, 1.0), 0.0)


def areas_under_curves(codes: np.ndarray, factors: np.ndarray, seed: int) -> np.ndarray:
    """Returns the mean area under the ROC curves of the values of each factor, `[k]`."""
    train, test = halves(len(codes), seed)
    deviations = codes[train].std(axis=0)
    scaled = (codes - codes[train].mean(axis=0)) / np.where(deviations > 0.0, deviations, 1.0)
    found = np.full(factors.shape[1], 0.5)
    for j, factor in enumerate(factors.T):
        if not np.ptp(factor[train]):
            continue
        values, probabilities = _fitted(scaled[train], factor[train], scaled[test])
        ranks = average_ranks(probabilities)
        areas = [
            area_under_curve(ranks[:, index], factor[test] == value)
            for index, value in enumerate(values)
            if 0 < np.count_nonzero(factor[test] == value) < len(test)
        ]
        if areas:
            found[j] = np.mean(areas)
    return found


def _fitted(
    codes: np.ndarray, factor: np.ndarray, others: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the values of a factor, and their probabilities `[n, values]` for other codes."""
    from sklearn.linear_model import LogisticRegression

    model = fitted(LogisticRegression(), codes, factor)
    return model.classes_, model.predict_proba(others)

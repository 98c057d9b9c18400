"""InfoMEC: modularity, explicitness and compactness from normalised information."""

from __future__ import annotations

import numpy as np

from vae_research.arguments import checked_integer
from vae_research.disentanglement.checks import checked, require_scikit_learn
from vae_research.disentanglement.information import entropies, information_of_bins
from vae_research.disentanglement.neighbours import neighbour_information
from vae_research.disentanglement.regression import fitted
from vae_research.disentanglement.scores import REPEATS, Score, errors_over_groups, score

# The range of an active code is more than this share of the largest one.
_ACTIVE_RANGE = 1.0 / 20.0


def infomec(
    codes: np.ndarray,
    factors: np.ndarray,
    *,
    discrete: bool = False,
    neighbours: int = 10,
    repeats: int = REPEATS,
    seed: int = 0,
) -> dict[str, Score]:
    """Returns InfoM, InfoE and InfoC, each about 0 (chance) to 1.

    Hsu et al. 2023, Disentanglement via Latent Quantization (arXiv:2305.18378), section 4, as in
    the code of its authors. The matrix has the mutual information of each code with each factor,
    divided by the entropy of the factor. Codes are active if their range is more than a twentieth
    of the largest range; only active ones count in InfoM and InfoC, d of them.

    - `infom`, modularity: of an active code the largest entry of its row divided by the sum, r;
      the mean over codes, from 1 / k to 1, as `(mean r - 1 / k) / (1 - 1 / k)`.
    - `infoc`, compactness: the same of columns, with d for k. It is 0 if fewer than two codes are
      active, and not defined.
    - `infoe`, explicitness: how far a logistic regression on all codes (not penalised, values
      weighted equally, at most 100 steps, fitted to and tested on all rows) takes the cross-entropy
      of a factor from that of a guess, as a share of it; the mean over factors.

    Mutual information is estimated from the 10 nearest neighbours (`neighbour_information`). Of
    codes that know nothing the estimate is zero with errors of both signs, cut off at zero: the
    largest of few small numbers is a large share of their sum, so that InfoM and InfoC of noise are
    not near 0. InfoE of noise is about `d / (2 n)` times the number of values, per nat.

    Args:
        codes: `[n, d]` real numbers, at least two codes.
        factors: `[n, k]` integers that name values, at least two factors.
        discrete: codes are values of a codebook: information is that of counted frequencies, every
            code with two values is active, and the regression reads each value as a class.
        neighbours: of the estimate.
        repeats: disjoint groups of rows for the standard errors; 1 for none.
        seed: of the groups, and of a noise of 1e-10 standard deviations between equal codes.

    Returns:
        Scores by name: `infom` with `per_code` (0 of inactive ones) and `matrix`, `infoc` with
        `per_factor` and `matrix`, `infoe` with `per_factor`.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: codes or factors are unsuitable (see the message).
    """
    require_scikit_learn("infomec")
    neighbours = checked_integer("neighbours", neighbours, 1)
    codes, factors = checked(codes, factors, metric="InfoMEC", least_codes=2, least_factors=2)

    def values(codes: np.ndarray, factors: np.ndarray) -> np.ndarray:
        matrix, active = normalised_information(codes, factors, discrete, neighbours, seed)
        per_code, per_factor = shares_of_largest(matrix, active)
        explicit = predictive_information(codes, factors, discrete)
        return np.array([_mean(per_code[active]), explicit.mean(), per_factor.mean()])

    errors = errors_over_groups(values, codes, factors, repeats=repeats, seed=seed)
    matrix, active = normalised_information(codes, factors, discrete, neighbours, seed)
    per_code, per_factor = shares_of_largest(matrix, active)
    explicit = predictive_information(codes, factors, discrete)
    found = {
        "infom": (_mean(per_code[active]), {"per_code": per_code, "matrix": matrix}),
        "infoe": (explicit.mean(), {"per_factor": explicit}),
        "infoc": (per_factor.mean(), {"per_factor": per_factor, "matrix": matrix}),
    }
    return {
        name: score(value, None if errors is None else errors[index], len(codes), repeats, **arrays)
        for index, (name, (value, arrays)) in enumerate(found.items())
    }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def normalised_information(
    codes: np.ndarray, factors: np.ndarray, discrete: bool, neighbours: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns shares of the entropy of factors that codes know, `[d, k]`, and which are active."""
    ranges = np.ptp(codes, axis=0)
    if discrete:
        indices = [np.unique(code, return_inverse=True)[1].reshape(-1) for code in codes.T]
        information = information_of_bins(np.stack(indices, axis=1), factors)
        return information / entropies(factors), ranges > 0.0
    noise = np.random.default_rng(seed).normal(size=codes.shape)
    information = np.zeros((codes.shape[1], factors.shape[1]))
    for i in np.flatnonzero(ranges):
        feature = codes[:, i] / codes[:, i].std() + 1e-10 * noise[:, i]
        for j, factor in enumerate(factors.T):
            information[i, j] = neighbour_information(feature, factor, neighbours)
    return information / entropies(factors), ranges > _ACTIVE_RANGE * ranges.max()


def shares_of_largest(matrix: np.ndarray, active: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the modularity of each code, `[d]`, and the compactness of each factor, `[k]`.

    >>> matrix = np.array([[0.8, 0.0], [0.2, 0.4], [9.0, 9.0]])
    >>> shares_of_largest(matrix, np.array([True, True, False]))
    (array([1. , 0.33..., 0. ]), array([0.6, 1. ]))
    """
    per_code = np.zeros(len(matrix))
    per_code[active] = _scaled_shares(matrix[active])
    return per_code, _scaled_shares(matrix[active].T)


def _scaled_shares(rows: np.ndarray) -> np.ndarray:
    """Returns the largest share of each row, from 0, if all are equal or zero, to 1."""
    length = rows.shape[1]
    if length < 2:
        return np.zeros(len(rows))
    sums = rows.sum(axis=1)
    largest = np.divide(
        rows.max(axis=1), sums, out=np.full(len(rows), 1.0 / length), where=sums > 0.0
    )
    return (largest - 1.0 / length) / (1.0 - 1.0 / length)


def predictive_information(codes: np.ndarray, factors: np.ndarray, discrete: bool) -> np.ndarray:
    """Returns the share of cross-entropy that a logistic regression removes, `[k]`.

    A guess that weighs all values equally has a cross-entropy of `log(values)`.
    """
    from sklearn.linear_model import LogisticRegression

    if discrete:
        columns = [(code[:, np.newaxis] == np.unique(code)).astype(np.float64) for code in codes.T]
        features = np.concatenate(columns, axis=1)
    else:
        deviations = codes.std(axis=0)
        features = (codes - codes.mean(axis=0)) / np.where(deviations > 0.0, deviations, 1.0)
    found = np.empty(factors.shape[1])
    for j, factor in enumerate(factors.T):
        model = LogisticRegression(C=np.inf, class_weight="balanced", max_iter=100)
        fitted(model, features, factor)
        values, indices = np.unique(factor, return_inverse=True)
        right = model.predict_proba(features)[np.arange(len(factor)), indices.reshape(-1)]
        right = np.maximum(right, np.finfo(np.float64).eps)  # as in scikit-learn's log_loss
        found[j] = 1.0 + np.log(right).mean() / np.log(len(values))
    return found

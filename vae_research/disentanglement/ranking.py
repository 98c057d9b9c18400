"""Unsupervised disentanglement ranking: agreement of models that differ in their seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vae_research.disentanglement.checks import checked_codes
from vae_research.disentanglement.ranks import average_ranks
from vae_research.disentanglement.scores import (
    REPEATS,
    Score,
    groups_of_rows,
    score,
    standard_errors,
)

SIMILARITIES = ("lasso", "spearman")


def udr(
    codes: Sequence[np.ndarray],
    kl: Sequence[np.ndarray] | None,
    *,
    similarity: str = "lasso",
    least_kl: float = 0.01,
    penalty: float = 0.1,
    repeats: int = REPEATS,
    seed: int = 0,
) -> list[Score]:
    """Returns the unsupervised disentanglement ranking of each model, from 0 to 1.

    Duan et al. 2020 (arXiv:1905.12614), section 4: models of one setting that differ in their seed
    agree code by code, up to order and sign, if their codes are disentangled. With the similarity
    `R [a, b]` of code a of one model and code b of another, both informative:

        UDR_ij = (sum_b max_a R[a, b]^2 / sum_a R[a, b] + sum_a max_b R[a, b]^2 / sum_b R[a, b])
                 / (d_i + d_j)

    The score of a model is the median of its UDR with all others. Codes are informative if their KL
    divergence is above 0.01 nats; a pair in which a model has none has 0. R is the absolute value
    of

    - `lasso`: the weight of code a of model i in a regression with an L1 penalty of code b of model
      j, all codes with a mean of 0 and a standard deviation of 1. R depends on the direction:
      as in the code of the authors, a model is judged by how the others predict its codes.
    - `spearman`: their rank correlation.

    The code of the authors (disentanglement_lib) takes the mean of both sums, each divided by its
    own number of codes, which is the same if the numbers are equal.

    Args:
        codes: of each model, `[n, d]` real numbers for the same images; at least two models.
        kl: of each model, `[d]` mean KL divergence of each code, nats; None if every code counts.
        similarity: `lasso` or `spearman`.
        least_kl: nats.
        penalty: of the L1 norm (scikit-learn's alpha).
        repeats: disjoint groups of rows for the standard errors; 1 for none.
        seed: of the groups.

    Returns:
        One score for each model, with `per_model`.

    Raises:
        ValueError: codes are unsuitable (see the message), models differ in their number of rows,
            `kl` does not fit the codes, or `similarity` is unknown.
    """
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity must be one of {SIMILARITIES}, got {similarity!r}.")
    if not penalty > 0.0:
        raise ValueError(f"penalty must be above 0, got {penalty}.")
    informative = _informative(codes, kl, least_kl)
    count = len(informative[0])

    def pairwise(rows: np.ndarray | slice) -> np.ndarray:
        models = [_normalised(model[rows], similarity) for model in informative]
        found = np.full((len(models), len(models)), np.nan)
        for i, one in enumerate(models):
            for j, other in enumerate(models):
                if i != j:
                    found[j, i] = agreement(_similarities(one, other, similarity, penalty))
        return found

    groups = groups_of_rows(count, repeats, seed)
    if groups and min(len(rows) for rows in groups) < 2:
        groups = []
    errors = standard_errors([np.nanmedian(pairwise(rows), axis=1) for rows in groups])
    found = pairwise(slice(None))
    return [
        score(
            np.nanmedian(row),
            None if errors is None else errors[number],
            count,
            repeats,
            per_model=row,
        )
        for number, row in enumerate(found)
    ]


def agreement(similarities: np.ndarray) -> float:
    """Returns the agreement of two models, from 0 to 1, from similarities `[d_i, d_j]`.

    >>> agreement(np.eye(3)[::-1])
    1.0
    >>> agreement(np.full((2, 2), 0.5))
    0.25
    """
    total = 0.0
    for axis in (0, 1):
        sums = similarities.sum(axis=axis)
        largest = similarities.max(axis=axis, initial=0.0) ** 2
        total += float(np.sum(largest[sums > 0.0] / sums[sums > 0.0]))
    return total / max(sum(similarities.shape), 1) if similarities.size else 0.0


def _informative(
    codes: Sequence[np.ndarray], kl: Sequence[np.ndarray] | None, least_kl: float
) -> list[np.ndarray]:
    """Returns of each model the codes that count, float64 `[n, d]`, d may be 0."""
    models = [checked_codes(each, f"codes of model {number}") for number, each in enumerate(codes)]
    if len(models) < 2:
        raise ValueError(f"UDR compares models and needs at least 2, got {len(models)}.")
    rows = [len(model) for model in models]
    if len(set(rows)) > 1 or rows[0] < 2:
        raise ValueError(f"UDR needs the codes of the same images, 2 or more; got {rows} rows.")
    if kl is None:
        return models
    if len(kl) != len(models):
        raise ValueError(f"There are the codes of {len(models)} models, and the KL of {len(kl)}.")
    for number, (model, each) in enumerate(zip(models, kl, strict=True)):
        if np.shape(each) != model.shape[1:] or not np.all(np.isfinite(each)):
            raise ValueError(
                f"kl of model {number} must have {model.shape[1]} finite values, one for each "
                f"code; got {each}."
            )
    return [model[:, np.asarray(each) > least_kl] for model, each in zip(models, kl, strict=True)]


def _normalised(codes: np.ndarray, similarity: str) -> np.ndarray:
    """Returns codes, or their ranks, with a mean of 0 and a standard deviation of 1, or all 0."""
    if similarity == "spearman":
        codes = average_ranks(codes)
    centred = codes - codes.mean(axis=0)
    constant = np.ptp(codes, axis=0) == 0.0
    return np.where(constant, 0.0, centred) / np.where(constant, 1.0, codes.std(axis=0))


def _similarities(
    one: np.ndarray, other: np.ndarray, similarity: str, penalty: float
) -> np.ndarray:
    """Returns the similarity of each code of a model with each of another, `[d_i, d_j]`."""
    products = one.T @ other / len(one)
    if similarity == "spearman" or not products.size:
        return np.abs(products)
    return np.abs(lasso_weights(one.T @ one / len(one), products, penalty))


def lasso_weights(covariances: np.ndarray, products: np.ndarray, penalty: float) -> np.ndarray:
    """Returns the weights of regressions with an L1 penalty, `[d, targets]`.

    They minimise `mean (y - x w)^2 / 2 + penalty * sum |w|` by coordinate descent (Friedman et al.
    2010, Regularization Paths for Generalized Linear Models), of all targets at once.

    Args:
        covariances: of the features, mean of x x^T, `[d, d]`; a constant feature has 0.
        products: of features and targets, mean of x y, `[d, targets]`.
        penalty: of the sum of absolute weights.
    """
    weights = np.zeros_like(products)
    used = np.flatnonzero(np.diag(covariances) > 0.0)
    for _ in range(10_000):
        largest = 0.0
        for a in used:
            before = weights[a].copy()
            rest = products[a] - covariances[a] @ weights + covariances[a, a] * before
            weights[a] = np.sign(rest) * np.maximum(np.abs(rest) - penalty, 0.0) / covariances[a, a]
            largest = max(largest, float(np.abs(weights[a] - before).max()))
        if largest < 1e-10:
            break
    return weights

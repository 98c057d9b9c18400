"""The mutual information gap."""

from __future__ import annotations

import numpy as np

from vae_research.arguments import checked_integer
from vae_research.disentanglement.checks import checked
from vae_research.disentanglement.information import (
    BINS,
    binned,
    entropies,
    information_of_bins,
)
from vae_research.disentanglement.scores import REPEATS, Score, errors_over_groups, score


def mig(
    codes: np.ndarray,
    factors: np.ndarray,
    *,
    bins: int = BINS,
    repeats: int = REPEATS,
    seed: int = 0,
) -> Score:
    """Returns the mutual information gap, from 0 to 1.

    For each factor v_j the gap between the two codes that know most of it, as a share of its
    entropy: `(I(z_a; v_j) - I(z_b; v_j)) / H(v_j)`; the score is the mean over factors. Chen et al.
    2018 (arXiv:1802.04942), equation 6, with the codes in bins as in Locatello et al. 2019
    (arXiv:1811.12359). If there is one code only, the second is one that knows nothing.

    A factor with more than `bins` values cannot have a gap of 1: even its own values as a code keep
    at most `log(bins)` of its entropy. Codes that are independent of the factors have a small
    positive score, the difference of two errors of estimation.

    Args:
        codes: `[n, d]` real numbers.
        factors: `[n, k]` integers that name values.
        bins: of equal width over the range of each code.
        repeats: disjoint groups of rows for the standard error; 1 for none.
        seed: of the groups.

    Returns:
        With `per_factor` and `matrix`, the mutual information in nats.

    Raises:
        ValueError: codes or factors are unsuitable (see the message), or there are fewer rows than
            bins.
    """
    bins = checked_integer("bins", bins, 2)
    codes, factors = checked(codes, factors, metric=f"MIG with {bins} bins", least_rows=bins)

    def value(codes: np.ndarray, factors: np.ndarray) -> np.ndarray:
        return _gaps(information_of_bins(binned(codes, bins), factors), factors).mean()

    error = errors_over_groups(value, codes, factors, repeats=repeats, seed=seed, least_rows=bins)
    information = information_of_bins(binned(codes, bins), factors)
    gaps = _gaps(information, factors)
    return score(gaps.mean(), error, len(codes), repeats, per_factor=gaps, matrix=information)


def _gaps(information: np.ndarray, factors: np.ndarray) -> np.ndarray:
    return gap_of_best_two(information) / entropies(factors)


def gap_of_best_two(matrix: np.ndarray) -> np.ndarray:
    """Returns by how much the largest value of each column of `[d, k]` exceeds the second.

    >>> gap_of_best_two(np.array([[1.0, 5.0], [4.0, 3.0], [2.0, 4.5]]))
    array([2. , 0.5])
    """
    ordered = np.sort(matrix, axis=0)
    second = ordered[-2] if len(ordered) > 1 else np.zeros(matrix.shape[1])
    return ordered[-1] - second

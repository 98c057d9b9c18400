"""Mutual information between codes and factors, in nats: from bins, and from neighbours."""

from __future__ import annotations

import numpy as np

from vae_research.arguments import checked_integer
from vae_research.disentanglement.checks import checked

BINS = 20


def mutual_information(codes: np.ndarray, factors: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Returns the mutual information of each code with each factor, `[d, k]`, nats.

    Each code is divided into bins of equal width over its own range. With n rows, b bins that occur
    and v values of a factor it is about `(b - 1) (v - 1) / (2 n)` too large (Miller 1955). It is at
    most the entropy of the factor, and at most `log(bins)`.

    Args:
        codes: `[n, d]` real numbers.
        factors: `[n, k]` integers that name values.
        bins: of each code; 20 as in Locatello et al. 2019 (arXiv:1811.12359).

    Raises:
        ValueError: codes or factors are unsuitable (see the message), or there are fewer rows than
            bins.
    """
    bins = checked_integer("bins", bins, 2)
    codes, factors = checked(codes, factors, metric=f"A code in {bins} bins", least_rows=bins)
    return information_of_bins(binned(codes, bins), factors)


def binned(codes: np.ndarray, bins: int) -> np.ndarray:
    """Returns the number of the bin, 0 to `bins - 1`, of each value of `[n, d]`.

    The bins of a code have equal width from its smallest to its largest value over all rows.
    """
    return np.stack(
        [
            np.digitize(code, np.linspace(code.min(), code.max(), bins + 1)[1:-1])
            if np.ptp(code)
            else np.zeros(len(code), np.int64)
            for code in codes.T
        ],
        axis=1,
    )


def information_of_bins(indices: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Returns the mutual information of counted frequencies, `[d, k]`, nats.

    Args:
        indices: `[n, d]` integers from 0.
        factors: `[n, k]` integers from 0.
    """
    return np.array([[_of_counts(_table(a, b)) for b in factors.T] for a in indices.T])


def entropies(factors: np.ndarray) -> np.ndarray:
    """Returns the entropy of each column of `[n, k]` integers from 0, nats."""
    return np.array([entropy(np.bincount(column)) for column in factors.T])


def entropy(counts: np.ndarray) -> float:
    """Returns the entropy of frequencies that are given as counts, nats.

    >>> round(entropy(np.array([1, 1, 2, 0])), 4)  # 1.5 bits
    1.0397
    """
    shares = counts[counts > 0] / counts.sum()
    return float(-np.sum(shares * np.log(shares)))


def _table(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    shape = int(a.max()) + 1, int(b.max()) + 1
    return np.bincount(a * shape[1] + b, minlength=shape[0] * shape[1]).reshape(shape)


def _of_counts(table: np.ndarray) -> float:
    # I(a; b) = H(a) + H(b) - H(a, b)
    found = entropy(table.sum(axis=1)) + entropy(table.sum(axis=0)) - entropy(table.reshape(-1))
    return max(found, 0.0)  # a rounding error of independent ones may be negative

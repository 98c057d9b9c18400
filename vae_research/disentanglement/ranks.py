"""Ranks of values, and what is computed from them."""

from __future__ import annotations

import numpy as np


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Returns the ranks, from 1, of the values of each column of `[n, d]`; equal ones share theirs.

    >>> average_ranks(np.array([[0.5], [0.1], [0.5]])).ravel()
    array([2.5, 1. , 2.5])
    """
    ranks = np.empty(values.shape)
    for number, column in enumerate(values.T):
        _, index, counts = np.unique(column, return_inverse=True, return_counts=True)
        last = np.cumsum(counts)
        ranks[:, number] = (last - (counts - 1) / 2.0)[index.reshape(-1)]
    return ranks


def area_under_curve(ranks: np.ndarray, positive: np.ndarray) -> float:
    """Returns the area under the ROC curve, the probability that a positive one ranks higher.

    Args:
        ranks: `[n]` of the scores of a classifier, equal scores with equal ranks.
        positive: `[n]` booleans, some true and some false.
    """
    number = int(positive.sum())
    above = ranks[positive].sum() - number * (number + 1) / 2.0
    return float(above / (number * (len(ranks) - number)))

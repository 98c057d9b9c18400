"""Mutual information of a real number with a class, from distances to nearest neighbours."""

from __future__ import annotations

import numpy as np


def neighbour_information(feature: np.ndarray, labels: np.ndarray, neighbours: int) -> float:
    """Returns an estimate of the mutual information, nats, at least 0.

    For row i, r_i is the distance to its k-th nearest neighbour in its class, and m_i the number of
    rows of all classes that are nearer, with itself. The estimate is
    `psi(n) + mean psi(k) - mean psi(n_class) - mean psi(m_i)`. Ross 2014 (PLoS ONE 9(2): e87357).
    As in scikit-learn's `mutual_info_classif`, k is at most `n_class - 1`, and classes with one row
    are left out.

    Args:
        feature: `[n]` real numbers, no two of which are equal.
        labels: `[n]` integers from 0.
        neighbours: k.
    """
    counts = np.bincount(labels)
    used = counts[labels] > 1
    feature, labels = feature[used], labels[used]
    if not len(feature):
        return 0.0
    order = np.argsort(feature, kind="stable")
    feature, labels = feature[order], labels[order]
    radius = np.empty(len(feature))
    for label in np.flatnonzero(counts > 1):
        rows = np.flatnonzero(labels == label)
        radius[rows] = _distances(feature[rows], min(neighbours, len(rows) - 1))
    nearer = _number_nearer(feature, radius)
    psi = _digamma(len(feature))
    known = psi[np.minimum(neighbours, counts[labels] - 1)] - psi[counts[labels]]
    return max(0.0, float(psi[len(feature)] + np.mean(known - psi[nearer])))


def _distances(ordered: np.ndarray, neighbours: int) -> np.ndarray:
    """Returns the distance of each of `[n]` ordered numbers to its k-th nearest neighbour."""
    nearest = np.full(len(ordered), np.inf)
    for below in range(neighbours + 1):  # so many of the k are smaller
        above = neighbours - below
        middle = slice(below, len(ordered) - above)
        lower = ordered[middle] - ordered[: len(ordered) - neighbours]
        upper = ordered[neighbours:] - ordered[middle]
        nearest[middle] = np.minimum(nearest[middle], np.maximum(lower, upper))
    return nearest


def _number_nearer(ordered: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Returns how many of `[n]` ordered numbers are nearer to each than its radius, with itself.

    The neighbour at the radius is not nearer, though `x - radius` may be rounded to the other side
    of it: the interval is taken a row too wide, and ends are moved by the distances themselves.
    """
    radius = np.maximum(radius, np.finfo(np.float64).tiny)  # of equal numbers 0
    last = len(ordered) - 1
    low = np.maximum(np.searchsorted(ordered, ordered - radius, side="left") - 1, 0)
    while (outside := ordered - ordered[low] >= radius).any():
        low += outside
    high = np.minimum(np.searchsorted(ordered, ordered + radius, side="right"), last)
    while (outside := ordered[high] - ordered >= radius).any():
        high -= outside
    return high - low + 1


def _digamma(largest: int) -> np.ndarray:
    """Returns psi of 0 (not defined, and not used) to `largest`: sums of the harmonic series."""
    harmonic = np.cumsum(1.0 / np.arange(1, largest))
    return np.concatenate([[np.nan, 0.0], harmonic]) - np.euler_gamma

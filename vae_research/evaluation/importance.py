"""How good an importance-weighted estimate is, from the log-weights of its samples.

A log-weight is log p(x, z) - log q(z|x) of one sample z. All functions take `[examples, samples]`
and return float64. NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

_Values = npt.NDArray[np.float64]

# Fewer have less than five weights in the tail of which `pareto_k` is the shape.
SAMPLES_WITH_A_TAIL = 25

# By which equal weights may differ: their logarithms are float32 sums of hundreds of nats.
_ROUNDING = 1e-4

# Values that the fit of a Pareto tail computes at once; a few of them are kept: 32 MB.
_VALUES_AT_ONCE = 2**22


def log_mean_weight(log_weights: npt.ArrayLike) -> _Values:
    """Returns the logarithm of the mean weight, `[examples]`: the estimate of log p(x), nats.

    Burda et al. 2016 (arXiv:1509.00519), equation 8.

    >>> log_mean_weight([[1000.0, 1000.0]]).tolist()
    [1000.0]
    """
    weights, largest = _relative(log_weights)
    return np.log(weights.mean(axis=1)) + largest


def effective_sample_size(log_weights: npt.ArrayLike) -> _Values:
    """Returns `(sum w)^2 / sum w^2` of the weights w, `[examples]`, from 1 to the samples.

    Kong 1992, A note on importance sampling using standardized weights.

    >>> effective_sample_size([[0.0, 0.0], [0.0, -1000.0]]).tolist()
    [2.0, 1.0]
    """
    weights, _ = _relative(log_weights)
    return np.square(weights.sum(axis=1)) / np.square(weights).sum(axis=1)


def monte_carlo_variance(log_weights: npt.ArrayLike) -> _Values:
    """Returns the variance of `log_mean_weight` over other samples, `[examples]`, nats^2.

    It is that of the mean weight over its square, to the first order of the logarithm. NaN for a
    single sample.
    """
    samples = np.shape(log_weights)[1]
    if samples < 2:
        return np.full(len(np.asarray(log_weights)), np.nan)
    return (samples / effective_sample_size(log_weights) - 1.0) / (samples - 1)


def by_samples(log_weights: npt.ArrayLike, samples: int) -> _Values:
    """Returns what fewer samples would estimate, `[examples]`, nats.

    It is the mean over as many disjoint groups of so many samples as there are.

    Args:
        log_weights: `[examples, all samples]`.
        samples: of a group, at most all.
    """
    values = np.asarray(log_weights)
    groups = values.shape[1] // samples
    grouped = values[:, : groups * samples].reshape(-1, samples)
    return log_mean_weight(grouped).reshape(-1, groups).mean(axis=1)


def largest_reliable_pareto_k(samples: int) -> float:
    """Returns the k above which an estimate from so many samples is not to be trusted.

    Vehtari et al. 2024 (arXiv:1507.02646), section 3.2.4: `min(1 - 1 / log10(samples), 0.7)`.

    >>> round(largest_reliable_pareto_k(200), 3), largest_reliable_pareto_k(5000)
    (0.565, 0.7)
    """
    return min(1.0 - 1.0 / math.log10(samples), 0.7) if samples > 1 else -math.inf


def pareto_k(log_weights: npt.ArrayLike) -> _Values:
    """Returns the shape k of the tail of the weights, `[examples]`.

    The weights have finite moments up to 1/k: above 1/2 they have no variance, above 1 no mean. k
    is that of a generalised Pareto distribution, fitted by the method of Zhang and Stephens 2009 to
    the largest `min(S / 5, 3 sqrt(S))` of S weights, and drawn towards 1/2 as if by ten more.
    Vehtari et al. 2024 (arXiv:1507.02646), section 3.2 and appendix G.

    Infinite if there are fewer than `SAMPLES_WITH_A_TAIL`; minus infinity if the weights of the
    tail are equal, up to the rounding of their logarithms.
    """
    values = np.asarray(log_weights, np.float64)
    samples = values.shape[1]
    tail = math.floor(min(0.2 * samples, 3.0 * math.sqrt(samples)))
    if samples < SAMPLES_WITH_A_TAIL:
        return np.full(len(values), np.inf)
    largest = np.sort(np.partition(values, samples - tail - 1, axis=1)[:, -tail - 1 :], axis=1)
    weights = np.exp(largest - largest[:, -1:])
    above = weights[:, 1:] - weights[:, :1]
    found = np.full(len(values), -np.inf)
    spread = np.flatnonzero(above[:, -1] > _ROUNDING)
    for rows in _blocks(spread, tail * _candidates(tail)):
        found[rows] = _fitted_k(above[rows])
    return found


def _candidates(count: int) -> int:
    return 30 + math.isqrt(count)


def _blocks(rows: npt.NDArray[np.int64], values: int) -> Iterator[npt.NDArray[np.int64]]:
    size = max(1, _VALUES_AT_ONCE // values)
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _fitted_k(above: _Values) -> _Values:
    """Returns k of the values above a threshold, `[rows, count]` in rising order."""
    count = above.shape[1]
    number = _candidates(count)
    quartile = above[:, int(count / 4 + 0.5) - 1, np.newaxis]
    # Weights that are equal to the threshold would be divided by.
    quartile = np.maximum(quartile, 1e-12 * above[:, -1:])
    steps = 1.0 - np.sqrt(number / (np.arange(1, number + 1) - 0.5))
    # Candidates for -k / scale, each with the k that is most likely with it.
    ratios = steps / (3.0 * quartile) + 1.0 / above[:, -1:]
    shapes = np.log1p(-ratios[:, :, np.newaxis] * above[:, np.newaxis]).mean(axis=2)
    log_likelihood = count * (np.log(-ratios / shapes) - shapes - 1.0)
    posterior, _ = _relative(log_likelihood)
    ratio = (ratios * posterior).sum(axis=1, keepdims=True) / posterior.sum(axis=1, keepdims=True)
    k = np.log1p(-ratio * above).mean(axis=1)
    return (k * count + 5.0) / (count + 10.0)


def _relative(log_weights: npt.ArrayLike) -> tuple[_Values, _Values]:
    """Returns the weights over the largest of each row, and the logarithm of that, `[rows]`."""
    values = np.asarray(log_weights, np.float64)
    largest = values.max(axis=1)
    with np.errstate(invalid="ignore"):  # what is not finite stays so
        return np.exp(values - largest[:, np.newaxis]), largest

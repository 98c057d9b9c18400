"""Statements about settings, from runs that differ in their seed only.

The seeds are the replicates: an interval over them says what a setting does, whereas the standard
error over test examples is about one trained model.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

CONFIDENCE = 0.95
# A p-value of two seeds has one degree of freedom, and next to no power.
_LEAST_SEEDS_OF_P_VALUES = 3

Key = TypeVar("Key", bound=Hashable)


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean, and half of the width of its 95 % t interval.

    Attributes:
        mean: over the seeds.
        half_width: None of a single value.
        count: seeds.
    """

    mean: float
    half_width: float | None
    count: int


@dataclasses.dataclass(frozen=True)
class PairedBySeed:
    """The difference of a setting to a baseline, over the seeds that both have.

    Attributes:
        difference: the mean of the differences, setting minus baseline.
        p_value: of a two-sided paired t-test; None of less than three seeds, or if all differences
            are equal.
    """

    difference: Interval
    p_value: float | None


def mean_interval(values: Sequence[float]) -> Interval:
    """Returns the mean of values with its t interval, at least one value.

    >>> mean_interval([1.0, 2.0, 3.0])
    Interval(mean=2.0, half_width=2.48..., count=3)
    """
    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return Interval(mean, None, count)
    error = statistics.stdev(values) / math.sqrt(count)
    return Interval(mean, t_quantile(CONFIDENCE, count - 1) * error, count)


def paired_by_seed(
    setting: Mapping[Key, float], baseline: Mapping[Key, float]
) -> PairedBySeed | None:
    """Returns how a setting differs from a baseline, None if no seed has both.

    A seed fixes initial weights, order of the data and noise, so that what it does to both is not
    part of the difference.

    Args:
        setting, baseline: a figure by seed.
    """
    seeds = [seed for seed in setting if seed in baseline]
    if not seeds:
        return None
    differences = [setting[seed] - baseline[seed] for seed in seeds]
    found = mean_interval(differences)
    if len(seeds) < _LEAST_SEEDS_OF_P_VALUES or not found.half_width:
        return PairedBySeed(found, None)
    error = statistics.stdev(differences) / math.sqrt(len(seeds))
    within = t_within(abs(found.mean) / error, len(seeds) - 1)
    return PairedBySeed(found, max(0.0, 1.0 - within))


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values that hold for all comparisons together, in the same order.

    Holm 1979, A simple sequentially rejective multiple test procedure. The smallest of m p-values
    is multiplied by m, the next by m - 1, and none is smaller than the one before it.

    >>> holm([0.04, 0.01])
    [0.04, 0.02]
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def t_within(t: float, degrees: int) -> float:
    """Returns the probability that Student's t lies between -t and t.

    Abramowitz and Stegun 1964, 26.7.3 and 26.7.4: finite sums, exact for whole degrees of freedom.

    >>> round(t_within(12.706, 1), 4)
    0.95
    """
    return _within_angle(math.atan(t / math.sqrt(degrees)), degrees)


def t_quantile(within: float, degrees: int) -> float:
    """Returns the t for which Student's t lies between -t and t with a probability below 1.

    >>> round(t_quantile(0.95, 2), 3)
    4.303
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):  # halves the interval of the angle down to the precision of a float
        middle = (low + high) / 2
        low, high = (middle, high) if _within_angle(middle, degrees) < within else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def _within_angle(angle: float, degrees: int) -> float:
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    part = cosine if odd else 1.0
    total = part if degrees > 1 else 0.0
    for power in range(2 + odd, degrees - 1, 2):
        part *= cosine**2 * (power - 1) / power
        total += part
    return (angle + sine * total) * 2 / math.pi if odd else sine * total

"""The result of every metric, and its standard error from disjoint groups of rows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vae_research.arguments import checked_integer, checked_seed

REPEATS = 5


@dataclasses.dataclass(frozen=True)
class Score:
    """A score of a representation.

    Attributes:
        value: from all rows.
        standard_error: of `value`, from disjoint groups of rows; None without such groups.
        count: rows of codes that were given, or drawn from a function.
        repeats: number of the groups.
        per_factor: `[k]`, of which `value` is a mean, if the metric has one for each factor.
        per_code: `[d]`, of which `value` is a mean, if the metric has one for each code.
        per_model: `[models]`, agreement with each other model (UDR), NaN with itself.
        matrix: `[d, k]`, from which the metric is computed, if there is one.
    """

    value: float
    standard_error: float | None
    count: int
    repeats: int
    per_factor: np.ndarray | None = dataclasses.field(default=None, repr=False, compare=False)
    per_code: np.ndarray | None = dataclasses.field(default=None, repr=False, compare=False)
    per_model: np.ndarray | None = dataclasses.field(default=None, repr=False, compare=False)
    matrix: np.ndarray | None = dataclasses.field(default=None, repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Returns value, standard error and counts by name, and what arrays there are, for JSON.

        What is not a number (a model beside itself) is None.
        """
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            name: _as_list(value) if isinstance(value, np.ndarray) else value
            for name, value in found.items()
            if value is not None or name == "standard_error"
        }


def _as_list(values: np.ndarray) -> list[Any]:
    listed = values.astype(object)
    listed[np.isnan(values)] = None
    return listed.tolist()


def groups_of_rows(count: int, repeats: int, seed: int) -> list[np.ndarray]:
    """Returns the row numbers of `repeats` disjoint random groups of nearly equal size.

    One group would be all rows, and says nothing of an error: there is none then.

    Raises:
        ValueError: `repeats` or `seed` is out of range.
    """
    repeats = checked_integer("repeats", repeats, 1, count, why="the rows")
    order = np.random.default_rng(checked_seed(seed)).permutation(count)
    return [] if repeats == 1 else np.array_split(order, repeats)


def standard_errors(values: Sequence[np.ndarray]) -> np.ndarray | None:
    """Returns the standard error of a statistic of all rows, from its values in disjoint groups.

    The standard deviation of G groups divided by the square root of G: the method of random groups,
    Wolter 2007, Introduction to Variance Estimation, chapter 2. Groups have an own bias (mutual
    information is larger in few rows), which is common to them and not in their spread. A bootstrap
    would put copies of a row into both parts of a split, and at a distance of zero from each other.

    Args:
        values: of each group, arrays of one shape; empty without groups.
    """
    if not values:
        return None
    return np.std(np.stack(values), axis=0, ddof=1) / math.sqrt(len(values))


def errors_over_groups(
    statistic: Callable[[np.ndarray, np.ndarray], np.ndarray],
    codes: np.ndarray,
    factors: np.ndarray,
    *,
    repeats: int,
    seed: int,
    least_rows: int = 2,
) -> np.ndarray | None:
    """Returns the standard errors of values that are computed from codes and factors.

    Args:
        statistic: of codes `[n, d]` and factors `[n, k]`, any number of values.
        codes, factors: checked.
        repeats: number of disjoint groups.
        seed: of the groups.
        least_rows: that `statistic` takes.

    Returns:
        One error for each value, or None if there are no groups: `repeats` is 1, or a group would
        have too few rows or only one value of a factor.
    """
    groups = groups_of_rows(len(codes), repeats, seed)
    for rows in groups:
        if len(rows) < least_rows or np.any(np.ptp(factors[rows], axis=0) == 0):
            return None
    return standard_errors([statistic(codes[rows], factors[rows]) for rows in groups])


def score(
    value: float, error: np.ndarray | float | None, count: int, repeats: int, **arrays: Any
) -> Score:
    """Returns a score in Python's own numbers.

    Args:
        value: from all rows.
        error: its standard error, None if there are no groups.
        count: rows.
        repeats: groups that were asked for.
        **arrays: further attributes of the score.
    """
    if error is None:
        return Score(float(value), None, count, 1, **arrays)
    return Score(float(value), float(error), count, repeats, **arrays)


def halves(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns row numbers to train on, and as many (or one more) to test on, at random."""
    order = np.random.default_rng(seed).permutation(count)
    return order[: count // 2], order[count // 2 :]

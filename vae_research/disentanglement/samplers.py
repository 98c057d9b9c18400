"""Draws codes of images of which some have the same value of a factor."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence

import numpy as np

from vae_research.arguments import checked_integer
from vae_research.disentanglement.checks import checked, checked_codes
from vae_research.disentanglement.scores import groups_of_rows

NOT_FIXED = -1


class Sampler(abc.ABC):
    """Draws groups of codes of images that have one factor in common.

    Attributes:
        num_factors: of the images, those that vary.
        rows: of the given codes; None if any number of images can be made.
    """

    num_factors: int
    rows: int | None

    @abc.abstractmethod
    def draw(self, fixed: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
        """Returns codes `[groups, count, d]`.

        Args:
            fixed: `[groups]`, for each group the factor that all of its images share, with a value
                that is drawn for the group; `NOT_FIXED` for none.
            count: images in a group.
            random: all draws come from it.
        """

    @abc.abstractmethod
    def parts(self, repeats: int, seed: int) -> list[Sampler]:
        """Returns samplers of disjoint data, for a standard error; none if `repeats` is 1."""


class RowSampler(Sampler):
    """Chooses among given codes.

    The value that a group shares is that of a random row; its images are drawn with replacement
    from the rows that have this value. Values of a single row are not chosen.

    Args:
        codes: `[n, d]` real numbers.
        factors: `[n, k]` integers that name values.

    Raises:
        ValueError: codes or factors are unsuitable (see the message), or no value of a factor
            occurs twice.
    """

    def __init__(self, codes: np.ndarray, factors: np.ndarray) -> None:
        self._codes, self._factors = checked(codes, factors, metric="A sampler of rows")
        self.rows, self.num_factors = self._factors.shape
        self._by_value = []
        for j, factor in enumerate(self._factors.T):
            counts = np.bincount(factor)
            if counts.max() < 2:
                raise ValueError(
                    f"No value of the factor in column {j} occurs in two of {self.rows} rows: no "
                    "images share it. Give more rows, or fewer values."
                )
            order = np.argsort(factor, kind="stable")
            starts = np.cumsum(counts) - counts
            self._by_value.append((order, starts, counts, np.flatnonzero(counts[factor] > 1)))

    def draw(self, fixed: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
        rows = random.integers(len(self._codes), size=(len(fixed), count))
        for j, (order, starts, counts, shared) in enumerate(self._by_value):
            groups = np.flatnonzero(fixed == j)
            values = self._factors[shared[random.integers(len(shared), size=len(groups))], j]
            places = random.integers(counts[values][:, np.newaxis], size=(len(groups), count))
            rows[groups] = order[starts[values][:, np.newaxis] + places]
        return self._codes[rows]

    def parts(self, repeats: int, seed: int) -> list[Sampler]:
        groups = groups_of_rows(len(self._codes), repeats, seed)
        for rows in groups:
            for factor in self._factors[rows].T:
                if not np.ptp(factor) or np.bincount(factor).max() < 2:
                    return []
        return [RowSampler(self._codes[rows], self._factors[rows]) for rows in groups]


class FunctionSampler(Sampler):
    """Makes images of any factors, all values being equally likely.

    Args:
        codes_of: returns codes `[n, d]` for the factors `[n, k]` of images, int64.
        sizes: number of values of each factor, from 0; a factor with one value is never fixed.
        rows_per_call: largest n.

    Raises:
        ValueError: a size is not a positive integer, or all factors have one value.
    """

    rows = None

    def __init__(
        self,
        codes_of: Callable[[np.ndarray], np.ndarray],
        sizes: Sequence[int],
        *,
        rows_per_call: int = 10_000,
    ) -> None:
        self._codes_of = codes_of
        self._sizes = np.array([checked_integer("sizes", size, 1) for size in sizes], np.int64)
        self._varying = np.flatnonzero(self._sizes > 1)
        self.num_factors = len(self._varying)
        if not self.num_factors:
            raise ValueError(f"At least one factor must have two values, got sizes {list(sizes)}.")
        self._rows_per_call = checked_integer("rows_per_call", rows_per_call, 1)

    def draw(self, fixed: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
        factors = random.integers(self._sizes, size=(len(fixed), count, len(self._sizes)))
        for number, column in enumerate(self._varying):
            groups = np.flatnonzero(fixed == number)
            factors[groups, :, column] = factors[groups, :1, column]
        factors = factors.reshape(-1, len(self._sizes))
        parts = [
            checked_codes(self._codes_of(factors[start : start + self._rows_per_call]))
            for start in range(0, len(factors), self._rows_per_call)
        ]
        return np.concatenate(parts).reshape(len(fixed), count, -1)

    def parts(self, repeats: int, seed: int) -> list[Sampler]:
        del seed  # every draw is of new images
        repeats = checked_integer("repeats", repeats, 1)
        return [] if repeats == 1 else [self] * repeats

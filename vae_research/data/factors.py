"""Factors: the known causes of the rows of a data set, as numbers of their values.

    data = Data.from_arrays({"inputs": images, "factors": numbers}, factors=("shape", "hue"))
    data.factors                        # Factors(names=("shape", "hue"), sizes=(3, 12))
    data.test.arrays["factors"][:]      # int64 [n, 2]

NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vae_research.data.checks import DataError
from vae_research.data.scaling import extremes
from vae_research.data.sources import Rows

FACTORS = "factors"
"""Name of the further array of a split that has them, int64 `[n, k]`."""


@dataclass(frozen=True)
class Factors:
    """What the columns of the further array `factors` of all splits are.

    Attributes:
        names: of the factors, in the order of the columns.
        sizes: how many values each factor has; its numbers are 0 to size - 1.

    Raises:
        ValueError: the names are not distinct, a size is below 1, or there are not as many sizes.

    >>> Factors(("shape", "hue"), (3, 12)).sizes
    (3, 12)
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        """Checks the attributes."""
        if not len(set(self.names)) == len(self.names) == len(self.sizes):
            raise ValueError(f"factors need distinct names and a size each, got {self}")
        if not self.names or min(self.sizes) < 1:
            raise ValueError(f"at least one factor is needed, each with a value, got {self}")


def find_factors(
    splits: Mapping[str, Mapping[str, Any]], given: Factors | Sequence[str] | None, name: str
) -> tuple[Factors | None, list[str]]:
    """The factors of a data set, None if it has none, and warnings.

    Args:
        splits: the arrays of each split. `factors` are numbers from 0, integers `[n, k]`, arrays or
            `Rows`; others are not factors, but arrays like any other.
        given: the factors, or only their names; by default factor_0, factor_1, ... If they are only
            names, the number of values is one more than the largest number of all splits.
        name: of the data set, for messages.

    Raises:
        DataError: what is given does not belong to the array.
    """
    if given is not None and not isinstance(given, Factors):
        given = _names(given, name)
    arrays = [arrays[FACTORS] for arrays in splits.values() if FACTORS in arrays]
    if len(arrays) < len(splits) or arrays[0].dtype.kind not in "ui" or arrays[0].ndim != 2:
        if given is None:
            return None, []
        kind = f"{arrays[0].dtype} {arrays[0].shape}" if arrays else "none"
        raise DataError(
            f"{name}: factors= names the columns of an array of integers [n, k] that each split "
            f'has, {{"inputs": images, "factors": numbers}}; found {kind}'
        )
    columns = arrays[0].shape[1]
    names = given.names if isinstance(given, Factors) else given
    if names is None:
        names = tuple(f"factor_{column}" for column in range(columns))
    if len(names) != columns:
        raise DataError(f"{name}: factors has {columns} columns, and {len(names)} names are given")
    if not columns:
        return None, []
    if isinstance(given, Factors) and isinstance(arrays[0], Rows):
        return given, []
    found = np.array([extremes(array, by_column=True) for array in arrays])
    lows, highs = np.moveaxis(found, 1, 0)
    sizes = tuple(int(high) + 1 for high in highs.max(axis=0))
    if lows.min() < 0:
        return None, [f"{name}: factors are numbers from 0, and {lows.min()} is among them: unused"]
    if not isinstance(given, Factors):
        return Factors(names, sizes), []
    if any(size > limit for size, limit in zip(sizes, given.sizes, strict=True)):
        raise DataError(f"{name}: factors reach {[s - 1 for s in sizes]}, sizes are {given.sizes}")
    return given, []


def _names(given: Any, name: str) -> tuple[str, ...]:
    names = () if isinstance(given, str | np.ndarray) else tuple(given)
    if (
        not names
        or not all(isinstance(each, str) for each in names)
        or len(set(names)) < len(names)
    ):
        raise DataError(
            f"{name}: factors= are distinct names, got {type(given).__name__}; their numbers are a "
            'further array: {"inputs": images, "factors": numbers}'
        )
    return names

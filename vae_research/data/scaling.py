"""From stored values to what a model sees: rescaling, binarisation, dequantisation. NumPy only."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from vae_research.data.checks import row_blocks, rows_in_block
from vae_research.data.sources import Rows

RESCALINGS = ("none", "unit", "standardize")
# Numbers of 32 bits that Philox makes at a time: it can begin at their multiples.
_NUMBERS_AT_ONCE = 8

BINARIZATIONS = ("none", "threshold", "static", "dynamic")
DEQUANTIZATIONS = ("none", "uniform")

# The largest values of pixels: binary, 4 bits, 8 bits, 12 bits (cameras, radiology), 16 bits.
_LARGEST_PIXELS = (1, 15, 255, 4095, 65535)


def one_of(value: str, allowed: tuple[str, ...], what: str) -> str:
    """`value`, if it is one of `allowed`.

    Raises:
        ValueError: it is not. The message lists what exists and the nearest match.
    """
    if value in allowed:
        return value
    near = difflib.get_close_matches(str(value).lower(), allowed, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{what}={value!r} does not exist; choose from {', '.join(allowed)}{hint}")


@dataclass(frozen=True, eq=False)
class Scaling:
    """The map `(value - offset) / divisor` in float32, fitted once to the training split.

    Values are divided by 255, not multiplied by 1/255: the largest one becomes exactly 1, and NumPy
    and TensorFlow agree to the last bit.

    Attributes:
        offset: float32 scalar or [size of the last axis].
        divisor: the same shape, > 0.
        largest: the largest stored value, if it has decided the divisor.
    """

    offset: np.ndarray
    divisor: np.ndarray
    largest: int | None = None

    def __str__(self) -> str:
        """The formula: "x / 255", "(x - 2) / 5", "x"; with numbers for each column in words."""
        if self.offset.ndim > 0:
            return "by column" if self.offset.size > 1 else "by mean and deviation"
        sign = "-" if self.offset > 0 else "+"
        shifted = f"(x {sign} {abs(self.offset):g})" if self.offset else "x"
        return shifted if self.divisor == 1 else f"{shifted} / {self.divisor:g}"

    @property
    def note(self) -> str | None:
        """A note if integers reach less than half of what they are divided by, else None."""
        if not self.largest or 2 * self.largest >= self.divisor:
            return None
        return (
            f"values reach {self.largest}, and --rescale=unit divides by {self.divisor:g}: none is "
            f"above {self.largest / self.divisor:.2g} then. If {self.largest} is white, store "
            f"values / {self.largest} as floats"
        )

    @property
    def is_identity(self) -> bool:
        """Whether values stay unchanged."""
        return bool(np.all(self.offset == 0) and np.all(self.divisor == 1))

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Float32 array of the same shape; always a new array."""
        scaled = values.astype(np.float32)
        if not self.is_identity:
            scaled -= self.offset
            scaled /= self.divisor
        return scaled

    def range_of(self, values: np.ndarray | Rows, margin: float = 0.0) -> tuple[float, float]:
        """Smallest and largest value of `apply(values)`, without scaling the whole array.

        Args:
            values: as stored.
            margin: by which values may be smaller or larger before they are scaled.
        """
        # All divisors are positive, so the map keeps the order.
        low, high = extremes(values, by_column=self.offset.ndim > 0).astype(np.float32)
        scaled = self.apply(np.stack([low - margin, high + margin]))
        return float(scaled[0].min()), float(scaled[1].max())

    def of_dequantized(self, mode: str) -> Scaling:
        """The scaling called `mode` of integers to which noise from [-1/2, 1/2) is added.

        Args:
            mode: as for `fit_scaling`, with which this scaling was made. With "unit", the cells of
                all levels together become [0, 1]; with "standardize", the variance of the noise,
                1/12, is added to that of the integers.
        """
        offset, divisor = self.offset, self.divisor
        if mode == "unit":
            offset, divisor = offset - np.float32(0.5), divisor + np.float32(1)
        elif mode == "standardize":
            divisor = np.sqrt(np.square(divisor, dtype=np.float64) + 1 / 12).astype(np.float32)
        return Scaling(np.asarray(offset), np.asarray(divisor), self.largest)


def extremes(values: np.ndarray | Rows, *, by_column: bool = False) -> np.ndarray:
    """Smallest and largest value, [2], or [2, size of the last axis].

    Rows that are not in memory are read once, unless their bounds are known.
    """
    if isinstance(values, Rows) and values.bounds is not None and not by_column:
        return np.array(values.bounds, np.float32)
    axis = 0 if by_column else None
    found = []
    for block in row_blocks(values):
        columns = values[block].reshape(-1, values.shape[-1])
        found.append([columns.min(axis=axis), columns.max(axis=axis)])
    lows, highs = np.moveaxis(np.array(found), 1, 0)
    return np.stack([lows.min(axis=0), highs.max(axis=0)])


def fit_scaling(
    mode: str, train: np.ndarray | Rows, held_out: Iterable[np.ndarray | Rows] = ()
) -> Scaling:
    """The scaling called `mode`, with statistics of the training split `train` [n, ...].

    - "none": values stay unchanged.
    - "unit": uint8 and uint16 are divided by the smallest of 1, 15, 255, 4095 and 65535 that no
      value exceeds, `held_out` included: 0 and 1 stored as bytes stay 0 and 1. Bool becomes 0 or 1,
      and for other types the smallest and largest training values become 0 and 1 (values of the
      other splits may then lie outside). Constant values become 0.
    - "standardize": mean 0 and variance 1 over all axes but the last, that is for each column of a
      table and each channel of an image. A column without variance is divided by 1.
    """
    offset: np.ndarray | np.float32 = np.float32(0)
    divisor: np.ndarray | np.float32 = np.float32(1)
    largest = None
    if mode == "unit" and train.dtype in (np.uint8, np.uint16):
        largest = max(int(extremes(array)[1]) for array in (train, *held_out))
        divisor = np.float32(next(level for level in _LARGEST_PIXELS if level >= largest))
    elif mode == "unit" and train.dtype != np.bool_:
        offset, top = (np.float32(value) for value in extremes(train))
        # Subtracted in float32, so that the largest value becomes exactly 1.
        divisor = top - offset
    elif mode == "standardize":
        offset, divisor = _mean_and_deviation(train)
    divisor = np.where(divisor == 0, np.float32(1), divisor)
    return Scaling(np.asarray(offset, np.float32), np.asarray(divisor, np.float32), largest)


def _mean_and_deviation(train: np.ndarray | Rows) -> tuple[np.ndarray, np.ndarray]:
    def columns() -> Iterator[np.ndarray]:
        for block in row_blocks(train):
            yield train[block].reshape(-1, train.shape[-1])

    count = math.prod(train.shape[:-1])
    # Two passes in float64: in one pass, a large mean would cost digits of the variance.
    mean = sum(part.sum(axis=0, dtype=np.float64) for part in columns()) / count
    squares = sum(((part.astype(np.float64) - mean) ** 2).sum(axis=0) for part in columns())
    low, high = extremes(train, by_column=True)
    # Rounding of the mean gives constant columns a tiny deviation, which must not be divided by.
    return mean, np.where(low == high, 0.0, np.sqrt(squares / count))


def fixed_draw(
    values: np.ndarray | Rows, scaling: Scaling, name: str, rows: np.ndarray | None = None
) -> np.ndarray:
    """One Bernoulli draw per value, uint8 of 0 and 1, which never changes.

    The uniform numbers are the raw output of the Philox generator, keyed by the split's name only:
    they depend neither on the run's seed nor on the NumPy release (NumPy guarantees the streams of
    its bit generators, but not those of `Generator.random`). Philox can begin anywhere in its
    output, so that any rows can be drawn without the others.

    Args:
        values: [n, ...], in [0, 1] after `scaling`.
        scaling: how values become probabilities.
        name: the split's name, "train", "validation" or "test".
        rows: numbers of the rows that are wanted, in this order; None is all of them.

    Returns:
        [n, ...], or [number of rows, ...].
    """
    rows = np.arange(len(values)) if rows is None else rows
    drawn = np.empty((len(rows), *values.shape[1:]), np.uint8)
    done = 0
    for stored, uniform in _with_fixed_noise(values, name, rows):
        drawn[done : done + len(stored)] = uniform < scaling.apply(stored)
        done += len(stored)
    return drawn


def fixed_dequantization(
    values: np.ndarray | Rows, name: str, draw: int, rows: np.ndarray
) -> np.ndarray:
    """Integers with noise from [-1/2, 1/2), float32 [number of rows, ...], which never changes.

    Args:
        values: integers [n, ...].
        name: the split's name.
        draw: number of the draw, from 0.
        rows: numbers of the rows that are wanted, in this order.
    """
    drawn = np.empty((len(rows), *values.shape[1:]), np.float32)
    done = 0
    for stored, uniform in _with_fixed_noise(values, f"{name} {draw}", rows):
        drawn[done : done + len(stored)] = stored.astype(np.float32) + (uniform - np.float32(0.5))
        done += len(stored)
    return drawn


def _with_fixed_noise(
    values: np.ndarray | Rows, name: str, rows: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields stored values of some of the rows, in order, and the uniform numbers of each."""
    key = int.from_bytes(name.encode()[:16], "little")
    per_block = rows_in_block(values)
    size = math.prod(values.shape[1:])
    for first, count in _runs(rows, per_block):
        # Each block of rows began with a word of its own, of two numbers.
        block, before = divmod(first, per_block)
        begin = block * 2 * -(-per_block * size // 2) + before * size
        generator = np.random.Philox(key=key)
        generator.advance(begin // _NUMBERS_AT_ONCE)
        skipped = begin % _NUMBERS_AT_ONCE
        words = generator.random_raw(-(-(skipped + count * size) // 2)).astype("<u8", copy=False)
        # 24 bits fit in a float32 exactly: probability 0 never draws a 1, probability 1 always.
        numbers = words.view("<u4")[skipped : skipped + count * size]
        uniform = (numbers >> np.uint32(8)).astype(np.float32)
        uniform *= np.float32(2**-24)
        stored = values[first : first + count]
        yield stored, uniform.reshape(stored.shape)


def _runs(rows: np.ndarray, per_block: int) -> Iterator[tuple[int, int]]:
    """Yields first row and count of each run of successive rows, none beyond a block of rows."""
    if not len(rows):
        return
    begins = np.flatnonzero((np.diff(rows) != 1) | (rows[1:] % per_block == 0)) + 1
    for begin, end in pairwise([0, *begins.tolist(), len(rows)]):
        yield int(rows[begin]), end - begin

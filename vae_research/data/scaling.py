"""From stored values to what a model sees: rescaling and binarisation. NumPy only."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from vae_research.data.checks import row_blocks

RESCALINGS = ("none", "unit", "standardize")
BINARIZATIONS = ("none", "threshold", "static", "dynamic")

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
    """

    offset: np.ndarray
    divisor: np.ndarray

    def __str__(self) -> str:
        """The formula: "x / 255", "(x - 2) / 5", "x"; with numbers for each column in words."""
        if self.offset.ndim > 0:
            return "by column" if self.offset.size > 1 else "by mean and deviation"
        shifted = f"(x - {self.offset:g})" if self.offset else "x"
        return shifted if self.divisor == 1 else f"{shifted} / {self.divisor:g}"

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

    def range_of(self, values: np.ndarray) -> tuple[float, float]:
        """Smallest and largest value of `apply(values)`, without scaling the whole array."""
        if self.offset.ndim == 0:
            extremes = np.stack([values.min(), values.max()])
        else:
            columns = values.reshape(-1, values.shape[-1])
            extremes = np.stack([columns.min(axis=0), columns.max(axis=0)])
        # All divisors are positive, so the map keeps the order.
        scaled = self.apply(extremes)
        return float(scaled[0].min()), float(scaled[1].max())


def fit_scaling(mode: str, train: np.ndarray, held_out: Iterable[np.ndarray] = ()) -> Scaling:
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
    if mode == "unit" and train.dtype in (np.uint8, np.uint16):
        largest = max(int(array.max()) for array in (train, *held_out))
        divisor = np.float32(next(level for level in _LARGEST_PIXELS if level >= largest))
    elif mode == "unit" and train.dtype != np.bool_:
        offset = np.float32(train.min())
        # Subtracted in float32, so that the largest value becomes exactly 1.
        divisor = np.float32(train.max()) - offset
    elif mode == "standardize":
        offset, divisor = _mean_and_deviation(train)
    divisor = np.where(divisor == 0, np.float32(1), divisor)
    return Scaling(np.asarray(offset, np.float32), np.asarray(divisor, np.float32))


def _mean_and_deviation(train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    columns = train.reshape(-1, train.shape[-1])
    # Two passes in float64: in one pass, a large mean would cost digits of the variance.
    total = sum(columns[block].sum(axis=0, dtype=np.float64) for block in row_blocks(columns))
    mean = total / len(columns)
    squares = sum(
        ((columns[block].astype(np.float64) - mean) ** 2).sum(axis=0)
        for block in row_blocks(columns)
    )
    constant = columns.min(axis=0) == columns.max(axis=0)
    # Rounding of the mean gives constant columns a tiny deviation, which must not be divided by.
    return mean, np.where(constant, 0.0, np.sqrt(squares / len(columns)))


def fixed_draw(values: np.ndarray, scaling: Scaling, name: str) -> np.ndarray:
    """One Bernoulli draw per value, uint8 of 0 and 1, which never changes.

    The uniform numbers are the raw output of the Philox generator, keyed by the split's name only:
    they depend neither on the run's seed nor on the NumPy release (NumPy guarantees the streams of
    its bit generators, but not those of `Generator.random`).

    Args:
        values: [n, ...], in [0, 1] after `scaling`.
        scaling: how values become probabilities.
        name: the split's name, "train", "validation" or "test".
    """
    generator = np.random.Philox(key=int.from_bytes(name.encode()[:16], "little"))
    drawn = np.empty(values.shape, np.uint8)
    for block in row_blocks(values):
        probability = scaling.apply(values[block])
        words = generator.random_raw(-(-probability.size // 2)).astype("<u8", copy=False)
        # 24 bits fit in a float32 exactly: probability 0 never draws a 1, probability 1 always.
        uniform = (words.view("<u4")[: probability.size] >> np.uint32(8)).astype(np.float32)
        uniform *= np.float32(2**-24)
        drawn[block] = uniform.reshape(probability.shape) < probability
    return drawn

"""Where the outputs of a decoder should begin: the mean of the data. NumPy only."""

from __future__ import annotations

import numpy as np

from vae_research.data.checks import DataError, row_blocks
from vae_research.data.sources import Rows
from vae_research.data.split import Split


def logits_of_mean(
    split: Split, *, axis: int | tuple[int, ...] = 0, lowest: float = 0.001, highest: float = 0.999
) -> np.ndarray:
    """Returns the logits of the mean of the data, the first `output_bias` of a decoder of logits.

    A decoder that ignores z then begins with the frequency of each pixel. The limits are those of
    the program of Burda et al. 2016 (arXiv:1509.00519). Of data that are streamed it is the mean of
    1000 rows, spread evenly. Of binarised grey values it is the mean before the draw.

    Args:
        split: of the data; `data.train`.
        axis: over which the mean is taken. 0 gives a value for each pixel, `[...]`; `(0, 1, 2)`
            gives one for each channel of images, which is what a convolutional head takes.
        lowest, highest: limits of the mean, within (0, 1).

    Raises:
        ValueError: the limits are not within (0, 1).
        DataError: the mean is outside [0, 1], or rows of a pipeline cannot be read beforehand.

    >>> from vae_research import Data
    >>> rows = np.array([[0, 1], [0, 0]], np.float32)
    >>> print(logits_of_mean(Data.from_arrays(rows, rows, rows, rescale="none").train).round(1))
    [-6.9  0. ]
    """
    if not 0.0 < lowest <= highest < 1.0:
        raise ValueError(f"lowest and highest must be within (0, 1), got {lowest} and {highest}.")
    raw = split.raw
    if isinstance(raw, Rows):
        if not raw.is_repeatable:
            raise DataError(
                f"split {split.name!r} is a pipeline, whose rows cannot be read beforehand: give "
                "output_bias=... numbers, or take the mean of another split"
            )
        raw = raw.sample()
    total = np.zeros(split.shape, np.float64)
    for rows in row_blocks(raw):
        values = split.scaling.apply(raw[rows])
        if split.binarize == "threshold":
            values = values > 0.5
        total += values.sum(axis=0, dtype=np.float64)
    mean = np.mean((total / len(raw))[None], axis=axis)
    if not np.all((mean >= 0.0) & (mean <= 1.0)):
        raise DataError(
            f"the mean of split {split.name!r} is from {mean.min():g} to {mean.max():g}, and "
            "logits are of values from 0 to 1: rescale='unit' maps the data to them"
        )
    clipped = np.clip(mean, lowest, highest)
    return (np.log(clipped) - np.log1p(-clipped)).astype(np.float32)

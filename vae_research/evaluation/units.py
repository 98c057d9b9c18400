"""Figures in comparable units: nats of the data as stored, and bits per dimension. NumPy only.

A density depends on the unit of its argument. If a model sees `y = (x - offset) / divisor`, then
`log p(x) = log p(y) - sum log divisor` over the values x of an example. Bits of integers x are
`-mean over u of log2 p(x + u) / D`, with u from the cell [-1/2, 1/2) of an integer and D values: at
least those of the probability that the model gives to the cell. Theis et al. 2016
(arXiv:1511.01844), section 3.1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vae_research.data.split import Split
from vae_research.losses.term import Likelihood

Values = npt.NDArray[np.float64]


def log_jacobian(likelihood: Likelihood, split: Split) -> Values | None:
    """Returns what a log-density of prepared values is less than one of stored values, `[count]`.

    It is `-sum log divisor` over the values of an example that have a density and are known. Other
    arrays than the inputs are not rescaled.

    Args:
        likelihood: of the model.
        split: what it was evaluated on.

    Returns:
        None if the likelihood has no density, if its values are 0 or 1 drawn from those stored, or
        if a module says which ones are known.
    """
    densities = [each for each in likelihood.factors if each.is_density]
    if not densities:
        return None
    total = np.zeros(len(split))
    for each in densities:
        if not reads_inputs(each, split):
            continue
        if split.binarize != "none" or (each.observed and each.observed not in split.arrays):
            return None
        total -= _sum_of_known(each, split, np.log(split.scaling.divisor.astype(np.float64)))
    return total


def dimensions(likelihood: Likelihood, split: Split) -> Values | None:
    """Returns the number of known values of each example, `[count]`, by which bits are divided.

    Returns:
        None of a product of likelihoods, whose values differ in kind, if no value is known, and if
        a module writes the values or says which ones are known.
    """
    if len(likelihood.factors) > 1:
        return None
    (only,) = likelihood.factors
    inputs = reads_inputs(only, split)
    written = not inputs and only.target not in split.arrays
    if written or (only.observed and only.observed not in split.arrays):
        return None
    known = _sum_of_known(only, split, np.float64(1.0))
    return known if known.any() else None


def bits(negative_log_p: npt.ArrayLike, values: Values) -> Values:
    """Returns bits per value, `[count]`, from nats per example.

    Their mean is all bits over all values, so that every value counts the same, and an example
    without any counts nothing. If examples differ in their number of values, one of b bits and d
    values has `r + (b - r d) / m`, with the ratio r of the sums and the mean m of d: the standard
    error of their mean is that of the ratio. Cochran 1977, Sampling Techniques, equation 6.13.

    Args:
        negative_log_p: nats, `[count]`.
        values: the number of values of each example, `[count]`, not all of them 0.

    >>> bits([2.0 * math.log(2.0)], np.array([4.0])).tolist()
    [0.5]
    >>> bits([0.0, 4.0 * math.log(2.0)], np.array([0.0, 4.0])).tolist()
    [1.0, 1.0]
    """
    mean = values.mean()
    found = np.asarray(negative_log_p, np.float64) / (mean * math.log(2.0))
    ratio = found.mean()
    if np.ptp(values) == 0.0 or not np.isfinite(ratio):
        return found
    return found + ratio * (1.0 - values / mean)


def log_mean_density(log_densities: Sequence[npt.ArrayLike]) -> Values:
    """Returns the logarithm of the mean of densities, `[count]`, one array for each draw of u.

    It is the estimate of the probability of the cell: tighter than the mean of the logarithms.

    >>> log_mean_density([[0.0], [math.log(3.0)]]).round(4).tolist()
    [0.6931]
    """
    values = np.stack([np.asarray(each, np.float64) for each in log_densities])
    largest = values.max(axis=0)
    return np.log(np.exp(values - largest).mean(axis=0)) + largest


def is_probability(likelihood: Likelihood, split: Split) -> bool:
    """Returns whether the figures are of probabilities, which are bits without noise.

    Not of a density, and not of grey values under a likelihood of 0 and 1.
    """
    if any(each.is_density for each in likelihood.factors):
        return False
    return note_on_grey_values(likelihood, split) is None


def note_on_grey_values(likelihood: Likelihood, split: Split) -> str | None:
    """Returns the note of a likelihood that has one on grey values, if the values are grey."""
    return likelihood.note(True) and likelihood.note(split.grey_values)


def has_integers(split: Split) -> bool:
    """Returns whether the stored values are integers, and prepared without becoming 0 or 1."""
    return split.raw.dtype.kind in "bui" and split.binarize == "none"


def has_cells(likelihood: Likelihood, split: Split) -> bool:
    """Returns whether a single density is one of stored integers, and has bits with noise."""
    return _is_of_integers(likelihood, split) and why_no_bits(likelihood, split) is None


def why_no_bits(likelihood: Likelihood, split: Split) -> str | None:
    """Returns a note if a density of integers has no bits per dimension, otherwise None."""
    if not _is_of_integers(likelihood, split):
        return None
    low, high = dataclasses.replace(split, dequantize="uniform").value_range()
    support = likelihood.support
    if support[0] <= low <= high <= support[1]:
        return None
    return (
        "Bits per dimension are left out, since they need the density within half a level around "
        f"each value, from {low:.4g} to {high:.4g}, and {type(likelihood).__name__} has none "
        f"outside of {support[0]:g} to {support[1]:g}. A model trained with "
        "--dequantize=uniform has them."
    )


def _is_of_integers(likelihood: Likelihood, split: Split) -> bool:
    if len(likelihood.factors) > 1 or not likelihood.is_density:
        return False
    return has_integers(split) and reads_inputs(likelihood, split)


def reads_inputs(likelihood: Likelihood, split: Split) -> bool:
    """Returns whether a likelihood compares the inputs of a split, and not another array."""
    return likelihood.target in ("inputs", "targets") and likelihood.target not in split.arrays


def _sum_of_known(likelihood: Likelihood, split: Split, each: np.ndarray | np.float64) -> Values:
    """Returns the sum of `each`, which broadcasts to a row, over the known values, `[count]`."""
    target = likelihood.target
    shape = split.shape if reads_inputs(likelihood, split) else split.arrays[target].shape[1:]
    row = np.broadcast_to(each, shape)
    if likelihood.observed is None:
        return np.full(len(split), row.sum())
    known = (split.arrays[likelihood.observed][:] > 0).reshape(len(split), *shape)
    if likelihood.event_rank:  # values that depend on each other are missing together
        axes = tuple(range(-likelihood.event_rank, 0))
        known = known.all(axis=axes, keepdims=True)
    return np.where(known, row, 0.0).reshape(len(split), -1).sum(axis=1)

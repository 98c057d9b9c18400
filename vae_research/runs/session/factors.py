"""Whether `--disentanglement` can be done: the extra is installed, and the data have factors."""

from __future__ import annotations

import importlib.util

import numpy as np

from vae_research.data import Data
from vae_research.data.factors import FACTORS
from vae_research.runs.cli.errors import UsageError
from vae_research.settings import did_you_mean

METRIC_NAMES = (
    *("mig", "sap", "factor_vae_score", "beta_vae_score", "modularity_explicitness"),
    *("infomec", "dci"),
)
"""Keys of `vae_research.evaluation.factor_scores.METRICS`, which imports TensorFlow."""

EXAMPLES = 10_000
"""Rows of a split whose codes are compared with their factors, at most, by default."""

# A code is divided into so many bins, each of which needs a row.
_LEAST_ROWS = 20


def refuse_without_factors(data: Data, asked: str = "--disentanglement") -> None:
    """Raises UsageError unless codes of these data can be compared with factors.

    Args:
        data: of a run.
        asked: what was asked for, for messages.
    """
    if data.factors is None:
        there = f"further arrays: {', '.join(data.names) or 'none'}"
        if FACTORS in data.names:
            found = data.test.arrays[FACTORS]
            there = f"its array of this name is {found.dtype} {list(found.shape)}"
            if found.dtype.kind in "ui" and found.ndim == 2:
                there += ", with numbers below 0" if found.shape[1] else ", without a column"
        raise UsageError(
            f"{asked} compares codes with known factors, and {data.name} has none "
            f"({there}). Factors are an array of this name of integers from 0, "
            '[n, k]: {"inputs": images, "factors": numbers}.'
        )
    for split in (data.validation, data.test):
        if len(split) < _LEAST_ROWS:
            raise UsageError(
                f"{asked} needs {_LEAST_ROWS} {split.name} examples, and {data.name} has "
                f"{len(split)}."
            )
        if not np.ptp(split.arrays[FACTORS][:], axis=0).any():
            raise UsageError(
                f"{asked}: every factor of {data.name} has the same value in all "
                f"{len(split):,} {split.name} examples."
            )
    if importlib.util.find_spec("sklearn") is None:
        raise UsageError(
            f"{asked} needs scikit-learn: pip install 'vae_research[disentanglement]'."
        )


def metric_names(text: str | None, asked: str = "--disentanglement_metrics") -> tuple[str, ...]:
    """The names of metrics, separated by commas; None is all of them.

    Raises:
        UsageError: there is no such metric.
    """
    names = METRIC_NAMES if text is None else tuple(text.split(","))
    for name in names:
        if name not in METRIC_NAMES:
            near = did_you_mean(name, METRIC_NAMES)
            raise UsageError(
                f"{asked}: there is no {name!r}.{near} There are {', '.join(METRIC_NAMES)}."
            )
    return names

"""Two trained models on the same test examples."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from vae_research.evaluation.estimates import Estimate
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.session import directory
from vae_research.runs.session.figures import VALUES
from vae_research.runs.session.loading import Run

# What two runs must have in common, as their config.json and summary.json have it.
_OF_DATA = ("fingerprint", "counts", "shape", "rescale", "scaling", "binarize")
_OF_EVALUATION = ("importance_samples", "seed", "rows")


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """The mean difference of two models' figures over the same examples, first minus second.

    It is about these two trained models. What a setting does is another question, which needs
    several seeds of each.

    Attributes:
        value: in the unit of the figure, nats for most.
        standard_error: that of the mean of the differences; None of a single example.
        unpaired_standard_error: what it would be if the examples were not the same.
        count: examples.
    """

    value: float
    standard_error: float | None
    unpaired_standard_error: float | None
    count: int


def paired_difference(
    first: str | Path | Run | np.ndarray,
    second: str | Path | Run | np.ndarray,
    figure: str = "negative_log_likelihood",
) -> PairedDifference:
    """Returns how two trained models differ in a test figure, example by example.

    >>> paired_difference(np.array([1.0, 5.0, 9.0]), np.array([0.0, 4.0, 9.5])).value
    0.5

    Args:
        first, second: finished runs or their directories, on the same test data and with the same
            evaluation; or the values themselves, `[count]`, as in `Estimate.values`.
        figure: name of a figure in `figures.npz`; not used with values.

    Raises:
        UsageError: a run has no such values, or the runs cannot be compared.
    """
    runs = [each for each in (first, second) if not isinstance(each, np.ndarray)]
    if len(runs) == 2:
        _refuse_different(*(_path(run) for run in runs))
    values = [_values(each, figure) for each in (first, second)]
    if values[0].shape != values[1].shape or values[0].ndim != 1:
        raise UsageError(
            f"a paired difference needs two values of each example, got arrays of shape "
            f"{values[0].shape} and {values[1].shape}"
        )
    difference = Estimate.mean_of(values[0] - values[1])
    errors = [Estimate.mean_of(each).standard_error for each in values]
    unpaired = None if None in errors else math.hypot(*(error or 0.0 for error in errors))
    return PairedDifference(difference.value, difference.standard_error, unpaired, difference.count)


def _path(run: Any) -> Path:
    return run.path if isinstance(run, Run) else Path(run).expanduser().absolute()


def _values(source: Any, figure: str) -> np.ndarray:
    if isinstance(source, np.ndarray):
        return source.astype(np.float64)
    path = _path(source)
    try:
        with np.load(path / VALUES) as found:
            if figure in found.files:
                return found[figure].astype(np.float64)
            names = ", ".join(found.files)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} has no values of test examples ({VALUES}): {error}") from error
    raise UsageError(f"{path / VALUES} has no {figure!r}; it has {names}")


def _refuse_different(first: Path, second: Path) -> None:
    """Raises UsageError unless the figures of two runs are about the same examples and noise."""
    found = []
    for path in (first, second):
        summary = directory.read_summary(path)
        if summary is None:
            raise UsageError(f"{path} is not finished: it has no test figures")
        data, evaluation = directory.read_config(path)["data"], summary["evaluation"]
        compared = {name: data.get(name) for name in _OF_DATA}
        found.append(compared | {name: evaluation.get(name) for name in _OF_EVALUATION})
    for name, value in found[0].items():
        if (other := found[1][name]) != value:
            raise UsageError(
                f"{first} and {second} cannot be compared image by image: {name} is {value!r} and "
                f"{other!r}"
            )

"""Two trained models on the same test examples."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from vae_research.runs.cli.errors import UsageError
from vae_research.runs.compare.comparability import difference_between
from vae_research.runs.compare.records import load_runs
from vae_research.runs.session.directory import VALUES
from vae_research.runs.session.loading import Run


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
        _refuse_different(_path(runs[0]), _path(runs[1]), figure)
    values = [_values(each, figure) for each in (first, second)]
    if values[0].shape != values[1].shape or values[0].ndim != 1:
        raise UsageError(
            f"a paired difference needs two values of each example, got arrays of shape "
            f"{values[0].shape} and {values[1].shape}"
        )
    difference, count = values[0] - values[1], len(values[0])
    paired, *errors = (_error_of_mean(each) for each in (difference, *values))
    unpaired = None if paired is None else math.hypot(*(error or 0.0 for error in errors))
    return PairedDifference(float(difference.mean()), paired, unpaired, count)


def _error_of_mean(values: np.ndarray) -> float | None:
    """Returns the standard error of the mean of values, as that of test figures."""
    count = len(values)
    return float(values.std(ddof=1) / math.sqrt(count)) if count > 1 else None


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


def _refuse_different(first: Path, second: Path, figure: str) -> None:
    """Raises UsageError unless a figure of two runs is about the same examples and noise."""
    records = load_runs(first, second)  # one, if both are the same run
    for record in records:
        if record["status"] != "done":
            raise UsageError(f"{record['path']} is not finished: it has no test figures")
    difference = difference_between(records[0], records[-1], [figure])
    if difference is not None:
        raise UsageError(
            f"{first} and {second} cannot be compared example by example: {difference}"
        )

"""Test figures: those of the experiment beside those of every model, and their values by example.

Imports TensorFlow.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vae_research import files
from vae_research.evaluation.estimates import Estimate
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.session.directory import VALUES


def own_figures(returned: Any, count: int, taken: Collection[str]) -> dict[str, Estimate]:
    """Returns what an experiment's `evaluate` has returned, as estimates by name.

    Args:
        returned: numbers, arrays with a value for each test example, or estimates, by name.
        count: number of test examples.
        taken: names of other figures.

    Raises:
        UsageError: it is anything else.
    """
    if not isinstance(returned, Mapping):
        raise UsageError(
            f"evaluate() returned {type(returned).__name__}; it must return a dictionary of "
            "numbers, or of arrays with a value for each test example."
        )
    found = {}
    for name, given in returned.items():
        if not isinstance(name, str) or not name.isidentifier() or name in taken:
            raise UsageError(
                f"evaluate() returned a figure called {name!r}. Give it a name of letters, digits "
                f"and underscores that is not one of {', '.join(taken)}."
            )
        if isinstance(given, Estimate) and given.values is not None:
            given = given.values
        try:
            values = np.asarray(given, np.float32 if np.ndim(given) else np.float64)
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"evaluate() returned no number as {name!r}: {given!r:.100}"
            ) from error
        if values.shape not in ((), (count,)):
            raise UsageError(
                f"evaluate() returned {name!r} of shape {values.shape}; it must be a number, or "
                f"have a value for each of the {count} test examples, ({count},)."
            )
        if values.ndim:
            found[name] = dataclasses.replace(Estimate.mean_of(values), values=values)
        else:
            found[name] = Estimate(float(values), None, count)
    return found


def save_values(run_dir: Path, estimates: Mapping[str, Estimate]) -> str:
    """Writes the values of the test examples, float32 `[count]` by name, in the order of the data.

    Returns:
        The name of the file, which `numpy.load` reads.
    """
    values = {name: found.values for name, found in estimates.items() if found.values is not None}
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **values)
    files.replace(run_dir / VALUES, content.getvalue())
    return VALUES

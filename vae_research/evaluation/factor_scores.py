"""Scores of disentanglement: what single codes of a model say about known factors of the data.

The metrics are those of `vae_research.disentanglement`; here they get the names and the notes that
a run writes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from vae_research.disentanglement import Score, mig, mutual_information
from vae_research.disentanglement.information import entropies
from vae_research.evaluation.estimates import Estimate

Metric: TypeAlias = Callable[..., "Score | Mapping[str, Score]"]
"""From codes `[n, d]`, factors `[n, k]` and `seed=` to a score, or to scores by name."""

METRICS: dict[str, Metric] = {"mig": mig}
"""All metrics of codes and factors, by the name of their test figure."""

FAST: dict[str, Metric] = {"mig": functools.partial(mig, repeats=1)}
"""Those that take well under a second of 10 000 rows: curves during training are of these."""


@dataclasses.dataclass(frozen=True)
class FactorScores:
    """Scores, and the mutual information of codes and factors.

    Attributes:
        figures: the scores by name.
        information: `[codes, factors]`, mutual information, nats.
        entropies: `[factors]`, nats.
        codes: the name of each code.
        factors: the name of each factor that varies.
        notes: what a reader of the scores must know.
    """

    figures: dict[str, Estimate]
    information: np.ndarray
    entropies: np.ndarray
    codes: list[str]
    factors: list[str]
    notes: list[str]

    def label(self, codes: Sequence[int]) -> str:
        """Returns a label of a code, or of those of a one-hot variable: the factor that it follows.

        That is the factor of the largest mutual information, with its value.
        """
        of_codes = self.information[list(codes)]
        factor = int(of_codes.max(axis=0).argmax())
        first, last = self.codes[codes[0]], self.codes[codes[-1]]
        name = first if len(codes) == 1 else f"{first} to {last}"
        return f"{name}: {self.factors[factor]}, {of_codes[:, factor].max():.2f} nats"

    def as_dict(self) -> dict[str, Any]:
        """Returns all of it for JSON."""
        return {
            "figures": {name: each.as_dict() for name, each in self.figures.items()},
            "codes": self.codes,
            "factors": self.factors,
            "entropies": self.entropies.tolist(),
            "mutual_information": self.information.tolist(),
            "notes": self.notes,
        }


def factor_scores(
    codes: np.ndarray,
    factors: np.ndarray,
    code_names: Sequence[str],
    factor_names: Sequence[str],
    *,
    metrics: Mapping[str, Metric] | None = None,
    seed: int = 0,
    between_metrics: Callable[[], None] | None = None,
) -> FactorScores:
    """Returns the scores of codes.

    A metric that cannot be computed of these codes and factors, for example of too few rows, is
    left out, and a note says why.

    Args:
        codes: `[rows, codes]`.
        factors: `[rows, factors]` integers. Those with a single value are left out.
        code_names, factor_names: of the columns.
        metrics: from codes, factors and a seed to a score, or to scores by name; by default all.
        seed: of what is drawn, such as the groups of rows for a standard error.
        between_metrics: called before each of them; it may raise to end the evaluation.
    """
    varies = np.ptp(factors, axis=0) > 0
    factors = factors[:, varies]
    names = [name for name, used in zip(factor_names, varies, strict=True) if used]
    notes = []
    if not varies.all():
        constant = [name for name, used in zip(factor_names, varies, strict=True) if not used]
        notes.append(
            f"Scores of disentanglement are without {', '.join(constant)}, which has one value in "
            f"the {len(factors):,} examples."
        )
    figures = {}
    for name, metric in (METRICS if metrics is None else metrics).items():
        if between_metrics is not None:
            between_metrics()
        try:
            found = metric(codes, factors, seed=seed)
        except ValueError as error:
            notes.append(f"{name} is left out: {error}")
            continue
        parts = {name: found} if isinstance(found, Score) else found
        figures |= {part: _estimate(score) for part, score in parts.items()}
    try:
        information = mutual_information(codes, factors)
    except ValueError:  # of which every metric has a note
        information = np.full([len(code_names), len(names)], np.nan)
    return FactorScores(
        figures, information, entropies(factors), list(code_names), names, notes
    )


def _estimate(score: Score) -> Estimate:
    return Estimate(score.value, score.standard_error, score.count)

"""Scores of disentanglement: what single codes of a model say about known factors of the data.

The metrics are those of `vae_research.disentanglement`; here they get the names and the notes that
a run writes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from vae_research.disentanglement import (
    RowSampler,
    Score,
    beta_vae_score,
    dci,
    factor_vae_score,
    infomec,
    mig,
    modularity_explicitness,
    mutual_information,
    sap,
)
from vae_research.disentanglement.information import BINS, entropies
from vae_research.evaluation import NOTE_ON_SCORES
from vae_research.evaluation.encoding import EncodedData
from vae_research.evaluation.estimates import Estimate

Scores: TypeAlias = Mapping[str, Score]
Metric: TypeAlias = Callable[[np.ndarray, np.ndarray, int, int], Scores]
"""From codes `[n, d]`, factors `[n, k]`, a seed and a number of repeats to scores by name."""


def _mig(codes: np.ndarray, factors: np.ndarray, seed: int, repeats: int) -> Scores:
    return {"mig": mig(codes, factors, seed=seed, repeats=repeats)}


def _sap(codes: np.ndarray, factors: np.ndarray, seed: int, repeats: int) -> Scores:
    return {"sap": sap(codes, factors, seed=seed, repeats=repeats)}


def _factor_vae(codes: np.ndarray, factors: np.ndarray, seed: int, repeats: int) -> Scores:
    sampler = RowSampler(codes, factors)
    return {"factor_vae_score": factor_vae_score(sampler, seed=seed, repeats=repeats)}


def _beta_vae(codes: np.ndarray, factors: np.ndarray, seed: int, repeats: int) -> Scores:
    sampler = RowSampler(codes, factors)
    return {"beta_vae_score": beta_vae_score(sampler, seed=seed, repeats=repeats)}


def _dci(codes: np.ndarray, factors: np.ndarray, seed: int, repeats: int) -> Scores:
    found = dci(codes, factors, seed=seed, repeats=repeats)
    return {f"dci_{name}": each for name, each in found.items()}


def _modularity(codes: np.ndarray, factors: np.ndarray, seed: int, repeats: int) -> Scores:
    return modularity_explicitness(codes, factors, seed=seed, repeats=repeats)


def _infomec(codes: np.ndarray, factors: np.ndarray, seed: int, repeats: int) -> Scores:
    discrete = all(len(np.unique(code)) <= BINS for code in codes.T)
    return infomec(codes, factors, discrete=discrete, seed=seed, repeats=repeats)


FAST: dict[str, Metric] = {"mig": _mig, "sap": _sap, "factor_vae_score": _factor_vae}
"""Of 10 000 rows, 10 codes and 5 factors without repeats they took half a second of one core."""

METRICS: dict[str, Metric] = {
    **FAST,
    "beta_vae_score": _beta_vae,
    "modularity_explicitness": _modularity,
    "infomec": _infomec,
    "dci": _dci,
}
"""All of them; the last three took a minute of one core. Classifiers of scikit-learn."""

# Their time grows with the number of codes: with more they are left out.
_MOST_CODES = {"dci": 64, "infomec": 64}
_REPEATS = 5


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
        encoded: the codes that they are of, if they are kept.
        settings: what was asked for, for JSON: examples at most, seed, names of metrics.
    """

    figures: dict[str, Estimate]
    information: np.ndarray
    entropies: np.ndarray
    codes: list[str]
    factors: list[str]
    notes: list[str]
    encoded: EncodedData | None = None
    settings: Mapping[str, Any] | None = None

    @property
    def heads(self) -> list[str]:
        """The heads of a table of mutual information: each factor above its entropy in nats."""
        pairs = zip(self.factors, self.entropies, strict=True)
        return [f"{name}\nH {entropy:.2f}" for name, entropy in pairs]

    def most_informative(self, count: int) -> np.ndarray:
        """Returns the numbers of the codes that say most about some factor, in order."""
        most = np.argsort(-self.information.max(axis=1), kind="stable")[:count]
        return np.sort(most)

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
            **({} if self.settings is None else {"settings": dict(self.settings)}),
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
    metrics: Mapping[str, Metric] = METRICS,
    seed: int = 0,
    repeats: int = _REPEATS,
    between_metrics: Callable[[], None] | None = None,
) -> FactorScores:
    """Returns the scores of codes.

    A metric that cannot be computed of these codes and factors, for example of too few rows, is
    left out, and a note says why.

    Args:
        codes: `[rows, codes]`.
        factors: `[rows, factors]` integers. Those with a single value are left out.
        code_names, factor_names: of the columns.
        metrics: some of `METRICS`.
        seed: of what is drawn, such as the groups of rows for a standard error.
        repeats: disjoint groups of rows for standard errors; 1 for none.
        between_metrics: called before each of them; it may raise to end the evaluation.
    """
    varies = np.ptp(factors, axis=0) > 0
    names = [name for name, used in zip(factor_names, varies, strict=True) if used]
    constant = [name for name in factor_names if name not in names]
    factors, count = factors[:, varies], codes.shape[1]
    figures: dict[str, Estimate] = {}
    notes = []
    for name, metric in metrics.items():
        if between_metrics is not None:
            between_metrics()
        if count > (most := _MOST_CODES.get(name, count)):
            notes.append(f"{name} is left out: it takes too long of {count} codes, over {most}.")
            continue
        try:
            found = metric(codes, factors, seed, repeats)
        except ValueError as error:
            notes.append(f"{name} is left out: {error}")
            continue
        figures |= {part: _estimate(score) for part, score in found.items()}
    try:
        information = mutual_information(codes, factors)
    except ValueError:  # of which every metric has a note
        information = np.full([count, len(names)], np.nan)
    has_errors = any(each.standard_error is not None for each in figures.values())
    about = [_note(codes, factors, names, constant, repeats * has_errors)] if figures else []
    return FactorScores(
        figures, information, entropies(factors), list(code_names), names, [*about, *notes]
    )


def _note(
    codes: np.ndarray,
    factors: np.ndarray,
    names: Sequence[str],
    constant: Sequence[str],
    repeats: int,
) -> str:
    """Returns of what the scores are, and by how much mutual information is too large at most."""
    values = max(len(np.unique(factor)) for factor in factors.T)
    bias = (BINS - 1) * (values - 1) / (2 * len(codes))  # see `mutual_information`
    left_out = f" ({', '.join(constant)}: one value only)" if constant else ""
    errors = f"; standard errors are over {repeats} groups of them" if repeats > 1 else ""
    return (
        f"{NOTE_ON_SCORES} compare codes without noise with {', '.join(names)}{left_out}, "
        f"of {len(codes):,} examples{errors}. Mutual information of so many is up to {bias:.2f} "
        "nats too large."
    )


def _estimate(score: Score) -> Estimate:
    return Estimate(score.value, score.standard_error, score.count)

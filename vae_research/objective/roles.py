"""Which part of a bound a loss term is."""

from __future__ import annotations

from collections.abc import Iterable

from vae_research.losses.term import Likelihood, LossTerm


def meanings(term: LossTerm) -> set[str]:
    """Returns the names that a term reads, before and after `rename`."""
    return term.reads() | set(term.renamed())


def adds_log_posterior(term: LossTerm) -> bool:
    """Returns whether the value of a term is `log_posterior`, of z, plus something."""
    reads_it = "log_posterior" in term.reads()
    return term.adds_log_posterior and reads_it and not term.batch_statistic


def inside_importance_weight(terms: Iterable[LossTerm]) -> list[str]:
    """Returns the names of the trained terms that an importance weight is made of."""
    return [
        term.label
        for term in terms
        if term.weight is not None
        and (isinstance(term, Likelihood) or {"log_posterior", "log_prior"} <= meanings(term))
    ]


def estimated(terms: Iterable[LossTerm]) -> list[LossTerm]:
    """Returns the terms that a gradient estimator differentiates: likelihood and divergences."""
    terms = list(terms)
    inside = inside_importance_weight(terms)
    return [
        term
        for term in terms
        if term.label in inside and (isinstance(term, Likelihood) or adds_log_posterior(term))
    ]

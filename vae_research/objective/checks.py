"""Loss terms that make no objective, each refused with what to do instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import tensorflow as tf

from vae_research.gradient_estimators import GradientEstimator
from vae_research.levels import OF_LEVELS, level_of
from vae_research.losses.term import Likelihood, LossTerm
from vae_research.objective.roles import estimated, inside_importance_weight, meanings

# Names in the logs that no term may take.
RESERVED_NAMES = ("loss", "elbo", "regularization", "learning_rate", "importance_weighted_bound")


def check_terms(terms: Sequence[LossTerm]) -> Likelihood:
    """Returns the likelihood of loss terms that are an objective together.

    Raises:
        ValueError: no likelihood or several, or names that the logs cannot tell apart.
        TypeError: one of them is not a loss term.
    """
    for term in terms:
        if not isinstance(term, LossTerm):
            raise TypeError(f"{term!r} is not a LossTerm. Subclass LossTerm, or make one of it.")
    likelihoods = [term for term in terms if isinstance(term, Likelihood)]
    labels = [term.label for term in likelihoods]
    if "kl" in labels:
        raise ValueError("A likelihood may not be called 'kl': the logs use that name.")
    if len(labels) != 1:
        found = ", ".join(labels) or "none"
        raise ValueError(
            "Exactly one loss term must be a likelihood, for example Bernoulli() or "
            f"Gaussian(); got {found} among the terms {_named(terms) or '(none)'}."
        )
    likelihood = likelihoods[0]
    check_labels([*terms, *(likelihood.factors if len(likelihood.factors) > 1 else ())])
    for term in terms:
        if term.weight is not None:
            _check_levels(term)
    return likelihood


def check_labels(terms: Iterable[LossTerm]) -> None:
    """Refuses terms that the logs could not tell apart.

    Raises:
        ValueError: two of them have one name, or one has a name that the logs use.
    """
    labels = [term.label for term in terms]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(
                f"Two loss terms are called {label!r}: {', '.join(labels)}. Remove one, or give it "
                "another name: Term(name='...')."
            )
        if label in RESERVED_NAMES:
            raise ValueError(f"No loss term may be called {label!r}: the logs use that name.")


def _check_levels(term: LossTerm) -> None:
    """Raises ValueError for a trained divergence that would be missing in the ELBO."""
    renamed = term.renamed()
    pair = {"log_posterior", "log_prior"} if term.adds_log_posterior else set()
    read = ({"kl"} | pair) & (term.reads() | renamed.keys())
    if not read & renamed.keys():
        return
    found = {name: level_of(renamed.get(name, name)) for name in sorted(read)}
    latents = {of[1] if of and of[0] == name else None for name, of in found.items()}
    if None in latents or len(latents) > 1:
        names = " and ".join(repr(renamed.get(name, name)) for name in found)
        raise ValueError(
            f"Loss term {term.label!r} trains {names}, which would not be part of the ELBO. The "
            "divergence of a latent NAME is kl_NAME, or log_posterior_NAME minus log_prior_NAME: "
            f"call the tensors so, and use {type(term).__name__}(latent='NAME'). What is no "
            "divergence of a latent is a term of another class."
        )


def check_importance_weighting(terms: Sequence[LossTerm]) -> None:
    """Raises ValueError unless the trained terms make an importance-weighted bound."""
    for term in terms:
        if term.weight is None:
            continue
        if "kl" in meanings(term):
            raise ValueError(
                f"Loss term {term.label!r} ({type(term).__name__}) reads the closed-form 'kl', "
                "which cannot be part of an importance-weighted bound: its mean over z is "
                "already taken, and the result would not be a bound of log p(x). Use "
                "MonteCarloKL(), or watch the term with weight=None."
            )
        if term.batch_statistic:
            raise ValueError(
                f"Loss term {term.label!r} is a statistic of the whole batch, and an "
                "importance weight belongs to one example. Watch the term with weight=None, "
                "or train without importance_weighted=True."
            )
    if any(isinstance(term, Likelihood) and term.weight is None for term in terms):
        raise ValueError("An importance-weighted bound needs the likelihood's weight.")
    if len(inside_importance_weight(terms)) < 2:
        raise ValueError(
            "An importance-weighted bound needs log q(z|x) - log p(z): add MonteCarloKL() to "
            f"the terms {_named(terms)}."
        )


def check_gradient_estimator(
    estimator: GradientEstimator, terms: Sequence[LossTerm], importance_weighted: bool
) -> None:
    """Refuses an estimator that cannot differentiate these terms.

    Raises:
        ValueError: it needs another bound, or has nothing to estimate, or a term is inside of the
            importance weight that it cannot differentiate.
        TypeError: it is not a gradient estimator.
    """
    if not isinstance(estimator, GradientEstimator):
        raise TypeError(
            f"gradient_estimator must be a GradientEstimator, for example DReG(), got "
            f"{estimator!r}."
        )
    if estimator.needs_importance_weighting and not importance_weighted:
        raise ValueError(
            f"{estimator!r} estimates the gradient of an importance-weighted bound: add "
            "importance_weighted=True. For samples that are joined by their mean there is "
            "StickingTheLanding()."
        )
    differentiated = estimated(terms)
    labels = [term.label for term in differentiated]
    if importance_weighted:
        for name in inside_importance_weight(terms):
            if name not in labels:
                raise ValueError(
                    f"{estimator!r} cannot differentiate loss term {name!r}, which is inside "
                    "of the importance weight. It needs the value to be `log_posterior`, of z "
                    "and no other latent, plus something that does not depend on it, as in "
                    "MonteCarloKL(). If that is so, write adds_log_posterior = True in the "
                    "class of the term."
                )
    if all(isinstance(term, Likelihood) for term in differentiated):
        raise ValueError(
            f"{estimator!r} changes the gradient of log q(z|x), which no trained term reads as "
            f"`log_posterior`. Use MonteCarloKL() among the terms {_named(terms)}; a closed form "
            "has no sample whose gradient could be estimated."
        )


def check_name_of_all(terms: Iterable[LossTerm], latents: Iterable[str]) -> None:
    """Raises ValueError for a term that is about one of several latents and is called `kl`."""
    for term in terms:
        if term.label == "kl" and term.renamed().keys() & {*OF_LEVELS}:
            raise ValueError(
                f"Loss term 'kl' ({term!r}) is about one latent of {', '.join(latents)}, and "
                "'kl' in the logs is the divergence of all. Give it another name, or use "
                f"{type(term).__name__}(latent='NAME'), which is called kl_NAME."
            )


def check_rows(values: Mapping[str, tf.Tensor], likelihood: str) -> None:
    """Raises ValueError for a value with another number of rows, which would broadcast.

    Args:
        values: of the terms, by name.
        likelihood: the name of the one with the right number.
    """
    rows = values[likelihood].shape[0]
    for name, value in values.items():
        # If the number of rows is known here and unknown for the batch, it is another one.
        if value.shape.rank == 1 and value.shape[0] not in (rows, None):
            raise ValueError(
                f"Loss term {name!r} returned {value.shape[0]} values for {rows} rows; "
                "it must return one for each row."
            )


def _named(terms: Iterable[LossTerm]) -> str:
    return ", ".join(term.label for term in terms)

"""The objective: weighs loss terms, joins the samples of an example, and reports every part."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Mapping
from typing import Any, Self

import tensorflow as tf

from vae_research.arguments import checked_integer
from vae_research.controllers import Controller, first_state, is_varying, weight_of
from vae_research.distribution import batch_mean, whole_batch
from vae_research.gradient_estimators import (
    GradientEstimator,
    SampledPath,
    WeightedSamples,
    join_samples,
)
from vae_research.levels import OF_LEVELS, level_of, levels
from vae_research.losses.term import Likelihood, LossTerm
from vae_research.probability import sum_over_event
from vae_research.schedules import Schedule, value_at
from vae_research.tensors import RELAXED, Tensors, graph_scope, sum_in_order

# The state of each controller, by the name of its term: scalars by name.
ControllerStates = Mapping[str, Mapping[str, Any]]

# Names in the logs that no term may take.
RESERVED_NAMES = ("loss", "elbo", "regularization", "learning_rate", "importance_weighted_bound")
# Figures of a model of which the larger is the better one, the more telling one first.
LARGER_IS_BETTER = ("importance_weighted_bound", "elbo")


@dataclasses.dataclass(frozen=True)
class CriticReport:
    """The loss of a critic on a batch and its parts, float32 scalars, means over rows.

    Attributes:
        loss: what its optimizer minimises.
        values: unweighted values by name.
        weights: weights by name; terms that are only logged have none.
    """

    loss: tf.Tensor
    values: dict[str, tf.Tensor]
    weights: dict[str, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class LossReport:
    """The loss of a batch and its parts, in nats and float32.

    Attributes:
        loss: `[batch]`, what is minimised and reported.
        surrogate: `[batch]`, what is differentiated; the same tensor unless an estimator needs
            another.
        values: unweighted values by name, `[batch]` or a scalar, means over the samples.
        weights: weights by name, scalars; terms that are only logged have none.
        elbo: `[batch]`, log-likelihood minus KL divergence whatever is trained, or None if there is
            no posterior, or codes are relaxed.
        critics: the reports of the critics, by name.
        importance_weighted_bound: `[batch]`, the bound of log p(x) of K samples with all weights 1
            (Burda et al. 2016, equation 8), if such a bound is trained, otherwise None.
        logged: `[batch]` by name, what the logs have in place of a value: the divergence in closed
            form, which is part of `elbo`, where a term estimates it from samples.
    """

    loss: tf.Tensor
    surrogate: tf.Tensor
    values: dict[str, tf.Tensor]
    weights: dict[str, tf.Tensor]
    elbo: tf.Tensor | None
    critics: dict[str, CriticReport] = dataclasses.field(default_factory=dict)
    importance_weighted_bound: tf.Tensor | None = None
    logged: dict[str, tf.Tensor] = dataclasses.field(default_factory=dict)

    @property
    def contributions(self) -> dict[str, tf.Tensor]:
        """Weight times value of the trained terms, by name."""
        return {name: weight * self.values[name] for name, weight in self.weights.items()}

    def as_fields(self) -> dict[str, Any]:
        """Returns the attributes by name, as TensorFlow takes them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def observable(self) -> dict[str, tf.Tensor]:
        """Returns what a controller may read: means over the batch, by the names of the logs."""
        found = {name: batch_mean(value) for name, value in self.values.items()}
        for critic, report in self.critics.items():
            found |= {f"{critic}/{name}": value for name, value in report.values.items()}
        return found


class Objective:
    """Loss terms, their weights, and how the samples of one example are joined.

    Args:
        terms: the loss terms, exactly one of them a `Likelihood`.
        num_samples: samples of z for each example, K.
        importance_weighted: train the importance-weighted bound (Burda et al. 2016,
            arXiv:1509.00519, equation 8) instead of the mean over samples.
        gradient_estimator: makes the surrogate; by default the loss itself is differentiated.

    Raises:
        ValueError: no likelihood or several, two terms of one name, a name that is reserved, or a
            term that cannot be part of an importance-weighted bound or of a gradient estimate.
        TypeError: an element of `terms` is not a loss term, or the estimator is not one.
    """

    def __init__(
        self,
        terms: Iterable[LossTerm],
        *,
        num_samples: int = 1,
        importance_weighted: bool = False,
        gradient_estimator: GradientEstimator | None = None,
    ) -> None:
        if isinstance(terms, LossTerm):
            raise TypeError(f"terms must be a list of loss terms, got {terms!r} alone.")
        self.terms = tuple(terms)
        self.num_samples = checked_integer("num_samples", num_samples, 1)
        self.importance_weighted = importance_weighted
        self.gradient_estimator = gradient_estimator
        self._check()
        self.likelihood = next(term for term in self.terms if isinstance(term, Likelihood))
        if importance_weighted:
            self._check_importance_weighting()
        if gradient_estimator is not None:
            self._check_gradient_estimator()

    def _check(self) -> None:
        for term in self.terms:
            if not isinstance(term, LossTerm):
                raise TypeError(
                    f"{term!r} is not a LossTerm. Subclass LossTerm, or make one of it."
                )
        likelihoods = [term.label for term in self.terms if isinstance(term, Likelihood)]
        if "kl" in likelihoods:
            raise ValueError("A likelihood may not be called 'kl': the logs use that name.")
        if len(likelihoods) != 1:
            found = ", ".join(likelihoods) or "none"
            terms = ", ".join(term.label for term in self.terms) or "(none)"
            raise ValueError(
                "Exactly one loss term must be a likelihood, for example Bernoulli() or "
                f"Gaussian(); got {found} among the terms {terms}."
            )
        factors = next(t for t in self.terms if isinstance(t, Likelihood)).factors
        check_labels([*self.terms, *(factors if len(factors) > 1 else ())])
        for term in self.terms:
            if term.weight is not None:
                _check_levels(term)

    def in_steps(self, steps_per_epoch: int, ahead: float = 0.0) -> Self:
        """Returns a copy with all lengths in epochs converted to steps; see `Settings.in_steps`."""
        return type(self)(
            [term.in_steps(steps_per_epoch, ahead) for term in self.terms],
            num_samples=self.num_samples,
            importance_weighted=self.importance_weighted,
            gradient_estimator=self.gradient_estimator,
        )

    @property
    def gradient_bias(self) -> str | None:
        """A remark if the gradients of the estimator are biased, otherwise None."""
        estimator = self.gradient_estimator
        if estimator is None or estimator.is_unbiased(self.num_samples, self.importance_weighted):
            return None
        joined = "importance-weighted" if self.importance_weighted else "averaged"
        return (
            f"the gradients of {estimator!r} are biased for the bound of {self.num_samples} "
            f"{joined} samples; DReG() is unbiased for every number of importance-weighted ones"
        )

    def schedules(self) -> dict[str, list[Schedule]]:
        """Returns the schedules of each term by its name: in its settings, and its controller's."""
        return {
            term.label: [
                value
                for settings in (term, *controllers_of([term]).values())
                for field in dataclasses.fields(settings)
                if isinstance(value := getattr(settings, field.name), Schedule)
            ]
            for term in self.terms
        }

    def weights(
        self, step: int | tf.Tensor, states: ControllerStates | None = None
    ) -> dict[str, tf.Tensor]:
        """Returns the weights of the trained terms at a step, by name.

        Args:
            step: of the model.
            states: of the controllers, by the name of their term; by default their first ones.
        """
        return weights_of(self.terms, step, states or {})

    def controllers(self) -> dict[str, Controller]:
        """Returns the weights that have a state, by the name of their term."""
        return controllers_of(self.terms)

    def settled_at(self) -> int | None:
        """Returns the step from which no weight changes, or None if that is unknown."""
        if any(is_varying(t.weight) and not isinstance(t.weight, Schedule) for t in self.terms):
            return None
        last = 0
        for schedule in itertools.chain.from_iterable(self.schedules().values()):
            settled = schedule.settled_at()
            if settled is None:
                return None
            last = max(last, settled)
        return last

    def effective_beta(
        self,
        step: int | tf.Tensor,
        states: ControllerStates | None = None,
        latents: Iterable[str] = (),
    ) -> float | None:
        """Returns the weight of the KL divergence over that of the likelihood, at a step.

        It is that of the term `kl`, which is about all latents, or of the terms `kl_NAME` of each
        of them, if they have the same weight. None if their weights differ, if a latent has no such
        term, or if the likelihood has no weight.

        Args:
            step, states: as for `weights`.
            latents: names of all latents.
        """
        weights = self.weights(step, states)
        likelihood = float(weights.get(self.likelihood.label, 0.0))
        names = ["kl"] if "kl" in weights else [f"kl_{latent}" for latent in latents]
        found = {float(weights[name]) if name in weights else None for name in names}
        weight = found.pop() if len(found) == 1 else None
        return None if weight is None or not likelihood else weight / likelihood

    def __call__(
        self,
        tensors: Tensors,
        regularization: Iterable[tf.Tensor] = (),
        states: ControllerStates | None = None,
        path: SampledPath | None = None,
    ) -> LossReport:
        """Returns the report of a batch.

        Args:
            tensors: the forward pass; after the encoder, `num_samples` rows for each example.
            regularization: scalars that layers added, counted as a term of weight 1.
            states: of the controllers, by the name of their term; by default their first ones.
            path: of the samples in the forward pass, from which the gradient estimator makes the
                surrogate; without it the surrogate is the loss.
        """
        factors = {}
        if len(self.likelihood.factors) > 1:
            factors = {each.label: each(tensors) for each in self.likelihood.factors}
        rows = {
            term.label: sum_in_order(list(factors.values()))
            if factors and term is self.likelihood
            else _value(term, tensors)
            for term in self.terms
        }
        self._check_rows(rows)
        rows |= factors
        weights = self.weights(tensors["step"], states)
        elbo, logged = None, {}
        if divergences := _divergences(tensors):
            divergence = sum_in_order(list(divergences.values()))
            if RELAXED not in tensors:
                elbo = self._mean_over_samples(-rows[self.likelihood.label] - divergence)
                logged = self._estimated_from_samples({"": divergence, **divergences}, tensors)
            # Unless a term has this name, it is the divergence that is part of the ELBO.
            rows.setdefault("kl", divergence)
            if len(divergences) > 1:
                self._check_name_of_all(list(divergences))
                for latent, value in divergences.items():
                    rows.setdefault(f"kl_{latent}", value)
        values = {name: self._mean_over_samples(value) for name, value in rows.items()}
        bound = None
        if self.importance_weighted:
            bound = self._bound(tensors, rows[self.likelihood.label])
            inside = self._inside_importance_weight()
            loss = -join_samples(self._log_weight(rows, weights, inside), True)
            outside = [name for name in weights if name not in inside]
        else:
            loss = tf.zeros_like(values[self.likelihood.label])
            outside = list(weights)
        for name in outside:
            loss = plus(loss, weights[name], values[name])
        if regularization := list(regularization):
            losses = [tf.reduce_sum(tf.cast(loss, tf.float32)) for loss in regularization]
            total = tf.zeros([])
            for value in losses:
                total = plus(total, 1.0, value)
            values["regularization"] = total
            weights["regularization"] = tf.constant(1.0)
            loss += values["regularization"]
        report = LossReport(
            loss, loss, values, weights, elbo, importance_weighted_bound=bound, logged=logged
        )
        if self.gradient_estimator is None or path is None:
            return report
        surrogate = self._surrogate(self.gradient_estimator, tensors, path, rows, report)
        return dataclasses.replace(report, surrogate=surrogate)

    def _estimated_from_samples(
        self, divergences: Mapping[str, tf.Tensor], tensors: Tensors
    ) -> dict[str, tf.Tensor]:
        """Returns the divergences in closed form that terms of their names estimate, `[batch]`.

        Args:
            divergences: those of the ELBO by latent, and their sum under "".
            tensors: of the forward pass.
        """
        if not any("kl" in level for level in levels(tensors).values()):
            return {}
        found = {f"kl_{latent}" if latent else "kl": value for latent, value in divergences.items()}
        estimates = [term.label for term in self.terms if _adds_log_posterior(term)]
        return {
            name: self._mean_over_samples(value)
            for name, value in found.items()
            if name in estimates
        }

    def _bound(self, tensors: Tensors, reconstruction: tf.Tensor) -> tf.Tensor | None:
        if (log_ratio := log_prior_ratio("bound", tensors)) is None:
            return None
        return join_samples(self._by_sample(log_ratio - reconstruction), True)

    def _surrogate(
        self,
        estimator: GradientEstimator,
        tensors: Tensors,
        path: SampledPath,
        rows: Mapping[str, tf.Tensor],
        report: LossReport,
    ) -> tf.Tensor:
        """Returns the surrogate of the estimated terms, plus all others as they are reported.

        Raises:
            ValueError: there are several latents.
        """
        if len(latents := levels(tensors)) > 1:
            raise ValueError(
                f"{estimator!r} differentiates along the path of one latent; the forward pass has "
                f"{', '.join(latents)}. Train without a gradient_estimator."
            )
        weights, inside = report.weights, [term.label for term in self._estimated()]
        divergences = [term for term in self._estimated() if term is not self.likelihood]
        with path.densities_in(tensors), graph_scope("gradient_estimator"):
            path_rows = {term.label: term(tensors) for term in divergences}
        path_log_weight = self._log_weight({**rows, **path_rows}, weights, inside)
        samples = WeightedSamples(
            log_weight=self._log_weight(rows, weights, inside),
            path_log_weight=path_log_weight,
            posterior_weight=tf.stop_gradient(sum(weights[name] for name in path_rows)),
            importance_weighted=self.importance_weighted,
            path_derivative=functools.cache(
                lambda: self._by_sample(path.derivative(path_log_weight))
            ),
        )
        with graph_scope("gradient_estimator"):
            surrogate = estimator.surrogate(samples)
        if surrogate.shape.rank != 1:
            raise ValueError(
                f"{estimator!r}.surrogate returned shape {surrogate.shape}; it must return one "
                "value for each example, [batch]: samples have the axis 1."
            )
        for name, weight in weights.items():
            if name not in inside:
                surrogate = plus(surrogate, weight, report.values[name])
        return surrogate

    def _check_name_of_all(self, latents: list[str]) -> None:
        """Raises ValueError for a term that is about one of several latents and is called `kl`."""
        for term in self.terms:
            if term.label == "kl" and term.renamed().keys() & {*OF_LEVELS}:
                raise ValueError(
                    f"Loss term 'kl' ({term!r}) is about one latent of {', '.join(latents)}, and "
                    "'kl' in the logs is the divergence of all. Give it another name, or use "
                    f"{type(term).__name__}(latent='NAME'), which is called kl_NAME."
                )

    def _check_rows(self, rows: Mapping[str, tf.Tensor]) -> None:
        """Raises ValueError for a value with another number of rows, which would broadcast."""
        wanted = rows[self.likelihood.label].shape
        for name, values in rows.items():
            # If the number of rows is known here and unknown for the batch, it is another one.
            if values.shape.rank == 1 and values.shape[0] not in (wanted[0], None):
                raise ValueError(
                    f"Loss term {name!r} returned {values.shape[0]} values for {wanted[0]} rows; "
                    "it must return one for each row."
                )

    def _mean_over_samples(self, values: tf.Tensor) -> tf.Tensor:
        if values.shape.rank == 0 or self.num_samples == 1:
            return values
        return tf.reduce_mean(tf.reshape(values, [-1, self.num_samples]), axis=1)

    def _log_weight(
        self, rows: Mapping[str, tf.Tensor], weights: Mapping[str, tf.Tensor], inside: Iterable[str]
    ) -> tf.Tensor:
        # log w = log p(x|z) + log p(z) - log q(z|x), [batch, K].
        log_weight = tf.zeros_like(rows[self.likelihood.label])
        for name in inside:
            log_weight = plus(log_weight, -weights[name], rows[name])
        return self._by_sample(log_weight)

    def _by_sample(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.reshape(rows, [-1, self.num_samples])

    def _inside_importance_weight(self) -> list[str]:
        return [
            term.label
            for term in self.terms
            if term.weight is not None
            and (term is self.likelihood or {"log_posterior", "log_prior"} <= _meanings(term))
        ]

    def _estimated(self) -> list[LossTerm]:
        """Returns the terms that an estimator differentiates: likelihood and divergences."""
        inside = self._inside_importance_weight()
        return [
            term
            for term in self.terms
            if term.label in inside and (term is self.likelihood or _adds_log_posterior(term))
        ]

    def _check_gradient_estimator(self) -> None:
        estimator = self.gradient_estimator
        if not isinstance(estimator, GradientEstimator):
            raise TypeError(
                f"gradient_estimator must be a GradientEstimator, for example DReG(), got "
                f"{estimator!r}."
            )
        if estimator.needs_importance_weighting and not self.importance_weighted:
            raise ValueError(
                f"{estimator!r} estimates the gradient of an importance-weighted bound: add "
                "importance_weighted=True. For samples that are joined by their mean there is "
                "StickingTheLanding()."
            )
        estimated = [term.label for term in self._estimated()]
        if self.importance_weighted:
            for name in self._inside_importance_weight():
                if name not in estimated:
                    raise ValueError(
                        f"{estimator!r} cannot differentiate loss term {name!r}, which is inside "
                        "of the importance weight. It needs the value to be `log_posterior`, of z "
                        "and no other latent, plus something that does not depend on it, as in "
                        "MonteCarloKL(). If that is so, write adds_log_posterior = True in the "
                        "class of the term."
                    )
        if not set(estimated) - {self.likelihood.label}:
            raise ValueError(
                f"{estimator!r} changes the gradient of log q(z|x), which no trained term reads as "
                "`log_posterior`. Use MonteCarloKL() among the terms "
                f"{', '.join(term.label for term in self.terms)}; a closed form has no sample "
                "whose gradient could be estimated."
            )

    def _check_importance_weighting(self) -> None:
        trained = [term for term in self.terms if term.weight is not None]
        for term in trained:
            if "kl" in _meanings(term):
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
        if self.likelihood.weight is None:
            raise ValueError("An importance-weighted bound needs the likelihood's weight.")
        if len(self._inside_importance_weight()) < 2:
            raise ValueError(
                "An importance-weighted bound needs log q(z|x) - log p(z): add MonteCarloKL() to "
                f"the terms {', '.join(term.label for term in self.terms)}."
            )


def _value(term: LossTerm, tensors: Tensors) -> tf.Tensor:
    """Returns the value of a term; all replicas compute a statistic of the global batch."""
    if not term.batch_statistic:
        return term(tensors)
    whole = tensors.of_whole_batch()
    with whole_batch():
        return term(whole)


def plus(total: tf.Tensor, weight: tf.Tensor | float, value: tf.Tensor) -> tf.Tensor:
    """Returns `total + weight * value`, rounded like that also in a chain of several.

    Without XLA, TensorFlow turns a chain of additions into one AddN, whose order depends on which
    of its inputs is freed first. It leaves subtractions as they are.
    """
    return total - (-weight) * value


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


def weights_of(
    terms: Iterable[LossTerm], step: int | tf.Tensor, states: ControllerStates
) -> dict[str, tf.Tensor]:
    """Returns the weights of trained terms at a step, float32 scalars by name.

    Args:
        terms: the loss terms.
        step: of the model.
        states: of the controllers, by the name of their term; the first one of those left out.
    """
    weights = {}
    for term in terms:
        if isinstance(term.weight, Controller):
            state = states.get(term.label)
            weights[term.label] = weight_of(
                term.weight, first_state(term.weight) if state is None else state
            )
        elif term.weight is not None:
            weights[term.label] = value_at(term.weight, step)
    return weights


def controllers_of(terms: Iterable[LossTerm]) -> dict[str, Controller]:
    """Returns the weights that have a state, by the name of their term."""
    return {term.label: term.weight for term in terms if isinstance(term.weight, Controller)}


def _meanings(term: LossTerm) -> set[str]:
    """Returns the names that a term reads, before and after `rename`."""
    return term.reads() | set(term.renamed())


def _adds_log_posterior(term: LossTerm) -> bool:
    """Returns whether the value of a term is `log_posterior`, of z, plus something."""
    reads_it = "log_posterior" in term.reads()
    return term.adds_log_posterior and reads_it and not term.batch_statistic


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


def _divergences(tensors: Tensors) -> dict[str, tf.Tensor]:
    """Returns the KL divergences in the ELBO by latent, `[rows]`, in closed form if it is known."""
    found = {}
    for latent, level in levels(tensors).items():
        if "kl" in level:
            found[latent] = sum_over_event(tensors.tap("ELBO", level["kl"]))
        else:
            log_posterior = _density("ELBO", level["log_posterior"], tensors)
            found[latent] = log_posterior - _density("ELBO", level["log_prior"], tensors)
    return found


def log_prior_ratio(reader: str, tensors: Tensors) -> tf.Tensor | None:
    """Returns log p(z) - log q(z|x) of all latents, `[rows]`, nats, or None if one lacks a density.

    Args:
        reader: what to call the reader in a message.
        tensors: of a forward pass.
    """
    found = levels(tensors).values()
    if not found or any(not {"log_posterior", "log_prior"} <= level.keys() for level in found):
        return None
    ratios = []
    for level in found:
        log_prior = _density(reader, level["log_prior"], tensors)
        ratios.append(log_prior - _density(reader, level["log_posterior"], tensors))
    return sum_in_order(ratios)


def _density(reader: str, name: str, tensors: Tensors) -> tf.Tensor:
    """Returns a log-density; raises ValueError if it is not `[rows]` and would broadcast."""
    density = tensors.tap(reader, name)
    if density.shape.rank not in (1, None):
        raise ValueError(
            f"{name!r} has the shape {density.shape}; a density has one value for each row, [rows] "
            "(sum_over_event adds up the other axes)."
        )
    return density

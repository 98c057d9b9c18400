"""The objective: weighs loss terms, joins the samples of an example, and reports every part."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Mapping
from typing import Self

import tensorflow as tf

from vae_research.arguments import checked_integer
from vae_research.controllers import Controller, is_varying
from vae_research.distribution import whole_batch
from vae_research.gradient_estimators import (
    GradientEstimator,
    SampledPath,
    WeightedSamples,
    join_samples,
)
from vae_research.levels import levels
from vae_research.losses.term import LossTerm
from vae_research.objective.checks import (
    check_gradient_estimator,
    check_importance_weighting,
    check_name_of_all,
    check_rows,
    check_terms,
)
from vae_research.objective.elbo import divergences, log_prior_ratio
from vae_research.objective.report import LossReport
from vae_research.objective.roles import (
    adds_log_posterior,
    estimated,
    inside_importance_weight,
)
from vae_research.objective.weights import ControllerStates, controllers_of, plus, weights_of
from vae_research.schedules import Schedule
from vae_research.tensors import RELAXED, Tensors, graph_scope, sum_in_order


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
        self.likelihood = check_terms(self.terms)
        if importance_weighted:
            check_importance_weighting(self.terms)
        if gradient_estimator is not None:
            check_gradient_estimator(gradient_estimator, self.terms, importance_weighted)

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
            f"{joined} samples; DReG() is unbiased for any number of importance-weighted samples"
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
        check_rows(rows, self.likelihood.label)
        rows |= factors
        weights = self.weights(tensors["step"], states)
        elbo, logged = None, {}
        if by_latent := divergences(tensors):
            divergence = sum_in_order(list(by_latent.values()))
            if RELAXED not in tensors:
                elbo = self._mean_over_samples(-rows[self.likelihood.label] - divergence)
                logged = self._estimated_from_samples({"": divergence, **by_latent}, tensors)
            # Unless a term has this name, it is the divergence that is part of the ELBO.
            rows.setdefault("kl", divergence)
            if len(by_latent) > 1:
                check_name_of_all(self.terms, by_latent)
                for latent, value in by_latent.items():
                    rows.setdefault(f"kl_{latent}", value)
        values = {name: self._mean_over_samples(value) for name, value in rows.items()}
        bound = None
        if self.importance_weighted:
            bound = self._bound(tensors, rows[self.likelihood.label])
            inside = inside_importance_weight(self.terms)
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
        self, by_latent: Mapping[str, tf.Tensor], tensors: Tensors
    ) -> dict[str, tf.Tensor]:
        """Returns the divergences in closed form that terms of their names estimate, `[batch]`.

        Args:
            by_latent: divergences of the ELBO by latent, and their sum under "".
            tensors: of the forward pass.
        """
        if not any("kl" in level for level in levels(tensors).values()):
            return {}
        found = {f"kl_{latent}" if latent else "kl": value for latent, value in by_latent.items()}
        estimates = [term.label for term in self.terms if adds_log_posterior(term)]
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
        differentiated = estimated(self.terms)
        weights, inside = report.weights, [term.label for term in differentiated]
        with path.densities_in(tensors), graph_scope("gradient_estimator"):
            path_rows = {
                term.label: term(tensors) for term in differentiated if term is not self.likelihood
            }
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


def _value(term: LossTerm, tensors: Tensors) -> tf.Tensor:
    """Returns the value of a term; all replicas compute a statistic of the global batch."""
    if not term.batch_statistic:
        return term(tensors)
    whole = tensors.of_whole_batch()
    with whole_batch():
        return term(whole)

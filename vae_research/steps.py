"""The steps of training and evaluation: what happens to a batch, from its loss to its figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from vae_research.arguments import checked_seed
from vae_research.codes import CodeLayout
from vae_research.controllers import Controller, first_state, next_state, observed
from vae_research.critics import Critic, checked_critics
from vae_research.distribution import share, sum_of_gradients, take_sums
from vae_research.epochs import EpochClock
from vae_research.keras_inputs import as_weights, unpack, weighted_mean
from vae_research.losses.term import Likelihood
from vae_research.objective import LossReport, Objective
from vae_research.randomness import evaluation_key, fold_in, training_key
from vae_research.running_means import RunningMeans
from vae_research.tensors import Tensors, graph_scope
from vae_research.trainer import Trainer


class TrainingSteps(Trainer):
    """`train_step` and `test_step` of a model that reports its losses.

    A subclass has `report` and `bottleneck`. The order within a training step: the updates of
    critics alone; the forward pass with all losses; all gradients; all updates; then controllers,
    from the report of this step.

    Args:
        objective: the loss terms of the model, with lengths in epochs.
        critics: networks that are trained on their own terms in the same step.
        seed: of all noise, 0 to 2**32 - 1.
        name: of the model.
    """

    def __init__(
        self, objective: Objective, critics: Sequence[Critic], *, seed: int, name: str
    ) -> None:
        critics = checked_critics(critics)
        first_states = {
            term: first_state(found) for term, found in _controllers(objective, critics).items()
        }
        further = [name for critic in critics for name in critic.figure_names()]
        if objective.importance_weighted:
            further.append("importance_weighted_bound")
        means = RunningMeans(objective.terms, further)
        super().__init__(means, critics, first_states, name=name, dtype="float32")
        self.seed = checked_seed(seed)
        self.objective = self._declared_objective = objective

    def report(
        self,
        data: tf.Tensor | Mapping[str, tf.Tensor],
        *,
        training: bool = False,
        seed: tf.Tensor | None = None,
    ) -> tuple[Tensors, LossReport]:
        """Returns a forward pass, and the loss of each example with all its parts."""
        raise TypeError(f"{type(self).__name__} must define report(self, data, ...).")

    @property
    def likelihood(self) -> Likelihood:
        """The term of the likelihood."""
        return self.objective.likelihood

    def set_steps_per_epoch(self, steps_per_epoch: int) -> None:
        """Sets how many batches an epoch has, for schedules with lengths in epochs.

        Epochs that were done count as such if they had another length, so that a schedule neither
        starts again nor goes back.
        """
        if steps_per_epoch != self.steps_per_epoch:
            self.epoch_clock = self.epoch_clock.with_length(steps_per_epoch, self.step)

    @property
    def epoch_clock(self) -> EpochClock:
        """How many epochs this model has been trained, whatever their lengths were."""
        return self._own_state.clock

    @epoch_clock.setter
    def epoch_clock(self, clock: EpochClock) -> None:
        self._own_state.clock = clock
        self._use_clock()

    def _use_clock(self) -> None:
        clock = self._own_state.clock
        if clock.steps_per_epoch is None:
            return
        lengths = clock.steps_per_epoch, clock.steps_ahead
        before = [self.objective.terms, *(critic.terms for critic in self.critics)]
        self.objective = self._declared_objective.in_steps(*lengths)
        for critic in self.critics:
            critic.set_steps_per_epoch(*lengths)
        if [self.objective.terms, *(critic.terms for critic in self.critics)] != before:
            self.remake_functions()  # the compiled steps have the old lengths in them

    def term_weights(self) -> dict[str, tf.Tensor]:
        """Returns the present weights of the trained terms, float32 scalars by name.

        Those of a critic have the name that is in the logs, `CRITIC/TERM`.
        """
        now = self.step_counter, self._own_state.controllers
        weights = self.objective.weights(*now)
        for critic in self.critics:
            weights |= {f"{critic.name}/{name}": w for name, w in critic.weights(*now).items()}
        return weights

    def effective_beta(self, step: int | tf.Tensor | None = None) -> float | None:
        """Returns the weight of the KL divergence over that of the likelihood, or None.

        Args:
            step: when; by default now. Of another step it is with controllers as they begin.
        """
        latents = CodeLayout.of(self.bottleneck).shapes
        if step is not None:
            return self.objective.effective_beta(step, latents=latents)
        return self.objective.effective_beta(
            self.step_counter, self._own_state.controllers, latents
        )

    def step_key(self) -> tf.Tensor:
        """Returns the stateless key, `[2]`, of the noise of the next training step."""
        return training_key(self.seed, self.step_counter)

    def evaluation_key(self, position: tf.Tensor | int) -> tf.Tensor:
        """Returns the stateless key, `[2]`, of the noise at a position of any evaluation."""
        return evaluation_key(self.seed, position)

    def scaled_loss(self, report: LossReport, sample_weight: tf.Tensor | None = None) -> tf.Tensor:
        """Returns the scalar that a training step differentiates.

        It is the weighted mean of the surrogate, times the scale of a `LossScaleOptimizer`.
        """
        return self.optimizer.scale_loss(weighted_mean(report.surrogate, report, sample_weight))

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One training step on a batch; returns the running means of this epoch.

        A step of your own overrides this method. It takes its noise from `step_key`, its loss from
        `report`, and ends with `finish_step`.
        """
        data, sample_weight = unpack(data)
        for critics, key in self.updates_of_critics():
            self.train_critics(critics, data, key)
        with tf.GradientTape(persistent=bool(self.critics)) as tape:
            report = self._training_report(data)
            loss = self.scaled_loss(report, sample_weight)
            losses = [loss, *self.critic_losses(report, self.critics)]
        self.update([self, *self.critics], losses, tape)
        with graph_scope("figures"):
            return self.finish_step(report, sample_weight)

    def _training_report(self, data: dict[str, tf.Tensor]) -> LossReport:
        """Returns the report of a step, which XLA compiles for each replica, with its gradient."""

        def report(data: dict[str, tf.Tensor], key: tf.Tensor) -> LossReport:
            return self.report(data, training=True, seed=key)[1]

        alone = share() is not None and self.needs_other_replicas is False
        if not (alone and self.jit_compile) or tf.executing_eagerly():
            return report(data, self.step_key())
        compiled = tf.function(
            lambda *given: report(*given).as_fields(), jit_compile=True, autograph=False
        )
        return LossReport(**compiled(data, self.step_key()))

    def updates_of_critics(self) -> list[tuple[list[Critic], tf.Tensor]]:
        """Returns the updates that come before that of the whole step: critics, and their key."""
        updates = range(1, max((critic.steps for critic in self.critics), default=1))
        return [
            (
                [critic for critic in self.critics if critic.steps > update],
                fold_in(self.step_key(), "critics alone", update),
            )
            for update in updates
        ]

    def train_critics(
        self, critics: Sequence[Critic], data: Mapping[str, tf.Tensor], key: tf.Tensor
    ) -> None:
        """Makes one update of critics alone.

        Args:
            critics: which of them.
            data: a batch, as for `forward`.
            key: of the noise, `[2]`.
        """
        with tf.GradientTape(persistent=True) as tape:
            _, report = self.report(data, training=True, seed=key)
            losses = self.critic_losses(report, critics)
        self.update(critics, losses, tape)

    def critic_losses(self, report: LossReport, critics: Sequence[Critic]) -> list[tf.Tensor]:
        """Returns the scalars that a training step differentiates for critics, in their order."""
        # Each replica has the loss of the global batch, of which its own part is one of N.
        replicas = 1 if (own := share()) is None else own.replicas
        losses = [(critic, report.critics[critic.name].loss) for critic in critics]
        return [
            critic.optimizer.scale_loss(loss if replicas == 1 else loss / replicas)
            for critic, loss in losses
        ]

    def update(
        self, trained: Sequence[Any], losses: Sequence[tf.Tensor], tape: tf.GradientTape
    ) -> None:
        """Takes all gradients, each of a loss by its own variables, and then moves all weights.

        Args:
            trained: the model itself and critics, in any order.
            losses: of each of them, as `scaled_loss` and `critic_losses` return them.
            tape: that has recorded the losses; persistent if there are several.
        """
        self._updated |= {each.name for each in trained if each is not self}
        variables = [each.trainable_variables for each in trained]
        with graph_scope("gradients"):
            gradients = [tape.gradient(*pair) for pair in zip(losses, variables, strict=True)]
        gradients = [sum_of_gradients(each) for each in gradients]
        with graph_scope("optimizer"):
            for each, *pairs in zip(trained, gradients, variables, strict=True):
                take_sums(each.optimizer)
                each.optimizer.apply(*pairs)  # unlike apply_gradients, also without any: frozen

    def finish_step(
        self, report: LossReport, sample_weight: tf.Tensor | None = None, **figures: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Ends a training step: records its figures and counts it.

        Args:
            report: of the step.
            sample_weight: `[batch]` or None.
            figures: further figures by name, `[batch]` or scalars; they reach the logs,
                metrics.jsonl and TensorBoard as means over the examples of an epoch.

        Returns:
            The running means of this epoch.

        Raises:
            ValueError: a critic was not updated, or a figure has the name of another one.
        """
        self._is_finished = True
        left_out = [critic.name for critic in self.critics if critic.name not in self._updated]
        if left_out:
            raise ValueError(
                f"train_step has not updated {', '.join(map(repr, left_out))}: "
                "self.update([self, *self.critics], losses, tape) trains the model and its critics."
            )
        with graph_scope("controllers"):
            self._update_controllers(report)
        self.step_counter.assign_add(1)
        return self._record(report, sample_weight, figures)

    def _update_controllers(self, report: LossReport) -> None:
        """Moves all controllers by what this step reported, for the next step."""
        controllers = _controllers(self.objective, self.critics)
        if not controllers:
            return
        states, values = self._own_state.controllers, report.observable()
        step = tf.cast(tf.convert_to_tensor(self.step_counter), tf.float32)
        moved = {
            term: next_state(found, states[term], observed(found, term, values), step)
            for term, found in controllers.items()
        }
        for term, state in moved.items():
            for name, value in state.items():
                states[term][name].assign(value)

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Returns the figures of a batch without an update. All evaluations have the same noise."""
        data, sample_weight = unpack(data)
        # Keras resets the means when an evaluation begins: their count is the position in it.
        _, report = self.report(data, seed=self.evaluation_key(self.running_means.count))
        return self._record(report, sample_weight, {})

    def _record(
        self,
        report: LossReport,
        sample_weight: tf.Tensor | None,
        more: Mapping[str, tf.Tensor],
    ) -> dict[str, tf.Tensor]:
        # `loss` has the sample weights, as in training; the other figures are unweighted.
        figures, weights = {"loss": report.loss}, {}
        if sample_weight is not None:
            weights["loss"] = as_weights(sample_weight)
        if report.elbo is not None:
            figures["elbo"] = report.elbo
        if report.importance_weighted_bound is not None:
            figures["importance_weighted_bound"] = report.importance_weighted_bound
        figures |= report.values | report.logged
        for name, value in report.contributions.items():
            # Others are the product of two figures: a constant weight and the logged value.
            if f"contribution/{name}" in self.running_means or name in report.logged:
                figures[f"contribution/{name}"] = value
        for critic, of_critic in report.critics.items():
            values = {"loss": of_critic.loss, **of_critic.values}
            figures |= {f"{critic}/{name}": value for name, value in values.items()}
        for name, value in more.items():
            if name in figures:
                raise ValueError(
                    f"The step reports {name!r} already; give the figure another name."
                )
            figures[name] = tf.convert_to_tensor(value)
        self.running_means.update(figures, tf.shape(report.loss)[0], weights)
        return self.get_metrics_result()


def _controllers(objective: Objective, critics: Iterable[Critic]) -> dict[str, Controller]:
    """Returns the weights that have a state, by the names of their terms in the logs."""
    found = objective.controllers()
    for critic in critics:
        found |= critic.controllers()
    return found

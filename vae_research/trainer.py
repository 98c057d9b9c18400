"""Connects Keras' `fit` with the steps of a model.

Start at `Trainer.make_train_function`: what Keras calls is `guard(loop(step))`. `step` is the
model's `train_step`; `loop` (`execution.StepLoop`) runs many of them in one compiled call; `guard`
may undo a call (a run gives its `FiniteGate`). Without a `DeviceDataset`, Keras' own function runs
`train_step`, and there is neither loop nor guard.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vae_research.averaging import Averaging
from vae_research.captured_tensors import scope_explained
from vae_research.critics import Critic, check_optimizers, check_variables
from vae_research.data.streams import Batches, DeviceDataset
from vae_research.distribution import (
    present_strategy,
    replicas_here,
    replicas_of,
    rows_of,
    scope_of,
)
from vae_research.execution import StepLoop
from vae_research.keras_inputs import (
    UNFINISHED,
    DataEpochs,
    ScheduleLengths,
    one_by_one,
    preceded_by,
    refuse_class_weight,
    refuse_restored_weights,
    refuse_split,
    refuse_unscaled_float16,
    targets_for_weights,
    warn_of_repeated_data,
)
from vae_research.losses.term import Likelihood
from vae_research.replica_checks import refuse_other_strategy, refuse_scope, refuse_undistributed
from vae_research.running_means import RunningMeans
from vae_research.serialization import layers_of
from vae_research.state import RUNNING_SUMS, OwnState
from vae_research.suitability import looked_at, notes_on_likelihood, refuse_unsuitable_data

StepFunction = Callable[[Iterator[Any]], dict[str, tf.Tensor]]


class Trainer(keras.Model):
    """Keras' `compile`, `fit` and `evaluate` for a model whose loss is its own terms.

    A subclass has `train_step` and `test_step`. `fit` and `evaluate` also take a `DeviceDataset`,
    of which `steps_per_execution` steps run in one compiled call, and they know the epochs of what
    `Split.batches` returns.

    Args:
        running_means: of the figures that a step records.
        critics: trained in the same step, with optimizers of their own.
        controllers: first states of weights that have one, by the name of their term.
        kwargs: of `keras.Model`.

    Attributes:
        strategy: in whose scope the model was built; its replicas share each batch.
        needs_other_replicas: whether the loss of a replica needs what others have; None until
            `replica_checks.check_replicas` has found out.
        averaging: the weights, and the averages of them that the optimizer may keep.
        guard: wraps the function that runs the steps of a call; None runs it as it is.
    """

    train_function: StepFunction | None
    test_function: StepFunction | None

    def __init__(
        self,
        running_means: RunningMeans,
        critics: tuple[Critic, ...] = (),
        controllers: Mapping[str, Mapping[str, float]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.strategy = present_strategy()
        # Keras' own handling of it cannot build the model, and distributes data that are not ours.
        self._distribute_strategy = None
        self.running_means = running_means
        self.guard: Callable[[StepFunction], StepFunction] | None = None
        self.averaging = Averaging(self)
        # Of a step that is being traced: whether it has ended, and which critics it has updated.
        self._is_finished, self._updated = False, set[str]()
        self._own_state = OwnState(critics, controllers)
        # TensorFlow saves a graph only if the model tracks the variables in it. Keras does not see
        # a variable of TensorFlow, so that it is none of the weights.
        self._step_in_graphs = self._own_state.step.value
        self.needs_other_replicas: bool | None = None
        self._data_suit = False  # whether data of a fit were looked at, other than arrays
        self._device_datasets: dict[str, DeviceDataset | None] = {"train": None, "test": None}
        self._step_loops: dict[Any, StepLoop] = {}

    @property
    def critics(self) -> tuple[Critic, ...]:
        """The critics. Keras does not see them: the model's optimizer does not train them."""
        return self._own_state.critics

    @property
    def likelihood(self) -> Likelihood:
        """The term of the likelihood."""
        raise TypeError(f"{type(self).__name__} must have a likelihood.")

    @property
    def step_counter(self) -> Any:
        """The variable that counts the batches that this model has been trained on, int64."""
        return self._own_state.step

    @property
    def step(self) -> int:
        """Batches that this model has been trained on, also before it was compiled or loaded."""
        return int(self.step_counter.numpy())

    @property
    def steps_per_epoch(self) -> int | None:
        """Batches of an epoch, known from the first `fit` on."""
        return self._own_state.clock.steps_per_epoch

    @property
    def data_epoch(self) -> int:
        """The epoch of a `DeviceDataset` or of `Split.batches` that the next `fit` begins with.

        Counted from 0: this model has been trained on those before. It is saved with the model.
        """
        return self._own_state.data_epoch

    @data_epoch.setter
    def data_epoch(self, epoch: int) -> None:
        self._own_state.data_epoch = epoch

    def further_state(self) -> dict[str, list[Any]]:
        """Returns what a step may change beside weights and optimizer, by group."""
        return {**self._own_state.groups(), RUNNING_SUMS: self.running_sums()}

    @property
    def examples_seen(self) -> int:
        """Examples since the running means were last reset: since the epoch or evaluation began."""
        return int(self.running_means.count.numpy())

    def reset_metrics(self) -> None:
        """Resets all running means, also of terms that the last step did not have."""
        super().reset_metrics()
        self.running_means.reset()

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The running means that appear in the logs, and the metrics of layers."""
        ours = {id(mean) for mean in (*self.running_means.all, self._loss_tracker)}
        others = [metric for metric in super().metrics if id(metric) not in ours]
        return self.running_means.reported + others

    def running_sums(self) -> list[Any]:
        """Returns the variables of all running means, also of those that no log has had yet."""
        metrics = {id(metric): metric for metric in (*self.running_means.all, *self.metrics)}
        return [variable for metric in metrics.values() for variable in metric.variables]

    def set_running_sums(self, values: Sequence[Any]) -> None:
        """Gives the variables of `running_sums` the values that they had within an epoch."""
        self.running_means.restore(self.running_sums(), values)

    def compile(
        self,
        optimizer: Any = "adam",
        loss: Any = None,
        metrics: Any = None,
        loss_weights: Any = None,
        weighted_metrics: Any = None,
        jit_compile: bool = False,
        **kwargs: Any,
    ) -> None:
        """Keras' `compile`, without a loss: the loss is the model's own terms.

        Of several replicas, `jit_compile` compiles loss and gradients of each, unless these need
        what others have.

        `jit_compile` is False unless asked for: what "auto" means changes from host to host, and
        XLA makes convolutions slower on a CPU.

        Raises:
            ValueError: a loss, metric or loss weight is given, an optimizer is that of a critic as
                well, or was not made in the scope of the model's strategy, or networks compute in
                float16 and the optimizer does not scale the loss.
        """
        given = {
            "loss": loss,
            "metrics": metrics,
            "loss_weights": loss_weights,
            "weighted_metrics": weighted_metrics,
        }
        for name, value in given.items():
            if value is not None:
                raise ValueError(
                    f"compile({name}=...) is not for a VAE: its loss and figures are its terms. "
                    "Add a LossTerm to VAE(terms=[...]); with weight=None it is only logged."
                )
        if self.strategy is None:
            refuse_scope(None)
        elif isinstance(optimizer, keras.optimizers.Optimizer):
            refuse_other_strategy(self.strategy, {"optimizer": optimizer.variables})
        with scope_of(self.strategy):
            super().compile(optimizer=optimizer, jit_compile=jit_compile, **kwargs)
        self.averaging.forget()  # another optimizer starts from the weights that are in place
        check_optimizers({"model": self.optimizer, **{c.name: c.optimizer for c in self.critics}})
        self._step_loops = {}
        refuse_unscaled_float16(self.layers, self.optimizer, "compile(")
        for critic in self.critics:
            refuse_unscaled_float16(layers_of(critic.layer), critic.optimizer, "Critic(..., ")

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles as the saved model was, and creates the slots of the optimizer to be filled."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.build_optimizer()

    def build_optimizer(self) -> None:
        """Creates the slots of the optimizer, unless variables or optimizer are missing.

        Slots have to exist before values are loaded into them (Keras would only warn and start from
        zero), and before a step is traced, which may fail half-way.

        Raises:
            ValueError: a variable would be trained by two of them.
        """
        own = {critic.name: critic.trainable_variables for critic in self.critics}
        check_variables({"model": self.trainable_variables, **own} if own else {})
        optimizer = getattr(self, "optimizer", None)
        with scope_of(self.strategy):
            if self.built and optimizer is not None and not optimizer.built:
                optimizer.build(self.trainable_variables)
            for critic in self.critics:
                critic.build_optimizer()

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: str | int = "auto",
        callbacks: Any = None,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Keras' `fit`. Schedules with lengths in epochs learn here how long an epoch is.

        `x` and `validation_data` may also be a `DeviceDataset`: `steps_per_execution` steps then
        run as one compiled loop. Neither this nor `Split.batches` needs `steps_per_epoch`.

        Training on them continues: `fit` begins with the first epoch of the data that this model
        was not trained on (`data_epoch`), so that four fits of one epoch are one fit of four, bit
        for bit. An epoch that was interrupted is not repeated. An `initial_epoch` other than 0, or
        the `first_epoch` of the data, which comes first, begin with that epoch instead. Validation
        data are the same in every evaluation.

        If the optimizer averages weights (`use_ema=True`), validation uses the averages, and they
        are in place afterwards; the next `fit` continues from the weights themselves.

        Raises:
            ValueError: the data do not suit the likelihood, `class_weight` is given, or weights are
                averaged and a callback restores those of an earlier epoch.
        """
        refuse_class_weight(kwargs.pop("class_weight", None))
        if not self._data_suit or isinstance(x, (np.ndarray, tf.Tensor, Mapping)):
            refuse_unsuitable_data(self.likelihood, x, y)
            held_out = kwargs.get("validation_data")
            refuse_unsuitable_data(
                self.likelihood, *(held_out[:2] if isinstance(held_out, tuple) else [held_out])
            )
            self._data_suit = True
        refuse_undistributed(self, x)
        self.build_optimizer()
        self.averaging.remove_for_training()
        initial_epoch = kwargs.get("initial_epoch", 0)
        self._initial_epoch = None  # Keras keeps what BackupAndRestore found in an earlier fit
        warn_of_repeated_data(self, x, callbacks)
        ours: list[Any] = [ScheduleLengths(initial_epoch, one_by_one(callbacks))]
        if self.averaging.momentum is not None:
            refuse_restored_weights(callbacks)
        data_epochs = None
        if isinstance(x, DeviceDataset | Batches):
            data_epochs = DataEpochs(x, initial_epoch)
            ours.append(data_epochs)
        callbacks = preceded_by(ours, callbacks)
        first_epoch = None if data_epochs is None else data_epochs.epoch
        x = self._select_input("train", x, kwargs, "steps_per_epoch", first_epoch)
        if isinstance(x, tf.data.Dataset):
            kwargs.setdefault("shuffle", False)  # Keras would warn that it cannot shuffle these
        x, y = targets_for_weights(x, y, kwargs.get("sample_weight"))
        validation = kwargs.get("validation_data")
        validation = self._select_input("test", validation, kwargs, "validation_steps")
        kwargs["validation_data"] = validation
        if isinstance(validation, tuple) and len(validation) == 3:
            inputs, targets = targets_for_weights(*validation)
            kwargs["validation_data"] = (inputs, targets, validation[2])
        try:
            with scope_explained(), self.averaging.kept_apart():
                return super().fit(x, y, batch_size, epochs, verbose, callbacks, **kwargs)
        except BaseException:
            # A step that failed while it was traced cannot be called again; the next fit traces it
            # again and says what is wrong then.
            self.train_function = self.test_function = None
            self._step_loops = {}
            if data_epochs is not None:
                data_epochs.count()
            raise
        finally:
            self.averaging.put()

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        sample_weight: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Keras' `evaluate`; `x` may also be a `DeviceDataset`. Averaged weights are used.

        A warning says if the figures cannot be compared: of a density of values that are not
        continuous, or of a Bernoulli likelihood of grey values.

        Raises:
            ValueError: the data do not suit the likelihood.
        """
        if "_use_cached_eval_dataset" not in kwargs:  # Keras' word for the evaluations within fit
            seen = looked_at(x, y)
            refuse_unsuitable_data(self.likelihood, seen)
            for note in notes_on_likelihood(self.likelihood, seen):
                warnings.warn(note, UserWarning, stacklevel=2)
            refuse_undistributed(self, x)
            x = self._select_input("test", x, kwargs, "steps")
        x, y = targets_for_weights(x, y, sample_weight)
        with scope_explained(), self.averaging.averages():
            return super().evaluate(x, y, batch_size, verbose, sample_weight, **kwargs)

    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Keras' `train_on_batch`.

        Raises:
            ValueError: `class_weight` is given.
        """
        refuse_class_weight(class_weight)
        refuse_undistributed(self, x)
        self.averaging.remove_for_training()
        self._select_input("train", x)
        return super().train_on_batch(x, y, sample_weight, **kwargs)

    def test_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, **kwargs: Any) -> Any:
        """Keras' `test_on_batch`."""
        self._select_input("test", x)
        return super().test_on_batch(x, y, sample_weight, **kwargs)

    def _rows_here(self) -> Callable[[int], slice]:
        """Returns which rows of a batch the replicas of this process have, by its size."""
        replicas = replicas_of(self.strategy)
        if replicas == 1:
            return slice
        return functools.partial(rows_of, replicas_here(self.strategy), replicas)

    def _select_input(
        self,
        kind: str,
        x: Any,
        kwargs: dict[str, Any] | None = None,
        steps: str = "",
        first_epoch: tf.Variable | None = None,
    ) -> Any:
        """Returns what Keras is given for the data `x`, and notes which function will read it.

        Args:
            kind: "train" or "test".
            x: what the user gave.
            kwargs: of Keras' method; the number of steps is added if the data know it. None if the
                method takes one batch.
            steps: what that argument is called.
            first_epoch: the epoch that training data begin with. None is that of an evaluation,
                always the same.
        """
        refuse_split(x)
        device_dataset = x if isinstance(x, DeviceDataset) else None
        if device_dataset is not self._device_datasets[kind]:
            self._device_datasets = self._device_datasets | {kind: device_dataset}
            setattr(self, f"{kind}_function", None)
        if not isinstance(x, DeviceDataset | Batches):
            return x
        if kwargs is None:
            raise ValueError(
                f"{type(x).__name__}: these are data for fit() and evaluate(), not a single batch."
            )
        if kwargs.get(steps) is None:
            kwargs[steps] = x.steps
        first = (x.first_epoch or 0) if first_epoch is None else first_epoch
        return x.for_keras(first, self.steps_per_execution, kwargs[steps], self._rows_here())

    def make_train_function(self, force: bool = False) -> Any:
        """Makes what Keras calls for the next steps: `guard(loop(step))`, or its own function."""
        dataset = self._device_datasets["train"]
        if dataset is None:
            if self.train_function is None or force:
                # Keras' own does the same with `train_step`.
                self.train_function = self._make_function(self.training_step)
            return self.train_function
        loop = self._loop("train", self.training_step, dataset, force)
        self.train_function = loop if self.guard is None else self.guard(loop)
        return self.train_function

    def training_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Runs `train_step` on a batch, and records the figures that it returned and did not.

        Raises:
            ValueError: `train_step` did not end its step.
        """
        self._is_finished, self._updated = False, set()
        figures = self.train_step(data)
        if not self._is_finished:
            raise ValueError(UNFINISHED)
        known = {metric.name for metric in self.metrics}
        further = {name: figures[name] for name in figures if name not in known}
        if further:
            count = tf.shape(keras.tree.flatten(data)[0])[0]
            self.running_means.add(further, count)
        return self.get_metrics_result()

    def make_test_function(self, force: bool = False) -> Any:
        """Makes what Keras calls for the next steps of an evaluation: a loop over `test_step`."""
        dataset = self._device_datasets["test"]
        if dataset is None:
            return super().make_test_function(force)
        self.test_function = self._loop("test", self.test_step, dataset, force)
        return self.test_function

    def _loop(self, kind: str, step: Any, dataset: DeviceDataset, force: bool) -> StepFunction:
        """Returns the loop over the steps of a call; data read alike share a compiled program."""
        key = (kind, dataset.reader.steps_alike)
        if force or key not in self._step_loops:
            self._step_loops[key] = StepLoop(
                step,
                self.get_metrics_result,
                dataset,
                jit_compile=self.jit_compile,
                run_eagerly=self.run_eagerly,
                strategy=self.strategy,
            )
        return functools.partial(self._step_loops[key], batches=dataset)

    def remake_functions(self) -> None:
        """Makes those functions again that exist: a compiled step holds what it was traced with."""
        self._step_loops = {}
        for kind in ("train", "test"):
            if getattr(self, f"{kind}_function") is not None:
                getattr(self, f"make_{kind}_function")(force=True)

    @property
    def graph_of_one_step(self) -> tf.Graph | None:
        """The graph of a training step, if `fit` has made one that is not a loop over several."""
        for (kind, _), loop in reversed(self._step_loops.items()):
            if kind == "train" and loop.graph_of_one_step is not None:
                return loop.graph_of_one_step
        return None

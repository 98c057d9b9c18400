"""The variational autoencoder: a Keras model with its own training step."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from vae_research import checkpoints
from vae_research.data.pipeline import DeviceDataset
from vae_research.execution import StepLoop
from vae_research.keras_inputs import (
    refuse_class_weight,
    targets_for_weights,
    unpack,
    weighted,
    with_schedule_lengths,
)
from vae_research.objective import LossReport, Objective
from vae_research.randomness import evaluation_key, training_key
from vae_research.settings import from_config, import_own_modules
from vae_research.tensors import SCALARS, Tensors, bind, call_module, graph_scope, scope_explained


@keras.saving.register_keras_serializable(package="vae_research")
class VAE(keras.Model):
    """Encoder, bottleneck, decoder and loss terms, trained by `compile` and `fit`.

    Args:
        encoder: any Keras network that writes what the bottleneck reads, usually `z_mean` and
            `z_log_var`; `named` gives names to outputs that have none.
        bottleneck: a `Bottleneck`; it owns posterior and prior and writes `z`.
        decoder: any Keras network from `z` to the parameters of the likelihood.
        terms: the loss terms, exactly one of them a `Likelihood`.
        modules: further networks that run after the decoder, in order.
        num_samples: samples of z for each example, K.
        importance_weighted: train the importance-weighted bound of the K samples.
        seed: of all noise of this model, 0 to 2**32 - 1. Initial weights have Keras' seed.

    Raises:
        ValueError: the terms do not make an objective; see `Objective`.

    >>> from vae_research import dense_decoder, dense_encoder, GaussianBottleneck
    >>> from vae_research import Bernoulli, KLDivergence
    >>> vae = VAE(
    ...     dense_encoder([28, 28, 1], 2),
    ...     GaussianBottleneck(2),
    ...     dense_decoder([28, 28, 1], 2),
    ...     [Bernoulli(), KLDivergence()],
    ... )
    >>> vae.sample(3).shape.as_list()
    [3, 28, 28, 1]
    """

    def __init__(
        self,
        encoder: keras.layers.Layer,
        bottleneck: keras.layers.Layer,
        decoder: keras.layers.Layer,
        terms: Iterable[Any],
        *,
        modules: Sequence[keras.layers.Layer] = (),
        num_samples: int = 1,
        importance_weighted: bool = False,
        seed: int = 0,
        name: str = "vae",
    ) -> None:
        super().__init__(name=name, dtype="float32")
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise ValueError(f"seed must be an integer from 0 to 2**32 - 1, got {seed!r}.")
        self.encoder = encoder
        self.bottleneck = bottleneck
        self.decoder = decoder
        self.further_modules = list(modules)
        self.seed = seed
        self._declared_objective = Objective(
            terms, num_samples=num_samples, importance_weighted=importance_weighted
        )
        self.objective = self._declared_objective
        self.steps_per_epoch: int | None = None
        self._device_datasets: dict[str, DeviceDataset | None] = {"train": None, "test": None}
        self._step_loops: dict[Any, StepLoop] = {}
        self._input_specs: dict[str, tuple[tuple[int | None, ...], str]] = {}
        labels = [term.label for term in self.objective.terms]
        names = dict.fromkeys(["loss", "elbo", *labels, "kl", "regularization"])
        scheduled = [term.label for term in self.objective.terms if callable(term.weight)]
        names |= dict.fromkeys(f"contribution/{label}" for label in scheduled)
        self._trackers = {name: keras.metrics.Mean(name=name) for name in names}
        # Which of the trackers this model has values for is known once a step has been traced.
        self._reported = ["loss", *labels]
        # Known already where every variable exists; otherwise the first forward pass says so.
        no_variables_to_come = type(bottleneck).build is keras.layers.Layer.build
        networks = (encoder, decoder, *modules)
        self.built = no_variables_to_come and all(network.built for network in networks)

    # The forward pass.

    def forward(
        self,
        data: tf.Tensor | Mapping[str, tf.Tensor],
        *,
        training: bool = False,
        seed: tf.Tensor | None = None,
        num_samples: int | None = None,
    ) -> Tensors:
        """Returns the named tensors of a forward pass; `vae_research.tensors` lists the names.

        Args:
            data: `[batch, ...]`, or a dictionary with `inputs` and names of your own.
            training: passed to the networks.
            seed: a stateless key, `[2]` int64; by default that of the first evaluated batch.
            num_samples: samples of z for each example; by default what the model trains with.
        """
        tensors = self.infer(data, training=training, seed=seed, num_samples=num_samples)
        self._run_decoder(tensors, training=training)
        return tensors

    def infer(
        self,
        data: tf.Tensor | Mapping[str, tf.Tensor],
        *,
        training: bool = False,
        seed: tf.Tensor | None = None,
        num_samples: int | None = None,
    ) -> Tensors:
        """Returns the named tensors of encoder and bottleneck, the first half of `forward`."""
        num_samples = num_samples or self.objective.num_samples
        tensors = self._start(data, seed)
        call_module("encoder", self.encoder, tensors, training=training, only_input="inputs")
        if num_samples > 1:
            # The K rows of one example are adjacent: Objective reshapes to [batch, K].
            for name in [name for name in tensors if name not in SCALARS]:
                tensors[name] = _repeated(tensors[name], num_samples)
        call_module("bottleneck", self.bottleneck, tensors, training=training)
        return tensors

    def _start(self, data: Any, seed: tf.Tensor | None = None) -> Tensors:
        data = dict(data) if isinstance(data, Mapping) else {"inputs": data}
        data = {name: tf.convert_to_tensor(value) for name, value in data.items()}
        if "inputs" not in data:
            raise ValueError(f"The data have no 'inputs'; got {', '.join(sorted(data))}.")
        specs = {name: (tuple(value.shape[1:]), value.dtype.name) for name, value in data.items()}
        if specs.keys() >= self._input_specs.keys():  # encode() may have been given a part
            self._input_specs = specs
        data.setdefault("targets", data["inputs"])
        if seed is None:
            seed = self.evaluation_key(0)
        return Tensors(data | {"step": tf.cast(self._step(), tf.float32), "seed": seed})

    def _run_decoder(self, tensors: Tensors, *, training: bool, whole: bool = True) -> None:
        """Runs decoder and further modules; not `whole` ends where the reconstruction is there."""
        call_module("decoder", self.decoder, tensors, training=training, only_input="z")
        self._write_reconstruction(tensors)
        for index, module in enumerate(self.further_modules):
            if not whole and "reconstruction" in tensors:
                return
            call_module(f"module {index}", module, tensors, training=training)
            self._write_reconstruction(tensors)
        # Every variable exists from here on. Keras asks before it saves, and after it loads.
        self.built = True

    def _write_reconstruction(self, tensors: Tensors) -> None:
        """Writes the likelihood's mean as soon as its parameters are there, for modules to read."""
        likelihood = self.objective.likelihood
        if "reconstruction" not in tensors and likelihood.mean_reads() <= tensors.keys():
            tensors.write("likelihood", {"reconstruction": likelihood.reconstruction(tensors)})

    def _step(self) -> tf.Tensor | int:
        optimizer = getattr(self, "optimizer", None)  # Keras sets the attribute in compile()
        return 0 if optimizer is None else tf.convert_to_tensor(optimizer.iterations)

    def evaluation_key(self, position: tf.Tensor | int) -> tf.Tensor:
        """Returns the stateless key, `[2]`, of the noise at a position of every evaluation."""
        return evaluation_key(self.seed, position)

    # What a user asks of a model.

    def posterior(self, data: tf.Tensor | Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns what the encoder writes, usually `z_mean` and `z_log_var` `[batch, latent]`."""
        tensors = self._start(data)
        given = set(tensors)
        self._encoded(tensors)
        return {name: tensor for name, tensor in tensors.items() if name not in given}

    def _encoded(self, tensors: Tensors) -> Tensors:
        call_module("encoder", self.encoder, tensors, training=False, only_input="inputs")
        return tensors

    def decode(self, z: tf.Tensor, **tensors: tf.Tensor) -> tf.Tensor:
        """Returns the mean of p(x|z) in data space, `[rows, ...]`.

        Args:
            z: `[rows, latent]`.
            tensors: further named tensors that decoder or modules read, for example `labels`.
        """
        start = {"step": tf.cast(self._step(), tf.float32), "seed": self.evaluation_key(0)}
        return self._decoded(Tensors(start | {"z": tf.convert_to_tensor(z)} | tensors))

    def _decoded(self, tensors: Tensors) -> tf.Tensor:
        self._run_decoder(tensors, training=False, whole=False)
        return tensors.tap("user", "reconstruction")

    def reconstruct(self, data: tf.Tensor | Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Returns the mean of p(x|z) for the code without noise, in data space, as the data."""
        tensors = self._encoded(self._start(data))
        tensors.write("bottleneck", {"z": self._center(tensors)})
        return self._decoded(tensors)

    def log_likelihood(self, tensors: Mapping[str, tf.Tensor], z: tf.Tensor) -> tf.Tensor:
        """Returns log p(x|z), `[rows]`, nats, of data under codes that need not be their own.

        Args:
            tensors: of the data, as `infer` gives them; a decoder may read more of them than z.
            z: `[rows, latent]`, a code for each example, in the place of theirs.
        """
        tensors = Tensors({**tensors, "z": z})
        self._run_decoder(tensors, training=False, whole=False)
        return -self.objective.likelihood(tensors)

    def encode(self, data: tf.Tensor | Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Returns the codes without noise, `[batch, latent]`: posterior means."""
        return self._center(self._encoded(self._start(data)))

    def _center(self, tensors: Tensors) -> tf.Tensor:
        center = self.bottleneck.center
        return center(**bind("bottleneck", center, tensors))

    def sample(self, count: int, *, seed: int = 0, **tensors: tf.Tensor) -> tf.Tensor:
        """Returns `[count, ...]`: the means of p(x|z) for codes from the prior.

        Args:
            count: number of samples.
            seed: the same seed gives the same codes.
            tensors: as for `decode`.

        Raises:
            ValueError: the bottleneck has no prior.
        """
        return self.decode(self.bottleneck.sample_prior(count, tf.constant([seed, 0])), **tensors)

    def call(self, inputs: Any, training: bool = False) -> tf.Tensor:
        """Returns `reconstruct(inputs)`, which is also what `predict` gives."""
        return self.reconstruct(inputs)

    # Training and evaluation.

    @property
    def step(self) -> int:
        """Optimizer steps so far, 0 when not compiled."""
        return int(self._step())

    @property
    def examples_seen(self) -> int:
        """Examples since the running means were last reset: since the epoch or evaluation began."""
        return int(self._trackers["loss"].count)

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

        `jit_compile` is False unless asked for: what "auto" means changes from host to host, and
        XLA makes convolutions slower on a CPU.

        Raises:
            ValueError: a loss, metric or loss weight is given, or networks compute in float16 and
                the optimizer does not scale the loss.
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
                    "Add a LossTerm to VAE(terms=[...]); with weight=None it is only watched."
                )
        super().compile(optimizer=optimizer, jit_compile=jit_compile, **kwargs)
        self._step_loops = {}
        half = "float16" in (self.encoder.compute_dtype, self.decoder.compute_dtype)
        if half and not isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            raise ValueError(
                "Networks in mixed_float16 need a scaled loss, or small gradients become zero: "
                "compile(keras.optimizers.LossScaleOptimizer(optimizer)), or use mixed_bfloat16."
            )

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles as the saved model was, and makes the optimizer's slots to be filled."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

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

        `x` and `validation_data` may also be `DeviceDataset`, which need no `steps_per_epoch`:
        `steps_per_execution` steps then run as one compiled loop.

        Raises:
            ValueError: `class_weight` is given.
        """
        refuse_class_weight(kwargs.pop("class_weight", None))
        optimizer = getattr(self, "optimizer", None)
        if self.built and optimizer is not None and not optimizer.built:
            optimizer.build(self.trainable_variables)  # outside of the step, which may fail
        callbacks = with_schedule_lengths(self, callbacks, kwargs.get("initial_epoch", 0))
        x = self._select_input("train", x, kwargs, "steps_per_epoch")
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
            with scope_explained():
                return super().fit(x, y, batch_size, epochs, verbose, callbacks, **kwargs)
        except BaseException:
            # A step that failed while it was traced cannot be called again; the next fit makes it
            # anew, and says what is wrong then.
            self.train_function = self.test_function = None
            self._step_loops = {}
            raise

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        sample_weight: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Keras' `evaluate`; `x` may also be `DeviceDataset`."""
        if "_use_cached_eval_dataset" not in kwargs:  # Keras' word for the evaluations within fit
            x = self._select_input("test", x, kwargs, "steps")
        x, y = targets_for_weights(x, y, sample_weight)
        with scope_explained():
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
        self._select_input("train", x)
        return super().train_on_batch(x, y, sample_weight, **kwargs)

    def test_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, **kwargs: Any) -> Any:
        """Keras' `test_on_batch`."""
        self._select_input("test", x)
        return super().test_on_batch(x, y, sample_weight, **kwargs)

    def _select_input(
        self, kind: str, x: Any, kwargs: dict[str, Any] | None = None, steps: str = ""
    ) -> Any:
        """Returns what Keras is given for the data `x`, after choosing the function that reads it.

        Args:
            kind: "train" or "test".
            x: what the user gave.
            kwargs: of Keras' method; for `DeviceDataset` the number of steps is added.
            steps: what that argument is called.
        """
        device_dataset = x if isinstance(x, DeviceDataset) else None
        if device_dataset is not self._device_datasets[kind]:
            self._device_datasets = self._device_datasets | {kind: device_dataset}
            setattr(self, f"{kind}_function", None)
        if device_dataset is None:
            return x
        kwargs.setdefault(steps, device_dataset.steps)
        return device_dataset.calls(self.steps_per_execution)

    def make_train_function(self, force: bool = False) -> Any:
        """Keras' `make_train_function`, also for data that stay on the device."""
        if not self._make_step_loop("train", self.train_step, force):
            return super().make_train_function(force)

    def make_test_function(self, force: bool = False) -> Any:
        """Keras' `make_test_function`, also for data that stay on the device."""
        if not self._make_step_loop("test", self.test_step, force):
            return super().make_test_function(force)

    def _make_step_loop(self, kind: str, step: Any, force: bool) -> bool:
        batches = self._device_datasets[kind]
        if batches is None:
            return False
        # Another fit on such data finds the compiled program of the first.
        key = (kind, batches.reader.steps_alike)
        if force or key not in self._step_loops:
            self._step_loops[key] = StepLoop(
                step,
                self.get_metrics_result,
                batches,
                jit_compile=self.jit_compile,
                run_eagerly=self.run_eagerly,
            )
        function = self._step_loops[key]
        setattr(self, f"{kind}_function", lambda iterator: function(iterator, batches))
        return True

    @property
    def graph_of_one_step(self) -> tf.Graph | None:
        """The graph of a training step, where `fit` has made one that is no loop over several."""
        graphs = [
            function.graph_of_one_step
            for (kind, _), function in self._step_loops.items()
            if kind == "train"
        ]
        return next((graph for graph in reversed(graphs) if graph is not None), None)

    def reset_metrics(self) -> None:
        """Resets all running means, also of terms that the last step did not have."""
        super().reset_metrics()
        for tracker in self._trackers.values():
            tracker.reset_state()

    def set_steps_per_epoch(self, steps_per_epoch: int) -> None:
        """Says how many optimizer steps an epoch has, for schedules that count in epochs."""
        if steps_per_epoch == self.steps_per_epoch:
            return
        self.steps_per_epoch = steps_per_epoch
        before = self.objective.terms
        self.objective = self._declared_objective.in_steps(steps_per_epoch)
        if self.objective.terms != before:
            # The compiled steps have the old lengths in them.
            self._step_loops = {}
            for make in ("train", "test"):
                if getattr(self, f"{make}_function") is not None:
                    getattr(self, f"make_{make}_function")(force=True)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One optimizer step on a batch; returns the running means of this epoch."""
        data, sample_weight = unpack(data)
        with tf.GradientTape() as tape:
            report = self._report(data, training_key(self.seed, self.optimizer.iterations), True)
            loss = tf.reduce_mean(weighted(report.surrogate, report, sample_weight))
            loss_to_differentiate = self.optimizer.scale_loss(loss)
        variables = self.trainable_variables
        with graph_scope("gradients"):
            gradients = tape.gradient(loss_to_differentiate, variables)
        with graph_scope("optimizer"):
            self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        with graph_scope("figures"):
            return self._record(report, sample_weight)

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """The same figures without training. Every evaluation sees the same noise."""
        data, sample_weight = unpack(data)
        # Keras resets the trackers when an evaluation begins: their count is the position in it.
        key = self.evaluation_key(self._trackers["loss"].count)
        return self._record(self._report(data, key, False), sample_weight)

    def _report(self, data: Any, seed: tf.Tensor, training: bool) -> LossReport:
        tensors = self.forward(data, training=training, seed=seed)
        # Losses of layers: regularisers, and what layers passed to add_loss in this forward pass.
        return self.objective(tensors, regularization=self.losses)

    def _record(self, report: LossReport, sample_weight: tf.Tensor | None) -> dict[str, tf.Tensor]:
        # The loss is weighted as it is trained; other figures describe the data as they are.
        figures = {"loss": weighted(report.loss, report, sample_weight)}
        if report.elbo is not None:
            figures["elbo"] = report.elbo
        figures |= report.values
        for name, value in report.contributions.items():
            if f"contribution/{name}" in self._trackers:
                figures[f"contribution/{name}"] = value
        count = tf.shape(report.loss)[0]
        for name, values in figures.items():
            # A vector has its own count; the scalar of a batch counts for all of its examples.
            weight = count if values.shape.rank == 0 else None
            self._trackers[name].update_state(values, sample_weight=weight)
        self._reported = [name for name in self._trackers if name in figures]
        return self.get_metrics_result()

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The running means that appear in the logs, and the metrics of layers."""
        ours = {id(tracker) for tracker in (*self._trackers.values(), self._loss_tracker)}
        others = [metric for metric in super().metrics if id(metric) not in ours]
        return [self._trackers[name] for name in self._reported] + others

    def running_sums(self) -> list[Any]:
        """Returns the variables of all running means, also of those that no log has had yet."""
        ours = {id(tracker): tracker for tracker in self._trackers.values()}
        metrics = ours | {id(metric): metric for metric in self.metrics}
        return [variable for metric in metrics.values() for variable in metric.variables]

    def set_running_sums(self, values: Sequence[Any]) -> None:
        """Gives the variables of `running_sums` the values that they had within an epoch."""
        for variable, value in zip(self.running_sums(), values, strict=True):
            variable.assign(value)
        self._reported = [name for name, mean in self._trackers.items() if float(mean.count) > 0]

    # Saving and loading.

    def load_checkpoint(self, path: str | os.PathLike) -> checkpoints.Checkpoint:
        """Puts the values of a checkpoint, a folder of a run's `checkpoints`, into this model.

        Returns:
            What was loaded: its step and epoch. A model that is compiled gets the optimizer's state
            as well, and goes on as the run would have.

        Raises:
            CheckpointError: it is no checkpoint, damaged, or of another model; nothing is changed
                then.
        """
        optimizer = getattr(self, "optimizer", None)
        if self.built and optimizer is not None and not optimizer.built:
            optimizer.build(self.trainable_variables)
        return checkpoints.load(path, self)

    def get_config(self) -> dict[str, Any]:
        """Returns what `from_config` needs; Keras saves it with the weights."""
        networks = {
            name: keras.saving.serialize_keras_object(value)
            for name, value in (
                ("encoder", self.encoder),
                ("bottleneck", self.bottleneck),
                ("decoder", self.decoder),
                ("modules", list(self.further_modules)),
            )
        }
        return networks | {
            "terms": [term.to_config() for term in self._declared_objective.terms],
            "num_samples": self._declared_objective.num_samples,
            "importance_weighted": self._declared_objective.importance_weighted,
            "seed": self.seed,
            "name": self.name,
            "steps_per_epoch": self.steps_per_epoch,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> VAE:
        """Returns the model that `get_config` described.

        Raises:
            ValueError: a term's class is not imported, or a schedule was a plain function.
        """
        config = copy.deepcopy(config)  # deserialisation takes it apart
        import_own_modules(config)
        terms = [from_config(term) for term in config.pop("terms")]
        steps_per_epoch = config.pop("steps_per_epoch")
        networks = {
            name: keras.saving.deserialize_keras_object(config.pop(name))
            for name in ("encoder", "bottleneck", "decoder", "modules")
        }
        model = cls(terms=terms, **networks, **config)
        if steps_per_epoch is not None:
            model.set_steps_per_epoch(steps_per_epoch)
        return model

    def build(self, input_shape: Any = None) -> None:
        """Does nothing: the first forward pass builds the networks."""

    def get_build_config(self) -> dict[str, Any]:
        """Returns shapes and types of the data, so that a loaded model has all its variables."""
        return {"data": {name: list(spec) for name, spec in self._input_specs.items()}}

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Makes every variable by a symbolic forward pass, before weights are loaded."""
        specs = {
            name: tf.TensorSpec([None, *shape], dtype)
            for name, (shape, dtype) in config["data"].items()
        }
        if specs:
            tf.function(self.forward, autograph=False).get_concrete_function(specs)

    def load_weights(self, *args: Any, **kwargs: Any) -> None:
        """Keras' `load_weights`, with step and slots of the optimizer where they were saved."""
        # Keras warns, and starts the optimizer from zero, where its slots do not exist yet.
        optimizer = getattr(self, "optimizer", None)
        if self.built and optimizer is not None:
            optimizer.build(self.trainable_variables)
        super().load_weights(*args, **kwargs)


def _repeated(values: tf.Tensor, times: int) -> tf.Tensor:
    """Returns `tf.repeat(values, times, axis=0)`, which XLA does not need to hold in memory."""
    shape = tf.shape(values)
    rows = tf.expand_dims(values, 1)
    rows = tf.broadcast_to(rows, tf.concat([shape[:1], [times], shape[1:]], axis=0))
    repeated = tf.reshape(rows, tf.concat([shape[:1] * times, shape[1:]], axis=0))
    return tf.ensure_shape(repeated, [None, *values.shape[1:]])

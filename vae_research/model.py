"""The variational autoencoder: a Keras model with its own training step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import keras
import tensorflow as tf

from vae_research import checkpoints, serialization
from vae_research.arguments import checked_seed
from vae_research.keras_inputs import unpack, weighted
from vae_research.objective import LossReport, Objective
from vae_research.randomness import evaluation_key, training_key
from vae_research.running_means import RunningMeans
from vae_research.tensors import SCALARS, Tensors, bind, call_module, graph_scope, repeat_rows
from vae_research.trainer import Trainer


@keras.saving.register_keras_serializable(package="vae_research")
class VAE(Trainer):
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
        objective = Objective(
            terms, num_samples=num_samples, importance_weighted=importance_weighted
        )
        super().__init__(RunningMeans(objective.terms), name=name, dtype="float32")
        self.encoder = encoder
        self.bottleneck = bottleneck
        self.decoder = decoder
        self.further_modules = list(modules)
        self.seed = checked_seed(seed)
        self.objective = self._declared_objective = objective
        self._input_specs: dict[str, tuple[tuple[int | None, ...], str]] = {}
        # True already if every variable exists; otherwise the first forward pass sets it.
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
                tensors[name] = repeat_rows(tensors[name], num_samples)
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
        """Runs decoder and further modules; `whole=False` stops once there is a reconstruction."""
        call_module("decoder", self.decoder, tensors, training=training, only_input="z")
        self._write_reconstruction(tensors)
        for index, module in enumerate(self.further_modules):
            if not whole and "reconstruction" in tensors:
                return
            call_module(f"module {index}", module, tensors, training=training)
            self._write_reconstruction(tensors)
        # Every variable exists from here on. Keras reads `built` before saving and after loading.
        self.built = True

    def _write_reconstruction(self, tensors: Tensors) -> None:
        """Writes the likelihood's mean once its parameters exist, so that modules can read it."""
        likelihood = self.objective.likelihood
        if "reconstruction" not in tensors and likelihood.mean_reads() <= tensors.keys():
            tensors.write("likelihood", {"reconstruction": likelihood.reconstruction(tensors)})

    def evaluation_key(self, position: tf.Tensor | int) -> tf.Tensor:
        """Returns the stateless key, `[2]`, of the noise at a position of any evaluation."""
        return evaluation_key(self.seed, position)

    # What a trained model is used for.

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
        """Returns the mean of p(x|z) for the codes without noise, shaped as the data."""
        tensors = self._encoded(self._start(data))
        tensors.write("bottleneck", {"z": self._center(tensors)})
        return self._decoded(tensors)

    def log_likelihood(self, tensors: Mapping[str, tf.Tensor], z: tf.Tensor) -> tf.Tensor:
        """Returns log p(x|z), `[rows]`, nats, of data under the given codes.

        Args:
            tensors: of the data, as `infer` returns them; a decoder may read more of them than z.
            z: `[rows, latent]`, a code for each example, which replaces theirs.
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
        """Returns `reconstruct(inputs)`; so does `predict`."""
        return self.reconstruct(inputs)

    # The steps of training and evaluation.

    def set_steps_per_epoch(self, steps_per_epoch: int) -> None:
        """Sets how many optimizer steps an epoch has, for schedules with lengths in epochs."""
        if steps_per_epoch == self.steps_per_epoch:
            return
        self.steps_per_epoch = steps_per_epoch
        before = self.objective.terms
        self.objective = self._declared_objective.in_steps(steps_per_epoch)
        if self.objective.terms != before:
            self.remake_functions()  # the compiled steps have the old lengths in them

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One optimizer step on a batch; returns the running means of this epoch."""
        data, sample_weight = unpack(data)
        with tf.GradientTape() as tape:
            key = training_key(self.seed, self.optimizer.iterations)
            tensors = self.forward(data, training=True, seed=key)
            # `losses`: regularisers, and what layers passed to add_loss in this forward pass.
            report = self.objective(tensors, regularization=self.losses)
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
        """Returns the figures of a batch without an update. All evaluations have the same noise."""
        data, sample_weight = unpack(data)
        # Keras resets the means when an evaluation begins: their count is the position in it.
        key = self.evaluation_key(self.running_means.count)
        report = self.objective(self.forward(data, seed=key), regularization=self.losses)
        return self._record(report, sample_weight)

    def _record(self, report: LossReport, sample_weight: tf.Tensor | None) -> dict[str, tf.Tensor]:
        # `loss` has the sample weights, as in training; the other figures are unweighted.
        figures = {"loss": weighted(report.loss, report, sample_weight)}
        if report.elbo is not None:
            figures["elbo"] = report.elbo
        figures |= report.values
        for name, value in report.contributions.items():
            if f"contribution/{name}" in self.running_means:
                figures[f"contribution/{name}"] = value
        self.running_means.update(figures, tf.shape(report.loss)[0])
        return self.get_metrics_result()

    # Saving and loading.

    def load_checkpoint(self, path: str | Path) -> checkpoints.Checkpoint:
        """Loads the values of a checkpoint, a folder of a run's `checkpoints`, into this model.

        Returns:
            What was loaded: its step and epoch. A model that is compiled gets the optimizer's state
            as well, and continues as the run would have.

        Raises:
            CheckpointError: it is not a checkpoint, is damaged, or is of another model; nothing is
                changed then.
        """
        self.build_optimizer()
        return checkpoints.load(path, self)

    def get_config(self) -> dict[str, Any]:
        """Returns what `from_config` needs; Keras saves it with the weights."""
        networks = {
            "encoder": self.encoder,
            "bottleneck": self.bottleneck,
            "decoder": self.decoder,
            "modules": list(self.further_modules),
        }
        return serialization.model_config(networks, self._declared_objective) | {
            "seed": self.seed,
            "name": self.name,
            "steps_per_epoch": self.steps_per_epoch,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Returns the model that `get_config` described.

        Raises:
            ValueError: a term's class is not imported, or a schedule was a plain function.
        """
        arguments = serialization.model_arguments(config)
        steps_per_epoch = arguments.pop("steps_per_epoch")
        model = cls(**arguments)
        if steps_per_epoch is not None:
            model.set_steps_per_epoch(steps_per_epoch)
        return model

    def build(self, input_shape: Any = None) -> None:
        """Does nothing: the first forward pass builds the networks."""

    def get_build_config(self) -> dict[str, Any]:
        """Returns shapes and types of the data, so that a loaded model has all its variables."""
        return serialization.build_config(self._input_specs)

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Creates every variable before weights are loaded."""
        serialization.build_from_config(self, config)

    def load_weights(self, *args: Any, **kwargs: Any) -> None:
        """Keras' `load_weights`, with step and slots of the optimizer if they were saved."""
        self.build_optimizer()
        super().load_weights(*args, **kwargs)

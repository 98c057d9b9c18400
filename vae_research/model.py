"""The variational autoencoder: a Keras model composed of networks and loss terms.

How it is trained on a batch is in `vae_research.steps`, how it is saved in `vae_research.saving`.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import nullcontext
from typing import Any

import keras
import tensorflow as tf

from vae_research.arguments import checked_integer
from vae_research.codes import CodeLayout, Codes
from vae_research.critics import Critic
from vae_research.distribution import share, whole_batch, with_samples
from vae_research.gradient_estimators import GradientEstimator, SampledPath, check_densities
from vae_research.levels import level_of
from vae_research.objective import LossReport, Objective
from vae_research.priors.fitted import refuse_unfitted
from vae_research.priors.prior import Prior
from vae_research.priors.vamp import VampPrior
from vae_research.randomness import evaluation_key
from vae_research.saving import SavableModel
from vae_research.suitability import (
    as_tensor,
    refuse_non_finite,
    refuse_other_shape,
    refuse_undeclared_shape,
    refuse_unsuitable_data,
)
from vae_research.tensors import (
    Named,
    Tensors,
    bind,
    call_module,
    graph_scope,
)

_LIKE_WEIGHTS = {"beta", "kl_weight", "kl_beta", "kl_factor", "kl_loss_weight", "weight_kl"}

_SAMPLE = "sample of the decoder"  # what the noise of a decoder's own samples is for


@keras.saving.register_keras_serializable(package="vae_research")
class VAE(SavableModel):
    """Encoder, bottleneck, decoder and loss terms, trained by `compile` and `fit`.

    Args:
        encoder: any Keras network that writes what the bottleneck reads, usually `z_mean` and
            `z_log_var`; `named` gives names to outputs that have none.
        bottleneck: a `Bottleneck`; it owns posterior and prior and writes `z`.
        decoder: any Keras network from `z` to the parameters of the likelihood. If it reads
            `targets` (teacher forcing), its method `sample(self, z, seed)` makes data by itself.
        terms: the loss terms, exactly one of them a `Likelihood`.
        modules: further networks that run after the decoder, in order.
        critics: networks that are trained on their own terms in the same step; see `Critic`.
        num_samples: samples of z for each example, K.
        importance_weighted: train the importance-weighted bound of the K samples.
        gradient_estimator: what is differentiated in place of the loss that is reported, for
            example `DReG()`; by default the loss itself.
        seed: of all noise of this model, 0 to 2**32 - 1. Initial weights have Keras' seed.

    Raises:
        ValueError: the terms do not make an objective (see `Objective`), critics are not apart, or
            the bottleneck declares no latents or lacks a density that the gradient estimator needs.
        TypeError: a critic is not a `Critic`, or the gradient estimator is not one.

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
        critics: Sequence[Critic] = (),
        num_samples: int = 1,
        importance_weighted: bool = False,
        gradient_estimator: GradientEstimator | None = None,
        seed: int = 0,
        name: str = "vae",
    ) -> None:
        if not hasattr(bottleneck, "center") and hasattr(decoder, "center"):
            raise ValueError(
                "bottleneck and decoder are in the wrong order: VAE(encoder, bottleneck, decoder, "
                "terms)."
            )
        objective = Objective(
            terms,
            num_samples=num_samples,
            importance_weighted=importance_weighted,
            gradient_estimator=gradient_estimator,
        )
        CodeLayout.of(bottleneck)  # which refuses latents that are not declared
        if gradient_estimator is not None:
            check_densities(gradient_estimator, bottleneck)
        if objective.gradient_bias is not None:
            warnings.warn(objective.gradient_bias, stacklevel=2)
        super().__init__(objective, critics, seed=seed, name=name)
        self.encoder = encoder
        self.bottleneck = bottleneck
        self.decoder = decoder
        self.further_modules = list(modules)
        if isinstance(getattr(bottleneck, "prior", None), VampPrior):
            bottleneck.prior.use_encoder(self.posterior)

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute.

        Raises:
            AttributeError: it looks like the weight of a loss term, and nothing reads it.
        """
        if type(self) is VAE and name in _LIKE_WEIGHTS:
            raise AttributeError(
                f"A VAE has no {name!r}, and a number that a callback sets would be frozen in the "
                "compiled step. The weight of a term is a number, a schedule or a controller: "
                "KLDivergence(weight=LinearWarmup(epochs=5))."
            )
        super().__setattr__(name, value)

    def _use_clock(self) -> None:
        super()._use_clock()
        clock, convert = (
            self._own_state.clock,
            getattr(self.bottleneck, "set_steps_per_epoch", None),
        )
        if convert is None or clock.steps_per_epoch is None:
            return
        if convert(clock.steps_per_epoch, clock.steps_ahead):
            self.remake_functions()  # the compiled steps have the old lengths in them

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
        return self.decode_inferred(tensors, training=training)

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
        tensors = self._start(data, seed, training=training)
        call_module("encoder", self.encoder, tensors, training=training, only_input="inputs")
        tensors.repeat(num_samples)
        with with_samples(num_samples):
            call_module("bottleneck", self.bottleneck, tensors, training=training)
        written = {name: tensors[name] for name in tensors if tensors.writers.get(name)}
        self.code_layout.checked(f"The bottleneck {self.bottleneck.name!r}", written)
        return tensors

    def decode_inferred(self, tensors: Tensors, *, training: bool = False) -> Tensors:
        """Adds what decoder, modules and critics write to tensors of `infer`, and returns them."""
        with with_samples(tensors.samples):
            self._run_decoder(tensors, training=training)
            self._run_critics(tensors, training=training)
        return tensors

    def report(
        self,
        data: tf.Tensor | Mapping[str, tf.Tensor],
        *,
        training: bool = False,
        seed: tf.Tensor | None = None,
    ) -> tuple[Tensors, LossReport]:
        """Returns a forward pass, and the loss of each example with all its parts.

        Whoever differentiates the loss takes `surrogate` from here.

        Args:
            data, training, seed: as for `forward`.
        """
        states = self._own_state.controllers
        tensors = self.infer(data, training=training, seed=seed)
        estimator = self.objective.gradient_estimator
        recorded = SampledPath.recorded(self.bottleneck, tensors) if estimator else nullcontext()
        with with_samples(tensors.samples), recorded as path:
            self._run_decoder(tensors, training=training)
            self._run_critics(tensors, training=training)
            # `losses`: regularisers, and what layers passed to add_loss in this forward pass.
            report = self.objective(tensors, self.losses, states, path)
            critics = {critic.name: critic.report(tensors, states) for critic in self.critics}
        return tensors, dataclasses.replace(report, critics=critics) if critics else report

    def _start(
        self, data: Any, seed: tf.Tensor | None = None, *, training: bool = False
    ) -> Tensors:
        data = dict(data) if isinstance(data, Mapping) else {"inputs": data}
        data = {name: as_tensor(name, value) for name, value in data.items()}
        if "inputs" not in data:
            raise ValueError(f"The data have no 'inputs'; got {', '.join(sorted(data))}.")
        for name in data:
            if level_of(name) is not None:
                raise ValueError(
                    f"The data have an array {name!r}, which is the name of a divergence or a "
                    "density of a latent and would be part of the ELBO. Give it another name."
                )
        specs = {name: (tuple(value.shape[1:]), value.dtype.name) for name, value in data.items()}
        if "inputs" in self._input_specs:
            refuse_other_shape(data["inputs"].shape, self._input_specs["inputs"][0])
        refuse_undeclared_shape(data["inputs"].shape, self.encoder, data)
        if not training:  # `fit` has looked, and a run says what was not finite in a step
            refuse_unsuitable_data(self.objective.likelihood, data, known=self._input_specs)
        if specs.keys() >= self._input_specs.keys():  # encode() may have been given a part
            self._input_specs = specs
        data.setdefault("targets", data["inputs"])
        return self._tensors(data, seed)

    def _tensors(self, given: Mapping[str, tf.Tensor], seed: tf.Tensor | None = None) -> Tensors:
        seed = self.evaluation_key(0) if seed is None else seed
        step = tf.cast(tf.convert_to_tensor(self.step_counter), tf.float32)
        return Tensors({**given, "step": step, "seed": seed})

    def _run_decoder(
        self, tensors: Tensors, *, training: bool, until: Set[str] | None = None
    ) -> None:
        """Runs decoder and further modules, all of them or until the names `until` are written."""
        latent = self.code_layout.only or "z"
        call_module("decoder", self.decoder, tensors, training=training, only_input=latent)
        self._write_reconstruction(tensors)
        for index, module in enumerate(self.further_modules):
            if until is not None and until <= tensors.keys():
                return
            call_module(f"module {index}", module, tensors, training=training)
            self._write_reconstruction(tensors)

    def _run_critics(self, tensors: Tensors, *, training: bool) -> None:
        layout = self.code_layout
        of_prior = {f"{name}_prior": name for name in layout.shapes}
        if any(of_prior.keys() & set(critic.reads(tensors)) for critic in self.critics):
            key = tensors.tap("critics", "seed", key="sample of the prior")
            own = share()
            rows = tf.shape(tensors[next(iter(layout.shapes))])[0]
            with whole_batch():
                count = rows if own is None else own.size * own.samples
                codes = self.codes_from_prior(count, key)
            tensors.write_whole("bottleneck", {name: codes[of] for name, of in of_prior.items()})
        for critic in self.critics:
            critic.run(tensors, training=training)
        self._has_run = True  # encoder and bottleneck, decoder and modules, critics

    def _write_reconstruction(self, tensors: Tensors) -> None:
        """Writes the likelihood's mean once its parameters exist, so that modules can read it."""
        likelihood = self.objective.likelihood
        if "reconstruction" not in tensors and likelihood.mean_reads() <= tensors.keys():
            tensors.write("likelihood", likelihood.reconstructions(tensors))

    # What a trained model is used for.

    def posterior(self, data: tf.Tensor | Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns what the encoder writes, usually `z_mean` and `z_log_var` `[batch, latent]`."""
        tensors = self._given(data)
        given = set(tensors)
        self._encoded(tensors)
        return {name: tensor for name, tensor in tensors.items() if name not in given}

    def _given(self, data: Any) -> Tensors:
        """Returns data to be looked at; raises ValueError if values are not finite."""
        tensors = self._start(data)
        refuse_non_finite(tensors)
        return tensors

    def _encoded(self, tensors: Tensors) -> Tensors:
        call_module("encoder", self.encoder, tensors, training=False, only_input="inputs")
        return tensors

    def decode(self, z: Codes, **tensors: tf.Tensor) -> tf.Tensor:
        """Returns the mean of p(x|z) in data space, `[rows, ...]`.

        A decoder that reads `targets` makes a draw from p(x|z) instead, by its method `sample`.

        Args:
            z: codes, `[rows, latent]` or of another shape; by name if there are several latents.
            tensors: further named tensors that decoder or modules read, for example `labels`.

        Raises:
            ValueError: a latent is missing.
        """
        return self._decode(z, tensors)

    def draw(self, z: Codes, *, seed: int = 0, **tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns a draw from p(x|z) for each code, by the name of its array, usually `targets`.

        Args:
            z, tensors: as for `decode`.
            seed: the same seed gives the same draws.

        Raises:
            ValueError: a latent is missing.
            TypeError: the likelihood does not define `sample`.
        """
        key = evaluation_key(seed, 0)
        if self._sampling_decoder is not None:
            return {"targets": self._decode(z, tensors, key)}
        likelihood = self.objective.likelihood
        written = {
            name
            for each in likelihood.factors
            for name in each.reads() - {each.target, each.observed}
        }
        found = self._tensors({**self.code_layout.named("draw(z)", z), **tensors}, key)
        self._run_decoder(found, training=False, until=written)
        return likelihood.samples(found)

    @property
    def _sampling_decoder(self) -> Any:
        """The decoder if it reads targets and makes data by its own `sample`, otherwise None."""
        decoder = self.decoder.network if isinstance(self.decoder, Named) else self.decoder
        return decoder if getattr(decoder, "sample", None) is not None else None

    def _decode(
        self, z: Codes, tensors: Mapping[str, tf.Tensor], seed: tf.Tensor | None = None
    ) -> tf.Tensor:
        codes = self.code_layout.named("decode(z)", z)
        return self._decoded(self._tensors({**codes, **tensors}, seed))

    def _decoded(self, tensors: Tensors) -> tf.Tensor:
        if (decoder := self._sampling_decoder) is not None:
            with graph_scope("decoder"):
                bound = bind("decoder's sample", decoder.sample, tensors, key=_SAMPLE)
                values = decoder.sample(**bound)
            if not tf.is_tensor(values):
                raise TypeError(
                    f"{type(decoder).__name__}.sample returned {type(values).__name__}; it must "
                    "return values in data space, [rows, ...]."
                )
            return values
        # Only what the mean needs: a later module may read targets, which codes do not have.
        self._run_decoder(tensors, training=False, until={"reconstruction"})
        return tensors.tap("user", "reconstruction")

    def reconstruct(self, data: tf.Tensor | Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Returns the mean of p(x|z) for the codes without noise, shaped as the data.

        A decoder that reads `targets` makes a draw from p(x|z) instead, by its method `sample`.
        """
        tensors = self._encoded(self._given(data))
        tensors.write("bottleneck", self.codes_without_noise(tensors))
        del tensors["targets"]  # which a decoder would only have to copy
        return self._decoded(tensors)

    def log_likelihood(self, tensors: Mapping[str, tf.Tensor], z: Codes) -> tf.Tensor:
        """Returns log p(x|z), `[rows]`, nats, of data under the given codes.

        Args:
            tensors: of the data, as `infer` returns them; a decoder may read more of them than z.
            z: a code for each example, which replaces theirs; by name if there are several latents.
        """
        return -self.objective.likelihood(self.decoded_for_likelihood(tensors, z))

    def decoded_for_likelihood(self, tensors: Mapping[str, tf.Tensor], z: Codes) -> Tensors:
        """Returns the named tensors that log p(x|z) is computed from.

        Runs the decoder, and only those modules that `log_likelihood` needs.

        Args:
            tensors, z: as for `log_likelihood`.
        """
        found = Tensors({**tensors, **self.code_layout.named("log_likelihood(..., z)", z)})
        self._run_decoder(found, training=False, until=self.objective.likelihood.reads())
        return found

    def encode(self, data: tf.Tensor | Mapping[str, tf.Tensor]) -> Any:
        """Returns the codes without noise, usually posterior means, `[batch, latent]`.

        They have the shape of the latent, and are a dictionary by name if there are several;
        `code_layout.flatten` makes columns of them.
        """
        return self.code_layout.given(self.codes_without_noise(self._encoded(self._given(data))))

    def codes_without_noise(self, tensors: Tensors) -> dict[str, tf.Tensor]:
        """Returns the codes without noise, and what comes with them for the decoder, by name.

        Args:
            tensors: of data and encoder, as `infer` returns them.

        Raises:
            ValueError: a latent is missing or has another shape than the bottleneck declares.
        """
        center = self.bottleneck.center
        codes = center(**bind("bottleneck", center, tensors))
        return self.code_layout.checked(f"{type(self.bottleneck).__name__}.center", codes)

    def codes_from_prior(
        self, count: int | tf.Tensor, key: Any, prior: Prior | None = None
    ) -> dict[str, tf.Tensor]:
        """Returns codes `[count, ...]` from the prior, and what comes with them, by name.

        Args:
            count: number of codes.
            key: a stateless key, `[2]`.
            prior: of `fit_prior`; by default that of the bottleneck.

        Raises:
            ValueError: there is no prior, it lacks a latent or has another shape, or it is not
                fitted or is of other codes.
        """
        key = tf.convert_to_tensor(key)
        if prior is None:
            giver = f"{type(self.bottleneck).__name__}.sample_prior"
            codes = self.bottleneck.sample_prior(count, key)
        else:
            refuse_unfitted(prior, self.bottleneck)
            giver = f"{type(prior).__name__}.sample"
            codes = self.bottleneck.codes_of_values(prior.sample(count, key))
        return self.code_layout.checked(giver, codes)

    def prior_values(self, tensors: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Returns what a prior of `fit_prior` is a distribution of, `[rows, ...]`.

        That is the code of the only latent, columns of all of several, or what the bottleneck makes
        of them (`Bottleneck.values_of_codes`).

        Args:
            tensors: of a forward pass, as `infer` returns them.
        """
        return self.bottleneck.values_of_codes(self.code_layout.given(tensors))

    def sample(
        self, count: int, /, *, prior: Prior | None = None, seed: int = 0, **tensors: tf.Tensor
    ) -> tf.Tensor:
        """Returns `[count, ...]`: the means of p(x|z) for codes from the prior.

        A decoder that reads `targets` makes draws from p(x|z) instead, by its method `sample`.

        Args:
            count: number of samples.
            prior: one that `fit_prior` has fitted; by default that of the bottleneck.
            seed: the same seed gives the same samples.
            tensors: as for `decode`.

        Raises:
            ValueError: `count` is not an integer or below 0, the bottleneck has no prior, or the
                prior is not fitted or is of other codes.
        """
        if not tf.is_tensor(count):
            count = checked_integer("count", count, 0)
        codes = self.codes_from_prior(count, [seed, 0], prior)
        return self._decode(codes, tensors, evaluation_key(seed, 0))

    def call(self, inputs: Any, training: bool = False) -> tf.Tensor:
        """Returns `reconstruct(inputs)`; so does `predict`."""
        return self.reconstruct(inputs)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Keras' `predict`: `reconstruct`, batch by batch.

        Raises:
            ValueError: the data do not suit the likelihood.
        """
        refuse_unsuitable_data(self.objective.likelihood, x, known=self._input_specs)
        return super().predict(x, *args, **kwargs)

    # What it reads and is made of.

    @property
    def code_layout(self) -> CodeLayout:
        """Names and shapes of the latents, and the columns that their values are shown in."""
        return CodeLayout.of(self.bottleneck)

    @property
    def data_names(self) -> tuple[str, ...]:
        """Names of the data that this model has seen, without `inputs`."""
        return tuple(name for name in self._input_specs if name != "inputs")

    def data_read(self, data: Mapping[str, tf.Tensor]) -> tuple[str, ...]:
        """Returns which names of the data encoder, bottleneck, decoder, terms and critics read.

        They are found by a forward pass, which creates every variable. `inputs` are not among them.
        """
        tensors, _ = self.report(data)
        read = tuple(name for name in data if name in tensors.read and name != "inputs")
        # What nobody reads need not be there when the model is saved, loaded and exported.
        kept = ("inputs", *read)
        self._input_specs = {name: self._input_specs[name] for name in kept}
        return read

    def networks(self) -> dict[str, Any]:
        """Returns the networks by role, those of critics among them."""
        return {
            "encoder": self.encoder,
            "bottleneck": self.bottleneck,
            "decoder": self.decoder,
            "modules": list(self.further_modules),
            "critics": [critic.layer for critic in self.critics],
        }

    def networks_by_row(self) -> list[tuple[str, Any, str | None]]:
        """Returns the networks of the forward pass in their order: role, network, only input.

        Critics are not among them: they are given the whole batch.
        """
        latent = self.code_layout.only or "z"
        return [
            ("encoder", self.encoder, "inputs"),
            ("bottleneck", self.bottleneck, None),
            ("decoder", self.decoder, latent),
            *((f"module {index}", each, None) for index, each in enumerate(self.further_modules)),
        ]

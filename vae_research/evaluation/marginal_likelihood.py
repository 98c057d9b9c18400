"""Bounds of log p(x) by annealed importance sampling and bidirectional Monte Carlo."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vae_research.arguments import checked_integer, checked_seed
from vae_research.evaluation import annealing, importance
from vae_research.evaluation.annealing import Chains, Plan
from vae_research.evaluation.annealing_state import AnnealingState
from vae_research.evaluation.estimates import Estimate, named_arrays
from vae_research.evaluation.simulation import Simulated, checked_prior, refuse_other_latents
from vae_research.model import VAE
from vae_research.priors.prior import Prior
from vae_research.randomness import evaluation_key, fold_in
from vae_research.serialization import layers_of
from vae_research.state import model_variables, sha256
from vae_research.suitability import refuse_unsuitable_data
from vae_research.tensors import repeat_rows

# The most values that a tensor in data space may have: 4 MB, and as much for its gradient.
_VALUES_AT_ONCE = 2**20

# Temperatures per compiled call. After each call, signals are handled and the state is saved.
_TEMPERATURES_PER_CALL = 10

# The preliminary run has a tenth of the temperatures of the real one, and at least 50.
_SHARE_OF_PRELIMINARY, _LEAST_PRELIMINARY = 10, 50
_FIRST_LOG_STEP_SIZE = math.log(0.1)

_PRELIMINARY, _FORWARD, _REVERSE = "preliminary", "forward", "reverse"


def annealed_importance_sampling(
    model: VAE,
    data: np.ndarray | Mapping[str, np.ndarray],
    *,
    chains: int = 16,
    temperatures: int = 1000,
    leapfrog_steps: int = 10,
    seed: int | None = None,
    prior: Prior | None = None,
    state: str | Path | None = None,
    jit_compile: bool = False,
    verbose: int = 0,
    between_calls: Callable[[], None] | None = None,
) -> dict[str, Estimate]:
    """Returns a stochastic lower bound of log p(x), which more temperatures and chains tighten.

    Chains of each example move from the prior to the posterior by Hamiltonian transitions, which
    a Metropolis step corrects. Their step sizes are found for each example in a preliminary run
    with a tenth of the temperatures, and are fixed after it. The encoder is not used. Wu et al.
    2017 (arXiv:1611.04273), section 2.

    - `lower_bound`: the logarithm of the mean weight, nats. Its `monte_carlo_error` is the part of
      the standard error that other chains would change.
    - `effective_sample_size` of the chains, from 1 to `chains`.
    - `acceptance_rate` of the transitions.

    Each has the `values` of the examples. The figures do not depend on interruptions; with XLA they
    differ by rounding only.

    Args:
        model: a VAE with a single latent of real numbers whose prior has a density; its variables
            exist. The decoder reads the code and data.
        data: `[count, ...]` scaled as in training, or a dictionary of such arrays.
        chains: number of chains for each example.
        temperatures: number of transitions in a chain.
        leapfrog_steps: number of steps in a transition; each needs a gradient of the decoder.
        seed: of all noise, 0 to 2**32 - 1; by default that of the model.
        prior: a prior from `fit_prior`; by default that of the bottleneck.
        state: the file that the state is saved to after every tenth temperature. If it exists, the
            evaluation is resumed, or its figures are returned if it was complete.
        jit_compile: compile with XLA.
        verbose: 1 shows a progress bar.
        between_calls: called between compiled calls; it may raise to end the evaluation.

    Raises:
        ValueError: an argument is not valid, there are no data or they do not suit the likelihood,
            the model does not have such a latent, its p(x|z) depends on noise or on further
            latents, or weights are not finite.
        CheckpointError: the state is damaged, or belongs to another model, other data or settings.
    """
    found = _Annealing(
        model, data, None, chains, temperatures, leapfrog_steps, seed, prior, jit_compile
    )
    return found.figures(AnnealingState(state, found.identity), verbose, between_calls)


def bidirectional_monte_carlo(
    model: VAE,
    simulated: Simulated,
    *,
    chains: int = 16,
    temperatures: int = 1000,
    leapfrog_steps: int = 10,
    seed: int | None = None,
    prior: Prior | None = None,
    state: str | Path | None = None,
    jit_compile: bool = False,
    verbose: int = 0,
    between_calls: Callable[[], None] | None = None,
) -> dict[str, Estimate]:
    """Returns stochastic lower and upper bounds of log p(x) of examples that the model has made.

    The chains of `annealed_importance_sampling` give the lower bound. Reverse chains give the upper
    one: they begin at the codes that the examples were made from, and move backward through the
    same transitions.
    Grosse et al. 2015 (arXiv:1511.02543), section 3; Wu et al. 2017 (arXiv:1611.04273), section 4.

    The figures are those of `annealed_importance_sampling`; `upper_bound`, minus the logarithm of
    the mean of one over the weight; `gap`, the upper minus the lower bound of each example;
    `effective_sample_size_reverse` and `acceptance_rate_reverse`. All reverse chains of an example
    begin at the same code, so their spread does not include that of codes: the upper bound has no
    `monte_carlo_error`, and `effective_sample_size_reverse` describes chains from this code only.

    Args:
        model: as for `annealed_importance_sampling`.
        simulated: made by `simulate` with the same model and prior. Only then are the codes exact
            samples of the posterior.
        chains, temperatures, leapfrog_steps, seed: as for `annealed_importance_sampling`.
        prior, state, jit_compile, verbose, between_calls: as there.

    Raises:
        ValueError, CheckpointError: as `annealed_importance_sampling`.
    """
    found = _Annealing(
        model,
        simulated.data,
        simulated.z,
        chains,
        temperatures,
        leapfrog_steps,
        seed,
        prior,
        jit_compile,
    )
    return found.figures(AnnealingState(state, found.identity), verbose, between_calls)


class _Annealing:
    """One evaluation: what is annealed, and the settings.

    Args:
        model, data, chains, temperatures, leapfrog_steps, seed, prior, jit_compile: as for
            `annealed_importance_sampling`.
        z: the codes that the data were made from, or None for the lower bound only.
    """

    def __init__(
        self,
        model: VAE,
        data: Any,
        z: np.ndarray | None,
        chains: int,
        temperatures: int,
        leapfrog_steps: int,
        seed: int | None,
        prior: Prior | None,
        jit_compile: bool,
    ) -> None:
        self._model, self._prior = model, checked_prior(model, prior)
        self._data, self._z = named_arrays("annealed_importance_sampling", data), z
        likelihood = model.objective.likelihood
        refuse_unsuitable_data(likelihood, self._data)
        self._chains = checked_integer("chains", chains, 1)
        self._temperatures = checked_integer("temperatures", temperatures, 1)
        self._steps = checked_integer("leapfrog_steps", leapfrog_steps, 1)
        self._seed = checked_seed(model.seed if seed is None else seed)
        self._count = len(self._data["inputs"])
        if z is not None and len(z) != self._count:
            raise ValueError(f"There are {self._count} examples and codes of {len(z)}.")
        first = {name: tf.convert_to_tensor(values[:1]) for name, values in self._data.items()}
        code = self._prior.sample(1, evaluation_key(self._seed, 0))
        refuse_other_latents(model, self._given(first), code)
        values = math.prod(self._data["inputs"].shape[1:])
        most = max(1, _VALUES_AT_ONCE // (values * self._chains))
        self._batches = [
            each.tolist() for each in np.array_split(range(self._count), -(-self._count // most))
        ]
        compiled = functools.partial(tf.function, jit_compile=jit_compile, autograph=False)
        self._start = compiled(self._start_chains)
        self._anneal = compiled(self._anneal_chains)

    @property
    def identity(self) -> str:
        """A checksum of everything that the figures depend on."""
        settings = (self._chains, self._temperatures, self._steps, self._seed)
        model = self._model
        layers = layers_of([self._prior, model.decoder, *model.further_modules])
        parts = repr(model.objective.likelihood), model.step, [_description(x) for x in layers]
        digest = hashlib.sha256(repr(settings + parts).encode())
        digest.update(sha256([*model_variables(model), *self._prior.variables]).encode())
        arrays = dict(sorted(self._data.items())) | ({} if self._z is None else {"z": self._z})
        for name, values in arrays.items():
            digest.update(f"{name} {values.shape} {values.dtype}".encode())
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()

    def figures(
        self, memory: AnnealingState, verbose: int, between_calls: Callable[[], None] | None
    ) -> dict[str, Estimate]:
        """Runs what the state does not have yet, and returns all figures."""
        plans = {
            _PRELIMINARY: annealing.sigmoidal_temperatures(
                max(self._temperatures // _SHARE_OF_PRELIMINARY, _LEAST_PRELIMINARY)
            ),
            _FORWARD: annealing.sigmoidal_temperatures(self._temperatures),
        }
        if self._z is not None:
            plans[_REVERSE] = plans[_FORWARD]
        total = len(self._batches) * sum(len(each) - 1 for each in plans.values())
        # Where output goes to a file, every update of the bar is a line.
        interval = 0.5 if sys.stdout.isatty() else 60.0
        bar = keras.utils.Progbar(
            total, verbose=verbose, unit_name="temperature", interval=interval
        )

        def advance(temperatures: int) -> None:
            bar.add(temperatures)
            if between_calls is not None:
                between_calls()

        for number, rows in enumerate(self._batches):
            sizes = None
            for phase, temperatures in plans.items():
                name = f"{number}/{phase}"
                if name not in memory.arrays:
                    self._run(memory, name, phase, rows, temperatures, sizes, advance)
                else:
                    advance(len(temperatures) - 1)
                if phase == _PRELIMINARY:
                    to = plans[_FORWARD][1:]
                    sizes = _interpolated(to, temperatures[1:], memory.arrays[name])
        found = {
            phase: np.concatenate(
                [memory.arrays[f"{number}/{phase}"] for number in range(len(self._batches))], axis=1
            )
            for phase in plans
            if phase != _PRELIMINARY
        }
        return self._estimates(found)

    def _run(
        self,
        memory: AnnealingState,
        name: str,
        phase: str,
        rows: list[int],
        temperatures: np.ndarray,
        sizes: np.ndarray | None,
        advance: Callable[[int], None],
    ) -> None:
        """Runs the chains of a batch through all temperatures, and keeps the result as `name`.

        The result is the log-weights and acceptance rates, `[2, images, chains]`. That of the
        preliminary run is the logarithms of the step sizes, `[temperatures, images]`.
        """
        data = {key: tf.constant(values[rows]) for key, values in self._data.items()}
        place = evaluation_key(self._seed, rows[0])
        key = fold_in(place, f"annealing, {phase}")
        adapts, length = sizes is None, len(temperatures) - 1
        if sizes is None:
            sizes = np.full([length, len(rows)], _FIRST_LOG_STEP_SIZE, np.float32)
        adaptation = tf.constant(annealing.ADAPTATION if adapts else 0.0)
        make = annealing.reverse_plan if phase == _REVERSE else annealing.forward_plan
        plan = make(temperatures, sizes)
        found = np.zeros([length, len(rows)], np.float32)
        resumed = memory.running(name)
        if resumed is None:
            position, chains = 0, self._start(self._first_codes(phase, rows, place), data)
        else:
            position, chains, found = resumed
        advance(position)
        while position < length:
            count = min(_TEMPERATURES_PER_CALL, length - position)
            part = plan.part(position, _TEMPERATURES_PER_CALL)
            given = chains, part, tf.constant(count), key, adaptation, data
            chains, used = self._anneal(*given)
            found[position : position + count] = used[:count]
            position += count
            memory.save_running(name, position, chains, found)
            advance(count)
        if not adapts:
            each = [chains.log_weight.numpy(), chains.acceptance.numpy() / length]
            found = np.reshape(each, [2, len(rows), self._chains])
        memory.finish(name, found)

    def _first_codes(self, phase: str, rows: list[int], place: tf.Tensor) -> tf.Tensor:
        """Returns the codes with which chains begin, `[images * chains, size]`."""
        if phase == _REVERSE:
            assert self._z is not None
            z = np.repeat(self._z[rows], self._chains, axis=0)
        else:
            key = fold_in(place, f"first codes, {phase}")
            z = self._prior.sample(len(rows) * self._chains, key)
        return self._model.code_layout.flatten(tf.convert_to_tensor(z))

    def _densities(self, data: Mapping[str, tf.Tensor]) -> tuple[annealing.LogDensity, ...]:
        """Returns log p(z) and log p(x|z) as functions of codes `[images * chains, size]`."""
        model = self._model
        given = self._given(
            {name: repeat_rows(values, self._chains) for name, values in data.items()}
        )
        unflatten = model.code_layout.unflatten
        return (
            lambda z: self._prior.log_prob(unflatten(z)),
            lambda z: model.log_likelihood(given, unflatten(z)),
        )

    def _given(self, data: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns what the decoder may read beside the code, by name."""
        step = tf.cast(tf.convert_to_tensor(self._model.step_counter), tf.float32)
        return {
            "targets": data["inputs"],
            **data,
            "step": step,
            "seed": evaluation_key(self._seed, 0),
        }

    def _start_chains(self, z: tf.Tensor, data: Mapping[str, tf.Tensor]) -> Chains:
        images = z.shape[0] // self._chains
        return annealing.start(z, images, *self._densities(data))

    def _anneal_chains(
        self,
        chains: Chains,
        plan: Plan,
        count: tf.Tensor,
        key: tf.Tensor,
        adaptation: tf.Tensor,
        data: Mapping[str, tf.Tensor],
    ) -> tuple[Chains, tf.Tensor]:
        given = chains, plan, count, self._steps, key, adaptation
        return annealing.anneal(*given, *self._densities(data))

    def _estimates(self, found: Mapping[str, np.ndarray]) -> dict[str, Estimate]:
        """Returns the figures of `[2, examples, chains]`, log-weights and acceptance rates."""
        log_weights, accepted = found[_FORWARD]
        figures = {
            "lower_bound": dataclasses.replace(
                _bound(log_weights, 1.0), monte_carlo_error=_monte_carlo_error(log_weights)
            ),
            "effective_sample_size": estimate_of(importance.effective_sample_size(log_weights)),
            "acceptance_rate": estimate_of(accepted.mean(axis=1)),
        }
        if _REVERSE not in found:
            return figures
        log_weights, accepted = found[_REVERSE]
        upper, lower = _bound(log_weights, -1.0), figures["lower_bound"]
        assert upper.values is not None and lower.values is not None
        return figures | {
            "upper_bound": upper,
            "gap": estimate_of(upper.values - lower.values),
            "effective_sample_size_reverse": estimate_of(
                importance.effective_sample_size(-log_weights)
            ),
            "acceptance_rate_reverse": estimate_of(accepted.mean(axis=1)),
        }


def _description(layer: keras.layers.Layer) -> tuple[str, Any]:
    """Returns the class and settings of a layer, without those of its parts."""
    kind = type(layer).__qualname__
    try:
        return kind, None if isinstance(layer, keras.Model) else _without_names(layer.get_config())
    except NotImplementedError:  # raised by Keras for a layer without get_config
        return kind, None


def _without_names(config: Any) -> Any:
    """Returns settings without names of layers: Keras numbers these in the order of creation."""
    if isinstance(config, Mapping):
        is_layer = "trainable" in config
        return {
            key: _without_names(value)
            for key, value in config.items()
            if not (is_layer and key == "name")
        }
    if isinstance(config, (list, tuple)):
        return [_without_names(value) for value in config]
    return config


def _interpolated(to: np.ndarray, at: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns values `[at, images]` at other temperatures, `[to, images]` float32."""
    return np.stack([np.interp(to, at, each) for each in values.T], axis=1).astype(np.float32)


def estimate_of(values: np.ndarray) -> Estimate:
    """Returns the mean of `[examples]` values, with these."""
    return dataclasses.replace(Estimate.mean_of(values), values=values)


def _bound(log_weights: np.ndarray, sign: float) -> Estimate:
    """Returns the bound from weights `[examples, chains]`, or with sign -1 from one over them."""
    broken = np.isnan(log_weights).any(axis=1)
    if broken.any():
        raise ValueError(
            f"The weights of {broken.sum()} of {len(log_weights)} examples are not finite: log "
            "p(x|z) is not finite at codes of the prior. Bound what the decoder writes."
        )
    return estimate_of(sign * importance.log_mean_weight(sign * log_weights))


def _monte_carlo_error(log_weights: np.ndarray) -> float | None:
    """Returns the error of the mean that comes from the chains `[examples, chains]`."""
    variance = importance.monte_carlo_variance(log_weights).sum()
    return math.sqrt(variance) / len(log_weights) if math.isfinite(variance) else None

"""Figures of a trained model on held-out data, each with its standard error and count."""

from __future__ import annotations

import dataclasses
import functools
import math
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vae_research.arguments import checked_integer, checked_seed
from vae_research.codes import CodeLayout
from vae_research.data.dataset import Data
from vae_research.distribution import in_parallel
from vae_research.evaluation import FITTED, importance
from vae_research.levels import WITHOUT_SUFFIX, levels
from vae_research.model import VAE
from vae_research.objective import Objective, log_prior_ratio
from vae_research.priors.fitted import refuse_unfitted
from vae_research.priors.prior import Prior
from vae_research.randomness import evaluation_key
from vae_research.suitability import refuse_unsuitable_data
from vae_research.tensors import SCALARS, Tensors

# How many values one tensor in data space may have in a call: 8 MB, so that temporaries fit in the
# processor's cache, and a convolutional decoder needs at most a few hundred megabytes. The noise of
# z is drawn for as many rows at once, whatever is decoded at once.
VALUES_PER_CALL = 2**21

# Burda et al. 2016 (arXiv:1509.00519), section 5.2: a unit is active if the variance of its
# posterior mean over the data is above this.
ACTIVE_VARIANCE = 0.01

# Names of what a pass returns besides the values of terms, whose names have no slash.
_CODE, _LOG_WEIGHT = "pass/code", "pass/log_weight"
# Log-weights that are kept until the figures of their examples are computed: 32 MB.
_LOG_WEIGHTS_KEPT = 2**23
# What is known of the weights of an example, beside its figures.
_VARIANCE, _BY_SAMPLES = "weights/variance", "weights/by_samples"

# Names of the parts of the ELBO among the figures, whatever the terms are called.
_ELBO_PARTS = ("reconstruction", "kl")


@dataclasses.dataclass(frozen=True)
class OfSamples:
    """An importance-weighted estimate from so many samples of each example, nats.

    It is the mean over disjoint groups of the samples that there are, and over examples.

    Attributes:
        samples: in a group.
        value, standard_error: of the estimate.
        fall, fall_error: by how much it is lower than the one from fewer samples before it, with
            the standard error of the paired difference; None of the first.
    """

    samples: int
    value: float
    standard_error: float | None
    fall: float | None = None
    fall_error: float | None = None


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over examples (or a count of units), its standard error, and the number of examples.

    The standard error of a single example is None.

    Attributes:
        values: float32 `[count]`, the value of each example in the order of the data, if
            `estimate` was asked for them, otherwise None.
        monte_carlo_error: of an importance-weighted estimate, the part of the standard error that
            other samples of z would change; None of a single sample.
        by_samples: of an importance-weighted estimate, what fewer samples give, and all of them.
    """

    value: float
    standard_error: float | None
    count: int
    values: np.ndarray | None = dataclasses.field(default=None, repr=False, compare=False)
    monte_carlo_error: float | None = dataclasses.field(default=None, repr=False)
    by_samples: tuple[OfSamples, ...] = dataclasses.field(default=(), repr=False)

    @classmethod
    def mean_of(cls, values: np.ndarray) -> Estimate:
        """Returns the mean of `[count]` values with the standard error of that mean."""
        values = np.asarray(values, np.float64)
        with np.errstate(invalid="ignore"):  # one may be infinite, and the mean says so
            spread = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
            return cls(float(values.mean()), spread, len(values))

    def as_dict(self) -> dict[str, Any]:
        """Returns value, standard error and count by name, and what else there is, for JSON."""
        found = {"value": self.value, "standard_error": self.standard_error, "count": self.count}
        if not self.by_samples:
            return found
        points = [dataclasses.asdict(point) for point in self.by_samples]
        return found | {"monte_carlo_error": self.monte_carlo_error, "by_samples": points}


def estimate_arrays(
    model: VAE,
    data: np.ndarray | Mapping[str, np.ndarray],
    *,
    num_samples: int = 200,
    seed: int | None = None,
    prior: Prior | None = None,
    rows_per_call: int | None = None,
    per_example: bool = False,
    jit_compile: bool = False,
    verbose: int = 0,
    between_calls: Callable[[], None] | None = None,
) -> dict[str, Estimate]:
    """Returns the figures of `data`, in nats per example unless stated otherwise.

    - `elbo`: log-likelihood minus KL divergence, mean over `num_samples` samples of z.
    - `negative_log_likelihood`: the importance-weighted estimate of -log p(x) from the same
      samples. It is an upper bound in expectation, tighter with more samples. Burda et al. 2016
      (arXiv:1509.00519), equation 8.
    - `effective_sample_size` of the weights, from 1 to `num_samples`, if that is more.
    - `large_pareto_k`, the share of examples whose weights have so heavy a tail that their value is
      not to be trusted: the k of the tail is above `min(1 - 1 / log10(num_samples), 0.7)`. Vehtari
      et al. 2024 (arXiv:1507.02646). Omitted below 25 samples, which have no tail.
    - `importance_weighted_bound`, if the model trains with such a bound of K samples: the bound of
      log p(x) with all weights 1, mean over groups of K samples. Omitted if `num_samples` is below
      K.
    - `reconstruction` and `kl`, the two parts of the ELBO, `kl_NAME` of each of several latents,
      and every other term with a value per example, unweighted, by its name.
    - `active_units`: latent dimensions whose posterior mean has a variance above 0.01 over the
      data.
    - of a `prior` that has a density: `log_density_fitted_prior` of the codes and, if they have a
      posterior, `elbo_fitted_prior`, `kl_fitted_prior` and `negative_log_likelihood_fitted_prior`
      with its `effective_sample_size_fitted_prior` and so on, those of the model whose prior it
      would be, from the same samples. Further latents, whose densities a module writes, keep their
      own prior.

    A model without a posterior has only the figures of its terms, and that density.

    Args:
        model: a VAE whose variables exist.
        data: `[count, ...]` scaled as in training, or a dictionary of such arrays.
        num_samples: samples of z for each example.
        seed: of the noise of all samples, 0 to 2**32 - 1; by default that of the model. Models that
            are compared by their examples (`paired_difference`) have the same noise with one seed.
        prior: one that `fit_prior` has fitted to the model.
        rows_per_call: examples times samples that are decoded at once, which bounds the memory; by
            default, and at most, about two million values in data space. The samples of z do not
            depend on it: figures agree to the rounding of float32. A model whose decoder, modules
            or critics read `seed` decodes the default.
        per_example: keep the value of each example (`Estimate.values`), of which the value is the
            mean; not of `active_units`.
        jit_compile: compile with XLA, which takes about a second for each model and size of the
            data.
        verbose: 1 shows a progress bar.
        between_calls: called before each compiled call; it may raise to end the evaluation.

    Raises:
        ValueError: `num_samples` or `rows_per_call` is not a positive integer, `seed` is no seed,
            there are no data, the arrays differ in length or do not suit the likelihood, or the
            prior is not fitted or is of other codes.
    """
    if prior is not None:
        refuse_unfitted(prior, model.bottleneck)
    data = named_arrays("estimate", data)
    count = len(data["inputs"])
    refuse_unsuitable_data(model.objective.likelihood, data)
    num_samples = checked_integer("num_samples", num_samples, 1)
    seed = checked_seed(model.seed if seed is None else seed)
    drawn = max(1, VALUES_PER_CALL // math.prod(data["inputs"].shape[1:]))
    decoded = drawn if rows_per_call is None else checked_integer("rows_per_call", rows_per_call, 1)
    samples = _parts(num_samples, at_most=drawn)
    examples = max(_parts(count, at_most=max(1, drawn // max(samples))))
    call = _compiled_pass(model, prior, jit_compile)
    bar = keras.utils.Progbar(count, verbose=verbose, unit_name="example")
    found = _Values(model.objective, num_samples)

    def values_from(start: int) -> dict[str, np.ndarray]:
        batch = {
            name: tf.constant(_padded(values[start : start + examples], examples))
            for name, values in data.items()
        }
        parts = []
        for index, size in enumerate(samples):
            if between_calls is not None:
                between_calls()
            key = evaluation_key(seed, start * len(samples) + index)
            values = call(batch, key, size, decoded)
            parts.append({name: part.numpy() for name, part in values.items()})
        joined = _join(parts, samples)
        return {name: part[: count - start] for name, part in joined.items()}

    for start, values in in_parallel(model.strategy, values_from, range(0, count, examples)):
        found.add(values)
        bar.update(min(start + examples, count))
    return found.figures(per_example)


def named_arrays(user: str, data: Any) -> dict[str, Any]:
    """Returns arrays of examples by name, among them `inputs`.

    Args:
        user: what to call the user in a message.
        data: `[count, ...]`, which are the inputs, or a dictionary of such arrays.

    Raises:
        TypeError: it is a whole data set.
        ValueError: there are no inputs, no examples, or arrays of different length.
    """
    if isinstance(data, Data):
        raise TypeError(f"{user} is of one split, for example data.test; got all of {data.name}.")
    data = dict(data) if isinstance(data, Mapping) else {"inputs": data}
    if "inputs" not in data:
        raise ValueError(f"The data have no 'inputs'; got {', '.join(sorted(data)) or 'nothing'}.")
    lengths = {name: len(values) for name, values in data.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"The data differ in their number of examples: {lengths}.")
    if not lengths["inputs"]:
        raise ValueError(f"{user} needs at least one example, got none.")
    return data


def active_units(codes: np.ndarray) -> Estimate:
    """Returns the number of latent dimensions whose posterior mean has a variance above 0.01.

    The standard error is `sqrt(sum p (1 - p))`, with p the probability that a dimension is above
    the threshold. It takes dimensions as independent and their variances as normal, with standard
    error `sqrt((m4 - variance^2) / count)` from the fourth central moment m4.

    Args:
        codes: `[count, latent]` posterior means.
    """
    codes = np.asarray(codes, np.float64)
    count = len(codes)
    squared = np.square(codes - codes.mean(axis=0))
    variance = squared.sum(axis=0) / max(count - 1, 1)
    active = int((variance > ACTIVE_VARIANCE).sum())
    if count < 2:
        return Estimate(active, None, count)
    error = np.sqrt(np.maximum(np.square(squared).mean(axis=0) - np.square(variance), 0.0) / count)
    certain = error == 0.0
    distance = (variance - ACTIVE_VARIANCE) / np.where(certain, 1.0, error)
    above = np.array([0.5 * math.erfc(-value / math.sqrt(2.0)) for value in distance])
    above = np.where(certain, variance > ACTIVE_VARIANCE, above)
    return Estimate(active, float(np.sqrt((above * (1.0 - above)).sum())), count)


def _padded(values: np.ndarray, count: int) -> np.ndarray:
    """Repeats the last example up to `count`: another shape would be compiled again."""
    missing = np.repeat(values[-1:], count - len(values), axis=0)
    return np.concatenate([values, missing]) if len(missing) else values


# The function of one call: a batch, a key, a number of samples, and how many rows to decode at once
# to named values per example.
_Pass = Callable[[dict[str, tf.Tensor], tf.Tensor, int, int], dict[str, tf.Tensor]]


@dataclasses.dataclass(frozen=True)
class _Passes:
    """The compiled functions of a model, valid as long as it has the same parts.

    Attributes:
        parts: the objective and the networks that they were compiled from.
        by_jit: the functions, with XLA and without.
    """

    parts: tuple[Any, ...]
    by_jit: dict[bool, _Pass]


# A model is compiled once for all its evaluations. An entry lives as long as the model, which
# nothing in it may refer to.
_PASSES: weakref.WeakKeyDictionary[VAE, _Passes] = weakref.WeakKeyDictionary()


def _compiled_pass(model: VAE, prior: Prior | None, jit_compile: bool) -> _Pass:
    networks = model.encoder, model.bottleneck, model.decoder, *model.further_modules
    parts = model.objective, prior, *networks, *(critic.layer for critic in model.critics)
    kept = _PASSES.get(model)
    if kept is None or kept.parts != parts:
        _PASSES[model] = kept = _Passes(parts, {})
    if jit_compile not in kept.by_jit:
        kept.by_jit[jit_compile] = _new_pass(model, prior, jit_compile)
    return kept.by_jit[jit_compile]


def _new_pass(model: VAE, prior: Prior | None, jit_compile: bool) -> _Pass:
    # The function below must not refer to the model itself, or the model would never be collected.
    held_by_caller = weakref.proxy(model)
    objective = model.objective
    likelihood = objective.likelihood
    # A statistic of the whole batch has no value per example.
    own = [
        term
        for term in objective.terms
        if not term.batch_statistic and term is not likelihood and term.label not in _ELBO_PARTS
    ]

    compiled = functools.partial(
        tf.function, jit_compile=jit_compile, reduce_retracing=True, autograph=False
    )

    def values_of(tensors: Tensors) -> dict[str, tf.Tensor]:
        """Returns one value per sample, from which both the mean and the bound are computed."""
        report = Objective([likelihood, *own])(tensors)
        rows = {term.label: report.values[term.label] for term in own}
        rows["reconstruction"] = report.values[likelihood.label]
        if len(likelihood.factors) > 1:
            rows |= {each.label: report.values[each.label] for each in likelihood.factors}
        if report.elbo is not None:
            rows |= {"elbo": report.elbo, "kl": report.values["kl"]}
            by_latent = [f"kl_{latent}" for latent in levels(tensors)]
            rows |= {name: report.values[name] for name in by_latent if name in report.values}
        log_ratios = {"": log_prior_ratio("bound", tensors)}  # by the end of their figures' names
        if prior is not None and prior.has_density:
            log_prior = prior.log_prob(held_by_caller.prior_values(tensors))
            rows[f"log_density{FITTED}"] = log_prior
            log_ratio = _fitted_log_ratio(log_prior, tensors, held_by_caller.code_layout)
            if log_ratio is not None:
                log_ratios[FITTED] = log_ratio
                rows[f"kl{FITTED}"] = -log_ratio
                rows[f"elbo{FITTED}"] = log_ratio - rows["reconstruction"]
        for suffix, log_ratio in log_ratios.items():
            if log_ratio is not None:
                rows[f"{_LOG_WEIGHT}{suffix}"] = log_ratio - rows["reconstruction"]
        return rows

    def codes(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {_CODE: held_by_caller.code_layout.flatten(held_by_caller.encode(batch))}

    @compiled
    def whole(
        batch: dict[str, tf.Tensor], key: tf.Tensor, num_samples: int
    ) -> dict[str, tf.Tensor]:
        rows = values_of(held_by_caller.forward(batch, seed=key, num_samples=num_samples))
        return _by_example(rows, num_samples) | codes(batch)

    @compiled
    def inferred(
        batch: dict[str, tf.Tensor], key: tf.Tensor, num_samples: int
    ) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        return dict(held_by_caller.infer(batch, seed=key, num_samples=num_samples)), codes(batch)

    draws_again = [False]  # whether something after the bottleneck draws noise

    @compiled
    def decoded(inferred: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        tensors = Tensors(inferred)
        values = values_of(held_by_caller.decode_inferred(tensors))
        draws_again[0] = "seed" in tensors.read
        return values

    def call(
        batch: dict[str, tf.Tensor], key: tf.Tensor, num_samples: int, rows: int
    ) -> dict[str, tf.Tensor]:
        count = len(batch["inputs"]) * num_samples
        if rows >= count or draws_again[0]:
            return whole(batch, key, num_samples)
        tensors, codes_of_batch = inferred(batch, key, num_samples)
        stored = {name: value.numpy() for name, value in tensors.items()}
        size = max(_parts(count, at_most=rows))
        parts = []
        for start in range(0, count, size):
            piece = {
                name: tf.constant(
                    value if name in SCALARS else _padded(value[start : start + size], size)
                )
                for name, value in stored.items()
            }
            parts.append(decoded(piece))
            if draws_again[0]:
                return whole(batch, key, num_samples)
        found = {name: tf.concat([part[name] for part in parts], 0)[:count] for name in parts[0]}
        return _by_example(found, num_samples) | codes_of_batch

    return call


def _by_example(rows: dict[str, tf.Tensor], num_samples: int) -> dict[str, tf.Tensor]:
    """Returns means over samples, and log-weights `[examples, samples]`, of values of rows."""
    samples = {name: tf.reshape(value, [-1, num_samples]) for name, value in rows.items()}
    return {
        name: value if name.startswith(_LOG_WEIGHT) else tf.reduce_mean(value, axis=1)
        for name, value in samples.items()
    }


def _fitted_log_ratio(
    log_prior: tf.Tensor, tensors: Tensors, layout: CodeLayout
) -> tf.Tensor | None:
    """Returns log p(z) - log q(z|x) of all levels, `[rows]`, nats, or None if one lacks a density.

    Args:
        log_prior: that of all latents of the bottleneck together; levels that modules write keep
            the prior that they have.
        tensors: of a forward pass.
        layout: of the bottleneck.
    """
    found = levels(tensors)
    # Names without a suffix are also those of an only latent with another name.
    unnamed = layout.only is not None and layout.only not in found
    latents = [WITHOUT_SUFFIX] if unnamed else list(layout.shapes)
    if any("log_prior" not in found.get(latent, {}) for latent in latents):
        return None
    first, *rest = [found[latent]["log_prior"] for latent in latents]
    zeros = dict.fromkeys(rest, tf.zeros_like(log_prior))
    return log_prior_ratio("bound", Tensors({**tensors, **zeros, first: log_prior}))


def _join(parts: list[dict[str, np.ndarray]], samples: list[int]) -> dict[str, np.ndarray]:
    """Returns one value per example, and all log-weights, from calls with different samples."""
    joined: dict[str, np.ndarray] = {
        name: np.average([part[name] for part in parts], axis=0, weights=samples)
        for name in parts[0]
        if "/" not in name
    }
    for name in parts[0]:
        if name.startswith(_LOG_WEIGHT):
            joined[name] = np.concatenate([part[name] for part in parts], axis=1)
    return joined | {_CODE: parts[0][_CODE]}


class _Values:
    """The values of examples, in the order of the data; log-weights become figures on the way.

    Args:
        objective: of the model.
        num_samples: log-weights of each example.
    """

    def __init__(self, objective: Objective, num_samples: int) -> None:
        self._num_samples = num_samples
        group = objective.num_samples if objective.importance_weighted else num_samples + 1
        self._group = group if group <= num_samples else None
        self._curve = _numbers_of_samples(num_samples)
        self._waiting: list[dict[str, np.ndarray]] = []
        self._done: list[dict[str, np.ndarray]] = []

    def add(self, values: dict[str, np.ndarray]) -> None:
        """Takes the values of further examples, by name."""
        self._waiting.append(values)
        if sum(len(each[_CODE]) for each in self._waiting) * self._num_samples > _LOG_WEIGHTS_KEPT:
            self._use_weights()

    def _use_weights(self) -> None:
        values = _concatenated(self._waiting)
        self._waiting = []
        for name in [name for name in values if name.startswith(_LOG_WEIGHT)]:
            log_weights, suffix = values.pop(name), name.removeprefix(_LOG_WEIGHT)
            values[f"negative_log_likelihood{suffix}"] = -importance.log_mean_weight(log_weights)
            if self._num_samples > 1:
                size = importance.effective_sample_size(log_weights)
                values[f"effective_sample_size{suffix}"] = size
            values[f"{_VARIANCE}{suffix}"] = importance.monte_carlo_variance(log_weights)
            if self._num_samples >= importance.SAMPLES_WITH_A_TAIL:
                largest = importance.largest_reliable_pareto_k(self._num_samples)
                too_large = importance.pareto_k(log_weights) > largest
                values[f"large_pareto_k{suffix}"] = too_large.astype(np.float64)
            for samples in self._curve:
                fewer = -importance.by_samples(log_weights, samples)
                values[f"{_BY_SAMPLES}{suffix}/{samples}"] = fewer
            if not suffix and self._group is not None:
                bound = importance.by_samples(log_weights, self._group)
                values["importance_weighted_bound"] = bound
        self._done.append(values)

    def figures(self, per_example: bool) -> dict[str, Estimate]:
        """Returns the figures of all examples."""
        self._use_weights()
        values = _concatenated(self._done)
        figures = {}
        for name, part in values.items():
            if "/" not in name:
                found = Estimate.mean_of(part.astype(np.float32))
                kept = part.astype(np.float32) if per_example else None
                figures[name] = dataclasses.replace(found, values=kept)
        for name in [name for name in values if name.startswith(_VARIANCE)]:
            suffix = name.removeprefix(_VARIANCE)
            nll = f"negative_log_likelihood{suffix}"
            error = math.sqrt(values[name].sum()) / len(values[name])
            curve = [values[f"{_BY_SAMPLES}{suffix}/{samples}"] for samples in self._curve]
            figures[nll] = dataclasses.replace(
                figures[nll],
                monte_carlo_error=error if math.isfinite(error) else None,
                by_samples=_curve_of(self._curve, curve),
            )
        if "elbo" in figures:
            figures["active_units"] = active_units(values[_CODE])
        return figures


def _concatenated(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _numbers_of_samples(all_samples: int) -> list[int]:
    """Returns of how many samples an estimate is reported beside that of all.

    >>> _numbers_of_samples(200)
    [1, 5, 50, 100, 200]
    """
    fewer = {number for number in (1, 5, 50, 500, 5000) if number < all_samples / 2}
    return sorted(fewer | {max(all_samples // 2, 1), all_samples})


def _curve_of(samples: list[int], values: list[np.ndarray]) -> tuple[OfSamples, ...]:
    points = []
    for index, (number, part) in enumerate(zip(samples, values, strict=True)):
        found = Estimate.mean_of(part)
        point = OfSamples(number, found.value, found.standard_error)
        if index:
            fall = Estimate.mean_of(values[index - 1] - part)
            point = dataclasses.replace(point, fall=fall.value, fall_error=fall.standard_error)
        points.append(point)
    return tuple(points)


def _parts(total: int, at_most: int) -> list[int]:
    """Returns `total` as a sum of nearly equal integers, none above `at_most`.

    >>> _parts(200, at_most=90)
    [67, 67, 66]
    """
    number = -(-total // at_most)
    return [total // number + (index < total % number) for index in range(number)]

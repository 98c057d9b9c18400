"""Figures of a trained model on held-out data, each with its standard error and count."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vae_research.model import VAE
from vae_research.objective import Objective
from vae_research.probability import log_mean_exp

# Values of one tensor in decoded data space that a call may hold: 8 MB, so that the temporaries of
# a call stay near the processor, and a convolutional decoder within a few hundred megabytes.
VALUES_PER_CALL = 2**21

# Burda et al. 2016 (arXiv:1509.00519), section 5.2: a unit is active where the variance of its
# posterior mean over the data is above this.
ACTIVE_VARIANCE = 0.01

# What a pass returns beside the values of terms, whose names have no slash.
_CODE, _LOG_SUM_WEIGHT = "pass/code", "pass/log_sum_weight"
_SUM_OF_BOUNDS, _GROUPS = "pass/sum_of_bounds", "pass/groups"

# By these names the figures have the parts of the ELBO, whatever terms are called.
_ELBO_PARTS = ("reconstruction", "kl")


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over examples (or a count of units), its standard error, and the number of examples.

    The standard error is None where one example says nothing about spread.
    """

    value: float
    standard_error: float | None
    count: int

    @classmethod
    def mean_of(cls, values: np.ndarray) -> Estimate:
        """Returns the mean of `[count]` values with the standard error of that mean."""
        values = np.asarray(values, np.float64)
        spread = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
        return cls(float(values.mean()), spread, len(values))


def estimate(
    model: VAE,
    data: np.ndarray | Mapping[str, np.ndarray],
    *,
    num_samples: int = 200,
    rows_per_call: int | None = None,
    jit_compile: bool = False,
    verbose: int = 0,
    between_calls: Callable[[], None] | None = None,
) -> dict[str, Estimate]:
    """Returns the figures of `data`, in nats per example unless the name says otherwise.

    - `elbo`: log-likelihood minus KL divergence, mean over `num_samples` samples of z.
    - `negative_log_likelihood`: the importance-weighted estimate of -log p(x) from the same
      samples. It is an upper bound in expectation, tighter with more samples. Burda et al. 2016
      (arXiv:1509.00519), equation 8.
    - `importance_weighted_bound`, where the model trains with such a bound of K samples: that of
      log p(x), all weights 1, the mean over the groups of K samples that calls hold whole. It is
      missing where they hold none: `num_samples` or `rows_per_call` is below K.
    - `reconstruction` and `kl`, the two parts of the ELBO, and every other term that has a value
      for one example, unweighted, by its name.
    - `active_units`: latent dimensions whose posterior mean varies over the data by more than 0.01.

    A model without a posterior has its terms alone.

    Args:
        model: a VAE whose variables exist.
        data: `[count, ...]` scaled as in training, or a dictionary of such arrays.
        num_samples: samples of z for each example.
        rows_per_call: examples times samples that are decoded at once, which bounds the memory; by
            default as many as hold about two million values in data space.
        jit_compile: compile with XLA, which takes about a second, once for a model and a size of
            the data.
        verbose: 1 shows a progress bar.
        between_calls: called between the compiled calls, to end an evaluation by an exception.

    Raises:
        ValueError: `num_samples` or `rows_per_call` is below 1, or there are no data, or they
            differ in length.
        TypeError: `num_samples` or `rows_per_call` is no integer.
    """
    data = dict(data) if isinstance(data, Mapping) else {"inputs": data}
    if "inputs" not in data:
        raise ValueError(f"The data have no 'inputs'; got {', '.join(sorted(data))}.")
    count = len(data["inputs"])
    lengths = {name: len(values) for name, values in data.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"The data differ in their number of examples: {lengths}.")
    num_samples = operator.index(num_samples)
    if num_samples < 1 or count < 1:
        raise ValueError(
            f"estimate needs at least one sample and one example; got num_samples={num_samples} "
            f"and {count} examples."
        )
    rows = rows_per_call
    if rows is None:
        rows = max(1, VALUES_PER_CALL // math.prod(data["inputs"].shape[1:]))
    elif operator.index(rows) < 1:
        raise ValueError(f"rows_per_call must be at least 1, got {rows}.")
    samples = _parts(num_samples, at_most=rows)
    examples = max(_parts(count, at_most=max(1, rows // max(samples))))
    call = _compiled_pass(model, jit_compile)
    bar = keras.utils.Progbar(count, verbose=verbose, unit_name="example")
    batches = []
    for start in range(0, count, examples):
        batch = {
            name: tf.constant(_padded(values[start : start + examples], examples))
            for name, values in data.items()
        }
        parts = []
        for index, size in enumerate(samples):
            if between_calls is not None:
                between_calls()
            key = model.evaluation_key(start * len(samples) + index)
            parts.append({name: part.numpy() for name, part in call(batch, key, size).items()})
        joined = _join(parts, samples)
        batches.append({name: part[: count - start] for name, part in joined.items()})
        bar.update(min(start + examples, count))
    values = {name: np.concatenate([part[name] for part in batches]) for name in batches[0]}
    codes = values.pop(_CODE)
    figures = {name: Estimate.mean_of(part) for name, part in values.items()}
    return figures | {"active_units": active_units(codes)} if "elbo" in figures else figures


def active_units(codes: np.ndarray) -> Estimate:
    """Returns the number of latent dimensions whose posterior mean has a variance above 0.01.

    The standard error treats each dimension's variance as normal, with the standard error
    `sqrt((m4 - variance^2) / count)` from its fourth central moment m4, and the dimensions as
    independent: `sqrt(sum p (1 - p))`, where p is the probability of being above the threshold.

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
    """Repeats the last example up to `count`: another shape would be compiled anew."""
    missing = np.repeat(values[-1:], count - len(values), axis=0)
    return np.concatenate([values, missing]) if len(missing) else values


@dataclasses.dataclass(frozen=True)
class Passes:
    """What evaluations have compiled. (No dictionary: of a model's, Keras takes care to save it.)

    Attributes:
        parts: of the model that it was compiled from.
        by_jit: the functions, with XLA and without.
    """

    parts: tuple[Any, ...]
    by_jit: dict[bool, Any]


def _compiled_pass(model: VAE, jit_compile: bool) -> Any:
    """Returns the function of one call; a model keeps it, so that it is compiled once."""
    networks = model.encoder, model.bottleneck, model.decoder, *model.further_modules
    parts = model.objective, *networks
    kept = model.evaluation_passes
    if kept is None or kept.parts != parts:
        model.evaluation_passes = kept = Passes(parts, {})
    if jit_compile not in kept.by_jit:
        kept.by_jit[jit_compile] = _new_pass(model, jit_compile)
    return kept.by_jit[jit_compile]


def _new_pass(model: VAE, jit_compile: bool) -> Any:
    likelihood = model.objective.likelihood
    # A statistic of the whole batch has no value for one example.
    own = [
        term
        for term in model.objective.terms
        if not term.batch_statistic and term is not likelihood and term.label not in _ELBO_PARTS
    ]

    @tf.function(jit_compile=jit_compile, reduce_retracing=True, autograph=False)
    def call(batch: dict[str, tf.Tensor], key: tf.Tensor, num_samples: int) -> dict[str, tf.Tensor]:
        tensors = model.forward(batch, seed=key, num_samples=num_samples)
        # A value for every sample: mean and bound are both of the same likelihoods.
        report = Objective([likelihood, *own])(tensors)
        rows = {term.label: report.values[term.label] for term in own}
        rows["reconstruction"] = report.values[likelihood.label]
        if report.elbo is not None:
            rows |= {"elbo": report.elbo, "kl": report.values["kl"]}
        samples = {name: tf.reshape(value, [-1, num_samples]) for name, value in rows.items()}
        values = {name: tf.reduce_mean(value, axis=1) for name, value in samples.items()}
        if {"log_posterior", "log_prior"} <= tensors.keys():
            log_ratio = tensors["log_prior"] - tensors["log_posterior"]
            log_weight = tf.reshape(log_ratio, [-1, num_samples]) - samples["reconstruction"]
            values[_LOG_SUM_WEIGHT] = tf.reduce_logsumexp(log_weight, axis=1)
            size = model.objective.num_samples
            groups = num_samples // size
            if model.objective.importance_weighted and groups:
                per_group = tf.reshape(log_weight[:, : groups * size], [-1, groups, size])
                bounds = tf.reduce_sum(log_mean_exp(per_group, axis=2), axis=1)
                values |= {_SUM_OF_BOUNDS: bounds, _GROUPS: tf.fill(tf.shape(bounds), groups)}
        return values | {_CODE: model.encode(batch)}

    return call


def _join(parts: list[dict[str, np.ndarray]], samples: list[int]) -> dict[str, np.ndarray]:
    """Returns one value per example from the parts of its samples."""
    joined = {
        name: np.average([part[name] for part in parts], axis=0, weights=samples)
        for name in parts[0]
        if "/" not in name
    }
    if _LOG_SUM_WEIGHT in parts[0]:
        log_sum = np.logaddexp.reduce([part[_LOG_SUM_WEIGHT].astype(np.float64) for part in parts])
        joined["negative_log_likelihood"] = math.log(sum(samples)) - log_sum
    groups = [part for part in parts if _GROUPS in part]
    if groups:
        bounds, counts = (sum(part[key] for part in groups) for key in (_SUM_OF_BOUNDS, _GROUPS))
        joined["importance_weighted_bound"] = bounds / counts
    return joined | {_CODE: parts[0][_CODE]}


def _parts(total: int, at_most: int) -> list[int]:
    """Returns `total` as a sum of nearly equal integers, none above `at_most`.

    >>> _parts(200, at_most=90)
    [67, 67, 66]
    """
    number = -(-total // at_most)
    return [total // number + (index < total % number) for index in range(number)]

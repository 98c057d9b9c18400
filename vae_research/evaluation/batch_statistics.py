"""Statistics of a whole data set, which training estimates from its batches."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from vae_research.arguments import checked_seed
from vae_research.evaluation.estimates import Estimate, named_arrays
from vae_research.losses.term import LossTerm
from vae_research.model import VAE
from vae_research.probability import normal_log_density
from vae_research.randomness import evaluation_key, fold_in
from vae_research.tensors import SCALARS, Tensors

_ROWS_PER_CALL = 500
# Densities of pairs of examples that are in memory at once: 16 MB for each latent dimension.
_PAIRS = 2**22
# Two ways to a sum of a few densities in float32, nats.
_ROUNDING = 1e-2


def statistics_over(
    model: VAE, data: np.ndarray | Mapping[str, np.ndarray], seed: int | None = None
) -> dict[str, Estimate]:
    """Returns the terms with `whole_data_set`, each of all examples together, without an error.

    Args:
        model: a VAE whose variables exist.
        data: `[count, ...]` scaled as in training, or a dictionary of such arrays.
        seed: of the noise, a sample of z for each example; by default that of the model.
    """
    terms = [term for term in model.objective.terms if term.whole_data_set]
    if not terms:
        return {}
    seed = checked_seed(model.seed if seed is None else seed)
    found = _gathered(model, data, lambda tensors: _read_by(terms, tensors), seed)
    count = len(next(iter(found.values())))
    given = {name: tf.constant(values) for name, values in found.items()}
    given["step"] = tf.cast(tf.convert_to_tensor(model.step_counter), tf.float32)
    return {term.label: Estimate(float(term(Tensors(given))), None, count) for term in terms}


def kl_decomposition(
    model: VAE, data: np.ndarray | Mapping[str, np.ndarray], *, seed: int | None = None
) -> dict[str, Estimate]:
    """Returns the three parts of the KL divergence, nats, with q(z) that of all N examples.

    `mutual_information` of x and z, at most log N; `total_correlation` of the dimensions of z; and
    `dimension_wise_kl`, from the prior. They add up to the KL divergence of the same samples. q(z)
    is the mean of q(z|x) over these N examples, and not an estimate from a batch. Chen et al. 2018
    (arXiv:1802.04942), equation 2. It takes time in proportion to N^2.

    Args:
        model: a VAE whose posterior is a normal distribution with independent dimensions.
        data: `[count, ...]` scaled as in training, or a dictionary of such arrays.
        seed: of the noise, a sample of z for each example; by default that of the model.

    Raises:
        ValueError: the posterior is another one.
    """
    seed = checked_seed(model.seed if seed is None else seed)
    names = "z", "z_mean", "z_log_var", "log_posterior", "log_prior"
    found = _gathered(model, data, lambda tensors: {*names} & tensors.keys(), seed)
    if len(found) == len(names):
        codes = [found[name] for name in names[:3]]
        if codes[0].ndim == 2 and codes[0].shape == codes[1].shape == codes[2].shape:
            own = normal_log_density(*codes).numpy().sum(axis=1)
            if np.abs(own - found["log_posterior"]).max() < _ROUNDING:
                joint, product = _log_densities_of_mixture(*codes)
                parts = {
                    "mutual_information": found["log_posterior"] - joint,
                    "total_correlation": joint - product,
                    "dimension_wise_kl": product - found["log_prior"],
                }
                return {name: _with_values(values) for name, values in parts.items()}
    raise ValueError(
        f"kl_decomposition needs a posterior N(z_mean, exp(z_log_var)) of z [rows, latent] with "
        f"independent dimensions, and a prior with a density; {type(model.bottleneck).__name__} "
        "has another."
    )


def _with_values(values: np.ndarray) -> Estimate:
    found = Estimate.mean_of(values)
    return Estimate(found.value, found.standard_error, found.count, values.astype(np.float32))


def _read_by(terms: Collection[LossTerm], tensors: Tensors) -> set[str]:
    """Returns the names of the tensors of rows that terms read."""
    read: set[str] = set()
    for term in terms:
        probe = Tensors(tensors)
        term(probe)
        read |= probe.read
    return read - {*SCALARS}


def _gathered(
    model: VAE, data: Any, choose: Callable[[Tensors], Collection[str]], seed: int
) -> dict[str, np.ndarray]:
    """Returns tensors of forward passes over all examples, one sample of z each, `[count, ...]`.

    Args:
        model, data: as for `kl_decomposition`.
        choose: returns the names of those that are wanted.
        seed: of the noise.
    """
    data = named_arrays("an evaluation", data)
    model_of_caller = weakref.proxy(model)

    @tf.function(autograph=False, reduce_retracing=True)
    def chosen(batch: dict[str, tf.Tensor], key: tf.Tensor) -> dict[str, tf.Tensor]:
        tensors = model_of_caller.forward(batch, seed=key, num_samples=1)
        return {name: tensors[name] for name in choose(tensors)}

    parts = []
    for start in range(0, len(data["inputs"]), _ROWS_PER_CALL):
        rows = slice(start, start + _ROWS_PER_CALL)
        batch = {name: tf.constant(values[rows]) for name, values in data.items()}
        key = fold_in(evaluation_key(seed, start), "statistics of a data set")
        parts.append({name: value.numpy() for name, value in chosen(batch, key).items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _log_densities_of_mixture(
    z: np.ndarray, mean: np.ndarray, log_var: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns log q(z), and the sum of log q(z_d) over dimensions, `[count]` each, nats."""
    count, latent = z.shape
    components = tf.constant(mean), tf.constant(log_var)

    @tf.function(autograph=False, reduce_retracing=True)
    def of(some: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        pairs = normal_log_density(some[:, None], *(each[None] for each in components))
        joint = tf.reduce_logsumexp(tf.reduce_sum(pairs, axis=2), axis=1)
        return joint, tf.reduce_sum(tf.reduce_logsumexp(pairs, axis=1), axis=1)

    size = max(1, _PAIRS // (count * latent))
    parts = [of(tf.constant(z[start : start + size])) for start in range(0, count, size)]
    joint, product = (np.concatenate([part[index].numpy() for part in parts]) for index in (0, 1))
    # Each of the `count` components has the same weight, once in the joint density and once in
    # that of every dimension.
    return joint - np.log(count), product - latent * np.log(count)

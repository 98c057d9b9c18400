"""Test figures of a trained model, in comparable units if it is known how the data were stored."""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Mapping

import numpy as np

from vae_research.arguments import checked_integer
from vae_research.data.checks import row_blocks
from vae_research.data.split import Split
from vae_research.evaluation import units
from vae_research.evaluation.batch_statistics import statistics_over
from vae_research.evaluation.estimates import Estimate, estimate_arrays, named_arrays
from vae_research.losses.term import Likelihood
from vae_research.model import VAE
from vae_research.priors.prior import Prior
from vae_research.suitability import (
    notes_on_densities,
    notes_on_likelihood,
    refuse_outside_support,
    refuse_unsuitable_data,
)

# Rows of a split that are looked at: its notes are of them, and all must suit the likelihood.
_ROWS = 100

DEQUANTIZE_DRAWS = 2
"""Draws of noise that bits per dimension of a density are the mean over, by default."""

# The figures that exist in comparable units, too, with the sign of log p, and how the
# others are called.
_LIKELIHOODS = {"elbo": (1.0, "elbo"), "negative_log_likelihood": (-1.0, "nll")}


def estimate(
    model: VAE,
    data: Split | np.ndarray | Mapping[str, np.ndarray],
    *,
    num_samples: int = 200,
    seed: int | None = None,
    prior: Prior | None = None,
    rows_per_call: int | None = None,
    per_example: bool = False,
    jit_compile: bool = False,
    verbose: int = 0,
    between_calls: Callable[[], None] | None = None,
    dequantize_draws: int = DEQUANTIZE_DRAWS,
    warn: bool = True,
) -> dict[str, Estimate]:
    """Returns the figures of `data`, in nats per example unless stated otherwise.

    They are those of `estimates.estimate_arrays`, which explains them: `elbo`,
    `negative_log_likelihood`, `effective_sample_size`, `large_pareto_k`,
    `importance_weighted_bound`, `reconstruction`, `kl`, every other term with a value per example,
    `active_units`, and those of a fitted prior. A term with `whole_data_set`, such as `FreeBits`,
    has its value of all examples together, without an error. Of a `Split`, which knows how its
    values are stored, a model with a posterior has more:

    - `elbo_in_stored_units` and `negative_log_likelihood_in_stored_units` of a density: nats of the
      values as stored, whatever `rescale` made of them.
    - `bits_per_dimension_elbo` and `bits_per_dimension_nll`, of a single likelihood. Of levels and
      of 0 and 1 they are the probability in bits over the number of values; of a density of
      integers x, `-log2 p(x + u)` in stored units, mean over draws of u from [-1/2, 1/2). A model
      without them has data that are not stored as integers, or `notes_on_figures` says why.
      If values are missing, it is the ratio of all bits to all known values; `values` are those
      whose mean and standard error are of the ratio (`units.bits`).
    - `bits_per_dimension_nll_of_levels` of a density of integers: the logarithm of the mean over
      the draws, which is tighter.

    Those of the negative log-likelihood need the densities `log_posterior` and `log_prior`.

    Theis et al. 2016 (arXiv:1511.01844), section 3.1.

    Args:
        model: a VAE whose variables exist.
        data: a split, such as `data.test`; or `[count, ...]` scaled as in training, or a dictionary
            of such arrays.
        num_samples: samples of z for each example.
        seed: of the noise of all samples, 0 to 2**32 - 1; by default that of the model. Models that
            are compared by their examples (`paired_difference`) have the same noise with one seed.
        prior: one that `fit_prior` has fitted to the model.
        rows_per_call: examples times samples that are decoded at once, which bounds the memory; by
            default about two million values in data space.
        per_example: keep the value of each example (`Estimate.values`), of which the value is the
            mean; not of `active_units`.
        jit_compile: compile with XLA, which takes about a second for each model and size of the
            data.
        verbose: 1 shows a progress bar.
        between_calls: called before each compiled call; it may raise to end the evaluation.
        dequantize_draws: draws of u. Each is an evaluation of its own, but for the first of data
            that are dequantised.
        warn: warn of figures that cannot be compared, as `notes_on_figures` does.

    Raises:
        TypeError: the model is not a VAE, or `data` are not arrays but a whole data set.
        ValueError: `num_samples`, `rows_per_call` or `dequantize_draws` is not a positive integer,
            `seed` is not a seed, data are empty, the arrays differ in length or do not suit the
            likelihood, or the prior is not fitted or is of other codes.
    """
    if not isinstance(model, VAE):
        raise TypeError(f"estimate() is of a VAE, got {type(model).__name__}.")
    likelihood = model.objective.likelihood
    draws = checked_integer("dequantize_draws", dequantize_draws, 1)
    figures_of = functools.partial(
        estimate_arrays,
        model,
        num_samples=num_samples,
        seed=seed,
        prior=prior,
        rows_per_call=rows_per_call,
        jit_compile=jit_compile,
        verbose=verbose,
        between_calls=between_calls,
    )
    if not isinstance(data, Split):
        for note in notes_on_likelihood(likelihood, named_arrays("estimate", data)) if warn else ():
            warnings.warn(note, UserWarning, stacklevel=2)
        return figures_of(data, per_example=per_example) | statistics_over(model, data, seed)
    names = _names_read(model, data)
    _refuse_unsuitable_split(likelihood, data, names)
    for note in notes_on_figures(model, data) if warn else ():
        warnings.warn(note, UserWarning, stacklevel=2)

    def of(split: Split) -> dict[str, Estimate]:
        return figures_of(split.tensors_by_block(names), per_example=True)

    figures = of(data)
    if "elbo" in figures:
        values = _in_other_units(of, figures, likelihood, data, draws)
        for name, of_examples in values.items():
            kept = of_examples.astype(np.float32)
            figures[name] = dataclasses.replace(Estimate.mean_of(of_examples), values=kept)
    figures |= statistics_over(model, data.tensors_by_block(names), seed)
    if per_example:
        return figures
    return {name: dataclasses.replace(each, values=None) for name, each in figures.items()}


def _names_read(model: VAE, split: Split) -> list[str]:
    """Returns which further arrays of a split a model reads.

    One that has seen no data, or `inputs` alone, is shown two rows.
    """
    if not model.data_names and split.arrays:
        model.data_read(split.tensors(slice(0, 2), split.arrays))
    return [name for name in split.arrays if name in model.data_names]


def _refuse_unsuitable_split(likelihood: Likelihood, split: Split, names: list[str]) -> None:
    """Raises ValueError for inputs that the likelihood has no density for.

    They are prepared in each call, where a function that is compiled does not know their values. If
    values are missing, all known ones are looked at; otherwise it is the range, and the first rows.

    Args:
        likelihood: of the model.
        split: the data.
        names: of further arrays that the model reads.
    """
    if split.is_repeatable:
        refuse_unsuitable_data(likelihood, split.tensors(slice(0, _ROWS), names))
    for each in likelihood.factors:
        if each.support == (-math.inf, math.inf) or not units.reads_inputs(each, split):
            continue
        if each.observed is None:
            refuse_outside_support(each, "inputs", *split.value_range())
        elif split.is_repeatable:
            for rows in row_blocks(split.raw):
                refuse_unsuitable_data(each, split.tensors(rows, names))


def _in_other_units(
    of: Callable[[Split], dict[str, Estimate]],
    figures: Mapping[str, Estimate],
    likelihood: Likelihood,
    split: Split,
    draws: int,
) -> dict[str, units.Values]:
    """Returns figures in stored units and bits per dimension, by name, `[count]`.

    Args:
        of: returns the figures of a split, with their values.
        figures: of `split`.
        likelihood: of the model.
        split: the data.
        draws: of the noise that is added to integers.
    """
    found: dict[str, units.Values] = {}
    # Without log_posterior and log_prior, `kl` alone gives an ELBO and no importance weights.
    there = {name: each for name, each in _LIKELIHOODS.items() if name in figures}
    log_jacobian = units.log_jacobian(likelihood, split)
    dimensions = units.dimensions(likelihood, split)

    def log_p(name: str, given: Mapping[str, Estimate]) -> units.Values:
        values = _LIKELIHOODS[name][0] * np.asarray(given[name].values, np.float64)
        return values if log_jacobian is None else values + log_jacobian

    if log_jacobian is not None:
        for name, (sign, _) in there.items():
            found[f"{name}_in_stored_units"] = sign * log_p(name, figures)
    if dimensions is None:
        return found
    if units.is_probability(likelihood, split):
        for name, (_, short) in there.items():
            found[f"bits_per_dimension_{short}"] = units.bits(-log_p(name, figures), dimensions)
    elif units.has_cells(likelihood, split):
        noisy = [
            figures
            if split.dequantize == "uniform" and draw == split.draw
            else of(dataclasses.replace(split, dequantize="uniform", draw=draw))
            for draw in range(draws)
        ]
        for name, (_, short) in there.items():
            mean = np.mean([log_p(name, each) for each in noisy], axis=0)
            found[f"bits_per_dimension_{short}"] = units.bits(-mean, dimensions)
        if (name := "negative_log_likelihood") in there:
            cells = units.log_mean_density([log_p(name, each) for each in noisy])
            found["bits_per_dimension_nll_of_levels"] = units.bits(-cells, dimensions)
    return found


def notes_on_figures(model: VAE, split: Split) -> list[str]:
    """Returns what must be said of the figures of a split, nothing if they compare with others."""
    likelihood = model.objective.likelihood
    names = _names_read(model, split)
    rows = split.tensors(slice(0, _ROWS), names) if split.is_repeatable else {}
    quantized = units.has_integers(split) and split.dequantize == "none"
    notes = [
        units.note_on_grey_values(likelihood, split),
        *notes_on_densities(likelihood, rows, integers=quantized),
        units.why_no_bits(likelihood, split),
    ]
    return [note for note in notes if note is not None]

"""The contents of config.json, and the notes beside the figures of a run."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vae_research.data import Data
from vae_research.evaluation.estimates import Estimate
from vae_research.evaluation.importance import largest_reliable_pareto_k
from vae_research.evaluation.test_figures import notes_on_figures
from vae_research.execution import Execution
from vae_research.losses.term import Likelihood
from vae_research.model import VAE
from vae_research.runs.cli.config import SEEDS_OF_PARTS, Config
from vae_research.runs.session.directory import as_plain
from vae_research.runs.session.kept.provenance import git
from vae_research.version import __version__


def describe(
    experiment: str, file: Path, config: Config, data: Data, device: str
) -> dict[str, Any]:
    """Returns the part of config.json that runs and studies have in common."""
    return {
        "experiment": experiment,
        "file": str(file),
        "flags": as_plain(config.as_dict()),
        "seeds": {name: getattr(config, name) for name in SEEDS_OF_PARTS},
        "data": data.summary(),
        "device": device,
        "versions": {
            "vae_research": __version__,
            "git_commit": _git_commit(),
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "numpy": np.__version__,
        },
    }


def describe_model(model: VAE, data: Data, execution: Execution) -> dict[str, Any]:
    """Returns the part of config.json that describes the model of a run."""
    settled = model.objective.settled_at()
    estimator = model.objective.gradient_estimator
    likelihood = model.objective.likelihood
    return {
        "terms": {term.label: repr(term) for term in model.objective.terms},
        "likelihood": {
            "measure": measure_of(likelihood),
            "note": likelihood.note(data.grey_values),
        },
        "critics": {critic.name: critic.describe() for critic in model.critics},
        "gradient_estimator": None if estimator is None else repr(estimator),
        "effective_beta": model.effective_beta(settled) if settled is not None else None,
        "optimizer": type(model.optimizer).__name__,
        "weights": weights_in_words(model),
        "execution": dataclasses.asdict(execution),
    }


def measure_of(likelihood: Likelihood) -> str:
    """Returns in words what log p(x|z) is the logarithm of; only figures of one measure compare.

    >>> from vae_research.losses.reconstruction import Bernoulli
    >>> measure_of(Bernoulli(observed="mask"))
    'probability of targets where mask'
    """
    parts = []
    for factor in likelihood.factors:
        where = f" where {factor.observed}" if factor.observed else ""
        parts.append(
            f"{'density' if factor.is_density else 'probability'} of {factor.target}{where}"
        )
    return ", ".join(sorted(parts))


def notes_on_samples(figures: Mapping[str, Estimate]) -> list[str]:
    """Returns notes on how good the importance-weighted estimates are."""
    notes = []
    for name, figure in figures.items():
        last = figure.by_samples[-1] if figure.by_samples else None
        if last is None or last.fall is None:
            continue
        before = figure.by_samples[-2].samples
        error = "" if last.fall_error is None else f" +- {last.fall_error:.3f}"
        note = (
            f"From {before} to {last.samples} importance samples, {name} fell by "
            f"{last.fall:.3f}{error} nats"
        )
        if figure.monte_carlo_error is not None:
            note += f"; other samples would change it by {figure.monte_carlo_error:.3f}"
        share = figures.get(name.replace("negative_log_likelihood", "large_pareto_k"))
        if share is not None:
            largest = largest_reliable_pareto_k(last.samples)
            note += (
                f"; of {share.value:.1%} of the examples the weights have too heavy a tail for a "
                f"value to be trusted (Pareto k above {largest:.3g})"
            )
        notes.append(f"{note}.")
    return notes


def notes_of(model: VAE, data: Data) -> list[str]:
    """Returns notes that a reader of a run's figures needs: on likelihood, training and data."""
    found = [model.objective.likelihood.note(data.grey_values)]
    found += [*notes_on_figures(model, data.test), model.objective.gradient_bias]
    found.append(getattr(model.bottleneck, "note", None))
    notes = [note for note in dict.fromkeys(found) if note]
    if model.averaging.momentum is not None:
        notes.append(
            f"The figures are those of averaged weights ({weights_in_words(model)}); so are "
            "validation, the choice of the best checkpoint, and saved networks."
        )
    return [*notes, *data.notes, *data.warnings]


def notes_on_batches(
    model: VAE, figures: Mapping[str, Estimate], training: int, validation: int
) -> list[str]:
    """Returns notes on terms of a whole batch: of how many examples their values are.

    Args:
        model: of the run.
        figures: of the test data.
        training, validation: rows of a batch.
    """
    notes = []
    for term in model.objective.terms:
        if term.batch_statistic:
            figure = figures.get(term.label)
            of_test = "" if figure is None else f"of all {figure.count} in the test figures"
            notes.append(
                f"{term.label} is a statistic of a batch, whose value depends on its size: of "
                f"{training} examples in training, of {validation} in validation, and "
                f"{of_test or 'without a test figure'}."
            )
    return notes


def weights_in_words(model: VAE) -> str:
    """Returns which weights the figures of a run are of."""
    momentum = model.averaging.momentum
    if momentum is None:
        return "as trained"
    return f"exponential moving averages, momentum {momentum:g}"


def _git_commit() -> str | None:
    """Returns the commit of the checkout that this package is imported from, None if installed."""
    folder = Path(__file__).parents[3]
    commit, _, top = (git(folder, "rev-parse", "HEAD", "--show-toplevel") or "").partition("\n")
    # An environment may lie inside another checkout, whose commit is not that of this package.
    return commit if top and Path(top).resolve() == folder.resolve() else None

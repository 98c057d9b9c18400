"""What a run prints: its start, its data and place, its test figures."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae_research.checkpoints import Checkpoint
from vae_research.data import Data
from vae_research.evaluation import FITTED, SCORES

if TYPE_CHECKING:
    from vae_research.evaluation.estimates import Estimate

_BITS = "bits"
# Of the figures that are not those of a term.
_UNITS = {
    "active_units": "latent dimensions",
    "effective_sample_size": "samples",
    "large_pareto_k": "of all",
    "bits_per_dimension_elbo": _BITS,
    "bits_per_dimension_nll": _BITS,
    "bits_per_dimension_nll_of_levels": _BITS,
}


def print_start(
    description: dict[str, Any],
    data: Data,
    run_dir: Path,
    steps: int,
    checkpoint: Checkpoint | None,
    epochs: int,
) -> None:
    """Prints what is about to be trained, where it is written and how to watch it.

    Args:
        description: the contents of config.json.
        data: the data set.
        run_dir: the run directory.
        steps: optimizer steps in an epoch.
        checkpoint: the checkpoint that is resumed, None for a new run.
        epochs: number of epochs at the end of the run.
    """
    beta, run = description["effective_beta"], description["execution"]
    replicas = int(description["reproducibility"]["profile"].get("replicas", 1))
    shared = f", {replicas} replicas" if replicas > 1 else ""
    print_data(data)
    print(
        f"Device: {description['device']}{shared}; XLA {'on' if run['jit_compile'] else 'off'} "
        f"({run['reason']}), {run['steps_per_call']} steps per call\n"
        f"Loss terms: {'; '.join(f'{k}: {v}' for k, v in description['terms'].items())}"
        + ("" if beta is None else f"; effective beta {beta:.4g}")
    )
    for name, critic in description["critics"].items():
        terms = "; ".join(f"{k}: {v}" for k, v in critic["terms"].items())
        print(f"Critic {name!r}: {terms}; {critic['optimizer']}, steps {critic['steps']}")
    print_place(run_dir)
    epochs_before = 0
    if checkpoint is not None:
        epochs_before = checkpoint.epoch
        within = f", {checkpoint.position} steps of the next" if checkpoint.position else ""
        print(f"Resuming after epoch {epochs_before}{within} (step {checkpoint.step})")
    if epochs_before < epochs:
        print(f"Training: epochs {epochs_before + 1} to {epochs}, {steps} steps each", flush=True)


def print_data(data: Data) -> None:
    """Prints a summary of the data, and warnings about them."""
    counts = ", ".join(f"{len(split):,} {split.name}" for split in data.splits)
    shape = "x".join(map(str, data.shape))
    print(
        f"Data: {data.name}, {counts}, each {shape}, binarize {data.binarize}, "
        + ("" if data.dequantize == "none" else f"dequantize {data.dequantize}, ")
        + f"rescale {data.rescale} ({data.train.scaling})"
    )
    for note in data.notes:
        print(f"Note: {note}")
    for warning in data.warnings:
        print(f"warning: {warning}", file=sys.stderr)


def print_place(run_dir: Path) -> None:
    """Prints where a run is written and how to watch it."""
    print(
        f"Run directory: {run_dir}\n"
        # By default TensorBoard keeps 10 pictures per tag and drops others at random.
        f"Watch it: {_tensorboard()} --samples_per_plugin=images=200,text=200 "
        f"--logdir {shlex.quote(str(run_dir))}",
        flush=True,
    )


def units_of(figures: Iterable[str], units: Mapping[str, str]) -> dict[str, str]:
    """Returns the unit of each test figure by name; empty if unknown.

    Args:
        figures: their names.
        units: of loss terms and of the experiment's own figures, by name.
    """
    units = {**units, **_UNITS}
    return {name: units.get(name.removesuffix(FITTED), "nats") for name in figures}


def print_figures(
    figures: dict[str, Estimate], notes: list[str], num_samples: int, units: Mapping[str, str]
) -> None:
    """Prints the test figures as a table, followed by the notes on them.

    Args:
        figures: by name.
        notes: one line each.
        num_samples: with which the NLL was estimated.
        units: of all figures, as `units_of` returns them.
    """
    for name, figure in figures.items():
        unit = units[name]
        digits = 4 if unit == _BITS or name in SCORES else 2
        value, error = f"{figure.value:9.{digits}f}", ""
        if figure.standard_error is not None:
            error = f" +- {figure.standard_error:.{digits}f}"
        if name == "negative_log_likelihood":
            unit += f" ({num_samples} importance samples)"
        unit += f"{', ' if unit else ''}{figure.count:,} examples"
        print(f"  {name:<24} {value}{error:<9} {unit}")
    for note in notes:
        print(f"  Note: {note}")


def _tensorboard() -> str:
    """Returns a command that works in the user's shell, outside our environment as well."""
    beside = Path(sys.executable).with_name("tensorboard")
    if shutil.which("tensorboard") or not beside.exists():
        return "tensorboard"
    return shlex.quote(str(beside))

"""What a run says of itself: config.json, the screen, figures and saved networks."""

from __future__ import annotations

import dataclasses
import importlib.util
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vae_research.callbacks.pictures import reconstructions, samples
from vae_research.checkpoints import Checkpoint
from vae_research.data import Data
from vae_research.evaluation.estimates import Estimate
from vae_research.execution import Execution
from vae_research.model import VAE
from vae_research.plots import encode_png, save_curves
from vae_research.runs.cli.flags import Config
from vae_research.runs.session.directory import as_plain
from vae_research.tensors import Named
from vae_research.version import __version__

_UNITS = {"active_units": "latent dimensions"}


def describe(
    experiment: str, file: Path, config: Config, data: Data, device: str
) -> dict[str, Any]:
    """Returns what config.json says of every run and study."""
    return {
        "experiment": experiment,
        "file": str(file),
        "flags": as_plain(config.as_dict()),
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


def describe_model(model: VAE, execution: Execution) -> dict[str, Any]:
    """Returns what config.json says of the model of a run."""
    settled = model.objective.settled_at()
    return {
        "terms": {term.label: repr(term) for term in model.objective.terms},
        "effective_beta": model.objective.effective_beta(settled) if settled is not None else None,
        "optimizer": type(model.optimizer).__name__,
        "execution": dataclasses.asdict(execution),
    }


def notes(model: VAE, data: Data) -> list[str]:
    """Returns what has to be said beside the figures of a run."""
    found = model.objective.likelihood.note(data.grey_values)
    return [*([found] if found else []), *data.warnings]


def print_start(
    description: dict[str, Any],
    data: Data,
    run_dir: Path,
    steps: int,
    checkpoint: Checkpoint | None,
    epochs: int,
) -> None:
    """Prints what is about to be trained, where it is written and how to watch it."""
    beta, run = description["effective_beta"], description["execution"]
    print_data(data)
    print(
        f"Device: {description['device']}; XLA {'on' if run['jit_compile'] else 'off'} "
        f"({run['reason']}), {run['steps_per_call']} steps per call\n"
        f"Loss terms: {'; '.join(f'{k}: {v}' for k, v in description['terms'].items())}"
        + ("" if beta is None else f"; effective beta {beta:.4g}")
    )
    print_place(run_dir)
    epochs_before = 0
    if checkpoint is not None:
        epochs_before = checkpoint.epoch
        within = f", {checkpoint.position} steps of the next" if checkpoint.position else ""
        print(f"Going on after epoch {epochs_before}{within} (step {checkpoint.step})")
    if epochs_before < epochs:
        print(f"Training: epochs {epochs_before + 1} to {epochs}, {steps} steps each", flush=True)


def print_data(data: Data) -> None:
    """Prints what is trained on, and what is odd about it."""
    counts = ", ".join(f"{len(split):,} {split.name}" for split in data.splits)
    shape = "x".join(map(str, data.shape))
    print(
        f"Data: {data.name}, {counts}, each {shape}, binarize {data.binarize}, "
        f"rescale {data.rescale}"
    )
    for warning in data.warnings:
        print(f"warning: {warning}", file=sys.stderr)


def print_place(run_dir: Path) -> None:
    """Prints where a run is written and how to watch it."""
    print(
        f"Run directory: {run_dir}\n"
        f"Watch it: {_tensorboard()} --logdir {shlex.quote(str(run_dir))}",
        flush=True,
    )


def print_figures(figures: dict[str, Estimate], notes: list[str], num_samples: int) -> None:
    """Prints the test figures as a table, with what has to be said beside them."""
    for name, figure in figures.items():
        error = "" if figure.standard_error is None else f" +- {figure.standard_error:.2f}"
        unit = _UNITS.get(name, "nats")
        if name == "negative_log_likelihood":
            unit += f" ({num_samples} importance samples)"
        print(f"  {name:<24} {figure.value:9.2f}{error:<9} {unit}, {figure.count:,} examples")
    for note in notes:
        print(f"  Note: {note}")


def save_figures(folder: Path, model: VAE, data: Data, records: list[dict[str, Any]]) -> list[str]:
    """Writes PNG pictures and returns their names; curves need matplotlib, the rest nothing."""
    folder.mkdir(exist_ok=True)
    names = []
    if data.is_image:
        pictures = {"reconstructions": reconstructions(model, data.test.prepare(slice(0, 40)), 10)}
        if model.bottleneck.has_prior:
            pictures["samples"] = samples(model, 10)
        for name, picture in pictures.items():
            (folder / f"{name}.png").write_bytes(encode_png(picture))
            names.append(f"figures/{name}.png")
    if importlib.util.find_spec("matplotlib") is None:
        return [*names, "no figures/curves.png (pip install 'vae_research[figures]')"]
    save_curves(folder / "curves.png", records)
    return [*names, "figures/curves.png"]


def save_networks(run_dir: Path, model: VAE) -> list[str]:
    """Saves the model, and its decoder alone as a Keras model that loads without this package."""
    decoder = model.decoder.network if isinstance(model.decoder, Named) else model.decoder
    saved = []
    for name, network in (("model.keras", model), ("decoder.keras", decoder)):
        try:
            network.save(run_dir / name)
        except (ValueError, TypeError, NotImplementedError) as error:
            # A user's own layer may not say how it is saved. The checkpoint has its values.
            print(f"warning: {name} was not written: {error}", file=sys.stderr)
        else:
            saved.append(name)
    return saved


def _git_commit() -> str | None:
    folder = Path(__file__).parents[3]
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD", "--show-toplevel"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    commit, _, top = answer.stdout.strip().partition("\n")
    # Installed in an environment inside of another checkout, the commit would be that one's.
    return commit if top and Path(top).resolve() == folder.resolve() else None


def _tensorboard() -> str:
    """Returns the command as it works in the user's shell, which may not be in our environment."""
    beside = Path(sys.executable).with_name("tensorboard")
    if shutil.which("tensorboard") or not beside.exists():
        return "tensorboard"
    return shlex.quote(str(beside))

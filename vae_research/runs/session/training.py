"""Training, validation and test of one run. Imports TensorFlow: flags and data are valid by now."""

from __future__ import annotations

import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from vae_research import checkpoints
from vae_research.callbacks.console import Console
from vae_research.callbacks.metrics_file import MetricsFile, append
from vae_research.data import Data, DataError
from vae_research.evaluation.estimates import Estimate, estimate
from vae_research.execution import Execution, choose_jit, steps_per_call
from vae_research.model import VAE
from vae_research.runs.cli import signals
from vae_research.runs.cli.errors import (
    DirectoryInUseError,
    DivergedError,
    FileSystemError,
    UsageError,
)
from vae_research.runs.cli.flags import Config, experiment_file, is_given
from vae_research.runs.report import outputs, screen
from vae_research.runs.report.description import describe, describe_model, notes_of
from vae_research.runs.session import directory, logs, reproducibility
from vae_research.runs.session.gate import FiniteGate
from vae_research.runs.session.saving import Saving
from vae_research.runs.session.tensorboard import tensorboard_callbacks, write_test_figures
from vae_research.state import saved_variables

# Validation has no gradients to keep: larger batches than those of training cost less.
_VALIDATION_BATCH = 500


def train(
    build: Callable[[Config, Data], VAE],
    experiment: str,
    config: Config,
    data: Data,
    run_dir: Path,
    checkpoint: checkpoints.Checkpoint | None,
    device: str,
) -> None:
    """Trains a model from the beginning or from a checkpoint, tests it, and writes the run.

    Raises:
        UsageError: the model cannot be built with these flags and data.
        DivergedError: the loss is no longer finite.
    """
    keras.utils.set_random_seed(config.seed)
    keras.config.set_dtype_policy(config.precision)
    model = build_model(build, config, data)
    signals.raise_if_received()
    _refuse_values_outside(
        model.objective.likelihood.support, data, type(model.objective.likelihood).__name__
    )
    steps = data.train.steps(config.batch_size)
    model.set_steps_per_epoch(steps)
    execution = choose_execution(model, config, data)
    signals.raise_if_received()
    epochs_before = checkpoint.epoch if checkpoint is not None else 0
    profile = reproducibility.profile(execution, config, device)
    config.epochs = max(config.epochs, epochs_before)
    directory.refuse_full_disk(run_dir, bytes_of_checkpoints(model))
    run_dir = directory.create(run_dir, may_exist=config.run_dir is not None)
    with directory.locked(run_dir):
        found = checkpoints.search(run_dir / "checkpoints")
        if found.newest != checkpoint:
            raise DirectoryInUseError(
                f"{run_dir} was written to by another process meanwhile. Start again to go on from "
                "there, or give another --run_dir."
            )
        progress = {} if checkpoint is None else checkpoints.restore(model, checkpoint)
        checkpoints.set_aside(found)
        claim = reproducibility.claim(
            profile, progress.get("profile", {}), progress.get("claim", "")
        )
        for name in (directory.SUMMARY, directory.NONFINITE):  # they speak of other weights
            (run_dir / name).unlink(missing_ok=True)
        description = describe(experiment, experiment_file(build), config, data, device)
        description |= describe_model(model, execution)
        description["reproducibility"] = {"claim": claim, "profile": profile}
        directory.write_json(run_dir / directory.CONFIG, description)
        short = logs.rewind(run_dir, progress.get("logs", {}))
        for problem in problems(found, short, claim):
            print(f"warning: {problem}", file=sys.stderr)
        if config.verbose:
            screen.print_start(description, data, run_dir, steps, checkpoint, config.epochs)
        started = time.perf_counter()
        if epochs_before < config.epochs:
            progress |= {"profile": profile, "claim": claim}
            _fit(model, config, data, run_dir, description, checkpoint, progress)
        else:  # a full disk may have kept lines back
            kept_back = progress.get("callbacks", {}).get(MetricsFile.__name__, {})
            append(run_dir / directory.METRICS, kept_back.get("waiting", ""))
        seconds = time.perf_counter() - started
        if config.verbose:
            print("Test figures:", flush=True)
        figures = estimate(
            model,
            data.test.prepare(),
            num_samples=config.importance_samples,
            rows_per_call=config.evaluation_rows,
            # Compiling takes longer than it saves: the time is spent in large matrix products.
            jit_compile=config.jit == "on",
            between_calls=signals.raise_if_received,
            verbose=int(config.verbose == 1 and sys.stdout.isatty()),
        )
        if config.tensorboard:
            write_test_figures(run_dir, figures, model.step)
        _write_results(model, data, run_dir, figures, seconds, config, claim)


def build_model(build: Callable[[Config, Data], VAE], config: Config, data: Data) -> VAE:
    """Returns the model of an experiment, compiled, with all its variables.

    Raises:
        UsageError: `build`, or a forward pass over two examples, found something wrong.
    """
    try:
        model = build(config, data)
        if not isinstance(model, VAE):
            raise TypeError(f"build() returned {model!r}; it must return a VAE.")
        if not model.compiled:
            model.compile(
                keras.optimizers.Adam(config.learning_rate),
                run_eagerly=config.run_eagerly,
            )
        # A forward pass makes every variable, and finds what does not fit before anything is
        # written.
        model.set_steps_per_epoch(data.train.steps(config.batch_size))
        model.objective(model.forward(data.validation.prepare(slice(0, 2))))
    except (ValueError, TypeError) as error:
        raise UsageError(f"{error} (--debug shows where)") from error
    model.optimizer.build(model.trainable_variables)
    return model


def choose_execution(model: VAE, config: Config, data: Data) -> Execution:
    """Decides how the steps of a model run, and tells the model.

    Raises:
        UsageError: --jit=on, and XLA cannot compile the model; or --steps_per_call does not fit.
    """
    if model.run_eagerly:
        return Execution(False, 1, "the model runs eagerly")
    steps = data.train.steps(config.batch_size)
    asked = config.steps_per_call
    intervals = {name: getattr(config, name) for name in ("log_every_steps", "checkpoint_steps")}
    for name, interval in intervals.items():
        if asked is not None and interval % asked:
            raise UsageError(
                f"--{name}={interval} is not a multiple of --steps_per_call={asked}: figures and "
                "states are there at the end of a call only."
            )
    interval = math.gcd(*intervals.values())
    try:
        jit_compile, reason = choose_jit(
            lambda batch: model.objective(model.forward(batch, training=True)).loss,
            tf.constant(data.validation.prepare(slice(0, 2))),
            "on" if model.jit_compile else config.jit,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    rows = config.batch_size * model.objective.num_samples
    if config.profile_steps:  # a call is recorded as a whole
        first, last = config.profile_steps
        interval = math.gcd(interval, (first - 1) % steps, last % steps)
    calls = steps_per_call(model.count_params() * rows, jit_compile, steps, interval)
    chosen = Execution(jit_compile, asked or calls, reason)
    model.jit_compile, model.steps_per_execution = chosen.jit_compile, chosen.steps_per_call
    return chosen


def problems(found: checkpoints.Search, short: list[str], claim: str) -> list[str]:
    """Returns what has to be said of a run that goes on, one line each."""
    lines = [f"{problem}; it is skipped and kept aside" for _, problem in found.damaged]
    lines += [f"{name} has lost lines since the checkpoint was taken" for name in short]
    return lines + ([f"this run is {claim}"] if claim != "bit-exact" else [])


def bytes_of_checkpoints(model: VAE) -> int:
    """Returns the size of all checkpoints that are on disk at a time."""
    size = sum(var.value.dtype.size * math.prod(var.shape) for var in saved_variables(model))
    # Those that are kept, the best one, and the one that is being written.
    return (checkpoints.KEPT + 2) * size


def _fit(
    model: VAE,
    config: Config,
    data: Data,
    run_dir: Path,
    description: dict[str, Any],
    checkpoint: checkpoints.Checkpoint | None,
    progress: dict[str, Any],
) -> None:
    epoch, position = (0, 0) if checkpoint is None else (checkpoint.epoch, checkpoint.position)
    batches = data.train.on_device(
        config.batch_size, config.seed, first_epoch=epoch, first_position=position
    )
    gate = FiniteGate(batches, run_dir, skip=config.on_nonfinite == "skip")
    metrics = MetricsFile(run_dir / directory.METRICS)
    callbacks: list[keras.callbacks.Callback] = [
        gate,
        StopWhenDiverged(),
        WarnOfCollapse(),
        *tensorboard_callbacks(config, data, run_dir, description),
        metrics,
    ]
    if config.verbose:
        callbacks.append(Console(bar=None if config.verbose == 1 else False))
    saving = Saving(run_dir, callbacks, config, checkpoint, progress)
    with printed_warnings(), saving.after_an_error():
        model.fit(
            batches,
            epochs=config.epochs,
            initial_epoch=epoch,
            validation_data=data.validation.on_device(min(_VALIDATION_BATCH, len(data.validation))),
            callbacks=[*callbacks, saving],
            verbose=0,
        )
    if metrics.waiting:
        raise FileSystemError(
            f"{metrics.path} cannot be written. All is saved: the same command writes its lines "
            "and the results, when there is room."
        )


def _refuse_values_outside(support: tuple[float, float], data: Data, likelihood: str) -> None:
    """Raises where the data have values that the likelihood has no density for.

    Raises:
        UsageError: a flag of the command chose the likelihood or the scale.
        DataError: the data are so by themselves.
    """
    low, high = data.value_range()
    if support[0] <= low and high <= support[1]:
        return
    advice = (
        "Clip validation and test data to the range of the training data."
        if data.rescale == "unit"
        else "--rescale=unit maps them to [0, 1]; Gaussian and Laplace likelihoods take all values."
    )
    message = (
        f"{data.name} has values from {low:g} to {high:g}, and {likelihood} needs values from "
        f"{support[0]:g} to {support[1]:g}. {advice}"
    )
    raise (UsageError if is_given("rescale") or is_given("likelihood") else DataError)(message)


def _write_results(
    model: VAE,
    data: Data,
    run_dir: Path,
    figures: dict[str, Estimate],
    seconds: float,
    config: Config,
    claim: str,
) -> None:
    records = directory.read_metrics(run_dir / directory.METRICS)
    best = max(records, key=lambda found: found.get("validation/elbo", -found["validation/loss"]))
    notes = notes_of(model, data)
    summary = {
        "status": "done",
        "epochs": records[-1]["epoch"],
        "steps": model.step,
        "best_epoch": best["epoch"],
        "seconds": round(seconds, 3),
        "images_per_second": statistics.median(found["images_per_second"] for found in records),
        "parameters": model.count_params(),
        "weights_sha256": checkpoints.weights_sha256(model),
        "reproducibility": claim,
        "notes": notes,
        "test": {name: vars(figure) for name, figure in figures.items()},
    }
    kept = outputs.save_figures(run_dir / "figures", model, data, records)
    kept += outputs.save_networks(run_dir, model)
    directory.write_json(run_dir / directory.SUMMARY, summary)  # last: it says that all is there
    if config.verbose:
        screen.print_figures(figures, notes, config.importance_samples)
        print(f"Written to {run_dir}: {', '.join(kept)}", flush=True)


def choose_device(wanted: str) -> str:
    """Returns what the run computes on, in words.

    Raises:
        UsageError: a GPU is asked for and TensorFlow finds none.
    """
    found = tf.config.list_physical_devices("GPU")
    if wanted == "gpu" and not found:
        raise UsageError(
            "--device=gpu, and TensorFlow finds no GPU. pip install 'vae_research[gpu]' brings "
            "its CUDA libraries; --device=cpu runs without."
        )
    if wanted == "cpu" or not found:
        tf.config.set_visible_devices([], "GPU")
        reason = "--device=cpu" if wanted == "cpu" else "no GPU found"
        return f"CPU ({reason})"
    for gpu in found:
        tf.config.experimental.set_memory_growth(gpu, True)
    names = [
        tf.config.experimental.get_device_details(gpu).get("device_name", "GPU") for gpu in found
    ]
    return ", ".join(names)


@contextmanager
def printed_warnings() -> Iterator[None]:
    """Prints warnings as one line each, without file and line."""
    with warnings.catch_warnings():
        warnings.showwarning = _print_warning
        yield


def _print_warning(message: Any, *args: Any, **kwargs: Any) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)


class StopAtSignal(keras.callbacks.Callback):
    """Ends a run or a study between two steps where Ctrl-C or SIGTERM has come.

    Signals are only noted while TensorFlow is at work. A study that calls `fit` itself gives it
    this callback.
    """

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        signals.raise_if_received()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        signals.raise_if_received()

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        signals.raise_if_received()


class WarnOfCollapse(keras.callbacks.Callback):
    """Says once that the KL divergence has been next to nothing at several evaluations in a row.

    The posterior is then the prior: z says nothing of x.
    """

    nats, evaluations = 0.01, 3

    def __init__(self) -> None:
        super().__init__()
        self._in_a_row = 0

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        divergence = float((logs or {}).get("val_kl", math.inf))
        self._in_a_row = self._in_a_row + 1 if divergence < self.nats else 0
        if self._in_a_row == self.evaluations:
            warnings.warn(
                f"The KL divergence was below {self.nats} nats at {self.evaluations} evaluations "
                "in a row: z says nothing of the data. A smaller --kl_weight at the beginning, or "
                "free bits, may help.",
                stacklevel=2,
            )


class StopWhenDiverged(keras.callbacks.Callback):
    """Ends a run or a study where the figures of an epoch are not finite, with exit code 6."""

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        bad = {name for name, value in (logs or {}).items() if not math.isfinite(float(value))}
        if bad:
            terms = sorted(bad - {"loss", "elbo", "val_loss", "val_elbo"}) or sorted(bad)
            step = int(self.model.optimizer.iterations)
            raise DivergedError(
                f"training diverged in epoch {epoch + 1} (step {step}): not finite are "
                f"{', '.join(terms)}. Nothing of this epoch is kept. The usual causes are a term "
                "of your own, and a --learning_rate that is too large."
            )

"""One run, from valid flags and data to results on disk. Imports TensorFlow.

Read `Session.run`: it names the phases of a run in their order, a method each. What a step does is
in `vae_research.model` (`train_step`), what runs between Keras' `fit` and a step in
`vae_research.trainer`.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from vae_research import checkpoints
from vae_research.callbacks.base import Resumable
from vae_research.callbacks.console import Console
from vae_research.callbacks.metrics_file import MetricsFile, append
from vae_research.data import Data
from vae_research.distribution import replicas_of, scope_of
from vae_research.execution import Execution
from vae_research.model import VAE
from vae_research.runs import cluster
from vae_research.runs.cli import signals
from vae_research.runs.cli.config import Config
from vae_research.runs.cli.errors import DirectoryInUseError, FileSystemError, RunError, UsageError
from vae_research.runs.cli.flags import defaults_of, may_change
from vae_research.runs.cli.functions import experiment_file
from vae_research.runs.cluster.channel import Peers
from vae_research.runs.report import screen
from vae_research.runs.report.description import (
    describe,
    describe_model,
)
from vae_research.runs.session import directory, logs, reproducibility, resume
from vae_research.runs.session.building import (
    build_model,
    choose_execution,
    names_read,
)
from vae_research.runs.session.fit.gate import FiniteGate
from vae_research.runs.session.fit.own_callbacks import OwnCallbacks
from vae_research.runs.session.fit.saving import Saving
from vae_research.runs.session.fit.stopping import (
    StopEarly,
    StopWhenDiverged,
    WarnOfCollapse,
    printed_warnings,
)
from vae_research.runs.session.fit.tensorboard import tensorboard_callbacks
from vae_research.runs.session.kept import provenance, sources
from vae_research.runs.session.kept.sources import Source
from vae_research.runs.session.parts import Parts, watchers
from vae_research.runs.session.precision import warning_of_bfloat16
from vae_research.runs.session.results import Ending, Results, validation_batch_size
from vae_research.state import saved_variables


@dataclasses.dataclass
class Session:
    """A run in progress: what the command gave, and what the phases of the run add to it.

    Attributes:
        parts: the functions of the experiment; the file of its `build` is the experiment.
        experiment: name of the experiment.
        config: the flags.
        data: the data set.
        run_dir: the run directory; `run` creates it.
        checkpoint: the checkpoint to resume from, None for a new run.
        device: what the run computes on, in words.
        source: what `build` and the data are made by.
        strategy: whose replicas share the batches; None for one device.
        is_new_directory: whether this session has created the run directory.
        model: added by `build_model`.
        execution: how its steps run, added by `build_model`.
        own: the callbacks of the experiment, added by `make_callbacks`.
        has_stopped: whether a callback has ended the training before all epochs.
        progress: what was saved beside the variables of the checkpoint, the profile and claim of
            `reproducibility`, and the identity of the run; added by `restore`. The folder of the
            kept source is added by `describe`.
        description: the contents of config.json, added by `describe`.
    """

    parts: Parts
    experiment: str
    config: Config
    data: Data
    run_dir: Path
    checkpoint: checkpoints.Checkpoint | None
    device: str
    source: Source
    strategy: tf.distribute.Strategy | None = None
    is_new_directory: bool = False
    has_stopped: bool = False
    model: VAE = dataclasses.field(init=False)
    execution: Execution = dataclasses.field(init=False)
    own: OwnCallbacks = dataclasses.field(init=False)
    progress: dict[str, Any] = dataclasses.field(init=False)
    description: dict[str, Any] = dataclasses.field(init=False, default_factory=dict)

    def run(self) -> None:
        """Trains from the beginning or from the checkpoint, tests, and writes the results.

        Raises:
            UsageError: the model cannot be built with these flags and data.
            DataError: the data have values for which the likelihood has no density.
            CheckpointError: the checkpoint is of another model.
            DirectoryInUseError: another process writes to the run directory.
            DivergedError: a step makes something non-finite.
            FileSystemError: the run directory has no room or cannot be written.
            TerminatedError, KeyboardInterrupt: a signal came; the state is saved.
        """
        self.build_model()
        if self.peers.number:
            self.assist()
            return
        with self.locked_directory() as found:
            self.peers.gather("run directory", None)
            self.restore()
            self.refuse_other_start()
            if self.checkpoint is None:
                self.describe()  # whatever callbacks() leaves is then part of a run
                self.make_callbacks()
            else:
                self.make_callbacks()  # nothing is written if they are not those of the checkpoint
                self.describe()
            self.rewind(found)
            started = time.perf_counter()
            self.train(self.run_dir)
            seconds = time.perf_counter() - started
            with self.model.averaging.averages():
                results = Results(self.parts, self.config, self.data, self.run_dir, self.model)
                results.fit_prior()
                results.test()
                results.write(self.ending(seconds))
            self.peers.gather("end", None)

    def assist(self) -> None:
        """Trains together with the worker that is the chief of the run, and writes nothing.

        Raises:
            DivergedError, TerminatedError, KeyboardInterrupt: as `run`.
            PeerLostError: another worker has ended.
        """
        self.peers.gather("run directory", None)
        self.restore()
        self.refuse_other_start()
        with tempfile.TemporaryDirectory() as folder:
            self.own = self.compared_callbacks(Path(folder))
            self.train(Path(folder))
        with signals.raised_at_once():
            self.peers.gather("end", None)

    def refuse_other_start(self) -> None:
        """Raises CheckpointError unless all workers would train from the same state."""
        if self.peers.count == 1:
            return
        here = [self.model.step, self.is_trained, checkpoints.state_sha256(self.model)]
        found = self.peers.gather("restored", here)
        for number, there in enumerate(found):
            if there != found[0]:
                raise checkpoints.CheckpointError(
                    f"worker {number} would train from step {there[0]} and worker 0 from step "
                    f"{found[0][0]}, or their weights differ (--init_seed, a build() that draws "
                    "numbers by itself). All workers must build the same model."
                )

    def check(self) -> None:
        """Does what `run` does before anything is written, and prints what it would do then.

        Raises:
            UsageError, DataError, CheckpointError, FileSystemError: as `run`.
        """
        self.build_model()
        directory.refuse_full_disk(self.run_dir, bytes_of_checkpoints(self.model))
        self.restore()
        with tempfile.TemporaryDirectory() as folder:  # callbacks may write into the run directory
            self.own = self.compared_callbacks(Path(folder))
            steps = self.data.train.steps(self.config.batch_size)
            self.own.set_params({"verbose": 0, "epochs": self.config.epochs, "steps": steps})
            self.own.set_model(self.model)
            self.own.on_train_begin()
            self.own.set_state(self.saved_of_own)
        screen.print_data(self.data)
        what = f"start a new run in {self.run_dir}"
        if self.checkpoint is not None and self.is_trained:
            what = f"evaluate {self.run_dir} again, and train nothing"
        elif self.checkpoint is not None:
            what = f"resume {self.run_dir} at step {self.checkpoint.step}, {self.claim}"
        print(f"Nothing was found that would stop this run. It would {what}.")

    @property
    def epochs_before(self) -> int:
        """Epochs that were finished when this session began."""
        return 0 if self.checkpoint is None else self.checkpoint.epoch

    @property
    def is_trained(self) -> bool:
        """Whether nothing was left to train when this session began."""
        position = 0 if self.checkpoint is None else self.checkpoint.position
        return self.epochs_before >= self.config.epochs or (self.has_stopped and not position)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the further arrays that the model reads; only these are copied to the device."""
        return names_read(self.model, self.data)

    @property
    def peers(self) -> Peers:
        """The workers that train together."""
        return cluster.peers()

    @property
    def claim(self) -> str:
        """The claim of this session; see `reproducibility`."""
        return self.progress["claim"]

    @property
    def saved_of_own(self) -> dict[str, Any]:
        """The states of the experiment's callbacks in the checkpoint, by name."""
        return self.progress.get("callbacks", {}).get(OwnCallbacks.__name__, {})

    def build_model(self) -> None:
        """Builds the model from the flags and decides how its steps run; writes nothing."""
        config, data = self.config, self.data
        keras.utils.set_random_seed(config.init_seed)
        keras.config.set_dtype_policy(config.precision)
        with scope_of(self.strategy):
            self.model = build_model(self.parts.build, config, data)
        self._refuse_small_batches()
        signals.raise_if_received()
        self.execution = choose_execution(self.model, config, data)
        signals.raise_if_received()
        self.config = config.replace(epochs=max(config.epochs, self.epochs_before))

    def _refuse_small_batches(self) -> None:
        """Raises UsageError if a replica would never have a row."""
        replicas, rows = replicas_of(self.model.strategy), self.config.batch_size
        if rows < replicas:
            raise UsageError(
                f"--batch_size={rows} is smaller than the number of replicas, {replicas}; give a "
                "larger one, or fewer devices."
            )

    @contextmanager
    def locked_directory(self) -> Iterator[checkpoints.Search]:
        """Creates the run directory and locks it; gives the checkpoints that it holds.

        Raises:
            DirectoryInUseError: another process writes to it, or has written to it meanwhile.
        """
        directory.refuse_full_disk(self.run_dir, bytes_of_checkpoints(self.model))
        self.is_new_directory = self.config.run_dir is None or not self.run_dir.exists()
        self.run_dir = directory.create(self.run_dir, may_exist=self.config.run_dir is not None)
        with directory.locked(self.run_dir):
            found = checkpoints.search(self.run_dir / "checkpoints")
            if found.newest != self.checkpoint:
                raise DirectoryInUseError(
                    f"{self.run_dir} was written to by another process meanwhile. Start again to "
                    "resume from there, or give another --run_dir."
                )
            try:
                yield found
            finally:
                if self.description:
                    sessions = provenance.ended(self.description["sessions"])
                    # Otherwise the run has ended with an error of its own.
                    with suppress(OSError, RunError, checkpoints.CheckpointError):
                        directory.update_config(self.run_dir, sessions=sessions)

    def make_callbacks(self) -> None:
        """Makes the callbacks of the experiment, which may write into the run directory.

        If that fails, what a new run has written is removed, unless the directory has more.

        Raises:
            UsageError: one of them cannot be part of a run.
            CheckpointError: the checkpoint is of a run with others, and not `--resume=changed`.
        """
        try:
            self.own = self.compared_callbacks(self.run_dir)
        except Exception:
            if self.checkpoint is None:
                directory.remove_unused(
                    self.run_dir, self.progress["source"], keep_folder=not self.is_new_directory
                )
            raise

    def compared_callbacks(self, folder: Path) -> OwnCallbacks:
        """Returns the callbacks of the experiment, compared with those of the checkpoint.

        Args:
            folder: where they may write.

        Raises:
            UsageError, CheckpointError: as `make_callbacks`.
        """
        make, resumed = self.parts.callbacks, self.checkpoint
        with printed_warnings():
            config = self.config.replace(run_dir=str(folder))
            made = [] if make is None else make(config, self.data)
        own = OwnCallbacks(
            made,
            resumes=resumed is not None,
            position=0 if resumed is None else resumed.position,
        )
        own.refuse_unsettable_learning_rate(self.model)
        if resumed is None:
            return own
        difference = own.difference_from(self.saved_of_own)
        if difference is not None and config.resume != "changed":
            raise checkpoints.CheckpointError(
                f"{self.run_dir} cannot be resumed: {difference}. Give another --run_dir, or "
                "resume with --resume=changed: callbacks without a saved state start from scratch."
            )
        if difference is not None and self.claim == "bit-exact":
            self.progress["claim"] = f"valid, not bit-exact: {difference}"
        return own

    def restore(self) -> None:
        """Restores the model from the checkpoint, and decides what may be claimed of the run."""
        progress: dict[str, Any] = {"identity": provenance.new_identity(self.experiment)}
        changes: list[str] = []
        if self.checkpoint is not None:
            progress = checkpoints.restore(self.model, self.checkpoint)
            found = sources.changes_since(self.run_dir, progress.get("source"), self.source)
            changes = [each.what for each in found]
            if self.source.is_of_notebook:
                changes.append("other cells of the notebook are not compared")
        replicas = replicas_of(self.model.strategy)
        profile = reproducibility.profile(self.execution, self.config, self.device, replicas)
        claim = reproducibility.claim(
            profile,
            progress.get("profile", {}),
            progress.get("claim", ""),
            changes,
            rows_have_numbers=self.data.train.is_repeatable,
        )
        self.progress = progress | {"profile": profile, "claim": claim}
        done = (directory.read_summary(self.run_dir) or {}).get("evaluation", {})
        self.has_stopped = resume.has_stopped(self.config, progress, done.get("flags", ()))
        if self.has_stopped:
            self.progress["stopped_with"] = resume.stops_with(self.config)

    def describe(self) -> None:
        """Writes config.json, and removes what describes other weights."""
        config, data = self.config, self.data
        if not self.is_trained:
            for name in directory.OF_WEIGHTS:
                (self.run_dir / name).unlink(missing_ok=True)
        file = experiment_file(self.parts.build)
        self.progress["source"] = sources.keep(self.run_dir, self.source)
        sessions = []
        if self.checkpoint is not None:
            sessions = directory.read_config(self.run_dir).get("sessions", [])
        self.description = {
            "identity": self.progress.get("identity"),
            **describe(self.experiment, file, config, data, self.device),
            "defaults": directory.as_plain(defaults_of(self.parts.build, config.dataset)),
            **describe_model(self.model, data, self.execution),
            "source": self.progress["source"],
            "sessions": [*sessions, provenance.session(file.parent, self.progress["source"])],
            "reproducibility": {"claim": self.claim, "profile": self.progress["profile"]},
            "has_checkpoint": self.checkpoint is not None,
        }
        directory.write_config(self.run_dir, self.description)

    def rewind(self, found: checkpoints.Search) -> None:
        """Rewinds checkpoints and logs to the checkpoint that is resumed; prints what follows.

        Args:
            found: the checkpoints of the run directory; damaged ones are reported.
        """
        config, data = self.config, self.data
        checkpoints.set_aside(found)
        short = logs.rewind(self.run_dir, self.progress.get("logs", {}))
        problems = [f"{problem}; it is skipped and kept aside" for _, problem in found.damaged]
        problems += [f"{name} has lost lines since the checkpoint was taken" for name in short]
        if self.claim != "bit-exact":
            problems.append(f"this run is {self.claim}")
        if config.precision == "mixed_bfloat16" and self.device.startswith("CPU"):
            slow = warning_of_bfloat16()
            problems += [] if slow is None else [slow]
        for problem in problems:
            print(f"warning: {problem}", file=sys.stderr)
        if config.verbose:
            steps = data.train.steps(config.batch_size)
            screen.print_start(
                self.description, data, self.run_dir, steps, self.checkpoint, config.epochs
            )

    def train(self, folder: Path) -> None:
        """Trains the remaining epochs, with the gate and the callbacks that log and save.

        Args:
            folder: what is written into; of the chief, the run directory.

        Raises:
            DivergedError, FileSystemError: as `run`.
        """
        config, data, model = self.config, self.data, self.model
        position = 0 if self.checkpoint is None else self.checkpoint.position
        is_chief = self.peers.number == 0
        if self.is_trained:
            if not is_chief:
                return
            # Nothing is left, but a full disk may have kept lines of the log back.
            kept_back = self.progress.get("callbacks", {}).get(MetricsFile.__name__, {})
            append(self.run_dir / directory.METRICS, kept_back.get("waiting", ""))
            return
        batches = data.train.on_device(
            config.batch_size, config.data_seed, self.epochs_before, self.names, position
        )
        gate = FiniteGate(model, batches, folder, skip=config.on_nonfinite == "skip")
        model.guard = gate
        metrics = MetricsFile(folder / directory.METRICS)
        callbacks: list[keras.callbacks.Callback] = [StopWhenDiverged(folder)]
        if is_chief:
            callbacks.append(WarnOfCollapse())
        callbacks.append(self.own)  # before those that log: it may add to the figures of an epoch
        if is_chief:
            callbacks += self.watch_factors()
            callbacks += tensorboard_callbacks(
                config, data, self.names, folder, self.description, may_change(self.parts.build)
            )
        callbacks.append(metrics)
        if config.early_stopping:
            callbacks.insert(0, StopEarly(config.early_stopping))
        if config.verbose:
            callbacks.append(Console(bar=None if config.verbose == 1 else False))
        stateful = [gate, *(found for found in callbacks if isinstance(found, Resumable))]
        saving = Saving(folder, stateful, config, self.checkpoint, self.progress, writes=is_chief)
        try:
            with printed_warnings(), saving.after_an_error(), cluster.agreed_signals():
                model.fit(
                    batches,
                    epochs=config.epochs,
                    initial_epoch=self.epochs_before,
                    validation_data=data.validation.on_device(
                        validation_batch_size(self.data), names=self.names
                    ),
                    callbacks=[*callbacks, saving, *(make() for make in watchers)],
                    verbose=0,
                )
        finally:
            model.guard = None  # it belongs to these batches
        self.has_stopped = model.stop_training
        if self.has_stopped and config.verbose:
            print(f"Training ended early, after {model.step} steps.", flush=True)
        if metrics.waiting:
            raise FileSystemError(
                f"{metrics.path} cannot be written. All is saved: the same command writes its "
                "lines and the results, when there is room."
            )

    def watch_factors(self) -> list[keras.callbacks.Callback]:
        """Returns what compares codes with factors during training; it adds to the figures."""
        if not self.config.disentanglement:
            return []
        from vae_research.runs.session.disentanglement import disentanglement_callback

        return [disentanglement_callback(self.config, self.data, self.names, self.run_dir)]

    def ending(self, seconds: float) -> Ending:
        """Returns how the training has ended, after `seconds` of it."""
        return Ending(
            self.epochs_before, self.has_stopped, seconds, self.claim, self.progress["source"]
        )


def bytes_of_checkpoints(model: VAE) -> int:
    """Returns the size of all checkpoints that are on disk at a time."""
    size = sum(var.value.dtype.size * math.prod(var.shape) for var in saved_variables(model))
    # Those that are kept, the best one, and the one that is being written.
    return (checkpoints.KEPT + 2) * size

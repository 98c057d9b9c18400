"""When a run is saved, and what is saved beside the variables. Imports TensorFlow."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vae_research import checkpoints, files
from vae_research.callbacks.base import Resumable
from vae_research.runs.cli import signals
from vae_research.runs.cli.config import Config
from vae_research.runs.cli.errors import (
    DivergedError,
    FileSystemError,
    PrunedError,
    RunError,
    UsageError,
)
from vae_research.runs.session import directory, logs
from vae_research.runs.session.fit import callback_states
from vae_research.runs.session.resume import has_stopped, stops_with
from vae_research.runs.session.scores import score

# What every checkpoint of a session says of its run.
_OF_THE_RUN = ("identity", "source", "profile", "claim")
# Saves by time are at least this many times the duration of a save apart: they cost at most 1 %.
_TIMES_A_SAVE = 100


class Saving(keras.callbacks.Callback):
    """Saves a run when a save is due, at a signal, and at the end; restores a saved state.

    Those that change anything come before it. A state is saved between two calls of the compiled
    steps, with everything that is needed to resume there: running sums, states of callbacks,
    lengths of logs.
    If a callback sets `stop_training` within an epoch, training ends after the epoch.

    Args:
        run_dir: the run directory.
        callbacks: whose states are saved; the gate of the run may be among them.
        config: says when to save.
        checkpoint: what the run resumes from, None at its beginning.
        progress: what was saved beside the variables of that checkpoint, `profile` and `claim` of
            this session (see `reproducibility`), the identity of the run, and the folder of its
            kept source.
        writes: False for a worker that is not the chief of a run: it decides as the chief does.
    """

    def __init__(
        self,
        run_dir: Path,
        callbacks: Sequence[Resumable],
        config: Config,
        checkpoint: checkpoints.Checkpoint | None,
        progress: dict[str, Any],
        *,
        writes: bool = True,
    ) -> None:
        super().__init__()
        self._run_dir, self._callbacks, self._config = run_dir, list(callbacks), config
        self._saver = checkpoints.Saver(run_dir / "checkpoints")
        self._checkpoint, self._progress, self._writes = checkpoint, progress, writes
        # Epoch and steps of it that are done, now and when it was last saved.
        self._place = (0, 0) if checkpoint is None else (checkpoint.epoch, checkpoint.position)
        self._saved_place, self._saved_at = self._place, time.monotonic()
        self._has_saved, self._is_noted = False, checkpoint is not None
        # The progress at the end of an epoch's training part, until the epoch is over.
        self._training_part: dict[str, Any] | None = None
        self._stops = False  # whether a callback has asked for it within this epoch
        self._score: float | None = None
        self._best_score: float | None = progress.get("best_score")  # of the states that were saved

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Restores the states of callbacks when a run resumes between two epochs."""
        if self._checkpoint is not None and not self._checkpoint.position:
            self._restore()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Restores states of callbacks and running means when a run resumes within an epoch."""
        if self._checkpoint is None:
            self._place = (epoch, 0)
            return
        self._restore()
        self._stops = has_stopped(self._config, self._progress)

    def _restore(self) -> None:
        """Restores the states of callbacks, and running means within an epoch."""
        if self._checkpoint is None:
            return
        path, position, self._checkpoint = self._checkpoint.path, self._checkpoint.position, None
        try:
            callback_states.set_states(self._callbacks, self._progress.get("callbacks", {}))
            if position:
                self.model.set_running_sums(self._progress["running_sums"])
        except checkpoints.CheckpointError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            what = f"{type(error).__name__}: {error}"
            raise checkpoints.CheckpointError(f"{path} does not fit this run ({what})") from error

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves if a save is due or a signal was received."""
        epoch, before = self._place
        steps = self.model.steps_per_epoch
        # In a resumed epoch the first calls, which have nothing to do, count as well.
        self._place = epoch, max(before, min(batch + 1, steps))
        # Keras would leave out the rest of the epoch, which the place of a checkpoint counts.
        self._stops = self._stops or self.model.stop_training
        self.model.stop_training = self._stops and self._place[1] == steps
        if self._place[1] == steps:
            self._training_part = self._progress_now()
        signals.agree()
        if signals.is_received():
            self.save_now()
            signals.raise_if_received()
        self._note_checkpoint()
        if self._place[1] < steps and self._is_due():
            _warn_of(self._save(self._progress_now()))

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves the end of the training part if a signal was received."""
        signals.agree()
        if signals.is_received():
            self.save_now()
            signals.raise_if_received()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves if a save is due or a signal was received."""
        self._place, self._training_part, self._stops = (epoch + 1, 0), None, False
        self._score = score(logs or {}, "val_")
        signals.agree()
        if signals.is_received():
            self.save_now()
            signals.raise_if_received()
        if self._is_due():
            _warn_of(self._save(self._progress_now()))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Saves the final state, and waits until it is on disk."""
        self.save_now()

    def save_now(self) -> None:
        """Saves the last state that the run can resume from, and waits until it is on disk.

        Raises:
            FileSystemError: it cannot be written.
        """
        if self._training_part is None:
            # If another callback failed, this one was not called after the last call.
            epoch, _ = self._place
            self._place = epoch, self.model.step - epoch * self.model.steps_per_epoch
        if self._finish_writing() is None and self._place == self._saved_place:
            return
        error = self._save(self._training_part or self._progress_now()) or self._finish_writing()
        if error is not None:
            raise FileSystemError(
                f"the state of step {self.model.step} cannot be saved: {_words(error)}. The same "
                "command resumes from the last checkpoint that could be written."
            ) from error

    @contextmanager
    def after_an_error(self) -> Iterator[None]:
        """Saves before an error of the user's code is raised; completes a save in any case."""
        try:
            yield
        except UsageError:  # a callback has a state that no checkpoint holds
            if self._training_part is not None and self._place[0]:
                self.save_now()  # the first epoch is not worth it
            raise
        except PrunedError:
            self.save_now()
            raise
        except (RunError, KeyboardInterrupt):
            raise
        except tf.errors.ResourceExhaustedError as error:
            raise FileSystemError(
                f"out of memory in a training step ({str(error).partition(chr(10))[0]}). A smaller "
                "--batch_size needs less; --steps_per_call and --precision may help, too."
            ) from error
        except Exception:
            if self.model is not None and self._place != self._saved_place:
                self.save_now()
            raise
        finally:
            self._finish_writing()

    def _save(self, progress: dict[str, Any]) -> OSError | None:
        """Starts a save; returns the error if it cannot be started."""
        if not self._writes:
            return None
        directory.refuse_removed(self._run_dir)
        # The next save may find space again; training continues meanwhile.
        _warn_of(self._finish_writing())
        metrics = self._run_dir / directory.METRICS
        if metrics.exists():
            try:
                files.flush(metrics)  # the checkpoint relies on its lines
            except OSError as error:
                self._saved_at = time.monotonic()  # the next attempt is when a save is due by time
                return error
        epoch, position = self._place
        if self._is_best():
            self._best_score = self._score
        progress["best_score"] = self._best_score
        self._saver.save(
            self.model,
            epoch=epoch,
            position=position,
            score=None if position else self._score,
            progress=progress,
        )
        self._saved_place, self._saved_at = self._place, time.monotonic()
        self._has_saved = True
        return None

    def _finish_writing(self) -> OSError | None:
        """Waits for the save in progress; returns the error if it could not be written.

        Raises:
            DivergedError: the state is not finite.
        """
        try:
            self._saver.wait()
        except OSError as error:
            return error
        except checkpoints.NotFiniteError as error:
            raise DivergedError(str(error)) from error
        self._note_checkpoint()
        return None

    def _note_checkpoint(self) -> None:
        """Notes in config.json that there is a checkpoint: if none is found later, it was lost."""
        if self._is_noted or not self._has_saved or self._saver.is_writing:
            return
        with suppress(OSError):  # a full disk; the next call tries again
            if checkpoints.search(self._run_dir / "checkpoints").newest is not None:
                directory.update_config(self._run_dir, has_checkpoint=True)
                self._is_noted = True

    def _is_due(self) -> bool:
        config, steps = self._config, self.model.steps_per_epoch
        (epoch, position), (saved_epoch, saved_position) = self._place, self._saved_place
        if config.checkpoint_epochs and epoch // config.checkpoint_epochs > (
            saved_epoch // config.checkpoint_epochs
        ):
            return True
        if config.early_stopping and self._is_best():
            return True  # the epoch from which its patience is counted
        if config.checkpoint_steps:
            now, last = epoch * steps + position, saved_epoch * steps + saved_position
            if now // config.checkpoint_steps > last // config.checkpoint_steps:
                return True
        if not config.checkpoint_minutes or self._saver.is_writing:
            return False
        seconds = max(60 * config.checkpoint_minutes, _TIMES_A_SAVE * self._saver.seconds)
        return time.monotonic() - self._saved_at >= seconds

    def _is_best(self) -> bool:
        """Returns whether validation has just been better than in all states that were saved."""
        if self._place[1] or self._score is None:
            return False
        return self._best_score is None or self._score > self._best_score

    def _progress_now(self) -> dict[str, Any]:
        sums = [np.asarray(variable.numpy()).tolist() for variable in self.model.running_sums()]
        stops = self._stops or self.model.stop_training
        return {
            "running_sums": sums,
            "callbacks": callback_states.get_states(self._callbacks),
            "stopped_with": stops_with(self._config) if stops else None,
            "logs": logs.lengths(self._run_dir),
            **{name: self._progress[name] for name in _OF_THE_RUN if name in self._progress},
        }


def _warn_of(error: OSError | None) -> None:
    if error is not None:
        print(f"warning: a checkpoint was not written: {_words(error)}", file=sys.stderr)


def _words(error: OSError) -> str:
    return " ".join(str(part) for part in (error.strerror or error, error.filename or "") if part)

"""A profile of chosen steps, for TensorBoard's Profile dashboard."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import tensorflow as tf

from vae_research.callbacks.base import StepCallback


class Profile(StepCallback):
    """Records what TensorFlow does in some optimizer steps, under `train/plugins/profile`.

    A compiled call is recorded as a whole: if it makes several steps, recording begins with the
    call that contains the first step and ends with the call that contains the last one.

    Args:
        log_dir: the run directory.
        first: the first recorded step, from 1. Prefer a later one, since step 1 compiles.
        last: the last recorded step.

    Raises:
        ValueError: `first` is below 1 or above `last`.
    """

    def __init__(self, log_dir: str | Path, first: int, last: int) -> None:
        super().__init__()
        if not 1 <= first <= last:
            raise ValueError(
                f"The steps to profile must be first,last with 1 <= first <= last; got "
                f"{first},{last}."
            )
        self.first, self.last = first, last
        self._folder = str(Path(log_dir) / "train")
        self._is_recording = False
        self._is_over = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Warns if the plugin that shows a profile is not installed."""
        if importlib.util.find_spec("xprof") is None:
            warnings.warn(
                "The profile will be written, but TensorBoard needs a plugin to show it: "
                "pip install 'vae_research[profile]'.",
                stacklevel=2,
            )

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Starts recording before the call that contains the first step."""
        step = self._steps_before + batch + 1
        last_of_call = step + self.model.steps_per_execution - 1
        if self._is_over or self._is_recording or last_of_call <= self._steps_done:
            return
        if step <= self.last and last_of_call >= self.first:
            self._start()

    def on_step(self, step: int) -> None:
        """Stops recording after the last step."""
        if self._is_recording and step >= self.last:
            self._stop()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Stops recording if training ends before the last step."""
        if self._is_recording:
            self._stop()

    def _start(self) -> None:
        try:
            tf.profiler.experimental.start(self._folder)
            self._is_recording = True
        except (tf.errors.OpError, OSError) as error:  # a profiler is running, or the disk is full
            self._give_up(error)

    def _stop(self) -> None:
        self._is_recording, self._is_over = False, True
        try:
            tf.profiler.experimental.stop()
        except (tf.errors.OpError, OSError) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._is_over = True
        reason = " ".join(str(error).split())
        warnings.warn(f"There is no profile: {reason}. Training continues.", stacklevel=2)

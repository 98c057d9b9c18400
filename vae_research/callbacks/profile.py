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

    A compiled call is recorded as a whole: where it makes several steps, recording begins with the
    call of the first step and ends with the call of the last one.

    Args:
        log_dir: the run directory.
        first: the first step to be recorded, from 1. Better not the very first, which compiles.
        last: the last one.

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
        """Says what is missing to look at the result."""
        if importlib.util.find_spec("xprof") is None:
            warnings.warn(
                "The profile will be written, and TensorBoard needs a plugin to show it: "
                "pip install 'vae_research[profile]'.",
                stacklevel=2,
            )

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Begins with the call that has the first step."""
        step = self._steps_before + batch + 1
        ends_with = step + self.model.steps_per_execution - 1
        if self._is_over or self._is_recording or ends_with <= self._steps_done:
            return
        if step <= self.last and ends_with >= self.first:
            self._begin()

    def on_step(self, step: int) -> None:
        """Ends with the last step."""
        if self._is_recording and step >= self.last:
            self._end()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Ends where training ends before the last step."""
        if self._is_recording:
            self._end()

    def _begin(self) -> None:
        try:
            tf.profiler.experimental.start(self._folder)
            self._is_recording = True
        except (tf.errors.OpError, OSError) as error:  # one is running, or the disk is full
            self._give_up(error)

    def _end(self) -> None:
        self._is_recording, self._is_over = False, True
        try:
            tf.profiler.experimental.stop()
        except (tf.errors.OpError, OSError) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._is_over = True
        reason = " ".join(str(error).split())
        warnings.warn(f"There is no profile: {reason}. Training goes on.", stacklevel=2)

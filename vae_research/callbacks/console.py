"""Training progress on the screen."""

from __future__ import annotations

import sys
import time
from typing import Any

import keras

from vae_research.callbacks.base import EpochCallback, EpochRecord

# Few updates, since asking for the loss waits for the step to finish.
_SECONDS_BETWEEN_UPDATES = 0.2


class Console(EpochCallback):
    """Keras' progress bar during an epoch, and one line at its end.

    The line has reconstruction, KL and ELBO of training and validation in nats per example, or the
    loss if there is no ELBO.

    Args:
        bar: show the bar; by default if standard output is a terminal.
    """

    def __init__(self, *, bar: bool | None = None) -> None:
        super().__init__()
        self.bar = sys.stdout.isatty() if bar is None else bar
        self._progress: keras.utils.Progbar | None = None
        self._updated = 0.0
        self._batches = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Starts the bar."""
        super().on_epoch_begin(epoch, logs)
        if self.bar:
            self._progress = keras.utils.Progbar(self.params["steps"], stateful_metrics=["loss"])

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Moves the bar, at most five times a second."""
        # The last call of an epoch may make fewer steps than Keras counts.
        self._batches = min(batch + 1, self.params["steps"] or batch + 1)
        now = time.perf_counter()
        if self._progress is not None and now - self._updated > _SECONDS_BETWEEN_UPDATES:
            self._updated = now
            loss = float((logs or {})["loss"])
            self._progress.update(self._batches, [("loss", loss)], finalize=False)

    def on_training_part_end(self) -> None:
        """Completes the bar."""
        if self._progress is not None:
            self._progress.target = self._batches  # unknown until now if the data is endless
            self._progress.update(self._batches, finalize=True)
            self._progress = None

    def on_record(self, record: EpochRecord) -> None:
        """Prints the line."""
        width = len(str(record.epochs))
        splits = [f"{name} {_describe(found)}" for name, found in record.figures.items()]
        print(
            f"epoch {record.epoch:{width}d}/{record.epochs} | {' | '.join(splits)} nats | "
            f"{record.images_per_second:,.0f} images/s",
            flush=True,
        )


def _describe(figures: dict[str, float]) -> str:
    names = {"reconstruction": "reconstruction", "kl": "KL", "elbo": "ELBO"}
    if "elbo" not in figures:
        names = {"loss": "loss"}
    return " ".join(
        f"{shown} {figures[name]:.2f}" for name, shown in names.items() if name in figures
    )

"""Codes of validation examples as points in TensorBoard's projector."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from vae_research.arguments import checked_integer
from vae_research.callbacks.inference import Inference
from vae_research.callbacks.tensorboard.summaries import Summaries


class Projector(keras.callbacks.Callback):
    """Writes codes (without noise) for the projector, with labels and thumbnails.

    They are written after the first epoch, then every `every_epochs` epochs, and when training
    ends. Each time they replace the earlier ones.

    Args:
        log_dir: the run directory.
        data: `[count, ...]`, or a dictionary of such arrays, of which the first 500 examples are
            shown; or an `Inference`.
        labels: `[count]`, shown beside the points and as their colour.
        images: `[count, height, width, channels]` in [0, 1], thumbnails of the points.
        every_epochs: interval in epochs.

    Raises:
        ValueError: `every_epochs` is not an integer >= 1.
    """

    def __init__(
        self,
        log_dir: str | Path,
        data: np.ndarray | Mapping[str, np.ndarray] | Inference,
        labels: np.ndarray | None = None,
        images: np.ndarray | None = None,
        *,
        every_epochs: int = 10,
    ) -> None:
        super().__init__()
        self.every_epochs = checked_integer("every_epochs", every_epochs, 1)
        self.inference = Inference.wrap(data)
        count = len(keras.tree.flatten(self.inference.data)[0])
        self.labels = None if labels is None else labels[:count]
        self.images = None if images is None else images[:count]
        self._summaries = Summaries(log_dir)
        self._epochs = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Clears the codes of the previous epoch."""
        self.inference.clear()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes after the first epoch of this training, then every `every_epochs` epochs."""
        if self._epochs % self.every_epochs == 0:
            self._write()
        self._epochs += 1

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Writes one last time and closes the event files."""
        self._write()
        self._summaries.close()

    def _write(self) -> None:
        codes = self.inference(self.model)["code"]
        self._summaries.vectors("validation", "codes", codes, self.labels, self.images)

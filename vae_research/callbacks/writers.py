"""The event files of a run: train/ and validation/ are two runs of TensorBoard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf


class Summaries:
    """Writes summaries under `log_dir/train` and `log_dir/validation`, opened when first used.

    Args:
        log_dir: the run directory.
    """

    def __init__(self, log_dir: str | Path) -> None:
        self.log_dir = Path(log_dir)
        self._writers: dict[str, tf.summary.SummaryWriter] = {}

    def scalars(self, split: str, values: dict[str, float], step: int) -> None:
        """Writes scalars by tag at an optimizer step."""
        with self._writer(split).as_default():
            for tag, value in values.items():
                tf.summary.scalar(tag, value, step=step)

    def image(self, split: str, tag: str, picture: np.ndarray, step: int) -> None:
        """Writes one picture, `[height, width, channels]` in [0, 1]."""
        with self._writer(split).as_default():
            tf.summary.image(tag, picture[np.newaxis], step=step)

    def flush(self, split: str) -> None:
        """Makes what was written visible to TensorBoard."""
        self._writer(split).flush()

    def close(self) -> None:
        """Closes the event files; a later write opens new ones."""
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def _writer(self, split: str) -> tf.summary.SummaryWriter:
        if split not in self._writers:
            self._writers[split] = tf.summary.create_file_writer(str(self.log_dir / split))
        return self._writers[split]

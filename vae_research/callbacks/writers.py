"""The event files of a run: train/ and validation/ are two runs of TensorBoard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorboard.plugins import projector


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

    def vectors(
        self, split: str, name: str, vectors: np.ndarray, labels: np.ndarray | None = None
    ) -> None:
        """Writes vectors for the projector, as the only ones of this split.

        Args:
            split: the folder; it holds an event file from now on, without which the projector does
                not see it.
            name: how TensorBoard calls them.
            vectors: `[count, latent]`.
            labels: `[count]`, shown beside the points.

        Raises:
            ValueError: there are not as many labels as vectors.
        """
        if labels is not None and len(labels) != len(vectors):
            raise ValueError(f"There are {len(vectors)} vectors and {len(labels)} labels.")
        self.flush(split)
        folder = self.log_dir / split
        config = projector.ProjectorConfig()
        embedding = config.embeddings.add(tensor_name=name, tensor_path=f"{name}.tsv")
        np.savetxt(folder / embedding.tensor_path, vectors, fmt="%.6g", delimiter="\t")
        if labels is not None:
            embedding.metadata_path = f"{name}_labels.tsv"
            np.savetxt(folder / embedding.metadata_path, labels, fmt="%s")
        (folder / "projector_config.pbtxt").write_text(str(config), encoding="utf-8")

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

"""Pictures of reconstructions and of samples from the prior."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from vae_research.callbacks.writers import Summaries
from vae_research.model import VAE


class Pictures(keras.callbacks.Callback):
    """Writes reconstructions and prior samples to TensorBoard after every epoch.

    The images and the codes are the same at every epoch. Tags, under `validation`:
    `reconstructions`, pairs of rows with originals above what the model makes of them, and
    `samples`, means of p(x|z) for codes from the prior.

    Args:
        log_dir: the run directory.
        images: `[count, height, width, channels]`; the first `columns * 4` are shown.
        columns: images side by side.
    """

    def __init__(self, log_dir: str | Path, images: np.ndarray, *, columns: int = 10) -> None:
        super().__init__()
        self.images = images[: columns * 4]
        self.columns = columns
        self._summaries = Summaries(log_dir)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the pictures."""
        pictures = {"reconstructions": reconstructions(self.model, self.images, self.columns)}
        if self.model.bottleneck.has_prior:
            pictures["samples"] = samples(self.model, self.columns)
        for tag, picture in pictures.items():
            self._summaries.image("validation", tag, picture, self.model.step)
        self._summaries.flush("validation")

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Closes the event files."""
        self._summaries.close()


def reconstructions(model: VAE, images: np.ndarray, columns: int) -> np.ndarray:
    """Returns a picture: rows of originals, each above the row of its reconstructions."""
    rows = []
    for start in range(0, len(images), columns):
        originals = images[start : start + columns]
        rows += [originals, model.reconstruct(originals).numpy()]
    return tile(rows, columns)


def samples(model: VAE, columns: int, rows: int = 8) -> np.ndarray:
    """Returns a picture of means of p(x|z) for codes from the prior, the same at every call."""
    return tile([model.sample(rows * columns, seed=0).numpy()], columns)


def decoded_plane(
    model: VAE, low: Sequence[float], high: Sequence[float], *, columns: int = 20
) -> np.ndarray:
    """Returns a picture of means of p(x|z) on a grid of codes over a latent plane.

    The first latent dimension grows to the right, the second upwards.

    Args:
        model: with two latent dimensions.
        low: the code of the lower left corner.
        high: the code of the upper right corner.
        columns: images along each axis, each in the middle of its part of the plane.

    Raises:
        ValueError: the model has another number of latent dimensions, or makes no images.
    """
    if model.bottleneck.latent_dim != 2:
        raise ValueError(
            f"A plane needs 2 latent dimensions; the model has {model.bottleneck.latent_dim}."
        )
    middles = (np.arange(columns, dtype=np.float32) + 0.5) / columns
    x, y = (np.float32(a) + middles * np.float32(b - a) for a, b in zip(low, high, strict=True))
    codes = np.stack(np.meshgrid(x, y[::-1]), axis=-1).reshape(-1, 2)
    images = model.decode(codes).numpy()
    if images.ndim != 4:
        raise ValueError(f"The model makes values of shape {images.shape[1:]}, not images.")
    return tile([images], columns, gap=0)


def tile(rows: list[np.ndarray], columns: int, gap: int = 2) -> np.ndarray:
    """Returns images as one picture in [0, 1], `[height, width, 1 or 3]`, with white gaps.

    Values outside [0, 1] (standardised data) are brought in by their own minimum and maximum.

    Args:
        rows: groups of `[count, height, width, channels]`; each group starts on a new row.
        columns: images side by side.
        gap: pixels between images.
    """
    values = np.concatenate(rows)
    low, high = min(0.0, float(values.min())), max(1.0, float(values.max()))
    height, width, channels = values.shape[1:]
    shown = channels if channels in (1, 3) else 1  # of other channel counts, the first is shown
    lines = []
    for group in rows:
        for start in range(0, len(group), columns):
            line = np.ones([height + gap, columns * (width + gap), shown], np.float32)
            for column, image in enumerate(group[start : start + columns]):
                left = column * (width + gap)
                scaled = (image[..., :shown] - low) / (high - low)
                line[:height, left : left + width] = scaled
            lines.append(line)
    picture = np.concatenate(lines)
    return picture[: len(picture) - gap, : picture.shape[1] - gap]

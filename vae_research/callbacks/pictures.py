"""Pictures of reconstructions, of samples from the prior, and of what each dimension means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vae_research.callbacks.inference import Inference
from vae_research.callbacks.tensorboard import event_protos
from vae_research.callbacks.tensorboard.drawing import heat, tile
from vae_research.callbacks.tensorboard.summaries import Summaries
from vae_research.model import VAE

# Dimensions that are traversed, the steps of each, and how far they go from the middle.
_TRAVERSED, _STEPS, _DEVIATIONS = 20, 7, 3.0
# Rows of originals, and of samples.
_ORIGINALS, _SAMPLES = 2, 4
_PLANE = 16  # images along each axis

_DESCRIPTIONS = {
    "reconstructions": "Rows of validation images, each above the row of its reconstructions.",
    "errors": "Absolute error of each pixel of the reconstructions, from black (none) to light "
    "yellow (the whole range of the data).",
    "samples": "Means of p(x|z) for codes from the prior, the same codes at every epoch.",
    "traversals": "A row for each latent dimension, the one with the largest KL divergence on top: "
    "it moves from -3 to 3 standard deviations, the others stay those of the first image.",
    "plane": "Means of p(x|z) over the latent plane, from -3 to 3 standard deviations; the first "
    "dimension grows to the right, the second upwards.",
}


class Pictures(keras.callbacks.Callback):
    """Writes pictures of a model to TensorBoard after every epoch.

    The images and the codes are the same at every epoch. Tags, under `validation`:

    - `reconstructions`: rows of originals, each above what the model makes of them.
    - `errors`: the absolute error of every pixel of these.
    - `samples`: means of p(x|z) for codes from the prior, where there is one.
    - `traversals`: the code of the first image, one dimension at a time moved from -3 to 3 standard
      deviations (of the prior, or of the codes where there is none); sorted by KL divergence (by
      variance where there is none), at most 20.
    - `plane`, for two latent dimensions: means of p(x|z) over the same range of both.

    Args:
        log_dir: the run directory.
        images: `[count, height, width, channels]`, of which the first `columns * 2` are shown and
            the first 500 tell the order of the dimensions; or an `Inference` over images.
        columns: images side by side.
    """

    def __init__(
        self, log_dir: str | Path, images: np.ndarray | Inference, *, columns: int = 10
    ) -> None:
        super().__init__()
        self.inference = Inference.over(images)
        self.images = self.inference.data[: columns * _ORIGINALS]
        self.columns = columns
        self._summaries = Summaries(log_dir)
        self._decode = tf.function(lambda model, codes: model.decode(codes), autograph=False)
        self._prior: Any = None
        self._from_prior: list[np.ndarray] = []

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Forgets the codes of the epoch before."""
        self.inference.forget()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the pictures."""
        step, made = self.model.step, self._made_by(self.model)
        for tag, draw in self._drawings(made).items():
            self._summaries.add(
                "validation", lambda tag=tag, draw=draw: _message(tag, draw()), step
            )
        self._summaries.flush("validation")

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Closes the event files."""
        self._summaries.close()

    def draw(self, model: VAE) -> dict[str, np.ndarray]:
        """Returns the pictures of a model by their tags, as they are written."""
        self.inference.forget()
        return {tag: draw() for tag, draw in self._drawings(self._made_by(model)).items()}

    def _made_by(self, model: VAE) -> dict[str, np.ndarray]:
        found = self.inference(model)
        codes = found["code"]
        # How much each dimension is used: its KL divergence, or its variance where there is none.
        used = found["kl"].mean(axis=0) if "kl" in found else codes.var(axis=0)
        order = np.argsort(-used, kind="stable")[:_TRAVERSED]
        wanted = {"reconstructed": codes[: len(self.images)]}
        crowd = codes
        if model.bottleneck.has_prior:
            wanted["samples"], crowd = self._codes_from_prior(model)
        middle, deviation = crowd.mean(axis=0), crowd.std(axis=0)
        wanted["traversals"] = traversals(codes[0], middle, deviation, order)
        if model.bottleneck.latent_dim == 2:
            corner = _DEVIATIONS * deviation
            wanted["plane"] = plane_codes(middle - corner, middle + corner, _PLANE)
        decoded = self._decode(model, tf.constant(np.concatenate(list(wanted.values()))))
        ends = np.cumsum([len(rows) for rows in wanted.values()])
        return dict(zip(wanted, np.split(decoded.numpy(), ends[:-1]), strict=True))

    def _codes_from_prior(self, model: VAE) -> list[np.ndarray]:
        """Returns the codes of `samples`, and 1000 that tell middle and width of the prior."""
        bottleneck = model.bottleneck
        if bottleneck is not self._prior or bottleneck.variables:  # a prior that is trained moves
            self._prior = bottleneck
            draws = [(_SAMPLES * self.columns, [0, 0]), (1000, [1, 0])]
            self._from_prior = [
                bottleneck.sample_prior(count, tf.constant(key)).numpy() for count, key in draws
            ]
        return self._from_prior

    def _drawings(self, made: dict[str, np.ndarray]) -> dict[str, Callable[[], np.ndarray]]:
        """Returns what draws each picture; the drawing is for another thread."""
        originals = self.images
        drawings = {
            "reconstructions": lambda: pairs(originals, made["reconstructed"], self.columns),
            "errors": lambda: errors(originals, made["reconstructed"], self.columns),
            "samples": lambda: tile([made["samples"]], self.columns),
            "traversals": lambda: tile([made["traversals"]], _STEPS),
            "plane": lambda: tile([made["plane"]], _PLANE, gap=0),
        }
        missing = {"samples", "plane"} - made.keys()
        return {tag: draw for tag, draw in drawings.items() if tag not in missing}


def traversals(
    code: np.ndarray, middle: np.ndarray, deviation: np.ndarray, dimensions: np.ndarray
) -> np.ndarray:
    """Returns codes in which one dimension moves from -3 to 3 standard deviations.

    Args:
        code: `[latent]`, what the other dimensions stay at.
        middle: `[latent]`, where a dimension is in the middle of its row.
        deviation: `[latent]`, its standard deviation.
        dimensions: `[count]` integers, those that move, in the order of their rows.

    Returns:
        `[count * 7, latent]`, row by row.
    """
    steps = np.linspace(-_DEVIATIONS, _DEVIATIONS, _STEPS, dtype=np.float32)
    codes = np.tile(code, [len(dimensions), _STEPS, 1])
    for row, dimension in zip(codes, dimensions, strict=True):
        row[:, dimension] = middle[dimension] + steps * deviation[dimension]
    return codes.reshape([-1, len(code)])


def plane_codes(low: np.ndarray, high: np.ndarray, columns: int) -> np.ndarray:
    """Returns `[columns * columns, 2]`: codes of a plane, each in the middle of its part of it.

    Row by row from the top; the first dimension grows to the right, the second upwards.
    """
    middles = (np.arange(columns, dtype=np.float32) + 0.5) / columns
    x, y = (low[axis] + middles * (high[axis] - low[axis]) for axis in range(2))
    return np.stack(np.meshgrid(x, y[::-1]), axis=-1).reshape([-1, 2])


def reconstructions(model: VAE, images: np.ndarray, columns: int) -> np.ndarray:
    """Returns a picture: rows of originals, each above the row of its reconstructions."""
    return pairs(images, model.reconstruct(images).numpy(), columns)


def pairs(originals: np.ndarray, reconstructed: np.ndarray, columns: int) -> np.ndarray:
    """Returns a picture: rows of originals, each above the row of its reconstructions."""
    rows = []
    for start in range(0, len(originals), columns):
        part = slice(start, start + columns)
        rows += [originals[part], reconstructed[part]]
    return tile(rows, columns)


def errors(originals: np.ndarray, reconstructed: np.ndarray, columns: int) -> np.ndarray:
    """Returns a picture: the absolute error of every pixel, mean over channels, as a colour.

    Black is no error, the brightest colour the whole range of the originals (at least 1).
    """
    both = max(1.0, float(originals.max() - originals.min()))
    return tile([heat(np.abs(originals - reconstructed).mean(axis=-1) / both)], columns)


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
    corners = (np.array(corner, np.float32) for corner in (low, high))
    images = model.decode(plane_codes(*corners, columns)).numpy()
    if images.ndim != 4:
        raise ValueError(f"The model makes values of shape {images.shape[1:]}, not images.")
    return tile([images], columns, gap=0)


def _message(tag: str, picture: np.ndarray) -> event_protos.Summary:
    return event_protos.image(tag, picture, _DESCRIPTIONS[tag])

"""Pictures of reconstructions, of samples from the prior, and of latent traversals."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vae_research.callbacks.inference import WITH_CODE, Inference
from vae_research.callbacks.tensorboard import event_protos
from vae_research.callbacks.tensorboard.drawing import framed, heat, tile
from vae_research.callbacks.tensorboard.summaries import Summaries
from vae_research.model import VAE
from vae_research.priors.prior import Prior

# Traversals: dimensions, at most; codes for each; distance of the outer ones from the mean.
_TRAVERSED, _STEPS, _DEVIATIONS = 20, 7, 3.0
_ORIGINALS, _SAMPLES = 2, 4  # rows of the picture
_PLANE = 16  # images along each axis

# Tag and file of samples of a prior that was fitted after training.
SAMPLES_FITTED = "samples_fitted_prior"

_DESCRIPTIONS = {
    "reconstructions": "Rows of validation images, each above the row of its reconstructions.",
    "errors": "Absolute error of each pixel of the reconstructions.",
    "samples": "Means of p(x|z) for codes from the prior, the same codes at every epoch. A decoder "
    "that reads labels, or other arrays, gets those of the first examples.",
    SAMPLES_FITTED: "Means of p(x|z) for codes from the prior that was fitted after training.",
    "traversals": "A row for each latent dimension, the one with the largest KL divergence on top: "
    "it moves from -3 to 3 standard deviations, the others stay those of the first image.",
    "classes": "A row for each discrete variable: it is each of its classes in turn, the other "
    "values stay those of the first image.",
    "plane": "Means of p(x|z) over the latent plane, from -3 to 3 standard deviations; the first "
    "dimension grows to the right, the second upwards.",
}


class Pictures(keras.callbacks.Callback):
    """Writes pictures of a model to TensorBoard after every epoch.

    The images, and the noise of the samples, are the same at every epoch. If the decoder reads
    labels or other arrays of the data, a reconstruction gets its own, samples get those of the
    first examples in turn, and the other pictures those of the first one. Tags, under `validation`:

    - `reconstructions`: rows of originals, each above the row of its reconstructions.
    - `errors`: the absolute error of each of their pixels.
    - `samples`: means of p(x|z) for codes from the prior, if there is one.
    - `traversals`: means of p(x|z) for the code of the first image, with one dimension at a time
      moved from -3 to 3 standard deviations (of the prior, or of the codes if there is none). At
      most 20 dimensions, sorted by KL divergence, or by variance if there is none for each.
    - `classes`, for one-hot codes, whose values do not move: means of p(x|z) for the code of the
      first image, with one variable at a time set to each of its classes in turn; at most 20.
    - `plane`, for two latent dimensions: means of p(x|z) over the same range of both.

    Args:
        log_dir: the run directory.
        images: `[count, height, width, channels]`, of which the first `columns * 2` are shown and
            the first 500 determine the order of the dimensions; a dictionary with these as
            `inputs`; or an `Inference` over images.
        columns: images side by side.
        steps: images in a row of traversals.

    Attributes:
        traversed: columns of codes, as `VAE.code_layout` labels them, that the rows of the last
            traversals moved; and `use`, the KL divergence of every column in nats, or its variance
            if there is none for each.
    """

    def __init__(
        self,
        log_dir: str | Path,
        images: np.ndarray | Mapping[str, np.ndarray] | Inference,
        *,
        columns: int = 10,
        steps: int = _STEPS,
    ) -> None:
        super().__init__()
        self.inference = Inference.wrap(images)
        data = self.inference.data
        inputs = data["inputs"] if isinstance(data, Mapping) else data
        self.images = inputs[: columns * _ORIGINALS]
        self._conditions = conditions_of(data) if isinstance(data, Mapping) else {}
        self.columns, self.steps = columns, steps
        self.traversed = np.zeros(0, int)
        self.use = np.zeros(0)
        self._summaries = Summaries(log_dir)
        self._decode = tf.function(_decode, autograph=False)
        self._prior: Any = None
        self._prior_codes: list[np.ndarray] = []
        self._with_prior_codes: dict[str, np.ndarray] = {}

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Clears the codes of the previous epoch."""
        self.inference.clear()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the pictures."""
        step, images = self.model.step, self._images_of(self.model)
        for tag, draw in self._drawings(self.model, images).items():
            self._summaries.add("validation", functools.partial(_summary, tag, draw), step)
        self._summaries.flush("validation")

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Closes the event files."""
        self._summaries.close()

    def draw(self, model: VAE) -> dict[str, np.ndarray]:
        """Returns the pictures of a model by tag, as they are written."""
        drawings = self._drawings(model, self.images_of(model))
        return {tag: draw() for tag, draw in drawings.items()}

    def images_of(self, model: VAE) -> dict[str, np.ndarray]:
        """Returns the images of each picture, `[count, height, width, channels]`.

        They are `reconstructed`, and if the model has them `samples`, `traversals` (row by row),
        `classes` and `plane`.
        """
        self.inference.clear()
        return self._images_of(model)

    def _images_of(self, model: VAE) -> dict[str, np.ndarray]:
        """Decodes all images in one call."""
        found = self.inference(model)
        codes = found["code"]
        by_column = found.get("kl_of_columns")
        self.use = use = codes.var(axis=0) if by_column is None else by_column.mean(axis=0)
        discrete = one_hot_columns(model)
        order = np.argsort(-use, kind="stable")
        order = order[~np.isin(order, [column for each in discrete for column in each])]
        codes_of = {"reconstructed": codes[: len(self.images)]}
        population = codes
        if model.bottleneck.has_prior:
            codes_of["samples"], population = self._codes_from_prior(model)
        mean, deviation = population.mean(axis=0), population.std(axis=0)
        self.traversed = moved = order[:_TRAVERSED]
        if len(moved):
            codes_of["traversals"] = traversals(codes[0], mean, deviation, moved, self.steps)
        if discrete:
            codes_of["classes"] = class_codes(codes[0], discrete[:_TRAVERSED])
        if model.code_layout.size == 2 and not discrete:
            corner = _DEVIATIONS * deviation
            codes_of["plane"] = plane_codes(mean - corner, mean + corner, _PLANE)
        rows = [self._rows_of(name, len(codes)) for name, codes in codes_of.items()]
        given = self._conditions | {
            name.removeprefix(WITH_CODE): values
            for name, values in found.items()
            if name.startswith(WITH_CODE)
        }
        taken = {name: values[np.concatenate(rows)] for name, values in given.items()}
        start = len(codes_of["reconstructed"])
        for name, values in self._with_prior_codes.items():
            if name in taken and "samples" in codes_of:
                taken[name][start : start + len(values)] = values
        with model.averaging.averages():
            codes = tf.constant(np.concatenate(list(codes_of.values())))
            decoded = self._decode(model, codes, keras.tree.map_structure(tf.constant, taken))
        ends = np.cumsum([len(rows) for rows in codes_of.values()])
        return dict(zip(codes_of, np.split(decoded.numpy(), ends[:-1]), strict=True))

    def _rows_of(self, picture: str, count: int) -> np.ndarray:
        """Returns the examples whose conditions the codes of a picture are decoded with."""
        if picture == "reconstructed":
            return np.arange(count)
        if picture == "samples":
            return np.arange(count) % len(self.inference)
        return np.zeros(count, int)

    def _codes_from_prior(self, model: VAE) -> list[np.ndarray]:
        """Returns the codes of `samples`, and 1000 to estimate mean and deviation of the prior."""
        bottleneck = model.bottleneck
        if bottleneck is not self._prior or bottleneck.variables:  # a trained prior changes
            self._prior = bottleneck
            draws = [(_SAMPLES * self.columns, [0, 0]), (1000, [1, 0])]
            layout = model.code_layout
            drawn = [model.codes_from_prior(count, key) for count, key in draws]
            self._prior_codes = [layout.flatten(codes).numpy() for codes in drawn]
            self._with_prior_codes = {
                name: value.numpy() for name, value in drawn[0].items() if name not in layout.shapes
            }
        return self._prior_codes

    def _drawings(
        self, model: VAE, images: dict[str, np.ndarray]
    ) -> dict[str, Callable[[], np.ndarray]]:
        """Returns a function for each picture that draws it, to be called in the background."""
        originals, classes = self.images, max(map(len, one_hot_columns(model)), default=1)
        drawings = {
            "reconstructions": lambda: pairs(originals, images["reconstructed"], self.columns),
            "errors": lambda: errors(originals, images["reconstructed"], self.columns),
            "samples": lambda: tile([images["samples"]], self.columns),
            "traversals": lambda: tile([images["traversals"]], self.steps),
            "classes": lambda: tile([images["classes"]], classes),
            "plane": lambda: tile([images["plane"]], _PLANE, gap=0),
        }
        missing = {"samples", "traversals", "classes", "plane"} - images.keys()
        return {tag: draw for tag, draw in drawings.items() if tag not in missing}


def traversals(
    code: np.ndarray,
    mean: np.ndarray,
    deviation: np.ndarray,
    dimensions: np.ndarray,
    steps: int = _STEPS,
) -> np.ndarray:
    """Returns codes in which one dimension at a time moves from -3 to 3 standard deviations.

    Args:
        code: `[latent]`, the values of the dimensions that do not move.
        mean: `[latent]`, the value of the moving dimension in the middle of its row.
        deviation: `[latent]`, its standard deviation.
        dimensions: `[count]` integers, the dimensions that move, one row each.
        steps: codes in a row.

    Returns:
        `[count * steps, latent]`, row by row.
    """
    codes = np.tile(code, [len(dimensions), steps, 1])
    for row, dimension in zip(codes, dimensions, strict=True):
        row[:, dimension] = mean[dimension] + deviations(steps) * deviation[dimension]
    return codes.reshape([-1, len(code)])


def deviations(steps: int) -> np.ndarray:
    """Returns where the codes of a traversal are, in standard deviations: from -3 to 3."""
    return np.linspace(-_DEVIATIONS, _DEVIATIONS, steps, dtype=np.float32)


def one_hot_columns(model: VAE) -> list[range]:
    """Returns the columns of codes that belong to each discrete variable, one for each class."""
    found, start = [], 0
    for name, shape in model.code_layout.shapes.items():
        size, classes = math.prod(shape), shape[-1]
        if name in model.bottleneck.one_hot:
            found += [range(at, at + classes) for at in range(start, start + size, classes)]
        start += size
    return found


def class_codes(code: np.ndarray, variables: Sequence[range]) -> np.ndarray:
    """Returns codes in which one variable at a time is each of its classes in turn.

    Args:
        code: `[latent]`, the values of the variables that do not change.
        variables: the columns of each; with fewer classes than others, it has them again.

    Returns:
        `[variables * most classes, latent]`, row by row.
    """
    most = max(map(len, variables))
    codes = np.tile(code, [len(variables), most, 1])
    for row, columns in zip(codes, variables, strict=True):
        row[:, columns] = np.eye(len(columns))[np.arange(most) % len(columns)]
    return codes.reshape([-1, len(code)])


def plane_codes(low: np.ndarray, high: np.ndarray, columns: int) -> np.ndarray:
    """Returns `[columns * columns, 2]`: a grid of codes, each in the middle of its cell of a plane.

    Row by row from the top; the first dimension grows to the right, the second upwards.
    """
    middles = (np.arange(columns, dtype=np.float32) + 0.5) / columns
    x, y = (low[axis] + middles * (high[axis] - low[axis]) for axis in range(2))
    return np.stack(np.meshgrid(x, y[::-1]), axis=-1).reshape([-1, 2])


def conditions_of(data: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays that a decoder may read beside its codes: all but inputs and targets."""
    return {name: array for name, array in data.items() if name not in ("inputs", "targets")}


def reconstructions(
    model: VAE, data: np.ndarray | Mapping[str, np.ndarray], columns: int
) -> np.ndarray:
    """Returns a picture: rows of inputs, each above the row of its reconstructions."""
    images = data["inputs"] if isinstance(data, Mapping) else data
    return pairs(images, model.reconstruct(data).numpy(), columns)


def pairs(originals: np.ndarray, reconstructed: np.ndarray, columns: int) -> np.ndarray:
    """Returns a picture: rows of originals, each above the row of its reconstructions."""
    rows = []
    for start in range(0, len(originals), columns):
        part = slice(start, start + columns)
        rows += [originals[part], reconstructed[part]]
    return tile(rows, columns)


def errors(originals: np.ndarray, reconstructed: np.ndarray, columns: int) -> np.ndarray:
    """Returns a picture: the absolute error of each pixel, averaged over channels, as a colour.

    Black is an error of 0; the brightest colour is one as large as the range of the originals (at
    least 1), in units of the data as trained.
    """
    value_range = max(1.0, float(originals.max() - originals.min()))
    pictures = heat(np.abs(originals - reconstructed).mean(axis=-1) / value_range)
    return framed(tile([pictures], columns), value_range, "absolute error")


def samples(
    model: VAE,
    columns: int,
    rows: int = 8,
    conditions: Mapping[str, np.ndarray] | None = None,
    prior: Prior | None = None,
) -> np.ndarray:
    """Returns a picture of means of p(x|z) for codes from the prior, the same at every call.

    Args:
        model: whose samples.
        columns, rows: of images.
        conditions: arrays `[count, ...]` that decoder or modules read, by name; the samples get
            their rows in turn.
        prior: one that `fit_prior` has fitted; by default that of the model.
    """
    return tile([sampled(model, rows * columns, conditions, prior)], columns)


def sampled(
    model: VAE,
    count: int,
    conditions: Mapping[str, np.ndarray] | None = None,
    prior: Prior | None = None,
) -> np.ndarray:
    """Returns so many means of p(x|z) for codes from the prior; arguments as for `samples`."""
    taken = {
        name: tf.constant(array[np.arange(count) % len(array)])
        for name, array in (conditions or {}).items()
    }
    return model.sample(count, prior=prior, seed=0, **taken).numpy()


def write_samples(
    log_dir: str | Path,
    model: VAE,
    prior: Prior,
    conditions: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes a picture of samples of a fitted prior to TensorBoard, as `samples_fitted_prior`.

    Args:
        log_dir: the run directory.
        model, prior, conditions: as for `samples`.
    """
    picture = samples(model, 10, _SAMPLES, conditions, prior)
    summaries = Summaries(log_dir)
    description = _DESCRIPTIONS[SAMPLES_FITTED]
    summaries.image("validation", SAMPLES_FITTED, picture, model.step, description)
    summaries.close()


def decoded_plane(
    model: VAE, low: Sequence[float], high: Sequence[float], *, columns: int = 20
) -> np.ndarray:
    """Returns a picture of means of p(x|z) on a grid of codes over a latent plane.

    The first latent dimension grows to the right, the second upwards.

    Args:
        model: a model with two latent dimensions.
        low: the code of the lower left corner.
        high: the code of the upper right corner.
        columns: images along each axis, each decoded from the middle of its cell.

    Raises:
        ValueError: the number of latent dimensions is not 2, or the model does not make images.
    """
    layout = model.code_layout
    if layout.size != 2:
        raise ValueError(f"A plane needs 2 latent dimensions; the model has {layout.size}.")
    codes = plane_codes(np.array(low, np.float32), np.array(high, np.float32), columns)
    images = model.decode(layout.unflatten(codes)).numpy()
    if images.ndim != 4:
        raise ValueError(f"The model makes values of shape {images.shape[1:]}, not images.")
    return tile([images], columns, gap=0)


def _decode(model: VAE, codes: tf.Tensor, conditions: dict[str, tf.Tensor]) -> tf.Tensor:
    """Returns what is made of columns of codes, those nearest to them if they are none."""
    bottleneck, codes = model.bottleneck, model.code_layout.unflatten(codes)
    codes = bottleneck.codes_of_values(bottleneck.values_of_codes(codes))
    return model.decode(codes, **conditions)


def _summary(tag: str, draw: Callable[[], np.ndarray]) -> event_protos.Summary:
    return event_protos.image(tag, draw(), _DESCRIPTIONS[tag])

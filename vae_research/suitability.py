"""Checks that data suit a model before it is trained on them."""

from __future__ import annotations

import math
from collections.abc import Collection, Container, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vae_research.data.checks import row_blocks
from vae_research.data.streams import DeviceDataset
from vae_research.losses.term import Likelihood
from vae_research.tensors import Named

# Rows of data on the device that are looked at; of datasets it is the first batch.
_ROWS = 64
# Values of which it is asked whether they repeat, and how often on average.
_VALUES, _REPEATED = 2**16, 4


def refuse_unsuitable_data(
    likelihood: Likelihood, x: Any, y: Any = None, *, known: Collection[str] = ()
) -> None:
    """Raises ValueError for data that the likelihood has no density for, or that are not finite.

    Of arrays all values are looked at, of other data the first batch; a generator is not asked, nor
    a tensor that has no values while a function is traced. Missing values may be outside of the
    support.

    Args:
        likelihood: of the model.
        x, y: the first arguments of `fit`.
        known: names of data that the model has seen. If `targets` are among them, inputs are not.

    Raises:
        ValueError: also for strings and arrays of objects.
    """
    tensors = looked_at(x, y)
    if "inputs" in tensors:
        _checked("inputs", tensors["inputs"])
    for each, name, values in _compared(likelihood, tensors, known):
        refuse_outside_support(each, name, float(values.min()), float(values.max()))
        refuse_between_levels(each, name, values)


def notes_on_likelihood(likelihood: Likelihood, x: Any, y: Any = None) -> list[str]:
    """Returns what must be said of figures of a likelihood on these data, nothing if they compare.

    Args:
        likelihood: of the model.
        x, y: as for `refuse_unsuitable_data`.
    """
    tensors = looked_at(x, y)
    grey = (
        each.note(bool(np.any((values != 0) & (values != 1))))
        for each, _, values in _compared(likelihood, tensors)
    )
    return [*filter(None, grey), *notes_on_densities(likelihood, tensors)]


def notes_on_densities(
    likelihood: Likelihood, tensors: Mapping[str, Any], *, integers: bool = False
) -> list[str]:
    """Returns notes on densities of values that are not continuous.

    Their figures are no probabilities of the values. Theis et al. 2016 (arXiv:1511.01844), section
    3.1. Of values that are not stored as integers, the first are looked at: whether each occurs
    four times or more on average, also without the two most frequent ones, which may be the bounds
    that real values are clipped to.

    Args:
        likelihood: of the model.
        tensors: arrays by name.
        integers: whether `inputs` are integers that were rescaled.
    """
    notes = []
    for each, name, values in _compared(likelihood, tensors):
        if not each.is_density:
            continue
        kind, first = type(each).__name__, values.reshape(-1)[:_VALUES]
        if np.all((values == 0) | (values == 1)):
            notes.append(
                f"{kind} is a density of real values, and {name} are 0 or 1: its figures are not "
                "probabilities of them and may grow without a bound. Bernoulli is the likelihood "
                "of such values; grey ones need --binarize=none."
            )
        elif values.dtype.kind in "bui" or (integers and name == "inputs") or _are_repeated(first):
            notes.append(
                f"{kind} is a density of real values, and {name} are levels, which were not "
                "dequantised: its figures are not probabilities of them and may grow without a "
                "bound. Integers are dequantised by --dequantize=uniform (Data.dequantized()); "
                "DiscretizedLogistic needs no noise."
            )
    return notes


def _are_repeated(values: np.ndarray) -> bool:
    """Returns whether values `[count]` are levels, by how often each occurs."""
    counts = np.sort(np.unique(values, return_counts=True)[1])
    return all(each.sum() >= _REPEATED * len(each) for each in (counts, counts[:-2]))


def _compared(
    likelihood: Likelihood, tensors: Mapping[str, Any], known: Collection[str] = ()
) -> Iterator[tuple[Likelihood, str, np.ndarray]]:
    """Yields each factor of a likelihood with name and values of what it compares, if known."""
    for each in likelihood.factors:
        read = each.target
        if read == "targets" and read not in tensors and read not in known:
            read = "inputs"
        if (values := tensors.get(read)) is None:
            continue
        if read == "targets" and values.ndim != tensors.get("inputs", values).ndim:
            continue  # labels as y, which the likelihood refuses
        if (values := _checked(read, values)) is None:
            continue
        mask = tensors.get(each.observed or "")
        if mask is not None and mask.shape == values.shape:
            values = values[mask > 0]
        if values.size:
            yield each, read, values


def _checked(name: str, values: np.ndarray) -> np.ndarray | None:
    """Returns values if they can be compared with a support; raises ValueError for bad ones."""
    if values.dtype.kind in "OSU":
        raise ValueError(
            f"{name} are an array of {values.dtype}, and a model reads numbers: "
            "values.astype('float32') if they are numbers of one shape."
        )
    if values.dtype.kind not in "buif" or not values.size:
        return None
    if not (math.isfinite(values.min()) and math.isfinite(values.max())):
        raise _not_finite(name, values)
    return values


def refuse_outside_support(likelihood: Likelihood, name: str, low: float, high: float) -> None:
    """Raises ValueError if values from `low` to `high` are not all in the support."""
    support = likelihood.support
    if not support[0] <= low <= high <= support[1]:
        raise ValueError(
            f"{name} have values from {low:g} to {high:g}, and {type(likelihood).__name__} "
            f"needs values from {support[0]:g} to {support[1]:g}: {_cure(low, high)}choose "
            "another likelihood; Gaussian and Laplace take all values."
        )


def refuse_between_levels(likelihood: Likelihood, name: str, values: np.ndarray) -> None:
    """Raises ValueError for values between those that a likelihood of integers or levels knows."""
    spacing = likelihood.spacing
    if spacing is None or (spacing == 1.0 and values.dtype.kind in "bui"):
        return
    for rows in row_blocks(values):
        block = values[rows]
        steps = block.astype(np.float64) / spacing
        # In float32, a value of 65536 levels is off by up to 0.004 of their distance.
        between = np.abs(steps - np.round(steps)) > 0.01
        if np.any(between):
            wanted = "whole numbers" if spacing == 1.0 else f"multiples of 1/{round(1.0 / spacing)}"
            raise ValueError(
                f"{name} have values such as {block[between][0]:g}, and {likelihood!r} needs "
                f"{wanted}: keep the stored integers (rescale='none'), or set levels to their "
                "number, if it has such a setting; Gaussian and Laplace take all values."
            )


def as_tensor(name: str, values: Any) -> tf.Tensor:
    """Returns data that a model is called with as a tensor.

    Raises:
        ValueError: they form no array.
    """
    if isinstance(values, tf.data.Dataset | DeviceDataset):
        raise ValueError(
            f"{name} are a {type(values).__name__}. fit, evaluate and predict take data sets; give "
            "other methods an array or one batch of it, [rows, ...]."
        )
    try:
        return tf.convert_to_tensor(values)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} are a {type(values).__name__} that forms no array [rows, ...]: all rows need "
            "one shape and type; numpy.stack(rows) makes an array of a list of equal ones."
        ) from error


def refuse_non_finite(tensors: Mapping[str, tf.Tensor]) -> None:
    """Raises ValueError for values that are not finite; those of a trace are not known."""
    for name, tensor in tensors.items():
        if tf.is_symbolic_tensor(tensor) or not tensor.dtype.is_floating:
            continue
        if not bool(tf.reduce_all(tf.math.is_finite(tensor))):
            raise _not_finite(name, tensor.numpy())


def refuse_other_shape(given: tf.TensorShape, known: tuple[int | None, ...]) -> None:
    """Raises ValueError if inputs are not those that a model takes.

    Args:
        given: shape of the inputs, `[rows, ...]`.
        known: shape of one example.
    """
    if not given.is_compatible_with([None, *known]):
        raise ValueError(
            f"inputs have shape {given}, and this model takes examples of shape {known}: give it "
            f"[rows, {', '.join(map(str, known))}]; one example is values[numpy.newaxis]."
        )


def refuse_undeclared_shape(
    given: tf.TensorShape, encoder: keras.layers.Layer, names: Container[str]
) -> None:
    """Raises ValueError if inputs do not have the shape that an encoder declares.

    Keras adds or removes a last axis of size 1.

    Args:
        given: shape of the inputs, `[rows, ...]`.
        encoder: a network; only a Keras model that has inputs declares their shapes.
        names: of the data, which inputs of the network may read instead.
    """
    network = encoder.network if isinstance(encoder, Named) else encoder
    declared = getattr(network, "inputs", None) or []
    for tensor in declared:
        if tensor.name == "inputs" or (len(declared) == 1 and tensor.name not in names):
            known = tuple(tensor.shape[1:])
            shapes = [known, (*known, 1), known[:-1] if known[-1:] == (1,) else known]
            if not any(given.is_compatible_with([None, *shape]) for shape in shapes):
                refuse_other_shape(given, known)


def _not_finite(name: str, values: np.ndarray) -> ValueError:
    bad = ~np.isfinite(values)
    return ValueError(
        f"{name} have {np.count_nonzero(bad)} values that are not finite, the first at "
        f"{[int(place) for place in np.argwhere(bad)[0]]}. Fill or drop them; a likelihood leaves "
        "missing values out that an array of the data marks: Gaussian(observed='NAME')."
    )


def _cure(low: float, high: float) -> str:
    if low >= -1.0 and high <= 1.0:
        return "map them to [0, 1] by (values + 1) / 2, or "
    return "divide grey values by 255, or " if low >= 0.0 and 15.0 < high <= 255.0 else ""


def looked_at(x: Any, y: Any = None) -> dict[str, np.ndarray]:
    """Returns arrays that show what the data are, by name; nothing of what cannot be looked at."""
    if isinstance(x, DeviceDataset):
        zero = tf.constant(0, tf.int64)
        x = x.reader.read(zero, zero, tf.range(min(_ROWS, x.rows)))
    elif isinstance(x, tf.data.Dataset):
        x = next(iter(x), {})
    elif isinstance(x, keras.utils.PyDataset):
        x = x[0]
    if isinstance(x, tuple):  # a batch of x, y and weights
        x, y, _ = keras.utils.unpack_x_y_sample_weight(x)
    given = dict(x) if isinstance(x, Mapping) else {"inputs": x}
    if y is not None:
        given.setdefault("targets", y)
    return {
        name: values if isinstance(values, np.ndarray) else values.numpy()
        for name, values in given.items()
        if isinstance(values, np.ndarray) or (tf.is_tensor(values) and hasattr(values, "numpy"))
    }

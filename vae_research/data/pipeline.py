"""From row numbers to a batch with TensorFlow: order of an epoch, scaling, binarisation.

Nothing here has a state. The order of an epoch is a function of (seed, epoch), and the binarisation
noise of a batch is a function of (seed, epoch, position of the batch). All draws name Philox, which
gives the same numbers on every device, with XLA and without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from vae_research.data.scaling import Scaling
from vae_research.randomness import fold_in, philox_bits

# Purposes of a random key: order and noise of the same seed must not be correlated.
_ORDER, _NOISE = 0, 1

# A further array is an argument of a compiled program under this and its name.
_FURTHER = "array "


class StoredRows(Protocol):
    """What this module reads of a `Split`; it does not import the class, which imports it."""

    @property
    def name(self) -> str: ...

    @property
    def raw(self) -> np.ndarray: ...

    @property
    def scaling(self) -> Scaling: ...

    @property
    def binarize(self) -> str: ...

    @property
    def fixed_draw(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def steps(self, batch_size: int) -> int: ...

    def array(self, name: str) -> np.ndarray: ...


class Reader:
    """From row numbers to a batch: gathers stored rows, scales and binarises them.

    Args:
        split: what to read.
        seed: of the binarisation noise; None reads what evaluation sees, as `Split.prepare` does.
        names: further arrays to be added, as stored.

    Attributes:
        tensors: the data by name, as stored (one byte per grey value).
        steps_alike: readers for which this is equal can share a compiled program.

    Raises:
        DataError: the split has no such array, or it has values that are not finite.
    """

    def __init__(self, split: StoredRows, seed: int | None, names: Sequence[str] = ()) -> None:
        further = {name: split.array(name) for name in names}
        drawn = split.binarize == "static" or (split.binarize == "dynamic" and seed is None)
        self.binarize = "none" if drawn else split.binarize
        self.is_scaled = not (drawn or split.scaling.is_identity)
        stored = split.fixed_draw if drawn else split.raw
        self.shape = split.raw.shape[1:]
        self.shapes = {name: array.shape[1:] for name, array in further.items()}
        self.tensors = {"stored": _flat(stored)}
        self.tensors |= {_FURTHER + name: _flat(array) for name, array in further.items()}
        if self.is_scaled:
            self.tensors["offset"] = tf.constant(split.scaling.offset)
            self.tensors["divisor"] = tf.constant(split.scaling.divisor)
        if self.binarize == "dynamic":
            self.tensors["key"] = tf.constant([seed, _NOISE], tf.int64)
        self.steps_alike: tuple[Any, ...] = (self.binarize, self.shape, *sorted(self.tensors))
        self.steps_alike += tuple(self.shapes.items())

    def __call__(
        self,
        tensors: dict[str, tf.Tensor],
        epoch: tf.Tensor,
        position: tf.Tensor,
        rows: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """Returns {"inputs": float32 [rows, ...]} and the further arrays [rows, ...] by name.

        Args:
            tensors: `self.tensors`, an argument so that a compiled program does not contain them.
            epoch: epoch of the batch, counted from 0.
            position: index of the batch in its epoch, counted from 0.
            rows: row numbers, integers [rows].
        """
        stored = self.gathered(tensors, rows)
        values = tf.cast(stored.pop("inputs"), tf.float32)
        values = tf.reshape(values, [-1, *self.shape])
        if self.is_scaled:
            # Subtract, then divide, as `Scaling.apply` does: equal to the last bit.
            values = (values - tensors["offset"]) / tensors["divisor"]
        if self.binarize == "threshold":
            values = tf.cast(values > 0.5, tf.float32)
        elif self.binarize == "dynamic":
            values = bernoulli(values, fold_in(tensors["key"], epoch, position))
        further = {
            name: tf.reshape(array, [-1, *shape]) if len(shape) > 1 else array
            for (name, array), shape in zip(stored.items(), self.shapes.values(), strict=True)
        }
        return {"inputs": values, **further}

    def gathered(self, tensors: Mapping[str, tf.Tensor], rows: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns what is read by row number: `inputs` and the further arrays, as stored and flat.

        Args:
            tensors, rows: as for a call.
        """
        names = {"inputs": "stored"} | {name: _FURTHER + name for name in self.shapes}
        return {name: tf.gather(tensors[key], rows) for name, key in names.items()}


def _flat(array: np.ndarray) -> tf.Tensor:
    """Rows as one vector each: XLA gathers them several times as fast as images."""
    return tf.constant(array if array.ndim == 1 else array.reshape(len(array), -1))


def epoch_order(rows: int, seed: int, epoch: int | tf.Tensor) -> tf.Tensor:
    """A permutation of 0..rows-1, int64, that depends on seed and epoch only."""
    key = fold_in(tf.constant([seed, _ORDER], tf.int64), epoch)
    # 63 random bits per row: ties, whose order the sort would decide, are practically impossible.
    draw = tf.random.stateless_uniform(
        [rows], key, maxval=np.iinfo(np.int64).max, dtype=tf.int64, alg="philox"
    )
    return tf.argsort(draw)


def bernoulli(probability: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """Float32 0 and 1, drawn with a stateless `key` [2]; probabilities 0 and 1 are exact.

    Probabilities are rounded to multiples of 2**-16, an error below 8e-6. This halves the number of
    random bits, which are most of the cost of a batch.
    """
    size = tf.size(probability)
    words = philox_bits([(size + 1) // 2], key)
    halves = tf.reshape(tf.bitcast(words, tf.uint16), [-1])[:size]
    # n + 1/2 < 2**16 p for round(2**16 p) of the numbers n in 0..65535; exact in float32.
    noise = tf.reshape(tf.cast(halves, tf.float32) + 0.5, tf.shape(probability))
    return tf.cast(noise < probability * 2.0**16, tf.float32)

"""Training batches with TensorFlow: streamed values, or row numbers of data kept on the device.

Nothing here has a state. The order of an epoch is a function of (seed, epoch), and the binarisation
noise of a batch is a function of (seed, epoch, position of the batch), so a stream that begins at
any epoch continues the uninterrupted one bit for bit. All draws name Philox, which gives the same
numbers on every device, with XLA and without.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from vae_research.arguments import checked_integer, checked_seed
from vae_research.data.scaling import Scaling
from vae_research.randomness import fold_in, philox_bits

# Purposes of a random key: order and noise of the same seed must not be correlated.
_ORDER, _NOISE = 0, 1
# A batch of 128 MNIST images costs about 0.6 ms of one core; two at a time stay ahead of the step.
_PARALLEL_BATCHES = 2
_PREFETCHED = 2


class StoredRows(Protocol):
    """What this module reads of a `Split`; it does not import the class, which imports it."""

    @property
    def name(self) -> str: ...

    @property
    def raw(self) -> np.ndarray: ...

    @property
    def labels(self) -> np.ndarray | None: ...

    @property
    def scaling(self) -> Scaling: ...

    @property
    def binarize(self) -> str: ...

    @property
    def fixed_draw(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def steps(self, batch_size: int) -> int: ...


class Reader:
    """From row numbers to a batch: gathers stored rows, scales and binarises them.

    Args:
        split: what to read.
        seed: of the binarisation noise; None reads what evaluation sees, as `Split.prepare` does.
        with_labels: adds "labels".

    Attributes:
        tensors: the data by name, as stored (one byte per grey value).
        steps_alike: readers for which this is equal can share a compiled program.

    Raises:
        ValueError: labels are asked for and the split has none.
    """

    def __init__(self, split: StoredRows, seed: int | None, with_labels: bool) -> None:
        if with_labels and split.labels is None:
            raise ValueError(f"split {split.name!r} has no labels; give them to Data.from_arrays")
        drawn = split.binarize == "static" or (split.binarize == "dynamic" and seed is None)
        self.binarize = "none" if drawn else split.binarize
        self.is_scaled = not (drawn or split.scaling.is_identity)
        stored = split.fixed_draw if drawn else split.raw
        self.shape = split.raw.shape[1:]
        # Rows are stored flat: XLA gathers them several times as fast as images.
        self.tensors = {"stored": tf.constant(stored.reshape(len(stored), -1))}
        if self.is_scaled:
            self.tensors["offset"] = tf.constant(split.scaling.offset)
            self.tensors["divisor"] = tf.constant(split.scaling.divisor)
        if self.binarize == "dynamic":
            self.tensors["key"] = tf.constant([seed, _NOISE], tf.int64)
        if with_labels:
            self.tensors["labels"] = tf.constant(split.labels)
        self.steps_alike: tuple[Any, ...] = (self.binarize, self.shape, *sorted(self.tensors))

    def __call__(
        self,
        tensors: dict[str, tf.Tensor],
        epoch: tf.Tensor,
        position: tf.Tensor,
        rows: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """Returns {"inputs": float32 [rows, ...]} and, if asked for, "labels": int64 [rows].

        Args:
            tensors: `self.tensors`, an argument so that a compiled program does not contain them.
            epoch: epoch of the batch, counted from 0.
            position: index of the batch in its epoch, counted from 0.
            rows: row numbers, integers [rows].
        """
        values = tf.cast(tf.gather(tensors["stored"], rows), tf.float32)
        values = tf.reshape(values, [-1, *self.shape])
        if self.is_scaled:
            # Subtract, then divide, as `Scaling.apply` does: equal to the last bit.
            values = (values - tensors["offset"]) / tensors["divisor"]
        if self.binarize == "threshold":
            values = tf.cast(values > 0.5, tf.float32)
        elif self.binarize == "dynamic":
            values = bernoulli(values, fold_in(tensors["key"], epoch, position))
        if "labels" not in tensors:
            return {"inputs": values}
        return {"inputs": values, "labels": tf.gather(tensors["labels"], rows)}


def batches(
    split: StoredRows, batch_size: int, seed: int, first_epoch: int = 0, with_labels: bool = False
) -> tf.data.Dataset:
    """An endless stream of batches; each epoch has every row exactly once, in a new order.

    The last batch of an epoch may be smaller. With `binarize="dynamic"` every
    epoch draws new Bernoulli values. The rows stay in memory as stored (one byte per grey value).

    Args:
        split: what to read.
        batch_size: rows, from 1 to the length of the split.
        seed: 0 to 2**32 - 1.
        first_epoch: the epoch the stream begins with, counted from 0.
        with_labels: adds "labels".

    Returns:
        A dataset of {"inputs": float32 [rows, ...]} and, if asked for, "labels": int64 [rows].

    Raises:
        ValueError: an argument is out of range, or labels are asked for and the split has none.
    """
    batch_size, first_epoch = _checked(split, batch_size, first_epoch)
    seed = checked_seed(seed)
    with tf.device("/cpu:0"):  # tf.data gathers on the host, whatever devices there are
        reader = Reader(split, seed, with_labels)

    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        rows = tf.data.Dataset.from_tensor_slices(epoch_order(len(split), seed, epoch))
        return rows.batch(batch_size).enumerate().map(lambda at, rows: (epoch, at, rows))

    def read(*place: tf.Tensor) -> dict[str, tf.Tensor]:
        return reader(reader.tensors, *place)

    epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
    order = epochs.flat_map(one_epoch)
    return _as_written(order.map(read, _PARALLEL_BATCHES, deterministic=True))


class DeviceDataset:
    """The batches of `batches` for `VAE.fit` and `VAE.evaluate`, from rows kept on the device.

    The stream carries row numbers only: each step gathers its rows from the stored ones (one byte
    per grey value), scales and binarises them. Values, order and noise are those of `batches`, bit
    for bit.

    Args:
        split: what to read.
        batch_size: rows, from 1 to the length of the split.
        seed: 0 to 2**32 - 1; None keeps the rows in their order, with the values of evaluation.
        first_epoch: the epoch to begin with, counted from 0.
        with_labels: adds "labels".
        first_position: number of batches of the first epoch to skip, from 0 to all of them.

    Attributes:
        reader: the `Reader` from row numbers to a batch.
        steps: batches in an epoch; the last one may be smaller.

    Raises:
        ValueError: an argument is out of range, or labels are asked for and the split has none.
    """

    def __init__(
        self,
        split: StoredRows,
        batch_size: int,
        seed: int | None = None,
        first_epoch: int = 0,
        with_labels: bool = False,
        first_position: int = 0,
    ) -> None:
        self._rows = len(split)
        self._batch_size, self._first_epoch = _checked(split, batch_size, first_epoch)
        self._seed = None if seed is None else checked_seed(seed)
        self.steps = split.steps(self._batch_size)
        self._first_position = checked_integer("first_position", first_position, 0, self.steps)
        self.reader = Reader(split, self._seed, with_labels)

    def calls(self, steps_per_call: int) -> tf.data.Dataset:
        """Returns an endless dataset with the arguments of each call of `execution.StepLoop`.

        An element is a dictionary of `epoch`, `first` (position of its first batch in the epoch),
        `rows` `[steps_per_call, batch_size]`, of which the batches from `begin` up to `count` are
        used, `is_last`, and `rest`: the rows of the smaller last batch of the epoch, used if
        `is_last`. A stream that begins within an epoch has all calls of that epoch, some with
        nothing to do, so that Keras counts them as in an uninterrupted run.
        """
        whole = self._rows // self._batch_size
        number = -(-self.steps // steps_per_call)
        firsts = np.arange(number) * steps_per_call
        padding = number * steps_per_call * self._batch_size
        count = np.clip(whole - firsts, 0, steps_per_call).astype(np.int32)
        begin = np.clip(self._first_position - firsts, 0, count).astype(np.int32)
        is_last = np.arange(number) == number - 1
        nothing_left = self._first_position >= self.steps

        def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
            if self._seed is None:
                order = tf.range(self._rows)
            else:
                order = tf.cast(epoch_order(self._rows, self._seed, epoch), tf.int32)
            in_batches, rest = tf.split(order, [whole * self._batch_size, -1])
            rows = tf.pad(in_batches, [[0, padding - whole * self._batch_size]])
            broken = epoch == self._first_epoch
            return tf.data.Dataset.from_tensor_slices(
                {
                    "epoch": tf.repeat(epoch, number),
                    "first": tf.constant(firsts, tf.int64),
                    "rows": tf.reshape(rows, [number, steps_per_call, self._batch_size]),
                    "begin": tf.where(broken, begin, 0),
                    "count": tf.constant(count),
                    "rest": tf.repeat(rest[tf.newaxis], number, axis=0),
                    "is_last": tf.where(broken & nothing_left, False, is_last),
                }
            )

        epochs = tf.data.Dataset.range(self._first_epoch, np.iinfo(np.int64).max)
        return _as_written(epochs.flat_map(one_epoch))


def _as_written(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Prefetches, with tf.data's autotuning off.

    There is nothing to tune, and deleting an iterator waits for the tuning thread: validation
    started up to a second late after every epoch.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.prefetch(_PREFETCHED).with_options(options)


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


def _checked(split: StoredRows, batch_size: int, first_epoch: int) -> tuple[int, int]:
    return (
        checked_integer("batch_size", batch_size, 1, len(split), why="the rows of the split"),
        checked_integer("first_epoch", first_epoch, 0, 2**31 - 1),
    )

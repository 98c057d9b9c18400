"""Training batches with TensorFlow: streamed values, or row numbers of what stays on the device.

It is the only module of this package with TensorFlow. Nothing in it has a state. The order of an
epoch is a function of (seed, epoch) and the binarisation noise of a batch a function of (seed,
epoch, position of the batch), so a stream begun at any epoch continues the unbroken one bit for
bit. Philox is named everywhere: it draws the same numbers on every device, and with or without XLA.
"""

import operator

import numpy as np
import tensorflow as tf

from vae_research.data.dataset import Split
from vae_research.randomness import philox_bits

# What a random key is for. Order and noise of one seed must not be correlated.
_ORDER, _NOISE = 0, 1
# A batch of 128 MNIST images costs about 0.6 ms of one core; two at a time stay ahead of the step.
_PARALLEL_BATCHES = 2
_PREFETCHED = 2


class Reader:
    """From row numbers to a batch: gathers stored rows, scales and binarises them.

    Args:
        split: what to read.
        seed: of the binarisation noise; None reads what evaluation sees, as `Split.prepare`.
        with_labels: adds "labels".

    Attributes:
        tensors: what is read from, by name, as stored (one byte per grey value).
        steps_alike: two readers with equal values read by the same compiled program.

    Raises:
        ValueError: labels asked for where there are none.
    """

    def __init__(self, split: Split, seed: int | None, with_labels: bool) -> None:
        if with_labels and split.labels is None:
            raise ValueError(f"split {split.name!r} has no labels; give them to Data.from_arrays")
        drawn = split.binarize == "static" or (split.binarize == "dynamic" and seed is None)
        self.binarize = "none" if drawn else split.binarize
        self.is_scaled = not (drawn or split.scaling.is_identity)
        stored = split.fixed_draw if drawn else split.raw
        self.shape = split.shape
        # One row is one run of numbers: XLA gathers those several times as fast as images.
        self.tensors = {"stored": tf.constant(stored.reshape(len(stored), -1))}
        if self.is_scaled:
            self.tensors["offset"] = tf.constant(split.scaling.offset)
            self.tensors["divisor"] = tf.constant(split.scaling.divisor)
        if self.binarize == "dynamic":
            self.tensors["key"] = tf.constant([seed, _NOISE], tf.int64)
        if with_labels:
            self.tensors["labels"] = tf.constant(split.labels)
        self.steps_alike = (self.binarize, self.shape, *sorted(self.tensors))

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
            epoch: of the batch, from 0.
            position: of the batch in its epoch, from 0.
            rows: integers [rows].
        """
        values = tf.cast(tf.gather(tensors["stored"], rows), tf.float32)
        values = tf.reshape(values, [-1, *self.shape])
        if self.is_scaled:
            # Subtract, then divide, as `Scaling.apply` does: equal to the last bit.
            values = (values - tensors["offset"]) / tensors["divisor"]
        if self.binarize == "threshold":
            values = tf.cast(values > 0.5, tf.float32)
        elif self.binarize == "dynamic":
            values = bernoulli(values, _fold_in(tensors["key"], epoch, position))
        if "labels" not in tensors:
            return {"inputs": values}
        return {"inputs": values, "labels": tf.gather(tensors["labels"], rows)}


def batches(
    split: Split, batch_size: int, seed: int, first_epoch: int = 0, with_labels: bool = False
) -> tf.data.Dataset:
    """Batches for ever, epoch after epoch, every row exactly once per epoch in a new order.

    The last batch of an epoch holds the rest and may be smaller. With `binarize="dynamic"` every
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
        ValueError: an argument outside its range, or labels asked for where there are none.
    """
    batch_size, seed, first_epoch = _checked(split, batch_size, seed, first_epoch)
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
    """The same batches for `VAE.fit` and `VAE.evaluate`, of rows that stay on the device.

    What moves is row numbers: each step gathers its rows from the stored ones (one byte per grey
    value), scales and binarises them. Values, order and noise are those of `batches`, bit for bit.

    Args:
        split: what to read.
        batch_size: rows, from 1 to the length of the split.
        seed: 0 to 2**32 - 1; None gives the rows in their order, with the values of evaluation.
        first_epoch: the epoch to begin with, counted from 0.
        with_labels: adds "labels".
        first_position: batches of the first epoch that are left out, from 0 to all of them.

    Attributes:
        reader: the `Reader` from row numbers to a batch.
        steps: batches in an epoch; the last one may be smaller.

    Raises:
        ValueError: an argument outside its range, or labels asked for where there are none.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        seed: int | None = None,
        first_epoch: int = 0,
        with_labels: bool = False,
        first_position: int = 0,
    ) -> None:
        batch_size, _, first_epoch = _checked(split, batch_size, seed or 0, first_epoch)
        self._first_position = _integer(
            "first_position", first_position, 0, split.steps(batch_size)
        )
        self.reader = Reader(split, seed, with_labels)
        self.steps = split.steps(batch_size)
        self._rows, self._batch_size = len(split), batch_size
        self._seed, self._first_epoch = seed, first_epoch

    def calls(self, steps_per_call: int) -> tf.data.Dataset:
        """Returns, for ever, what the calls of `execution.StepLoop` are to do.

        Each is a dictionary of `epoch` and `first` (position of its first batch in the epoch),
        `rows` `[steps_per_call, batch_size]` of which the batches from `begin` to `count` are
        meant, and `rest`, the rows of the epoch's smaller last batch: it follows where `is_last`.
        A stream that begins within an epoch has all calls of that epoch, some of them with nothing
        to do, so that Keras counts as in the unbroken one.
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
    """Prefetches, and leaves nothing to tf.data's tuning.

    There is nothing to tune, and to drop an iterator waits for the thread that does it: validation
    after every epoch began up to a second late.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.prefetch(_PREFETCHED).with_options(options)


def epoch_order(rows: int, seed: int, epoch: int | tf.Tensor) -> tf.Tensor:
    """A permutation of 0..rows-1, int64, that depends on seed and epoch alone."""
    key = _fold_in(tf.constant([seed, _ORDER], tf.int64), epoch)
    # 63 random bits per row: two equal ones, where the sort would decide, are out of the question.
    draw = tf.random.stateless_uniform(
        [rows], key, maxval=np.iinfo(np.int64).max, dtype=tf.int64, alg="philox"
    )
    return tf.argsort(draw)


def bernoulli(probability: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """Float32 0 and 1, drawn with a stateless `key` [2]; 0 and 1 are drawn without fail.

    A probability is rounded to a multiple of 2**-16: the error is below 8e-6, and half the random
    bits, which are most of the cost of a batch, are enough.
    """
    size = tf.size(probability)
    words = philox_bits([(size + 1) // 2], key)
    halves = tf.reshape(tf.bitcast(words, tf.uint16), [-1])[:size]
    # n + 1/2 < 2**16 p for round(2**16 p) of the numbers n in 0..65535; exact in float32.
    noise = tf.reshape(tf.cast(halves, tf.float32) + 0.5, tf.shape(probability))
    return tf.cast(noise < probability * 2.0**16, tf.float32)


def _fold_in(key: tf.Tensor, *numbers: int | tf.Tensor) -> tf.Tensor:
    """The stateless random key [2] of a place in the run, from that of seed and purpose."""
    for number in numbers:
        # Of another type the same number gives another key.
        number = tf.cast(number, tf.int64)
        key = tf.random.experimental.stateless_fold_in(key, number, alg="philox")
    return key


def _checked(split: Split, batch_size, seed, first_epoch) -> tuple[int, int, int]:
    """Batch size, seed and first epoch as integers in their ranges, or ValueError."""
    return (
        _integer("batch_size", batch_size, 1, len(split), " (the rows of the split)"),
        _integer("seed", seed, 0, 2**32 - 1),
        _integer("first_epoch", first_epoch, 0, 2**31 - 1),
    )


def _integer(name: str, value, low: int, high: int, why: str = "") -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name}={value!r} must be an integer") from None
    if not low <= number <= high:
        raise ValueError(f"{name}={number} must be between {low} and {high}{why}")
    return number

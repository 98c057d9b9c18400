"""Training batches as a `tf.data.Dataset`; the only module of this package with TensorFlow.

Nothing in the pipeline has a state. The order of an epoch is a function of (seed, epoch) and the
binarisation noise of a batch a function of (seed, epoch, position of the batch), so a stream begun
at any epoch continues the unbroken one bit for bit. Philox is named everywhere: it draws the same
numbers on every device, and with or without XLA.
"""

import operator

import numpy as np
import tensorflow as tf

from vae_research.data.arrays import Split

# What a random key is for. Order and noise of one seed must not be correlated.
_ORDER, _NOISE = 0, 1
# A batch of 128 MNIST images costs about 0.6 ms of one core; two at a time stay ahead of the step.
_PARALLEL_BATCHES = 2
_PREFETCHED_BATCHES = 2


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
    batch_size = _integer("batch_size", batch_size, 1, len(split), " (the rows of the split)")
    seed = _integer("seed", seed, 0, 2**32 - 1)
    first_epoch = _integer("first_epoch", first_epoch, 0, 2**31 - 1)
    if with_labels and split.labels is None:
        raise ValueError(f"split {split.name!r} has no labels; give them to Data.from_arrays")

    static = split.binarize == "static"
    with tf.device("/cpu:0"):  # tf.data gathers on the host, whatever devices there are
        stored = tf.constant(split.fixed_draw if static else split.raw)
        labels = tf.constant(split.labels) if with_labels else None
        offset, divisor = tf.constant(split.scaling.offset), tf.constant(split.scaling.divisor)
    identity = static or split.scaling.is_identity

    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        rows = tf.data.Dataset.from_tensor_slices(epoch_order(len(split), seed, epoch))
        return rows.batch(batch_size).enumerate().map(lambda at, rows: (epoch, at, rows))

    def read(epoch: tf.Tensor, position: tf.Tensor, rows: tf.Tensor) -> dict[str, tf.Tensor]:
        values = tf.cast(tf.gather(stored, rows), tf.float32)
        if not identity:
            # Subtract, then divide, as `Scaling.apply` does: equal to the last bit.
            values = (values - offset) / divisor
        if split.binarize == "threshold":
            values = tf.cast(values > 0.5, tf.float32)
        elif split.binarize == "dynamic":
            values = bernoulli(values, _key(seed, _NOISE, epoch, position))
        batch = {"inputs": values}
        return batch if labels is None else batch | {"labels": tf.gather(labels, rows)}

    epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
    order = epochs.flat_map(one_epoch)
    return order.map(read, _PARALLEL_BATCHES, deterministic=True).prefetch(_PREFETCHED_BATCHES)


def epoch_order(rows: int, seed: int, epoch: int | tf.Tensor) -> tf.Tensor:
    """A permutation of 0..rows-1, int64, that depends on seed and epoch alone."""
    # 63 random bits per row: two equal ones, where the sort would decide, are out of the question.
    draw = tf.random.stateless_uniform(
        [rows],
        _key(seed, _ORDER, epoch),
        maxval=np.iinfo(np.int64).max,
        dtype=tf.int64,
        alg="philox",
    )
    return tf.argsort(draw)


def bernoulli(probability: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """Float32 0 and 1, drawn with a stateless `key` [2]; 0 and 1 are drawn without fail.

    A probability is rounded to a multiple of 2**-16: the error is below 8e-6, and half the random
    bits, which are most of the cost of a batch, are enough.
    """
    size = tf.size(probability)
    words = tf.random.stateless_uniform(
        [(size + 1) // 2], key, minval=None, maxval=None, dtype=tf.int32, alg="philox"
    )
    halves = tf.reshape(tf.bitcast(words, tf.uint16), [-1])[:size]
    # n + 1/2 < 2**16 p for round(2**16 p) of the numbers n in 0..65535; exact in float32.
    noise = tf.reshape(tf.cast(halves, tf.float32) + 0.5, tf.shape(probability))
    return tf.cast(noise < probability * 2.0**16, tf.float32)


def _key(seed: int, purpose: int, *numbers: int | tf.Tensor) -> tf.Tensor:
    """A stateless random key [2] for a place in the run."""
    key = tf.constant([seed, purpose], tf.int64)
    for number in numbers:
        key = tf.random.experimental.stateless_fold_in(key, number, alg="philox")
    return key


def _integer(name: str, value, low: int, high: int, why: str = "") -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name}={value!r} must be an integer") from None
    if not low <= number <= high:
        raise ValueError(f"{name}={number} must be between {low} and {high}{why}")
    return number

"""Training data of a `Split` for `VAE.fit`: streamed batches, or row numbers of rows on the device.

Both are endless and can begin at any epoch, which continues the uninterrupted stream bit for bit.
`fit` decides at which epoch its data begin.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from vae_research.arguments import checked_integer, checked_seed
from vae_research.data.pipeline import Reader, StoredRows, epoch_order

# A batch of 128 MNIST images costs about 0.6 ms of one core; two at a time stay ahead of the step.
_PARALLEL_BATCHES = 2
# Calls whose rows are read at the same time, from a split that is streamed.
_PARALLEL_CALLS = 2
_PREFETCHED = 2

# Functions of a dataset without a branch or loop of Python: converting them takes longer than
# tracing them, and that in every process.
_as_it_is = tf.autograph.experimental.do_not_convert

LAST_EPOCH = 2**31 - 1
"""The largest number of an epoch that can be asked for."""

FirstEpoch: TypeAlias = "int | tf.Variable"
"""An epoch to begin with; the value of a variable is read when an iteration begins."""

RowsHere: TypeAlias = Callable[[int], slice]
"""From the size of a batch to those of its rows that this process computes."""


class Batches(tf.data.Dataset):
    """An endless `tf.data.Dataset` of batches that `VAE.fit` can begin at any epoch.

    Iterated as it is, it begins with `first_epoch`, or with epoch 0 if that is None. What methods
    other than `map` return are ordinary datasets, which begin there in every `fit` as well.

    Args:
        from_epoch: returns the endless dataset that begins with an epoch.
        steps: batches in an epoch.
        first_epoch: see `batches`.

    Attributes:
        steps: batches in an epoch; the last one may be smaller.
        first_epoch: the epoch that every `fit` begins with; None if `fit` decides.
        first_position: 0, an epoch begins with its first batch.
    """

    first_position = 0

    def __init__(
        self,
        from_epoch: Callable[[FirstEpoch], tf.data.Dataset],
        steps: int,
        first_epoch: int | None,
    ) -> None:
        self.steps = steps
        self.first_epoch = first_epoch
        self._from_epoch = from_epoch
        self._dataset = from_epoch(first_epoch or 0)
        super().__init__(tf.data.experimental.to_variant(self._dataset))

    def _inputs(self) -> list[tf.data.Dataset]:
        return [self._dataset]  # what tf.data asks of a dataset; it gives this one its options

    @property
    def element_spec(self) -> Any:
        """Shapes and types of a batch."""
        return self._dataset.element_spec

    def map(self, *args: Any, **kwargs: Any) -> Batches:
        """`tf.data.Dataset.map`; `fit` can begin the result at any epoch, too."""
        return Batches(
            lambda first: self._from_epoch(first).map(*args, **kwargs),
            self.steps,
            self.first_epoch,
        )

    def for_keras(
        self, first_epoch: FirstEpoch, steps_per_call: int, steps: int, rows_here: RowsHere = slice
    ) -> tf.data.Dataset:
        """Returns what Keras is given instead, if its epochs have `steps` batches.

        If these are the epochs of the data, the dataset ends with the first one, and Keras begins
        another iteration for the next. A last call of fewer than `steps_per_call` steps then takes
        nothing of the next epoch.
        """
        dataset = self._from_epoch(first_epoch)
        if steps != self.steps:
            return dataset
        return dataset.take(steps).apply(tf.data.experimental.assert_cardinality(steps))


def batches(
    split: StoredRows,
    batch_size: int,
    seed: int,
    first_epoch: int | None = None,
    names: Sequence[str] = (),
) -> Batches:
    """An endless stream of batches; each epoch has every row exactly once, in a new order.

    The last batch of an epoch may be smaller. With `binarize="dynamic"` every
    epoch draws new Bernoulli values. The rows stay in memory as stored (one byte per grey value).

    Args:
        split: what to read.
        batch_size: rows, from 1 to the length of the split.
        seed: 0 to 2**32 - 1.
        first_epoch: the epoch that the stream begins with, counted from 0. None is 0, and every
            `VAE.fit` continues with the epoch after the last one that the model was trained on.
        names: further arrays to be added, as stored.

    Returns:
        A dataset of {"inputs": float32 [rows, ...]} and the further arrays [rows, ...] by name.

    Raises:
        ValueError: an argument is out of range.
        DataError: the split has no such array, or it has values that are not finite.
    """
    batch_size = _checked_batch_size(split, batch_size)
    first_epoch = _checked_first_epoch(first_epoch)
    seed = checked_seed(seed)
    with tf.device("/cpu:0"):  # tf.data gathers on the host, whatever devices there are
        reader = Reader(split, seed, names)

    order_of = _order_function(len(split), seed)

    @_as_it_is
    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        rows = tf.data.Dataset.from_tensor_slices(order_of(epoch))
        with_place = _as_it_is(lambda at, rows: (epoch, at, rows))
        return rows.batch(batch_size).enumerate().map(with_place)

    @functools.partial(tf.function, autograph=False)  # traced once, not in every fit
    def read(*place: tf.Tensor) -> dict[str, tf.Tensor]:
        return reader.read(*place)

    def from_epoch(first: FirstEpoch) -> tf.data.Dataset:
        order = _epochs_from(first).flat_map(one_epoch)
        return _as_written(order.map(read, _PARALLEL_BATCHES, deterministic=True))

    return Batches(from_epoch, split.steps(batch_size), first_epoch)


class DeviceDataset:
    """The batches of `batches` for `VAE.fit` and `VAE.evaluate`, from rows kept on the device.

    The stream carries row numbers only: each step gathers its rows from the stored ones (one byte
    per grey value), scales and binarises them. Values, order and noise are those of `batches`, bit
    for bit.

    Args:
        split: what to read.
        batch_size: rows, from 1 to the length of the split.
        seed: 0 to 2**32 - 1; None keeps the rows in their order, with the values of evaluation.
        first_epoch: the epoch that every `fit` begins with, counted from 0. With None, `fit`
            continues with the epoch after the last one that the model was trained on.
        names: further arrays to be added, as stored.
        first_position: number of batches of the first epoch to skip, from 0 to all of them.

    Attributes:
        reader: the `Reader` from row numbers to a batch.
        rows: of the split.
        batch_size: as given.
        steps: batches in an epoch; the last one may be smaller.
        first_epoch, first_position: as given.

    Raises:
        ValueError: an argument is out of range.
        DataError: the split has no such array, or it has values that are not finite.
    """

    def __init__(
        self,
        split: StoredRows,
        batch_size: int,
        seed: int | None = None,
        first_epoch: int | None = None,
        names: Sequence[str] = (),
        first_position: int = 0,
    ) -> None:
        self.rows = len(split)
        self.batch_size = _checked_batch_size(split, batch_size)
        self.first_epoch = _checked_first_epoch(first_epoch)
        seed = None if seed is None else checked_seed(seed)
        self.steps = split.steps(self.batch_size)
        self.first_position = checked_integer("first_position", first_position, 0, self.steps)
        self.reader = Reader(split, seed, names)
        self._order_of = _order_function(self.rows, seed)

    def for_keras(
        self, first_epoch: FirstEpoch, steps_per_call: int, steps: int, rows_here: RowsHere = slice
    ) -> tf.data.Dataset:
        """Returns what Keras is given instead: `calls`, however many `steps` its epochs have."""
        return self.calls(steps_per_call, first_epoch, rows_here)

    def calls(
        self,
        steps_per_call: int,
        first_epoch: FirstEpoch,
        rows_here: RowsHere = slice,
    ) -> tf.data.Dataset:
        """Returns an endless dataset with the arguments of each call of `execution.StepLoop`.

        An element is a dictionary of `epoch`, `first` (position of its first batch in the epoch),
        `rows` `[steps_per_call, batch_size]`, of which the batches from `begin` up to `count` are
        used, `is_last`, and `rest`: the rows of the smaller last batch of the epoch, used if
        `is_last`. A stream that begins within an epoch has all calls of that epoch, some with
        nothing to do, so that Keras counts them as in an uninterrupted run.

        Args:
            steps_per_call: how many steps a call has.
            first_epoch: to begin with.
            rows_here: from the size of a batch to those of its rows that this process computes;
                others are not read if rows are streamed.
        """
        if not self.reader.reads_by_row:
            rows_here = slice
        whole = self.rows // self.batch_size
        number = -(-self.steps // steps_per_call)
        firsts = np.arange(number) * steps_per_call
        padding = number * steps_per_call * self.batch_size
        count = np.clip(whole - firsts, 0, steps_per_call).astype(np.int32)
        begin = np.clip(self.first_position - firsts, 0, count).astype(np.int32)
        is_last = np.arange(number) == number - 1
        nothing_left = self.first_position >= self.steps

        @_as_it_is
        def one_epoch(index: tf.Tensor, epoch: tf.Tensor) -> tf.data.Dataset:
            order = tf.cast(self._order_of(epoch), tf.int32)
            in_batches, rest = tf.split(order, [whole * self.batch_size, -1])
            rows = tf.pad(in_batches, [[0, padding - whole * self.batch_size]])
            broken = index == 0
            return tf.data.Dataset.from_tensor_slices(
                {
                    "epoch": tf.repeat(epoch, number),
                    "first": tf.constant(firsts, tf.int64),
                    "rows": tf.reshape(rows, [number, steps_per_call, self.batch_size]),
                    "begin": tf.where(broken, begin, 0),
                    "count": tf.constant(count),
                    "rest": tf.repeat(rest[tf.newaxis], number, axis=0),
                    "is_last": tf.where(broken & nothing_left, False, is_last),
                }
            )

        dataset = _epochs_from(first_epoch).enumerate().flat_map(one_epoch)
        if self.reader.streamed:
            read = _as_it_is(functools.partial(self._with_rows_read, rows_here=rows_here))
            dataset = dataset.map(read, _PARALLEL_CALLS, deterministic=True)
        return _as_written(dataset)

    def _with_rows_read(self, call: dict[str, tf.Tensor], rows_here: RowsHere) -> dict[str, Any]:
        """Adds the rows of a call, as stored, and where each of them is in what was read."""
        steps, batch_size = call["rows"].shape
        in_batches, rest = steps * batch_size, call["rest"].shape[0] or 0

        def read(
            rows: np.ndarray, begin: int, count: int, rest: np.ndarray, is_last: bool
        ) -> dict[str, np.ndarray]:
            found = {  # some may not be used
                name: np.zeros((in_batches + len(rest), *row), dtype)
                for name, (dtype, row) in self.reader.streamed.items()
            }

            def put(places: np.ndarray, numbers: np.ndarray) -> None:
                for name, values in self.reader.read_streamed(numbers).items():
                    found[name][places] = values

            places = np.arange(in_batches).reshape(steps, batch_size)
            used = places[begin : max(begin, count), rows_here(batch_size)].reshape(-1)
            put(used, rows.reshape(-1)[used])
            if is_last and len(rest):
                used = np.arange(len(rest))[rows_here(len(rest))]
                put(in_batches + used, rest[used])
            return found

        asked = [call[name] for name in ("rows", "begin", "count", "rest", "is_last")]
        stored = self.reader.as_tensors(read, asked, in_batches + rest)
        places = tf.reshape(tf.range(in_batches), [steps, batch_size])
        rest_places = tf.range(in_batches, in_batches + rest)
        return {**call, "read": stored, "places": places, "rest_places": rest_places}

    def next_call(self, iterator: Iterator[dict[str, tf.Tensor]]) -> dict[str, tf.Tensor]:
        """Returns the next element of `calls`.

        Raises:
            DataError: rows could not be read.
        """
        try:
            return next(iterator)
        except tf.errors.OpError:
            if self.reader.failure is not None:
                raise self.reader.failure from None
            raise


def was_made_from_batches(dataset: tf.data.Dataset) -> bool:
    """Whether a dataset was made from `Batches` by methods that do not keep their epochs."""
    if isinstance(dataset, Batches):
        return dataset.first_epoch is None
    return any(was_made_from_batches(found) for found in dataset._inputs())


def _order_function(rows: int, seed: int | None) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the function from an epoch to its row numbers, int64; without a seed in their order.

    It is traced once: every `fit` makes a dataset of its own, and tracing is most of that time.
    """
    if seed is None:
        return lambda epoch: tf.range(rows, dtype=tf.int64)
    return tf.function(lambda epoch: epoch_order(rows, seed, epoch), autograph=False)


def _epochs_from(first: FirstEpoch) -> tf.data.Dataset:
    """The numbers of epochs, int64, without an end."""
    last = np.iinfo(np.int64).max
    count = _as_it_is(lambda zero: tf.data.Dataset.range(zero + first, last))
    return tf.data.Dataset.from_tensors(np.int64(0)).flat_map(count)


def _as_written(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Prefetches, with tf.data's autotuning off.

    There is nothing to tune, and deleting an iterator waits for the tuning thread: validation
    started up to a second late after every epoch.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.prefetch(_PREFETCHED).with_options(options)


def _checked_batch_size(split: StoredRows, batch_size: int) -> int:
    return checked_integer("batch_size", batch_size, 1, len(split), why="the rows of the split")


def _checked_first_epoch(first_epoch: int | None) -> int | None:
    if first_epoch is None:
        return None
    return checked_integer("first_epoch", first_epoch, 0, LAST_EPOCH)
